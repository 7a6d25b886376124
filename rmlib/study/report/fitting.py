"""The size of perturbation at which curves of accuracy under attack meet reported numbers."""

import math

import numpy as np
from scipy.interpolate import PchipInterpolator


def _between(sizes, values):
    """A monotone curve through points, a function of sizes; over log(1 + size), where accuracy
    under attack bends least.
    """
    curve = PchipInterpolator(np.log1p(sizes), values)
    return lambda at: curve(np.log1p(at))


def crossing(sizes, values, target: float) -> float:
    """The first size at which a curve through points (sizes ascending from 0 or more) falls to
    ``target``; NaN if it never does.
    """
    if len(sizes) < 2:
        return math.nan
    grid = np.linspace(sizes[0], sizes[-1], 20_001)
    curve = _between(np.asarray(sizes, dtype=float), np.asarray(values, dtype=float))(grid)
    below = np.flatnonzero((curve[:-1] >= target) & (curve[1:] <= target))
    return float(grid[below[0]]) if len(below) else math.nan


def fit_size(
    sizes, curves: list, reported: list, draws: int = 2000, seed: int = 0
) -> tuple[float, float, float, float]:
    """The one size at which several measured curves come closest to several reported values, in
    units of their standard errors.

    Args:
        sizes: ascending, at least two.
        curves: for each value an array (runs, sizes) of at least two runs.
        reported: for each (mean, sample standard deviation, runs).
        draws, seed: of the simulation behind p and interval.

    Returns:
        The size; the lower and upper end of its 95 % interval; and p, the probability of a misfit
        at least as large if this one size were the truth (at most 0.05: no one size fits). Interval
        and p come from simulated means and spreads around the curves at the size found, since
        spreads of two to six runs are too uncertain for a chi-squared distribution.
    """
    sizes, random = np.asarray(sizes, dtype=float), np.random.default_rng(seed)
    grid = np.expm1(np.linspace(np.log1p(sizes[0]), np.log1p(sizes[-1]), 1001))
    # (values, grid)
    ours = np.array([_between(sizes, np.mean(runs, 0))(grid) for runs in curves])
    spread = np.array([_between(sizes, np.std(runs, 0, ddof=1))(grid) for runs in curves])
    count = np.array([len(runs) for runs in curves])[:, None]
    means, stds, theirs = np.array(reported, dtype=float).T[..., None]

    def misfit(curve, spread, means, stds):
        """(..., values, grid) -> (..., grid)."""
        variance = np.maximum(spread**2 / count + stds**2 / theirs, 1e-12)
        return ((curve - means) ** 2 / variance).sum(-2)

    observed = misfit(ours, spread, means, stds)
    best = int(observed.argmin())

    def simulate(noise, block):
        """Misfits (draws, grid) of curves measured and values reported again, as if the size found
        were the truth.
        """
        shape = (len(block), *means.shape)
        again = ours + spread[:, best : best + 1] * noise(count, shape) / np.sqrt(count)
        told = ours[:, best : best + 1] + stds * noise(theirs, shape) / np.sqrt(theirs)
        scale = [np.sqrt(random.chisquare(n - 1, shape) / (n - 1)) for n in (count, theirs)]
        return misfit(again, spread * scale[0], told, stds * scale[1])

    found, least = [], []
    for block in np.array_split(np.arange(draws), 20):
        # p: the spreads taken as true
        least.append(simulate(lambda n, shape: random.standard_normal(shape), block).min(1))
        # interval: as uncertain as they are
        best_again = simulate(lambda n, shape: random.standard_t(n - 1, shape), block).argmin(1)
        found.append(grid[best_again])
    low, high = np.percentile(np.concatenate(found), (2.5, 97.5))
    p = (1 + (np.concatenate(least) >= observed[best]).sum()) / (1 + draws)
    return float(grid[best]), float(low), float(high), float(p)
