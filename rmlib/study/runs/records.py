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
import platform
import subprocess
import sys
import time
import warnings
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from importlib import metadata
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
from rmlib.params import ADDED, TrainParams, complete, config_id, project_root

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
    return _measurements(path, read(folder).run_id) if path.exists() else None


def _measurements(path, run_id):
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
            if path.exists() and _measurements(path, run_id).weights != weights:
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


@dataclass
class Collection:
    """What lies below a folder, every file read once; see :func:`gather`."""

    folder: Path
    records: dict[
        str, Record
        # run_id -> its record, in the order in which they finished; of a run stored twice the one
        # that finished last
    ]
    folders: dict[str, Path]  # run_id -> where that record lies
    measured: dict[
        str, dict[str, tuple[Path, Measurements]]
    ]  # kind -> run_id -> file and content; of a run stored twice the one beside the latest record
    plans: list[Path]  # every PLAN
    problems: list[str]  # a line for each file that is left out: path, what is wrong, remedy

    @cached_property
    def runs(self):
        """:func:`collect`."""
        import pandas as pd

        frame = pd.DataFrame([_row(record) for record in self.records.values()])
        texts = [name for name, dtype in frame.dtypes.items() if isinstance(dtype, pd.StringDtype)]
        return frame.astype(
            dict.fromkeys(texts, object)
        )  # a dozen tables slice these rows, and Arrow's strings are slow at it

    @cached_property
    def tables(self) -> dict:
        """kind -> :func:`collect_measurements`."""
        import pandas as pd

        return {
            kind: pd.DataFrame(
                [
                    {
                        "run_id": run_id,
                        **row.settings,
                        **row.result,
                        "seconds": row.seconds,
                        "finished": row.finished,
                        **{f"hardware.{name}": value for name, value in row.hardware.items()},
                    }
                    for run_id, (_, found) in self.measured[kind].items()
                    for row in found.measurements
                ]
            )
            for kind in KINDS
        }


def _row(record):
    row = {name: value for name, value in record if not isinstance(value, (dict, list))}
    groups = {"config": complete(record.config)} | {
        name: getattr(record, name) for name in ("metrics", "hardware", "versions", "data", "code")
    }
    for group, values in groups.items():
        row |= {f"{group}.{name}": value for name, value in values.items()}
    return row


def gather(root) -> Collection:
    """Read and check everything below a folder, once; a :class:`Collection` is returned as it is.

    A file that is damaged, of another schema, or in the folder of another run stops nothing: it is
    left out, and named in ``problems``.
    """
    if isinstance(root, Collection):
        return root
    copies, measured, plans, problems = [], [], [], []

    def good(read, *arguments):
        try:
            return read(*arguments)
        except UserError as error:
            problems.append(str(error))
        except OSError as error:
            problems.append(
                f"{arguments[0]} cannot be read ({error.strerror or error}): check its permissions"
            )

    for name, below, files in os.walk(root):
        below.sort()
        folder = Path(name)
        plans += [folder / PLAN] if PLAN in files else []
        record = (
            good(_in_place, folder / RECORD) if RECORD in files else None
        )  # none: the run is being trained again
        if record is not None:
            copies.append((record.finished, folder.as_posix(), folder, record))
            files = set(files)
            for kind in KINDS:
                found = (
                    good(_measurements, folder / f"{kind}.json", record.run_id)
                    if f"{kind}.json" in files
                    else None
                )
                measured += (
                    [(record.finished, folder.as_posix(), kind, folder / f"{kind}.json", found)]
                    if found is not None
                    else []
                )
    latest = {
        record.run_id: (folder, record)
        for *_, folder, record in sorted(copies, key=lambda copy: copy[:2])
    }  # of equal times the last path, so that it is always the same
    of_kind = {kind: {} for kind in KINDS}
    for *_, kind, path, found in sorted(measured, key=lambda each: each[:2]):
        of_kind[kind][found.run_id] = path, found
    return Collection(
        Path(root),
        {run_id: record for run_id, (_, record) in latest.items()},
        {run_id: folder for run_id, (folder, _) in latest.items()},
        of_kind,
        plans,
        problems,
    )


def _in_place(path):
    """A record that lies in the folder named after its run."""
    record = read(path)
    if record.run_id not in (path.parent.name, path.parent.resolve().name):
        raise UserError(
            f"{path} belongs to run {record.run_id}, not to the folder {path.parent.name}: move it"
            f" into a folder {record.run_id}, or delete it"
        )
    return record


def opened(root) -> Collection:
    """:func:`gather`, with a Python warning for each file of a folder that is left out; who
    gathered himself tells himself.
    """
    found = gather(root)
    if found is not root:
        for problem in found.problems:
            warnings.warn(f"left out: {problem}", stacklevel=3)
    return found


def find(root: Path) -> list[Record]:
    """All records under a folder, in the order of their paths, each run once; a file that cannot be
    used is left out with a warning.
    """
    found = opened(root)
    return [found.records[run_id] for run_id in sorted(found.records, key=found.folders.get)]


def collect(root: Path):
    """All records under a folder, or of a :class:`Collection`, as one table: columns ``config.*``,
    ``metrics.*``, ``hardware.*``, ``versions.*``, ``data.*``, ``code.*`` and the scalars.

    Returns a pandas DataFrame with a row per run, empty when there is none; of a run stored twice
    the later one. A file that cannot be used is left out with a warning.
    """
    return opened(root).runs


def collect_measurements(root: Path, kind: str):
    """All measurements of a kind (one of KINDS) below a folder, or of a :class:`Collection`: a
    pandas DataFrame with a row for each, its settings and result as columns beside ``run_id``,
    ``seconds`` and ``finished``; of a run stored twice the later one.
    """
    return opened(root).tables[kind]


def environment(device: str) -> dict:
    """The ``code``, ``versions``, ``hardware`` and ``finished`` of a record made now; device is
    "cpu" or "cuda".
    """
    versions = {"python": platform.python_version()}
    versions |= {name: metadata.version(name) for name in ("torch", "torchvision", "numpy")}
    import torch

    # the instruction set that torch's kernels use: the same seed gives other numbers on another one
    hardware = {
        "device": device,
        "cpu": cpu_name(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "system": platform.system(),
    }
    if device == "cuda":
        hardware["gpu"] = torch.cuda.get_device_name()
    return {
        "code": git_state(),
        "versions": versions,
        "hardware": hardware,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def cpu_name() -> str:
    """The processor in words."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(
            line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")
        )
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def git_state() -> dict:
    """Version, commit and dirty flag of the code that runs."""

    def git(*words):
        # without optional locks: killed within `git status`, it would leave the user's repository
        # locked
        answer = subprocess.run(
            ["git", "--no-optional-locks", *words],
            cwd=project_root(),
            capture_output=True,
            text=True,
        )
        return answer.stdout.strip() if answer.returncode == 0 else None

    try:
        commit, changes = (
            git("rev-parse", "HEAD"),
            git("status", "--porcelain", "--untracked-files=no"),
        )
    except OSError:
        commit = changes = None
    from rmlib import __version__

    return {
        "version": __version__,
        "commit": commit,
        "dirty": None if changes is None else bool(changes),
    }


def write_schemas(folder: Path) -> None:
    """Write the JSON Schemas into a folder, each under its name and version."""
    for name, schema in schemas().items():
        atomic_write(Path(folder) / name, (json.dumps(schema, indent=1) + "\n").encode())


if __name__ == "__main__":
    write_schemas(Path(sys.argv[1]))
