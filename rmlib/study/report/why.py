"""Why: accuracy, NLL and ECE of the small-data study against the softness of the targets.

Region Mixup differs from Mixup in two things: each tile has a partner of its own, and a weight of
its own. Either can be shared by all tiles, so four methods tell what each of the two does.

Both change the targets. The mean of k x k independent weights lies nearer to 1/2 than one weight:
softness here is the standard deviation, over batches, of the original's weight. And k x k partners
spread the rest over more classes. Labels and pixels are not told apart by these runs.
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
    ("own partners, with one weight", WEIGHT, MIXUP),
    ("own partners, with own weights", REGION, PARTNER),
    ("own weights, with one partner", PARTNER, MIXUP),
    ("own weights, with own partners", REGION, WEIGHT),
    ("both", REGION, MIXUP),
    ("a finer grid", FINER, REGION),
    ("borders that move", RANDOM, REGION),
    ("average of the losses, not their sum", REGION | {"average": True}, REGION),
)
SOFTNESS = (
    "small data, why: methods with the clean loss on 5 000 images of CIFAR-10; partners: of one"
    " image, each brings its label; weight: of the original in the soft target, its mean and its"
    " standard deviation over batches; n of the seeds fixed before the runs; mean ± sample"
    " standard deviation"
)
ESTIMATES = (
    "small data, why: what one setting changes, with 95 % intervals by Welch's t; these are"
    " secondary estimates, not corrected for their number"
)


def name_of(settings: dict) -> str:
    """'Region Mixup, k=4', 'plain training, 120 epochs'."""
    epochs = f", {settings['epochs']} epochs" if "epochs" in settings else ""
    return method_name(DEFAULTS | settings) + epochs


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


def partners(settings: dict) -> int:
    """How many partners an image has; each brings its label into the target."""
    config = DEFAULTS | settings
    whole = config["mixer"] != "region_mixup" or config["shared_partner"]
    return 1 if whole else config["k"] ** 2


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
        row = {"method": name_of(own), "partners": partners(own), "mean weight": round(mean, 3)}
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
    question = "Is Region Mixup more than a softer Mixup?"
    gap = _gaps(runs, REGION, PARTNER)["accuracy"]
    counts = [len(side) for side in gap.sides.values()]
    if min(counts) < 2:
        both = _gaps(runs, REGION, MIXUP)["accuracy"]
        return (
            f"{question} Not known yet, as Region Mixup with one partner for all tiles has"
            f" {counts[1]} of {planned(PARTNER)} seeds. Own partners and own weights together,"
            f" Region Mixup - Mixup: {both.text()} points of accuracy"
        )
    told = "we could not show that own partners add or cost anything"
    if (gap.low or 0.0) * (gap.high or 0.0) > 0:
        verb = "add to" if gap.mean > 0 else "cost"
        told = f"own partners {verb} accuracy (uncorrected)"
    if counts != [planned(REGION), planned(PARTNER)]:
        told = "interim, as seeds are missing"
    return (
        f"{question} With one partner for all tiles its targets are those of a softer Mixup. Own"
        f" partners compared with one: {gap.text()} points of accuracy (n = {counts[0]},"
        f" {counts[1]}): {told}. With one weight for all tiles, as in Mixup:"
        f" {_gaps(runs, WEIGHT, MIXUP)['accuracy'].text()} points"
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
