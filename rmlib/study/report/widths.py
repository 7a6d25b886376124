"""Widths: what the small-data study shows with its narrow network, and with the paper's.

That one difference is resolved and another is not does not say that they differ. So the tables have
the change from one to the other, with an interval of its own.
"""

from collections.abc import Callable

from rmlib.study.report import small, stats, why
from rmlib.study.report.claims import numbers
from rmlib.study.report.values import Table, by_run, difference
from rmlib.study.report.why import CUTMIX, MIXUP, PARTNER, REGION

# what differs from the protocol where the network is the paper's
WIDE = {"width": 64, "precision": "bf16"}
SEEDS = 5  # of every method of width 64, fixed before the runs
NARROW, PAPERS, CHANGE = "width 8 (points)", "width 64 (points)", "change (points)"

DOUBLED, PLAIN = {"mixer": "none"}, {"mixer": "none", "clean_weight": 0.0}
LONGER = PLAIN | {"epochs": 120}  # as much compute as with a clean loss
ALONE = [own | {"clean_weight": 0.0} for own in (REGION, MIXUP, CUTMIX)]
DIFFERENCES = (
    *((REGION, other) for other in (PLAIN, DOUBLED, MIXUP, CUTMIX)),
    *((other, PLAIN) for other in (MIXUP, CUTMIX, *ALONE)),
    *((REGION, other) for other in ALONE[1:]),  # half the compute
    *zip((REGION, MIXUP, CUTMIX), ALONE),
)
# named before the runs of width 64, in cifar10-small-width64-why.yaml
NAMED = (
    ("own partners, with own weights", REGION, PARTNER),
    ("equal compute, Region Mixup", REGION, LONGER),
)
# what one setting changes, and twice the epochs
CHANGES = (
    *NAMED,
    *((f"equal compute, {why.name_of(own)}", own, LONGER) for own in (MIXUP, CUTMIX)),
    *(each for each in why.CONTRASTS if each[1:] not in (NAMED[0][1:], (REGION, MIXUP))),
)
CAPTION = (
    "accuracy on CIFAR-10 with 5 000 training images, A minus B with its 95 %"
    " interval by Welch's t; change: from width 8 to width 64, by Welch's t of the four groups;"
    " uncorrected; n at width 8, then at width 64, of the seeds fixed before the runs; with the"
    " width the precision (float32, bfloat16) and the machine (CPU, GPU) changed, the learning rate"
    " did not"
)


def table(runs) -> Table | None:
    """Differences of methods at both widths; None unless one of them is known at both."""
    rows = _rows(runs, DIFFERENCES)
    return Table(rows, f"small data, widths: {CAPTION}") if rows else None


def changes(runs) -> Table | None:
    """What one setting changes, and twice the epochs, at both widths; captioned by :func:`named`.
    None unless one of the differences is known at both.
    """
    rows = _rows(runs, [sides for _, *sides in CHANGES])
    rows = [{"what differs": words} | row for (words, *_), row in zip(CHANGES, rows)]
    caption = f"small data, what one setting changes: {CAPTION}. {named(runs)}"
    return Table(rows, caption) if rows else None


def named(runs) -> str:
    """The differences that were named before the runs of width 64, each with its verdict."""
    told, both = [], [_sides(runs, a, b, WIDE) for _, a, b in NAMED]
    tests = [stats.welch(*(list(side.values()) for side in sides.values())) for sides in both]
    waiting = [min(test.n) < SEEDS for test in tests]
    corrected = stats.holm([test.p for test in tests], waiting)
    for (words, *_), sides, test, p, few in zip(NAMED, both, tests, corrected, waiting):
        state = f"no verdict yet ({test.n[0]} and {test.n[1]} of {SEEDS} runs)"
        if not few:
            own, other = (list(side.values()) for side in sides.values())
            told_p = "p < 0.0001" if p < 1e-4 else f"p = {p:.4f}"
            state = f"{told_p}, {small.accuracy_verdict(test, own, other, p)}"
        told.append(f"{words}: {_difference(test, sides).text()} points, {state}")
    return (
        "Named before the runs of width 64, p corrected by Holm for the two, with a margin of"
        f" {small.MARGIN:g} point: {'; '.join(told)}"
    )


def name_of(settings: dict) -> str:
    """'Region Mixup, shared_partner', 'plain training, 120 epochs'."""
    epochs = f", {settings['epochs']} epochs" if "epochs" in settings else ""
    return why.name_of(settings) + epochs


def planned(settings: dict, extra: dict) -> int:
    """The number of seeds of a method, fixed before the runs."""
    first = settings in (REGION, MIXUP, CUTMIX, DOUBLED, PLAIN, LONGER) and not extra
    return small.SEEDS["cifar10"] if first else SEEDS


def _rows(runs, pairs):
    """A row for each pair of methods; none where no pair has runs at both widths."""
    if not len(small.under_protocol(runs, WIDE)):
        return []
    rows, known = [], False
    for a, b in pairs:
        narrow, wide = (_sides(runs, a, b, extra) for extra in ({}, WIDE))
        counts = [", ".join(str(len(side)) for side in both.values()) for both in (narrow, wide)]
        known |= all(narrow.values()) and all(wide.values())
        row: dict = {"difference": f"{name_of(a)} - {name_of(b)}", "n": "; ".join(counts)}
        for column, sides in {NARROW: narrow, PAPERS: wide, CHANGE: wide | narrow}.items():
            test: Callable = stats.welch if len(sides) == 2 else stats.change
            found = test(*(list(side.values()) for side in sides.values()))
            row[column] = _difference(found, sides)
        rows.append(row)
    return rows if known else []


def _sides(runs, a, b, extra) -> dict[str, dict]:
    """Method and width -> run_id -> accuracy, of A and of B."""
    found = {}
    for settings in (a, b):
        own = small.under_protocol(runs, extra | settings)
        own = own[own["config.seed"] < planned(settings, extra)]
        side = settings["mixer"], settings.get("clean_weight", 1.0)
        width = extra.get("width", small.PROTOCOL["width"])
        own = by_run(numbers(own, None, "accuracy", "cifar10", side))
        found[f"{name_of(settings)}, width {width}"] = own
    return found


def _difference(found, sides):
    narrow = "cifar10-small.yaml and cifar10-small-longer.yaml"
    wide = "cifar10-small-width64.yaml and cifar10-small-width64-why.yaml"
    missing = f"not run yet: {narrow} make it for width 8, {wide} for width 64"
    return difference(found, *sides.items(), low=found.low, high=found.high, missing=missing)
