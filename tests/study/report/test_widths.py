"""The narrow network and the paper's: how much a difference changes, and from which runs."""

import numpy as np
import pytest
from made import make_record, save
from scipy import stats as scipy_stats

from rmlib.params import TrainParams
from rmlib.paths import project_root
from rmlib.study.batch.plan import read_batch
from rmlib.study.report import groups, report, small, stats, widths

SMALL = {name: small.PROTOCOL[name] for name in small.PROTOCOL if name in TrainParams.model_fields}
SMALL |= {"dataset": "cifar10", "train_images": 5000}


def trained(root, mean, count=5, **settings):
    save(root, *(make_record(mean + s % 2, seed=s, **SMALL | settings) for s in range(count)))


def rows(root):
    return {row["difference"]: row for row in widths.table(groups.runs_below(root)).rows}


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


@pytest.mark.parametrize("last", [[1.0, 1.0], [1.0]])
def test_without_a_spread_or_with_one_run_there_is_no_interval(last):
    found = stats.change(*[[1.0, 1.0]] * 3, last)
    assert found.mean == 0 and np.isnan([found.low, found.high, found.p]).all()


def test_a_change_is_the_wide_difference_minus_the_narrow_one(tmp_path):
    trained(tmp_path, 70.0, 10, mixer="region_mixup")
    trained(tmp_path, 74.0, 10, mixer="mixup")
    trained(tmp_path, 80.0, mixer="region_mixup", **widths.WIDE)
    trained(tmp_path, 81.0, mixer="mixup", **widths.WIDE)
    row = rows(tmp_path)["Region Mixup - Mixup"]
    found = [row[name].mean for name in (widths.NARROW, widths.PAPERS, widths.CHANGE)]
    assert found == [-4.0, -1.0, 3.0] and row["n"] == "10, 10; 5, 5"
    assert list(row[widths.CHANGE].sides)[0] == "Region Mixup, width 64"
    assert row[widths.CHANGE].again() == pytest.approx(3.0)


def test_one_width_alone_and_other_settings_make_no_table(tmp_path):
    trained(tmp_path, 70.0, mixer="mixup")
    trained(tmp_path, 70.0, mixer="mixup", width=64)  # in float32
    assert report.tables(tmp_path, ("widths",))["widths"] == []


def test_every_planned_run_is_in_the_batches():
    folder = project_root() / "notebooks" / "batches"
    narrow, wide = (
        {(run.mixer, run.clean_weight, run.seed) for run in read_batch(folder / name).runs}
        for name in ("cifar10-small.yaml", "cifar10-small-width64.yaml")
    )
    sides = {side for pair in widths.DIFFERENCES for side in pair}
    assert {(*side, seed) for side in sides for seed in range(widths.SEEDS)} == wide <= narrow


def test_seeds_beyond_the_planned_ones_do_not_count(tmp_path):
    for mixer in ("region_mixup", "mixup"):
        trained(tmp_path, 70.0, 12, mixer=mixer)
        trained(tmp_path, 70.0, 7, mixer=mixer, clean_weight=0.0)
        trained(tmp_path, 80.0, 7, mixer=mixer, **widths.WIDE)
    found = rows(tmp_path)
    assert found["Region Mixup - Mixup"]["n"] == "10, 10; 5, 5"
    alone = found["Region Mixup - Region Mixup, clean_weight=0"]
    assert alone["n"] == "5, 5; 5, 0" and "cifar10-small-width64" in alone[widths.CHANGE].missing
