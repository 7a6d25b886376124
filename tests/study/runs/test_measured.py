"""What is measured on a run's network is stored once, next to its record, and loaded."""

import pytest
import torch
from made import attack_of, finished, make_record, save, store

from rmlib import UserError
from rmlib.evaluate import sample
from rmlib.maps import battery as maps
from rmlib.maps import cam
from rmlib.maps.params import CamParams
from rmlib.robustness import attacks, corruptions
from rmlib.robustness.params import FULL_ROBUSTNESS, RobustnessParams
from rmlib.study.runs import collection, measured, networks, records
from rmlib.study.runs.run import train
from rmlib.study.settings import parse

FEW_ATTACKS = {
    "images": 20,
    "eps": ["0", "4/255"],
    "square_eps": ["4/255"],
    "queries": 5,
    "check_images": 12,
    "autoattack_images": 0,
}
FEW_MAPS = {"measured": 10, "perturbed": 4}


@pytest.fixture
def run(tiny_run):
    """The folder of a run, its network, and the images it was evaluated on."""
    params, record = finished(tiny_run)
    test_set = networks.images_of(record, tiny_run["dataset"].removeprefix("folder:"))
    return params.folder, networks.load(params.folder), test_set


def never(*_, **__):
    raise AssertionError("computed again")


def test_attacks_are_stored_once_and_loaded(run, monkeypatch):
    (folder, _, _), settings = run, RobustnessParams(**FEW_ATTACKS, save=True)
    lines, again = [], []
    measured.attack(*run, settings, lines.append)
    stored = collection.collect_measurements(folder, "attacks")
    assert list(zip(stored["attack"], stored["eps"], stored["images"])) == [
        ("fgsm", "0", 20),
        ("fgsm", "4/255", 20),
        ("fgsm_margin", "4/255", 20),
        ("pgd", "4/255", 12),
        ("square", "4/255", 20),
    ]
    assert set(stored["queries"].dropna()) == {5} and len(lines) == 6
    assert len(collection.collect_measurements(folder, "corruptions")) == 1
    assert stored["clean_accuracy"].iloc[0] == stored["accuracy_after"].iloc[0]
    monkeypatch.setattr(attacks, "evaluate", never)
    monkeypatch.setattr(corruptions, "evaluate", never)
    measured.attack(*run, settings, again.append)
    assert again == lines
    with pytest.raises(AssertionError, match="computed again"):
        measured.attack(*run, settings.model_copy(update={"seed": 1}), lines.append)


def test_maps_are_stored_once_and_loaded(run, monkeypatch):
    (folder, model, test_set), settings = run, CamParams(**FEW_MAPS, save=True)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    (found,) = measured.explain([(folder, model)], test_set, settings)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    stored = collection.collect_measurements(folder, "cam")
    assert list(found) == list(maps.MEASURES)
    assert list(stored["measure"]) == [*maps.MEASURES, records.KEPT]
    assert list(stored["images"]) == [10, 4, 4, 6]
    assert (folder / "cam.json").stat().st_size < 12_000
    monkeypatch.setattr(cam, "maps", never)
    assert measured.explain([(folder, model)], test_set, settings) == [found]
    for change in ({"measured": 9}, {"seed": 1}, {"beside": "layer2"}, {"k": 3}):
        with pytest.raises(AssertionError, match="computed again"):
            other = settings.model_copy(update=change)
            measured.explain([(folder, model)], test_set, other)


def test_attacks_that_are_gone_stay_readable(run):
    """Older records hold torchattacks' Square as an attack of its own."""
    folder, model, test_set = run
    task = measured.robustness.attack(model, test_set, RobustnessParams(), "fgsm", "0")
    old = task._replace(settings=task.settings | {"attack": "square_torchattacks"})
    stored = measured.result(folder, old, save=True)
    frame = collection.collect_measurements(folder, "attacks")
    assert list(frame["attack"]) == ["square_torchattacks"]
    assert frame["accuracy_after"].iloc[0] == stored["accuracy_after"]


def test_right_after_a_training(tiny_run, monkeypatch):
    """`robustness` is no part of the run's identity, and measures as the paper's batches do."""
    params = parse("02_training", tiny_run | {"robustness": True})
    assert params.run_id == parse("02_training", tiny_run).run_id
    train(params, log=lambda line: None)
    monkeypatch.setattr(measured, "FULL_ROBUSTNESS", FULL_ROBUSTNESS | FEW_ATTACKS)
    monkeypatch.setattr(measured, "FULL_CAM", FEW_MAPS)
    measured.after_training(params, log=lambda line: None)
    assert len(collection.collect_measurements(params.folder, "attacks")) == 5
    last = collection.collect_measurements(params.folder, "cam")["measure"].iloc[-1]
    assert last == records.KEPT and records.measured_to_the_end(params.folder)
    shown, record = measured.kept(params.folder), records.read(params.folder)
    data = networks.images_of(record, tiny_run["dataset"].removeprefix("folder:"))
    some = data[sample(len(data), 6, 0, cam.PURPOSE)]
    again = cam.maps(networks.load(params.folder), some.images, some.labels, "layer4")
    assert set(shown) == {"layer4", "layer3"} and shown["layer4"].shape == (6, 8, 12)
    assert (again - shown["layer4"]).abs().max() < 0.01
    (params.folder / records.WEIGHTS).unlink()
    outlived = measured.kept(params.folder)
    assert torch.equal(outlived["layer3"], shown["layer3"]), "they outlive the weights"


def measurable(tmp_path):
    """The folder of a run, what measures on its network, and what was computed."""
    record = make_record()
    save(tmp_path, record)
    folder = tmp_path / record.run_id
    (folder / records.WEIGHTS).write_bytes(b"one")
    calls = []

    def measure(eps, number=50.0, save=True):
        settings, result = attack_of(
            {"attack": "fgsm", "eps": eps},
            {"images": 8, "clean_accuracy": number, "accuracy_after": 50.0},
        )

        def compute():
            calls.append(eps)
            return result | {"n": len(calls)}

        return store(folder, "attacks", settings, compute, save)["n"]

    return folder, measure, calls


def test_stored_and_loaded(tmp_path):
    folder, measure, calls = measurable(tmp_path)
    assert measure("0") == 1 and measure("0") == 1 and measure("8/255") == 2
    assert len(calls) == 2
    stored = records.measurements(folder, "attacks")
    assert [row.settings["eps"] for row in stored.measurements] == ["0", "8/255"]
    assert stored.measurements[0].hardware["cpu"] and "commit" in stored.measurements[0].code
    assert list(collection.collect_measurements(tmp_path, "attacks")["eps"]) == ["0", "8/255"]


def test_numbers_that_nobody_could_read_again_are_not_stored(tmp_path):
    folder, measure, _ = measurable(tmp_path)
    measure("0")
    with pytest.raises(UserError, match="cannot be stored .clean_accuracy: .*finite number.$"):
        measure("8/255", float("nan"))
    assert len(records.measurements(folder, "attacks").measurements) == 1


def test_other_weights_are_measured_again(tmp_path):
    folder, measure, calls = measurable(tmp_path)
    measure("0")
    (folder / records.WEIGHTS).write_bytes(b"two")
    assert measure("0") == 2
    assert len(records.measurements(folder, "attacks").measurements) == 1


def test_training_again_forgets_them_unless_the_network_is_the_same(tiny_run):
    params, _ = finished(tiny_run)
    store(params.folder, "cam", {"measure": "another"})
    (params.folder / records.RECORD).unlink()
    assert len(collection.collect_measurements(params.folder, "cam")) == 0, (
        "a run without record has no results"
    )
    train(params, log=lambda line: None)
    assert records.measurements(params.folder, "cam") is not None, (
        "the same network, bit for bit: hours of attacks stay"
    )
    path = params.folder / "cam.json"
    path.write_text(path.read_text().replace('"weights": "', '"weights": "0'))
    (params.folder / records.RECORD).unlink()
    train(params, log=lambda line: None)
    assert not path.exists(), "they were about another network"


def test_without_save_nothing_is_loaded_or_written(tmp_path):
    folder, measure, calls = measurable(tmp_path)
    assert measure("0", save=False) == 1 and measure("0", save=False) == 2
    assert records.measurements(folder, "attacks") is None and measured.kept(folder) == {}


def test_a_damaged_or_foreign_file_is_named(tmp_path):
    folder, measure, _ = measurable(tmp_path)
    measure("0")
    path = folder / "attacks.json"
    text = path.read_text()
    path.write_text(text[:50])
    with pytest.raises(UserError, match="attacks.json is damaged.*measure again"):
        measure("0")
    path.write_text(text.replace(folder.name, "0" * 12))
    with pytest.raises(UserError, match="belongs to another run"):
        measure("0")
