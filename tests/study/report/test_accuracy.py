"""Means, spreads and n of methods; which runs count, and how often."""

import statistics

import numpy as np
import pandas as pd
import pytest
from made import make_record, save
from scipy import stats

from rmlib.study.report import accuracy, groups, pages, report


def test_mean_spread_and_n(tmp_path):
    values = [80.0, 83.0, 84.5]
    save(
        tmp_path,
        *(make_record(v, seed=s) for s, v in enumerate(values)),
        make_record(70.0, mixer="mixup"),
        make_record(seed=1, mixer="mixup", status="diverged"),
    )
    (group,) = groups.experiments(groups.runs_below(tmp_path))
    table, caption = accuracy.summary(group).frame(), groups.caption(group)
    assert (
        list(table["mixer"]) == ["mixup", "region_mixup"]
        and list(table["n"]) == [1, 3]
        and list(table["diverged"]) == [1, 0]
    )
    assert table["accuracy"].iloc[1] == pytest.approx(statistics.mean(values))
    assert table["accuracy_std"].iloc[1] == pytest.approx(statistics.stdev(values))
    text = report.markdown(tmp_path)
    assert (
        f"| Region Mixup | 3 | {statistics.mean(values):.2f} ± {statistics.stdev(values):.2f} |"
        in text
    )
    assert "| Mixup | 1 (+ 1 diverged) | 70.00 |" in text, "one run has no spread"
    assert (
        "seeds 0, 1, 2" in caption
        and "dataset shapes" in caption
        and "10000 test images" in caption
    )


def test_experiments_are_never_averaged_or_compared(tmp_path):
    """Runs of different length stand in different tables; methods in rows of one."""
    save(
        tmp_path,
        make_record(80, seed=0),
        make_record(60, seed=0, epochs=3),
        make_record(70, clean_weight=0),
    )
    parts = groups.experiments(groups.runs_below(tmp_path))
    assert [len(group) for group in parts] == [2, 1]
    table = accuracy.summary(parts[0]).frame()
    assert (
        sorted(table["accuracy"]) == [70, 80]
        and set(table["n"]) == {1}
        and list(table["clean_weight"]) == [1, 0]
    )
    assert report.markdown(tmp_path).count("| method |") == 2


def test_what_leaves_the_network_alone_does_not_part_its_runs(tmp_path):
    save(
        tmp_path,
        make_record(80, seed=0, eval_every=0),
        make_record(82, seed=1, bn_recalibration=True),
    )
    (group,) = groups.experiments(groups.runs_below(tmp_path))
    assert list(accuracy.summary(group).frame()["n"]) == [2]


def test_a_network_counts_once_however_often_it_was_trained(tmp_path):
    """Runs that differ in what has no effect on the network are the same network: n, mean,
    differences and measurements count it once, and the list of runs shows both.
    """
    made = [
        make_record(80 + seed + 10 * (mixer == "mixup"), seed=seed, mixer=mixer)
        for seed in range(3)
        for mixer in ("mixup", "region_mixup")
    ]
    save(tmp_path, *made)
    before = report.tables(tmp_path)
    again = [
        make_record(record.metrics["accuracy"], **(record.config | {"eval_every": 3}))
        for record in made
    ]
    assert not {record.run_id for record in again} & {record.run_id for record in made}
    save(tmp_path, *again)
    after = report.tables(tmp_path)
    for kind in ("accuracy", "differences"):
        pd.testing.assert_frame_equal(before[kind][0].frame(), after[kind][0].frame())
    assert list(after["accuracy"][0].frame()["n"]) == [3, 3] and after["costs"][0].frame()[
        "runs"
    ].tolist() == [12, 12]
    assert len(pages._runs(groups.runs_below(tmp_path), {})[1]) == 12


def test_a_run_stored_twice_is_one_run(tmp_path):
    save(tmp_path / "a", make_record(80, seed=0), make_record(82, seed=1))
    save(tmp_path / "b", make_record(80, seed=0))
    (group,) = groups.experiments(groups.runs_below(tmp_path))
    assert list(accuracy.summary(group).frame()["n"]) == [2]


def test_a_seed_counts_once(tmp_path):
    """The same network stored with another parameter that leaves it alone is no further seed."""
    save(
        tmp_path,
        *(make_record(80.0 + s, seed=s, eval_every=every) for s in range(2) for every in (0, 1)),
        *(make_record(70.0 + s, seed=s, mixer="mixup") for s in range(2)),
    )
    (group,) = groups.experiments(groups.runs_below(tmp_path))
    assert accuracy.differences(group).frame()["n"].tolist() == ["2, 2"]


def with_curve(curve, seed, **config):
    """A record with a test accuracy after every second epoch, the last one included."""
    record = make_record(curve[-1], seed=seed, epochs=2 * len(curve), **config)
    history = [
        row | ({"test_accuracy": curve[row["epoch"] // 2 - 1]} if row["epoch"] % 2 == 0 else {})
        for row in record.history
    ]
    return record.model_copy(update={"history": history})


def test_the_best_epoch_is_told_beside_the_last(tmp_path):
    """The same runs: the last epochs agree, the best ones differ, for the method whose curve is
    noisier; runs without a curve have no best epoch.
    """
    lasts, peaks = [70.0, 71.0, 72.0], [79.0, 80.2, 81.0]
    save(
        tmp_path,
        *(with_curve([60.0, peak, last], s) for s, (last, peak) in enumerate(zip(lasts, peaks))),
        *(with_curve([60.0, 65.0, last], s, mixer="mixup") for s, last in enumerate(lasts)),
        make_record(50.0, mixer="cutmix"),
    )
    (group,), curves = (
        groups.experiments(groups.runs_below(tmp_path)),
        accuracy.accuracy_curves(tmp_path),
    )
    assert sorted(curves.values()) == sorted(
        [
            [],
            *(
                [(2, 60.0), (4, x), (6, y)]
                for x, y in [*zip(peaks, lasts), *((65.0, y) for y in lasts)]
            ),
        ]
    )
    table = accuracy.told_twice(group, curves)
    assert table["difference"].tolist() == [
        "Region Mixup - Mixup, last epoch",
        "Region Mixup - Mixup, best epoch",
    ] and table["state"].tolist() == ["unresolved", "resolved"]
    assert table["points"].tolist() == pytest.approx([0.0, np.mean(peaks) - 71]) and table[
        "p"
    ].tolist() == pytest.approx([1.0, stats.ttest_ind(peaks, lasts, equal_var=False).pvalue])
    assert (
        accuracy.told_twice(group, {run_id: curve[:1] for run_id, curve in curves.items()}) is None
    ), "one point: nothing to choose from"


def test_precisions_are_compared_by_pairs(tmp_path):
    """Seeds differ much and pairs little: equal. Pairs shifted by more than the spread: differs.
    Seeds without a partner do not count.
    """
    spread = [60.0, 70.0, 80.0, 90.0]
    for shift, mixer in ((0.1, "mixup"), (-40.0, "cutmix")):
        save(
            tmp_path,
            *(make_record(value, seed=seed, mixer=mixer) for seed, value in enumerate(spread)),
        )
        save(
            tmp_path,
            *(
                make_record(
                    value + shift + 0.1 * (seed % 2), seed=seed, mixer=mixer, precision="bf16"
                )
                for seed, value in enumerate(spread)
            ),
        )
    save(
        tmp_path,
        make_record(5.0, seed=9, mixer="mixup", precision="bf16"),
        make_record(50.0, mixer="none"),
        make_record(50.0, mixer="none", precision="bf16"),
    )
    text = report.markdown(tmp_path, "precision")
    assert (
        "| Mixup | 4 | 75.0 ± 12.9 | 75.1 ± 12.9 | +0.15 | [+0.06, +0.24] | equal within the"
        " spread |" in text
    )
    assert (
        "| CutMix | 4 | 75.0 ± 12.9 |" in text
        and "| -39.95 | [-40.04, -39.86] | differs |" in text
        and "No mixing" not in text
    )
