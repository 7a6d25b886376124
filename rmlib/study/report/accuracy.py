"""Tables of accuracy: means, differences between methods, pairs of networks, precisions."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from rmlib.packed import unpack_bits
from rmlib.params import MIXERS
from rmlib.study.names import LABELS, METHOD, experiment
from rmlib.study.report import groups, stats
from rmlib.study.report.claims import side_name
from rmlib.study.report.groups import DEFAULTS
from rmlib.study.report.values import Table, Value, average, by_run, difference, span
from rmlib.study.runs import collection

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
NETWORKS = (
    "McNemar's exact test of two networks at a time, those of equal seeds, on all test images;"
    " better, worse: pairs in which p is below 0.05, uncorrected. It is about these networks: of"
    " two methods it says nothing, which is why pairs of the same methods may contradict each other"
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
    """The comparisons of an experiment: Region Mixup with the clean loss minus each other method
    with it, and every method with the clean loss minus without.
    """
    found = {}
    others = [name for name in METHOD if name not in ("mixer", "clean_weight")]
    for row, runs in groups.methods(group):
        first = runs.iloc[0]
        good = runs[runs["status"] == "done"]
        if len(good) and all(first[f"config.{name}"] == DEFAULTS[name] for name in others):
            key = row["mixer"], first["config.clean_weight"] > 0
            found[key] = good.set_index("config.seed").sort_index()
    region = "region_mixup"
    pairs = [
        (f"{LABELS[region]} - {LABELS[mixer]}", (region, True), (mixer, True))
        for mixer in MIXERS
        if mixer != region
    ]
    pairs += [
        (f"{LABELS[mixer]}: with - without the clean loss", (mixer, True), (mixer, False))
        for mixer in MIXERS
    ]
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
        row |= {"p (Holm)": round(p, 3), "state": stats.state(p), "seeds to resolve": needed}
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


def networks(group) -> Table | None:
    """Two networks of equal seed at a time, for the comparisons of :func:`compared`: how often the
    first is better, worse, or not told apart by McNemar's test on single images. None if there are
    no such pairs.
    """
    rows = []
    for each in compared(group):
        if each.verdicts is None:
            continue
        found = [stats.mcnemar(*pair) for pair in zip(*each.verdicts)]
        told = [pair.points for pair in found if pair.p < 0.05]
        p_values = [f"{pair.p:.3f}" if pair.p >= 0.001 else "<0.001" for pair in found]
        row = {
            "two networks": each.label,
            "pairs": Value(len(found), dict(each.sides), "made"),
            "better": sum(points > 0 for points in told),
            "worse": sum(points < 0 for points in told),
            "not told apart": len(found) - len(told),
            "points of each pair": ", ".join(f"{pair.points:+.2f}" for pair in found),
            "p of each pair": ", ".join(p_values),
        }
        rows.append(row)
    return Table(rows, f"{groups.title(group)}; {NETWORKS}") if rows else None


def accuracy_curves(root: Path) -> dict[str, list[tuple[int, float]]]:
    """Test accuracy in percent on the way of every run below a folder: run_id -> [(epoch,
    accuracy)], empty where the test set was not looked at.
    """
    curves = {}
    for record in sorted(collection.find(root), key=lambda record: record.finished):
        seen = [row for row in record.history if "test_accuracy" in row]
        curves[record.run_id] = [(row["epoch"], row["test_accuracy"]) for row in seen]
    return curves


def told_twice(group, curves: dict):
    """The same runs told at their last epoch, and at their best epoch on the test set, which nobody
    may do: a DataFrame with two rows for each comparison of :func:`compared` (see
    :func:`difference_row`), or None if no two methods have curves of two points or more.

    Args:
        curves: of :func:`accuracy_curves`.
    """
    rows = []
    for each in compared(group):
        a, b = (
            [[y for _, y in curves[run_id]] for run_id in runs["run_id"] if len(curves[run_id]) > 1]
            for runs in (each.a, each.b)
        )
        if a and b:
            for when, pick in (("last epoch", lambda curve: curve[-1]), ("best epoch", max)):
                label = f"{each.label}, {when}"
                rows.append(difference_row(label, each.of, map(pick, a), map(pick, b)))
    return pd.DataFrame(rows) if rows else None


def difference_row(label: str, of: str, a, b) -> dict:
    """One row for :func:`rmlib.study.figures.forest`: Welch's difference of two lists of accuracies
    in percent, and whether its p, uncorrected, is below 0.05.
    """
    d = stats.welch(list(a), list(b))
    bounds = {"points": d.mean, "low": d.low, "high": d.high, "p": d.p}
    return {"difference": label, "of": of, **bounds, "state": stats.state(d.p)}


PRECISIONS = (
    "accuracy after training in each precision, evaluated in float32; mean ± sample standard"
    " deviation over n seeds; bfloat16 - float32 in points, paired by seed; equal within the"
    " spread: its interval lies within one standard deviation of the float32 seeds"
)


def precisions(runs) -> list[Table]:
    """Training in bfloat16 beside float32: accuracy of runs that are equal in everything else,
    paired by seed, a table for each experiment.

    "equal within the spread": the 95 % interval of the paired difference lies within one sample
    standard deviation of the float32 seeds either way. "differs": it excludes 0, and is not within
    that.
    """
    if runs["config.precision"].nunique() < 2:
        return []
    names = [f"config.{name}" for name in experiment(DEFAULTS) if name != "precision"]
    found = []
    for group in groups.equal(runs[runs["status"] == "done"], names):
        rows = []
        for row, own in groups.methods(group):
            own = own.set_index("config.seed").sort_index()
            is_half = own["config.precision"] == "bf16"
            full, half = stats.matched(own[~is_half], own[is_half])
            if len(full) > 1:
                rows.append(row | _precision(full, half))
        if rows:
            title = groups.title(group).removesuffix(", bfloat16")
            found.append(Table(rows, f"{title}; {PRECISIONS}; on {groups.hardware(group)}"))
    return found


def _precision(full, half) -> dict:
    """The columns of a method in both precisions, for runs of equal seeds."""
    d = stats.paired(half[ACCURACY], full[ACCURACY])
    full, half = by_run(full, ACCURACY), by_run(half, ACCURACY)
    before = average(full)
    if -before.std <= d.low and d.high <= before.std:
        state = "equal within the spread"
    else:
        state = "differs" if d.low > 0 or d.high < 0 else "unresolved"
    return {
        "n": len(full),
        "float32 (%)": before,
        "bfloat16 (%)": average(half),
        "difference": difference(d, ("bfloat16", half), ("float32", full), as_text=True),
        "95 % interval": span(d.low, d.high),
        "state": state,
    }
