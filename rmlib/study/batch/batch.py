"""Running a batch: a grid of notebooks that can be stopped at any moment.

The same command goes on. Every run has a process of its own (:mod:`rmlib.study.batch.executors`)
and is done when its record says so. Its folder OUT/RUN_ID keeps the executed notebook, the record,
what was printed (log.txt), and error.txt if it failed. A failing run keeps no other from running.
"""

import os
import signal
import threading
from dataclasses import dataclass

from rmlib import UserError
from rmlib.datasets import sources
from rmlib.study.batch import executors, notebooks
from rmlib.study.batch.costs import costs
from rmlib.study.batch.jobs import Jobs
from rmlib.study.batch.plan import Batch, source
from rmlib.study.batch.progress import Progress
from rmlib.study.guarded import needs
from rmlib.study.runs import records
from rmlib.study.settings import CELL

# SIGHUP: a closed terminal
ENDING = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
LOCK = ".batch.lock"
# what a notebook needs besides the extra "study"
EXTRA = {"03_robustness": "robustness", "04_cam": "maps", "05_results": "maps"}


@dataclass(frozen=True)
class Options:
    """What one call of a batch may choose."""

    # notebooks at the same time; None: :func:`default_workers`, on Ray what the cluster takes
    workers: int | None = None
    # of the runs, start none but those that failed before
    only_failed: bool = False
    # after a failure start what else there is; False: let what runs end, and start nothing more
    keep_going: bool = True
    # after this time nothing starts, and what trains stops with a checkpoint
    max_minutes: float | None = None
    # minutes after which a notebook counts as hanging: it is ended and has failed
    timeout: float | None = None
    # see TrainParams; of every run
    compiled: bool = False
    # see :func:`rmlib.study.batch.executors.chosen_gpus`
    gpus: str | None = None
    # runs that share a GPU
    per_gpu: int = 1
    # local, or ray with the address of a cluster
    executor: str = "local"
    address: str | None = None
    # of the command line, for the plan's file
    words: tuple[str, ...] = ()


def default_workers(batch: Batch, gpus: tuple = (), per_gpu: int = 1) -> int:
    """How many runs at a time: the places on the GPUs, else what the cores carry."""
    if gpus:
        return len(gpus) * per_gpu
    if batch.cells[0].device != "cpu" and executors.visible_gpus():
        return per_gpu
    return max(1, min(8, (os.cpu_count() or 1) // batch.cells[0].threads))


def run_batch(batch: Batch, options: Options | None = None, log=print) -> dict[str, int]:
    """Run what has no record, then the other notebooks that are not up to date.

    Finished runs are skipped, those with a checkpoint go on from it. A record that cannot be read
    is set aside, and its run begins again. Ctrl-C, SIGTERM and a closed terminal end what runs with
    a checkpoint.

    Args:
        log: called with one line for each event.

    Returns:
        How many runs and notebooks are done, failed, stopped or left.

    Raises:
        UserError: another batch works in this folder, it cannot be written, data are missing or
            others than before, no such GPU or cluster.
    """
    options = options or Options()
    refusal = f"another batch works in {batch.out}: wait for it, or stop it first"
    with records.holding(batch.out / LOCK, refusal):
        states = {cell.folder.name: batch.state(cell) for cell in batch.cells}
        for cell in batch.cells:
            if states[cell.folder.name] == "damaged":
                log(_set_aside(batch, cell))
        wanted = (
            ("failed", "damaged")
            if options.only_failed
            else ("failed", "damaged", "partial", "new")
        )
        todo = [cell for cell in batch.cells if states[cell.folder.name] in wanted]
        done = [cell for cell in batch.cells if states[cell.folder.name] == "done"]
        _check(batch, todo, done)
        plan = batch.write(list(options.words) if todo else None)
        places = _places(batch, options, plan)
        around = f"; around them {', '.join(batch.lessons)}" if batch.lessons else ""
        log(
            f"batch {batch.name}: {len(batch.cells)} runs, {len(done)} done already,"
            f" {len(todo)} to run, {places.places} at a time, in {batch.out}{around}"
        )
        counts = {"done": len(done), "failed": 0, "stopped": 0}
        known = costs(batch) if todo else {}
        expected = {cell.folder.name: known.get(cell.folder.name) for cell in todo}
        progress = Progress(counts, expected, places.places, log)
        _until_the_end(Jobs(batch, places, progress, options), todo, places)
    counts["left"] = len(batch.cells) + len(batch.lessons) - sum(counts.values())
    return counts


def _until_the_end(jobs, todo, places):
    """Run everything; a signal that ends the program counts as Ctrl-C meanwhile."""
    main = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, _interrupt) for number in ENDING if main}
    try:
        jobs.all(todo)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        places.close()


def _interrupt(*_):
    raise KeyboardInterrupt


def _places(batch, options, plan):
    """The executor that the options name."""
    if options.executor == "ray":
        threads = max(cell.threads for cell in batch.cells)
        device = batch.cells[0].device
        return executors.Ray(
            options.address, plan, threads, device, options.per_gpu, options.workers
        )
    gpus = executors.chosen_gpus(options.gpus) if options.gpus else ()
    workers = options.workers or default_workers(batch, gpus, options.per_gpu)
    return executors.Local(workers, gpus)


def _set_aside(batch, cell):
    """Keep an unusable record under another name; returns one line of text."""
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
    return f"damaged {batch.label(cell)}: {reason}; kept as {aside.name}, and it runs again"


def _check(batch, todo, done):
    """What can be known before any kernel starts: libraries, parameters, and the same images."""
    measured = any(cell.robustness for cell in todo)
    needs(*(extra for name, extra in EXTRA.items() if measured or name in batch.lessons))
    for name in [*([CELL] if todo else []), *batch.lessons]:
        notebooks.check_parameters(source(name))
    changeable = [cell for cell in done if cell.dataset not in sources.SIZES or cell.allow_partial]
    asked = {(cell.dataset, cell.root, cell.allow_partial) for cell in (*todo, *changeable)}
    found = {
        images: sources.arrays(images[0], images[1], allow_partial=images[2])["checksum"]
        for images in asked
    }
    for cell in changeable:
        checksum = batch.kept[cell.folder.name].data["checksum"]
        records.check_images(cell, found[cell.dataset, cell.root, cell.allow_partial], checksum)
