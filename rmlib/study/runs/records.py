"""A run's record: the one file that says a run is done, and everything about it.

``record.json`` is written last and atomically, so it exists exactly when the run ended. It holds no
path of the machine.
"""

import contextlib
import hashlib
import json
import math
import os
import shutil
import zlib
from pathlib import Path

import psutil
from filelock import FileLock, Timeout
from pydantic import ValidationError

from rmlib import UserError
from rmlib.paths import expanded
from rmlib.study.runs import schema
from rmlib.study.runs.schema import Measurements, Provenance, Record

RECORD = "record.json"  # of a run that has ended
CHECKPOINT = "checkpoint.pt"  # of a run that goes on
PREVIOUS = "checkpoint.previous.pt"  # the one before
WEIGHTS = "weights.safetensors"
IMAGES = ".images.json"  # where the images of a run lie on this machine; not to be committed
PLAN = "plan.json"  # next to the runs' folders: the runs of the batch
ERROR = "error.txt"  # of a run or a notebook that failed: why, and what was printed
UNFINISHED = ".unfinished"  # of a run whose notebook has begun and not come to its end
KINDS = ("attacks", "cam", "corruptions")  # of measurements on a trained network
KEPT = "maps"  # the measure in cam.json that is taken last: small maps for figures
# what a file with anything in it may raise; zlib.error: packed values
_OF_TEXT = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError)
DAMAGE = (*_OF_TEXT, zlib.error)


class Newer(UserError):
    """A file that a later rmlib wrote: it is not damaged, and must not be made again."""


def atomic_write(path: Path, content: bytes | memoryview, before: str | None = None) -> None:
    """Write a file so that it is either whole or not there; the old one stays until then.

    ``before``: name under which the old one is kept.

    Raises:
        UserError: the folder cannot be written or the disk is full.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _clear_up(path)
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


def _clear_up(path):
    """Delete the temporary files of a file whose processes are gone: they were killed."""
    start = f".{path.name}."
    for left in [each for each in os.listdir(path.parent) if each.startswith(start)]:
        process = left.removeprefix(start)
        if process.isdecimal() and int(process) not in psutil.pids():
            path.with_name(left).unlink(missing_ok=True)


def only_process(folder: Path):
    """Hold a run's folder, so that no other process trains the same run; see :func:`holding`."""
    problem = f"another process is training the run in {folder}: wait for it, or stop it first"
    # a killed kernel may need some seconds to go
    return holding(Path(folder) / ".lock", problem, seconds=3)


@contextlib.contextmanager
def holding(path: Path, problem: str, seconds: float = 0.0):
    """Hold a lock file for this process; a killed process lets go of it.

    It gives a function that raises UserError once the file was deleted, as with its whole folder:
    then another process can hold a new one.

    Raises:
        UserError: another process holds it for ``seconds`` more, or its folder cannot be written.
    """
    new = not path.parent.exists()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        lock.acquire(timeout=seconds, poll_interval=0.1)
        mine = path.stat()
    except Timeout:
        raise UserError(problem) from None
    except OSError as error:
        reason = f"{path.parent} cannot be written ({error.strerror or error})"
        raise UserError(f"{reason}: choose another folder with `out`") from error

    def still():
        if not (path.exists() and os.path.samestat(path.stat(), mine)):
            problem = f"{path.parent} was deleted while this process worked in it"
            raise UserError(f"{problem}: it ends, and the same command begins again")

    try:
        yield still
    finally:
        # the file stays: else a third process could lock a new one while a second waits;
        # but a folder that was made for nothing goes
        if new and list(path.parent.glob("*")) == [path]:
            shutil.rmtree(path.parent, ignore_errors=True)
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
    """Store the record of a run as ``folder/record.json``, an epoch or a class on one line."""
    fields = record.model_dump(mode="json")
    fields |= {name: fields.pop(name) for name in Provenance.model_fields}  # at the end of the file
    path = folder / RECORD
    atomic_write(path, in_rows(fields, "history", "confusion"))
    return path


def in_rows(fields: dict, *names: str, indent: int = 4) -> bytes:
    """JSON in which each element of the lists and mappings ``names`` has a line."""
    begin, texts = "\n" + " " * indent, []
    for name, value in fields.items():
        if name not in names or not value:
            text = json.dumps(value, indent=1).replace("\n", "\n ")
        elif isinstance(value, dict):
            pairs = [f"{json.dumps(key)}: {json.dumps(each)}" for key, each in value.items()]
            text = f"{{{begin}{f',{begin}'.join(pairs)}\n }}"
        else:
            text = f"[{begin}{f',{begin}'.join(map(json.dumps, value))}\n ]"
        texts.append(f' "{name}": {text}')
    return ("{\n" + ",\n".join(texts) + "\n}\n").encode()


def read(path: Path) -> Record:
    """Read and check one record; ``path`` is the file or the run's folder.

    Raises:
        UserError: missing, damaged, of another schema, or its id does not fit its configuration.
    """
    path = Path(path)
    path = path / RECORD if path.is_dir() else path
    try:
        return _read(path, lambda content: Record(**content), "train the run")
    except FileNotFoundError:
        raise UserError(f"there is no record {path}: the run has not finished") from None


def note_images(folder: Path, params) -> None:
    """Keep beside a run where its images lie, which no record holds, for ``rmlib explain``."""
    kind, _, path = params.dataset.partition(":")
    where = {"dataset": f"{kind}:{os.path.abspath(expanded(path))}"} if path else {}
    where |= {"root": os.path.abspath(params.root)} if params.root else {}
    if where:
        atomic_write(folder / IMAGES, json.dumps(where).encode())


def noted_images(folder: Path) -> dict[str, str]:
    """The parameters ``dataset`` and ``root`` that :func:`note_images` kept; {} where it did not,
    or where nothing lies there any more.
    """
    try:
        where = json.loads((folder / IMAGES).read_text(encoding="utf-8"))
        there = all(os.path.exists(path.removeprefix("folder:")) for path in where.values())
        return where if there else {}
    except (*DAMAGE, OSError):
        return {}


def _read(path, checked, again):
    """What a JSON file holds, without infinite numbers, as ``checked`` makes it."""
    try:
        content = json.loads(
            path.read_text(encoding="utf-8"), parse_float=_finite, parse_constant=_finite
        )
        version = content.get("schema_version")
        if isinstance(version, int) and version > schema.VERSION:
            known = f"this rmlib knows {schema.VERSION}"
            raise Newer(f"{path} is of schema {version}, and {known}: update rmlib")
        return checked(content)
    except Newer:
        raise
    except DAMAGE as error:
        schema_is_wrong = isinstance(error, ValidationError)
        words = f"not of schema {schema.VERSION}" if schema_is_wrong else "damaged"
        problem = f"{path} is {words} ({schema.first_fault(error)})"
        raise UserError(f"{problem}: delete it and {again} again") from error


def _finite(text):
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{text} is no finite number")
    return number


def measurements(folder: Path, kind: str) -> Measurements | None:
    """What was measured on the network in a run's folder, or None; ``kind`` is one of KINDS.

    Raises:
        UserError: the file is damaged or belongs to another run.
    """
    path = Path(folder) / f"{kind}.json"
    return read_measurements(path, read(folder)) if path.exists() else None


def read_measurements(path: Path, record: Record) -> Measurements:
    """The same from the file KIND.json, which must belong to the run of that record."""

    def checked(content):
        found = Measurements(**content)
        for each in found.measurements:
            schema.check(path.stem, each, record.data["test_images"])
        return found

    found = _read(path, checked, "measure")
    if found.run_id != record.run_id:
        raise UserError(f"{path} belongs to another run: delete it and measure again")
    return found


def weights_hash(folder: Path) -> str | None:
    """The sha256 of the weights in a run's folder; None where there are none."""
    path = folder / WEIGHTS
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else None


def forget_others(folder: Path, record: Record) -> None:
    """Delete what was measured on other weights than those that a run has now."""
    for path in (folder / f"{kind}.json" for kind in KINDS):
        try:
            if path.exists() and read_measurements(path, record).weights != record.weights:
                path.unlink()
        except Newer:
            pass  # a later rmlib compares the weights itself
        except UserError:
            path.unlink()


def measured_to_the_end(folder: Path) -> bool:
    """Whether everything that follows a training was measured on the network of a run; see KEPT."""
    try:
        found = measurements(folder, "cam")
    except Newer:
        raise
    except UserError:  # damaged: reported when it is measured again
        return False
    rows = found.measurements if found else []
    return any(row.settings.get("measure") == KEPT for row in rows)
