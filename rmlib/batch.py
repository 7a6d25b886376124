"""Grids of runs through papermill: plan, run, resume.

A YAML file names a grid; every cell is checked before any kernel starts, runs notebook 02_training in a process of its own,
and is done when its record says so (notebook metadata decides nothing: papermill marks killed notebooks as completed).
A cell's folder OUT/RUN_ID keeps the executed notebook, the record, and error.txt if the cell failed.
"""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rmlib import UserError, records
from rmlib.params import NOTEBOOKS, TrainParams, nearest, parse, project_root, runs_dir, takes_list

ERROR = "error.txt"
ENDING = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]  # also a closed terminal


class _UniqueKeys(yaml.SafeLoader):
    """YAML in which a key given twice is a mistake instead of the last one winning."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key) for key, _ in node.value]
        twice = {str(key) for key in keys if keys.count(key) > 1}
        if twice:
            raise yaml.YAMLError(f"{', '.join(sorted(twice))} is given twice in one block (line {node.start_mark.line + 1})")
        return super().construct_mapping(node, deep)


class BatchFile(BaseModel):
    """The YAML file of a batch."""

    model_config = ConfigDict(extra="forbid")

    notebook: str = Field("02_training", description="notebook that is run for each cell")
    common: dict = Field({}, description="parameters of all cells")
    grid: list[dict] = Field(min_length=1, description="blocks; in each, lists span a grid of cells")


@dataclass
class Batch:
    """A checked batch: ``cells`` in the order of the file, without repetitions, written below ``out``."""

    name: str
    notebook: str
    out: Path
    cells: list[TrainParams]

    def state(self, cell: TrainParams) -> str:
        """done (a readable record), failed, partial (a checkpoint waits) or new."""
        if (cell.folder / records.RECORD).exists():
            records.read(cell.folder)
            return "done"
        if (cell.folder / ERROR).exists():
            return "failed"
        return "partial" if (cell.folder / records.CHECKPOINT).exists() else "new"

    def label(self, cell: TrainParams) -> str:
        """The parameters in which this cell differs from the others of the batch."""
        configs = [other.config for other in self.cells]
        varying = [name for name, value in cell.config.items() if any(config[name] != value for config in configs)]
        names = [name for name in varying if name != "mixer"]
        return " ".join([cell.mixer, *(f"{name}={getattr(cell, name)}" for name in names)])


def read_batch(path: Path, out: Optional[Path] = None) -> Batch:
    """Expand a YAML grid into checked cells.

    Args:
        path: the YAML file; its name without ending is the batch's name.
        out: folder of the results; default runs/NAME.

    Raises:
        UserError: unreadable file, unknown or mistyped entries or parameters: one line naming all of them.
    """
    path = Path(path)
    try:
        content = yaml.load(path.read_text(), _UniqueKeys)
        file = BatchFile(**content) if isinstance(content, dict) else None
    except FileNotFoundError:
        beside = sorted(p.stem for p in (project_root() / "notebooks" / "batches").glob("*.yaml"))
        raise UserError(f"there is no batch file {path}; the project has {', '.join(beside) or 'none'} in notebooks/batches") from None
    except (yaml.YAMLError, UnicodeDecodeError, IsADirectoryError) as error:
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    except ValidationError as error:
        item = min(error.errors(), key=lambda item: item["type"] != "extra_forbidden")  # a misspelt name explains a missing one
        name = ".".join(map(str, item["loc"]))
        remedy = nearest(name, BatchFile.model_fields) if item["type"] == "extra_forbidden" else item["msg"]
        raise UserError(f"{path}: {name}: {remedy}") from error
    if file is None:
        raise UserError(f"{path} is empty: expected the entries notebook, common and grid")
    if file.notebook not in NOTEBOOKS or not issubclass(NOTEBOOKS[file.notebook], TrainParams):
        raise UserError(f"{path}: notebook={file.notebook!r}: a batch runs 02_training")
    out = Path(out) if out else runs_dir() / path.stem
    out = Path(os.path.relpath(out)) if out.resolve().is_relative_to(Path.cwd()) else out  # no machine path in the notebooks
    cells, wrong = {}, {}
    if not all(value for block in file.grid for value in block.values() if isinstance(value, list)):
        raise UserError(f"{path}: an empty list spans no cell: give it values, or leave the parameter out")
    for block in file.grid:
        for values in _expand(file.notebook, file.common | block):
            try:
                cell = parse(file.notebook, values | {"out": str(out)})
                known = cells.setdefault(cell.run_id, cell)
                if known.dataset != cell.dataset:
                    raise UserError(f"{known.dataset} and {cell.dataset} would be one run: give the folders different names")
            except UserError as error:
                wrong.setdefault(str(error).removeprefix(f"{file.notebook}: "), None)
    if wrong:
        raise UserError(f"{path}: {'; '.join(wrong)}")
    return Batch(path.stem, file.notebook, out, list(cells.values()))


def _expand(notebook, block):
    """The cells of one block: every list spans a dimension (for parameters that are lists, a list of lists does)."""
    ranges = []
    for name, value in block.items():
        several = isinstance(value, list) and (not takes_list(notebook, name) or any(isinstance(v, list) for v in value))
        ranges.append([(name, v) for v in (value if several else [value])])
    return [dict(pairs) for pairs in itertools.product(*ranges)]


def default_workers(batch: Batch) -> int:
    """One cell at a time on a GPU, else as many as the cores carry with the threads of a cell."""
    if batch.cells[0].device != "cpu" and shutil.which("nvidia-smi"):
        return 1
    return max(1, min(8, (os.cpu_count() or 1) // batch.cells[0].threads))


def run_batch(batch: Batch, *, workers: Optional[int] = None, only_failed: bool = False, log=print) -> dict[str, int]:
    """Run every cell that has no record; returns how many are done, failed, stopped or left.

    Finished cells are skipped, cells with a checkpoint go on from it, a failing cell does not keep the others from running.
    Ctrl-C, SIGTERM and a closed terminal end the running cells with a checkpoint; the same command goes on.

    Args:
        workers: cells at the same time; default :func:`default_workers`.
        only_failed: run nothing but the cells that failed before.
    """
    from rmlib import sources

    states = {cell.run_id: batch.state(cell) for cell in batch.cells}
    todo = [cell for cell in batch.cells if states[cell.run_id] in (("failed",) if only_failed else ("failed", "partial", "new"))]
    done = sum(state == "done" for state in states.values())
    workers = max(1, min(workers or default_workers(batch), len(todo) or 1))
    log(f"batch {batch.name}: {len(batch.cells)} cells, {done} done already, {len(todo)} to run, {workers} at a time, in {batch.out}")
    for name, root in {(cell.dataset, cell.root) for cell in todo}:  # once, before any kernel: data missing is known now
        sources.arrays(name, root)
    for cell in batch.cells:
        if states[cell.run_id] == "done" and cell.dataset not in sources.SIZES:
            records.check_images(cell, sources.arrays(cell.dataset, cell.root)["checksum"], records.read(cell.folder).data["checksum"])
    counts, processes, stop = {"done": done, "failed": 0, "stopped": 0}, set(), threading.Event()
    begun = time.perf_counter()
    pool = ThreadPoolExecutor(workers)
    main = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, _interrupt) for number in ENDING if main}
    try:
        futures = {pool.submit(_run_cell, batch, cell, processes, stop): cell for cell in todo}
        for number, future in enumerate(as_completed(futures), 1):
            cell = futures[future]
            outcome, text = future.result()
            counts[outcome] += 1
            left = (time.perf_counter() - begun) / number * (len(todo) - number)
            log(f"[{number}/{len(todo)}] {outcome:<7} {batch.label(cell)}: {text}" + (f"  ({left:.0f} s left)" if left else ""))
    except KeyboardInterrupt:
        stop.set()
        log("interrupted: ending the running cells with a checkpoint; the same command goes on from here")
        for process in list(processes):
            process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        for number, handler in before.items():
            signal.signal(number, handler)
    counts["left"] = len(batch.cells) - sum(counts.values())
    return counts


def _interrupt(*_):
    raise KeyboardInterrupt


def _run_cell(batch, cell, processes, stop):
    """Run one cell in its own process; returns (outcome, one line of text)."""
    if stop.is_set():
        return "stopped", "not started"
    begun, folder = time.perf_counter(), cell.folder
    executed = folder / f"{batch.notebook}.ipynb"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        return "failed", f"{folder} cannot be made ({error.strerror}): choose another folder with --out"
    (folder / ERROR).unlink(missing_ok=True)
    source = project_root() / "notebooks" / f"{batch.notebook}.ipynb"
    # all parameters, defaults too: what runs is what was hashed, whatever the notebook's own cell says
    command = [sys.executable, "-m", "rmlib.notebooks", "run", str(source), str(executed), json.dumps(cell.model_dump())]
    threads = str(cell.threads)
    environment = os.environ | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "PYTHONUNBUFFERED": "1"}
    environment.pop("JPY_SESSION_NAME", None)  # a batch started from a notebook is not watched cell by cell
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                               start_new_session=True)
    processes.add(process)
    if stop.is_set():  # interrupted between the first line and here
        process.terminate()
    try:
        output, _ = process.communicate()
    finally:
        processes.discard(process)
    seconds = time.perf_counter() - begun
    try:
        record = records.read(folder)
    except UserError as error:
        reason = _last_error(executed) or (_last_line(output) if process.returncode else None) or str(error)
        if stop.is_set() or reason.startswith("Stopped:"):
            return "stopped", reason
        (folder / ERROR).write_text(f"{reason}\n\n{output}")
        return "failed", f"{reason}  (see {executed if executed.exists() else folder / ERROR})"
    accuracy = f"{record.metrics['accuracy']:.2f} %" if record.status == "done" else record.status
    return "done", f"{accuracy} after {seconds:.0f} s"


def _last_error(executed: Path):
    """'Kind: message' of the exception in an executed notebook, or None (a killed kernel leaves none)."""
    import nbformat

    if not executed.exists():
        return None
    for cell in nbformat.read(executed, as_version=4).cells:
        for output in cell.get("outputs", []):
            if output.output_type == "error":
                return f"{output.ename}: {output.evalue}".splitlines()[0]
    return None


def _last_line(output: str):
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return lines[-1][:200] if lines else None
