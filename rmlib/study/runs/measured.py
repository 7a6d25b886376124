"""What is measured on the network of a run, stored next to its record: loaded where it is there."""

import sys
import time
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from rmlib import UserError
from rmlib.data import ImageSet
from rmlib.maps import battery as maps
from rmlib.maps.params import FULL_CAM, CamParams
from rmlib.measuring import Task
from rmlib.params import TrainParams
from rmlib.robustness import battery as robustness
from rmlib.robustness.params import FULL_ROBUSTNESS, RobustnessParams
from rmlib.study.runs import networks, records, schema
from rmlib.study.runs.environment import environment
from rmlib.study.runs.run import evaluation_set, pick_device
from rmlib.study.runs.schema import Measurement, Measurements


def result(folder: Path, task: Task, save: bool) -> dict:
    """The result of a task on the network of the run in a folder.

    ``save``: load what is stored for the same settings and weights, store what is new.
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
    try:
        schema.check(task.kind, new)
    except ValueError as error:
        problem = f"cannot be stored ({schema.first_fault(error)})"
        raise UserError(f"the {task.kind} of the network in {folder} {problem}") from error
    stored.measurements.append(new)
    content = records.in_rows(stored.model_dump(mode="json"), "measurements", indent=2)
    records.atomic_write(folder / f"{task.kind}.json", content)
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

    With ``settings.save`` the maps of the figures are stored, too, last. ``trained``: (folder of
    the run, network) pairs. ``watched``: show a progress bar.
    """
    names = [*maps.MEASURES, *([maps.KEPT] if settings.save else [])]
    steps = [(number, name) for number in range(len(trained)) for name in names]
    found: list[dict[str, dict]] = [{} for _ in trained]
    for number, name in tqdm(steps, disable=not watched, leave=False, file=sys.stdout):
        folder, model = trained[number]
        measured = result(folder, maps.measure(model, test_set, settings, name), settings.save)
        if name != maps.KEPT:
            found[number][name] = measured
    return found


def kept(folder: Path) -> dict[str, torch.Tensor]:
    """The maps for figures that are stored with a run: layer -> (N, H, W); none stored: {}.

    Raises:
        UserError: the file is damaged or belongs to another run.
    """
    stored = records.measurements(folder, "cam")
    rows = stored.measurements if stored else []
    results = [row.result for row in rows if row.settings["measure"] == maps.KEPT]
    return {layer: grids for each in results for layer, grids in maps.pictures(each).items()}


def after_training(params: TrainParams, log=print) -> None:
    """Measure the network of a finished run as the paper's networks are measured, on its device."""
    given = {"root": params.root, "device": params.device, "threads": params.threads, "save": True}
    count, full = params.measured_images, dict[str, Any](FULL_ROBUSTNESS)
    if count is not None:
        full |= {"images": count, "autoattack_images": min(full["autoattack_images"], count // 20)}
    model, test_set = networks.load(params.folder), evaluation_set(params)
    model.to(pick_device(params.device))
    attack(params.folder, model, test_set, RobustnessParams(**full | given), log)
    settings = CamParams(**FULL_CAM, **given)
    log(f"maps: {', '.join(maps.MEASURES)}")
    explain([(params.folder, model)], test_set, settings)
    log(f"Grad-CAM++: the maps of {settings.images} images are kept")
