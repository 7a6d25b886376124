"""Tables of accuracy: means, differences between methods, pairs of networks, precisions."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from rmlib.packed import unpack_bits
from rmlib.params import MIXERS
from rmlib.study.names import LABELS, METHOD
from rmlib.study.report import groups, stats
from rmlib.study.report.claims import side_name
from rmlib.study.report.groups import DEFAULTS
from rmlib.study.report.values import Table, average, by_run, difference, span

ACCURACY = "metrics.accuracy"
METRICS = ("accuracy", "nll", "ece")
DIFFERENCES = (
    "accuracy in points; 95 % interval: Welch's t over seeds; paired: over equal seeds, r their"
    " correlation; seeds and images: over both, from the verdicts of equal seeds on single images"
    " (over images alone where there is one seed); p of Welch's t corrected by Holm for the"
    " comparisons of this table, the intervals are not; seeds to resolve: of each method, if"
    " difference and spread are what was seen, in 80 % of cases, at 5 % over the number of"
    " comparisons"
)


def summary(group) -> Table:
    """Mean, sample standard deviation and n of every method of an experiment; diverged runs are
    counted, not averaged.
    """
    rows = []
    for row, runs in groups.methods(group):
        good = runs[runs["status"] == "done"]
        row |= {"n": len(good), "diverged": len(runs) - len(good)}
        for metric in METRICS:
            row[metric] = average(by_run(good, f"metrics.{metric}"))
        rows.append(row)
    return Table(rows, groups.caption(group))


@dataclass(eq=False)
class Comparison:
    """Method A minus method B, by their finished runs (DataFrames indexed by the seed)."""

    label: str
    of: str  # mixer of B, the colour in figures
    a: pd.DataFrame
    b: pd.DataFrame

    @property
    def accuracies(self) -> tuple[pd.Series, pd.Series]:
        """The accuracies of A and of B, a Series over seeds each."""
        return self.a[ACCURACY], self.b[ACCURACY]

    @property
    def sides(self) -> list[tuple[str, dict]]:
        """(name, run_id -> accuracy) of A and of B."""
        method = ["config.mixer", "config.clean_weight"]
        both = self.a, self.b
        return [(side_name(runs[method].iloc[0]), by_run(runs, ACCURACY)) for runs in both]

    @cached_property
    def verdicts(self):
        """The verdicts of the networks of equal seeds of A and of B on the same test images, two
        bool arrays (seeds, images); None if no two saw the same.
        """
        a, b = stats.matched(self.a, self.b)
        same = a["correct"].notna() & b["correct"].notna()
        for name in ("data.checksum", "data.test_images"):
            same &= a[name] == b[name]
        a, b = a[same], b[same]
        if not len(a) or a["data.test_images"].nunique() > 1:
            return None
        images = int(a["data.test_images"].iloc[0])
        a, b = (np.stack([unpack_bits(x, images) for x in runs["correct"]]) for runs in (a, b))
        return a, b


def compared(group) -> list[Comparison]:
    """The comparisons of an experiment, each of methods with the same weight of the clean loss:
    Region Mixup minus each other method, and every method minus itself without the clean loss.
    """
    found = {}
    others = [name for name in METHOD if name not in ("mixer", "clean_weight")]
    for row, runs in groups.methods(group):
        first = runs.iloc[0]
        good = runs[runs["status"] == "done"]
        if len(good) and all(first[f"config.{name}"] == DEFAULTS[name] for name in others):
            key = row["mixer"], first["config.clean_weight"]
            found[key] = good.set_index("config.seed").sort_index()
    weights = sorted({weight for _, weight in found if weight}, reverse=True)
    pairs = []
    for weight in weights:
        more = f", clean_weight={weight:g}" if len(weights) > 1 else ""
        own = "region_mixup", weight
        for mixer in MIXERS[:-1]:
            pairs.append((f"{LABELS[own[0]]} - {LABELS[mixer]}{more}", own, (mixer, weight)))
        for mixer in MIXERS:
            words = f"{LABELS[mixer]}: with - without the clean loss{more}"
            pairs.append((words, (mixer, weight), (mixer, 0)))
    known = [pair for pair in pairs if pair[1] in found and pair[2] in found]
    return [Comparison(label, b[0], found[a], found[b]) for label, a, b in known]


def differences(group) -> Table | None:
    """Differences in accuracy within an experiment, see :func:`compared`, by Welch's t, paired by
    seed, and over seeds and images. "resolved": p below 0.05 after Holm's correction for the number
    of comparisons. None if there is nothing to compare.
    """
    comparisons = compared(group)
    rows = [_difference(each) for each in comparisons]
    corrected = stats.holm([row["p (Holm)"] for row in rows])
    alpha = 0.05 / max(1, np.isfinite(corrected).sum())
    for row, each, p in zip(rows, comparisons, corrected):
        needed = stats.seeds_to_resolve(*each.accuracies, alpha) if p >= 0.05 else np.nan
        row |= {"p (Holm)": round(p, 4), "state": stats.state(p), "seeds to resolve": needed}
    return Table(rows, f"{groups.title(group)}; {DIFFERENCES}") if rows else None


def _difference(each: Comparison) -> dict:
    """The columns of one comparison, with its p not yet corrected."""
    d = stats.welch(*each.accuracies)
    pairs = stats.paired(*stats.matched(*each.accuracies))
    images = "–"
    if each.verdicts is not None:
        own, other = each.verdicts
        over_both = stats.crossed(100.0 * own - 100.0 * other)
        images = span(over_both.low, over_both.high)
    return {
        "difference": each.label,
        "of": each.of,
        "points": difference(d, *each.sides),
        "low": d.low,
        "high": d.high,
        "95 % interval": span(d.low, d.high),
        "n": f"{d.n[0]}, {d.n[1]}",
        "paired": span(pairs.low, pairs.high),
        "paired_low": pairs.low,
        "paired_high": pairs.high,
        "r": round(pairs.correlation, 2),
        "seeds and images": images,
        "p (Holm)": d.p,
    }


def difference_row(label: str, of: str, a, b) -> dict:
    """One row for :func:`rmlib.study.figures.forest`: Welch's difference of two lists of accuracies
    in percent, and whether its p, uncorrected, is below 0.05.
    """
    d = stats.welch(list(a), list(b))
    bounds = {"points": d.mean, "low": d.low, "high": d.high, "p": d.p}
    return {"difference": label, "of": of, **bounds, "state": stats.state(d.p)}
