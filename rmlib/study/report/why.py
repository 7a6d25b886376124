"""Why: accuracy, NLL and ECE of the small-data study against the softness of the targets.

Softness here is the standard deviation, over batches, of the original's weight in the soft target.
Mixup's weight lies anywhere between 0 and 1. The mean of k x k independent weights lies the nearer
to 1/2, the more there are. So Region Mixup differs from Mixup in two things at once: it mixes by
tiles, each with a partner of its own, and its targets are softer. One weight shared by all tiles
separates the two: then the partners alone differ from Mixup.
"""

import math

import numpy as np

from rmlib.study.names import method_name
from rmlib.study.report import small, stats
from rmlib.study.report.claims import numbers
from rmlib.study.report.groups import DEFAULTS
from rmlib.study.report.values import Table, Value, average, by_run, difference

SIDE = 32  # pixels of an image of CIFAR-10
METRICS = ("accuracy", "nll", "ece")
HEADS = ("accuracy (points)", "NLL (nats)", "ECE (points)")

# settings of methods with the clean term; the others are the protocol's
MIXUP, CUTMIX, REGION = ({"mixer": name} for name in ("mixup", "cutmix", "region_mixup"))
FINER, RANDOM = REGION | {"k": 4}, REGION | {"regions": "random"}
PARTNER, WEIGHT = REGION | {"shared_partner": True}, REGION | {"shared_weight": True}
METHODS = (MIXUP, CUTMIX, REGION, FINER, RANDOM, PARTNER, WEIGHT)
CONTRASTS = (
    ("a partner for each tile, the weight as in Mixup", WEIGHT, MIXUP),
    ("softer targets", REGION, WEIGHT),
    ("both", REGION, MIXUP),
    ("a finer grid, softer targets", FINER, REGION),
    ("a partner for each tile, its own weights", REGION, PARTNER),
    ("borders that move", RANDOM, REGION),
    ("average of the losses, not their sum", REGION | {"average": True}, REGION),
)
SOFTNESS = (
    "small data, why: methods with the clean loss on 5 000 images of CIFAR-10; weight: of the"
    " original in the soft target, its mean and its standard deviation over batches; the smaller"
    " the deviation, the softer the targets of methods whose mean is 1/2; n of the seeds fixed"
    " before the runs; mean ± sample standard deviation"
)
ESTIMATES = (
    "small data, why: what one setting changes, with 95 % intervals by Welch's t; these are"
    " secondary estimates, not corrected for their number"
)


def name_of(settings: dict) -> str:
    """'Region Mixup, k=4'."""
    return method_name(DEFAULTS | settings)


def weight(settings: dict) -> tuple[float, float]:
    """Mean and standard deviation of the original's weight in the targets of 32 x 32 images, for
    alpha = 1 and, with random borders, k = 2; by the formulas of :mod:`rmlib.mixers`.
    """
    config = DEFAULTS | settings
    if config["mixer"] == "cutmix":
        # half the side of the box with its probability, and the side left by clipping at a centre
        half, centre = np.arange(SIDE // 2)[:, None], np.arange(SIDE)
        chance = (2 * half[:, 0] + 1) / len(half) ** 2
        side = (np.minimum(centre + half, SIDE) - np.maximum(centre - half, 0)) / SIDE
        mean, square = (chance @ (side**power).mean(1) ** 2 for power in (1, 2))
        return float(1 - mean), math.sqrt(square - mean**2)
    # the squared shares of a row of k tiles, added up; a grid has rows and columns
    squares = 1 / config["k"]
    if config["mixer"] == "mixup" or config["shared_weight"]:
        squares = 1.0
    elif config["regions"] == "random":
        share = np.arange(1, SIDE) / SIDE
        squares = float(np.mean(share**2 + (1 - share) ** 2))
    return 0.5, squares / math.sqrt(12)


def planned(settings: dict) -> int:
    """The number of seeds of a method, fixed before the runs."""
    return small.SEEDS["cifar10"] if settings in (MIXUP, CUTMIX, REGION) else small.ABLATION_SEEDS


def _results(runs, settings) -> dict[str, dict]:
    """metric -> run_id -> number, of a method's runs."""
    own = small.under_protocol(runs, settings)
    own, side = own[own["config.seed"] < planned(settings)], (settings["mixer"], 1.0)
    return {metric: by_run(numbers(own, None, metric, "cifar10", side)) for metric in METRICS}


def _told(settings, count: int) -> str:
    """'4 of 10', 'not run yet': how many of a method's seeds there are."""
    return f"{count} of {planned(settings)}" if count else "not run yet"


def tables(runs) -> list[Table]:
    """Two tables: softness and results of every method; and what one setting changes, captioned by
    :func:`sentence`. None where no run is under the protocol.
    """
    if not len(small.under_protocol(runs)):
        return []
    rows = []
    for own in METHODS:
        found, (mean, deviation) = _results(runs, own), weight(own)
        row = {"method": name_of(own), "mean weight": round(mean, 3)}
        row |= {"its deviation": round(deviation, 3), "n": _told(own, len(found["accuracy"]))}
        rows.append(row | {metric: average(of_runs) for metric, of_runs in found.items()})
    contrasts = []
    for words, a, b in CONTRASTS:
        gaps = list(_gaps(runs, a, b).values())
        counts = [_told(own, len(side)) for own, side in zip((a, b), gaps[0].sides.values())]
        row = {"what differs": words, "difference": f"{name_of(a)} - {name_of(b)}"}
        contrasts.append(row | {"n": "; ".join(counts)} | dict(zip(HEADS, gaps)))
    return [Table(rows, SOFTNESS), Table(contrasts, f"{ESTIMATES}. {sentence(runs)}")]


def _gaps(runs, a, b) -> dict[str, Value]:
    """metric -> A minus B, by Welch's t."""
    own, other = _results(runs, a), _results(runs, b)
    missing = f"not run yet: {small.command('cifar10')} makes it"
    gaps = {}
    for metric in METRICS:
        d = stats.welch(list(own[metric].values()), list(other[metric].values()))
        sides = (name_of(a), own[metric]), (name_of(b), other[metric])
        ends = {"low": d.low, "high": d.high, "decimals": 3 if metric == "nll" else 2}
        gaps[metric] = difference(d, *sides, **ends, missing=missing)
    return gaps


def sentence(runs) -> str:
    """Whether Region Mixup is more than a softer Mixup, as far as the runs tell."""
    tiles, softer, both = (_gaps(runs, a, b)["accuracy"] for _, a, b in CONTRASTS[:3])
    question = "Is Region Mixup more than a softer Mixup?"
    counts = [len(side) for side in tiles.sides.values()]
    if min(counts) < 2:
        return (
            f"{question} Not known yet, as Region Mixup with one weight for all tiles has"
            f" {counts[0]} of {planned(WEIGHT)} seeds. Tiles and softer targets together,"
            f" Region Mixup - Mixup: {both.text()} points of accuracy"
        )
    told = "we could not show that a partner for each tile adds or costs anything"
    if (tiles.low or 0.0) * (tiles.high or 0.0) > 0:
        verb = "adds to" if tiles.mean > 0 else "costs"
        told = f"a partner for each tile {verb} accuracy (uncorrected)"
    if counts != [planned(WEIGHT), planned(MIXUP)]:
        told = "interim, as seeds are missing"
    return (
        f"{question} Tiles with a weight as in Mixup, minus Mixup: {tiles.text()} points of"
        f" accuracy (n = {counts[0]}, {counts[1]}): {told}. Softer targets, own weights minus a"
        f" shared one: {softer.text()} points"
    )


def points(runs) -> list[tuple]:
    """For :func:`rmlib.study.figures.against_softness`: mixer, name, deviation of the weight, and
    metric -> values, for each of METHODS.
    """
    found = []
    for own in METHODS:
        values = {metric: [*by.values()] for metric, by in _results(runs, own).items()}
        found.append((own["mixer"], name_of(own), weight(own)[1], values))
    return found
