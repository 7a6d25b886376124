"""The answer of a report: the best method and its lead."""

import ast
import json
import shlex

import pytest
from made import index_of, make_record, save
from scipy import stats

from rmlib.study.batch.plan import read_batch
from rmlib.study.report import accuracy, answer, explain, groups, report
from rmlib.study.runs import collection, records


def store(root, **accuracies):
    """Records: name of a method -> accuracies over seeds."""
    kinds = {
        "plain": {"mixer": "none", "clean_weight": 0.0},
        "doubled": {"mixer": "none"},
        "cutmix": {"mixer": "cutmix"},
        "region": {"mixer": "region_mixup"},
    }
    for name, values in accuracies.items():
        save(root, *(make_record(x, seed=seed, **kinds[name]) for seed, x in enumerate(values)))


def experiment(root, **accuracies):
    """One experiment of such records."""
    store(root, **accuracies)
    (group,) = groups.experiments(groups.runs_below(root))
    return group


def test_the_lead_is_over_plain_training_and_over_the_next(tmp_path):
    """The control is not the reference, although it is weaker."""
    values = {
        "plain": [70.0, 70.4, 70.2],
        "doubled": [65.0, 65.2, 65.1],
        "cutmix": [75.0, 75.4, 75.2],
        "region": [74.9, 75.3, 75.0],
    }
    group = experiment(tmp_path, **values)
    best, over_plain, over_next = answer.sentences(group)
    assert best == (
        "Best in the mean: CutMix, 75.20 % (n = 3), with twice the compute of plain training"
    )
    test = stats.ttest_ind(values["cutmix"], values["plain"], equal_var=False)
    low, high = test.confidence_interval()
    assert over_plain == f"above plain training by 5.00 points [{low:+.2f}, {high:+.2f}], resolved"
    assert over_next.startswith("above the next, Region Mixup, by 0.13 points [")
    assert over_next.endswith(", unresolved")
    assert report.markdown(tmp_path, "answer").startswith(groups.title(group))


def test_an_interval_without_zero_can_be_unresolved_and_says_why(tmp_path):
    plain, best = [70.0, 71.0, 72.0], [73.0, 73.9, 75.4]
    p = stats.ttest_ind(best, plain, equal_var=False).pvalue
    assert 0.025 < p < 0.05
    group = experiment(tmp_path, plain=plain, cutmix=best, region=[72.0, 73.5, 75.0])
    first, *leads = answer.sentences(group)
    assert first.startswith(
        "In accuracy undecided, as no lead of the best method is resolved. Best in"
    )
    assert "unresolved after Holm's correction" in " ".join(leads)


def test_a_lead_has_the_state_that_the_table_of_differences_gives_it(tmp_path):
    """Corrected for the same number of comparisons: six, of which the best method has three."""
    best, region = [75.0, 75.4, 75.2, 75.6], [74.5, 74.8, 74.8, 75.1]
    plain, doubled = [70.0, 70.4, 70.2, 70.3], [70.1, 70.3, 70.4, 70.0]
    group = experiment(tmp_path, plain=plain, doubled=doubled, cutmix=best, region=region)
    table = accuracy.differences(group).frame().set_index("difference")
    row = table.loc["Region Mixup - CutMix"]
    assert row["p (Holm)"] > 0.05 > stats.ttest_ind(best, region, equal_var=False).pvalue
    assert row["state"] == "unresolved after Holm's correction"
    assert answer.sentences(group)[-1].endswith(row["state"])
    assert table.loc["CutMix - plain training", "state"] == "resolved"


@pytest.mark.parametrize("other", ["doubled", "region"])
def test_without_plain_training_the_control_is_named_as_one(tmp_path, other):
    group = experiment(tmp_path, cutmix=[75.0], **{other: [70.0]})
    name = {"doubled": "clean loss twice (control)", "region": "the next, Region Mixup,"}
    assert answer.sentences(group)[1:] == [
        f"above {name[other]} by 5.00 points; without more runs that has no interval"
    ]


def test_region_mixup_has_its_place_also_where_it_is_neither_first_nor_next(tmp_path):
    values = {"plain": [70.0, 70.4], "cutmix": [75.0, 75.4], "doubled": [74.0, 74.4]}
    group = experiment(tmp_path, **values, region=[73.0, 73.4])
    *_, last = answer.sentences(group)
    assert last.startswith("above Region Mixup by 2.00 points [")
    # a variant that did better is not named in its place
    save(tmp_path, make_record(73.9, mixer="region_mixup", k=4))
    assert answer.sentences(*groups.experiments(groups.runs_below(tmp_path)))[-1] == last
    best = experiment(tmp_path / "best", plain=[70.0, 70.4], region=[73.0, 73.4])
    assert len(answer.sentences(best)) == 2, "the best is not above itself"


def test_the_region_mixup_that_is_named_is_the_papers(tmp_path):
    """Not the best of its variants, of the mixer or of the loss."""
    for change, value in ({}, 70.0), ({"average": True}, 72.0), ({"clean_weight": 0.0}, 73.0):
        save(
            tmp_path,
            *(make_record(value + s, mixer="region_mixup", seed=s, **change) for s in (0, 1)),
        )
    store(tmp_path, cutmix=[80.0, 81.0], doubled=[60.0, 61.0], plain=[79.0, 80.0])
    (group,) = groups.experiments(groups.runs_below(tmp_path))
    told = " ".join(answer.sentences(group))
    assert "above Region Mixup by 10.00 points" in told


def test_plain_training_of_equal_compute_stands_in_the_same_table_and_answer(tmp_path):
    """Twice the epochs, as a clean loss costs; three times the epochs are another experiment."""
    best, plain, longer = [75.0, 75.4, 75.2], [70.0, 70.4, 70.2], [74.0, 74.4, 74.1]
    epochs = make_record().config["epochs"]
    for factor, values in ((2, longer), (3, [80.0])):
        more = {"mixer": "none", "clean_weight": 0.0, "epochs": factor * epochs}
        save(tmp_path, *(make_record(x, seed=seed, **more) for seed, x in enumerate(values)))
    assert len(groups.experiments(groups.runs_below(tmp_path))) == 2, "nothing to compare with yet"
    region = [74.5, 74.4, 74.9]
    store(tmp_path, plain=plain, cutmix=best, region=region)
    other, group = groups.experiments(groups.runs_below(tmp_path))
    assert set(other["config.epochs"]) == {3 * epochs}
    name = f"plain training, {2 * epochs} epochs"
    rows = {row["method"]: row for row in accuracy.summary(group).rows}
    assert list(rows) == ["CutMix", "Region Mixup", "plain training", name]
    assert rows[name]["accuracy"].text(2) == "74.17 ± 0.21" and rows[name]["n"] == 3
    computes = [row["compute"] for row in rows.values()]
    assert computes == [2, 2, 1, 2], "a clean loss is a second pass, twice the epochs as much"
    assert f"{epochs} epochs" in groups.title(group) and f"epochs {epochs}," in groups.caption(
        group
    )
    assert {each.label for each in accuracy.compared(group) if name in each.label} == {
        f"{name} - plain training",
        f"CutMix - {name}",
        f"Region Mixup - {name}",
    }
    *_, last = answer.sentences(group)
    low, high = stats.ttest_ind(best, longer, equal_var=False).confidence_interval()
    words = f"above {name}, the same compute, by 1.03 points"
    assert last.startswith(f"{words} [{low:+.2f}, {high:+.2f}], ")


def test_the_network_to_use_is_the_median_one_of_the_best_method(tmp_path):
    """By folder, and by a command that is right as printed; nothing without the weights."""
    group = experiment(tmp_path, plain=[70.0, 71.0], cutmix=[77.0, 74.0, 79.0, 76.0])
    found = collection.gather(tmp_path)
    assert answer.networks(found) == []
    chosen = group[(group["config.mixer"] == "cutmix") & (group["config.seed"] == 3)]["run_id"]
    folder = tmp_path / chosen.item()
    (folder / records.WEIGHTS).write_bytes(b"")
    (line,) = answer.networks(found)
    assert f"those of CutMix: seed 3, {folder}." in line
    code = shlex.split(line.split("To export it: ")[1])[2]
    assert ast.parse(code) and f'networks.export("{folder}", "network.pt2")' in code
    assert line.split("To export")[0] in index_of(tmp_path, tmp_path / "pages")


def test_images_held_out_of_the_training_set_are_no_test_images(tmp_path):
    for mixer in ("none", "cutmix"):
        options = {"mixer": mixer, "clean_weight": 0, "holdout": True}
        save(tmp_path, *(make_record(70.0 + seed, seed=seed, **options) for seed in range(2)))
    for kind in ("answer", "accuracy", "differences"):
        text = report.markdown(tmp_path, kind)
        assert groups.HELD_OUT in text and "test images" not in text
    assert "test images" not in index_of(tmp_path, tmp_path / "pages")


def test_one_method_has_no_answer(tmp_path):
    group = experiment(tmp_path, cutmix=[75.0, 76.0])
    assert answer.sentences(group) == [] and report.markdown(tmp_path, "answer") == ""


def test_what_is_planned_and_not_there_yet_makes_it_an_interim_look(tmp_path):
    """Of the same experiment alone: a run of another width is no part of it."""
    plain, best = ({"mixer": "none", "clean_weight": 0.0}, {"mixer": "cutmix"})
    records = {
        (place, seed): make_record(70.0 + 5 * place + seed, seed=seed, **method)
        for seed in range(3)
        for place, method in enumerate((plain, best))
    }
    last = records[1, 2]
    longer = make_record(mixer="none", clean_weight=0.0, epochs=2 * last.config["epochs"])
    cells = [*records.values(), make_record(80.0, width=64), longer]
    rows = [{"run_id": each.run_id, "label": "x", "config": each.config} for each in cells]
    plan = {"schema_version": 1, "cells": [row | {"robustness": False} for row in rows]}
    save(tmp_path, *(each for each in records.values() if each is not last))
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    for kind in ("answer", "accuracy", "differences"):
        assert "; interim, 5 of 7 planned runs" in report.markdown(tmp_path, kind)
    save(tmp_path, last, longer)
    assert "interim" not in report.markdown(tmp_path, "answer")


def test_the_difference_named_before_the_runs_is_one_comparison(tmp_path):
    """By the batch file and its plan: without a correction, which makes it unresolved among the
    others; interim while a planned run is missing.
    """
    batch = tmp_path / "batch.yaml"
    grid = (
        "- {mixer: [none, region_mixup], clean_weight: [0, 1], seed: [0, 1, 2]}\n"
        "primary: [{mixer: region_mixup, clean_weight: 1}, {mixer: none, clean_weight: 0}]"
    )
    batch.write_text(f"grid:\n{grid}")
    plan = read_batch(batch, tmp_path / "runs")
    best, plain = [73.0, 73.9, 75.4], [70.0, 71.0, 72.0]
    values = {("region_mixup", 1): best, ("none", 0): plain}
    made = {
        run.run_id: make_record(values.get(key, [72.0, 73.0, 74.5])[run.seed], **changed(run))
        for run in plan.runs
        for key in [(run.mixer, run.clean_weight)]
    }
    assert made.keys() == {run.run_id for run in plan.runs}
    last = plan.primary[1][2]
    save(plan.out, *(record for run_id, record in made.items() if run_id != last))
    plan.write([])
    (line,) = answer.answers(collection.gather(plan.out))
    assert "minus plain training, +3.60" in line and " points (n = 3, 2), interim. " in line

    save(plan.out, made[last])
    (line,) = answer.answers(collection.gather(plan.out))
    test = stats.ttest_ind(best, plain, equal_var=False)
    low, high = test.confidence_interval()
    assert 0.025 < test.pvalue < 0.05
    words = "Named with the batch: Region Mixup minus plain training, +3.10"
    assert (
        f". {words} [{low:+.2f}, {high:+.2f}] points (n = 3, 3), resolved. In accuracy undecided"
        in line
    )
    assert read_batch(batch, tmp_path / "runs", ["mixer=none", "clean_weight=0"]).primary == []


@pytest.mark.parametrize(
    "metric, words",
    [
        ("nll", "nats of NLL (log loss, less is better)"),
        ("ece", "points of ECE (calibration error, less is better)"),
    ],
)
def test_the_difference_named_may_be_one_in_another_metric(tmp_path, metric, words):
    """All accuracies are equal there."""
    batch = tmp_path / "batch.yaml"
    batch.write_text(
        "grid: [{mixer: [none, mixup], seed: [0, 1, 2]}]\n"
        f"primary: [{{mixer: mixup}}, {{mixer: none}}]\nprimary_metric: {metric}"
    )
    plan = read_batch(batch, tmp_path / "runs")
    records = [make_record(**changed(run)) for run in plan.runs]
    for record in records:
        mixed = record.config["mixer"] == "mixup"
        record.metrics |= {metric: 0.5 + 0.3 * mixed + 0.1 * record.config["seed"]}
    save(plan.out, *records)
    plan.write([])
    (line,) = answer.answers(collection.gather(plan.out))
    test = stats.ttest_ind([0.8, 0.9, 1.0], [0.5, 0.6, 0.7], equal_var=False)
    low, high = test.confidence_interval()
    decimals = 3 if metric == "nll" else 2
    value = f"{0.3:+.{decimals}f} [{low:+.{decimals}f}, {high:+.{decimals}f}]"
    assert f"clean loss twice (control), {value} {words} (n = 3, 3), resolved." in line
    text = explain.explain([str(plan.out), "primary", "Mixup"], "A - B")
    assert "recomputed: +0.300" in text and text.count("  run ") == 6


def changed(run):
    return {"seed": run.seed, "mixer": run.mixer, "clean_weight": run.clean_weight}
