"""Running a batch: grids of notebooks through papermill that can be stopped anywhere, by anything,
and go on by the same command.

Every cell runs in a process of its own (:mod:`rmlib.study.batch.executors`) and is done when its record says
so. A cell's folder OUT/RUN_ID keeps the executed notebook, the record, what was printed (log.txt),
and error.txt if the cell failed. A failing cell keeps no other from running.
"""

import contextlib
import itertools
import json
import os
import re
import signal
import threading
import time
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from graphlib import TopologicalSorter
from pathlib import Path

from rmlib import STOPPED, UserError
from rmlib.params import Params
from rmlib.study.batch import executors
from rmlib.study.batch.plan import LESSONS, NEEDS, Batch, costs, goes_on, source
from rmlib.study.batch.progress import Progress, last_line
from rmlib.study.names import experiment
from rmlib.study.runs import records
from rmlib.study.settings import CELL

ENDING = [
    getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)
]  # also a closed terminal
LOCK = ".batch.lock"


def default_workers(batch: Batch, gpus: tuple = (), per_gpu: int = 1) -> int:
    """As many cells at a time as there are places on the GPUs named; one on a GPU that is not
    named; else as many as the cores carry with the threads of a cell.
    """
    if gpus:
        return len(gpus) * per_gpu
    if batch.cells[0].device != "cpu" and executors.visible_gpus():
        return per_gpu
    return max(1, min(8, (os.cpu_count() or 1) // batch.cells[0].threads))


def run_batch(
    batch: Batch,
    *,
    workers: int | None = None,
    only_failed: bool = False,
    keep_going: bool = True,
    max_minutes: float | None = None,
    timeout: float | None = None,
    min_images_per_second: float | None = None,
    together: int = 1,
    compiled: bool = False,
    gpus: str | None = None,
    per_gpu: int = 1,
    executor: str = "local",
    address: str | None = None,
    log=print,
    live: bool = False,
    options: tuple[str, ...] = (),
) -> dict[str, int]:
    """Run every cell that has no record, then the lessons that are not up to date; returns how many
    are done, failed, stopped or left, cells and lessons together.

    Finished cells are skipped, cells with a checkpoint go on from it, lessons look at what is
    there. A record that cannot be read is set aside and its cell runs again. Ctrl-C, SIGTERM and a
    closed terminal end the running cells with a checkpoint; the same command goes on.

    Args:
        workers: notebooks at the same time; default :func:`default_workers`, on Ray what the
            cluster takes.
        only_failed: of the cells, run none but those that failed before.
        keep_going: after a failure start what else there is; False: let what runs end, and start
            nothing more.
        max_minutes: for a machine that is there for a limited time. A new cell starts only if its
            whole schedule, and the attacks after it, will fit into what is left; one with a
            checkpoint goes on and stops with a checkpoint. How long a cell takes is known from
            those that ended in this call; the first of a kind is given up after two epochs if it
            will not fit.
        timeout: minutes after which a notebook, or a process of cells trained together, counts as
            hanging: it is ended and has failed.
        min_images_per_second: see TrainParams; of every cell.
        together: cells trained in one process, a step of each in turn (see
            :func:`rmlib.study.runs.run.train_together`).
        compiled: see TrainParams; of every cell.
        gpus, per_gpu: see :func:`rmlib.study.batch.executors.chosen_gpus`; processes that share a GPU.
        executor, address: "local", or "ray" with the address of a cluster (see
            :class:`rmlib.study.batch.executors.Ray`).
        log: called with one line for each event.
        live: also keep a status line at the bottom of the terminal.
        options: of the command line, for the plan's file, where cells are run.

    Raises:
        UserError: another batch works in this folder, it cannot be written, data are missing or
            others than before, no such GPU or cluster.
    """
    with records.holding(
        batch.out / LOCK,
        f"another batch works in {batch.out}: wait for it, or stop it and give the command again;"
        " two on one folder would only be in each other's way",
    ):
        states = {cell.folder.name: batch.state(cell) for cell in batch.cells}
        for cell in batch.cells:
            if states[cell.folder.name] == "damaged":
                log(_set_aside(batch, cell))
        wanted = ("failed", "damaged") if only_failed else ("failed", "damaged", "partial", "new")
        todo = [cell for cell in batch.cells if states[cell.folder.name] in wanted]
        _check(batch, todo, [cell for cell in batch.cells if states[cell.folder.name] == "done"])
        asked = {"compiled": compiled or None, "min_images_per_second": min_images_per_second}
        asked = {name: value for name, value in asked.items() if value is not None}
        plan = batch.write(list(options) if todo else None)
        if executor == "ray":
            places = executors.Ray(
                address,
                plan,
                max(cell.threads for cell in batch.cells),
                batch.cells[0].device,
                per_gpu,
                workers,
            )
        else:
            chosen = executors.chosen_gpus(gpus) if gpus else ()
            places = executors.Local(workers or default_workers(batch, chosen, per_gpu), chosen)
        counts = {
            "done": len(batch.cells) - sum(state != "done" for state in states.values()),
            "failed": 0,
            "stopped": 0,
        }
        log(
            f"batch {batch.name}: {len(batch.cells)} cells, {counts['done']} done already,"
            f" {len(todo)} to run, {places.places} at a time, in {batch.out}"
            + (f"; around them {', '.join(batch.lessons)}" if batch.lessons else "")
        )
        expected = {run_id: cost.seconds for run_id, cost in costs(batch).items()} if todo else {}
        groups = _groups(todo, together)
        progress = Progress(
            counts,
            {
                _unit(group): _sum(expected.get(cell.folder.name) for cell in group)
                for group in groups
            },
            places.places,
            log,
            live,
        )
        run = _Run(batch, places, progress, asked, max_minutes, timeout, keep_going)
        main = threading.current_thread() is threading.main_thread()
        before = {number: signal.signal(number, _interrupt) for number in ENDING if main}
        try:
            run.all(groups)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            progress.close()
            places.close()
    counts["left"] = len(batch.cells) + len(batch.lessons) - sum(counts.values())
    return counts


def _set_aside(batch, cell):
    """Keep a record that cannot be used under another name, so that its cell runs again; returns
    one line of text.
    """
    path = cell.folder / records.RECORD
    try:
        batch.record(cell)
    except UserError as error:
        reason = str(error).split(": ")[0]
    aside = path.with_name(f"{path.name}.damaged")
    try:
        os.replace(path, aside)
    except OSError as error:
        raise UserError(
            f"{path} cannot be set aside ({error.strerror}): choose another folder with --out"
        ) from None
    return f"damaged {batch.label(cell)}: {reason}; kept as {aside.name}, and the cell runs again"


def _check(batch, todo, done):
    """What can be known before any kernel starts: notebooks whose parameters can be set, data that
    is there, and the same as before.
    """
    from rmlib.datasets import sources
    from rmlib.study.batch import notebooks

    for name in [*([CELL] if todo else []), *batch.lessons]:
        notebooks.check_parameters(source(name))
    changeable = [cell for cell in done if cell.dataset not in sources.SIZES or cell.allow_partial]
    asked = {(cell.dataset, cell.root, cell.allow_partial) for cell in (*todo, *changeable)}
    found = {
        images: sources.arrays(images[0], images[1], allow_partial=images[2])["checksum"]
        for images in asked
    }
    for cell in changeable:
        records.check_images(
            cell,
            found[cell.dataset, cell.root, cell.allow_partial],
            batch.kept[cell.folder.name].data["checksum"],
        )


def _groups(cells, together):
    """The cells in groups for one process each; what one process has in common is threads and
    device.
    """
    alike = [
        list(same) for _, same in itertools.groupby(cells, lambda cell: (cell.threads, cell.device))
    ]
    return [
        same[first : first + together] for same in alike for first in range(0, len(same), together)
    ]


def _sum(values):
    """The sum of some numbers, or None if one is not known."""
    values = list(values)
    return None if None in values else sum(values)


def _unit(cells):
    """The name of some cells that run together, among the units of work."""
    return cells[0].folder.name


class _Run:
    """One call of :func:`run_batch`: units of work as what they need ends, on an executor, within
    the time there is.
    """

    def __init__(self, batch, executor, progress, changes, max_minutes, timeout, keep_going):
        self.batch, self.executor, self.progress, self.changes, self.timeout = (
            batch,
            executor,
            progress,
            changes,
            timeout,
        )  # changes: of every cell's parameters
        self.deadline = None if max_minutes is None else time.monotonic() + 60 * max_minutes
        self.keep_going, self.halted, self.stopping = keep_going, False, False
        # (kind of cell, forwards per step, seconds of training, seconds of what came after it)
        self.took = []

    def all(self, groups):
        """Run groups of cells, and the lessons after what they need."""
        work = {_unit(group): group for group in groups}
        needs = {
            **{unit: () for unit in work},
            **{
                name: [
                    *(work if CELL in NEEDS[name] else ()),
                    *(need for need in NEEDS[name] if need in self.batch.lessons),
                ]
                for name in LESSONS
                if name in self.batch.lessons
            },
        }
        order, pool, futures = (
            TopologicalSorter(needs),
            ThreadPoolExecutor(max(self.executor.places, 1)),
            {},
        )
        order.prepare()
        try:
            while order.is_active():
                for unit in order.get_ready():
                    futures[
                        (
                            pool.submit(self._cells, work[unit])
                            if unit in work
                            else pool.submit(self._lesson, unit)
                        )
                    ] = unit
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
                self.progress.tell(
                    "interrupted: ending the running cells with a checkpoint; the same command goes"
                    " on from here"
                )
            raise
        finally:
            pool.shutdown(cancel_futures=True)

    def _cells(self, cells):
        self._told(
            _unit(cells),
            [self.batch.label(cell) for cell in cells],
            cells[0].folder / "log.txt",
            lambda: self._run_cells(cells),
        )

    def _lesson(self, name):
        if CELL in NEEDS[name] and not any(
            self.batch.state(cell) == "done" for cell in self.batch.cells
        ):
            return  # there is nothing to look at
        if self.batch.lesson_state(name) == "done":
            self.progress.end(name, [(name, "done", "is up to date")])
        else:
            self._told(
                name, [name], self.batch.out / f"{name}.log", lambda: [self._run_lesson(name)]
            )

    def _told(self, unit, labels, log, function):
        """Run a unit of work, and tell what became of it."""
        if self.stopping:
            outcomes = [("stopped", "not started")] * len(labels)
        elif self.halted:
            outcomes = [("left", "not started, after a failure")] * len(labels)
        else:
            self.progress.begin(unit, ", ".join(labels), log)
            outcomes = function()
        if not self.keep_going and any(outcome == "failed" for outcome, _ in outcomes):
            self.halted = True
        self.progress.end(
            unit, [(label, *outcome) for label, outcome in zip(labels, outcomes, strict=True)]
        )

    def limits(self, cells):
        """What the time that is left means for some cells that run together: (their parameters with
        it, None), or (None, why they are left).
        """
        if self.deadline is None:
            return [cell.model_copy(update=self.changes) for cell in cells], None
        left = self.deadline - time.monotonic()
        known = [
            took
            for cell in cells
            for took in self.took
            if took[0] == _kind(cell) and took[1] >= _forwards(cell)
        ]
        needed = max((training + after for _, _, training, after in known), default=0)
        after = max((after for *_, after in known), default=left / 10)
        if left <= 0 or (needed > left and not all(map(goes_on, cells))):
            return (
                None,
                (
                    "not started:"
                    f" {f'it needs {needed / 60:.1f} minutes, ' if needed else ''}{max(left, 0) / 60:.1f}"
                    " are left"
                ),
            )
        minutes = max((left - after) / 60, 1e-3)
        return [
            cell.model_copy(
                update=self.changes
                | {
                    "max_minutes": min(minutes, cell.max_minutes or minutes),
                    "must_fit": not goes_on(cell),
                }
            )
            for cell in cells
        ], None

    def note(self, cell, training: float, after: float):
        """Remember how long a cell took, in seconds."""
        self.took.append((_kind(cell), _forwards(cell), training, after))

    def start(self, words, threads, log, locks):
        """Run a module of this package on the executor; returns how it ended."""
        return self.executor.run(
            executors.Job(tuple(words), threads, log, tuple(locks), self.timeout, os.getcwd())
        )

    def execute(
        self, name: str, target: Path, parameters: Params, threads: int, log: Path, lock: Path
    ):
        """Execute a notebook into ``target``; returns how it ended."""
        # all parameters, defaults too: what runs is what was hashed, whatever the notebook's own
        # cell says
        return self.start(
            [
                "rmlib.study.batch.notebooks",
                "run",
                os.path.relpath(source(name)),
                str(target),
                json.dumps(parameters.model_dump()),
            ],
            threads,
            log,
            [lock],
        )

    def _run_cells(self, cells):
        """Run some cells, trained together if there are several; returns [(outcome, one line of
        text)], one for each.
        """
        ready, why = self.limits(cells)
        if ready is None:
            return [("left", why)] * len(cells)
        begun = time.monotonic()
        if len(ready) == 1:
            return [self._run_cell(ready[0], begun)]
        try:
            for cell in cells:
                _begin(cell)
        except OSError as error:
            return [
                (
                    "failed",
                    (
                        f"{cells[0].folder.parent} cannot be written ({error.strerror}): choose"
                        " another folder with --out"
                    ),
                )
            ] * len(cells)
        ended = self.start(
            ["rmlib.study.runs.run", json.dumps([cell.model_dump() for cell in ready])],
            ready[0].threads,
            cells[0].folder / "log.txt",
            [cell.folder / ".cell.lock" for cell in cells],
        )
        return [self._after_training_together(cell, begun, ended) for cell in ready]

    def _after_training_together(self, cell, begun, ended):
        """What becomes of one of several cells whose process has ended: one that is trained gets
        its notebook, the one named in the reason has failed, and the others were stopped because of
        it.
        """
        if (cell.folder / records.RECORD).exists() and not self.stopping:
            return self._run_cell(cell, begun)
        reason = self._too_late(ended) or last_line(ended.output) or "no reason was given"
        named = re.search(
            r"run ([0-9a-f]{12}):", reason
        )  # none: killed, or an error of the program itself, which is everybody's
        own = named is None or named[1] == cell.folder.name
        if self.stopping or ended.code == STOPPED or not own:
            return "stopped" if goes_on(cell) else "left", reason
        with contextlib.suppress(OSError):
            (cell.folder / records.ERROR).write_text(f"{reason}\n")
        return "failed", reason

    def _run_cell(self, cell, begun):
        """Run the notebook of one cell, trained since ``begun`` or now; returns (outcome, one line
        of text).
        """
        from rmlib.study.report import paper

        folder, executed = cell.folder, cell.folder / f"{CELL}.ipynb"
        try:
            _begin(cell)
        except OSError as error:
            return (
                "failed",
                f"{folder} cannot be made ({error.strerror}): choose another folder with --out",
            )
        ended = self.execute(
            CELL, executed, cell, cell.threads, folder / "log.txt", folder / ".cell.lock"
        )
        try:
            record = self.batch.record(cell)
        except UserError as error:
            return self._failure(
                ended,
                executed,
                folder / records.ERROR,
                (
                    last_line(ended.output)
                    if ended.code
                    else f"{error}; does a cell of the notebook change its parameters?"
                ),
            )
        if ended.code:  # trained, and then something went wrong, such as an attack
            return self._failure(ended, executed, folder / records.ERROR, last_line(ended.output))
        with contextlib.suppress(OSError):
            (folder / records.UNFINISHED).unlink(missing_ok=True)
        whole = time.monotonic() - begun
        if not record.restarts and whole >= record.seconds:  # else it was trained before
            self.note(cell, record.seconds, whole - record.seconds)
        low = paper.below_band(record)
        return "done", f"{record.metrics['accuracy']:.2f} % after {whole:.0f} s" + (
            f"; {low}" if low else ""
        )

    def _run_lesson(self, name):
        """Run one of the other notebooks; its mark is written when it came to its end. Returns
        (outcome, one line of text).
        """
        if self.deadline is not None and time.monotonic() >= self.deadline:
            return "left", "not started: the time is up"
        out = self.batch.out
        begun, executed, error, fingerprint = (
            time.monotonic(),
            out / f"{name}.ipynb",
            out / f"{name}.{records.ERROR}",
            self.batch.fingerprint(name),
        )
        try:
            for path in (error, executed):
                path.unlink(missing_ok=True)
            ended = self.execute(
                name,
                executed,
                self.batch.lessons[name],
                self.batch.cells[0].threads,
                out / f"{name}.log",
                out / f".{name}.lock",
            )
            if ended.code:
                return self._failure(ended, executed, error, last_line(ended.output))
            records.atomic_write(out / f"{name}.done", fingerprint.encode())
        except UserError as reason:  # a full disk
            return "failed", str(reason)
        except OSError as reason:
            return (
                "failed",
                f"{out} cannot be written ({reason.strerror}): choose another folder with --out",
            )
        return "done", f"after {time.monotonic() - begun:.0f} s"

    def _too_late(self, ended):
        return (
            f"longer than --timeout {self.timeout:g} minutes: ended; a checkpoint is gone on from"
            if ended.late
            else None
        )

    def _failure(self, ended, executed, file, otherwise):
        """What became of a notebook that did not come to its end: (outcome, one line of text); the
        whole story goes into ``file``.
        """
        reason = (
            self._too_late(ended)
            or _last_error(executed, ended)
            or otherwise
            or (
                f"its process was killed (signal {-ended.code})"
                if ended.code < 0
                else "no reason was given"
            )
        )
        if self.stopping or (reason.startswith("Stopped:") and not ended.late):
            return "stopped", reason
        if reason.startswith("DoesNotFit:"):
            return "left", reason
        with contextlib.suppress(OSError):  # a full disk: the reason is in the log all the same
            file.write_text(f"{reason}\n\n{ended.output}\n")
        return "failed", f"{reason}  (see {executed if executed.exists() else file})"


def _interrupt(*_):
    raise KeyboardInterrupt


def _begin(cell):
    """Mark a cell as one whose notebook has not come to its end, and take away what an earlier
    attempt left.
    """
    cell.folder.mkdir(parents=True, exist_ok=True)
    (cell.folder / records.UNFINISHED).touch()
    for name in (records.ERROR, f"{CELL}.ipynb"):
        (cell.folder / name).unlink(missing_ok=True)


def _kind(cell):
    """What cells must share to take equally long, but for the number of forwards."""
    return json.dumps(experiment(cell.config) | {"robustness": cell.robustness}, sort_keys=True)


def _forwards(cell):
    return 2 if cell.clean_weight else 1


def _last_error(executed: Path, ended):
    """'Kind: message' of the exception in a notebook that was executed just now, or None (a killed
    kernel leaves none).
    """
    import nbformat

    try:
        cells = nbformat.read(executed, as_version=4).cells if ended.code > 0 else []
    except (
        OSError,
        ValueError,
        nbformat.validator.NotebookValidationError,
    ):  # it could not be written, or not to its end
        return None
    errors = [
        output
        for cell in cells
        for output in cell.get("outputs", [])
        if output.output_type == "error"
    ]
    return f"{errors[0].ename}: {errors[0].evalue}".splitlines()[0] if errors else None
