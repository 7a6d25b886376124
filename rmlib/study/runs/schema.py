"""What a record and a file of measurements may hold: names, types and ranges.

Tables, figures and pages rely on it: what passes here brings no report down. Schema version 1.
"""

import base64
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Literal, NotRequired, cast

import pydantic
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

# of the standard library only from Python 3.12 on, for pydantic
from typing_extensions import TypedDict

from rmlib.packed import unpack_bits, unpack_values
from rmlib.params import ADDED, Eps, TrainParams, config_id

VERSION = 1
STRICT = ConfigDict(strict=True, allow_inf_nan=False, extra="forbid")
# measurements: whatever else they say is not read by any table
OPEN = ConfigDict(strict=True, allow_inf_nan=False, extra="allow")

Count = Annotated[int, Field(ge=1, le=10**8)]
Number = Annotated[int, Field(ge=0, le=10**8)]
Amount = Annotated[float, Field(ge=0)]
Percent = Annotated[float, Field(ge=0, le=100)]


def first_fault(error: Exception) -> str:
    """The first thing that is wrong, on one line: 'data.test_images: Input should be ...'."""
    if not isinstance(error, ValidationError):
        return (str(error).splitlines() or [type(error).__name__])[0]
    first = error.errors()[0]
    return ": ".join(filter(None, [".".join(map(str, first["loc"])), first["msg"]]))


def _checked_config(config: dict) -> dict:
    """A configuration with all parameters of that time, each with a value that it may have."""
    names = [name for name in TrainParams.model_fields if name not in TrainParams.RUNTIME]
    if missing := [name for name in names if name not in config and name not in ADDED]:
        raise ValueError(f"{', '.join(missing)} missing")
    known = {name: config[name] for name in names if name in config}
    try:
        meant = TrainParams(**known).config
    except ValidationError as error:
        raise ValueError(first_fault(error)) from None
    if wrong := [name for name in known if meant[name] != known[name]]:
        raise ValueError(f"{wrong[0]}={known[wrong[0]]!r} is no value of this parameter")
    return config


def _checked_time(text: str) -> str:
    datetime.fromisoformat(text)
    return text


class Code(TypedDict):
    """The code that computed something; None where git cannot say."""

    version: str
    commit: str | None
    dirty: bool | None


class Hardware(TypedDict):
    """The machine that computed something."""

    device: Literal["cpu", "cuda"]
    cpu: str
    capability: NotRequired[str]
    cores: Count
    system: NotRequired[str]
    gpu: NotRequired[str]


class Data(TypedDict):
    """The images of a run: checksum of the decoded pixels, numbers, size, channel mean and std."""

    checksum: str
    train_images: Count
    test_images: Count
    classes: Count
    size: NotRequired[Annotated[list[Count], Field(min_length=2, max_length=2)]]  # height, width
    mean: list[Amount]
    std: list[Amount]


class Row(TypedDict):
    """One epoch of the history; None where a number was not finite."""

    epoch: Count
    lr: Amount
    loss: float | None
    mixed_loss: NotRequired[float | None]
    mixed_accuracy: NotRequired[float | None]
    clean_loss: NotRequired[float | None]
    clean_accuracy: NotRequired[float | None]
    test_accuracy: NotRequired[Percent]


class Metrics(TypedDict, total=False):
    """Of an evaluation in float32: percent, and nll in nats."""

    accuracy: Percent
    top5: Percent
    nll: Amount
    ece: Percent
    correct: str  # of snapshots and the like: a packed verdict per image


class Provenance(BaseModel):
    """Where and when something was computed; see :mod:`rmlib.study.runs.environment`."""

    model_config = STRICT

    code: Code
    versions: dict[str, str]
    hardware: Hardware
    finished: Annotated[str, AfterValidator(_checked_time)]  # UTC, ISO 8601


class Record(Provenance):
    """One finished run."""

    schema_version: Literal[1] = 1
    # diverged: loss or logits became infinite; metrics are those of that moment, or empty
    status: Literal["done", "diverged"]
    run_id: str  # hash of config; names the run's folder
    # parameters of 02_training that can change the result
    config: Annotated[dict[str, Any], AfterValidator(_checked_config)]
    metrics: Metrics  # last epoch, test set
    correct: str | None = None  # packed verdict per test image, in the dataset's order
    # test images by class and by predicted class, none left out; older records have none
    confusion: dict[str, dict[str, Count]] | None = None
    snapshots: dict[str, Metrics] = {}  # by epoch, on the way
    bn_recalibrated: Metrics | None = None  # with BatchNorm statistics of clean images
    weights: str | None = None  # sha256 of their file; older records have none
    history: list[Row]
    data: Data
    seconds: Amount  # training and evaluation, all attempts together
    images_per_second: Amount  # training images, each seen clean and mixed, while training
    peak_memory_mib: Amount  # of the process (CPU) or of the device (CUDA)
    checkpoint_seconds: Amount = 0.0
    together: Count = 1  # of older records: runs trained in one process, which shared `seconds`
    compiled: bool = False  # network and mixing were compiled
    restarts: Number  # times the run was resumed from a checkpoint

    @pydantic.model_validator(mode="after")
    def _fits_together(self):
        right, epochs = config_id(self.config), self.config["epochs"]
        if self.run_id != right:
            raise ValueError(f"run_id {self.run_id} does not belong to its configuration ({right})")
        if self.status == "done":
            if (rows := len(self.history)) != epochs:
                problem = f"history of {rows} epochs does not belong to a schedule of {epochs}"
                raise ValueError(problem)
            if "accuracy" not in self.metrics:
                raise ValueError("a finished run has an accuracy")
        found: list[Mapping] = [*self.snapshots.values(), self.bn_recalibrated or {}]
        if self.correct is not None and self.status == "done":
            found.append({**self.metrics, "correct": self.correct})
        for each in (each for each in found if "correct" in each):
            _check_share(each["correct"], self.data["test_images"], each, "accuracy")
        if self.confusion is not None:
            _check_confusion(self.confusion, self.data, self.metrics.get("accuracy"))
        return self


def _check_share(verdicts, count, values, name):
    """Packed verdicts must give the percentage that is stored with them, to half an image."""
    size, percent = len(base64.b64decode(verdicts)), values[name]
    if size != -(-count // 8):
        raise ValueError(f"{8 * size} verdicts do not belong to {count} images")
    share = 100 * unpack_bits(verdicts, count).mean()
    if abs(share - percent) > 50 / count + 1e-9:
        verdicts = f"the verdicts on single images ({share:.2f} %)"
        raise ValueError(f"{name} {percent:.2f} % does not fit {verdicts}")


def _check_confusion(confusion, data, accuracy):
    """The counts must be of all classes and all test images, and give the accuracy."""
    rows, total = list(confusion.values()), data["test_images"]
    strange = {name for row in rows for name in row} - set(confusion)
    if strange or len(rows) != data["classes"]:
        raise ValueError(f"confusion is not of the {data['classes']} classes of the data")
    if (counted := sum(sum(row.values()) for row in rows)) != total:
        raise ValueError(f"confusion counts {counted} of {total} test images")
    share = 100 * sum(row.get(name, 0) for name, row in confusion.items()) / total
    if accuracy is None or abs(share - accuracy) > 50 / total + 1e-9:
        raise ValueError(f"accuracy {accuracy} % does not fit the confusion ({share:.2f} %)")


class Measurement(Provenance):
    """Something measured on a network: of equal ``settings`` and weights it is the same."""

    settings: dict[str, Any]
    result: dict[str, Any]
    seconds: Amount


class Measurements(BaseModel):
    """What was measured on a run's network: the content of KIND.json."""

    model_config = STRICT

    schema_version: Literal[1] = 1
    run_id: str
    weights: str  # sha256 of their file
    measurements: list[Measurement] = []


class Planned(TypedDict):
    """A run of a batch, as far as reports read it."""

    run_id: Annotated[str, Field(pattern="^[0-9a-f]{12}$")]
    label: Annotated[str, Field(min_length=1)]
    config: NotRequired[dict[str, Any]]
    robustness: NotRequired[bool]


class Plan(BaseModel):
    """The runs of a batch, and the command that made them: plan.json."""

    model_config = OPEN

    schema_version: Literal[1]
    name: str = ""
    file: str = ""
    options: list[str] = []
    # the ids of the runs on both sides of the difference that was named before them
    primary: list[list[str]] = []
    primary_metric: Literal["accuracy", "nll", "ece"] = "accuracy"
    cells: list[Planned]


@pydantic.with_config(OPEN)
class Attack(TypedDict):
    """Settings and result of an attack, as far as tables read them; others below."""

    attack: str
    eps: Eps
    image_seed: int
    checksum: str
    queries: NotRequired[Count]
    images: Count
    clean_accuracy: Percent
    accuracy_after: Percent
    correct: str
    zero_gradient: NotRequired[Number]


@pydantic.with_config(OPEN)
class Corruptions(TypedDict):
    images: Count
    clean_accuracy: Percent
    mean_accuracy: Percent
    accuracy: dict[str, Annotated[list[Percent], Field(min_length=1)]]


class Looked(TypedDict):
    """One kind of map: means, and packed values of single images."""

    mean: dict[str, float]
    control: dict[str, float]
    values: dict[str, str]
    control_values: dict[str, str]
    curves: NotRequired[dict[str, list[float]]]


@pydantic.with_config(OPEN)
class Maps(TypedDict):
    images: Count
    maps: list[str]
    found: dict[str, Looked]


class Shuffled(TypedDict):
    """The sanity check of one kind of map: None where no pair had a correlation."""

    stages: dict[str, float | None]
    left_out: dict[str, Number]
    control: float | None


@pydantic.with_config(OPEN)
class Sanity(TypedDict):
    images: Count
    maps: list[str]
    found: dict[str, Shuffled]


@pydantic.with_config(OPEN)
class Kept(TypedDict):
    """Small maps for figures."""

    shape: Annotated[list[Count], Field(min_length=2, max_length=2)]
    layers: dict[str, dict[str, Any]]


# kind of measurement, or measure of maps -> what it must hold
_OF = {"attacks": Attack, "corruptions": Corruptions, "localization": Maps, "faithfulness": Maps}
_OF |= {"sanity": Sanity, "maps": Kept}
_ADAPTERS = {name: pydantic.TypeAdapter(cast(Any, each)) for name, each in _OF.items()}


def check(kind: str, measured: Measurement, total: int | None = None) -> None:
    """Refuse a measurement that no table could show; ``total``: images of the whole test set.

    Raises:
        ValueError: something is missing, of another type, out of range or contradicts another.
    """
    found = measured.settings | measured.result
    name = str(found["measure"]) if kind == "cam" else kind
    if name in _ADAPTERS:
        _ADAPTERS[name].validate_python(found)
    if total is not None and found.get("images", 1) > total:
        raise ValueError(f"{found['images']} images of a test set of {total}")
    if kind == "attacks":
        lacking = {"fgsm": "zero_gradient", "square": "queries"}.get(found["attack"])
        if lacking and lacking not in found:
            raise ValueError(f"{found['attack']} without {lacking}")
        _check_share(found["correct"], found["images"], found, "accuracy_after")
    if name in ("localization", "faithfulness", "sanity"):
        _check_maps(found)


def _check_maps(found):
    """Every kind of map is there, with the same names in both columns, a value for every image."""
    if set(found["maps"]) != set(found["found"]):
        raise ValueError(f"found is of other maps than {', '.join(found['maps'])}")
    pairs = (("stages", "left_out"), ("mean", "values"), ("control", "control_values"))
    for key, entry in found["found"].items():
        for one, other in ((a, b) for a, b in pairs if b in entry):
            if set(entry[one]) != set(entry[other]):
                raise ValueError(f"{key}: {one} and {other} do not have the same names")
        for name, text in (entry.get("values", {}) | entry.get("control_values", {})).items():
            if (count := len(unpack_values(text))) != found["images"]:
                raise ValueError(f"{key}: {count} values of {name} for {found['images']} images")
