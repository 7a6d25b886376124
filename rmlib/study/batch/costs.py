"""How long the runs of a batch will take, by earlier runs, and the plan in words."""

import json
from collections import defaultdict
from statistics import mean

from rmlib import UserError
from rmlib.params import complete
from rmlib.paths import below, results_dir
from rmlib.study.batch.plan import Batch
from rmlib.study.names import experiment
from rmlib.study.runs import records

# what runs must share to take equally long per image
SPEED = ("dataset", "width", "stem_stride", "batch_size", "precision", "threads")


def costs(batch: Batch) -> dict[str, float]:
    """Seconds of training by run id; runs like none before are left out.

    It is the mean of earlier runs of the same experiment with as many forwards, else scaled from
    others by epochs, images and forwards. Earlier runs are the committed ones and the batch's own.
    """
    same, per_image = defaultdict(list), defaultdict(list)
    folders = (results_dir(), batch.out)
    paths = {path.parent.name: path for at in folders for path in below(at, records.RECORD)}
    for path in paths.values():
        try:
            record = records.read(path.parent)
        except (UserError, OSError):  # a report names it
            continue
        alike, speed, passes = _kind(record.config)
        same[alike].append(record.seconds)
        per_image[speed].append(record.seconds / (passes * record.data["train_images"]))
    found = {}
    for run in batch.runs:
        alike, speed, passes = _kind(run.config)
        if known := same.get(alike):
            found[run.run_id] = mean(known)
        elif run.train_images and (known := per_image.get(speed)):
            found[run.run_id] = mean(known) * (passes * run.train_images)
    return found


def _kind(config):
    """What runs that take equally long share; what they share per image; forwards of an image."""
    config = complete(config)
    forwards = 2 if config["clean_weight"] else 1
    alike = json.dumps([experiment(config), forwards], sort_keys=True)
    return alike, tuple(config[name] for name in SPEED), config["epochs"] * forwards


def duration(seconds: float) -> str:
    """'35 s', '12 min', '3 h 20 min', '2 d 4 h'."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def describe(batch: Batch, workers: int) -> str:
    """The plan for reading: every run and notebook with its state and time; nothing is run."""
    expected, lines, todo = costs(batch), [], []
    for state, text, run in batch.plan():
        if run and state != "done":
            todo.append(expected.get(run.run_id))
            text += f"  {duration(todo[-1])}" if todo[-1] else ""
        lines.append(f"{state:<8} {text}")
    known = [seconds for seconds in todo if seconds]
    count = len(batch.runs)
    text = f"{count} runs: {count - len(todo)} done, {len(todo)} to run, {workers} at a time"
    if known:
        time = duration(sum(known) / min(workers, len(known)))
        text += f"; about {time} of training, by earlier runs"
    if len(known) < len(todo):
        text += f"; {len(todo) - len(known)} like none before, so their time is unknown"
    return "\n".join([*lines, "", f"{text}; in {batch.out}"])
