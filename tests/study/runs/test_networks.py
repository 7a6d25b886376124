"""Trained networks come back as they were stored, with the images they belong to."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from made import finished
from PIL import Image

from rmlib import UserError
from rmlib.evaluate import predict
from rmlib.paths import networks_dir, project_root
from rmlib.study.names import method_name
from rmlib.study.runs import networks, records
from rmlib.study.runs.run import evaluation_set


def test_networks_are_found_by_method_and_seed(tiny_run, tmp_path):
    for change in (
        dict(mixer="region_mixup"),
        dict(mixer="none", seed=1),
        dict(mixer="none"),
        dict(mixer="mixup", clean_weight=0),
    ):
        finished(tiny_run, **change)
    found = [
        (record.config["mixer"], record.config["seed"]) for _, record in networks.find(tmp_path, 1)
    ]
    assert found == [("none", 0), ("none", 1), ("region_mixup", 0)]
    assert len(networks.find(tmp_path)) == 4
    folder, record = networks.find(tmp_path, 0)[0]
    assert record.config["mixer"] == "mixup" and networks.load(folder).linear.out_features == 3
    with pytest.raises(UserError, match="clean_weight=0.5"):
        networks.find(tmp_path, 0.5)
    (folder / records.RECORD).unlink()
    with pytest.raises(UserError, match="no finished run"):
        networks.find(folder)


def test_a_damaged_record_costs_its_network_alone(tiny_run, tmp_path):
    (params, _), (_, other) = finished(tiny_run), finished(tiny_run, seed=1)
    (params.folder / records.RECORD).write_text("{")
    with pytest.warns(UserWarning, match="left out: .*record.json is damaged"):
        ((_, found),) = networks.find(tmp_path)
    assert found == other


def test_runs_of_different_images_are_not_compared(tiny_run, tmp_path):
    finished(tiny_run)
    finished(tiny_run, test_images=15)
    with pytest.raises(UserError, match="different images: set `runs`"):
        networks.find(tmp_path)


def test_runs_of_different_experiments_are_not_compared_and_methods_not_pooled(tiny_run, tmp_path):
    finished(tiny_run)
    finished(tiny_run, average=True)
    assert [method_name(record.config) for _, record in networks.find(tmp_path)] == [
        "Region Mixup",
        "Region Mixup, average",
    ]
    finished(tiny_run, epochs=2)
    with pytest.raises(UserError, match=r"different experiments .epochs: 1, 2.: set `runs`"):
        networks.find(tmp_path)


def test_the_images_of_a_run(tiny_run, pictures, tmp_path):
    params, record = finished(tiny_run)
    assert torch.equal(networks.images_of(record, pictures).images, evaluation_set(params).images)
    with pytest.raises(UserError, match="give the path of that folder as `root`"):
        networks.images_of(record)
    changed = tmp_path / pictures.name
    shutil.copytree(pictures, changed)
    next((changed / "test" / "red").iterdir()).unlink()
    with pytest.raises(UserError, match="other images"):
        networks.images_of(record, changed)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b"PK"),
        lambda path: path.write_bytes(path.read_bytes()[:-40]),
        lambda path: path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1])),
    ],
    ids=["no weights", "truncated", "one bit flipped"],
)
def test_damaged_weights(tiny_run, damage):
    params, _ = finished(tiny_run)
    damage(params.folder / records.WEIGHTS)
    with pytest.raises(UserError, match="is damaged or of another network") as error:
        networks.load(params.folder)
    assert "\n" not in str(error.value)
    (params.folder / records.WEIGHTS).unlink()
    with pytest.raises(UserError, match="train the run again"):
        networks.load(params.folder)


def test_networks_of_older_records_have_no_digest_and_are_loaded(tiny_run):
    params, record = finished(tiny_run)
    weights = (params.folder / records.WEIGHTS).read_bytes()
    assert record.weights == hashlib.sha256(weights).hexdigest()
    path = params.folder / records.RECORD
    fields = json.loads(path.read_text())
    del fields["weights"]
    path.write_text(json.dumps(fields))
    assert networks.load(params.folder).linear.out_features == 3


def test_a_picture_is_classified_as_in_the_evaluation(tiny_run, pictures, tmp_path):
    """The names are those of the folders, and grey pictures are read as a dataset reads them."""
    params, _ = finished(tiny_run)
    files = sorted(pictures.glob("test/*/*.png"))[::7]
    grey = tmp_path / "grey.png"
    Image.open(files[0]).convert("L").save(grey)
    found = networks.classify(params.folder, [*files, grey])
    pixels = np.stack([np.asarray(Image.open(file).convert("RGB")) for file in [*files, grey]])
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    expected = predict(networks.load(params.folder), images).softmax(1)
    for one, row in zip(found, expected):
        assert list(one) == sorted(one, key=lambda name: -one[name])
        assert [one[name] for name in evaluation_set(params).classes] == pytest.approx(row.tolist())
    assert networks.classify(str(params.folder), []) == []


def test_a_picture_of_another_size_or_none_is_refused_in_a_line(tiny_run, tmp_path):
    params, _ = finished(tiny_run)
    Image.new("RGB", (8, 8)).save(tmp_path / "small.png")
    with pytest.raises(UserError, match=r"small.png has 8 x 8 pixels, .* on 8 x 12: resize it"):
        networks.classify(params.folder, [tmp_path / "small.png"])
    with pytest.raises(UserError, match="there is no file .*nothing.png"):
        networks.classify(params.folder, [tmp_path / "nothing.png"])
    (tmp_path / "torn.png").write_bytes((tmp_path / "small.png").read_bytes()[:20])
    with pytest.raises(UserError, match="torn.png .*cannot be read as an image"):
        networks.classify(params.folder, [tmp_path / "torn.png"])


def test_an_older_record_does_not_know_its_classes():
    folder = next((project_root() / "results" / "precision").glob("*/record.json")).parent
    for function, argument in ((networks.classify, []), (networks.export, "x.pt2")):
        with pytest.raises(UserError, match="does not have the classes.*train the run again"):
            function(folder, argument)


def test_the_exported_network_gives_the_same_logits_without_rmlib(tiny_run, pictures, tmp_path):
    """In batches of any size, on pixels in [0, 1]: the normalisation is inside."""
    params, _ = finished(tiny_run)
    images, file = evaluation_set(params).images, tmp_path / "network.pt2"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        networks.export(params.folder, file)
    torch.save((images, predict(networks.load(params.folder), images)), tmp_path / "expected.pt")
    code = """
import sys, json, torch
extra = {"classes.json": ""}
network = torch.export.load("network.pt2", extra_files=extra).module()
images, expected = torch.load("expected.pt")
for size in (1, 3, 30):
    logits = torch.cat([network(part.float() / 255) for part in images.split(size)])
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
assert "rmlib" not in sys.modules
print(extra["classes.json"])
"""
    alone = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=alone, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == list(evaluation_set(params).classes)


def test_the_committed_networks_are_those_of_their_records():
    """One of every method, in float16; each gives the accuracy of its record, to the few images
    that rounding may turn.
    """
    found = networks.find(networks_dir())
    committed = {record.config["mixer"] for _, record in found}
    assert committed == {"none", "mixup", "cutmix", "region_mixup"}
    data = networks.images_of(found[0][1])
    for folder, record in found[:4]:
        weights = (folder / records.WEIGHTS).read_bytes()
        assert len(weights) < 500_000
        for kind in ("attacks", "cam"):
            assert (
                records.measurements(folder, kind).weights == hashlib.sha256(weights).hexdigest()
            ), "measured on these very weights"
        accuracy = (
            100
            * (predict(networks.load(folder), data.images).argmax(1) == data.labels)
            .double()
            .mean()
            .item()
        )
        assert abs(accuracy - record.metrics["accuracy"]) < 0.5
