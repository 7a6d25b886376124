"""Widths: what the small-data study shows with its narrow network, and with the paper's.

That one difference is resolved and another is not does not say that they differ. So the table has
the change from one to the other, with an interval of its own.
"""

from rmlib.study.report import small, stats
from rmlib.study.report.claims import numbers, side_name
from rmlib.study.report.values import Table, by_run, difference

# what differs from the protocol where the network is the paper's
WIDE = {"width": 64, "precision": "bf16"}
SEEDS = 5  # of every method of width 64, fixed before the runs
NARROW, PAPERS, CHANGE = "width 8 (points)", "width 64 (points)", "change (points)"

ALONE = [(mixer, 0.0) for mixer, _ in (small.REGION, small.MIXUP, small.CUTMIX)]
DIFFERENCES = (
    *((small.REGION, other) for other in (small.PLAIN, small.DOUBLED, small.MIXUP, small.CUTMIX)),
    *((other, small.PLAIN) for other in (small.MIXUP, small.CUTMIX, *ALONE)),
    *((small.REGION, other) for other in ALONE[1:]),  # half the compute
    *zip((small.REGION, small.MIXUP, small.CUTMIX), ALONE),
)
CAPTION = (
    "small data, widths: accuracy on CIFAR-10 with 5 000 training images, A minus B with its 95 %"
    " interval by Welch's t; change: from width 8 to width 64, by Welch's t of the four groups;"
    " uncorrected; n at width 8, then at width 64, of the seeds fixed before the runs; with the"
    " width the precision (float32, bfloat16) and the machine (CPU, GPU) changed, the learning rate"
    " did not"
)


def table(runs) -> Table | None:
    """Differences at both widths, and how much they change; None unless both have runs."""
    runs = runs[runs["config.dataset"] == "cifar10"]
    narrow, wide = small.under_protocol(runs), small.under_protocol(runs, WIDE)
    if not len(narrow) or not len(wide):
        return None
    rows = []
    for a, b in DIFFERENCES:
        sides = _sides(narrow, a, b, "width 8"), _sides(wide, a, b, "width 64")
        counts = [", ".join(str(len(side)) for side in both.values()) for both in sides]
        row = {"difference": f"{_name(a)} - {_name(b)}", "n": "; ".join(counts)}
        row |= {name: _value(stats.welch, both) for name, both in zip((NARROW, PAPERS), sides)}
        rows.append(row | {CHANGE: _value(stats.change, sides[1] | sides[0])})
    return Table(rows, CAPTION)


def _name(side):
    """As in the table of differences: the clean loss goes without saying."""
    return side_name(side).removesuffix(", clean_weight=1")


def _sides(runs, a, b, where) -> dict[str, dict]:
    """Method and width -> run_id -> accuracy, of A and of B."""
    found = {}
    for side in (a, b):
        planned = small.ABLATION_SEEDS if side in ALONE else small.SEEDS["cifar10"]
        planned = SEEDS if where == "width 64" else planned
        own = runs[runs["config.seed"] < planned]
        own = numbers(own, None, "accuracy", "cifar10", side)
        found[f"{_name(side)}, {where}"] = by_run(own)
    return found


def _value(test, sides):
    found = test(*(list(side.values()) for side in sides.values()))
    missing = "not run yet: cifar10-small.yaml and cifar10-small-width64.yaml make it"
    return difference(found, *sides.items(), low=found.low, high=found.high, missing=missing)
