"""Tables of accuracy: means, differences between methods, pairs of networks, precisions."""

import itertools
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from rmlib.packed import unpack_bits
from rmlib.study.report import groups, stats
from rmlib.study.report.groups import Method
from rmlib.study.report.values import Table, average, by_run, difference, span

ACCURACY = "metrics.accuracy"
METRICS = ("accuracy", "nll", "ece")
COMPUTE = (
    "compute: images that pass the network in training, over plain training; a clean loss beside"
    " the mixed one is a second pass"
)
DIFFERENCES = (
    "accuracy in points; 95 % interval: Welch's t over seeds; paired: over equal seeds, r their"
    " correlation (on different CPUs equal seeds share their random choices, not their rounding);"
    " seeds and images: over both, from the verdicts of equal seeds on single images"
    " (over images alone where there is one seed); p of Welch's t corrected by Holm for the"
    " comparisons of this table, the intervals are not; interim: planned runs are missing, so there"
    " is no verdict yet, and p counts as 1; seeds of a new study: of each method, if"
    " difference and spread are what was seen, in 80 % of cases, at 5 % over the number of"
    " comparisons; not to be added to these"
)


def summary(group) -> Table:
    """Mean, sample standard deviation and n of every method of an experiment; diverged runs are
    counted, not averaged. ``compute``: see :func:`rmlib.study.report.groups.compute`.
    """
    rows = []
    for row, runs in groups.methods(group):
        good = runs[runs["status"] == "done"]
        row |= {"n": len(good), "diverged": len(runs) - len(good)}
        for metric in METRICS:
            row[metric] = average(by_run(good, f"metrics.{metric}"))
        rows.append(row | {"compute": groups.compute(runs, group)})
    return Table(rows, f"{groups.caption(group)}; {COMPUTE}")


@dataclass(eq=False)
class Comparison:
    """Method A minus method B."""

    a: Method
    b: Method

    @property
    def label(self) -> str:
        """'Region Mixup - plain training'."""
        return f"{self.a.name} - {self.b.name}"

    @property
    def waiting(self) -> bool:
        """Whether planned runs of either are missing."""
        return self.a.waiting or self.b.waiting

    @cached_property
    def verdicts(self):
        """See :func:`verdicts`."""
        return verdicts(self.a.runs, self.b.runs)


def verdicts(a, b) -> tuple | None:
    """The verdicts of the networks of equal seeds of A and of B on the same test images, two bool
    arrays (seeds, images); None if no two saw the same.

    Args:
        a, b: tables of runs, indexed by the seed.
    """
    a, b = stats.matched(a, b)
    same = a["correct"].notna() & b["correct"].notna()
    for name in ("data.checksum", "data.test_images"):
        same &= a[name] == b[name]
    a, b = a[same], b[same]
    if not len(a) or a["data.test_images"].nunique() > 1:
        return None
    images = int(a["data.test_images"].iloc[0])
    own, other = (np.stack([unpack_bits(x, images) for x in runs["correct"]]) for runs in (a, b))
    return own, other


def compared(group) -> list[Comparison]:
    """The comparisons of an experiment, those with plain training first.

    Every other method is compared with it, and mixers with the clean loss with the plain training
    of equal compute. Then come methods of the same loss: mixers with each other and with the
    doubled loss, and a variant (k=4) with its mixer's default. Last comes each method with itself
    under another loss.
    """
    found = groups.finished(group)
    plain = [method for method in found if method.plain]
    longer = [method for method in found if method.longer]
    others = [method for method in found if not method.plain and not method.longer]
    pairs = [(method, plain[0]) for method in others + longer if plain]
    clean = [method for method in others if method.loss[0] and method.mixer != "none"]
    pairs += [(method, longer[0]) for method in clean if longer]
    both = list(itertools.combinations(others, 2))
    same = [(a, b) for a, b in both if a.loss == b.loss and _alike(a, b)]
    pairs += [(b, a) if groups.default(a.settings) else (a, b) for a, b in same]
    pairs += [(a, b) for a, b in both if a.loss != b.loss and a.settings == b.settings]
    return [Comparison(*pair) for pair in pairs]


def _alike(a: Method, b: Method) -> bool:
    """Whether two methods are two mixers with default settings, or one mixer, once with them."""
    default = groups.default(a.settings), groups.default(b.settings)
    return all(default) if a.mixer != b.mixer else any(default)


def differences(group) -> Table | None:
    """Differences in accuracy within an experiment, see :func:`compared`, by Welch's t, paired by
    seed, and over seeds and images. "resolved": p below 0.05 after Holm's correction for the number
    of comparisons; "interim": planned runs are missing. None if there is nothing to compare.
    """
    comparisons = compared(group)
    rows = [_difference(each) for each in comparisons]
    waiting = [each.waiting for each in comparisons]
    corrected = stats.holm([row["p (Holm)"] for row in rows], waiting)
    alpha = 0.05 / max(1, np.isfinite(corrected).sum() + sum(waiting))
    for row, each, p in zip(rows, comparisons, corrected):
        row["state"] = stats.state(p, row["p (Holm)"], each.waiting)
        a, b = each.a.accuracies, each.b.accuracies
        needed = stats.seeds_to_resolve(a, b, alpha) if p >= 0.05 else np.nan
        row |= {"p (Holm)": p, stats.NEEDED: needed}
    return Table(rows, f"{groups.title(group)}; {DIFFERENCES}") if rows else None


def _difference(each: Comparison) -> dict:
    """The columns of one comparison, with its p not yet corrected."""
    sides = [(method.name, by_run(method.runs, ACCURACY)) for method in (each.a, each.b)]
    d = stats.welch(each.a.accuracies, each.b.accuracies)
    pairs = stats.paired(each.a.accuracies, each.b.accuracies)
    images = "–"
    if each.verdicts is not None:
        own, other = each.verdicts
        over_both = stats.crossed(100.0 * own - 100.0 * other)
        images = span(over_both.low, over_both.high)
    return {
        "difference": each.label,
        "of": each.a.mixer,
        "points": difference(d, *sides),
        "low": d.low,
        "high": d.high,
        "95 % interval": span(d.low, d.high),
        "n": ", ".join(map(_count, (each.a, each.b))),
        "paired": span(pairs.low, pairs.high),
        "paired_low": pairs.low,
        "paired_high": pairs.high,
        "r": pairs.correlation,
        "seeds and images": images,
        "p (Holm)": d.p,
    }


def _count(method):
    """'10', or '9 (1 diverged)'."""
    return f"{len(method.runs)} ({method.lost} diverged)" if method.lost else f"{len(method.runs)}"
