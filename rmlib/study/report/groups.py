"""The runs of a report in groups that may be compared, and what each has in common."""

from dataclasses import dataclass

import pandas as pd

from rmlib import UserError
from rmlib.params import MIXERS, TrainParams
from rmlib.study.names import METHOD, experiment, method_name
from rmlib.study.runs import collection

DEFAULTS = TrainParams().config
HELD_OUT = "images held out of the training set"

# parameters that a caption leaves out: they stand in the rows or in the numbers of images
TOLD = ("mixer", "seed", "train_images", "test_images", "eval_every")


def runs_below(root) -> pd.DataFrame:
    """All runs below a folder, or of a :class:`rmlib.study.runs.collection.Collection`, as a table
    (see :func:`rmlib.study.runs.collection.Collection.runs`).

    Raises:
        UserError: there is no record.
    """
    found = collection.opened(root)
    if found.runs.empty:
        raise UserError(
            f"there is no record under {found.folder.resolve()}: run a batch first, e.g."
            " rmlib batch notebooks/batches/quick.yaml"
        )
    return found.runs


def experiments(runs) -> list:
    """The runs in groups that one table may compare: equal in everything but method and seed;
    largest networks first. To methods with the clean loss belongs plain training of twice the
    epochs, which computes as much (see :func:`rmlib.study.names.longer`).
    """
    config = [f"config.{name}" for name in experiment(DEFAULTS)]
    found = {tuple(map(str, group[config].iloc[0])): group for group in equal(runs, config)}
    epochs = config.index("config.epochs")
    for key in sorted(found, key=lambda key: int(key[epochs])):
        twice = (*key[:epochs], str(2 * int(key[epochs])), *key[epochs + 1 :])
        if key in found and twice in found and _plain(found[twice]) and not _plain(found[key]):
            found[key] = pd.concat([found[key], found.pop(twice)])

    def order(group):
        first = group.iloc[0]
        return -first["config.width"], -first["config.epochs"], first["config.dataset"]

    return sorted(found.values(), key=order)


def _plain(group) -> bool:
    """Whether all runs are plain training."""
    return set(zip(group["config.mixer"], group["config.clean_weight"])) == {("none", 0)}


def equal(runs, columns: list[str]) -> list:
    """The runs in groups of equal values in some columns, in the order in which they come."""
    groups = runs[columns].map(str).groupby(columns, sort=False).groups
    return [runs.loc[index] for index in groups.values()]


def methods(group, repeated: bool = False) -> list:
    """(the method's columns, its runs) for every method of an experiment, in the order of MIXERS. A
    network counts once: of runs that differ only in parameters without effect on it, the latest;
    ``repeated`` gives all of them.
    """
    config = [f"config.{name}" for name in (*METHOD, "epochs")]
    several = group["config.clean_weight"].nunique() > 1

    def order(runs):
        first = runs.iloc[0]
        place = MIXERS.index(first["config.mixer"])
        texts = [str(first[name]) for name in config]
        loss = bool(first["config.average"]), -first["config.clean_weight"]
        return *loss, place, first["config.epochs"], texts

    found = []
    for runs in sorted(equal(group, config), key=order):
        first = _method(runs)
        # the weight of the clean loss has a column; without mixing it makes the method's name
        weight = {} if first["mixer"] == "none" else {"clean_weight": DEFAULTS["clean_weight"]}
        name = method_name(first | weight) + _epochs(runs, group)
        columns = {"method": name, "mixer": first["mixer"]}
        columns |= {"clean_weight": first["clean_weight"]} if several else {}
        found.append((columns, runs if repeated else _latest(runs)))
    return found


def name_of(runs, group) -> str:
    """The name of a method's runs in an experiment, such as 'plain training, 120 epochs'."""
    return method_name(_method(runs)) + _epochs(runs, group)


def _method(runs) -> dict:
    first = runs.iloc[0].to_dict()
    return {name: first[f"config.{name}"] for name in METHOD}


def _epochs(runs, group) -> str:
    """', 120 epochs' of longer runs than those of the experiment, else ''."""
    epochs = runs["config.epochs"].iloc[0]
    return f", {epochs} epochs" if epochs > group["config.epochs"].min() else ""


def compute(runs, group) -> int:
    """How many images pass the network in a method's training, over plain training of the
    experiment's length: 2 with a clean loss, which is a second pass, or with twice the epochs.
    """
    passes = 2 if runs["config.clean_weight"].iloc[0] else 1
    return int(passes * runs["config.epochs"].iloc[0] // group["config.epochs"].min())


@dataclass(frozen=True, eq=False)
class Method:
    """A method with its finished runs.

    Args:
        loss: weight of the clean loss, whether the losses are averaged, epochs.
        settings: the other values of METHOD.
        longer: whether it is plain training with the compute of a clean loss.
        runs: indexed by the seed.
        lost: how many runs diverged.
    """

    name: str
    mixer: str
    loss: tuple
    settings: dict
    longer: bool
    runs: pd.DataFrame
    lost: int

    @property
    def plain(self) -> bool:
        """Whether it is plain training of the experiment's own length."""
        return self.mixer == "none" and self.loss[:2] == (0, False) and not self.longer

    @property
    def waiting(self) -> bool:
        """Whether planned runs of it are missing: until they are there it has no verdict."""
        return bool(self.runs["waiting"].any())

    @property
    def accuracies(self) -> pd.Series:
        """The accuracies in percent, a Series over seeds."""
        return self.runs["metrics.accuracy"]

    @property
    def mean(self) -> float:
        """The mean accuracy."""
        return self.accuracies.mean()


def default(settings: dict) -> bool:
    """Whether a method's settings are all the defaults, whatever its mixer and loss."""
    return all(x == DEFAULTS[name] for name, x in settings.items() if name != "mixer")


def finished(group) -> list[Method]:
    """The methods of an experiment that have a finished run, in the order of :func:`methods`."""
    found = []
    for _, runs in methods(group):
        done = runs[runs["status"] == "done"].set_index("config.seed", drop=False).sort_index()
        if len(done):
            settings, epochs = _method(done), done["config.epochs"].iloc[0]
            loss = settings.pop("clean_weight"), settings.pop("average"), epochs
            longer = epochs > group["config.epochs"].min()
            lost = len(runs) - len(done)
            name, mixer = name_of(done, group), settings["mixer"]
            found.append(Method(name, mixer, loss, settings, longer, done, lost))
    return found


def _latest(runs):
    """Of the runs of one method the latest of each seed and precision."""
    same = ["config.seed", "config.precision"]
    by_time = runs.sort_values("finished", kind="stable")
    return by_time.drop_duplicates(same, keep="last").sort_index()


def one_sample(group, measured):
    """The measurements of a group's runs on one sample of images, the same for all: the largest, of
    equal ones the latest; so a network counts once. For attacks one sample for each of them. None
    if there is none.
    """
    own = of_runs(measured, group)
    if not len(own):
        return None
    own = own.sort_values(["images", "finished"])
    identity = {"images", "image_seed", "checksum", "batch_size", "maps", "k"}
    names = [name for name in own if name in identity]

    def largest(rows):
        texts = rows[names].map(str)
        return rows[(texts == texts.iloc[-1]).all(axis=1)]

    if "attack" not in own:
        return largest(own)
    return pd.concat([largest(rows) for _, rows in own.groupby("attack", sort=False)])


def of_runs(measured, runs) -> pd.DataFrame:
    """The measurements of some runs, in their order."""
    return measured[measured["run_id"].isin(runs["run_id"])] if len(measured) else measured


def title(group) -> str:
    """'cifar10, width 8, 10 epochs, 5000 training images, bfloat16': an experiment in a few words;
    trained in float32 and on test images if it says nothing.
    """
    first = group.iloc[0]
    precision = ", bfloat16" if first["config.precision"] == "bf16" else ""
    held = f", on {HELD_OUT}" if first["config.holdout"] else ""
    return (
        f"{first['config.dataset']}, width {first['config.width']}, {first['config.epochs']}"
        f" epochs, {first['data.train_images']} training images{precision}{held}"
    )


def caption(group) -> str:
    """What all runs of an experiment share: configuration, images, seeds, time, hardware."""
    own = group[group["config.epochs"] == group["config.epochs"].min()]
    config = {
        name.removeprefix("config."): own[name].iloc[0]
        for name in own.columns
        if name.startswith("config.") and own[name].map(str).nunique() == 1
    }
    first = ("dataset", "width", "epochs", "batch_size", "schedule", "lr")
    words = [f"{name} {config[name]}" for name in first if name in config]
    for name, value in config.items():
        known = value is not None and value == value
        if known and name not in (*first, *TOLD) and value != DEFAULTS.get(name):
            words.append(f"{name} {value}")
    minutes = (group["seconds"] / group["together"]).sum() / 60
    seen = HELD_OUT if group["config.holdout"].all() else "test images"
    return (
        f"{', '.join(words)}; {_all(group, 'data.train_images')} training and"
        f" {_all(group, 'data.test_images')} {seen}; seeds {_all(group, 'config.seed')}; mean"
        f" ± sample standard deviation over n seeds; {minutes:.1f} minutes summed over the runs,"
        f" on {hardware(group)}, torch {_all(group, 'versions.torch')}"
    )


def _all(group, name):
    return ", ".join(map(str, sorted(set(group[name].dropna()))))


def hardware(rows) -> str:
    """Every device of some runs or measurements: a GPU by its name, a CPU with its instruction set
    (where the record tells it) and its cores.
    """
    names = set()
    for row in rows.to_dict("records"):
        gpu, capability = row.get("hardware.gpu"), row.get("hardware.capability")
        kind = [capability] if isinstance(capability, str) else []
        kind.append(f"{int(row['hardware.cores'])} cores")
        cpu = f"{row['hardware.cpu']} ({', '.join(kind)})"
        names.add(gpu if isinstance(gpu, str) else cpu)
    return ", ".join(sorted(names))
