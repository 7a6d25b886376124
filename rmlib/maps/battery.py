"""The maps and measures of notebook 04 and of the batches, as tasks on a network.

Every measure against the object or the network has a control: the same measure with the map of
another image, for another class. That map knows where objects usually are and nothing of this one.
:mod:`rmlib.study.runs.measured` stores what is found.
"""

import base64
import itertools
import zlib
from functools import partial

import torch

from rmlib.data import ImageSet, to_float
from rmlib.evaluate import predict
from rmlib.maps import cam, faithfulness, localization
from rmlib.maps.params import CamParams
from rmlib.measuring import Task, drawn
from rmlib.packed import pack_values

PURPOSE = "measured images"  # of the stream that draws the images of the measures
MEASURES = ("localization", "faithfulness", "sanity")
KEPT = "maps"  # the small maps that are stored last, for figures


def layers(settings: CamParams) -> list[str]:
    """The layers that are explained, once each."""
    return list(dict.fromkeys((settings.layer, settings.beside)))


def measured_images(test_set: ImageSet, count: int | None, seed: int) -> ImageSet:
    """The images of a measure."""
    return drawn(test_set, count, seed, PURPOSE)[0]


def partners(classes: torch.Tensor) -> torch.Tensor:
    """For each image the place of another one, whose map explains another class.

    It is the next such image from half of the set on. Without another class it is the image there.
    """
    count = len(classes)
    places = (torch.arange(count) + count // 2) % count
    for _ in range(count if (classes != classes[0]).any() else 0):
        same = classes[places] == classes
        places = torch.where(same, (places + 1) % count, places)
    return places


def _entry(values: dict, control: dict, **more) -> dict:
    """A stored measure: means, controls' means, and both for single images."""
    return {
        "mean": {name: each.mean().item() for name, each in values.items()},
        "control": {name: each.mean().item() for name, each in control.items()},
        "values": {name: pack_values(each) for name, each in values.items()},
        "control_values": {name: pack_values(each) for name, each in control.items()},
        **more,
    }


def locate(model, data: ImageSet, settings: CamParams) -> dict:
    """Where the maps of the true classes lie, by method and layer.

    The measures are those of :mod:`rmlib.maps.localization`, of the object where it is known.
    """
    masks, found, others = localization.object_masks(data), {}, partners(data.labels)
    for method, layer in itertools.product(cam.LIBRARY, layers(settings)):
        points = cam.maps(model, data.images, data.labels, layer, method=method, enlarged=False)
        grids = cam.enlarge(points, data.images.shape[2:])
        values = _against_objects(grids, masks) | {
            "extent": localization.extent(grids),
            "empty": 100 * localization.empty(grids).double(),
            "asymmetry": localization.asymmetry(grids, settings.k),
        }
        if localization.shows_grid(points.shape[1:], settings.k):
            values["grid_trace"] = localization.grid_trace(points, settings.k)
        found[f"{method} {layer}"] = _entry(values, _against_objects(grids[others], masks))
    area = {} if masks is None else {"object_area": 100 * masks.double().mean().item()}
    return {"found": found} | area


def _against_objects(grids, masks):
    if masks is None:
        return {}
    measures = (localization.energy_inside, localization.pointing_game, localization.iou)
    return {measure.__name__: measure(grids, masks) for measure in measures}


def perturb(model, data: ImageSet, settings: CamParams) -> dict:
    """Whether the maps of the predicted classes show what the network looks at, by layer.

    The measures are those of :mod:`rmlib.maps.faithfulness`, ROAD at ``layer`` alone.
    """
    pixels, found = to_float(data.images), {}
    classes = predict(model, data.images).argmax(1)
    others = partners(classes)
    for layer in layers(settings):
        grids = cam.maps(model, pixels, classes, layer)
        with_road = layer == settings.layer
        values, curves = _changes(model, pixels, grids, classes, settings.seed, with_road)
        control, _ = _changes(model, pixels, grids[others], classes, settings.seed, with_road)
        found[f"gradcam++ {layer}"] = _entry(values, control, curves=curves)
    return {"found": found}


def _changes(model, pixels, grids, classes, seed, with_road):
    """The measures of each image, and the mean curves."""
    both = model, pixels, grids, classes
    drop, increase = faithfulness.drop_and_increase(*both)
    curves = dict(zip(("deletion", "insertion"), faithfulness.curves(*both, seed)))
    values = {"average_drop": drop, "increase": increase}
    values |= {name: faithfulness.area(curve) for name, curve in curves.items()}
    if with_road:
        values["road"] = faithfulness.road(*both, seed)
    means = {name: curve.mean(0).tolist() for name, curve in curves.items()}
    return values, {name: [round(value, 2) for value in mean] for name, mean in means.items()}


def check(model, data: ImageSet, settings: CamParams) -> dict:
    """The sanity check, by layer: see :func:`rmlib.maps.faithfulness.sanity`.

    Rank correlations are in hundredths. Pairs with a flat or empty map are left out, and counted.
    """
    found = {}
    for layer in layers(settings):
        own = cam.maps(model, data.images, data.labels, layer)
        stages = faithfulness.sanity(model, data.images, data.labels, layer, seed=settings.seed)
        found[f"gradcam++ {layer}"] = {
            "stages": {name: _mean(100 * each) for name, each in stages.items()},
            "control": _mean(100 * faithfulness.correlation(own, own[partners(data.labels)])),
            "left_out": {name: int(each.isnan().sum()) for name, each in stages.items()},
        }
    return {"found": found}


def _mean(values: torch.Tensor) -> float | None:
    """Mean of what is known; None if nothing is."""
    return None if values.isnan().all() else values.nanmean().item()


def small(model, data: ImageSet, settings: CamParams) -> dict:
    """Maps of the true classes in 8 bits, at the grid points of each layer: see :func:`pictures`.

    They are for figures, for the time when the weights are gone.
    """
    stored = {}
    for layer in layers(settings):
        points = cam.maps(model, data.images, data.labels, layer, enlarged=False)
        levels = (points * 255).round().to(torch.uint8).numpy()
        text = base64.b64encode(zlib.compress(levels.tobytes(), 9)).decode()
        stored[layer] = {"cells": list(points.shape[1:]), "values": text}
    return {"shape": list(data.images.shape[2:]), "layers": stored}


def pictures(result: dict) -> dict[str, torch.Tensor]:
    """The maps behind :func:`small`, enlarged: layer -> (N, H, W) float32 in [0, 1]."""
    found = {}
    for layer, each in result["layers"].items():
        values = bytearray(zlib.decompress(base64.b64decode(each["values"])))
        points = torch.frombuffer(values, dtype=torch.uint8).view(-1, *each["cells"]) / 255
        found[layer] = cam.enlarge(points, result["shape"])
    return found


def measure(model, test_set: ImageSet, settings: CamParams, name: str) -> Task:
    """One of MEASURES, or KEPT, the maps of figures, on a network and its whole test set."""
    make, purpose, count = {
        "localization": (locate, PURPOSE, settings.measured),
        "faithfulness": (perturb, PURPOSE, settings.perturbed),
        "sanity": (check, PURPOSE, settings.perturbed),
        KEPT: (small, cam.PURPOSE, settings.images),
    }[name]
    data, images = drawn(test_set, count, settings.seed, purpose)
    methods = cam.LIBRARY if name == "localization" else ["gradcam++"]
    maps = [f"{method} {layer}" for method in methods for layer in layers(settings)]
    classes = "predicted" if name == "faithfulness" else "true"
    what = {"measure": name, "maps": maps, "from": cam.IDENTITY, "class": classes} | images
    if name == "localization":
        what["k"] = settings.k
    return Task(model, "cam", what, partial(make, model, data, settings))


def disagreement(stacks: list[torch.Tensor]) -> torch.Tensor:
    """How differently several networks look at each image, (N,) from 0 to 2.

    It is 1 - rank correlation of their maps (N, H, W), averaged over the pairs of networks. Where
    one of the maps is empty there is nothing to compare: 0.
    """
    pairs = itertools.combinations(stacks, 2)
    differences = [1 - faithfulness.correlation(a, b) for a, b in pairs]
    return torch.stack(differences).mean(0).nan_to_num(0)
