"""Trained networks: where they lie, how they are loaded, and the images they were evaluated on."""

from pathlib import Path

from safetensors.torch import load_file

from rmlib import UserError
from rmlib.data import ImageSet
from rmlib.models import PreActResNet18
from rmlib.params import MIXERS, TrainParams, complete
from rmlib.study.names import experiment, method_name
from rmlib.study.runs import records
from rmlib.study.runs.records import RECORD, WEIGHTS, Record
from rmlib.study.runs.run import evaluation_set, make_model


def find(runs: Path, clean_weight: float | None = None) -> list[tuple[Path, Record]]:
    """The finished runs below a folder whose weights are there, as (folder, record), by method and
    seed.

    Args:
        runs: searched with everything below it.
        clean_weight: only runs with this weight of the clean loss; None: all.

    Raises:
        UserError: there is none, or they differ in more than method and seed.
    """
    found = [
        (path.parent, records.read(path.parent))
        for path in sorted(Path(runs).rglob(WEIGHTS))
        if (path.parent / RECORD).exists()
    ]
    found = [
        (folder, record)
        for folder, record in found
        if clean_weight is None or record.config["clean_weight"] == clean_weight
    ]
    if not found:
        which = "" if clean_weight is None else f" trained with clean_weight={clean_weight:g}"
        raise UserError(
            f"there is no finished run{which} with its {WEIGHTS} under {Path(runs).resolve()}: run"
            " a batch first, or set `runs` or `clean_weight`"
        )
    if (
        len(
            {
                (record.config["dataset"], record.data["checksum"], record.data["test_images"])
                for _, record in found
            }
        )
        > 1
    ):
        raise UserError(
            f"the runs under {runs} were evaluated on different images: set `runs` to the folder of"
            " one experiment"
        )
    settings = [experiment(record.config) for _, record in found]
    differing = [
        f"{name}: {', '.join(sorted({str(each[name]) for each in settings}))}"
        for name in settings[0]
        if any(each[name] != settings[0][name] for each in settings)
    ]
    if differing:
        raise UserError(
            f"the runs under {runs} are of different experiments ({'; '.join(differing)}): set"
            " `runs` to the folder of one"
        )
    return sorted(
        found,
        key=lambda item: (
            MIXERS.index(item[1].config["mixer"]),
            method_name(item[1].config),
            item[1].config["seed"],
            item[1].run_id,
        ),
    )


def images_of(record: Record, root=None) -> ImageSet:
    """The images a finished run was evaluated on, and checked to be the same ones.

    Args:
        record: of the run.
        root: folder of the datasets; for a run on folder:NAME, that folder itself.

    Raises:
        UserError: the images cannot be found, or are others than the run's.
    """
    config = complete(record.config)
    if config["dataset"].startswith("folder:"):
        if root is None:
            raise UserError(
                f"the run {record.run_id} was trained on {config['dataset']}: give the path of that"
                " folder as `root`"
            )
        config["dataset"], root = f"folder:{root}", None
    data = evaluation_set(TrainParams(**config, root=root))
    if data.checksum != record.data["checksum"]:
        raise UserError(
            f"the run {record.run_id} was made from other images than {config['dataset']} holds"
            " now: train it again, or set `root`"
        )
    return data


def load(folder: Path) -> PreActResNet18:
    """The trained network of a finished run in float32, in eval mode, on the CPU, for inputs in [0,
    1].
    """
    record = records.read(folder)
    path = Path(folder) / WEIGHTS
    if not path.exists():
        raise UserError(
            f"{path} is not there (few networks come with the repository): train the cell again"
        )
    model = make_model(
        TrainParams(**record.config),
        record.data["classes"],
        record.data["mean"],
        record.data["std"],
    )
    try:
        model.load_state_dict(load_file(path))
    except Exception as error:  # safetensors and torch raise several kinds for a broken file
        reason = str(error).splitlines()[0][:100]
        raise UserError(
            f"{path} is damaged or of another network ({reason}): delete the folder and train the"
            " cell again"
        ) from error
    return model.eval()
