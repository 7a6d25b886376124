"""The battery of maps and measures: what is stored, what it is worth, and that it finds what was
planted.
"""

import pytest
import torch
from made import finished
from torch import nn

from rmlib.data import load
from rmlib.maps import battery as explanations
from rmlib.maps import cam, faithfulness, localization
from rmlib.maps.params import CamParams
from rmlib.packed import pack_values, unpack_values
from rmlib.study.runs import collection, networks, records

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


def test_everything_is_stored_once_and_loaded(tiny_run, monkeypatch):
    params, record = finished(tiny_run)
    settings, test_set = (
        CamParams(**SMALL, save=True),
        networks.images_of(record, tiny_run["dataset"].removeprefix("folder:")),
    )
    model = networks.load(params.folder)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    (found,) = explanations.measure_all([(params.folder, model)], test_set, settings)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    stored = collection.collect_measurements(params.folder, "cam")
    assert list(stored["measure"]) == [*explanations.MEASURES, records.KEPT] and list(
        stored["images"]
    ) == [10, 4, 4, 10, 6]
    assert list(stored["class"]) == ["true", "predicted", "true", "true", "true"] and set(
        cam.kept(params.folder)
    ) == {"layer4", "layer3"}
    assert list(found["localization"]["found"]) == [
        "gradcam++ layer4",
        "gradcam++ layer3",
        "hirescam layer4",
        "hirescam layer3",
    ]
    assert set(found["localization"]["found"]["hirescam layer3"]["mean"]) == {
        "extent",
        "empty",
        "asymmetry",
    }, "no masks, no boxes: no measure against objects; too few cells for a grid"
    assert set(found["faithfulness"]["found"]["gradcam++ layer4"]["mean"]) == {
        "average_drop",
        "increase",
        "deletion",
        "insertion",
        "road",
    }
    assert "road" not in found["faithfulness"]["found"]["gradcam++ layer3"]["mean"], (
        "its cost is paid for one layer"
    )
    assert list(found["sanity"]["found"]["gradcam++ layer4"]["stages"]) == [
        "linear",
        "layer4",
        "layer3",
        "layer2",
        "layer1",
        "conv1",
    ]
    assert (params.folder / "cam.json").stat().st_size < 12_000

    def never(*_, **__):
        raise AssertionError("computed again")

    monkeypatch.setattr(cam, "maps", never)
    assert explanations.measure_all([(params.folder, model)], test_set, settings) == [found]
    for change in ({"measured": 9}, {"seed": 1}, {"beside": "layer2"}, {"k": 3}):
        with pytest.raises(AssertionError, match="computed again"):
            explanations.measure_all(
                [(params.folder, model)], test_set, settings.model_copy(update=change)
            )


def test_numbers_are_those_of_the_parts(tiny_run):
    """What the battery stores is what its functions say of the same images."""
    params, record = finished(tiny_run)
    settings, test_set = (
        CamParams(**SMALL),
        networks.images_of(record, tiny_run["dataset"].removeprefix("folder:")),
    )
    model = networks.load(params.folder)
    data = explanations.measured_images(test_set, 4, 0)
    pixels, classes = data.images / 255, model(data.images / 255).argmax(1)
    entry = explanations.measure(params.folder, model, test_set, settings, "faithfulness")["found"][
        "gradcam++ layer4"
    ]
    grids = cam.maps(model, pixels, classes)
    drop, _ = faithfulness.drop_and_increase(model, pixels, grids, classes)
    assert entry["mean"]["average_drop"] == pytest.approx(drop.mean().item()) and unpack_values(
        entry["values"]["average_drop"]
    ) == pytest.approx(drop.numpy(), abs=0.126)
    other, _ = faithfulness.drop_and_increase(
        model, pixels, grids[explanations.partners(classes)], classes
    )
    assert entry["control"]["average_drop"] == pytest.approx(other.mean().item())
    deletion, _ = faithfulness.curves(model, pixels, grids, classes)
    assert entry["curves"]["deletion"] == pytest.approx(
        deletion.mean(0).tolist(), abs=0.006
    ) and entry["mean"]["deletion"] == pytest.approx(faithfulness.area(deletion).mean().item())


def test_the_guard_is_known_only_where_a_closed_form_is(tiny_run):
    params, record = finished(tiny_run)
    data = networks.images_of(record, tiny_run["dataset"].removeprefix("folder:"))
    model = networks.load(params.folder)
    found = explanations.guard(model, data, CamParams())
    assert (
        0 < found["compared"] <= len(data)
        and 0 < found["correlation"] <= 100
        and found["lowest"] <= found["correlation"]
        and 0 < found["negative"] < 100
        and 0 <= found["moved"] <= 100
    )
    assert explanations.guard(model, data, CamParams(layer="layer3")) == {}
    with torch.no_grad():
        model.linear.weight.mul_(1e-2)
    assert explanations.guard(model, data, CamParams())["correlation"] < found["correlation"], (
        "the smaller the gradients, the more eps decides"
    )
    with torch.no_grad():
        model.linear.weight.zero_()
    assert explanations.guard(model, data, CamParams()) == {}, "all maps empty: nothing to compare"


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


@pytest.mark.cuda
def test_cuda_measures_what_the_cpu_measures(tiny_run):
    params, record = finished(tiny_run)
    settings, test_set = (
        CamParams(**SMALL),
        networks.images_of(record, tiny_run["dataset"].removeprefix("folder:")),
    )
    on_cpu, on_cuda = (
        explanations.measure_all(
            [(params.folder, networks.load(params.folder).to(device))], test_set, settings
        )[0]
        for device in ("cpu", "cuda")
    )
    for name in ("localization", "faithfulness", "sanity"):
        for key, entry in on_cpu[name]["found"].items():
            part = "stages" if name == "sanity" else "mean"
            assert on_cuda[name]["found"][key][part] == pytest.approx(entry[part], abs=2)


def test_maps_of_large_images_are_kept_small(tmp_path, monkeypatch):
    """Of 40 x 64 pixels the cells are stored, a few hundred bytes an image, and they come back as
    pictures, nearly the same.
    """
    from made import make_record, save

    from rmlib.data import ImageSet
    from rmlib.models import preact_resnet18

    record = make_record()
    save(tmp_path, record)
    folder = tmp_path / record.run_id
    (folder / records.WEIGHTS).write_bytes(b"weights")
    torch.manual_seed(0)
    model, pixels = preact_resnet18(10, 2).eval(), (255 * torch.rand(9, 3, 40, 64)).byte()
    data = ImageSet(pixels, torch.arange(9), tuple("abcdefghi"), "c")
    cam.keep(folder, model, data, ["layer4", "layer3"], 9)
    stored = cam.kept(folder)
    assert (folder / "cam.json").stat().st_size < 5_000
    for layer, grids in stored.items():
        exact = cam.maps(model, pixels, data.labels, layer)
        assert (
            grids.shape == (9, 40, 64) and (grids - exact).abs().max() < 0.01 and exact.std() > 0.1
        )
