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
    found = [row[name].mean for name in (widths.NARROW, widths.PAPERS, widths.CHANGE)]
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
    trained(tmp_path, 70.0, mixer="mixup", **widths.WIDE | {"dataset": "cifar100"})
    assert report.tables(tmp_path, ("widths",))["widths"] == []


@pytest.mark.parametrize(
    "extra, names",
    [
        ({}, ["cifar10-small.yaml", "cifar10-small-longer.yaml"]),
        (widths.WIDE, ["cifar10-small-width64.yaml", "cifar10-small-width64-why.yaml"]),
    ],
)
def test_every_planned_run_is_in_the_batches(extra, names):
    folder = project_root() / "notebooks" / "batches"
    there = {run.run_id for name in names for run in read_batch(folder / name).runs}
    pairs = [*widths.DIFFERENCES, *(sides for _, *sides in widths.CHANGES)]
    wanted = set()
    for settings in (settings for pair in pairs for settings in pair):
        for seed in range(widths.planned(settings, extra)):
            given = {"clean_weight": 1.0, "eval_every": 0, "seed": seed}
            wanted.add(TrainParams(**given | SMALL | extra | settings).run_id)
    assert wanted == there


def test_seeds_beyond_the_planned_ones_do_not_count(tmp_path):
    for mixer in ("region_mixup", "mixup"):
        trained(tmp_path, 70.0, 12, mixer=mixer)
        trained(tmp_path, 70.0, 7, mixer=mixer, clean_weight=0.0)
        trained(tmp_path, 80.0, 7, mixer=mixer, **widths.WIDE)
    found = rows(tmp_path)
    assert found["Region Mixup - Mixup"]["n"] == "10, 10; 5, 5"
    alone = found["Region Mixup - Region Mixup, clean_weight=0"]
    assert alone["n"] == "10, 5; 5, 0" and math.isnan(alone[widths.CHANGE].mean)
    words = [str(tmp_path), "widths", "Region Mixup - Region Mixup, clean_weight=0"]
    assert "cifar10-small-width64.yaml and" in explain.explain(words, "change (points)")


@pytest.mark.parametrize(
    "longer, count, words",
    [
        (70.0, 5, "p < 0.0001, resolved: larger"),
        (80.3, 5, "resolved: no difference larger than 1 point"),
        (80.7, 5, "unresolved"),
        (70.0, 4, "no verdict yet (5 and 4 of 5 runs)"),
    ],
)
def test_what_was_named_before_the_runs_has_a_verdict(tmp_path, longer, count, words):
    """Region Mixup lies 4 points below its own with one partner; equal compute varies."""
    trained(tmp_path, 70.0, mixer="region_mixup")
    trained(tmp_path, 70.0, **why.PARTNER)
    trained(tmp_path, 80.0, mixer="region_mixup", **widths.WIDE)
    trained(tmp_path, 84.0, **why.PARTNER | widths.WIDE)
    trained(tmp_path, longer, count, **widths.LONGER | widths.WIDE)
    runs = groups.runs_below(tmp_path)
    partners, compute = widths.named(runs).split("margin of 1 point: ")[1].split("; ")
    assert partners.startswith("own partners, with own weights: -4.00 [")
    assert partners.endswith("resolved: smaller") and compute.endswith(words)
    table = widths.changes(runs)
    assert widths.named(runs) in table.caption
    row = {row["what differs"]: row for row in table.rows}["equal compute, Region Mixup"]
    assert row["difference"] == "Region Mixup - plain training, 120 epochs"
    assert row["n"] == f"5, 0; 5, {count}" and row[widths.PAPERS].mean == pytest.approx(
        80.4 - sum(longer + s % 2 for s in range(count)) / count
    )


def test_the_two_that_were_named_are_corrected_as_two(tmp_path):
    trained(tmp_path, 70.0, mixer="region_mixup")
    trained(tmp_path, 80.0, mixer="region_mixup", **widths.WIDE)
    trained(tmp_path, 81.2, **why.PARTNER | widths.WIDE)
    trained(tmp_path, 81.0, **widths.LONGER | widths.WIDE)
    runs = groups.runs_below(tmp_path)
    both = [widths._sides(runs, a, b, widths.WIDE) for _, a, b in widths.NAMED]
    p_values = [
        ttest_ind(*(list(x.values()) for x in sides.values()), equal_var=False).pvalue
        for sides in both
    ]
    smaller, larger = sorted(p_values)
    told = widths.named(runs)
    assert f"p = {min(2 * smaller, 1):.4f}" in told
    assert f"p = {max(2 * smaller, larger):.4f}" in told and smaller < larger
