"""Executing notebooks: one with parameters, or all with their defaults to refresh their outputs.

``python -m rmlib.study.batch.notebooks run NOTEBOOK OUTPUT [JSON] | refresh NOTEBOOK ...``.
"""

import base64
import contextlib
import hashlib
import io
import json
import logging
import os
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

import nbformat
import psutil

from rmlib import Stopped, UserError
from rmlib.params import nearest
from rmlib.study.guarded import Usage, guarded, handling
from rmlib.study.runs import records
from rmlib.study.settings import NOTEBOOKS, assigned

KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
# seconds before a kernel that did not start is tried again; what fails later is not tried again
BACKOFF = (2, 8)
# in the notebook's metadata: the source that the stored outputs belong to
FRESH = "source_sha256"


def source_hash(notebook) -> str:
    """Hash over kind, source and tags of all cells: what a reader sees without outputs."""
    rows = [(cell.cell_type, cell.source, cell.metadata.get("tags", [])) for cell in notebook.cells]
    text = "\n\n".join(f"{kind}\n{source}\n{tags}" for kind, source, tags in rows)
    return hashlib.sha256(text.encode()).hexdigest()


def run(source: Path, target: Path, parameters: dict | None = None) -> None:
    """Execute a notebook into ``target``, without paths of this machine in its metadata.

    What it prints is printed here, too, as it comes. A kernel that does not start is tried again.
    SIGTERM and Ctrl-C interrupt the executed cell, see :func:`_end_kernel`; no other starts.

    Raises:
        Stopped: asked to end, and so it did.
        UserError: the notebook is missing, or a cell failed (the executed copy shows which).
    """
    import papermill
    from nbclient.exceptions import DeadKernelError

    source, target = Path(source), Path(target)
    if not source.exists():
        raise UserError(f"there is no notebook {source}")
    target.parent.mkdir(parents=True, exist_ok=True)
    ending, begun = threading.Event(), threading.Event()

    def end(*_):
        if not ending.is_set():
            ending.set()
            threading.Thread(target=_end_kernel, args=(begun,), daemon=True).start()

    try:
        with handling((signal.SIGTERM, signal.SIGINT), end):
            _execute(source, target, parameters, ending, begun)
    except DeadKernelError:
        reason = "was killed or crashed, and left no message (memory full? see the system's log)"
        raise UserError(f"the kernel of {target} {reason}") from None
    except papermill.PapermillExecutionError as error:
        place = f"cell {error.exec_count} of {target}"
        if error.ename in ("KeyboardInterrupt", "Stopped"):
            raise Stopped(error.evalue or f"stopped in {place}") from None
        raise UserError(f"{error.ename}: {error.evalue} ({place})") from error
    finally:
        # it may not be written to its end: what stopped it says so
        with contextlib.suppress(ValueError, OSError):
            tidy(target)


def _execute(source, target, parameters, ending, begun):
    """Papermill, again where the kernel did not start; ``begun``: a cell was."""
    import papermill
    from nbclient.exceptions import DeadKernelError
    from traitlets.config import Config
    from zmq.error import ZMQError

    # it warns of every parameter that the notebook leaves to its default
    logging.getLogger("papermill").setLevel(logging.ERROR)
    # Plain TCP warns in every kernel since ipykernel 7.3. A kernel is asked to go after its last
    # cell, by a message that jupyter_client gives a tenth of a second to be delivered: on a busy
    # machine it is lost, and SIGTERM follows after half of the wait.
    kernels = Config({"KernelManager": {"transport_encryption": "auto", "shutdown_wait_time": 2.0}})

    def not_after_the_end(**_):
        begun.set()
        if ending.is_set():
            raise Stopped("stopped between two cells of the notebook")

    options = {"kernel_name": "python3", "progress_bar": False, "config": kernels}
    options |= {"stdout_file": sys.stdout, "stderr_file": sys.stdout}
    options["on_cell_start"] = not_after_the_end
    for attempt, pause in enumerate((*BACKOFF, None), 1):
        try:
            papermill.execute_notebook(os.path.relpath(source), str(target), parameters, **options)
            return
        except (RuntimeError, ZMQError) as error:
            if ending.is_set():
                raise Stopped("stopped with the notebook") from None
            if isinstance(error, DeadKernelError) or begun.is_set():
                raise
            reason = str(error).splitlines()[0]
            if pause is None:
                words = f"the kernel of {target} did not start in {attempt} attempts: {reason}"
                raise UserError(words) from error
            print(f"the kernel did not start ({reason}): again in {pause} s", flush=True)
            time.sleep(pause)


def _end_kernel(begun):
    """Interrupt what the kernel executes, as Ctrl-C would; a kernel deaf to it is killed.

    A training ends with a checkpoint, and papermill sees a cell that failed. (An exception in this
    process would tear papermill's event loop at a random place, with the kernel left behind.)
    A kernel that still starts just ends.
    """
    # a kernel ignores what comes before its cell begins, and may be slow to tell that one ended
    for pause, number in ((0, signal.SIGINT), (4, signal.SIGINT), (11, signal.SIGINT), (45, None)):
        time.sleep(pause)
        if number and not begun.is_set():
            number = signal.SIGTERM
        for process in psutil.Process().children():
            with contextlib.suppress(psutil.Error):
                process.send_signal(number or signal.SIGKILL)


def check_parameters(path: Path) -> None:
    """Refuse a notebook in which papermill could not set the parameters.

    Raises:
        UserError: it is not there or damaged, not exactly one cell has the tag `parameters`, or a
            name in it is no parameter.
    """
    try:
        found = nbformat.read(path, as_version=4).cells
    except (OSError, ValueError) as error:
        problem = f"{path} is missing or damaged ({str(error).splitlines()[0]})"
        raise UserError(f"{problem}: restore it") from error
    cells = [cell for cell in found if "parameters" in cell.metadata.get("tags", [])]
    if len(cells) != 1:
        problem = f"{path}: {len(cells) or 'no'} cells have the tag `parameters`"
        raise UserError(f"{problem}, and papermill needs one to set them: restore it")
    names, known = assigned(cells[0].source), NOTEBOOKS[path.stem].model_fields
    if names is None:
        problem = f"{path}: its cell of parameters holds more than assignments of values"
        raise UserError(f"{problem}: move the rest into the next cell")
    if unknown := sorted(names - known.keys()):
        name = unknown[0]
        raise UserError(f"{path}: unknown parameter {name!r}: {nearest(name, known)}")


def tidy(path: Path, reset: bool = False) -> None:
    """Take machine paths (``reset``: all metadata) out of a notebook, and store figures small."""
    notebook = nbformat.read(path, as_version=4)
    papermills = notebook.metadata.get("papermill", {})
    for name in {"input_path", "output_path"} & papermills.keys():
        papermills[name] = Path(papermills[name]).name
    # papermill's own duration leaves out what this process took to start, a third of a short run
    papermills["seconds"] = time.time() - psutil.Process().create_time()
    for output in (output for cell in notebook.cells for output in cell.get("outputs", [])):
        data = output.get("data", {})
        if "image/png" in data:
            small = in_few_colours(base64.b64decode(data["image/png"]))
            data["image/png"] = base64.b64encode(small).decode()
    if reset:
        kept = {"kernelspec": KERNEL, "language_info": {"name": "python"}}
        kept["rmlib"] = {FRESH: source_hash(notebook)}
        notebook.metadata = nbformat.from_dict(kept)
        for cell in notebook.cells:
            tags = cell.metadata.get("tags", [])
            cell.metadata = nbformat.from_dict({"tags": tags} if tags else {})
    records.atomic_write(path, (nbformat.writes(notebook) + "\n").encode())


def in_few_colours(png: bytes) -> bytes:
    """A figure in the fewest colours that change pixels by under a third of a level on average."""
    import numpy as np
    from PIL import Image

    picture = Image.open(io.BytesIO(png)).convert("RGB")
    for colours in (32, 64, 128, 256):
        small = picture.quantize(colours, method=Image.Quantize.MAXCOVERAGE, kmeans=3)
        if abs(np.asarray(small.convert("RGB"), dtype=int) - np.asarray(picture)).mean() < 1 / 3:
            break
    target = io.BytesIO()
    small.save(target, "PNG", optimize=True)
    return target.getvalue()


def save_figure(figure, path: Path) -> None:
    """Store a figure as a small PNG.

    Raises:
        UserError: the file cannot be written.
    """
    target = io.BytesIO()
    figure.savefig(target, format="png")
    records.atomic_write(Path(path), in_few_colours(target.getvalue()))


def refresh(paths) -> None:
    """Execute notebooks with their defaults, from scratch, and store the outputs in them."""
    for path in map(Path, paths):
        with tempfile.TemporaryDirectory() as scratch:
            executed = Path(scratch) / path.name
            os.environ["RMLIB_RUNS"] = scratch  # no earlier run is loaded instead of trained
            run(path, executed)
            tidy(executed, reset=True)
            records.atomic_write(path, executed.read_bytes())
        print(f"{path}: refreshed, {path.stat().st_size / 1000:.0f} kB")


def main(words) -> None:
    """The command in the words after ``-m``."""
    match words:
        case ["run", source, target, *parameters] if len(parameters) <= 1:
            run(source, target, *map(json.loads, parameters))
        case ["refresh", _, *_]:
            refresh(words[1:])
        case _:
            raise Usage("expected: run NOTEBOOK OUTPUT [JSON] | refresh NOTEBOOK ...")


if __name__ == "__main__":
    sys.exit(guarded(lambda: main(sys.argv[1:])))
