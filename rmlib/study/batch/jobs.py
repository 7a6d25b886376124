"""The work of one call of a batch: runs and notebooks, each after what it needs."""

import contextlib
import json
import os
import time
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from graphlib import TopologicalSorter
from pathlib import Path

import nbformat

from rmlib import UserError
from rmlib.params import Params
from rmlib.study.batch import executors, notebooks
from rmlib.study.batch.plan import LESSONS, NEEDS, source
from rmlib.study.batch.progress import last_line
from rmlib.study.runs import records
from rmlib.study.settings import CELL


class Jobs:
    """Units of work on an executor, within the time there is."""

    def __init__(self, batch, executor, progress, options):
        self.batch = batch
        self.executor = executor
        self.progress = progress
        self.options = options
        minutes = options.max_minutes
        self.deadline = None if minutes is None else time.monotonic() + 60 * minutes
        self.halted = False
        self.stopping = False

    def all(self, cells):
        """Run some cells, and the lessons after what they need."""
        work = {cell.folder.name: cell for cell in cells}
        order = TopologicalSorter({**{unit: () for unit in work}, **self._lessons(work)})
        order.prepare()
        pool = ThreadPoolExecutor(max(self.executor.places, 1))
        futures = {}
        try:
            while order.is_active():
                for unit in order.get_ready():
                    futures[pool.submit(self._unit, unit, work.get(unit))] = unit
                ended, _ = wait(futures, return_when=FIRST_COMPLETED)
                for future in ended:
                    unit = futures.pop(future)
                    future.result()
                    order.done(unit)
        except BaseException as reason:
            self.stopping = True
            # also after an error of this program: what runs is not waited for until its end
            self.executor.stop()
            if isinstance(reason, KeyboardInterrupt):
                self.progress.tell("interrupted: what runs ends with a checkpoint")
            raise
        finally:
            pool.shutdown(cancel_futures=True)

    def _lessons(self, work):
        """What each lesson waits for: name -> units of work."""
        lessons = self.batch.lessons
        return {
            name: [
                *(work if CELL in NEEDS[name] else ()),
                *(need for need in NEEDS[name] if need in lessons),
            ]
            for name in LESSONS
            if name in lessons
        }

    def _unit(self, unit, cell):
        """Run one unit of work, a cell or the lesson of that name, and tell its end."""
        if cell is not None:
            log = cell.folder / "log.txt"
            self._told(unit, self.batch.label(cell), lambda: self._run_cell(cell, log))
            return
        states = (self.batch.state(each) for each in self.batch.cells)
        if CELL in NEEDS[unit] and "done" not in states:
            return  # there is nothing to look at
        if self.batch.lesson_state(unit) == "done":
            self.progress.end(unit, unit, "done", "is up to date")
        else:
            self._told(unit, unit, lambda: self._run_lesson(unit))

    def _told(self, unit, label, function):
        """Run a unit of work unless there is a reason not to, and tell what became of it."""
        if self.stopping:
            outcome, text = "stopped", "not started"
        elif self.halted:
            outcome, text = "left", "not started, after a failure"
        elif self.deadline is not None and time.monotonic() >= self.deadline:
            outcome, text = "left", "not started: the time is up"
        else:
            self.progress.begin(unit)
            outcome, text = function()
        if outcome == "failed" and not self.options.keep_going:
            self.halted = True
        self.progress.end(unit, label, outcome, text)

    def limited(self, cell):
        """The parameters of a cell with what this call says of all of them."""
        update = {"compiled": True} if self.options.compiled else {}
        if self.deadline is not None:
            left = max((self.deadline - time.monotonic()) / 60, 1e-3)
            update["max_minutes"] = min(left, cell.max_minutes or left)
        return cell.model_copy(update=update)

    def execute(self, name: str, target: Path, parameters: Params, log: Path, lock: Path):
        """Execute a notebook into ``target``; returns how it ended."""
        # all parameters, defaults too: what runs is what was hashed, whatever the notebook says
        values = json.dumps(parameters.model_dump())
        words = (notebooks.__name__, "run", os.path.relpath(source(name)), str(target), values)
        threads = getattr(parameters, "threads", self.batch.cells[0].threads)
        return self.executor.run(
            executors.Job(words, threads, log, (lock,), self.options.timeout, os.getcwd())
        )

    def _run_cell(self, cell, log):
        """Run the notebook of one cell; returns (outcome, one line of text)."""
        from rmlib.study.report import paper

        folder, executed = cell.folder, cell.folder / f"{CELL}.ipynb"
        begun = time.monotonic()
        try:
            _begin(folder, executed)
        except OSError as error:
            return "failed", f"{folder} cannot be made ({error.strerror}): choose another --out"
        ended = self.execute(CELL, executed, self.limited(cell), log, folder / ".cell.lock")
        otherwise = last_line(ended.output)
        try:
            record = self.batch.record(cell)
        except UserError as error:
            if not ended.code:
                otherwise = f"{error}; does a cell of the notebook change its parameters?"
            return self._failure(ended, executed, folder / records.ERROR, otherwise)
        if ended.code:  # trained, and then something went wrong, such as an attack
            return self._failure(ended, executed, folder / records.ERROR, otherwise)
        with contextlib.suppress(OSError):
            (folder / records.UNFINISHED).unlink(missing_ok=True)
        if record.status != "done":
            # the record and its state say so: the notebook itself came to its end
            return "failed", f"the run {record.status}; see {executed}"
        text = f"{record.metrics['accuracy']:.2f} % after {time.monotonic() - begun:.0f} s"
        low = paper.below_band(record)
        return "done", f"{text}; {low}" if low else text

    def _run_lesson(self, name):
        """Run one of the other notebooks; it gets its mark at its end."""
        out = self.batch.out
        begun = time.monotonic()
        executed, error = out / f"{name}.ipynb", out / f"{name}.{records.ERROR}"
        fingerprint = self.batch.fingerprint(name)
        try:
            for path in (error, executed):
                path.unlink(missing_ok=True)
            log, lock = out / f"{name}.log", out / f".{name}.lock"
            ended = self.execute(name, executed, self.batch.lessons[name], log, lock)
            if ended.code:
                return self._failure(ended, executed, error, last_line(ended.output))
            records.atomic_write(out / f"{name}.done", fingerprint.encode())
        except UserError as reason:  # a full disk
            return "failed", str(reason)
        except OSError as reason:
            return "failed", f"{out} cannot be written ({reason.strerror}): choose another --out"
        return "done", f"after {time.monotonic() - begun:.0f} s"

    def _failure(self, ended, executed, file, otherwise):
        """What became of a notebook that did not come to its end; the whole story goes to a file.

        Returns:
            (outcome, one line of text).
        """
        reason = _last_error(executed, ended) or otherwise
        if ended.late:
            reason = f"longer than --timeout {self.options.timeout:g} minutes: ended"
        elif not reason:
            reason = "no reason was given"
            if ended.code < 0:
                reason = f"its process was killed (signal {-ended.code})"
        if self.stopping or (reason.startswith("Stopped:") and not ended.late):
            return "stopped", reason
        with contextlib.suppress(OSError):  # a full disk: the reason is in the log all the same
            file.write_text(f"{reason}\n\n{ended.output}\n")
        return "failed", f"{reason}  (see {executed if executed.exists() else file})"


def _begin(folder, executed):
    """Mark a run as unfinished, and take away what an earlier attempt left."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / records.UNFINISHED).touch()
    for path in (folder / records.ERROR, executed):
        path.unlink(missing_ok=True)


def _last_error(executed: Path, ended):
    """'Kind: message' of the exception in a notebook that was just executed, or None."""
    if ended.code <= 0:  # a killed process leaves none
        return None
    try:
        cells = nbformat.read(executed, as_version=4).cells
    except (OSError, ValueError, nbformat.validator.NotebookValidationError):
        return None  # it could not be written, or not to its end
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    for output in outputs:
        if output.output_type == "error":
            return f"{output.ename}: {output.evalue}".splitlines()[0]
    return None
