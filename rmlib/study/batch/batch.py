"""Running a batch: a grid of notebooks that can be stopped at any moment.

The same command goes on. Every run has a process of its own (:mod:`rmlib.study.batch.executors`)
and is done when its record says so. Its folder OUT/RUN_ID keeps the executed notebook, the record,
what was printed (log.txt), and error.txt if it failed. A failing run keeps no other from running.
"""

import functools
import os
import signal
from dataclasses import dataclass

from rmlib import UserError
from rmlib.datasets import sources
from rmlib.extras import needs
from rmlib.params import nearest
from rmlib.study.batch import executors, notebooks
from rmlib.study.batch.costs import costs, describe
from rmlib.study.batch.jobs import Jobs
from rmlib.study.batch.plan import Batch, source
from rmlib.study.batch.progress import Progress
from rmlib.study.guarded import handling
from rmlib.study.runs import records
from rmlib.study.settings import CELL

# signals that end the program count as Ctrl-C; SIGHUP: a closed terminal
ENDING = [getattr(signal, n) for n in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, n)]
LOCK = ".batch.lock"
# what a notebook needs besides the extra "study"
EXTRA = {"03_robustness": "robustness", "04_cam": "maps", "05_results": "maps"}


@dataclass(frozen=True)
class Options:
    """What one call of a batch may choose: the options of the command line, explained there."""

    workers: int | None = None
    only_failed: bool = False
    keep_going: bool = True
    max_minutes: float | None = None
    timeout: float | None = None  # minutes
    compiled: bool = False
    gpus: str | None = None
    per_gpu: int = 1
    executor: str = "local"
    address: str | None = None

    @property
    def starts(self) -> set[str]:
        """The states of the runs that are started, see :meth:`Batch.state`."""
        return {"failed", "damaged"} | (set() if self.only_failed else {"stopped", "new"})

    def words(self) -> list[str]:
        """The options that are right on another machine, too, for the plan's file."""
        words = ["--per-gpu", str(self.per_gpu)] if self.per_gpu != 1 else []
        words += ["--timeout", f"{self.timeout:g}"] if self.timeout is not None else []
        return words + ["--compile"] * self.compiled


def local_places(batch: Batch, options: Options) -> tuple[int, tuple[str, ...]]:
    """How many runs at a time on this machine (on its GPUs, else on its cores), the GPUs chosen."""
    gpus = executors.chosen_gpus(options.gpus) if options.gpus else ()
    first = batch.runs[0]
    if gpus:
        places = len(gpus) * options.per_gpu
    elif first.device != "cpu" and executors.visible_gpus():
        places = options.per_gpu
    else:
        places = max(1, min(8, (os.cpu_count() or 1) // first.threads))
    return options.workers or places, gpus


def run_batch(batch: Batch, options: Options | None = None, log=print) -> dict[str, int]:
    """Do the runs without a record, then the other notebooks that are not up to date.

    A record that cannot be read is set aside, and its run begins again. Ctrl-C, SIGTERM and a
    closed terminal end what runs with a checkpoint.

    Returns:
        How many runs and notebooks are done, failed, stopped or left.

    Raises:
        UserError: another batch works in this folder, it cannot be written, data are missing or
            others than before, no such GPU or cluster, a record of a later rmlib, or the folder was
            deleted meanwhile.
    """
    options = options or Options()
    refusal = f"another batch works in {batch.out}: wait for it, or stop it first"
    with records.holding(batch.out / LOCK, refusal) as still_held:
        todo, done = _todo_and_done(batch, options)
        for run in todo:
            if batch.state(run) == "damaged":
                log(_set_aside(batch, run))
        _check(batch, todo, done, options)
        plan = batch.write(options.words() if todo else None)
        executor = _executor(batch, options, plan)
        work = batch.work(options.starts)
        already = sum(state == "done" for state, *_ in batch.plan())
        counted = f"{batch.counted}, {already} done already, {len(work)} to go"
        log(f"batch {batch.name}: {counted}, {executor.places} at a time, in {batch.out}")
        counts = {"done": already, "failed": 0, "stopped": 0}
        known = costs(batch) if work else {}
        expected = {name: known[name].seconds if name in known else None for name in work}
        progress = Progress(counts, expected, executor.places, log)
        try:
            jobs = Jobs(batch, executor, progress, options, still_held)
            with handling(ENDING, jobs.interrupt):
                jobs.all(todo, [name for name in work if name in batch.notebooks])
        finally:
            executor.close()
    counts["left"] = len(batch.runs) + len(batch.notebooks) - sum(counts.values())
    return counts


def dry_run(batch: Batch, options: Options) -> str:
    """What :func:`run_batch` would do, in words, after its checks; nothing is run or written.

    Raises:
        UserError: what is wrong with devices, libraries or images.
    """
    words = describe(batch, local_places(batch, options)[0], options.starts)
    todo, done = _todo_and_done(batch, options)
    try:
        _check(batch, todo, done, options, offline=True)
    except sources.NotHere:
        if os.environ.get("RMLIB_OFFLINE"):
            raise
        words += "\nnot all images are here yet: the batch fetches them first"
    return words


def _todo_and_done(batch, options):
    states = [(run, batch.state(run)) for run in batch.runs]
    todo = [run for run, state in states if state in options.starts]
    return todo, [run for run, state in states if state == "done"]


def _executor(batch, options, plan):
    if options.executor == "local":
        return executors.Local(*local_places(batch, options))
    threads, device = max(run.threads for run in batch.runs), batch.runs[0].device
    return executors.Ray(options.address, plan, threads, device, options.per_gpu, options.workers)


def _set_aside(batch, run):
    """Keep an unusable record under another name; returns one line of text."""
    path = run.folder / records.RECORD
    aside = path.with_name(f"{path.name}.damaged")
    reason = "its record could not be read"
    try:
        batch.record(run)
    except UserError as error:
        reason = str(error).split(": ")[0]
    os.replace(path, aside)
    return f"damaged {batch.label(run)}: {reason}; kept as {aside.name}, and it runs again"


def _check(batch, todo, done, options, offline=False):
    """What can be known before any kernel starts: libraries, parameters, devices and images."""
    measured = any(run.robustness for run in todo)
    needs(*(extra for name, extra in EXTRA.items() if measured or name in batch.notebooks))
    if options.executor == "ray":
        needs("ray")
    for name in [*([CELL] if todo else []), *batch.notebooks]:
        notebooks.check_parameters(source(name))
    changeable = [run for run in done if run.dataset not in sources.SIZES or run.allow_partial]
    if not todo and not changeable:
        return
    # torch, which is slow to import
    from rmlib.data import load

    once = functools.cache(functools.partial(load, offline=offline))
    _check_runs(batch, todo, options, once)
    for run in changeable:
        images = once(run.dataset, run.root, "test", allow_partial=run.allow_partial)
        records.check_images(run, images.checksum, batch.record(run).data["checksum"])


def _check_runs(batch, todo, options, load):
    """Refuse what would fail in each run's process; Ray's machines know of their devices alone."""
    from rmlib.study.runs.run import check_device, evaluation_set, training_set
    from rmlib.train import check_fits

    # equal in all that counts here; a grid differs mostly in its seeds
    alike = {str(run.model_dump(exclude={"seed", "alpha", "lr"})): run for run in todo}
    for run in alike.values():
        try:
            if options.executor == "local":
                compiled = run.compiled or options.compiled
                check_device(run.model_copy(update={"compiled": compiled}))
            check_fits(run, training_set(run, load))
            _check_others(batch, run, min(evaluation_set(run, load).images.shape[2:]))
        except UserError as error:
            raise type(error)(f"{batch.label(run)}: {error}") from error


def _check_others(batch, run, size):
    """Refuse tiles and layers of the other notebooks that its images and network do not have."""
    from rmlib.models import preact_resnet18

    modules = preact_resnet18(2, width=1, final_norm=run.final_norm).named_modules()
    layers = [name for name, _ in modules if name not in ("", "linear")]
    for name, settings in batch.notebooks.items():
        if (k := getattr(settings, "k", 1)) > size:
            raise UserError(f"{name}: k={k} tiles do not fit: use k <= {size}")
        for place in ("layer", "beside"):
            layer = getattr(settings, place, layers[0])
            if layer not in layers:
                raise UserError(f"{name}: {place}={layer!r}: {nearest(layer, layers)}")
