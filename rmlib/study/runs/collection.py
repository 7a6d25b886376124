"""Everything below a folder of results: records, measurements, plans, and their faults."""

import os
import warnings
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from rmlib import UserError
from rmlib.params import complete
from rmlib.study.runs.records import (
    KINDS,
    PLAN,
    RECORD,
    Measurements,
    Record,
    read,
    read_measurements,
)


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
                    good(read_measurements, folder / f"{kind}.json", record.run_id)
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
