"""The battery of maps and measures on a trained network, as notebook 04 and the batches run it,
stored beside its record.

Every measure against the object or the network stands beside its control: the same measure with the
map of another image, for another class, which knows where objects usually are and nothing of this
one.
"""

import itertools
import sys
from pathlib import Path

import torch
from tqdm import tqdm

from rmlib.data import ImageSet, to_float
from rmlib.evaluate import evaluating, full_precision, predict, sample
from rmlib.maps import cam, faithfulness, localization
from rmlib.maps.params import FULL_CAM, CamParams
from rmlib.packed import pack_values
from rmlib.params import TrainParams
from rmlib.study.runs import records

PURPOSE = "measured images"  # of the stream that draws the images of the measures
MEASURES = ("localization", "faithfulness", "sanity", "guard")


def layers(settings: CamParams) -> list[str]:
    """The layers that are explained, once each."""
    return list(dict.fromkeys((settings.layer, settings.beside)))


def pairs(settings: CamParams) -> list[tuple[str, str]]:
    """(method, layer) of the maps that are compared with objects and grid."""
    return list(itertools.product(cam.LIBRARY, layers(settings)))


def measured_images(test_set: ImageSet, count: int | None, seed: int) -> ImageSet:
    """The images of a measure; those of a smaller one are among those of a larger one."""
    return test_set[sample(len(test_set), count, seed, PURPOSE)]


def partners(classes: torch.Tensor) -> torch.Tensor:
    """For each image the place of another one whose map explains another class: the next such, from
    half of the set away. Where there is no other class, the image half of the set away.
    """
    count = len(classes)
    places = (torch.arange(count) + count // 2) % count
    for _ in range(count if (classes != classes[0]).any() else 0):
        same = classes[places] == classes
        if not same.any():
            break
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
    """Where the maps of the true classes lie: (method, layer) -> measures of
    :mod:`rmlib.maps.localization`; those of the object where it is known.
    """
    masks, found, others = localization.object_masks(data), {}, partners(data.labels)
    for method, layer in pairs(settings):
        cells = cam.maps(model, data.images, data.labels, layer, method=method, cells=True)
        grids = cam.enlarge(cells, data.images.shape[2:])

        def against_objects(grids):
            return (
                {}
                if masks is None
                else {
                    each.__name__: each(grids, masks)
                    for each in (
                        localization.energy_inside,
                        localization.pointing_game,
                        localization.iou,
                    )
                }
            )

        alone = {
            "extent": localization.extent(grids),
            "empty": 100 * localization.empty(grids).double(),
            "asymmetry": localization.asymmetry(grids, settings.k),
        }
        if localization.shows_grid(cells.shape[1:], settings.k):
            alone["grid_trace"] = localization.grid_trace(cells, settings.k)
        found[f"{method} {layer}"] = _entry(
            against_objects(grids) | alone, against_objects(grids[others])
        )
    return {"found": found} | (
        {} if masks is None else {"object_area": 100 * masks.double().mean().item()}
    )


def perturb(model, data: ImageSet, settings: CamParams) -> dict:
    """Whether the maps of the predicted classes tell what the network looks at: measures of
    :mod:`rmlib.maps.faithfulness`; ROAD at ``layer`` alone.
    """
    pixels, found = to_float(data.images), {}
    classes = predict(model, data.images).argmax(1)
    others = partners(classes)
    for layer in layers(settings):
        grids, shapes = cam.maps(model, pixels, classes, layer), {}

        def change(grids):
            drop, increase = faithfulness.drop_and_increase(model, pixels, grids, classes)
            deletion, insertion = faithfulness.curves(model, pixels, grids, classes, settings.seed)
            shapes.setdefault(
                "curves",
                {
                    name: [round(value, 2) for value in curve.mean(0).tolist()]
                    for name, curve in (("deletion", deletion), ("insertion", insertion))
                },
            )
            values = {
                "average_drop": drop,
                "increase": increase,
                "deletion": faithfulness.area(deletion),
                "insertion": faithfulness.area(insertion),
            }
            return values | (
                {"road": faithfulness.road(model, pixels, grids, classes, settings.seed)}
                if layer == settings.layer
                else {}
            )

        found[f"gradcam++ {layer}"] = _entry(change(grids), change(grids[others]), **shapes)
    return {"found": found}


def _mean(values: torch.Tensor) -> float | None:
    """Mean of what is known; None if nothing is."""
    return values.nanmean().item() if not values.isnan().all() else None


def check(model, data: ImageSet, settings: CamParams) -> dict:
    """The sanity check: rank correlation (in hundredths) of the maps of the true classes with those
    of networks with shuffled weights, stage by stage. Pairs in which a map is flat or empty are
    left out, and counted.
    """
    found = {}
    for layer in layers(settings):
        own = cam.maps(model, data.images, data.labels, layer)
        stages = faithfulness.sanity(model, data.images, data.labels, layer, seed=settings.seed)
        means = {name: _mean(100 * each) for name, each in stages.items()}
        found[f"gradcam++ {layer}"] = {
            "stages": means,
            "control": _mean(100 * faithfulness.correlation(own, own[partners(data.labels)])),
            "left_out": {name: int(each.isnan().sum()) for name, each in stages.items()},
        }
    return {"found": found}


def guard(model, data: ImageSet, settings: CamParams) -> dict:
    """What the eps in the denominator of Grad-CAM++ changes, where the closed form holds: rank
    correlation of the maps with and without it in hundredths (mean and lowest), percent of the
    images whose maximum moves by more than a pixel, of the images where neither is empty; and
    percent of the activations that are negative. {} where there is no closed form, or nothing to
    compare.
    """
    head = cam.head_behind(model, settings.layer)
    if head is None:
        return {}
    with (
        evaluating(model),
        full_precision(),
        torch.autocast(head.weight.device.type, enabled=False),
    ):
        parts = [
            cam.forward_to(
                model, model.get_submodule(settings.layer), to_float(images.to(head.weight.device))
            )[0].float()
            for images in data.images.split(200)
        ]
        activations, weights = torch.cat(parts), head.weight[data.labels.to(head.weight.device)]
        with_eps, without = (
            cam.enlarge(cam.closed_form(activations, weights, eps=eps), data.images.shape[2:]).cpu()
            for eps in (cam.EPS, 0.0)
        )
    same = 100 * faithfulness.correlation(with_eps, without)
    width = with_eps.shape[2]
    places = [
        torch.stack((peak // width, peak % width))
        for peak in (grids.flatten(1).argmax(1) for grids in (with_eps, without))
    ]
    known = ~same.isnan()  # both empty: nothing to compare
    if not known.any():
        return {}
    return {
        "correlation": same[known].mean().item(),
        "lowest": same[known].min().item(),
        "compared": int(known.sum()),
        "moved": 100 * ((places[0] - places[1]).abs().amax(0) > 1)[known].double().mean().item(),
        "negative": 100 * (activations < 0).double().mean().item(),
    }


def measure(folder: Path, model, test_set: ImageSet, settings: CamParams, name: str) -> dict:
    """One of MEASURES on the network of a run: the result of :func:`locate`, :func:`perturb`,
    :func:`check` or :func:`guard`.

    With ``settings.save`` it is stored in the run's folder, and loaded if it is there.
    ``test_set``: all images the run was evaluated on.
    """
    make, count = {
        "localization": (locate, settings.measured),
        "faithfulness": (perturb, settings.perturbed),
        "sanity": (check, settings.perturbed),
        "guard": (guard, settings.measured),
    }[name]
    data = measured_images(test_set, count, settings.seed)
    maps = {
        "localization": [f"{method} {layer}" for method, layer in pairs(settings)],
        "guard": [f"gradcam++ {settings.layer}"],
    }
    what = {
        "measure": name,
        "maps": maps.get(name, [f"gradcam++ {layer}" for layer in layers(settings)]),
        "from": cam.IDENTITY,
        "class": "predicted" if name == "faithfulness" else "true",
        "images": len(data),
        "image_seed": settings.seed,
        "checksum": data.checksum,
    }
    if name == "localization":
        what["k"] = settings.k
    return records.measure(
        folder,
        "cam",
        what,
        lambda: make(model, data, settings),
        next(model.parameters()).device.type,
        settings.save,
    )


def measure_all(
    networks: list, test_set: ImageSet, settings: CamParams, watched: bool = False
) -> list[dict[str, dict]]:
    """Every measure on every network, as [{name of the measure: result}]; with ``settings.save``
    the maps of the figure are kept beside them, last.

    Args:
        networks: (folder, model) pairs. watched: show a progress bar.
    """
    steps = tqdm(
        total=len(networks) * len(MEASURES), disable=not watched, leave=False, file=sys.stdout
    )
    found = []
    with steps:
        for folder, model in networks:
            found.append({})
            for name in MEASURES:
                found[-1][name] = measure(folder, model, test_set, settings, name)
                steps.update()
            if settings.save:
                cam.keep(folder, model, test_set, layers(settings), settings.images, settings.seed)
    return found


def after_training(params: TrainParams, model, test_set: ImageSet, log=print) -> None:
    """Measure the maps of a finished run's network as those of the paper's networks (FULL_CAM), and
    keep a few small ones, last.
    """
    settings = CamParams(
        **FULL_CAM, root=params.root, device=params.device, threads=params.threads, save=True
    )
    log(f"maps: {', '.join(MEASURES)}")
    measure_all([(params.folder, model)], test_set, settings)
    log(f"Grad-CAM++: the maps of {settings.images} images are kept")


def disagreement(stacks: list[torch.Tensor]) -> torch.Tensor:
    """How differently several networks look at each image: 1 - rank correlation of their maps (N,
    H, W), averaged over the pairs; (N,), 0 to 2. Where one of the maps is empty there is nothing to
    compare: 0.
    """
    return (
        torch.stack(
            [1 - faithfulness.correlation(a, b) for a, b in itertools.combinations(stacks, 2)]
        )
        .mean(0)
        .nan_to_num(0)
    )
