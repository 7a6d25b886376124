"""Trained networks: where they lie, how they are loaded, the images they were evaluated on, and
what they say of a picture.
"""

import io
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from rmlib import UserError
from rmlib.data import ImageSet
from rmlib.datasets.decode import decode
from rmlib.evaluate import predict
from rmlib.models import PreActResNet18
from rmlib.params import MIXERS, TrainParams, complete
from rmlib.study.names import experiment, method_name
from rmlib.study.runs import collection, records
from rmlib.study.runs.records import WEIGHTS, Record
from rmlib.study.runs.run import evaluation_set
from rmlib.train import make_model


def find(runs: Path, clean_weight: float | None = None) -> list[tuple[Path, Record]]:
    """(folder, record) of the finished runs below a folder that have weights, by method and seed.

    ``clean_weight``: only runs with this weight of the clean loss; None: all. They must not differ
    in more than method and seed.

    Raises:
        UserError: there is none, or they differ in more than method and seed.
    """
    below = collection.opened(runs)
    stored = [each for each in below.folders.items() if (each[1] / WEIGHTS).exists()]
    found = [(folder, below.records[run_id]) for run_id, folder in stored]
    if clean_weight is not None:
        found = [each for each in found if each[1].config["clean_weight"] == clean_weight]
    if not found:
        which = "" if clean_weight is None else f" trained with clean_weight={clean_weight:g}"
        problem = f"no finished run{which} with its {WEIGHTS} is under {Path(runs).resolve()}"
        raise UserError(f"{problem}: run a batch first, or set `runs` or `clean_weight`")
    _refuse_different(runs, [record for _, record in found])
    return sorted(found, key=_by_method)


def _refuse_different(runs, found):
    """Refuse runs that were not evaluated on the same images or are of different experiments."""
    images = {(each.data["checksum"], each.data["test_images"]) for each in found}
    if len(images) > 1 or len({each.config["dataset"] for each in found}) > 1:
        problem = f"the runs under {runs} were evaluated on different images"
        raise UserError(f"{problem}: set `runs` to the folder of one experiment")
    settings = [experiment(record.config) for record in found]
    values = {name: sorted({str(each[name]) for each in settings}) for name in settings[0]}
    differing = [f"{name}: {', '.join(some)}" for name, some in values.items() if len(some) > 1]
    if differing:
        problem = f"the runs under {runs} are of different experiments ({'; '.join(differing)})"
        raise UserError(f"{problem}: set `runs` to the folder of one")


def _by_method(item):
    config = item[1].config
    return MIXERS.index(config["mixer"]), method_name(config), config["seed"], item[1].run_id


def images_of(record: Record, root=None) -> ImageSet:
    """The images a finished run was evaluated on, and checked to be the same ones.

    ``root``: folder of the datasets; for a run on folder:NAME, that folder itself.

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
        problem = f"{run} was made from other images than {config['dataset']} holds now"
        raise UserError(f"{problem}: train it again, or set `root`")
    return data


def load(folder: Path) -> PreActResNet18:
    """The trained network of a finished run, float32, in eval mode, on the CPU; input in [0, 1]."""
    record, path = records.read(folder), Path(folder) / WEIGHTS
    if not path.exists():
        raise UserError(f"{path} is not there (few networks are committed): train the run again")
    if record.weights and records.weights_hash(Path(folder)) != record.weights:
        problem = f"{path} is damaged or of another network (its record has another sha256)"
        raise UserError(f"{problem}: delete the folder and train the run again")
    data = record.data
    model = make_model(TrainParams(**record.config), data["classes"], data["mean"], data["std"])
    try:
        model.load_state_dict(load_file(path))
    except Exception as error:  # safetensors and torch raise several kinds for a broken file
        problem = f"is damaged or of another network ({str(error).splitlines()[0][:100]})"
        raise UserError(f"{path} {problem}: delete the folder and train the run again") from error
    return model.eval()


def _classes_and_size(folder):
    """The names of a run's classes, and height and width of its images, from its record."""
    record = records.read(folder)
    if record.confusion is None or "size" not in record.data:
        problem = f"the record in {folder} does not have the classes and the size of the images yet"
        raise UserError(f"{problem}: delete the folder and train the run again")
    return list(record.confusion), record.data["size"]


def classify(folder: Path | str, pictures: Iterable[Path | str]) -> list[dict[str, float]]:
    """What the network of a run says of each picture: class -> probability, the likeliest first.

    A picture is the path of a file. It is read as one of the run's images, and has their size.
    """
    classes, (height, width) = _classes_and_size(folder)
    pixels = []
    for picture in map(Path, pictures):
        if not picture.is_file():
            raise UserError(f"there is no file {picture}: name a picture")
        pixels.append(decode(picture.parent, [picture.name], "pictures")[0])
        if (found := pixels[-1].shape[2:]) != (height, width):
            wanted = f"the network was trained on {height} x {width}"
            raise UserError(f"{picture} has {found[0]} x {found[1]} pixels, {wanted}: resize it")
    if not pixels:
        return []
    logits = predict(load(Path(folder)), torch.from_numpy(np.concatenate(pixels)))
    top = logits.double().softmax(1).sort(1, descending=True)
    both = zip(top.values.tolist(), top.indices.tolist())
    return [{classes[i]: value for value, i in zip(values, order)} for values, order in both]


def export(folder: Path | str, file: Path | str) -> None:
    """Write the network of a run for torch.export.load, which needs no rmlib.

    It maps images (N, 3, height, width) float32 in [0, 1] of the run's size to logits (N, classes),
    with the normalisation inside. The extra file ``classes.json`` has the names of the classes.
    """
    classes, size = _classes_and_size(folder)
    some, batch = (torch.zeros(2, 3, *size),), torch.export.Dim("batch", min=1)
    # torch.export.save warns of weights that are channels_last
    network = load(Path(folder)).to(memory_format=torch.contiguous_format)
    program = torch.export.export(network, some, dynamic_shapes=({0: batch},))
    written = io.BytesIO()
    torch.export.save(program, written, extra_files={"classes.json": json.dumps(classes)})
    records.atomic_write(Path(file), written.getvalue())
