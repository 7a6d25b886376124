"""Accuracy under attack and corruptions beside its method."""

import pytest
import torch
from made import make_record, measured, save

from rmlib import UserError
from rmlib.packed import pack_bits
from rmlib.study.report import attacked, explain, groups, report
from rmlib.study.runs import collection


def fgsm(eps, after, images=50, **sample):
    """Settings and result of an attack by FGSM."""
    result = {"images": images, "clean_accuracy": 80.0, "accuracy_after": after}
    return {"attack": "fgsm", "eps": eps, **sample}, result


def store_robustness(root, record, accuracy):
    """FGSM of three sizes, Square and two corruptions of a network."""
    square, result = fgsm("8/255", 50.0)
    square |= {"attack": "square", "queries": 100}
    sizes = (("16/255", accuracy - 30), ("8/255", accuracy), ("0", 80.0))
    attacks = [fgsm(eps, value) for eps, value in sizes]
    measured(root, record, "attacks", *attacks, (square, result))
    severities = {"shot_noise": [60.0, 50.0, 40.0, 30.0, 20.0], "contrast": [accuracy] * 5}
    means = {"images": 50, "clean_accuracy": 80.0, "mean_accuracy": accuracy + 20}
    measured(root, record, "corruptions", ({"images": 50}, means | {"accuracy": severities}))


def test_attacks_stand_beside_their_method(tmp_path):
    made = [make_record(80, seed=s) for s in range(3)]
    save(tmp_path, *made, make_record(75, mixer="mixup"))
    for accuracy, record in zip((40.0, 44.0, 48.0), made):
        store_robustness(tmp_path, record, accuracy)
    text = report.markdown(tmp_path, "robustness")
    for sample in (
        {"image_seed": 1, "images": 20},
        {"image_seed": 0, "images": 20},
        {"batch_size": 7, "images": 20},
    ):
        measured(tmp_path, made[0], "attacks", fgsm("8/255", 0.0, **sample))
    assert report.markdown(tmp_path, "robustness") == text, (
        "a second, smaller sample is no second network"
    )
    assert "| FGSM 8/255 | FGSM 16/255 | Square 8/255 (100 queries) | corrupted (mean) |" in text, (
        "sizes in the order of their value"
    )
    assert (
        "| Region Mixup | 3 | 50 | 80.0 ± 0.0 | 44.0 ± 4.0 | 14.0 ± 4.0 | 50.0 ± 0.0 | 64.0 ± 4.0 |"
        in text
        and "| Mixup" not in text
    )
    (group,) = groups.experiments(groups.runs_below(tmp_path))
    stored = [
        collection.collect_measurements(tmp_path, kind) for kind in ("attacks", "corruptions")
    ]
    panels = attacked.panels(group, *stored, (("fgsm", "8/255"), ("square", "8/255")))
    ours = ("region_mixup", "Region Mixup")
    sorted_panels = {
        title: {name: sorted(each) for name, each in own.items()} for title, own in panels.items()
    }
    assert sorted_panels == {
        "FGSM 8/255": {ours: [40.0, 44.0, 48.0]},
        "Square 8/255": {ours: [50.0] * 3},
        "corrupted (mean)": {ours: [60.0, 64.0, 68.0]},
    }, "the figure has the networks behind the table"
    assert "| 4 | 0.07 |" in report.markdown(tmp_path, "costs")


def verdicts(left, zero=None, count=200):
    """The result of an attack that leaves the first ``left`` of ``count`` images right."""
    percent = 100 * left / count
    result = {"images": count, "correct": pack_bits(torch.arange(count) < left)}
    result |= {"accuracy_after": percent, "robust_accuracy": percent, "clean_accuracy": 80.0}
    return result if zero is None else result | {"zero_gradient": zero}


def test_a_mean_of_fewer_networks_than_its_row_says_so(tmp_path):
    made = [make_record(80, seed=s) for s in range(3)]
    save(tmp_path, *made)
    for accuracy, record in zip((40.0, 44.0), made):
        store_robustness(tmp_path, record, accuracy)
    measured(tmp_path, made[2], "attacks", fgsm("16/255", 18.0), fgsm("8/255", 48.0))
    text = report.markdown(tmp_path, "robustness")
    assert "| 44.0 ± 4.0 | 14.0 ± 4.0 | 50.0 ± 0.0 (n = 2) | 62.0 ± 2.8 (n = 2) |" in text
    assert "Region Mixup | 3 | 50 |" in text
    (table,) = report.tables(tmp_path, ("robustness",))["robustness"]
    csv = table.frame().iloc[0]
    assert csv["n"] == 3 and csv["Square 8/255 (100 queries)_n"] == 2
    assert "FGSM 8/255_n" not in csv
    with pytest.raises(UserError, match="shows 2:"):
        explain.explain([str(tmp_path), "2"])


def test_checks_count_the_networks_behind_a_warning(tmp_path):
    """Three networks on 200 of 10000 images: one without gradients, one overstated, one honest."""
    made = [make_record(80, seed=s) for s in range(3)]
    save(tmp_path, *made)

    for record, pgd, zero in zip(made, (100, 60, 100), (50, 0, 0)):
        common = {"image_seed": 4, "checksum": "c", "batch_size": 9}
        measured(
            tmp_path,
            record,
            "attacks",
            *[
                (
                    {"attack": name, "eps": eps, "images": 200, **common},
                    verdicts(left, zero if name == "fgsm" else None),
                )
                for eps in ("8/255", "2/255")
                for name, left in (("fgsm", 100), ("pgd", pgd))
            ],
            (
                {"attack": "autoattack", "eps": "8/255", "images": 20, **common},
                verdicts(5, count=20),
            ),
        )
    (made_table,) = report.tables(tmp_path)["checks"]
    table = made_table.frame()
    assert "PGD" not in report.markdown(tmp_path, "robustness"), "it has a table of its own"
    assert (
        list(table["eps"]) == ["2/255", "8/255"]
        and set(table["n"]) == {3}
        and set(table["images"]) == {200}
    )
    row = table.iloc[1]
    assert (
        row["fgsm"] == 50
        and row["strongest"] == pytest.approx((50 + 30 + 50) / 3)
        and row["zero_gradient"] == pytest.approx(25 / 3)
    )
    assert (
        row["warning"]
        == "images without gradient (1 of 3); overstated (1 of 3); too few images to tell (1 of 3);"
        " no attack without gradients (3 of 3)"
    )
    assert row["autoattack"] == 25 and row["its images"] == 20 and table.iloc[0]["its images"] != 20
    before = made_table.markdown()
    # other images, measured later, by PGD alone
    other = {"image_seed": 5, "checksum": "c", "batch_size": 9, "images": 200}
    measured(
        tmp_path,
        made[0],
        "attacks",
        ({"attack": "pgd", "eps": "8/255", **other}, verdicts(0)),
        (
            {"attack": "pgd", "eps": "8/255", **other, "image_seed": 4, "images": 50},
            verdicts(0, count=50),
        ),
    )
    assert report.tables(tmp_path)["checks"][0].markdown() == before, (
        "only images of one sample are compared, and the larger part of it"
    )


def test_a_lesson_shows_each_network_and_what_the_check_says_of_it():
    weak, strong = verdicts(120, zero=0), verdicts(60, zero=0)
    found = {"a": {("fgsm", "8/255"): weak, ("pgd", "8/255"): strong}}
    found["b"] = found["a"] | {("pgd", "8/255"): verdicts(118, zero=0)}
    (row, other) = attacked.believed(found, ["8/255"], 200, seed=0).rows
    assert row["FGSM (%)"] == 60 and row["strongest (%)"] == 30 and row["images"] == 200
    assert row["warning"] == "overstated; no attack without gradients"
    assert other["warning"].startswith("too few images to tell"), "two images differ"
    text = attacked.counts({("a", 3): strong | {"fooled": 90}}).markdown()
    assert "| a | 3 | 80 | 30 | 30 | 90 | 0 |" in text and "turned right" not in text
