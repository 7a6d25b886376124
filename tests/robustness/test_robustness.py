"""The battery on a trained network, and the check that says whether FGSM can be believed."""

import numpy as np
import pytest
import torch
from made import finished
from toys import loud, touchy

from rmlib import UserError
from rmlib.evaluate import sample
from rmlib.maps import battery as explanations
from rmlib.maps import cam
from rmlib.maps.params import FULL_CAM, CamParams
from rmlib.packed import pack_bits
from rmlib.paths import project_root
from rmlib.robustness import attacks, masking
from rmlib.robustness import battery as robustness
from rmlib.robustness.params import FULL_ROBUSTNESS, RobustnessParams
from rmlib.study.batch.plan import read_batch
from rmlib.study.report import paper
from rmlib.study.runs import collection, networks, records
from rmlib.study.runs.run import train
from rmlib.study.settings import parse

SMALL = dict(
    images=20,
    eps=["0", "4/255"],
    square_eps=["4/255"],
    queries=5,
    check_images=12,
    autoattack_images=0,
)


def four(model, images, labels, eps="8/255"):
    """The attacks that a check needs, on one network."""
    return {
        (name, eps): attacks.evaluate(model, images, labels, name, eps)
        for name in ("fgsm", "fgsm_margin", "pgd", "square")
    }


def test_a_masked_network_is_exposed_and_an_honest_one_is_not():
    model, images, labels = touchy(60)
    honest = masking.check(four(model, images, labels), "8/255", 60, 0)
    assert honest["warnings"] == [] and honest["fgsm"] == honest["strongest"], (
        "on a linear network one step is the best attack"
    )
    masked = masking.check(four(loud(model), images, labels), "8/255", 60, 0)
    assert masked["warnings"] == [
        "images without gradient",
        "the same step on the margin fools more",
        "overstated",
    ]
    assert (
        masked["fgsm"]
        == honest["fgsm"]
        + 100 * four(loud(model), images, labels)["fgsm_margin", "8/255"]["fooled"] / 60
    )
    assert masked["strongest"] == honest["strongest"] and masked["zero_gradient"] == pytest.approx(
        75
    )


def verdicts(bits, zero=0, **more):
    """A result of an attack with these verdicts."""
    bits = torch.tensor(bits, dtype=torch.bool)
    return {"images": len(bits), "correct": pack_bits(bits), "zero_gradient": zero, **more}


def test_one_sign_at_a_time():
    """200 images, of which FGSM leaves the first 100 right; each attack beside it decides about one
    warning.
    """

    def warns(zero=0, **others):
        results = {("fgsm", "8/255"): verdicts([i < 100 for i in range(200)], zero)}
        results |= {
            (name, "8/255"): verdicts([i < left for i in range(200)])
            for name, left in others.items()
        }
        return masking.check(results, "8/255", 200, 0)["warnings"]

    same = {"square": 100}  # an attack without gradients that agrees
    assert warns(fgsm_margin=100, pgd=100, square=150) == []
    assert warns(**same, zero=1) == [] and warns(**same, zero=2) == ["images without gradient"]
    assert warns(**same, fgsm_margin=94) == ["too few images to tell"], (
        "six that differ cannot be told from chance at this level"
    )
    assert warns(**same, fgsm_margin=93) == ["the same step on the margin fools more", "overstated"]
    assert (
        warns(**same, pgd=106) == []
        and warns(**same, pgd=107) == ["20 steps fool fewer than one"]
        and warns(**same, pgd=80) == ["overstated"]
    )
    assert warns(square=97) == ["too few images to tell"] and warns(square=80) == [
        "Square, without gradients, fools more",
        "overstated",
    ]
    assert warns(pgd=100) == ["no attack without gradients"], (
        "where Square was not run, masking may be overlooked"
    )


def test_what_cannot_be_checked_is_said():
    alone = {("fgsm", "8/255"): verdicts([True] * 20)}
    with pytest.raises(UserError, match="FGSM at eps=8/255 cannot be checked"):
        masking.check(alone, "8/255", 20, 0)
    with pytest.raises(UserError, match="FGSM at eps=4/255 cannot be checked"):
        masking.check(alone | {("pgd", "8/255"): verdicts([True] * 20)}, "4/255", 20, 0)
    with pytest.raises(UserError, match="total=10"):
        masking.check(alone | {("pgd", "8/255"): verdicts([True] * 20)}, "8/255", 10, 0)


def test_an_image_wrong_from_the_start_is_no_survivor():
    results = {
        ("fgsm", "8/255"): verdicts([True, True, False]),
        ("pgd", "8/255"): verdicts([True, True, True]),
    }
    assert masking.check(results, "8/255", 3, 0)["strongest"] == pytest.approx(200 / 3)
    assert masking.check(results | {("fgsm", "0"): verdicts([False, True, True])}, "8/255", 3, 0)[
        "strongest"
    ] == pytest.approx(100 / 3)


def test_attacks_on_fewer_images_are_compared_on_those():
    total, few = 100, sample(100, 30, 5, masking.PURPOSE)
    rng = np.random.default_rng(0)
    fgsm, pgd, square = (rng.random(total) < share for share in (0.8, 0.5, 0.7))
    results = {
        ("fgsm", "8/255"): verdicts(fgsm),
        ("pgd", "8/255"): verdicts(pgd[few]),
        ("square", "8/255"): verdicts(square),
        ("fgsm", "4/255"): verdicts(np.ones(total, bool)),
    }
    found = masking.check(results, "8/255", total, 5)
    assert found["images"] == 30 and found["fgsm"] == pytest.approx(100 * fgsm[few].mean())
    assert found["strongest"] == pytest.approx(100 * (fgsm & pgd & square)[few].mean())
    last = results | {("autoattack", "8/255"): verdicts(np.zeros(12, bool))}
    assert masking.check(last, "8/255", total, 5)["images"] == 30, (
        "AutoAttack's few images do not shrink the rest"
    )


def test_the_battery_is_stored_once_and_loaded(tiny_run, monkeypatch):
    params, record = finished(tiny_run)
    settings, test_set = (
        RobustnessParams(**SMALL, save=True),
        networks.images_of(record, tiny_run["dataset"].removeprefix("folder:")),
    )
    model, lines = networks.load(params.folder), []
    robustness.measure(params.folder, model, test_set, settings, lines.append)
    stored = collection.collect_measurements(params.folder, "attacks")
    assert list(zip(stored["attack"], stored["eps"], stored["images"])) == [
        ("fgsm", "0", 20),
        ("fgsm", "4/255", 20),
        ("fgsm_margin", "4/255", 20),
        ("pgd", "4/255", 12),
        ("square", "4/255", 20),
    ]
    assert (
        set(stored["queries"].dropna()) == {5}
        and len(collection.collect_measurements(params.folder, "corruptions")) == 1
        and len(lines) == 6
    )
    assert (stored["clean_accuracy"].iloc[0], 20) == (
        stored["accuracy_after"].iloc[0],
        stored["images"].iloc[0],
    )

    def never(*_, **__):
        raise AssertionError("computed again")

    monkeypatch.setattr(attacks, "evaluate", never)
    monkeypatch.setattr(robustness.corruptions, "evaluate", never)
    again = []
    robustness.measure(params.folder, model, test_set, settings, again.append)
    assert again == lines
    with pytest.raises(AssertionError, match="computed again"):
        robustness.measure(
            params.folder, model, test_set, settings.model_copy(update={"seed": 1}), lines.append
        )


@pytest.mark.parametrize(
    "images, check, autoattack, expected",
    [
        (64, None, 8, (64, 64, 8)),
        (None, 1000, 200, (None, 1000, 200)),
        (10, 50, 20, (10, 10, 10)),
        (None, None, 5, (None, None, 5)),
    ],
)
def test_no_attack_gets_more_images_than_there_are(images, check, autoattack, expected):
    settings = RobustnessParams(images=images, check_images=check, autoattack_images=autoattack)
    assert (
        tuple(robustness.images_under(name, settings) for name in ("fgsm", "pgd", "autoattack"))
        == expected
    )


def test_autoattack_runs_only_when_asked_and_where_it_can():
    assert ("autoattack", "32/255") in robustness.battery(RobustnessParams(), 4)
    for settings, classes in ((RobustnessParams(autoattack_images=0), 10), (RobustnessParams(), 3)):
        assert not [
            name for name, _ in robustness.battery(settings, classes) if name == "autoattack"
        ]


def test_right_after_a_training(tiny_run, monkeypatch):
    """`robustness` is no part of the run's identity, and measures as the batches of the paper's
    networks do.
    """
    params = parse("02_training", tiny_run | {"robustness": True})
    assert params.run_id == parse("02_training", tiny_run).run_id
    train(params, log=lambda line: None)
    monkeypatch.setattr(robustness, "FULL_ROBUSTNESS", FULL_ROBUSTNESS | SMALL)
    monkeypatch.setattr(explanations, "FULL_CAM", {"measured": 10, "perturbed": 4})
    robustness.after_training(params, log=lambda line: None)
    assert len(collection.collect_measurements(params.folder, "attacks")) == 5
    assert list(collection.collect_measurements(params.folder, "cam")["measure"]) == [
        *explanations.MEASURES,
        records.KEPT,
    ], "the maps for figures come last"
    shown = cam.kept(params.folder)
    assert set(shown) == {"layer4", "layer3"} and all(
        grids.shape == (6, 8, 12) for grids in shown.values()
    )
    data = networks.images_of(
        records.read(params.folder), tiny_run["dataset"].removeprefix("folder:")
    )
    some = data[sample(len(data), 6, 0, cam.PURPOSE)]
    again = cam.maps(networks.load(params.folder), some.images, some.labels, "layer4")
    assert (again - shown["layer4"]).abs().max() < 0.01
    (params.folder / records.WEIGHTS).unlink()
    assert torch.equal(cam.kept(params.folder)["layer3"], shown["layer3"]), (
        "they outlive the weights"
    )


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "tiny-imagenet"])
def test_the_papers_batches_measure_what_a_training_would(name, tmp_path):
    """So that what was measured right after a training is loaded by notebook 03 and not computed
    again.
    """
    lesson = read_batch(project_root() / f"notebooks/batches/{name}.yaml", tmp_path).lessons[
        "03_robustness"
    ]
    right_after = RobustnessParams(**FULL_ROBUSTNESS)
    places = ("runs", "root", "device", "threads", "save", "clean_weight")
    assert (
        lesson.model_dump(exclude=set(places)) == right_after.model_dump(exclude=set(places))
        and lesson.save
    )
    lesson, right_after_cam = (
        read_batch(project_root() / f"notebooks/batches/{name}.yaml", tmp_path).lessons["04_cam"],
        CamParams(**FULL_CAM),
    )
    assert (
        lesson.model_dump(exclude=set(places)) == right_after_cam.model_dump(exclude=set(places))
        and lesson.save
        and right_after_cam.perturbed == 500
    )
    assert (
        right_after.queries == paper.QUERIES
        and paper.EPS in right_after.eps
        and paper.EPS in right_after.square_eps
        and right_after.images is None
    )
