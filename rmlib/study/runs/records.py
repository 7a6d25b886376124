"""A run's record: the one file that says a run is done, and everything about it.

``record.json`` is written last and atomically, so it exists exactly when the run ended. It holds no
path of the machine. ``python -m rmlib.study.runs.records FOLDER`` writes the JSON Schemas of records and
measurements.
"""

import base64
import contextlib
import hashlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Annotated, Literal

from filelock import FileLock, Timeout
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    WithJsonSchema,
    model_validator,
)

from rmlib import UserError
from rmlib.params import ADDED, TrainParams, config_id
from rmlib.study.runs.environment import environment

RECORD, CHECKPOINT, PREVIOUS = (
    "record.json",
    "checkpoint.pt",
    "checkpoint.previous.pt",
)  # of a run that has ended; of one that goes on, and the one before
WEIGHTS = "weights.safetensors"
PLAN = "plan.json"  # beside the runs' folders: the cells of the batch that was run there
ERROR = "error.txt"  # of a cell or a lesson that failed: why, and what was printed
UNFINISHED = ".unfinished"  # of a cell whose notebook has begun and not come to its end
KINDS = ("attacks", "cam", "corruptions")  # of measurements on a trained network
# the measure in cam.json that ends :func:`rmlib.robustness.battery.after_training`: small maps for figures
KEPT = "maps"


def _with(*names: str):
    """The type of a dictionary that has at least these entries."""

    def check(values):
        missing = [name for name in names if name not in values]
        if missing:
            raise ValueError(f"{', '.join(missing)} missing")
        return values

    return Annotated[
        dict, AfterValidator(check), WithJsonSchema({"type": "object", "required": list(names)})
    ]


class Provenance(BaseModel):
    """Where and when something was computed, and by which code; see :func:`environment`."""

    model_config = ConfigDict(extra="forbid")

    code: _with("version", "commit", "dirty") = Field(description="version, git commit, dirty flag")
    versions: dict[str, str]
    hardware: _with("device", "cpu", "cores") = Field(
        description="device (cpu or cuda), names of processor and GPU, cores"
    )
    finished: str = Field(description="UTC, ISO 8601")


class Record(Provenance):
    """One finished run, schema version 1."""

    schema_version: Literal[1] = 1
    status: Literal["done", "diverged"] = Field(
        description="diverged: the loss became infinite; metrics are those of that moment, or empty"
    )
    run_id: str = Field(description="hash of config; names the run's folder")
    config: _with(
        *(name for name in TrainParams.model_fields if name not in (*TrainParams.RUNTIME, *ADDED))
    ) = Field(description="parameters of 02_training that can change the result")
    metrics: dict[str, float] = Field(
        description="last epoch, test set, float32: accuracy, top5, ece in percent, nll in nats"
    )
    correct: str | None = Field(
        None, description="packed verdict per test image, base64, in the dataset's order"
    )
    snapshots: dict[str, dict] = Field({}, description="epoch -> metrics and correct, on the way")
    bn_recalibrated: dict | None = Field(
        None, description="metrics and correct with BatchNorm statistics of clean images"
    )
    history: list[dict] = Field(description="one row per epoch")
    data: _with("checksum", "train_images", "test_images") = Field(
        description="checksum of the decoded pixels, numbers of images, channel mean and std"
    )
    seconds: float = Field(description="training and evaluation, all attempts together")
    images_per_second: float = Field(
        description="training images (each seen clean and mixed) per second of training"
    )
    peak_memory_mib: float = Field(description="of the process (CPU) or of the device (CUDA)")
    checkpoint_seconds: float = Field(
        0.0, description="of `seconds`, those that the checkpoints took"
    )
    together: int = Field(
        1, description="runs trained in one process at the same time: all of them share `seconds`"
    )
    compiled: bool = Field(False, description="network and mixing were compiled")
    restarts: int = Field(description="times the run was resumed from a checkpoint")

    @model_validator(mode="after")
    def _fits_together(self):
        if self.run_id != config_id(self.config):
            raise ValueError(
                f"run_id {self.run_id} does not belong to its configuration"
                f" ({config_id(self.config)})"
            )
        if self.status == "done" and len(self.history) != self.config["epochs"]:
            raise ValueError(
                f"a history of {len(self.history)} epochs does not belong to a schedule of"
                f" {self.config['epochs']}"
            )
        if self.status == "done" and "accuracy" not in self.metrics:
            raise ValueError("a finished run has an accuracy")
        if self.status == "done" and self.correct is not None:
            _check_share(
                self.correct, self.data["test_images"], self.metrics["accuracy"], "accuracy"
            )
        return self


def _check_share(verdicts: str, count: int, percent: float, name: str) -> None:
    """Packed verdicts on single images must give the percentage that stands beside them, to half an
    image.
    """
    packed = base64.b64decode(verdicts)
    if len(packed) != -(-count // 8):
        raise ValueError(f"{8 * len(packed)} verdicts do not belong to {count} images")
    right = (int.from_bytes(packed, "big") >> (8 * len(packed) - count)).bit_count()
    if abs(100 * right / count - percent) > 50 / count + 1e-9:
        raise ValueError(
            f"{name} {percent:.2f} % does not fit the verdicts on single images"
            f" ({100 * right / count:.2f} %)"
        )


class Measurement(Provenance):
    """One thing measured on a trained network."""

    settings: dict = Field(
        description="what was measured: equal settings on equal weights are the same measurement"
    )
    result: dict
    seconds: float

    @model_validator(mode="after")
    def _fits_together(self):
        if "correct" in self.result:
            _check_share(
                self.result["correct"],
                self.result["images"],
                self.result["accuracy_after"],
                "accuracy_after",
            )
        return self


class Measurements(BaseModel):
    """What was measured on a run's network after its training: ``attacks.json``, ``cam.json`` or
    ``corruptions.json`` beside the record.
    """

    model_config = ConfigDict(extra="forbid")

    schema_version: Literal[1] = 1
    run_id: str
    weights: str = Field(description="sha256 of the file of weights that was looked at")
    measurements: list[Measurement] = []


def schemas() -> dict[str, dict]:
    """The JSON Schema (2020-12) of each file, by the name under which it is stored. That hashes,
    verdicts and percentages fit together is checked by :func:`read` and :func:`measurements` alone:
    a schema cannot say it.
    """
    found = {}
    for name, model in (("record", Record), ("measurements", Measurements)):
        version = model.model_fields["schema_version"].default
        found[f"{name}-{version}.json"] = {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "$id": f"urn:rmlib:{name}:{version}",
            **model.model_json_schema(),
            "title": f"rmlib {name}, version {version}",
        }
    return found


def atomic_write(path: Path, content: bytes, before: str | None = None) -> None:
    """Write a file so that it is either whole or not there; the old one stays until the new one is
    safe, and afterwards under the name ``before``.

    Raises:
        UserError: the folder cannot be written or the disk is full.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            if before and path.exists():
                os.replace(path, path.with_name(before))
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror or error}): make room or choose another"
            " folder with `out`; what was saved before is whole, and the same command goes on"
            " from it"
        ) from error


@contextlib.contextmanager
def only_process(folder: Path):
    """Hold a run's folder for this process, so that no other trains the same run; a killed process
    lets go of it.

    Raises:
        UserError: another process holds it, or the folder cannot be written.
    """
    told = f"another process is training the run in {folder}: wait for it, or stop it first"
    with holding(Path(folder) / ".lock", told, seconds=3):  # a killed kernel may need some to go
        yield


@contextlib.contextmanager
def holding(path: Path, told: str, seconds: float = 0.0):
    """Hold a lock file for this process; a killed process lets go of it.

    Args:
        told: the error's text if another holds it for ``seconds`` more.

    Raises:
        UserError: another process holds it, or its folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        lock.acquire(timeout=seconds, poll_interval=0.1)
    except Timeout:
        raise UserError(told) from None
    except OSError as error:
        raise UserError(
            f"{path.parent} cannot be written ({error.strerror or error}): choose another folder"
            " with `out`"
        ) from error
    try:
        yield
    finally:
        # the file stays: taking it away would let a third process lock a new one beside a waiting
        # second
        lock.release()


def check_images(params, now: str, then: str) -> None:
    """Two folders of one name, or a changed one, must not pass for the images that a record or
    checkpoint was made from.

    Raises:
        UserError: the checksums ``now`` and ``then`` differ.
    """
    if str(now) != then:
        raise UserError(
            f"the run in {params.folder} was made from other images than {params.dataset} holds"
            " now: choose another folder with `out`, or delete it"
        )


def write(record: Record, folder: Path) -> Path:
    """Store the record of a run as ``folder/record.json``, a list of numbers on one line."""
    fields = record.model_dump(mode="json")
    fields |= {name: fields.pop(name) for name in Provenance.model_fields}  # at the end of the file
    history = ",\n    ".join(json.dumps(row) for row in fields["history"])
    fields["history"] = "HISTORY"
    text = json.dumps(fields, indent=1).replace(
        '"HISTORY"', f"[\n    {history}\n ]" if history else "[]"
    )
    path = folder / RECORD
    atomic_write(path, (text + "\n").encode())
    return path


DAMAGE = (
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RecursionError,
)  # what a file of anything may raise


def _first_line(error):
    return (str(error).splitlines() or [type(error).__name__])[0]


def read(path: Path) -> Record:
    """Read and check one record; ``path`` is the file or the run's folder.

    Raises:
        UserError: the file is missing, damaged, of another schema, or its id does not fit its
            configuration.
    """
    path = Path(path)
    path = path / RECORD if path.is_dir() else path
    try:
        return Record(**json.loads(path.read_text()))
    except FileNotFoundError:
        raise UserError(f"there is no record {path}: the run has not finished") from None
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(
            f"{path} is not a record of schema 1 ({'.'.join(map(str, first['loc']))}:"
            f" {first['msg']}): delete it and run the cell again"
        ) from error
    except DAMAGE as error:
        raise UserError(
            f"{path} is damaged ({_first_line(error)}): delete it and run the cell again"
        ) from error


def measurements(folder: Path, kind: str) -> Measurements | None:
    """What was measured on the network in a run's folder, or None; ``kind`` is one of KINDS.

    Raises:
        UserError: the file is damaged or belongs to another run.
    """
    path = Path(folder) / f"{kind}.json"
    return read_measurements(path, read(folder).run_id) if path.exists() else None


def read_measurements(path, run_id):
    try:
        found = Measurements(**json.loads(path.read_text()))
    except DAMAGE as error:
        raise UserError(
            f"{path} is damaged ({_first_line(error)}): delete it and measure again"
        ) from error
    if found.run_id != run_id:
        raise UserError(
            f"{path} belongs to another run ({found.run_id}): delete it and measure again"
        )
    return found


def forget_others(folder: Path, run_id: str) -> None:
    """Delete what was measured on another network than the one whose weights lie in a run's folder
    now.
    """
    weights = (
        hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
        if (folder / WEIGHTS).exists()
        else None
    )
    for path in (folder / f"{kind}.json" for kind in KINDS):
        try:
            if path.exists() and read_measurements(path, run_id).weights != weights:
                path.unlink()
        except UserError:
            path.unlink()


def measured_to_the_end(folder: Path) -> bool:
    """Whether everything that follows a training was measured on the network of a run; see KEPT."""
    try:
        found = measurements(folder, "cam")
    except UserError:  # damaged: told when it is measured again
        return False
    return found is not None and any(
        row.settings.get("measure") == KEPT for row in found.measurements
    )


def measure(folder: Path, kind: str, settings: dict, compute, device: str, save: bool) -> dict:
    """The result of a measurement on a run's network: loaded if it was stored, else computed.

    Args:
        folder: of the run.
        kind: one of KINDS.
        settings: all that the result depends on, beside the weights.
        compute: called without arguments, returns a dictionary of plain values.
        device: "cpu" or "cuda".
        save: load what is stored for the same settings and weights, store what is new; else always
            compute.
    """
    folder = Path(folder)
    if not save:
        return compute()
    weights = hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
    stored = measurements(folder, kind)
    if (
        stored is None or stored.weights != weights
    ):  # trained again: what is known of other weights does not count
        stored = Measurements(run_id=read(folder).run_id, weights=weights)
    for known in stored.measurements:
        if known.settings == settings:
            return known.result
    begun = time.perf_counter()
    result = compute()
    stored.measurements.append(
        Measurement(
            settings=settings,
            result=result,
            seconds=time.perf_counter() - begun,
            **environment(device),
        )
    )
    lines = ",\n  ".join(json.dumps(row) for row in stored.model_dump(mode="json")["measurements"])
    head = json.dumps(stored.model_dump(mode="json", exclude={"measurements"}), indent=1)
    atomic_write(
        folder / f"{kind}.json", f'{head[:-2]},\n "measurements": [\n  {lines}\n ]\n}}\n'.encode()
    )
    return result


def write_schemas(folder: Path) -> None:
    """Write the JSON Schemas into a folder, each under its name and version."""
    for name, schema in schemas().items():
        atomic_write(Path(folder) / name, (json.dumps(schema, indent=1) + "\n").encode())


if __name__ == "__main__":
    write_schemas(Path(sys.argv[1]))
