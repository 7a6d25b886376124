"""Means, spreads and n of methods; which runs count, and how often."""

import statistics

import pandas as pd
import pytest
from made import index_of, make_record, save

from rmlib.study.report import accuracy, groups, report


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
    index_of(tmp_path, tmp_path / "pages")
    listed = (tmp_path / "pages" / "runs.md").read_text()
    assert all(record.run_id in listed for record in made + again)
