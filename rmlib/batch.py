"""Grids of runs through papermill: plan, run, resume.

A YAML file names a grid; every cell is checked before any kernel starts, runs notebook 02_training in a process of its own,
and is done when its record says so (notebook metadata decides nothing: papermill marks killed notebooks as completed).
A cell's folder OUT/RUN_ID keeps the executed notebook, the record, and error.txt if the cell failed.

Around the grid the file may name the other notebooks: 01_method on its images beside the cells, then 03_robustness and 04_cam
on its networks, then 05_results on its records. They lie in OUT, and run again when what they look at has changed.
"""

import contextlib
import hashlib
import itertools
import json
import os
import re
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

from rmlib import STOPPED, UserError, records
from rmlib.params import CELL, NOTEBOOKS, DataParams, NetworksParams, Params, TrainParams, experiment, nearest, parse, project_root, runs_dir, takes_list

PHASES = (("01_method",), ("03_robustness", "04_cam"), ("05_results",))  # the others: beside the grid, after it, at last
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

    common: dict = Field({}, description="parameters of all cells")
    grid: list[dict] = Field(min_length=1, description="blocks; in each, lists span a grid of cells")
    notebooks: dict[str, Optional[dict]] = Field({}, description="the other notebooks of the study, with their parameters")


@dataclass
class Batch:
    """A checked batch, written below ``out``: ``cells`` in the order of the file, without repetitions, and the ``lessons``, the
    other notebooks with their parameters."""

    name: str
    out: Path
    cells: list[TrainParams]
    lessons: dict[str, Params]

    def state(self, cell: TrainParams) -> str:
        """done (a readable record, and the attacks that were asked for), failed, partial (a checkpoint or a part of the attacks) or new."""
        if (cell.folder / records.RECORD).exists():
            trained = records.read(cell.folder).status == "done"
            if not (cell.robustness and trained) or records.measured_to_the_end(cell.folder):
                return "done"
        if (cell.folder / ERROR).exists():
            return "failed"
        return "partial" if _goes_on(cell) else "new"

    def lesson_state(self, name: str) -> str:
        """done (ran to its end on what is there now), failed or new."""
        mark = self.out / f"{name}.done"
        if mark.exists() and mark.read_text() == self.fingerprint(name):
            return "done"
        return "failed" if (self.out / f"{name}.{ERROR}").exists() else "new"

    def plan(self) -> list[tuple[str, str]]:
        """What a run would do, as (state, text): every cell, then every other notebook; one that looks at something that will
        change is new."""
        states = [(self.state(cell), f"{cell.run_id}  {self.label(cell)}") for cell in self.cells]
        changes = any(state != "done" for state, _ in states)
        for phase, names in enumerate(PHASES):
            found = [(name, "new" if phase and changes else self.lesson_state(name)) for name in names if name in self.lessons]
            states += [(state, name) for name, state in found]
            changes |= phase > 0 and any(state != "done" for _, state in found)
        return states

    def fingerprint(self, name: str) -> str:
        """Hash of a lesson's source, its parameters and the files it looks at."""
        looks_at = {"01_method": (), "05_results": (records.RECORD, *(f"{kind}.json" for kind in records.KINDS))}.get(name, (records.RECORD,))
        digest = hashlib.sha256(_source(name).read_bytes() + json.dumps(self.lessons[name].model_dump()).encode())
        for path in sorted(path for file in looks_at for path in self.out.glob(f"*/{file}")):
            digest.update(f"{path.parent.name}/{path.name}".encode() + path.read_bytes())
        return digest.hexdigest()

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
        raise UserError(f"{path} is empty: expected the entries common, grid and notebooks")
    out = Path(out) if out else runs_dir() / path.stem
    out = Path(os.path.relpath(out)) if out.resolve().is_relative_to(Path.cwd()) else out  # no machine path in the notebooks
    cells, wrong = {}, {}
    if not all(value for block in file.grid for value in block.values() if isinstance(value, list)):
        raise UserError(f"{path}: an empty list spans no cell: give it values, or leave the parameter out")
    for block in file.grid:
        for values in _expand(file.common | block):
            try:
                cell = parse(CELL, values | {"out": str(out)})
                known = cells.setdefault(cell.run_id, cell)
                if known.dataset != cell.dataset:
                    raise UserError(f"{known.dataset} and {cell.dataset} would be one run: give the folders different names")
            except UserError as error:
                wrong.setdefault(str(error).removeprefix(f"{CELL}: "), None)
    lessons = {}
    for name, values in file.notebooks.items():
        try:
            if name not in itertools.chain(*PHASES):
                raise UserError(f"notebooks: {name}: {nearest(name, [*itertools.chain(*PHASES)])}")
            if cells:
                lessons[name] = parse(name, _given(name, next(iter(cells.values())), out) | (values or {}))
                weight, weights = getattr(lessons[name], "clean_weight", None), sorted({cell.clean_weight for cell in cells.values()})
                if weight is not None and weight not in weights:
                    raise UserError(f"notebooks: {name}: clean_weight={weight:g} selects no cell of the grid: set it to one of "
                                    f"{', '.join(f'{each:g}' for each in weights)}, or none for all")
        except UserError as error:
            wrong.setdefault(str(error), None)
    if wrong:
        raise UserError(f"{path}: {'; '.join(wrong)}")
    return Batch(path.stem, out, list(cells.values()), lessons)


def _given(name, cell, out):
    """What the grid says about the parameters of another notebook."""
    if issubclass(NOTEBOOKS[name], DataParams):
        return {"dataset": cell.dataset, "root": cell.root, "allow_partial": cell.allow_partial}
    if issubclass(NOTEBOOKS[name], NetworksParams):
        folder = cell.dataset.removeprefix("folder:") if cell.dataset.startswith("folder:") else None
        return {"runs": str(out), "root": folder or cell.root, "device": cell.device, "threads": cell.threads, "save": True}
    return {"runs": str(out)}


def _source(name):
    return project_root() / "notebooks" / f"{name}.ipynb"


def _expand(block):
    """The cells of one block: every list spans a dimension (for parameters that are lists, a list of lists does)."""
    ranges = []
    for name, value in block.items():
        several = isinstance(value, list) and (not takes_list(CELL, name) or any(isinstance(v, list) for v in value))
        ranges.append([(name, v) for v in (value if several else [value])])
    return [dict(pairs) for pairs in itertools.product(*ranges)]


def default_workers(batch: Batch) -> int:
    """One cell at a time on a GPU, else as many as the cores carry with the threads of a cell."""
    if batch.cells[0].device != "cpu" and shutil.which("nvidia-smi"):
        return 1
    return max(1, min(8, (os.cpu_count() or 1) // batch.cells[0].threads))


def run_batch(batch: Batch, *, workers: Optional[int] = None, only_failed: bool = False, max_minutes: Optional[float] = None,
              min_images_per_second: Optional[float] = None, together: int = 1, compiled: bool = False, log=print) -> dict[str, int]:
    """Run every cell that has no record, then the lessons that are not up to date; returns how many are done, failed, stopped
    or left, cells and lessons together.

    Finished cells are skipped, cells with a checkpoint go on from it, a failing cell does not keep the others from running;
    lessons look at what is there. Ctrl-C, SIGTERM and a closed terminal end the running cells with a checkpoint; the same
    command goes on.

    Args:
        workers: notebooks at the same time; default :func:`default_workers`.
        only_failed: of the cells, run none but those that failed before.
        max_minutes: for a machine that is there for a limited time. A new cell starts only if its whole schedule, and the attacks
            after it, will fit into what is left; one with a checkpoint goes on and stops with a checkpoint. How long a cell takes
            is known from those that ended in this call; the first of a kind is given up after two epochs if it will not fit.
        min_images_per_second: see TrainParams; of every cell.
        together: cells trained in one process, a step of each in turn (see :func:`rmlib.train.train_together`).
        compiled: see TrainParams; of every cell.
    """
    from rmlib import sources

    states = {cell.run_id: batch.state(cell) for cell in batch.cells}
    todo = [cell for cell in batch.cells if states[cell.run_id] in (("failed",) if only_failed else ("failed", "partial", "new"))]
    done = sum(state == "done" for state in states.values())
    workers = max(1, workers or default_workers(batch))
    log(f"batch {batch.name}: {len(batch.cells)} cells, {done} done already, {len(todo)} to run, {workers} at a time, in {batch.out}"
        + (f"; around them {', '.join(batch.lessons)}" if batch.lessons else ""))
    for name, root, partial in {(cell.dataset, cell.root, cell.allow_partial) for cell in todo}:  # data missing is known before any kernel
        sources.arrays(name, root, allow_partial=partial)
    for cell in batch.cells:
        if states[cell.run_id] == "done" and (cell.dataset not in sources.SIZES or cell.allow_partial):
            images = sources.arrays(cell.dataset, cell.root, allow_partial=cell.allow_partial)
            records.check_images(cell, images["checksum"], records.read(cell.folder).data["checksum"])
    counts = {"done": done, "failed": 0, "stopped": 0}
    asked = {"compiled": compiled or None, "min_images_per_second": min_images_per_second}
    jobs = _Jobs(workers, counts, log, {name: value for name, value in asked.items() if value is not None}, max_minutes)
    main = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, _interrupt) for number in ENDING if main}
    try:
        for number, phase in enumerate(PHASES):
            cells = todo if number == 0 else []
            if number and not any(batch.state(cell) == "done" for cell in batch.cells):
                break  # there is nothing to look at
            lessons = [name for name in phase if name in batch.lessons]
            counts["done"] += sum(batch.lesson_state(name) == "done" for name in lessons)
            alike = [list(same) for _, same in itertools.groupby(cells, lambda cell: (cell.threads, cell.device))]  # what one process has in common
            groups = [same[first:first + together] for same in alike for first in range(0, len(same), together)]
            jobs.run([([batch.label(cell) for cell in group], _run_cells, batch, group) for group in groups]
                     + [([name], _run_lesson, batch, name) for name in lessons if batch.lesson_state(name) != "done"])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    counts["left"] = len(batch.cells) + len(batch.lessons) - sum(counts.values())
    return counts


class _Jobs:
    """Notebooks side by side, each in a process of its own, and the time that is left for them."""

    def __init__(self, workers, counts, log, changes, max_minutes):
        self.workers, self.counts, self.log, self.changes = workers, counts, log, changes  # changes: of the parameters of every cell
        self.deadline = None if max_minutes is None else time.perf_counter() + 60 * max_minutes
        self.processes, self.stop = set(), threading.Event()
        self.took = []  # (kind of cell, forwards per step, seconds of training, seconds of what came after it)

    def run(self, jobs: list):
        """Run the jobs (labels, function, *arguments), count and log their outcomes, one for each label."""
        begun, pool, number, total = time.perf_counter(), ThreadPoolExecutor(self.workers), 0, sum(len(labels) for labels, *_ in jobs)
        try:
            futures = {pool.submit(function, *arguments, self): labels for labels, function, *arguments in jobs}
            for future in as_completed(futures):
                for label, (outcome, text) in zip(futures[future], future.result(), strict=True):
                    number += 1
                    if outcome in self.counts:
                        self.counts[outcome] += 1
                    left = (time.perf_counter() - begun) / number * (total - number)
                    self.log(f"[{number}/{total}] {outcome:<7} {label}: {text}" + (f"  ({left:.0f} s left)" if left else ""))
        except KeyboardInterrupt:
            self.stop.set()
            self.log("interrupted: ending the running cells with a checkpoint; the same command goes on from here")
            for process in list(self.processes):
                process.terminate()
            raise
        finally:
            pool.shutdown(cancel_futures=True)

    def limits(self, cells):
        """What the time that is left means for some cells that run together: (their parameters with it, None), or (None, why they are left)."""
        if self.deadline is None:
            return [cell.model_copy(update=self.changes) for cell in cells], None
        left = self.deadline - time.perf_counter()
        known = [took for cell in cells for took in self.took if took[0] == _kind(cell) and took[1] >= _forwards(cell)]
        needed = max((training + after for _, _, training, after in known), default=0)
        after = max((after for *_, after in known), default=left / 10)
        if left <= 0 or (needed > left and not all(map(_goes_on, cells))):
            return None, f"not started: {f'it needs {needed / 60:.1f} minutes, ' if needed else ''}{max(left, 0) / 60:.1f} are left"
        minutes = max((left - after) / 60, 1e-3)
        return [cell.model_copy(update=self.changes | {"max_minutes": min(minutes, cell.max_minutes or minutes), "must_fit": not _goes_on(cell)})
                for cell in cells], None

    def note(self, cell, training: float, after: float):
        """Remember how long a cell took, in seconds."""
        self.took.append((_kind(cell), _forwards(cell), training, after))

    def execute(self, name: str, target: Path, parameters: Params, threads: int):
        """Execute a notebook into ``target`` in its own process; returns (exit code, what it printed)."""
        # all parameters, defaults too: what runs is what was hashed, whatever the notebook's own cell says
        return self.call(["rmlib.notebooks", "run", str(_source(name)), str(target), json.dumps(parameters.model_dump())], threads)

    def call(self, words: list[str], threads: int):
        """Run a module of this package in its own process; returns (exit code, what it printed)."""
        command = [sys.executable, "-m", *words]
        environment = os.environ | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"}
        environment.pop("JPY_SESSION_NAME", None)  # a batch started from a notebook is not watched cell by cell
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                                   start_new_session=True)
        self.processes.add(process)
        if self.stop.is_set():  # interrupted between the first line and here
            process.terminate()
        try:
            output, _ = process.communicate()
        finally:
            self.processes.discard(process)
        return process.returncode, output


def _interrupt(*_):
    raise KeyboardInterrupt


def _kind(cell):
    """What cells must share to take equally long, but for the number of forwards."""
    return json.dumps(experiment(cell.config) | {"robustness": cell.robustness}, sort_keys=True)


def _goes_on(cell):
    """Whether something of a cell was computed before: it is then not begun but ended."""
    return any((cell.folder / file).exists() for file in (records.CHECKPOINT, records.RECORD))


def _forwards(cell):
    return 2 if cell.clean_weight else 1


def _run_cells(batch, cells, jobs):
    """Run some cells, trained together if there are several; returns [(outcome, one line of text)], one for each."""
    if jobs.stop.is_set():
        return [("stopped", "not started")] * len(cells)
    ready, why = jobs.limits(cells)
    if ready is None:
        return [("left", why)] * len(cells)
    begun = time.perf_counter()
    if len(ready) == 1:
        return [_run_cell(ready[0], jobs, begun)]
    for cell in cells:
        (cell.folder / ERROR).unlink(missing_ok=True)
    code, output = jobs.call(["rmlib.train", json.dumps([cell.model_dump() for cell in ready])], ready[0].threads)
    return [_after_training_together(cell, jobs, begun, code, _last_line(output) or "no reason was given") for cell in ready]


def _after_training_together(cell, jobs, begun, code, reason):
    """What becomes of one of several cells whose process ended with a code: one that is trained gets its notebook, the one named in
    the reason has failed, and the others were stopped because of it."""
    if (cell.folder / records.RECORD).exists() and not jobs.stop.is_set():
        return _run_cell(cell, jobs, begun)
    named = re.search(r"run ([0-9a-f]{12}):", reason)  # none: killed, or an error of the program itself, which is everybody's
    own = named is None or named[1] == cell.run_id
    if jobs.stop.is_set() or code == STOPPED or not own:
        return "stopped" if _goes_on(cell) else "left", reason
    with contextlib.suppress(OSError):
        (cell.folder / ERROR).write_text(f"{reason}\n")
    return "failed", reason


def _run_cell(cell, jobs, begun):
    """Run the notebook of one cell, trained since ``begun`` or now; returns (outcome, one line of text)."""
    from rmlib import paper

    folder = cell.folder
    executed = folder / f"{CELL}.ipynb"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        return "failed", f"{folder} cannot be made ({error.strerror}): choose another folder with --out"
    (folder / ERROR).unlink(missing_ok=True)
    code, output = jobs.execute(CELL, executed, cell, cell.threads)
    try:
        record = records.read(folder)
    except UserError as error:
        return _failure(jobs, executed, output, folder / ERROR, _last_line(output) if code else str(error))
    whole = time.perf_counter() - begun
    if code:  # trained, and then something went wrong, such as an attack
        return _failure(jobs, executed, output, folder / ERROR, _last_line(output))
    if record.status == "done" and not record.restarts:
        jobs.note(cell, min(record.seconds, whole), whole - min(record.seconds, whole))
    accuracy = f"{record.metrics['accuracy']:.2f} %" if record.status == "done" else record.status
    low = paper.below_band(record)
    return "done", f"{accuracy} after {whole:.0f} s" + (f"; {low}" if low else "")


def _run_lesson(batch, name, jobs):
    """Run one of the other notebooks; its mark is written when it came to its end. Returns [(outcome, one line of text)]."""
    if jobs.stop.is_set():
        return [("stopped", "not started")]
    if jobs.deadline is not None and time.perf_counter() >= jobs.deadline:
        return [("left", "not started: the time is up")]
    return [_run_in_time(batch, name, jobs)]


def _run_in_time(batch, name, jobs):
    begun, executed = time.perf_counter(), batch.out / f"{name}.ipynb"
    error, fingerprint = batch.out / f"{name}.{ERROR}", batch.fingerprint(name)
    try:
        batch.out.mkdir(parents=True, exist_ok=True)
        error.unlink(missing_ok=True)
        code, output = jobs.execute(name, executed, batch.lessons[name], batch.cells[0].threads)
        if code:
            return _failure(jobs, executed, output, error, _last_line(output))
        records.atomic_write(batch.out / f"{name}.done", fingerprint.encode())
    except UserError as reason:  # a full disk
        return "failed", str(reason)
    except OSError as reason:
        return "failed", f"{batch.out} cannot be written ({reason.strerror}): choose another folder with --out"
    return "done", f"after {time.perf_counter() - begun:.0f} s"


def _failure(jobs, executed, output, file, otherwise):
    """What became of a notebook that did not come to its end: (outcome, one line of text); the whole story goes into ``file``."""
    reason = _last_error(executed) or otherwise or "no reason was given"
    if jobs.stop.is_set() or reason.startswith("Stopped:"):
        return "stopped", reason
    if reason.startswith("DoesNotFit:"):
        return "left", reason
    with contextlib.suppress(OSError):  # a full disk: the reason is in the log all the same
        file.write_text(f"{reason}\n\n{output}")
    return "failed", f"{reason}  (see {executed if executed.exists() else file})"


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
