"""The small-data study's claims, from made-up records under its protocol."""

import pytest
from made import make_record, measured, save

from rmlib.params import TrainParams
from rmlib.paths import project_root
from rmlib.study.batch.plan import read_batch
from rmlib.study.report import groups, report, small
from rmlib.study.report.claims import fit_protocol
from rmlib.study.runs import collection

SMALL = {name: value for name, value in small.PROTOCOL.items() if name in TrainParams.model_fields}
SMALL |= {"dataset": "cifar10", "train_images": 5000}


def accuracies(root, count=10, **values):
    """Records of each method; ``values``: mixer -> function of the seed."""
    for mixer, value in values.items():
        save(root, *(make_record(value(s), seed=s, mixer=mixer, **SMALL) for s in range(count)))


def row(root, text, metric="accuracy"):
    attacks = collection.collect_measurements(root, "attacks")
    frame = small.claims(groups.runs_below(root), attacks).frame()
    fits = frame["claim"].str.endswith(text) & (frame["in"] == metric)
    (found,) = frame[fits & (frame["dataset"] == "cifar10")].to_dict("records")
    return found


REGION_MIXUP = "Region Mixup, clean_weight=1 minus Mixup, clean_weight=1"


def test_the_batches_follow_the_protocol():
    for name, seeds in small.SEEDS.items():
        path = project_root() / "notebooks" / "batches" / f"{name}-small.yaml"
        cells = read_batch(path).runs
        assert {cell.train_images for cell in cells} == {small.TRAIN_IMAGES[name]}
        wanted = {(mixer, 1.0) for mixer in ("none", "mixup", "cutmix", "region_mixup")}
        for method in wanted:
            own = [cell for cell in cells if (cell.mixer, cell.clean_weight) == method]
            alike = [
                cell
                for cell in own
                if all(getattr(cell, key) == value for key, value in small.PROTOCOL.items())
            ]
            assert {cell.seed for cell in alike} == set(range(seeds)), (name, method)


def test_nothing_run_has_no_table(tmp_path):
    save(tmp_path, make_record(50.0))
    assert report.tables(tmp_path)["small"] == []


def test_larger_smaller_equal_and_unresolved(tmp_path):
    def noise(seed):
        return 0.1 * (seed % 3)

    root = tmp_path / "a"
    accuracies(root, region_mixup=lambda s: 60 + noise(s), mixup=lambda s: 58 + noise(s))
    found = row(root, REGION_MIXUP)
    assert found["state"] == "resolved: larger" and found["n"] == "10, 10 of 10"
    assert found["A - B"].startswith("+2.000 [") and found["claim"].startswith("primary: ")
    root = tmp_path / "b"
    accuracies(root, region_mixup=lambda s: 57 + noise(s), mixup=lambda s: 58 + noise(s))
    assert row(root, REGION_MIXUP)["state"] == "resolved: smaller"
    root = tmp_path / "c"
    accuracies(root, region_mixup=lambda s: 58.01 + noise(s), mixup=lambda s: 58 + noise(s))
    assert row(root, REGION_MIXUP)["state"] == "resolved: no difference larger than 1 point"
    root = tmp_path / "d"
    accuracies(root, region_mixup=lambda s: 58.5 + 3 * (s % 3), mixup=lambda s: 58 + 3 * (s % 3))
    assert row(root, REGION_MIXUP)["state"] == "unresolved"


def test_a_primary_claim_is_corrected_for_both_even_if_one_was_not_run(tmp_path):
    """Ten seeds with p between 0.025 and 0.05: alone resolved, with two primary claims not."""
    accuracies(tmp_path, region_mixup=lambda s: 58 + s % 2 * 2, mixup=lambda s: 56.98 + s % 2 * 2)
    found = row(tmp_path, REGION_MIXUP)
    assert found["p"] < 0.05 < found["p (Holm)"] < 0.1 and found["state"] == "unresolved"


@pytest.mark.parametrize("change", [{"epochs": 61}, {"train_images": 4999}, {"width": 16}])
def test_another_protocol_does_not_count(tmp_path, change):
    save(tmp_path, make_record(50.0, **SMALL), make_record(50.0, **SMALL | change))
    runs = groups.runs_below(tmp_path)
    assert len(small.under_protocol(runs)) == 1 and len(runs) == 2


def test_seeds_beyond_the_fixed_ones_and_other_samples_do_not_count(tmp_path):
    made = [make_record(60.0 + s, seed=s, **SMALL) for s in range(12)]
    save(tmp_path, *made)
    for record, images in zip(made, [small.IMAGES] * 3 + [500] * 9):
        what = {"attack": "fgsm", "eps": small.EPS}
        after = {"images": images, "clean_accuracy": 60.0, "accuracy_after": 30.0}
        measured(tmp_path, record, "attacks", (what, after))
    assert row(tmp_path, REGION_MIXUP)["n"] == "10, 0 of 10"
    assert row(tmp_path, REGION_MIXUP, "fgsm")["n"] == "3, 0 of 10"
    assert row(tmp_path, REGION_MIXUP)["state"] == "too few runs (10 and 0 of 10)"


def test_a_parameter_of_none_is_found_as_nan(tmp_path):
    save(tmp_path, make_record(50.0, test_images=None), make_record(50.0, test_images=10, seed=1))
    fits = fit_protocol(
        groups.runs_below(tmp_path), {"test_images": None, "milestones": [0.25, 0.375]}
    )
    assert sorted(fits) == [False, True]


def caption(root):
    attacks = collection.collect_measurements(root, "attacks")
    return small.claims(groups.runs_below(root), attacks).caption


def test_the_papers_direction_stands_beside_ours(tmp_path):
    """The paper has Region Mixup above Mixup and CutMix, and nothing about the doubled loss."""

    def at(value):
        return lambda seed: value + 0.1 * (seed % 3)

    accuracies(tmp_path, region_mixup=at(56), mixup=at(58), cutmix=at(55), none=at(50))
    others = ("Mixup, clean_weight=1", "CutMix, clean_weight=1", "clean loss twice (control)")
    found = [row(tmp_path, f"minus {name}") for name in others]
    told = [each["paper"] for each in found]
    assert told == ["larger: opposite", "larger: same direction", "–"]
    assert "of 6 claims" in caption(tmp_path) and "another experiment" in caption(tmp_path)
    assert "1 same direction, 1 opposite, 0 not told apart, 4 no verdict" in caption(tmp_path)


def test_the_claims_of_a_dataset_stand_where_it_has_runs(tmp_path):
    cifar100 = SMALL | {"dataset": "cifar100", "train_images": small.TRAIN_IMAGES["cifar100"]}
    save(
        tmp_path, *(make_record(44.0 + s % 2, seed=s, mixer="mixup", **cifar100) for s in range(5))
    )
    (table,) = report.tables(tmp_path, ("small",))["small"]
    assert {row["dataset"] for row in table.rows} == {"cifar100"}
    accuracies(tmp_path, mixup=lambda s: 75)
    (table,) = report.tables(tmp_path, ("small",))["small"]
    assert len(table.rows) == len(small.CLAIMS)


@pytest.mark.parametrize(
    "state, words",
    [
        ("resolved: smaller", "same direction"),
        ("resolved: larger", "opposite"),
        ("unresolved", "not told apart"),
        ("resolved: no difference larger than 1 point", "not told apart"),
        ("too few runs (9 and 10 of 10)", "no verdict yet"),
        ("not run", "no verdict yet"),
    ],
)
def test_on_cifar100_the_paper_has_cutmix_above_region_mixup(state, words):
    (claim,) = (
        claim
        for claim in small.CLAIMS
        if claim.dataset == "cifar100" and claim.b == small.CUTMIX and claim.metric == "accuracy"
    )
    assert small.direction(claim) == "smaller" and small.beside("smaller", state) == words


def test_a_diverged_run_that_leaves_a_claim_is_told(tmp_path):
    accuracies(tmp_path, region_mixup=lambda s: 56, mixup=lambda s: 58)
    save(tmp_path, make_record(status="diverged", seed=3, mixer="mixup", **SMALL))
    found = row(tmp_path, REGION_MIXUP)
    assert found["n"] == "10, 9 of 10 (1 diverged)"
    assert found["state"] == "too few runs (10 and 9 of 10)"
