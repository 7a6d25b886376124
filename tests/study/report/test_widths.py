"""The narrow network and the paper's: how much a difference changes, and from which runs."""

import math

import pytest
from made import make_record, save

from rmlib.params import TrainParams
from rmlib.paths import project_root
from rmlib.study.batch.plan import read_batch
from rmlib.study.report import explain, groups, report, small, widths

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
    assert alone["n"] == "10, 5; 5, 0" and math.isnan(alone[widths.CHANGE].mean)
    words = [str(tmp_path), "widths", "Region Mixup - Region Mixup, clean_weight=0"]
    assert "cifar10-small-width64.yaml make it" in explain.explain(words, "change (points)")
