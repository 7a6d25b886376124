"""A run's record: the one file that says a run is done, and everything about it.

``record.json`` is written last and atomically, so it exists exactly when the run ended. It holds no
path of the machine.
"""

import base64
import contextlib
import hashlib
import json
import os
from pathlib import Path
from typing import Annotated, Literal

from filelock import FileLock, Timeout
from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError, model_validator

from rmlib import UserError
from rmlib.params import ADDED, TrainParams, config_id

RECORD = "record.json"  # of a run that has ended
CHECKPOINT = "checkpoint.pt"  # of a run that goes on
PREVIOUS = "checkpoint.previous.pt"  # the one before
WEIGHTS = "weights.safetensors"
PLAN = "plan.json"  # next to the runs' folders: the runs of the batch
ERROR = "error.txt"  # of a run or a notebook that failed: why, and what was printed
UNFINISHED = ".unfinished"  # of a run whose notebook has begun and not come to its end
KINDS = ("attacks", "cam", "corruptions")  # of measurements on a trained network
KEPT = "maps"  # the measure in cam.json that is taken last: small maps for figures
# what a file with anything in it may raise
DAMAGE = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError)


def _with(*names: str) -> AfterValidator:
    """Of a dictionary: it has at least these entries."""

    def check(values):
        if missing := [name for name in names if name not in values]:
            raise ValueError(f"{', '.join(missing)} missing")
        return values

    return AfterValidator(check)


# parameters that every stored configuration has
_CONFIG = [name for name in TrainParams.model_fields if name not in (*TrainParams.RUNTIME, *ADDED)]


class Provenance(BaseModel):
    """Where and when something was computed, and by which code; see :func:`environment`."""

    model_config = ConfigDict(extra="forbid")

    code: Annotated[dict, _with("version", "commit", "dirty")]
    versions: dict[str, str]
    hardware: Annotated[dict, _with("device", "cpu", "cores")]
    finished: str  # UTC, ISO 8601


class Record(Provenance):
    """One finished run, schema version 1."""

    schema_version: Literal[1] = 1
    # diverged: the loss became infinite; metrics are those of that moment, or empty
    status: Literal["done", "diverged"]
    run_id: str  # hash of config; names the run's folder
    # parameters of 02_training that can change the result
    config: Annotated[dict, _with(*_CONFIG)]
    # last epoch, test set, float32: accuracy, top5, ece in percent, nll in nats
    metrics: dict[str, float]
    correct: str | None = None  # packed verdict per test image, in the dataset's order
    snapshots: dict[str, dict] = {}  # epoch -> metrics and correct, on the way
    # metrics and correct with BatchNorm statistics of clean images
    bn_recalibrated: dict | None = None
    weights: str | None = None  # sha256 of their file; older records have none
    history: list[dict]  # one row per epoch
    # checksum of the decoded pixels, numbers of images, channel mean and std
    data: Annotated[dict, _with("checksum", "train_images", "test_images")]
    seconds: float  # training and evaluation, all attempts together
    images_per_second: float  # training images, each seen clean and mixed, while training
    peak_memory_mib: float  # of the process (CPU) or of the device (CUDA)
    checkpoint_seconds: float = 0.0
    together: int = 1  # of older records: runs trained in one process, which shared `seconds`
    compiled: bool = False  # network and mixing were compiled
    restarts: int  # times the run was resumed from a checkpoint

    @model_validator(mode="after")
    def _fits_together(self):
        right, epochs = config_id(self.config), self.config["epochs"]
        if self.run_id != right:
            raise ValueError(f"run_id {self.run_id} does not belong to its configuration ({right})")
        if self.status != "done":
            return self
        if (rows := len(self.history)) != epochs:
            raise ValueError(f"history of {rows} epochs does not belong to a schedule of {epochs}")
        if "accuracy" not in self.metrics:
            raise ValueError("a finished run has an accuracy")
        if self.correct is not None:
            _check_share(self.correct, self.data["test_images"], self.metrics, "accuracy")
        return self


def _check_share(verdicts, count, values, name):
    """Packed verdicts must give the percentage that is stored with them, to half an image."""
    packed, percent = base64.b64decode(verdicts), values[name]
    if len(packed) != -(-count // 8):
        raise ValueError(f"{8 * len(packed)} verdicts do not belong to {count} images")
    right = (int.from_bytes(packed, "big") >> (8 * len(packed) - count)).bit_count()
    share = 100 * right / count
    if abs(share - percent) > 50 / count + 1e-9:
        verdicts = f"the verdicts on single images ({share:.2f} %)"
        raise ValueError(f"{name} {percent:.2f} % does not fit {verdicts}")


class Measurement(Provenance):
    """Something measured on a network: of equal ``settings`` and weights it is the same."""

    settings: dict
    result: dict
    seconds: float

    @model_validator(mode="after")
    def _fits_together(self):
        found = self.result
        if "correct" in found:
            _check_share(found["correct"], found["images"], found, "accuracy_after")
        return self


class Measurements(BaseModel):
    """What was measured on a run's network: the content of KIND.json; see KINDS."""

    model_config = ConfigDict(extra="forbid")

    schema_version: Literal[1] = 1
    run_id: str
    weights: str  # sha256 of their file
    measurements: list[Measurement] = []


def atomic_write(path: Path, content: bytes | memoryview, before: str | None = None) -> None:
    """Write a file so that it is either whole or not there; the old one stays until then.

    Args:
        before: name under which the old one is kept.

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
        reason = f"{path} cannot be written ({error.strerror or error})"
        remedy = "make room or choose another folder with `out`; the same command then goes on"
        raise UserError(f"{reason}: {remedy}") from error


def only_process(folder: Path):
    """Hold a run's folder for this process, so that no other trains the same run."""
    problem = f"another process is training the run in {folder}: wait for it, or stop it first"
    # a killed kernel may need some seconds to go
    return holding(Path(folder) / ".lock", problem, seconds=3)


@contextlib.contextmanager
def holding(path: Path, problem: str, seconds: float = 0.0):
    """Hold a lock file for this process; a killed process lets go of it.

    Raises:
        UserError: another process holds it for ``seconds`` more, or its folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        lock.acquire(timeout=seconds, poll_interval=0.1)
    except Timeout:
        raise UserError(problem) from None
    except OSError as error:
        reason = f"{path.parent} cannot be written ({error.strerror or error})"
        raise UserError(f"{reason}: choose another folder with `out`") from error
    try:
        yield
    finally:
        # the file stays: else a third process could lock a new one while a second waits
        lock.release()


def check_images(params, now, then: str) -> None:
    """Refuse a run made from other images, as of two folders with one name, or a changed one.

    Raises:
        UserError: the checksums ``now`` and ``then`` differ.
    """
    if str(now) != then:
        problem = f"was made from other images than {params.dataset} holds now"
        remedy = "choose another folder with `out`, or delete it"
        raise UserError(f"the run in {params.folder} {problem}: {remedy}")


def write(record: Record, folder: Path) -> Path:
    """Store the record of a run as ``folder/record.json``, a list of numbers on one line."""
    fields = record.model_dump(mode="json")
    fields |= {name: fields.pop(name) for name in Provenance.model_fields}  # at the end of the file
    path = folder / RECORD
    atomic_write(path, in_rows(fields, "history"))
    return path


def in_rows(fields: dict, name: str, indent: int = 4) -> bytes:
    """JSON in which each element of the list ``name`` has a line."""
    begin = "\n" + " " * indent
    rows = f",{begin}".join(json.dumps(row) for row in fields[name])
    text = json.dumps(fields | {name: "ROWS"}, indent=1)
    return (text.replace('"ROWS"', f"[{begin}{rows}\n ]" if rows else "[]") + "\n").encode()


def read(path: Path) -> Record:
    """Read and check one record; ``path`` is the file or the run's folder.

    Raises:
        UserError: missing, damaged, of another schema, or its id does not fit its configuration.
    """
    path = Path(path)
    path = path / RECORD if path.is_dir() else path
    try:
        return Record(**json.loads(path.read_text()))
    except FileNotFoundError:
        raise UserError(f"there is no record {path}: the run has not finished") from None
    except DAMAGE as error:
        raise UserError(f"{path} {_fault(error)}: delete it and train the run again") from error


def _fault(error):
    """What is wrong with a file, in words."""
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"is not of schema 1 ({'.'.join(map(str, first['loc']))}: {first['msg']})"
    return f"is damaged ({(str(error).splitlines() or [type(error).__name__])[0]})"


def measurements(folder: Path, kind: str) -> Measurements | None:
    """What was measured on the network in a run's folder, or None; ``kind`` is one of KINDS.

    Raises:
        UserError: the file is damaged or belongs to another run.
    """
    path = Path(folder) / f"{kind}.json"
    return read_measurements(path, read(folder).run_id) if path.exists() else None


def read_measurements(path, run_id):
    """The same from the file, which must belong to the run of that id."""
    try:
        found = Measurements(**json.loads(path.read_text()))
    except DAMAGE as error:
        raise UserError(f"{path} {_fault(error)}: delete it and measure again") from error
    if found.run_id != run_id:
        raise UserError(f"{path} belongs to another run: delete it and measure again")
    return found


def weights_hash(folder: Path) -> str | None:
    """The sha256 of the weights in a run's folder; None where there are none."""
    path = folder / WEIGHTS
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else None


def forget_others(folder: Path, run_id: str) -> None:
    """Delete what was measured on other weights than those in a run's folder now."""
    weights = weights_hash(folder)
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
    except UserError:  # damaged: reported when it is measured again
        return False
    rows = found.measurements if found else []
    return any(row.settings.get("measure") == KEPT for row in rows)
