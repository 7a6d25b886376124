"""What is measured on the network of a run, stored next to its record: loaded where it is there."""

import json
import sys
import time
from pathlib import Path

import torch
from tqdm import tqdm

from rmlib.data import ImageSet
from rmlib.maps import battery as maps
from rmlib.maps.params import FULL_CAM, CamParams
from rmlib.measuring import Task
from rmlib.params import TrainParams
from rmlib.robustness import battery as robustness
from rmlib.robustness.params import FULL_ROBUSTNESS, RobustnessParams
from rmlib.study.runs import networks, records
from rmlib.study.runs.environment import environment
from rmlib.study.runs.records import Measurement, Measurements
from rmlib.study.runs.run import pick_device


def result(folder: Path, task: Task, save: bool) -> dict:
    """The result of a task on the network of a run: loaded if it was stored, else computed.

    Args:
        folder: of the run.
        save: load what is stored for the same settings and weights, store what is new; else always
            compute.
    """
    if not save:
        return task.compute()
    weights, stored = records.weights_hash(folder), records.measurements(folder, task.kind)
    # trained again: what is known of other weights does not count
    if stored is None or stored.weights != weights:
        stored = Measurements(run_id=records.read(folder).run_id, weights=weights)
    for known in stored.measurements:
        if known.settings == task.settings:
            return known.result
    begun = time.perf_counter()
    found = task.compute()
    seconds = time.perf_counter() - begun
    where = environment(next(task.model.parameters()).device.type)
    new = Measurement(settings=task.settings, result=found, seconds=seconds, **where)
    stored.measurements.append(new)
    lines = [json.dumps(row) for row in stored.model_dump(mode="json")["measurements"]]
    head = json.dumps(stored.model_dump(mode="json", exclude={"measurements"}), indent=1)
    rows = ",\n  ".join(lines)
    text = f'{head[:-2]},\n "measurements": [\n  {rows}\n ]\n}}\n'
    records.atomic_write(folder / f"{task.kind}.json", text.encode())
    return found


def attack(folder: Path, model, test_set: ImageSet, settings: RobustnessParams, log=print) -> None:
    """All attacks and corruptions that the parameters ask for, stored one by one."""
    for task in robustness.tasks(model, test_set, settings):
        name = "{attack} {eps}".format(**task.settings) if task.kind == "attacks" else task.kind
        if name.startswith("autoattack"):
            images = task.settings["images"]
            log(f"{name}: {images} images, seconds to minutes for each that survives")
        found = result(folder, task, settings.save)
        if task.kind == "attacks":
            log(f"{name}: {found['accuracy_after']:.2f} % of {found['images']} images")
        else:
            log(f"{name}: {found['mean_accuracy']:.2f} %")


def explain(
    trained: list, test_set: ImageSet, settings: CamParams, watched: bool = False
) -> list[dict[str, dict]]:
    """Every measure of maps on every network: for each, name of the measure -> result.

    With ``settings.save`` the maps of the figures are stored, too, last.

    Args:
        trained: (folder of the run, network) pairs.
        watched: show a progress bar.
    """
    names = [*maps.MEASURES, *([maps.KEPT] if settings.save else [])]
    total = len(trained) * len(names)
    found = []
    with tqdm(total=total, disable=not watched, leave=False, file=sys.stdout) as steps:
        for folder, model in trained:
            results = {}
            for name in names:
                task = maps.measure(model, test_set, settings, name)
                results[name] = result(folder, task, settings.save)
                steps.update()
            results.pop(maps.KEPT, None)
            found.append(results)
    return found


def kept(folder: Path) -> dict[str, torch.Tensor]:
    """The maps for figures that are stored with a run: layer -> (N, H, W); none stored: {}.

    Raises:
        UserError: the file is damaged or belongs to another run.
    """
    stored = records.measurements(folder, "cam")
    rows = (
        [row for row in stored.measurements if row.settings["measure"] == maps.KEPT]
        if stored
        else []
    )
    return {layer: grids for row in rows for layer, grids in maps.pictures(row.result).items()}


def after_training(params: TrainParams, log=print) -> None:
    """Measure the network of a finished run as the paper's networks are measured, on its device."""
    given = {"root": params.root, "device": params.device, "threads": params.threads, "save": True}
    count = params.measured_images
    fewer = {}
    if count is not None:
        last = min(FULL_ROBUSTNESS["autoattack_images"], count // 20)
        fewer = {"images": count, "autoattack_images": last}
    record = records.read(params.folder)
    name = params.dataset
    root = name.removeprefix("folder:") if name.startswith("folder:") else params.root
    model = networks.load(params.folder).to(pick_device(params.device))
    test_set = networks.images_of(record, root)
    attack(params.folder, model, test_set, RobustnessParams(**FULL_ROBUSTNESS | fewer | given), log)
    settings = CamParams(**FULL_CAM, **given)
    log(f"maps: {', '.join(maps.MEASURES)}")
    explain([(params.folder, model)], test_set, settings)
    log(f"Grad-CAM++: the maps of {settings.images} images are kept")
