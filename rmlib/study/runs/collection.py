"""Everything below a folder of results: records, measurements, plans, and their faults."""

import warnings
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from rmlib import UserError
from rmlib.params import complete
from rmlib.paths import AGAIN, walk
from rmlib.study.names import method_id
from rmlib.study.runs import records, schema
from rmlib.study.runs.records import KINDS, PLAN, RECORD, Measurements, Record

# folder of runs that were made again, as `rmlib explain` says how
REPEATED = "again"


@dataclass
class Collection:
    """What lies below a folder, every file read once; see :func:`gather`.

    Of a run stored twice the copy that finished last counts, with what was measured next to it; one
    in a folder REPEATED only where there is no other.

    Args:
        folder: that was searched.
        records: run_id -> its record, in the order in which the runs finished.
        folders: run_id -> where that record lies.
        measured: kind -> run_id -> file and content.
        plans: the file PLAN of every batch.
        problems: a line for each file that is left out: path, what is wrong, remedy.
    """

    folder: Path
    records: dict[str, Record]
    folders: dict[str, Path]
    measured: dict[str, dict[str, tuple[Path, Measurements]]]
    plans: list[Path]
    problems: list[str]

    @cached_property
    def runs(self):
        """A DataFrame with a row for each run.

        Columns are ``config.*``, ``metrics.*``, ``hardware.*``, ``versions.*``, ``data.*``,
        ``code.*`` and the scalars; ``waiting``: planned runs of the same method are missing.
        """
        import pandas as pd

        frame = pd.DataFrame([_run_row(record) for record in self.records.values()])
        missing = self.planned.keys() - self.records.keys()
        waiting = {method_id(self.planned[run_id]) for run_id in missing}
        configs = [record.config for record in self.records.values()]
        frame["waiting"] = [method_id(config) in waiting for config in configs]
        texts = [name for name, dtype in frame.dtypes.items() if isinstance(dtype, pd.StringDtype)]
        # a dozen tables slice these rows, and Arrow's strings are slow at it
        return frame.astype(dict.fromkeys(texts, object))

    @cached_property
    def planned(self) -> dict[str, dict]:
        """run_id -> configuration of every run that a plan names."""
        plans = [plan for plan in map(read_plan, self.plans) if plan]
        cells = [run for plan in plans for run in plan.cells if "config" in run]
        return {run["run_id"]: run["config"] for run in cells}

    @cached_property
    def tables(self) -> dict:
        """kind -> :func:`collect_measurements`."""
        import pandas as pd

        rows: dict[str, list[dict]] = {kind: [] for kind in KINDS}
        for kind, runs in self.measured.items():
            for run_id, (_, found) in runs.items():
                rows[kind] += [_measurement_row(run_id, row) for row in found.measurements]
        return {kind: pd.DataFrame(some) for kind, some in rows.items()}


def read_plan(path: Path) -> schema.Plan | None:
    """The content of a plan, or None if it cannot be used."""
    try:
        return schema.Plan.model_validate_json(path.read_bytes())
    except (ValueError, OSError):
        return None


def _run_row(record):
    row = {name: value for name, value in record if not isinstance(value, (dict, list))}
    del row["weights"]
    row |= _flat("config", complete(record.config))
    for group in ("metrics", "hardware", "versions", "data", "code"):
        row |= _flat(group, getattr(record, group))
    return row


def _measurement_row(run_id, row):
    found = {"run_id": run_id} | row.settings | row.result
    found |= {"seconds": row.seconds, "finished": row.finished}
    return found | _flat("hardware", row.hardware)


def _flat(group, values):
    return {f"{group}.{name}": value for name, value in values.items()}


def gather(root) -> Collection:
    """Read and check everything below a folder, once; a :class:`Collection` is returned as it is.

    A file that is damaged, of another schema, or in the folder of another run stops nothing: it is
    left out, and named in ``problems``.
    """
    if isinstance(root, Collection):
        return root
    copies, plans, problems = [], [], []

    def good(read, *arguments):
        try:
            return read(*arguments)
        except UserError as error:
            problems.append(str(error))
        except FileNotFoundError:  # deleted meanwhile
            pass
        except OSError as error:
            reason = error.strerror or error
            problems.append(f"{error.filename} cannot be read ({reason}): check its permissions")

    for folder, entries, problem in walk(Path(root)):
        # a link to what is read already lacks nothing
        if problem not in ("", AGAIN):
            problems.append(f"{folder} {problem}: check its permissions")
        files = {entry.name for entry in entries}
        plans += [folder / PLAN] if PLAN in files else []
        # without a record the run is being trained again
        record = good(_in_place, folder / RECORD) if RECORD in files else None
        if record is None:
            continue
        paths = [(kind, folder / f"{kind}.json") for kind in KINDS]
        there = [(kind, path) for kind, path in paths if path.name in files]
        read = {kind: (path, good(records.read_measurements, path, record)) for kind, path in there}
        measured = {kind: each for kind, each in read.items() if each[1]}
        original = folder.parent.name != REPEATED
        copies.append((original, record.finished, folder.as_posix(), record, measured))
    gathered = Collection(Path(root), {}, {}, {kind: {} for kind in KINDS}, plans, problems)
    # of equal times the last path, so that it is always the same
    for *_, place, record, measured in sorted(copies, key=lambda copy: copy[:3]):
        gathered.records[record.run_id] = record
        gathered.folders[record.run_id] = Path(place)
        for kind, found in measured.items():
            gathered.measured[kind][record.run_id] = found
    return gathered


def _in_place(path):
    """A record that lies in the folder named after its run."""
    record = records.read(path)
    if record.run_id not in (path.parent.name, path.parent.resolve().name):
        problem = f"{path} belongs to run {record.run_id}, not to the folder {path.parent.name}"
        raise UserError(f"{problem}: move it into a folder {record.run_id}, or delete it")
    return record


def opened(root) -> Collection:
    """:func:`gather`, with a Python warning for each file of a folder that is left out."""
    found = gather(root)
    if found is not root:
        for problem in found.problems:
            warnings.warn(f"left out: {problem}", stacklevel=3)
    return found


def collect_measurements(root: Path, kind: str):
    """All measurements of a kind (one of KINDS) below a folder: a DataFrame with a row for each.

    Columns are its settings and result, ``run_id``, ``seconds``, ``finished`` and ``hardware.*``.
    """
    return opened(root).tables[kind]
