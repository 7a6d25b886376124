"""Executing notebooks: one with parameters, or all with their defaults to refresh the stored
outputs.

``python -m rmlib.study.batch.notebooks run NOTEBOOK OUTPUT [JSON]`` and ``python -m rmlib.study.batch.notebooks refresh
NOTEBOOK ...``.
"""

import ast
import base64
import contextlib
import hashlib
import io
import json
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
from rmlib.study.runs import records
from rmlib.study.settings import NOTEBOOKS

KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
BACKOFF = (
    2,
    8,
)  # seconds before a kernel that did not start is tried again; what fails later is not tried again
FRESH = "source_sha256"  # in the notebook's metadata: the source that the stored outputs belong to


def source_hash(notebook) -> str:
    """Hash over kind, source and tags of all cells: what a reader sees without outputs."""
    parts = [
        f"{cell.cell_type}\n{cell.source}\n{cell.metadata.get('tags', [])}"
        for cell in notebook.cells
    ]
    return hashlib.sha256("\n\n".join(parts).encode()).hexdigest()


def run(source: Path, target: Path, parameters: dict | None = None) -> None:
    """Execute a notebook into ``target``, without paths of this machine in its metadata.

    What the notebook prints is printed here, too, as it comes. A kernel that does not start is
    tried again. SIGTERM and Ctrl-C interrupt the cell that is executed (see :func:`_end_kernel`)
    and start no other.

    Raises:
        Stopped: told to end between two cells; in a cell it is the cell's own error.
        UserError: the notebook is missing, or a cell failed (the executed copy shows which).
    """
    import papermill
    from nbclient.exceptions import DeadKernelError
    from traitlets.config import Config
    from zmq.error import ZMQError

    if not Path(source).exists():
        raise UserError(f"there is no notebook {source}")
    Path(target).parent.mkdir(parents=True, exist_ok=True)
    # Plain TCP warns in every kernel since ipykernel 7.3. A kernel is asked to go after its last
    # cell, by a message that jupyter_client gives a tenth of a second to be delivered: on a busy
    # machine it is lost now and then, and SIGTERM follows after half of the wait.
    kernels = Config({"KernelManager": {"transport_encryption": "auto", "shutdown_wait_time": 6.0}})
    ending = threading.Event()

    def end(*_):
        if not ending.is_set():
            ending.set()
            threading.Thread(target=_end_kernel, daemon=True).start()

    def not_after_the_end(**_):
        if ending.is_set():
            raise Stopped("stopped between two cells of the notebook")

    main = threading.current_thread() is threading.main_thread()
    before = {
        number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT) if main
    }
    try:
        for attempt, pause in enumerate((*BACKOFF, None), 1):
            try:
                papermill.execute_notebook(
                    os.path.relpath(source),
                    str(target),
                    parameters,
                    kernel_name="python3",
                    progress_bar=False,
                    config=kernels,
                    stdout_file=sys.stdout,
                    stderr_file=sys.stdout,
                    on_cell_start=not_after_the_end,
                )
                break
            except (RuntimeError, ZMQError) as error:
                if ending.is_set():
                    raise Stopped("stopped with the notebook") from None
                if isinstance(error, DeadKernelError) or not _never_began(Path(target)):
                    raise
                if pause is None:
                    raise UserError(
                        f"the kernel of {target} did not start in {attempt} attempts:"
                        f" {str(error).splitlines()[0]}"
                    ) from error
                print(
                    f"the kernel did not start ({str(error).splitlines()[0]}): attempt"
                    f" {attempt + 1} in {pause} s",
                    flush=True,
                )
                time.sleep(pause)
    except DeadKernelError:
        raise UserError(
            f"the kernel of {target} was killed or crashed, and left no message (memory full? see"
            " the system's log)"
        ) from None
    except papermill.PapermillExecutionError as error:
        raise UserError(
            f"{error.ename}: {error.evalue} (cell {error.exec_count} of {target})"
        ) from error
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        with contextlib.suppress(
            ValueError, OSError
        ):  # it could not be written to its end: told by what stopped it
            tidy(Path(target))


def _end_kernel():
    """Interrupt what the kernel executes, as Ctrl-C would: a training ends with a checkpoint, and
    papermill sees a cell that failed. (An exception in this process instead would tear papermill's
    event loop at a random place, with the kernel left behind.) A kernel deaf to it is killed.
    """
    for pause, number in (
        (0, signal.SIGINT),
        (15, signal.SIGINT),
        (45, signal.SIGKILL),
    ):  # the second for one that fell between two cells
        time.sleep(pause)
        for process in psutil.Process().children():
            with contextlib.suppress(psutil.Error):
                process.send_signal(number)


def _never_began(target):
    """Whether no cell of a notebook was executed: then trying again repeats nothing."""
    try:
        return not any(
            cell.get("execution_count") for cell in nbformat.read(target, as_version=4).cells
        )
    except OSError:
        return True


def check_parameters(path: Path) -> None:
    """Refuse a notebook in which papermill could not set the parameters of its name, before any
    kernel starts.

    Raises:
        UserError: it is not there or damaged, not exactly one cell has the tag `parameters`, or a
            name in it is no parameter.
    """
    path = Path(path)
    try:
        cells = [
            cell
            for cell in nbformat.read(path, as_version=4).cells
            if "parameters" in cell.metadata.get("tags", [])
        ]
    except FileNotFoundError:
        raise UserError(f"there is no notebook {path}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged ({str(error).splitlines()[0]}): restore it") from error
    if len(cells) != 1:
        raise UserError(
            f"{path}: {len(cells) or 'no'} cells have the tag `parameters`, expected one: without"
            " it papermill would run the notebook's own values instead of those asked for"
        )
    try:
        names = [target.id for node in ast.parse(cells[0].source).body for target in node.targets]
    except (SyntaxError, AttributeError):
        raise UserError(
            f"{path}: its cell of parameters holds more than assignments of values: move the rest"
            " into the next cell"
        ) from None
    known = NOTEBOOKS[path.stem].model_fields
    for name in names:
        if name not in known:
            raise UserError(
                f"{path}: unknown parameter {name!r} in its cell of parameters:"
                f" {nearest(name, known)}"
            )


def tidy(path: Path, reset: bool = False) -> None:
    """Take machine paths out of an executed notebook's metadata, and store its figures in few
    colours; ``reset`` takes all metadata.
    """
    notebook = nbformat.read(path, as_version=4)
    for name in ("input_path", "output_path"):
        if name in notebook.metadata.get("papermill", {}):
            notebook.metadata.papermill[name] = Path(notebook.metadata.papermill[name]).name
    for output in (
        output
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    ):
        output.data["image/png"] = base64.b64encode(
            in_few_colours(base64.b64decode(output.data["image/png"]))
        ).decode()
    if reset:
        notebook.metadata = nbformat.from_dict(
            {
                "kernelspec": KERNEL,
                "language_info": {"name": "python"},
                "rmlib": {FRESH: source_hash(notebook)},
            }
        )
        for cell in notebook.cells:
            tags = cell.metadata.get("tags", [])
            cell.metadata = nbformat.from_dict({"tags": tags} if tags else {})
    records.atomic_write(path, (nbformat.writes(notebook) + "\n").encode())


def in_few_colours(png: bytes) -> bytes:
    """A figure in a palette of at most 256 colours, of fewer where that changes pixels by less than
    a third of a level on average: a quarter of the size.
    """
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
            before = os.environ.get("RMLIB_RUNS")
            os.environ["RMLIB_RUNS"] = scratch  # no earlier run is loaded instead of trained
            try:
                run(path, executed)
            finally:
                (
                    os.environ.pop("RMLIB_RUNS")
                    if before is None
                    else os.environ.update(RMLIB_RUNS=before)
                )
            tidy(executed, reset=True)
            records.atomic_write(path, executed.read_bytes())
        print(f"{path}: refreshed, {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    from rmlib.study.guarded import guarded

    command, *words = sys.argv[1:] or [""]
    if (command, len(words)) in (("run", 2), ("run", 3)):
        sys.exit(
            guarded(
                lambda: run(words[0], words[1], json.loads(words[2]) if len(words) == 3 else None)
            )
        )
    if command == "refresh" and words:
        sys.exit(guarded(lambda: refresh(words)))
    sys.exit(
        "use: python -m rmlib.study.batch.notebooks run NOTEBOOK OUTPUT [JSON] | refresh NOTEBOOK ..."
    )
