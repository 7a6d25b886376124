"""Intervals against independent recomputation and against simulation."""

import math
import warnings

import numpy as np
import pandas as pd
import pytest
from scipy import stats as scipy_stats
from statsmodels.stats.power import TTestIndPower

from rmlib.study.report import stats


def test_mean_and_sample_std():
    assert stats.mean_std([1, 2, 4]) == (pytest.approx(7 / 3), pytest.approx(math.sqrt(7 / 3)))
    assert (
        stats.mean_std([5])[0] == 5
        and math.isnan(stats.mean_std([5])[1])
        and math.isnan(stats.mean_std([])[0])
    )


def test_welch_by_hand():
    a, b = [3.0, 5.0, 4.0, 6.0], [1.0, 2.0, 1.5]
    va, vb = np.var(a, ddof=1) / 4, np.var(b, ddof=1) / 3
    freedom = (va + vb) ** 2 / (va**2 / 3 + vb**2 / 2)  # Welch and Satterthwaite
    half = scipy_stats.t.ppf(0.975, freedom) * math.sqrt(va + vb)
    d = stats.welch(a, b)
    assert d.mean == pytest.approx(3.0) and d.n == (4, 3)
    assert (d.low, d.high) == (pytest.approx(3 - half), pytest.approx(3 + half))
    mirrored = stats.welch(b, a)
    assert (mirrored.mean, mirrored.low, mirrored.high) == (
        pytest.approx(-d.mean),
        pytest.approx(-d.high),
        pytest.approx(-d.low),
    )


@pytest.mark.parametrize("even", [[100.0] * 3, [80.1, 80.1 + 2e-14, 80.1 - 2e-14]])
def test_a_side_without_spread_is_no_cause_for_a_warning(even):
    other = np.array([90.0, 91.0, 92.0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = [stats.welch(even, other), stats.welch(other, even)]
    half = scipy_stats.t.ppf(0.975, 2) / math.sqrt(3)
    for d, sign in zip(found, (1, -1)):
        assert d.mean == pytest.approx(sign * (even[0] - 91))
        assert (d.high - d.low) / 2 == pytest.approx(half), "the spread of the other side alone"


def test_a_change_beside_groups_without_a_spread_is_welchs_difference():
    a, b = np.array([1.0, 2.5, 3.0]), np.array([0.0, 0.5, 2.0, 1.0])
    found = stats.change(a, b, [7.0, 7.0], [3.0, 3.0, 3.0])
    test = scipy_stats.ttest_ind(a, b + 4, equal_var=False)
    assert (found.mean, found.p) == pytest.approx((a.mean() - b.mean() - 4, test.pvalue))
    assert (found.low, found.high) == pytest.approx(tuple(test.confidence_interval(0.95)))
    assert found.n == (3, 4, 2, 3)


def test_the_interval_of_a_change_covers_it_in_95_of_100_studies():
    """Spreads and sizes differ; four standard errors of a share of 4000."""
    random, covered = np.random.default_rng(0), 0
    for _ in range(4000):
        samples = (
            random.normal(m, s, n) for m, s, n in ((3, 1, 5), (1, 2, 5), (4, 1, 10), (3, 3, 5))
        )
        found = stats.change(*samples)
        covered += found.low < 1 < found.high
    assert covered / 4000 == pytest.approx(0.95, abs=4 * (0.95 * 0.05 / 4000) ** 0.5)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("last", [[0.3, 0.1 + 0.2], [0.3]])
def test_a_change_without_a_spread_or_of_one_run_has_no_interval(last):
    found = stats.change(*[[0.3, 0.1 + 0.2]] * 3, last)
    assert found.mean == pytest.approx(0) and np.isnan([found.low, found.high, found.p]).all()


def test_paired_is_the_interval_of_the_differences():
    a, b = pd.Series([80.0, 82.0, 81.0, 85.0]), pd.Series([79.0, 80.5, 80.0, 83.0, 0.0])
    d, pairs = stats.paired(a, b), b[:4]
    exact = scipy_stats.ttest_1samp(a - pairs, 0).confidence_interval()
    assert (d.low, d.high, d.n) == (pytest.approx(exact.low), pytest.approx(exact.high), (4, 4))
    assert d.correlation == pytest.approx(np.corrcoef(a, pairs)[0, 1])
    alone = stats.welch(a, pairs)
    assert d.high - d.low < alone.high - alone.low, "runs that rise and fall together gain by it"
    same = pd.Series([80.1, 82.3, 81.7])
    d = stats.paired(same, same - 0.3)
    assert d.mean == pytest.approx(0.3) and math.isnan(d.low) and math.isnan(d.p), (
        "the same difference up to rounding is no spread"
    )


@pytest.mark.parametrize(
    "a, b",
    [
        ([1.0], [2.0, 3.0]),
        ([], [1.0]),
        ([2.0, 2.0], [1.0, 1.0]),
        ([98.15] * 3, [98.2] * 3),
        ([0.1 + 0.2, 0.3], [0.3, 0.3]),
    ],
)
def test_without_a_spread_there_is_no_interval(a, b):
    d = stats.welch(a, b)
    assert math.isnan(d.low) and math.isnan(d.high) and math.isnan(d.p)
    assert not (d.low > 0 or d.high < 0), "nothing is resolved"


def test_resampling_three_seeds_is_no_interval():
    """Why there is no percentile bootstrap: 95 % asked for, at most three quarters given, since all
    resamples lie within the three values.
    """
    values = np.random.default_rng(0).normal(0, 1, (4000, 3))
    means = values[:, np.stack(np.meshgrid(*[range(3)] * 3), -1).reshape(-1, 3)].mean(
        2
    )  # all 27 resamples of each
    low, high = np.percentile(means, (2.5, 97.5), axis=1, method="inverted_cdf")
    assert 0.72 < ((low <= 0) & (high >= 0)).mean() < 0.78
    assert (
        0.94
        < np.mean([each[0] <= 0 <= each[1] for each in map(stats.interval, values[:1000])])
        < 0.965
    )


def resolved(difference, std_a, std_b, seeds, alpha=0.05, draws=20_000):
    """Share of simulated studies in which Welch's test resolves a true difference, in percent
    (noise: 0.3).
    """
    rng = np.random.default_rng(seeds)
    a, b = difference + rng.normal(0, std_a, (draws, seeds)), rng.normal(0, std_b, (draws, seeds))
    return 100 * (scipy_stats.ttest_ind(a, b, equal_var=False, axis=1).pvalue < alpha).mean()


@pytest.mark.parametrize(
    "difference, std_a, std_b, alpha",
    [
        (1.0, 1.0, 1.0, 0.05),
        (0.5, 1.0, 0.2, 0.05),
        (-0.5, 0.2, 1.0, 0.05),
        (1.0, 0.7, 1.0, 0.05 / 7),
        (3.0, 1.0, 0.1, 0.05),
        (0.3, 0.12, 0.05, 0.025),
    ],
)
def test_so_many_seeds_resolve_four_of_five_times_and_one_less_does_not(
    difference, std_a, std_b, alpha
):
    seeds = int(stats.seeds_needed(difference, std_a, std_b, alpha))
    assert resolved(difference, std_a, std_b, seeds, alpha) > 77, (
        "the degrees of freedom are Welch's approximation"
    )
    assert resolved(difference, std_a, std_b, seeds - 1, alpha) < 80


def test_wrong_numbers_of_seeds_are_caught():
    """The other method's spread forgotten, a normal distribution for Student's, one side for two:
    each promises too much.
    """
    quantiles = scipy_stats.norm.ppf(0.975) + scipy_stats.norm.ppf(0.8)
    wrong = (
        stats.seeds_needed(2.0, 0.5**0.5, 0.5**0.5),
        math.ceil(quantiles**2 * 2 / 2.0**2),
        stats.seeds_needed(2.0, 1.0, 1.0, alpha=0.1),
    )
    right = resolved(2.0, 1.0, 1.0, int(stats.seeds_needed(2.0, 1.0, 1.0)))
    for seeds in map(int, wrong):
        assert resolved(2.0, 1.0, 1.0, seeds) < 77 < right


def test_seeds_needed_where_little_or_nothing_is_known():
    for size in (0.2, 0.5, 1.0, 1.5, 3.0):  # equal spreads: the textbook's number, rounded up
        assert stats.seeds_needed(2 * size, 2, 2) == math.ceil(
            TTestIndPower().solve_power(size, alpha=0.05, power=0.8)
        )
    assert (
        stats.seeds_needed(30, 1, 1) == 2
        and resolved(11, 1, 1, 2) > 79
        and stats.seeds_needed(11, 1, 1) == 2
    ), "two at least: one seed has no spread"
    assert stats.seeds_needed(0, 1, 1) == math.inf > stats.seeds_needed(1e-3, 3, 3) > 1e8
    assert all(
        map(
            math.isnan,
            (
                stats.seeds_needed(1, 0, 0),
                stats.seeds_needed(math.nan, 1, 1),
                stats.seeds_needed(1, math.nan, 1),
            ),
        )
    )


def test_mcnemar_by_hand():
    a, b = (
        np.array([1] * 9 + [0] * 2 + [1] * 5, dtype=bool),
        np.array([0] * 9 + [1] * 2 + [1] * 5, dtype=bool),
    )
    found = stats.mcnemar(a, b)
    assert found.points == pytest.approx(100 * (a.mean() - b.mean()))
    assert found.p == pytest.approx(2 * sum(math.comb(11, k) for k in range(3)) / 2**11)
    assert stats.mcnemar(a, a).p == 1 and stats.mcnemar(~a, ~b).p == found.p


def test_mcnemar_is_right_about_networks_and_wrong_about_methods():
    """Two networks, equally good on every image: told apart in at most 1 of 20 cases. Two seeds of
    ONE method, whose accuracies spread by a point, are told apart far more often: each time
    rightly, and each time a mistake if it were said of methods.
    """
    rng, images = np.random.default_rng(0), 2000

    def rate(spread):
        found = []
        for _ in range(800):
            chance = np.clip(
                rng.choice([0.3, 0.7, 0.97], images)[None] + rng.normal(0, spread, (2, 1)), 0, 1
            )
            found.append(stats.mcnemar(*(rng.random((2, images)) < chance)).p < 0.05)
        return 100 * np.mean(found)

    assert 2.5 < rate(0.0) < 6.5 and rate(0.02) > 20


@pytest.mark.parametrize(
    "count, spreads", [((3, 3), (1, 1)), ((3, 3), (1, 0.3)), ((6, 3), (0.3, 1)), ((6, 6), (1, 0.2))]
)
def test_welch_covers_by_simulation(count, spreads):
    """Independent runs, few and unequally many, of unequal spread: between 92.5 and 98 % of 1000
    intervals hold the true difference (noise: 0.7).
    """
    rng, hits = np.random.default_rng(sum(count)), 0
    for _ in range(1000):
        d = stats.welch(
            *(
                shift + rng.normal(0, spread, n)
                for shift, spread, n in zip((0.3, 0.0), spreads, count)
            )
        )
        hits += d.low <= 0.3 <= d.high
    assert 925 < hits < 980


def test_holm_by_hand_and_without_the_tests_not_made():
    corrected = stats.holm([0.01, math.nan, 0.04, 0.03])
    assert corrected[[0, 2, 3]].tolist() == pytest.approx([0.03, 0.06, 0.06]) and math.isnan(
        corrected[1]
    )
    assert np.isnan(stats.holm([math.nan, math.nan])).all()


def test_interval_is_students():
    values = [61.0, 64.0, 66.0, 59.5]
    low, high = stats.interval(values)
    assert (low, high) == pytest.approx(
        scipy_stats.ttest_1samp(values, 0).confidence_interval(0.95)
    )
    assert all(map(math.isnan, stats.interval([5.0])))


def test_crossed_by_hand():
    """Runs alone, images alone, both: the squares of the half widths add up."""
    runs, images = np.array([0.0, 1.0, 2.0]), np.array([10.0, 20, 30, 40])
    only = stats.crossed(images[None])
    assert (
        (only.mean, only.n) == (25, (1, 4))
        and (only.low, only.high) == pytest.approx(stats.interval(images))
        and only.p == pytest.approx(scipy_stats.ttest_1samp(images, 0).pvalue)
    )
    both = stats.crossed(runs[:, None] + images)
    halves = [(stats.interval(each)[1] - stats.interval(each)[0]) / 2 for each in (runs, images)]
    assert both.mean == 26 and both.high - both.mean == pytest.approx(math.hypot(*halves)), (
        "no rest: each counts alone"
    )
    same = stats.crossed(np.repeat(images[None], 3, 0))
    assert (same.low, same.high) == pytest.approx(stats.interval(images)), (
        "networks without a spread"
    )
    assert (
        math.isnan(stats.crossed(np.ones((3, 4))).low)
        and stats.crossed(runs[:, None] - 1 + 0 * images).p == 1
    )


@pytest.mark.parametrize("runs, images", [(1, 50), (2, 40), (3, 60), (6, 60)])
@pytest.mark.parametrize("parts", [(0, 1, 0), (0, 0, 1), (0.3, 1, 1), (1, 1, 1), (1, 0, 0.1)])
def test_crossed_covers_by_simulation(runs, images, parts):
    """Whatever share of the spread is of runs, of images, and of neither: the interval holds the
    truth in about 19 of 20 cases or more. A t test that takes all values as independent does not.
    """
    if runs == 1 and parts[0]:
        parts = (0, *parts[1:])  # one run tells nothing about others
    rng, hits, naive = np.random.default_rng(runs), 0, 0
    for _ in range(400):
        values = (
            parts[0] * rng.standard_normal((runs, 1))
            + parts[1] * rng.standard_normal((1, images))
            + parts[2] * rng.standard_normal((runs, images))
        )
        d = stats.crossed(values)
        hits += d.low <= 0 <= d.high
        naive += scipy_stats.ttest_1samp(values.ravel(), 0).pvalue >= 0.05
        assert (d.p < 0.05) == (not d.low <= 0 <= d.high)
    assert hits >= 365, "0.95 of 400, less 3.4 standard errors"
    assert naive < 340 or parts[0] < 1


@pytest.mark.parametrize("count, images", [(0, 24), (1, 200), (7, 24), (200, 200)])
def test_the_share_of_one_network_is_wilsons(count, images):
    """It stays inside [0, 100], and none of 24 does not say never."""
    low, high = stats.share(100.0 * (np.arange(images) < count)[None])
    exact = scipy_stats.binomtest(count, images).proportion_ci(method="wilson")
    assert (low, high) == pytest.approx((100 * exact.low, 100 * exact.high), abs=1e-9)
    assert 0 <= low < high <= 100


@pytest.mark.parametrize("runs, images, spread", [(1, 50, 0), (3, 100, 0), (3, 300, 0.5)])
@pytest.mark.parametrize("base", [0.02, 0.3, 0.9])
def test_a_share_covers_by_simulation(runs, images, spread, base):
    """Hard and easy images, better and worse networks: the truth is inside 19 times of 20."""
    rng, hits, logit = np.random.default_rng(images), 0, math.log(base / (1 - base))

    def chances(several, pictures):
        moved = spread * rng.standard_normal((several, 1)) + rng.standard_normal((1, pictures))
        return 1 / (1 + np.exp(-logit - moved))

    truth = 100 * chances(1000, 1000).mean()
    for _ in range(400):
        found = chances(runs, images)
        low, high = stats.share(100.0 * (rng.random(found.shape) < found))
        hits += low <= truth <= high
    assert hits >= 365, "0.95 of 400, less 3.4 standard errors"
