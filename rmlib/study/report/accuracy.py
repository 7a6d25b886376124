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
from rmlib.study.report.groups import DEFAULTS
from rmlib.study.report.values import Table, Value, average, difference, span
from rmlib.study.runs import collection

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
            row[metric] = average(zip(good["run_id"], good.get(f"metrics.{metric}", [])))
        rows.append(row)
    return Table(rows)


@dataclass(eq=False)
class Comparison:
    """Method A minus method B, by their finished runs (DataFrames indexed by the seed)."""

    label: str
    of: str  # mixer of B, the colour in figures
    a: pd.DataFrame
    b: pd.DataFrame

    @property
    def accuracies(self):
        """The accuracies of A and of B, a Series over seeds each."""
        return self.a["metrics.accuracy"], self.b["metrics.accuracy"]

    @property
    def sides(self) -> list[tuple[str, dict]]:
        """(name, run_id -> accuracy) of A and of B."""
        found = []
        for runs in (self.a, self.b):
            first = runs.iloc[0]
            name = f"{LABELS[first['config.mixer']]}, clean_weight={first['config.clean_weight']:g}"
            found.append((name, dict(zip(runs["run_id"], runs["metrics.accuracy"]))))
        return found

    @cached_property
    def verdicts(self):
        """The verdicts of the networks of equal seeds of A and of B on the same test images, two
        bool arrays (seeds, images); None if no two saw the same.
        """
        both = self.a.index.intersection(self.b.index)
        a, b = self.a.loc[both], self.b.loc[both]
        same = a["correct"].notna() & b["correct"].notna()
        for name in ("data.checksum", "data.test_images"):
            same &= a[name] == b[name]
        a, b = a[same], b[same]
        if not len(a) or a["data.test_images"].nunique() > 1:
            return None
        images = int(a["data.test_images"].iloc[0])
        return tuple(
            np.stack([unpack_bits(text, images) for text in runs["correct"]]) for runs in (a, b)
        )


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
    region = ("region_mixup", True)
    pairs = [
        (f"{LABELS['region_mixup']} - {LABELS[mixer]}", region, (mixer, True))
        for mixer in MIXERS
        if mixer != "region_mixup"
    ]
    pairs += [
        (f"{LABELS[mixer]}: with - without the clean loss", (mixer, True), (mixer, False))
        for mixer in MIXERS
    ]
    return [
        Comparison(label, b[0], found[a], found[b])
        for label, a, b in pairs
        if a in found and b in found
    ]


def differences(group) -> Table | None:
    """Differences in accuracy within an experiment, see :func:`compared`, by Welch's t, paired by
    seed, and over seeds and images. "resolved": p below 0.05 after Holm's correction for the number
    of comparisons. None if there is nothing to compare.
    """
    rows = []
    comparisons = compared(group)
    for each in comparisons:
        a, b = each.accuracies
        both = a.index.intersection(b.index)
        d, pairs = stats.welch(a, b), stats.paired(a[both], b[both])
        images = "–"
        if each.verdicts is not None:
            own, other = each.verdicts
            over_both = stats.crossed(100.0 * own - 100.0 * other)
            images = span(over_both.low, over_both.high)
        rows.append(
            {
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
        )
    corrected = stats.holm([row["p (Holm)"] for row in rows])
    alpha = 0.05 / max(1, np.isfinite(corrected).sum())
    for row, each, p in zip(rows, comparisons, corrected):
        row |= {
            "p (Holm)": round(p, 3),
            "state": stats.state(p),
            "seeds to resolve": (
                stats.seeds_to_resolve(*each.accuracies, alpha) if p >= 0.05 else np.nan
            ),
        }
    return Table(rows) if rows else None


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
        rows.append(
            {
                "two networks": each.label,
                "pairs": Value(len(found), dict(each.sides), "made"),
                "better": sum(points > 0 for points in told),
                "worse": sum(points < 0 for points in told),
                "not told apart": len(found) - len(told),
                "points of each pair": ", ".join(f"{pair.points:+.2f}" for pair in found),
                "p of each pair": ", ".join(
                    f"{pair.p:.3f}" if pair.p >= 0.001 else "<0.001" for pair in found
                ),
            }
        )
    return Table(rows) if rows else None


def accuracy_curves(root: Path) -> dict[str, list[tuple[int, float]]]:
    """Test accuracy in percent on the way of every run below a folder: run_id -> [(epoch,
    accuracy)], empty where the test set was not looked at.
    """
    found = sorted(collection.find(root), key=lambda record: record.finished)
    return {
        record.run_id: [
            (row["epoch"], row["test_accuracy"])
            for row in record.history
            if row.get("test_accuracy") is not None
        ]
        for record in found
    }


def told_twice(group, curves: dict):
    """The same runs told at their last epoch, and at their best epoch on the test set, which nobody
    may do: a DataFrame with two rows for each comparison of :func:`compared` (see
    :func:`difference_row`), or None if no two methods have curves of two points or more.

    Args:
        curves: of :func:`accuracy_curves`.
    """
    rows = []
    for each in compared(group):
        seen = [
            [[accuracy for _, accuracy in curves.get(run_id, ())] for run_id in runs["run_id"]]
            for runs in (each.a, each.b)
        ]
        a, b = ([curve for curve in side if len(curve) > 1] for side in seen)
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
            full, half = (
                own[own["config.precision"] == name].set_index("config.seed").sort_index()
                for name in ("fp32", "bf16")
            )
            seeds = full.index.intersection(half.index)
            if len(seeds) > 1:
                rows.append(row | _precision(full.loc[seeds], half.loc[seeds]))
        if rows:
            title = groups.title(group).removesuffix(", bfloat16")
            found.append(Table(rows, f"{title}; {PRECISIONS}; on {groups.hardware(group)}"))
    return found


def _precision(full, half) -> dict:
    """The columns of a method in both precisions, for runs of equal seeds."""
    d = stats.paired(half["metrics.accuracy"], full["metrics.accuracy"])
    full, half = (dict(zip(runs["run_id"], runs["metrics.accuracy"])) for runs in (full, half))
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
