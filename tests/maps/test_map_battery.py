"""The battery of maps: what a measure is worth, and that it finds what was planted."""

import pytest
import torch
from torch import nn

from rmlib.data import ImageSet, load
from rmlib.maps import battery as explanations
from rmlib.maps import cam, faithfulness, localization
from rmlib.maps.params import FULL_CAM, CamParams
from rmlib.models import preact_resnet18
from rmlib.packed import pack_values, unpack_values
from rmlib.paths import project_root
from rmlib.study.batch.plan import read_batch
from rmlib.study.runs import records

SMALL = dict(measured=10, perturbed=4)


class Detector(nn.Module):
    """Sees the objects of `shapes` by their masks, which it is told: the network whose true
    attention is known.
    """

    def __init__(self, data, wrong=False):
        super().__init__()
        self.known = {
            image.numpy().tobytes(): (mask if not wrong else ~mask).float()
            for image, mask in zip(data.images, data.masks)
        }
        self.layer = nn.Identity()
        self.scale = nn.Parameter(torch.tensor(3.0))
        self.classes = len(data.classes)

    def forward(self, images):
        keys = [image.numpy().tobytes() for image in (images * 255).round().byte()]
        seen = torch.stack([self.known.get(key, torch.zeros(images.shape[2:])) for key in keys])[
            :, None
        ]
        seen = self.layer(self.scale * seen)
        return seen.mean((2, 3)) * torch.ones(self.classes)


def some_shapes(count=20):
    data = load("shapes", split="test")
    return data[torch.arange(0, len(data), len(data) // count)[:count]]


def test_a_network_whose_attention_is_known_points_inside():
    """All of its energy lies on the object; with the inverted mask none does; and both differ from
    another image's map.
    """
    data = some_shapes()
    for wrong, energy in ((False, 100), (True, 0)):
        grids = cam.maps(Detector(data, wrong), data.images, data.labels, "layer")
        scores = localization.energy_inside(grids, data.masks)
        assert torch.allclose(
            scores, torch.full((20,), float(energy), dtype=torch.float64), atol=1e-3
        )
        assert (
            localization.pointing_game(grids, data.masks).eq(energy).all()
            and localization.iou(grids, data.masks).eq(energy).all()
        )
    settings = CamParams(layer="layer", beside="layer", **SMALL)
    (entry,) = {
        key: value
        for key, value in explanations.locate(Detector(data), data, settings)["found"].items()
        if key.startswith("gradcam")
    }.values()
    assert (
        entry["mean"]["energy_inside"] == pytest.approx(100, abs=1e-3)
        and 10 < entry["control"]["energy_inside"] < 70
        and entry["mean"]["empty"] == 0
    )
    assert (
        set(entry["control"]) == {"energy_inside", "pointing_game", "iou"}
        and len(unpack_values(entry["values"]["extent"])) == 20
    )


@pytest.mark.parametrize(
    "classes", [[0] * 8 + [1] * 3, [0, 1], list(range(7)), [2, 0, 0, 1, 0, 0], [0] * 30 + [1]]
)
def test_another_image_is_explained_for_another_class(classes):
    classes = torch.tensor(classes)
    others = explanations.partners(classes)
    assert (classes[others] != classes).all()


def test_without_another_class_another_image():
    assert explanations.partners(torch.zeros(4, dtype=torch.int64)).tolist() == [2, 3, 0, 1]


def test_the_same_images_in_small_and_large_measures():
    data = load("shapes", split="test")
    few, many = (explanations.measured_images(data, count, 3) for count in (30, 200))
    keys = {image.numpy().tobytes() for image in many.images}
    assert len(few) == 30 and all(image.numpy().tobytes() in keys for image in few.images)


def test_images_on_which_networks_disagree():
    grids = torch.rand(3, 4, 5, generator=torch.Generator().manual_seed(0))
    other = torch.stack((grids[0], 1 - grids[1], grids[2].flip(0)))
    found = explanations.disagreement([grids, other, grids])
    assert (
        found[0] == pytest.approx(0) and found[1] == pytest.approx(4 / 3) and 0 < found[2] < 4 / 3
    )
    other[1] = 0
    assert explanations.disagreement([grids, other, grids])[1] == 0, "an empty map has no opinion"


def test_values_of_images_survive_packing():
    values = torch.cat(
        [
            200 * torch.rand(500, generator=torch.Generator().manual_seed(0)) - 75,
            torch.tensor([0.0, 100.0, -100.0, 1e6]),
        ]
    )
    text = pack_values(values)
    assert (
        len(text) < 1100
        and abs(unpack_values(text)[:-1] - values[:-1].numpy()).max() <= 0.126
        and unpack_values(text)[-1] == 8191.75
    )


def small_network(classes=3, width=2, **options):
    torch.manual_seed(0)
    return preact_resnet18(classes, width, **options).eval()


def small_set(count=9, height=16, width=24):
    pixels = 255 * torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(0))
    return ImageSet(pixels.byte(), torch.arange(count) % 3, ("a", "b", "c"), "c")


def test_numbers_are_those_of_the_parts():
    """What the battery finds is what its functions say of the same images."""
    model, data = small_network(), small_set()
    task = explanations.measure(model, data, CamParams(**SMALL), "faithfulness")
    entry = task.compute()["found"]["gradcam++ layer4"]
    some = explanations.measured_images(data, 4, 0)
    pixels = some.images / 255
    classes = model(pixels).argmax(1)
    grids = cam.maps(model, pixels, classes)
    drop, _ = faithfulness.drop_and_increase(model, pixels, grids, classes)
    assert entry["mean"]["average_drop"] == pytest.approx(drop.mean().item())
    packed = unpack_values(entry["values"]["average_drop"])
    assert packed == pytest.approx(drop.numpy(), abs=0.126)
    others = grids[explanations.partners(classes)]
    other, _ = faithfulness.drop_and_increase(model, pixels, others, classes)
    assert entry["control"]["average_drop"] == pytest.approx(other.mean().item())
    deletion, _ = faithfulness.curves(model, pixels, grids, classes)
    assert entry["curves"]["deletion"] == pytest.approx(deletion.mean(0).tolist(), abs=0.006)
    assert entry["mean"]["deletion"] == pytest.approx(faithfulness.area(deletion).mean().item())


def test_what_each_measure_holds():
    model, data = small_network(), small_set()
    tasks = [
        explanations.measure(model, data, CamParams(**SMALL), name)
        for name in (*explanations.MEASURES, explanations.KEPT)
    ]
    assert [task.settings["images"] for task in tasks] == [9, 4, 4, 6]
    classes = [task.settings["class"] for task in tasks]
    assert classes == ["true", "predicted", "true", "true"]
    located, changed, checked, _ = (task.compute() for task in tasks)
    layers = ["gradcam++ layer4", "gradcam++ layer3", "hirescam layer4", "hirescam layer3"]
    assert list(located["found"]) == layers
    assert set(located["found"]["hirescam layer4"]["mean"]) == {"extent", "empty", "asymmetry"}, (
        "no masks, no boxes: no measure against objects; too few grid points for a grid"
    )
    means = {layer: set(entry["mean"]) for layer, entry in changed["found"].items()}
    assert means["gradcam++ layer4"] - means["gradcam++ layer3"] == {"road"}, (
        "its cost is paid for one layer"
    )
    assert means["gradcam++ layer3"] == {"average_drop", "increase", "deletion", "insertion"}
    stages = ["linear", "layer4", "layer3", "layer2", "layer1", "conv1"]
    assert list(checked["found"]["gradcam++ layer4"]["stages"]) == stages
    assert explanations.KEPT == records.KEPT


def test_maps_of_large_images_are_kept_small():
    """The grid points are stored, some hundred bytes an image, and come back as nearly the same."""
    model, data = small_network(), small_set(9, 40, 64)
    task = explanations.measure(model, data, CamParams(images=9), explanations.KEPT)
    stored = task.compute()
    assert len(str(stored)) < 5_000
    for layer, grids in explanations.pictures(stored).items():
        exact = cam.maps(model, data.images, data.labels, layer)
        assert grids.shape == (9, 40, 64) and exact.std() > 0.1
        assert (grids - exact).abs().max() < 0.01


@pytest.mark.cuda
def test_cuda_measures_what_the_cpu_measures():
    data, settings = small_set(12), CamParams(**SMALL)
    for name in ("localization", "faithfulness", "sanity"):
        on_cpu, on_cuda = (
            explanations.measure(small_network().to(device), data, settings, name).compute()
            for device in ("cpu", "cuda")
        )
        part = "stages" if name == "sanity" else "mean"
        for key, entry in on_cpu["found"].items():
            assert on_cuda["found"][key][part] == pytest.approx(entry[part], abs=2)


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "tiny-imagenet"])
def test_the_papers_batches_measure_what_a_training_would(name, tmp_path):
    """So that notebook 04 loads what was measured right after a training."""
    batch = read_batch(project_root() / f"notebooks/batches/{name}.yaml", tmp_path)
    lesson, right_after = batch.notebooks["04_cam"], CamParams(**FULL_CAM)
    places = {"runs", "root", "device", "threads", "save", "clean_weight"}
    assert lesson.save and lesson.model_dump(exclude=places) == right_after.model_dump(
        exclude=places
    )
    assert right_after.perturbed == 500
