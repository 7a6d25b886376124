"""The narrow network and the paper's: how much a difference changes, and from which runs."""

import math

import pytest
from made import make_record, save
from scipy.stats import ttest_ind

from rmlib.params import TrainParams
from rmlib.paths import project_root
from rmlib.study.batch.plan import read_batch
from rmlib.study.report import explain, groups, report, small, why, widths

SMALL = {name: small.PROTOCOL[name] for name in small.PROTOCOL if name in TrainParams.model_fields}
SMALL |= {"dataset": "cifar10", "train_images": 5000}
HUNDRED = {"dataset": "cifar100", "train_images": 10_000}


def trained(root, mean, count=5, **settings):
    save(root, *(make_record(mean + s % 2, seed=s, **SMALL | settings) for s in range(count)))


def rows(root):
    return {row["difference"]: row for row in widths.table(groups.runs_below(root)).rows}


def test_a_change_is_the_wide_difference_minus_the_narrow_one(tmp_path):
    trained(tmp_path, 70.0, 10, mixer="region_mixup")
    trained(tmp_path, 74.0, 10, mixer="mixup")
    trained(tmp_path, 80.0, mixer="region_mixup", **widths.WIDE)
    trained(tmp_path, 81.0, mixer="mixup", **widths.WIDE)
    row = rows(tmp_path)["Region Mixup - Mixup"]
    found = [row[name].mean for name in (widths.AT_8, widths.AT_64, widths.CHANGE)]
    assert found == [-4.0, -1.0, 3.0] and row["n"] == "10, 10; 5, 5"
    assert list(row[widths.CHANGE].sides)[0] == "Region Mixup, width 64"
    assert row[widths.CHANGE].again() == pytest.approx(3.0)
    text = explain.explain([str(tmp_path), "widths", "Region Mixup - Mixup"], "change (points)")
    assert (
        "mean of Region Mixup, width 64 minus mean of Mixup, width 64, minus the same of"
        " Region Mixup, width 8 and Mixup, width 8, over these runs:" in text
    )
    assert "recomputed: +3.0000, as in the table" in text and text.count("  run ") == 30


def test_one_width_alone_and_other_settings_make_no_table(tmp_path):
    trained(tmp_path, 70.0, mixer="mixup")
    trained(tmp_path, 70.0, mixer="mixup", width=64)  # in float32
    trained(tmp_path, 70.0, mixer="mixup", **HUNDRED | widths.WIDE)
    assert report.tables(tmp_path, ("widths",))["widths"] == []


@pytest.mark.parametrize("extra", [widths.NARROW, widths.WIDE])
@pytest.mark.parametrize("dataset", [{}, widths.CIFAR100])
def test_every_planned_run_is_in_its_batch_and_no_other(extra, dataset):
    pairs = [*widths.DIFFERENCES, *(sides for _, *sides in widths.CHANGES)]
    if dataset:
        pairs = widths.ON_CIFAR100
    extra = extra | dataset
    wanted: dict = {}
    for settings in (settings for pair in pairs for settings in pair):
        own = wanted.setdefault(widths.batch_of(settings, extra), set())
        for seed in range(widths.planned(settings, extra)):
            given = {"clean_weight": 1.0, "eval_every": 0, "seed": seed}
            given |= SMALL | (HUNDRED if dataset else {})
            own.add(TrainParams(**given | extra | settings).run_id)
    folder = project_root() / "notebooks" / "batches"
    assert wanted == {
        name: {run.run_id for run in read_batch(folder / name).runs} for name in wanted
    }


def test_what_is_named_belongs_to_its_batch():
    for batch, (extra, pairs) in widths.NAMED.items():
        assert {widths.batch_of(other, extra) for _, other in pairs} == {batch}


def test_seeds_beyond_the_planned_ones_do_not_count(tmp_path):
    for mixer in ("region_mixup", "mixup"):
        trained(tmp_path, 70.0, 12, mixer=mixer)
        trained(tmp_path, 70.0, 7, mixer=mixer, clean_weight=0.0)
        trained(tmp_path, 80.0, 7, mixer=mixer, **widths.WIDE)
    found = rows(tmp_path)
    assert found["Region Mixup - Mixup"]["n"] == "10, 10; 5, 5"
    alone = found["Region Mixup - Region Mixup, clean_weight=0"]
    assert alone["n"] == "10, 5; 5, 0 of 5" and math.isnan(alone[widths.CHANGE].mean)
    words = [str(tmp_path), "widths", "Region Mixup - Region Mixup, clean_weight=0"]
    assert (
        "not run yet: cifar10-small-width64.yaml and cifar10-small.yaml would make it"
        in explain.explain(words, "change (points)")
    )


@pytest.mark.parametrize(
    "longer, count, state",
    [
        (70.0, 5, "resolved: larger"),
        (80.3, 5, "resolved: no difference larger than 1 point"),
        (80.7, 5, "unresolved"),
        (70.0, 4, "no verdict yet"),
    ],
)
def test_what_was_named_with_a_batch_has_a_verdict(tmp_path, longer, count, state):
    """Region Mixup lies 4 points below its own with one partner; equal compute varies."""
    trained(tmp_path, 80.0, mixer="region_mixup", **widths.WIDE)
    trained(tmp_path, 84.0, **why.PARTNER | widths.WIDE)
    trained(tmp_path, longer, count, **widths.LONGER | widths.WIDE)
    table, verdicts = report.tables(tmp_path, ("changes",))["changes"]
    partners, compute = verdicts.rows
    assert partners["points"].mean == pytest.approx(-4.0)
    assert partners["n"] == "5, 5" and partners["width"] == 64
    assert partners["state"] == "resolved: smaller" and compute["state"] == state
    row = {row["what differs"]: row for row in table.rows}["equal compute, Region Mixup"]
    assert row["difference"] == compute["difference"] == "Region Mixup - plain training, 120 epochs"
    assert row["n"] == f"0 of 10, 0 of 10; 5, {count}{'' if count == 5 else ' of 5'}"
    expected = 80.4 - sum(longer + s % 2 for s in range(count)) / count
    assert row[widths.AT_64].mean == compute["points"].mean == pytest.approx(expected)


def test_the_two_that_were_named_together_are_corrected_as_two(tmp_path):
    trained(tmp_path, 80.0, mixer="region_mixup", **widths.WIDE)
    trained(tmp_path, 81.2, **why.PARTNER | widths.WIDE)
    trained(tmp_path, 81.0, **widths.LONGER | widths.WIDE)
    sides = {mean: [mean + s % 2 for s in range(5)] for mean in (80.0, 81.2, 81.0)}
    smaller, larger = (
        ttest_ind(sides[80.0], sides[mean], equal_var=False).pvalue for mean in (81.2, 81.0)
    )
    assert 2 * smaller < larger, "only the smaller one is changed by Holm for two"
    rows = widths.named(groups.runs_below(tmp_path)).rows
    assert [row["p (Holm)"] for row in rows] == pytest.approx([2 * smaller, larger])


def test_the_narrow_network_has_ten_seeds_and_a_verdict_of_its_own(tmp_path):
    trained(tmp_path, 74.0, 12, mixer="region_mixup")
    trained(tmp_path, 75.0, 10, **widths.LONGER)
    (row,) = widths.named(groups.runs_below(tmp_path)).rows
    assert (row["width"], row["n"], row["state"]) == (8, "10, 10", "resolved: smaller")
    alone = ttest_ind(*([m + s % 2 for s in range(10)] for m in (74, 75)), equal_var=False)
    assert row["p (Holm)"] == pytest.approx(alone.pvalue)


def test_on_cifar100_three_differences_wait_for_four_seeds(tmp_path):
    """Each dataset has rows of its own, and verdicts when all planned runs are there."""
    for mixer, mean in ("region_mixup", 46.0), ("mixup", 44.0), ("cutmix", 45.4), ("none", 49.0):
        trained(tmp_path, mean - 15.0, mixer=mixer, **HUNDRED)
        trained(tmp_path, mean, 3 if mixer == "none" else 6, mixer=mixer, **HUNDRED | widths.WIDE)
    table = widths.table(groups.runs_below(tmp_path)).rows
    assert {row["dataset"] for row in table} == {"cifar100"}
    for extra in (widths.NARROW, widths.WIDE):
        trained(tmp_path, 70.0, mixer="mixup", **extra)
        trained(tmp_path, 72.0, mixer="region_mixup", **extra)
    runs = groups.runs_below(tmp_path)
    both = widths.table(runs).rows
    assert [row for row in both if row["dataset"] == "cifar100"] == table
    ours = {row["difference"]: row for row in both if row["dataset"] == "cifar10"}
    assert ours["Region Mixup - Mixup"][widths.AT_8].mean == 2.0
    assert [row["n"] for row in table[:3]] == ["5, 5; 4, 4", "5, 5; 4, 4", "5, 5; 4, 3 of 4"]
    mixup, cutmix, doubled = widths.named(runs).rows
    assert (mixup["dataset"], mixup["width"], mixup["n"]) == ("cifar100", 64, "4, 4")
    assert mixup["state"] == "resolved: larger" and cutmix["state"] == "unresolved"
    assert doubled["state"] == "no verdict yet" and doubled["n"] == "4, 3 of 4"
    sides = [[mean + seed % 2 for seed in range(4)] for mean in (46.0, 44.0)]
    alone = ttest_ind(*sides, equal_var=False).pvalue
    assert mixup["p (Holm)"] == pytest.approx(3 * alone), "a missing one counts as 1"


def test_diverged_and_equal_runs_have_no_verdict(tmp_path):
    save(
        tmp_path,
        *(make_record(80.0, seed=s, mixer="region_mixup", **SMALL | widths.WIDE) for s in range(5)),
        *(make_record(82.0, seed=s, **SMALL | widths.WIDE | widths.LONGER) for s in range(5)),
        *(make_record(84.0, seed=s, **SMALL | widths.WIDE | why.PARTNER) for s in range(4)),
        make_record(status="diverged", seed=4, **SMALL | widths.WIDE | why.PARTNER),
    )
    partners, compute = widths.named(groups.runs_below(tmp_path)).rows
    assert partners["n"] == "5, 4 of 5 (1 diverged)" and compute["n"] == "5, 5"
    assert partners["state"] == compute["state"] == "no verdict yet", "no spread, so no p"
