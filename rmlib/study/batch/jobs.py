"""The work of one call of a batch: runs and other notebooks, each after what it needs."""

import contextlib
import json
import os
import signal
import time
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from graphlib import TopologicalSorter

import nbformat

from rmlib import UserError
from rmlib.study.batch import executors, notebooks
from rmlib.study.batch.plan import NEEDS, source
from rmlib.study.runs import records
from rmlib.study.settings import CELL


class Jobs:
    """Runs and notebooks on an executor, within the time there is."""

    def __init__(self, batch, executor, progress, options, still_held=lambda: None):
        self.batch = batch
        self.executor = executor
        self.progress = progress
        self.options = options
        self.still_held = still_held  # of the batch's folder
        minutes = options.max_minutes
        self.deadline = None if minutes is None else time.monotonic() + 60 * minutes
        self.halted = False
        self.stopping = False
        self.interrupted = False

    def interrupt(self, *_):
        """Answer a signal: a KeyboardInterrupt could be raised where nobody hears it."""
        self.interrupted = True

    def all(self, runs, others):
        """Do some runs, and some other notebooks after what they need."""
        work = {run.run_id: run for run in runs}
        order: TopologicalSorter = TopologicalSorter({run_id: () for run_id in work})
        for name in others:
            order.add(name, *(need for need in NEEDS[name] if need in others))
            order.add(name, *(work if CELL in NEEDS[name] else ()))
        order.prepare()
        pool = ThreadPoolExecutor(max(self.executor.places, 1))
        futures = {}
        try:
            while order.is_active():
                for name in order.get_ready():
                    futures[pool.submit(self._do, name, work.get(name))] = name
                # not for ever: a signal that reaches another thread wakes nobody here
                ended, _ = wait(futures, 0.5, FIRST_COMPLETED)
                if self.interrupted:
                    raise KeyboardInterrupt
                for future in ended:
                    future.result()
                    order.done(futures.pop(future))
        except BaseException as reason:
            self.stopping = True
            # also after an error of this program: what runs is not waited for until its end
            self.executor.stop()
            if isinstance(reason, KeyboardInterrupt):
                self.progress.say("interrupted: what runs ends with a checkpoint")
            raise
        finally:
            pool.shutdown(cancel_futures=True)

    def _do(self, name, run):
        """Do a run, or the other notebook of that name, unless there is a reason not to."""
        batch = self.batch
        if run is None:
            if CELL in NEEDS[name] and not any(batch.state(each) == "done" for each in batch.runs):
                return  # there is nothing to look at
            if batch.notebook_state(name) == "done":
                self.progress.end(name, name, "done", "is up to date")
                return
        if self.stopping:
            outcome, text = "stopped", "not started"
        elif self.halted:
            outcome, text = "left", "not started, after a failure"
        elif self.deadline is not None and time.monotonic() >= self.deadline:
            outcome, text = "left", "not started: the time is up"
        else:
            self.still_held()
            self.progress.begin(name)
            outcome, text = self._attempt(name, run)
            self.still_held()
        if outcome == "failed" and not self.options.keep_going:
            self.halted = True
        self.progress.end(name, batch.label(run) if run else name, outcome, text)

    def _attempt(self, name, run):
        """Do a run or another notebook; returns (outcome, one line of text)."""
        try:
            return self._run(run) if run else self._notebook(name)
        except UserError as error:  # a full disk
            return "failed", str(error)
        except OSError as error:
            where = run.folder if run else self.batch.out
            return "failed", f"{where} cannot be written ({error.strerror}): choose another --out"

    def limited(self, run):
        """The parameters of a run with what this call says of all of them."""
        update = {"compiled": True} if self.options.compiled else {}
        if self.deadline is not None:
            left = max((self.deadline - time.monotonic()) / 60, 1e-3)
            update["max_minutes"] = min(left, run.max_minutes or left)
        return run.model_copy(update=update)

    def _run(self, run):
        folder, begun = run.folder, time.monotonic()
        executed, error = folder / f"{CELL}.ipynb", folder / records.ERROR
        folder.mkdir(parents=True, exist_ok=True)
        (folder / records.UNFINISHED).touch()
        places = executed, error, folder / "log.txt", folder / ".run.lock"
        ended = self._execute(CELL, self.limited(run), *places)
        if ended.code:  # perhaps after its training, as when an attack fails
            return self._failure(ended, executed, error)
        try:
            record = self.batch.record(run)
        except UserError as wrong:
            reason = f"{wrong}; does a cell of the notebook change its parameters?"
            return self._failure(ended, executed, error, reason)
        (folder / records.UNFINISHED).unlink(missing_ok=True)
        if record.status != "done":
            return "failed", f"the run {record.status}; see {executed}"
        from rmlib.study.report import paper

        text = f"{record.metrics['accuracy']:.2f} % after {time.monotonic() - begun:.0f} s"
        low = paper.below_band(record)
        return "done", f"{text}; {low}" if low else text

    def _notebook(self, name):
        """Execute one of the other notebooks; its fingerprint is stored at its end."""
        out, begun = self.batch.out, time.monotonic()
        executed, error = out / f"{name}.ipynb", out / f"{name}.{records.ERROR}"
        fingerprint = self.batch.fingerprint(name)
        places = executed, error, out / f"{name}.log", out / f".{name}.lock"
        ended = self._execute(name, self.batch.notebooks[name], *places)
        if ended.code:
            return self._failure(ended, executed, error)
        records.atomic_write(out / f"{name}.done", fingerprint.encode())
        return "done", f"after {time.monotonic() - begun:.0f} s"

    def _execute(self, name, parameters, executed, error, log, lock):
        """Execute a notebook into ``executed``; returns how it ended."""
        for path in (error, executed):  # of an earlier attempt
            path.unlink(missing_ok=True)
        # all parameters, defaults too: what runs is what was hashed, whatever the notebook says
        values = json.dumps(parameters.model_dump())
        words = (notebooks.__name__, "run", os.path.relpath(source(name)), str(executed), values)
        threads = getattr(parameters, "threads", self.batch.runs[0].threads)
        minutes = self.options.timeout
        return self.executor.run(executors.Job(words, threads, log, lock, minutes, os.getcwd()))

    def _failure(self, ended, executed, error, reason=None):
        """(outcome, one line) of a notebook that did not reach its end; the rest goes to a file."""
        if ended.late:
            reason = f"longer than --timeout {self.options.timeout:g} minutes: ended"
        elif ended.code < 0:  # whatever it printed before
            hint = ": out of memory? see the system's log" if ended.code == -signal.SIGKILL else ""
            reason = f"its process was killed (signal {-ended.code}){hint}"
        elif not reason:
            printed = ended.output.strip().rpartition("\n")[2]
            last = _last_error(executed) or printed.strip()[:200]
            reason = last or f"no reason was given (exit code {ended.code})"
        asked = reason.startswith(("Stopped:", "KeyboardInterrupt:"))
        if self.stopping or (asked and not ended.late):
            return "stopped", _left(executed.parent, reason)
        with contextlib.suppress(OSError):  # a full disk: the reason is printed all the same
            error.write_text(f"{reason}\n\n{ended.output}\n", encoding="utf-8")
        return "failed", f"{reason}  (see {executed if executed.exists() else error})"


def _left(folder, reason):
    """What was left to go on from, and where a training stopped, if it says so."""
    there = set(os.listdir(folder))
    if records.RECORD in there:
        left = "its training is done, its notebook goes on from the record"
    elif there & {records.CHECKPOINT, records.PREVIOUS}:
        left = "left a checkpoint"
    else:
        left = "nothing was saved yet, it begins again"
    _, stopped, words = reason.partition("Stopped: ")
    return f"{left}: {words.split(';')[0]}" if stopped else left


def _last_error(executed):
    """'Kind: message' of the exception in a notebook that was just executed, or None."""
    try:
        cells = nbformat.read(executed, as_version=4).cells
    except (OSError, ValueError, nbformat.validator.NotebookValidationError):
        return None  # it could not be written, or not to its end
    for output in (output for cell in cells for output in cell.get("outputs", [])):
        if output.output_type == "error":
            return f"{output.ename}: {output.evalue}".splitlines()[0]
    return None
