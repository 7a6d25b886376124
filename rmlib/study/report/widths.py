"""Widths: what the small-data study shows with its narrow network, and with the paper's.

That one difference is resolved and another is not does not say that they differ. So the tables have
the change from one to the other, with an interval of its own.
"""

from dataclasses import dataclass

import pandas as pd

from rmlib.study.report import accuracy, small, stats, why
from rmlib.study.report.claims import numbers, of_side
from rmlib.study.report.values import Table, by_run, difference, span
from rmlib.study.report.why import CUTMIX, MIXUP, PARTNER, REGION, name_of

# what differs from the protocol where the network is the paper's
NARROW: dict = {}
WIDE: dict = {"width": 64, "precision": "bf16"}
CIFAR100: dict = {"dataset": "cifar100"}
SEEDS = {"cifar10": 5, "cifar100": 4}  # of every method of width 64, fixed before the runs
HEADS = AT_8, AT_64, CHANGE = "width 8 (points)", "width 64 (points)", "change (points)"

# settings of a method, beside the protocol and the clean loss
DOUBLED: dict = {"mixer": "none"}
PLAIN = DOUBLED | {"clean_weight": 0.0}
LONGER = PLAIN | {"epochs": 120}  # as much compute as with a clean loss
ALONE = [own | {"clean_weight": 0.0} for own in (REGION, MIXUP, CUTMIX)]
MAIN = (REGION, MIXUP, CUTMIX, DOUBLED, PLAIN, LONGER)
DIFFERENCES = (
    *((REGION, other) for other in (PLAIN, DOUBLED, MIXUP, CUTMIX)),
    *((other, PLAIN) for other in (MIXUP, CUTMIX, *ALONE)),
    *((REGION, other) for other in ALONE[1:]),  # half the compute
    *zip((REGION, MIXUP, CUTMIX), ALONE),
)
CHANGES = (
    *((f"equal compute, {name_of(own)}", own, LONGER) for own in (REGION, MIXUP, CUTMIX)),
    # "both" is among the differences
    *(each for each in why.CONTRASTS if each[0] != "both"),
)
# of the methods that ran on CIFAR-100
ON_CIFAR100 = (
    *((REGION, other) for other in (MIXUP, CUTMIX, DOUBLED)),
    *((other, DOUBLED) for other in (MIXUP, CUTMIX)),
)
# what was named before the first run of a batch: batch file -> what it changes, pairs of methods
NAMED: dict = {
    "cifar10-small-width64-why.yaml": (WIDE, [(REGION, PARTNER), (REGION, LONGER)]),
    "cifar10-small-longer.yaml": (NARROW, [(REGION, LONGER)]),
    "cifar100-small-width64.yaml": (WIDE | CIFAR100, ON_CIFAR100[:3]),
}
CAPTION = (
    "A minus B in accuracy with its 95 % interval by Welch's t; change: from width 8 to width 64,"
    " by Welch's t of the four groups; uncorrected; n at width 8, then at width 64, of the seeds"
    " fixed before the runs, and of how many where runs are missing; with the width the precision"
    " (float32, bfloat16) and the machine (CPU, GPU) changed, the learning rate did not"
)
FIXED = (
    "small data, named before the first run of a batch; on CIFAR-10 the runs of the first method"
    " had been seen then; n: of the seeds fixed then, and of how many where runs are missing;"
    " A minus B in accuracy with its 95 % interval by Welch's t, by pairs of equal seeds, and"
    " over seeds and images, none of them corrected; p of Welch's t corrected by Holm for the"
    " differences that were named with a batch; no larger difference: two one-sided tests at 5 %"
    f" against a margin of {small.MARGIN:g} point"
)


@dataclass(frozen=True)
class Side:
    """The planned runs of a method at one width.

    Args:
        name: of the method, with the width.
        runs: those that are done, indexed by the seed; ``number`` is the accuracy in percent.
        lost: how many diverged.
        planned: how many were fixed before the first.
        batch: the file that makes them.
    """

    name: str
    runs: pd.DataFrame
    lost: int
    planned: int
    batch: str

    @property
    def accuracies(self) -> pd.Series:
        """The accuracies in percent, indexed by the seed."""
        return self.runs["number"]

    @property
    def count(self) -> str:
        """'5', or '3 of 5' where runs are missing."""
        done = len(self.runs)
        return f"{done}" if done == self.planned else f"{done} of {self.planned}"


def table(runs) -> Table | None:
    """Differences of methods at both widths, on each dataset where one of them is known at both;
    None where there is none.
    """
    rows = []
    for extra, pairs in ({}, DIFFERENCES), (CIFAR100, ON_CIFAR100):
        own = _rows(runs, pairs, extra)
        if any(row[CHANGE].mean == row[CHANGE].mean for row in own):
            rows += [{"dataset": dataset_of(extra)} | row for row in own]
    images = "5 000 training images of CIFAR-10, or 10 000 of CIFAR-100"
    return Table(rows, f"small data, widths; {images}; {CAPTION}") if rows else None


def changes(runs) -> Table | None:
    """What one setting changes, and twice the epochs, at both widths; None unless one of them is
    known at width 64.
    """
    rows = _rows(runs, [sides for _, *sides in CHANGES], {})
    rows = [{"what differs": words} | row for (words, *_), row in zip(CHANGES, rows)]
    known = any(row[AT_64].mean == row[AT_64].mean for row in rows)
    images = "5 000 training images of CIFAR-10"
    what = f"small data, what one setting changes; {images}; {CAPTION}"
    return Table(rows, what) if known else None


def named(runs) -> Table | None:
    """The differences that were named with a batch, each with its verdict; None where no such batch
    has begun.
    """
    rows = []
    for batch, (extra, pairs) in NAMED.items():
        both = [tuple(side(runs, settings, extra) for settings in pair) for pair in pairs]
        tests = [stats.welch(a.accuracies, b.accuracies) for a, b in both]
        waiting = [
            any(len(each.runs) < each.planned for each in sides) or test.p != test.p
            for test, sides in zip(tests, both)
        ]
        corrected = stats.holm([test.p for test in tests], waiting)
        own = [each for sides in both for each in sides if each.batch == batch]
        if any(len(each.runs) for each in own):
            found = zip(pairs, both, tests, corrected, waiting)
            rows += [_verdict(extra, *each) for each in found]
    return Table(rows, FIXED) if rows else None


def _verdict(extra, pair, sides, test, p, waiting) -> dict:
    """The row of a named difference; ``p`` is corrected; ``waiting``: runs are missing."""
    a, b = sides
    pairs, over_both = stats.paired(a.accuracies, b.accuracies), None
    if (both := accuracy.verdicts(a.runs, b.runs)) is not None:
        own, other = both
        over_both = stats.crossed(100.0 * own - 100.0 * other)
    lost = [f" ({each.lost} diverged)" if each.lost else "" for each in sides]
    counts = ", ".join(f"{each.count}{gone}" for each, gone in zip(sides, lost))
    state = "no verdict yet"
    if not waiting:
        state = small.accuracy_verdict(test, a.accuracies, b.accuracies, p)
    return {
        "dataset": dataset_of(extra),
        "difference": f"{name_of(pair[0])} - {name_of(pair[1])}",
        "width": (small.PROTOCOL | extra)["width"],
        "n": counts,
        "points": _difference(test, sides),
        "paired": span(pairs.low, pairs.high),
        "seeds and images": span(over_both.low, over_both.high) if over_both else "–",
        "p (Holm)": p,
        "state": state,
    }


def side(runs, settings: dict, extra: dict) -> Side:
    """The planned runs of a method; ``extra``: NARROW or WIDE, with CIFAR100 or not."""
    runs = runs[runs["config.seed"] < planned(settings, extra)]
    method = settings["mixer"], settings.get("clean_weight", 1.0)
    done, diverged = (
        small.under_protocol(runs, extra | settings, status) for status in ("done", "diverged")
    )
    dataset = dataset_of(extra)
    own = numbers(done, None, "accuracy", dataset, method)
    own = own.join(done.set_index("run_id"), on="run_id")
    lost = len(of_side(diverged, dataset, method))
    name = f"{name_of(settings)}, width {(small.PROTOCOL | extra)['width']}"
    return Side(name, own, lost, planned(settings, extra), batch_of(settings, extra))


def dataset_of(extra: dict) -> str:
    """The dataset: CIFAR-10 where ``extra`` names none."""
    return extra.get("dataset", "cifar10")


def planned(settings: dict, extra: dict) -> int:
    """The number of seeds of a method, fixed before the runs."""
    seeds = SEEDS if "width" in extra else small.SEEDS
    if "width" in extra or settings in MAIN:
        return seeds[dataset_of(extra)]
    return small.ABLATION_SEEDS


def batch_of(settings: dict, extra: dict) -> str:
    """The batch file that makes the runs of a method."""
    first = f"{dataset_of(extra)}-small"
    if "width" not in extra:
        return f"{first}{'-longer' if settings == LONGER else ''}.yaml"
    plain = settings.keys() <= {"mixer", "clean_weight"}
    return f"{first}-width64{'' if plain else '-why'}.yaml"


def _rows(runs, pairs, extra: dict) -> list[dict]:
    """A row for each pair of methods. ``extra``: see :func:`dataset_of`."""
    every = {name_of(each): each for pair in pairs for each in pair}
    narrow, wide = (
        {name: side(runs, settings, width | extra) for name, settings in every.items()}
        for width in (NARROW, WIDE)
    )
    rows = []
    for names in [tuple(map(name_of, pair)) for pair in pairs]:
        own, other = ([width[name] for name in names] for width in (narrow, wide))
        counts = [", ".join(each.count for each in sides) for sides in (own, other)]
        row: dict = {"difference": " - ".join(names), "n": "; ".join(counts)}
        values = [each.accuracies for each in (*own, *other)]
        found = (
            stats.welch(*values[:2]),
            stats.welch(*values[2:]),
            stats.change(*values[2:], *values[:2]),
        )
        for head, test, sides in zip(HEADS, found, (own, other, [*other, *own])):
            row[head] = _difference(test, sides)
        rows.append(row)
    return rows


def _difference(found, sides):
    batches = " and ".join(dict.fromkeys(each.batch for each in sides))
    missing = f"not run yet: {batches} would make it"
    pairs = [(each.name, by_run(each.runs)) for each in sides]
    return difference(found, *pairs, low=found.low, high=found.high, missing=missing)
