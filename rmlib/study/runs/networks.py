"""Trained networks: where they lie, how they are loaded, and the images they were evaluated on."""

from pathlib import Path

import torch
from safetensors.torch import load_file, save

from rmlib import UserError
from rmlib.data import ImageSet
from rmlib.models import PreActResNet18
from rmlib.params import MIXERS, TrainParams, complete
from rmlib.study.names import experiment, method_name
from rmlib.study.runs import records
from rmlib.study.runs.records import KINDS, RECORD, WEIGHTS, Record
from rmlib.study.runs.run import evaluation_set
from rmlib.train import make_model


def find(runs: Path, clean_weight: float | None = None) -> list[tuple[Path, Record]]:
    """The finished runs below a folder whose weights are there, by method and seed.

    Args:
        runs: searched with everything below it.
        clean_weight: only runs with this weight of the clean loss; None: all.

    Returns:
        Pairs (folder, record).

    Raises:
        UserError: there is none, or they differ in more than method and seed.
    """
    folders = [path.parent for path in sorted(Path(runs).rglob(WEIGHTS))]
    found = [(each, records.read(each)) for each in folders if (each / RECORD).exists()]
    if clean_weight is not None:
        found = [each for each in found if each[1].config["clean_weight"] == clean_weight]
    if not found:
        which = "" if clean_weight is None else f" trained with clean_weight={clean_weight:g}"
        raise UserError(
            f"there is no finished run{which} with its {WEIGHTS} under {Path(runs).resolve()}: run"
            " a batch first, or set `runs` or `clean_weight`"
        )
    _same_images(runs, [record for _, record in found])
    _same_experiment(runs, [experiment(record.config) for _, record in found])
    return sorted(found, key=_by_method)


def _same_images(runs, found):
    images = {
        (record.config["dataset"], record.data["checksum"], record.data["test_images"])
        for record in found
    }
    if len(images) > 1:
        raise UserError(
            f"the runs under {runs} were evaluated on different images: set `runs` to the folder of"
            " one experiment"
        )


def _same_experiment(runs, settings):
    values = {name: sorted({str(each[name]) for each in settings}) for name in settings[0]}
    differing = [f"{name}: {', '.join(some)}" for name, some in values.items() if len(some) > 1]
    if differing:
        raise UserError(
            f"the runs under {runs} are of different experiments ({'; '.join(differing)}): set"
            " `runs` to the folder of one"
        )


def _by_method(item):
    config = item[1].config
    return MIXERS.index(config["mixer"]), method_name(config), config["seed"], item[1].run_id


def images_of(record: Record, root=None) -> ImageSet:
    """The images a finished run was evaluated on, and checked to be the same ones.

    Args:
        root: folder of the datasets; for a run on folder:NAME, that folder itself.

    Raises:
        UserError: the images cannot be found, or are others than the run's.
    """
    config = complete(record.config)
    name, run = config["dataset"], f"the run {record.run_id}"
    if name.startswith("folder:"):
        if root is None:
            raise UserError(f"{run} was trained on {name}: give the path of that folder as `root`")
        config["dataset"], root = f"folder:{root}", None
    data = evaluation_set(TrainParams(**config, root=root))
    if data.checksum != record.data["checksum"]:
        raise UserError(
            f"{run} was made from other images than {config['dataset']} holds now: train it again,"
            " or set `root`"
        )
    return data


def load(folder: Path) -> PreActResNet18:
    """The trained network of a finished run, float32, in eval mode, on the CPU; input in [0, 1]."""
    record, path = records.read(folder), Path(folder) / WEIGHTS
    if not path.exists():
        raise UserError(f"{path} is not there (few networks are committed): train the run again")
    data = record.data
    model = make_model(TrainParams(**record.config), data["classes"], data["mean"], data["std"])
    try:
        model.load_state_dict(load_file(path))
    except Exception as error:  # safetensors and torch raise several kinds for a broken file
        problem = f"is damaged or of another network ({str(error).splitlines()[0][:100]})"
        raise UserError(f"{path} {problem}: delete the folder and train the run again") from error
    return model.eval()


def halve(folder: Path) -> None:
    """Store the weights of a finished run in float16: half the size, nearly the same verdicts.

    Raises:
        UserError: something was measured on the whole weights, which would then be lost.
    """
    path = Path(folder) / WEIGHTS
    whole = load_file(path)
    if any((path.parent / f"{kind}.json").exists() for kind in KINDS):
        raise UserError(f"{folder} has measurements of its weights: halve them before measuring")
    half = {
        name: value.half() if value.dtype == torch.float32 else value
        for name, value in whole.items()
    }
    records.atomic_write(path, save(half))
