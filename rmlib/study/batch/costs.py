"""How long a batch will take, by earlier runs and notebooks, and the plan in words.

They are those in the batch's folder, in runs/ and in results/. What this machine did counts most.
An executed notebook notes the seconds of its process. Without it only those of the record are
known, of the training alone.
"""

import bisect
import json
import os
from datetime import datetime, timedelta
from pathlib import Path
from statistics import mean
from typing import NamedTuple

from rmlib import UserError
from rmlib.params import NetworksParams, complete
from rmlib.paths import below, results_dir, runs_dir
from rmlib.study.batch import executors
from rmlib.study.batch.plan import NEEDS, Batch
from rmlib.study.names import experiment
from rmlib.study.runs import records
from rmlib.study.runs.environment import cpu_name
from rmlib.study.settings import CELL

# what runs must share to take equally long per image
SPEED = ("dataset", "width", "stem_stride", "batch_size", "precision", "threads")
# parameters that change nothing in the time of a notebook
ELSEWHERE = {"runs", "root", "save"}


class Cost(NamedTuple):
    """Seconds of a run or notebook, and what they rest on."""

    seconds: float
    here: bool  # on work of this machine
    whole: bool  # on whole notebooks, not on trainings alone
    between: tuple[float, float]  # what single ones would make it


class _Past(NamedTuple):
    """A run that has ended."""

    record: records.Record
    folder: Path
    here: bool  # it ran on this machine
    notebook: float | None  # seconds, if they are known
    parameters: dict  # of the notebook


def costs(batch: Batch) -> dict[str, Cost]:
    """Cost by run id and name of a notebook; what is like nothing before is left out. Of a stopped
    run it is that of the epochs that are left.
    """
    places = [place for place in (results_dir(), runs_dir(), batch.out) if place.is_dir()]
    pasts = _pasts(batch, places)
    # runs differ mostly in their seeds
    kinds = {run.run_id: str((run.config | {"seed": 0}, run.robustness)) for run in batch.runs}
    firsts = {kinds[run.run_id]: run for run in batch.runs}
    known = {kind: _of_run(run, pasts) for kind, run in firsts.items()}
    found = {run_id: known[kind] for run_id, kind in kinds.items()}
    for run in batch.runs:
        cost = found[run.run_id]
        if cost and (run.folder / records.CHECKPOINT).exists():
            # torch, which is slow to import
            from rmlib.study.runs.checkpoint import epochs_done

            left = 1 - epochs_done(run.folder) / run.epochs
            low, high = (left * seconds for seconds in cost.between)
            found[run.run_id] = Cost(left * cost.seconds, cost.here, cost.whole, (low, high))
    found |= {name: _of_notebook(batch, name, pasts, places) for name in batch.notebooks}
    return {name: cost for name, cost in found.items() if cost}


def _pasts(batch, places):
    on_gpu = batch.runs[0].device != "cpu" and executors.visible_gpus()
    machine = ("cuda" if on_gpu else "cpu", cpu_name(), os.cpu_count() or 1)
    pasts = []
    for path in {path.resolve() for at in places for path in below(at, records.RECORD)}:
        try:
            record = records.read(path)
        except (UserError, OSError):  # a report names it
            continue
        if record.status == "done" and record.images_per_second and record.together == 1:
            here = tuple(record.hardware[name] for name in ("device", "cpu", "cores")) == machine
            seconds, parameters = _executed(path.with_name(f"{CELL}.ipynb"))
            # one that found its record there, or went on from a checkpoint, tells a part
            known = seconds if seconds and seconds >= record.seconds else None
            pasts.append(_Past(record, path.parent, here, known, parameters))
    return pasts


def _executed(path):
    """(seconds, parameters) noted in an executed notebook; (None, {}) if it failed."""
    try:
        noted = json.loads(path.read_text(encoding="utf-8"))["metadata"]["papermill"]
        return (None, {}) if noted["exception"] else (noted["seconds"], noted["parameters"])
    except (*records.DAMAGE, OSError):
        return None, {}


def _of_run(run, pasts):
    """The mean over those earlier runs that tell most.

    What a run spends on passes of images is scaled; the rest stays as it was.
    """
    told = []
    for record, _, here, notebook, parameters in pasts:
        then, now = complete(record.config), run.config
        images = record.data["train_images"], record.data["test_images"]
        # of all images as many as there were then
        train = run.train_images or (None if then["train_images"] else images[0])
        if any(then[name] != now[name] for name in SPEED) or not train:
            continue
        a_pass = 1 / (3 * _forwards(then) * record.images_per_second)
        whole = bool(notebook) and parameters.get("robustness") == run.robustness
        rest = (notebook if whole else record.seconds) - a_pass * _passes(then, *images)
        alike = experiment(then) == experiment(now) and _forwards(then) == _forwards(now)
        seconds = rest + a_pass * _passes(now, train, run.test_images or images[1])
        told.append(((here, whole, alike), max(seconds, 0.0)))
    return _best(told)


def _best(told):
    """The mean of what has the highest rank, as a cost; None of nothing."""
    if not told:
        return None
    best = max(rank for rank, _ in told)
    here, whole = best[:2]
    seconds = [seconds for rank, seconds in told if rank == best]
    return Cost(mean(seconds), here, whole, (min(seconds), max(seconds)))


def _forwards(config):
    return 2 if config["clean_weight"] else 1


def _passes(config, train, test):
    """How many images go through the network in a run; a way back counts as two."""
    epochs, every = config["epochs"], config["eval_every"]
    evaluations = 1 + (epochs // every if every else 0)
    return 3 * epochs * _forwards(config) * train + evaluations * test


def _of_notebook(batch, name, pasts, places):
    """The mean over earlier ones with the same parameters; per run, where it looks at networks."""
    params, told = batch.notebooks[name], []
    mine = params.model_dump(exclude=ELSEWHERE)
    at_networks = isinstance(params, NetworksParams)
    speed = {tuple(run.config[name] for name in SPEED) for run in batch.runs}
    for path in {path.resolve() for at in places for path in below(at, f"{name}.ipynb")}:
        seconds, parameters = _executed(path)
        around = [past for past in pasts if past.folder.parent == path.parent]
        same = all(parameters.get(name) == value for name, value in mine.items())
        if not seconds or not same or not around:
            continue
        if at_networks:
            if {tuple(complete(past.record.config)[n] for n in SPEED) for past in around} != speed:
                continue
            seconds *= len(batch.runs) / len(around)
        told.append(((all(past.here for past in around), True), seconds))
    return _best(told)


def duration(seconds: float) -> str:
    """'35 s', '12 min', '3 h 20 min', '2 d 4 h'."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def describe(batch: Batch, workers: int, states: set[str]) -> str:
    """The plan for reading: the runs of each method and every notebook, with state and time.

    ``states``: of the runs that are started.
    """
    known, work, rows = costs(batch), dict.fromkeys(batch.work(states)), batch.plan()
    seeds = {run.run_id: run.seed for run in batch.runs}
    alike, lines = dict[tuple, list](), []
    for state, name, text in rows:
        alike.setdefault((state, text), []).append(name)
    for (state, text), names in alike.items():
        own = ", ".join(str(seeds[name]) for name in names if name in seeds)
        text += f", seed{'s' if len(names) > 1 else ''} {own}" if own else ""
        if any(name in work for name in names):
            seconds = [known[name].seconds for name in names if name in known]
            text += f"  {duration(mean(seconds)) if seconds else 'time unknown'}"
            text += " each" if len(names) > 1 and seconds else ""
        lines.append(f"{state:<8} {text}")
    done = sum(state == "done" for state, *_ in rows)
    words = f"{batch.counted}: {done} done, {len(work)} to go"
    parts = [f"{words}, {workers} at a time", *_time(work, known, workers)]
    return "\n".join([*lines, "", "; ".join([*parts, f"in {batch.out}"])])


def _time(work, known, workers):
    """When all that is known of some work is done, what that rests on, and what is not known."""
    told = [known[name] for name in work if name in known]
    if told:
        names = [name for name in work if name in known]
        every = zip(*((cost.seconds, *cost.between) for cost in told))
        seconds, *ends_of = (_makespan(dict(zip(names, each)), workers) for each in every)
        low, high = map(duration, ends_of)
        end = datetime.now() + timedelta(seconds=seconds)
        ends = f"{end:%H:%M}" if seconds < 24 * 3600 else f"{end:%a %d %b %H:%M}"
        by = "on this machine" if all(cost.here for cost in told) else "on other hardware"
        whole = all(cost.whole for cost in told)
        ends = f": ends about {ends}" if whole else f", counting trainings alone: not before {ends}"
        if len(told) < len(work):
            ends = ", for those known"
        spread = f" (between {low} and {high})" if low != high else ""
        yield f"about {duration(seconds)} by earlier ones {by}{spread}{ends}"
    if unknown := len(work) - len(told):
        trial = "a trial tells it, --set epochs=1 --set seed=0 --out runs/trial"
        yield f"time of {unknown} unknown, since nothing like them has run: {trial}"


def _makespan(seconds, workers):
    """Seconds until all is done, where each takes the next free place after what it needs."""
    free, ends = [0.0] * workers, dict[str, float]()
    for name, took in seconds.items():
        needs = NEEDS.get(name, ())
        before = [end for each, end in ends.items() if (each if each in NEEDS else CELL) in needs]
        ends[name] = max([free.pop(0), *before]) + took
        bisect.insort(free, ends[name])
    return max(ends.values())
