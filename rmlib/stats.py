"""Differences between methods with their intervals: over seeds, from scipy and statsmodels."""

import math
from dataclasses import dataclass

import numpy as np
from scipy import stats
from statsmodels.stats.multitest import multipletests


@dataclass(frozen=True)
class Difference:
    """Mean of A minus mean of B, its 95 % interval from ``low`` to ``high``, two-sided p, and the numbers of runs behind it.

    ``correlation`` of the pairs is NaN for unpaired runs. Without a spread (n < 2) interval and p are NaN.
    """

    mean: float
    low: float
    high: float
    p: float
    n: tuple[int, int]
    correlation: float = math.nan


def mean_std(values) -> tuple[float, float]:
    """Mean and sample standard deviation (n - 1) of some runs; NaN where there are too few."""
    values = np.asarray(values, dtype=float)
    return (values.mean() if len(values) else math.nan), (values.std(ddof=1) if len(values) > 1 else math.nan)


def welch(a, b) -> Difference:
    """A minus B for independent runs with unequal spread, one number per run: Welch's t test, 95 % interval."""
    a, b = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    mean, count = mean_std(a)[0] - mean_std(b)[0], (len(a), len(b))
    if min(count) < 2 or a.std() == b.std() == 0:
        return Difference(mean, math.nan, math.nan, math.nan, count)
    test = stats.ttest_ind(a, b, equal_var=False)
    low, high = test.confidence_interval(0.95)
    return Difference(mean, float(low), float(high), float(test.pvalue), count)


def paired(a, b) -> Difference:
    """A minus B for runs in pairs, such as equal seeds: the t test of the differences, 95 % interval, with the
    correlation of the pairs.

    Raises:
        ValueError: a and b have different lengths.
    """
    a, b = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if len(a) != len(b):
        raise ValueError(f"{len(a)} and {len(b)} runs are not pairs")
    mean, count = mean_std(a - b)[0], (len(a), len(b))
    correlation = float(np.corrcoef(a, b)[0, 1]) if len(a) > 1 and a.std() and b.std() else math.nan
    if len(a) < 2 or (a - b).std() == 0:
        return Difference(mean, math.nan, math.nan, math.nan, count, correlation)
    test = stats.ttest_rel(a, b)
    low, high = test.confidence_interval(0.95)
    return Difference(mean, float(low), float(high), float(test.pvalue), count, correlation)


def crossing(sizes, values, target: float) -> float:
    """The first size at which a curve, straight between its points (sizes ascending), falls to ``target``; NaN if it never does."""
    sizes, values = np.asarray(sizes, dtype=float), np.asarray(values, dtype=float)
    for i in np.flatnonzero((values[:-1] >= target) & (values[1:] <= target)):
        fall = values[i] - values[i + 1]
        return float(sizes[i] + (sizes[i + 1] - sizes[i]) * ((values[i] - target) / fall if fall else 0))
    return math.nan


def fit_size(sizes, curves: list, reported: list) -> tuple[float, float]:
    """The one size at which several measured curves come closest to several reported values, in units of their standard errors.

    Args:
        sizes: ascending, at least two. curves: for each value an array (runs, sizes) of at least two runs; between sizes mean and
            variance are straight. reported: for each (mean, sample standard deviation, runs).

    Returns:
        The size, and the p of the chi-squared that is left (degrees of freedom: values - 1): below 0.05 no one size fits.
    """
    grid, misfit = np.linspace(sizes[0], sizes[-1], 2001), 0.0
    for runs, (mean, std, count) in zip(curves, reported):
        runs = np.asarray(runs, dtype=float)
        ours = np.interp(grid, sizes, runs.mean(0))
        variance = np.interp(grid, sizes, runs.var(0, ddof=1) / len(runs)) + std**2 / count
        misfit = misfit + (ours - mean) ** 2 / np.maximum(variance, 1e-12)
    best = int(np.argmin(misfit))
    return float(grid[best]), float(stats.chi2.sf(misfit[best], len(curves) - 1)) if len(curves) > 1 else math.nan


def interval(values) -> tuple[float, float]:
    """95 % interval of the mean of some runs by Student's t; NaN for fewer than two."""
    mean, std = mean_std(values)
    half = stats.t.ppf(0.975, len(values) - 1) * std / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return mean - half, mean + half


def holm(p_values) -> np.ndarray:
    """p values corrected for their number by Holm's method; NaN stands for a test that was not made and does not count."""
    p_values = np.asarray(p_values, dtype=float)
    corrected, made = np.full_like(p_values, math.nan), ~np.isnan(p_values)
    if made.any():
        corrected[made] = multipletests(p_values[made], method="holm")[1]
    return corrected
