"""Differences between methods with their intervals, over seeds, images, or both, and how many seeds
a difference needs; from scipy and statsmodels.

There is no percentile bootstrap here. Resamples of three seeds never leave the range of the three
values, so whatever level is asked for, the interval misses the truth whenever all three lie on one
side of it: in a quarter of cases or more, not in a twentieth (simulated in the tests). Student's t
pays for the small number with a wider interval, and assumes that the spread of seeds is about
normal.
"""

import math
from bisect import bisect_left
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import special, stats
from scipy.optimize import brentq
from statsmodels.stats.contingency_tables import mcnemar as exact_mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

# heading of the column of seeds_to_resolve: adding seeds until it is resolved finds one too often
NEEDED = "seeds of a new study"


@dataclass(frozen=True)
class Difference:
    """Mean of A minus mean of B, or a change from one such to another.

    With its 95 % interval from ``low`` to ``high``, two-sided p, and the numbers of runs behind it.

    ``correlation`` of the pairs is NaN for unpaired runs and for fewer than three pairs. Without a
    spread (n < 2) interval and p are NaN.
    """

    mean: float
    low: float
    high: float
    p: float
    n: tuple[int, ...]
    correlation: float = math.nan


def mean_std(values) -> tuple[float, float]:
    """Mean and sample standard deviation (n - 1) of some runs; NaN where there are too few."""
    values = np.asarray(list(values), dtype=float)
    mean = values.mean() if len(values) else math.nan
    return mean, values.std(ddof=1) if len(values) > 1 else math.nan


def matched(a, b) -> tuple:
    """The rows of equal seeds of two Series or DataFrames that are indexed by the seed."""
    seeds = a.index.intersection(b.index)
    return a.loc[seeds], b.loc[seeds]


def _alike(values, size=None) -> bool:
    """Whether numbers are equal up to rounding, of numbers as large as ``size`` (default: the
    largest of them): there is then no spread to measure by.
    """
    return bool(np.ptp(values) <= 1e-12 * (np.abs(values).max() if size is None else size))


def _by_t(mean, n, test, correlation=math.nan) -> Difference:
    """A difference with what a t test of scipy says of it; interval and p are NaN without one."""
    if test is None:
        return Difference(mean, math.nan, math.nan, math.nan, n, correlation)
    low, high = test.confidence_interval(0.95)
    return Difference(mean, float(low), float(high), float(test.pvalue), n, correlation)


def welch(a, b) -> Difference:
    """A minus B for independent runs with unequal spread, one number per run: Welch's t test."""
    a, b = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    known = min(len(a), len(b)) > 1 and not (_alike(a) and _alike(b))
    # from a side without spread to 0: scipy warns of numbers that differ by their rounding alone
    zero = next((each[0] for each in (a, b) if known and _alike(each)), 0.0)
    test = stats.ttest_ind(a - zero, b - zero, equal_var=False) if known else None
    return _by_t(mean_std(a)[0] - mean_std(b)[0], (len(a), len(b)), test)


def change(a, b, c, d) -> Difference:
    """(A - B) - (C - D) of four groups of independent runs with unequal spread.

    By Welch's t with Satterthwaite's degrees of freedom, as :func:`welch` for two groups. Each
    group has one number per run. Without a spread, or with a single run, interval and p are NaN.
    """
    groups = [np.asarray(each, dtype=float) for each in (a, b, c, d)]
    means, n = [mean_std(each)[0] for each in groups], tuple(map(len, groups))
    mean = (means[0] - means[1]) - (means[2] - means[3])
    if min(n) < 2 or all(map(_alike, groups)):
        return _by_t(mean, n, None)
    parts = [each.var(ddof=1) / len(each) for each in groups]
    freedom = sum(parts) ** 2 / sum(part**2 / (size - 1) for part, size in zip(parts, n))
    error = math.sqrt(sum(parts))
    half, p = stats.t.ppf(0.975, freedom) * error, 2 * stats.t.sf(abs(mean) / error, freedom)
    return Difference(mean, float(mean - half), float(mean + half), float(p), n)


def paired(a, b) -> Difference:
    """A minus B for the runs of equal seeds, two Series indexed by the seed: the t test of the
    differences, with the correlation of the pairs.
    """
    a, b = (np.asarray(each, dtype=float) for each in matched(a, b))
    test, correlation = None, math.nan
    if len(a) > 2 and not (_alike(a) or _alike(b)):
        correlation = float(np.corrcoef(a, b)[0, 1])
    if len(a) > 1 and not _alike(a - b, np.abs([a, b]).max()):
        test = stats.ttest_rel(a, b)
    return _by_t(mean_std(a - b)[0], (len(a), len(b)), test, correlation)


def seeds_needed(difference: float, std_a: float, std_b: float, alpha: float = 0.05) -> float:
    """The least number of seeds of each method with which Welch's t test, two-sided at ``alpha``,
    resolves a difference of this size and direction in 80 % of cases; by scipy's noncentral t with
    Welch's degrees of freedom (statsmodels' TTestIndPower knows equal spreads only).

    It answers "how many, if the truth is what was seen": difference and spread from three seeds are
    uncertain, and so is this number.

    Args:
        difference: of the means;
        std_a, std_b: sample standard deviations over the seeds of each method, in the same unit.

    Returns:
        A whole number of at least 2; infinity for no difference; NaN where the difference or a
        spread is unknown, or nothing spreads.
    """
    spread = math.hypot(std_a, std_b)
    if not spread > 0 or difference != difference:
        return math.nan
    # per seed beyond the first: 1 if one method spreads alone, 2 if both do alike
    freedom = spread**4 / ((std_a**2) ** 2 + (std_b**2) ** 2)

    def resolves(seeds):
        degrees = (seeds - 1) * freedom
        shift = abs(difference) / spread * math.sqrt(seeds)
        return stats.nct.sf(stats.t.isf(alpha / 2, degrees), degrees, shift) >= 0.8

    # the power grows with the seeds
    most = 10**9
    seeds = 2 + bisect_left(range(2, most), True, key=resolves)
    return float(seeds) if seeds < most else math.inf


def seeds_to_resolve(a, b, alpha: float = 0.05, margin: float = 0.0) -> float:
    """:func:`seeds_needed` if the means of two samples, their difference raised by ``margin``, and
    their spreads are the truth; NaN from fewer than three values, or where no number would do.
    """
    if min(len(a), len(b)) < 3:
        return math.nan
    (mean_a, std_a), (mean_b, std_b) = mean_std(a), mean_std(b)
    needed = seeds_needed(mean_a - mean_b + margin, std_a, std_b, alpha)
    return needed if math.isfinite(needed) else math.nan


def state(p: float, uncorrected: float = math.nan, waiting: bool = False) -> str:
    """'resolved' for a p below 0.05, else 'unresolved', and whether a correction made it so;
    'interim' where planned runs are missing.
    """
    if waiting:
        return "interim"
    made_so = " after Holm's correction" if uncorrected < 0.05 else ""
    return "resolved" if p < 0.05 else f"unresolved{made_so}"


class TwoNetworks(NamedTuple):
    """Accuracy of one network minus that of another, and p of no difference between these two."""

    points: float
    p: float


def mcnemar(a, b) -> TwoNetworks:
    """McNemar's exact test of two networks: if both were equally good, the images that only one has
    right would fall to either like a fair coin.

    It says nothing about two methods: the next pair of seeds may say the opposite.

    Args:
        a, b: (images,) bool, the verdicts on the same images in the same order.
    """
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    test = exact_mcnemar([[0, only_a], [only_b, 0]], exact=True)
    return TwoNetworks(100 * (only_a - only_b) / len(a), float(test.pvalue))


def crossed(values) -> Difference:
    """The mean of values on the same images by several runs, with an interval over runs and images
    both: other seeds, other images.

    Runs and images are crossed random effects: the mean's variance is that of the runs' means plus
    what the images add to it beyond the rest, (MS_images - MS_rest) / (runs x images). Each part
    has its own t quantile and the squares of the two half widths are added, because a pooled
    quantile covers too seldom with two or three runs (simulated in the tests). With one run the
    interval is over images alone, and says nothing about other seeds.

    Args:
        values: (runs, images), at least one run and two images; for two methods the differences of
            runs in pairs, such as 100 (verdict of A - verdict of B) with verdicts of 0 and 1, whose
            mean is the difference of the accuracies in points.

    Returns:
        A Difference whose p is that of a mean of 0, and whose n is (runs, images); without any
        spread interval and p are NaN.
    """
    values = np.asarray(values, dtype=float)
    runs, images = values.shape
    mean, by_run, by_image = float(values.mean()), values.mean(1), values.mean(0)
    # (variance of the mean, degrees of freedom)
    parts, rest = [], 0.0
    if runs > 1:
        parts.append((by_run.var(ddof=1) / runs, runs - 1))
        squares = ((values - by_run[:, None] - by_image + mean) ** 2).sum()
        rest = squares / ((runs - 1) * (images - 1)) / (runs * images)
    parts.append((max(by_image.var(ddof=1) / images - rest, 0.0), images - 1))

    def half(level):
        # scipy.stats.t.isf without its checks, which took a fifth of a report's time
        squares = [part * special.stdtrit(degrees, level / 2) ** 2 for part, degrees in parts]
        return math.sqrt(sum(squares))

    if not half(0.05) > 0:
        return Difference(mean, math.nan, math.nan, math.nan, (runs, images))
    p = 1e-12 if mean else 1.0
    if mean and half(p) >= abs(mean):
        p = float(brentq(lambda level: half(level) - abs(mean), p, 1.0))
    return Difference(mean, mean - half(0.05), mean + half(0.05), p, (runs, images))


def share(values) -> tuple[float, float]:
    """95 % interval of a share in percent, inside [0, 100], over runs and images both: Wilson's, of
    as many independent images as would spread the mean as :func:`crossed` finds it to spread.

    Args:
        values: (runs, images), each 0 or 100, or between where several answers are shared.
    """
    values = np.asarray(values, dtype=float)
    found, count = crossed(values), values.shape[1]
    part, half = found.mean / 100, (found.high - found.mean) / 100
    # of several runs that spread: fewer than there are, as they saw the same images
    if len(values) > 1 and half > 0:
        count = min(stats.norm.ppf(0.975) ** 2 * part * (1 - part) / half**2, values.size)
    low, high = proportion_confint(part * count, count, method="wilson")
    return 100 * float(low), 100 * float(high)


def interval(values) -> tuple[float, float]:
    """95 % interval of the mean of some runs by Student's t; NaN for fewer than two."""
    if len(values) < 2:
        return math.nan, math.nan
    mean, std = mean_std(values)
    half = stats.t.ppf(0.975, len(values) - 1) * std / math.sqrt(len(values))
    return mean - half, mean + half


def holm(p_values, waiting=()) -> np.ndarray:
    """p values corrected for their number by Holm's method; NaN stands for a test that was not made
    and does not count.

    Args:
        waiting: for each, whether its planned runs are missing: it counts as p = 1, and has no p
            itself.
    """
    p_values, waiting = np.array(p_values, dtype=float), np.array(waiting, dtype=bool)
    if len(waiting):
        p_values[waiting] = 1.0
    corrected, made = np.full_like(p_values, math.nan), ~np.isnan(p_values)
    if made.any():
        corrected[made] = multipletests(p_values[made], method="holm")[1]
    if len(waiting):
        corrected[waiting] = math.nan
    return corrected
