"""Differences between methods, recomputed by scipy."""

import json

import numpy as np
import pytest
import torch
from made import make_record, save
from scipy import stats

from rmlib.packed import pack_bits
from rmlib.study.report import accuracy, answer, groups, report
from rmlib.study.report.stats import crossed, seeds_needed
from rmlib.study.runs import records


def test_differences_are_welchs_and_named(tmp_path):
    a, b, c = [80.0, 83.0, 84.5], [79.0, 79.5, 79.2], [60.0, 61.0, 60.5]
    save(
        tmp_path,
        *(make_record(v, seed=s) for s, v in enumerate(a)),
        *(make_record(v, seed=s, mixer="mixup") for s, v in enumerate(b)),
        *(make_record(v, seed=s, clean_weight=0) for s, v in enumerate(c)),
        make_record(90.0, k=4),
        make_record(seed=3, status="diverged"),
    )
    (group,) = groups.experiments(groups.runs_below(tmp_path))
    table = accuracy.differences(group).frame().set_index("difference")
    assert list(table.index) == [
        "Region Mixup - Mixup",
        "Region Mixup, k=4 - Region Mixup",
        "Region Mixup - Region Mixup, clean_weight=0",
    ], "k = 4 is another method"
    assert np.isnan(table.loc["Region Mixup, k=4 - Region Mixup", "p (Holm)"])
    table = table.drop("Region Mixup, k=4 - Region Mixup")
    test = stats.ttest_ind(a, b, equal_var=False).confidence_interval()
    row = table.loc["Region Mixup - Mixup"]
    assert (row["low"], row["high"]) == (pytest.approx(test.low), pytest.approx(test.high)) and row[
        "n"
    ] == "3 (1 diverged), 3"
    assert list(table["state"]) == ["unresolved", "resolved"]
    p = [stats.ttest_ind(x, y, equal_var=False).pvalue for x, y in ((a, b), (a, c))]
    assert list(table["p (Holm)"]) == pytest.approx([p[0], 2 * min(p)]), (
        "the smaller p counts twice among two comparisons"
    )
    assert "low" not in report.markdown(tmp_path, "differences").splitlines()[
        0
    ] and "**" not in report.markdown(tmp_path, "differences")
    x, y, z = (np.array(values) for values in (a, b, c))
    pairs = stats.ttest_1samp(x - y, 0).confidence_interval()
    assert (
        row["paired"] == f"[{pairs.low:+.2f}, {pairs.high:+.2f}]"
        and row["r"] == pytest.approx(np.corrcoef(x, y)[0, 1])
        and row["paired_low"] == pytest.approx(pairs.low)
    )
    needed = row["seeds of a new study"]
    assert (
        needed
        == seeds_needed((x - y).mean(), x.std(ddof=1), y.std(ddof=1), alpha=0.025)
        > seeds_needed((x - y).mean(), x.std(ddof=1), y.std(ddof=1))
    )
    assert list(table["seeds of a new study"].isna()) == [
        False,
        True,
    ] and f"| unresolved | {needed:g} |" in report.markdown(tmp_path, "differences"), (
        "nothing is asked of what is resolved"
    )


def with_verdicts(correct, seed, checksum="00", **config):
    """A record whose verdicts on single images are these, (images,) bool; the images are called by
    ``checksum``.
    """
    record = make_record(50.0, seed=seed, **config)
    return record.model_copy(
        update={
            "correct": pack_bits(torch.as_tensor(correct)),
            "metrics": record.metrics | {"accuracy": 100 * float(np.mean(correct))},
            "data": record.data | {"test_images": len(correct), "checksum": checksum},
            "finished": f"2026-01-01T00:00:0{seed}",
        }
    )


def test_differences_over_seeds_and_images_come_from_the_verdicts_of_equal_seeds(tmp_path):
    """Recomputed from the bits; seeds without a partner, and runs that saw other images, or kept no
    verdicts, do not count; one seed: images alone.
    """
    rng = np.random.default_rng(0)
    a, b = rng.random((3, 203)) < 0.8, rng.random((4, 203)) < 0.5  # 203: not a multiple of 8
    save(
        tmp_path,
        *(with_verdicts(a[s], s) for s in range(3)),
        *(with_verdicts(b[s], s, mixer="mixup") for s in (3, 1, 2, 0)),
        with_verdicts(a[0], 4).model_copy(update={"correct": None}),
        with_verdicts(a[0], 4, mixer="mixup"),
        with_verdicts(rng.random(203) < 0.9, 0, "others", mixer="cutmix"),
        with_verdicts(a[1], 1, mixer="none"),
    )
    (group,) = groups.experiments(groups.runs_below(tmp_path))
    table = accuracy.differences(group).frame().set_index("difference")
    d = crossed(100 * (a.astype(float) - b[:3]))
    assert (
        table.loc["Region Mixup - Mixup", "seeds and images"] == f"[{d.low:+.2f}, {d.high:+.2f}]"
        and table.loc["Region Mixup - Mixup", "n"] == "4, 5"
    )
    assert (
        table.loc["Region Mixup - CutMix", "seeds and images"] == "–"
        and table.loc["Region Mixup - CutMix", "state"] == "unresolved"
    )
    assert table.loc["Region Mixup - clean loss twice (control)", "seeds and images"] == "–", (
        "the same verdicts: no spread"
    )
    alone = table["n"].str.contains("1")
    assert alone.sum() == 5 and table.loc[alone, "seeds of a new study"].isna().all(), (
        "one seed has no spread"
    )


def test_pairs_of_networks_that_contradict_each_other_are_no_difference(tmp_path):
    good, bad = np.arange(400) < 300, np.arange(400) < 200
    save(
        tmp_path,
        with_verdicts(good, 0),
        with_verdicts(bad, 0, mixer="mixup"),
        with_verdicts(bad, 1),
        with_verdicts(good, 1, mixer="mixup"),
    )
    assert "| Region Mixup - Mixup | +0.00 |" in report.markdown(tmp_path, "differences"), (
        "the methods do not differ, and no number of seeds would show it"
    )
    assert report.markdown(tmp_path, "differences").splitlines()[2].endswith("| unresolved | – |")


METHODS = {
    "plain": {"mixer": "none", "clean_weight": 0.0},
    "control": {"mixer": "none"},
    "mixup": {"mixer": "mixup"},
    "cutmix": {"mixer": "cutmix"},
    "cutmix alone": {"mixer": "cutmix", "clean_weight": 0.0},
    "average": {"mixer": "mixup", "average": True},
    "mixup, alpha": {"mixer": "mixup", "alpha": 0.2},
}


def compared(root, *names):
    """The labels of the comparisons of some METHODS, in their order."""
    save(root, *(make_record(70.0 + i, **METHODS[name]) for i, name in enumerate(names)))
    (group,) = groups.experiments(groups.runs_below(root))
    return [each.label for each in accuracy.compared(group)]


def test_every_method_is_compared_with_plain_training_first(tmp_path):
    """Then with its equals; Region Mixup need not be among them."""
    control = "clean loss twice (control)"
    assert compared(tmp_path, "plain", "control", "mixup", "cutmix", "cutmix alone") == [
        f"{control} - plain training",
        "Mixup - plain training",
        "CutMix - plain training",
        "CutMix, clean_weight=0 - plain training",
        f"Mixup - {control}",
        f"CutMix - {control}",
        "CutMix - Mixup",
        "CutMix - CutMix, clean_weight=0",
    ]


def test_without_plain_training_the_control_is_named_as_one(tmp_path):
    assert compared(tmp_path, "control", "mixup") == ["Mixup - clean loss twice (control)"]


def test_a_variant_is_compared_with_its_own_default_alone(tmp_path):
    assert compared(tmp_path, "mixup", "cutmix", "average", "mixup, alpha") == [
        "Mixup, alpha=0.2 - Mixup",
        "CutMix - Mixup",
        "Mixup - Mixup, average",
    ]


def test_what_lacks_planned_runs_has_no_verdict_and_still_counts_among_the_tests(tmp_path):
    """Three seeds of each are there, and a fourth of CutMix is planned. Its p, small or not, counts
    as 1 in Holm's correction; the answer says the same as the table.
    """
    a, b, c = [80.0, 80.4, 80.2], [79.0, 79.5, 79.1], [70.0, 70.1, 70.3]
    made = [
        make_record(value, seed=seed, mixer=mixer)
        for mixer, values in (("region_mixup", a), ("mixup", b), ("cutmix", c))
        for seed, value in enumerate(values)
    ]
    save(tmp_path, *made)

    def states():
        (group,) = groups.experiments(groups.runs_below(tmp_path))
        return accuracy.differences(group).frame().set_index("difference"), group

    assert set(states()[0]["state"]) == {"resolved"}
    planned = [*made, make_record(seed=3, mixer="cutmix")]
    cells = [{"run_id": run.run_id, "label": "a run", "config": run.config} for run in planned]
    (tmp_path / records.PLAN).write_text(json.dumps({"schema_version": 1, "cells": cells}))
    table, group = states()
    assert table["state"].to_dict() == {
        "CutMix - Mixup": "interim",
        "Region Mixup - Mixup": "resolved",
        "Region Mixup - CutMix": "interim",
    }
    p = stats.ttest_ind(a, b, equal_var=False).pvalue
    assert table.loc["Region Mixup - Mixup", "p (Holm)"] == pytest.approx(3 * p)
    assert table.loc["Region Mixup - CutMix", ["p (Holm)", "seeds of a new study"]].isna().all()
    assert answer.sentences(group)[-1].endswith("], resolved"), "the lead over Mixup"

    more = make_record(seed=9, mixer="region_mixup")
    cells += [{"run_id": more.run_id, "label": "a run", "config": more.config}]
    (tmp_path / records.PLAN).write_text(json.dumps({"schema_version": 1, "cells": cells}))
    assert answer.sentences(states()[1])[-1].endswith("], interim")
