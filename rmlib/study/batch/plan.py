"""The plan of a batch: a YAML grid of runs, checked before any kernel starts, with what is done,
what would run, and what it will cost.

A cell is a run of notebook 02_training with its own parameters; it is done when its record says so
(notebook metadata decides nothing: papermill marks killed notebooks as completed). Around the grid
the file may name the other notebooks: 01_method on its images beside the cells, then 03_robustness
and 04_cam on its networks, then 05_results on its records (NEEDS). They lie in OUT, and run again
when what they look at has changed; a cell's folder is OUT/RUN_ID, and RUN_ID a hash of its
parameters: a changed grid runs what changed.
"""

import hashlib
import itertools
import json
import os
import shutil
import statistics
import subprocess
from collections import defaultdict
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rmlib import UserError
from rmlib.params import DataParams, NetworksParams, Params, TrainParams, complete, nearest
from rmlib.paths import project_root, results_dir, runs_dir
from rmlib.study.names import experiment
from rmlib.study.runs import environment, records
from rmlib.study.settings import CELL, NOTEBOOKS, parse, takes_list

# what must have ended before a notebook starts
NEEDS = {
    "01_method": (),
    CELL: (),
    "03_robustness": (CELL,),
    "04_cam": (CELL,),
    "05_results": (CELL, "03_robustness", "04_cam"),
}
LESSONS = tuple(name for name in NEEDS if name != CELL)


class _UniqueKeys(yaml.SafeLoader):
    """YAML in which a key given twice is a mistake instead of the last one winning."""

    def construct_mapping(self, node, deep=False):
        keys = [
            self.construct_object(key)
            for key, _ in node.value
            if key.tag != "tag:yaml.org,2002:merge"
        ]
        twice = {str(key) for key in keys if keys.count(key) > 1}
        if twice:
            raise yaml.YAMLError(
                f"{', '.join(sorted(twice))} is given twice in one block (line"
                f" {node.start_mark.line + 1})"
            )
        return super().construct_mapping(node, deep)


class BatchFile(BaseModel):
    """The YAML file of a batch."""

    model_config = ConfigDict(extra="forbid")

    common: dict[str, Any] = Field({}, description="parameters of all cells")
    grid: list[dict[str, Any]] = Field(
        min_length=1, description="blocks; in each, lists span a grid of cells"
    )
    notebooks: dict[str, dict[str, Any] | None] = Field(
        {}, description="the other notebooks of the study, with their parameters"
    )


@dataclass
class Batch:
    """A checked batch, written below ``out``: ``cells`` in the order of the file, without
    repetitions, and the ``lessons``, the other notebooks with their parameters.
    """

    name: str
    out: Path
    cells: list[TrainParams]
    lessons: dict[str, Params]
    file: str = ""
    kept: dict[str, records.Record] = field(
        default_factory=dict
    )  # records that were read, by run id

    def state(self, cell: TrainParams) -> str:
        """done (a readable record, the attacks that were asked for, and a notebook that came to its
        end), damaged (a record that cannot be read, or of another run), failed (also a loss that
        became infinite), partial (something to go on from) or new.
        """
        folder = cell.folder
        if (folder / records.RECORD).exists():
            try:
                record = self.record(cell)
            except UserError:
                return "damaged"
            if record.status != "done":
                return "failed"
            if not any(
                (folder / name).exists() for name in (records.ERROR, records.UNFINISHED)
            ) and (not cell.robustness or records.measured_to_the_end(folder)):
                return "done"
        if (folder / records.ERROR).exists():
            return "failed"
        return "partial" if goes_on(cell) else "new"

    def record(self, cell: TrainParams) -> records.Record:
        """The record of a cell.

        Raises:
            UserError: it is not there, damaged, or belongs to another run.
        """
        record = records.read(cell.folder)
        if record.run_id != cell.folder.name:
            raise UserError(f"{cell.folder / records.RECORD} belongs to run {record.run_id}")
        self.kept[record.run_id] = record
        return record

    def lesson_state(self, name: str) -> str:
        """done (ran to its end on what is there now), failed or new."""
        try:
            if (self.out / f"{name}.done").read_text() == self.fingerprint(name):
                return "done"
        except OSError:
            pass
        return "failed" if (self.out / f"{name}.{records.ERROR}").exists() else "new"

    def plan(self) -> list[tuple[str, str, TrainParams | None]]:
        """What a run would do, as (state, text, cell or None): every cell, then every other
        notebook; one that looks at something that will change is new.
        """
        states = [
            (self.state(cell), f"{cell.folder.name}  {self.label(cell)}", cell)
            for cell in self.cells
        ]
        changing = {CELL} if any(state != "done" for state, *_ in states) else set()
        for name in (name for name in LESSONS if name in self.lessons):
            state = "new" if changing.intersection(NEEDS[name]) else self.lesson_state(name)
            if state != "done":
                changing.add(name)
            after = [
                f"{len(self.cells)} cells" if need == CELL else need
                for need in NEEDS[name]
                if need in (CELL, *self.lessons)
            ]
            states.append((state, name + (f"  after {', '.join(after)}" if after else ""), None))
        return states

    def fingerprint(self, name: str) -> str:
        """Hash of a lesson's source, its parameters and the files it looks at."""
        looks_at = {
            "01_method": (),
            "05_results": (records.RECORD, *(f"{kind}.json" for kind in records.KINDS)),
        }.get(name, (records.RECORD,))
        digest = hashlib.sha256(
            source(name).read_bytes() + json.dumps(self.lessons[name].model_dump()).encode()
        )
        for path in sorted(path for file in looks_at for path in self.out.glob(f"*/{file}")):
            digest.update(f"{path.parent.name}/{path.name}".encode() + path.read_bytes())
        return digest.hexdigest()

    @cached_property
    def _varying(self):
        """The parameters in which the cells differ, other than the mixer."""
        configs = [cell.config for cell in self.cells]
        return [
            name
            for name in configs[0]
            if name != "mixer" and len({str(config[name]) for config in configs}) > 1
        ]

    def label(self, cell: TrainParams) -> str:
        """The parameters in which this cell differs from the others of the batch."""
        return " ".join([cell.mixer, *(f"{name}={getattr(cell, name)}" for name in self._varying)])

    def write(self, options: list[str] | None) -> Path:
        """Store the plan as ``out/plan.json``, for whoever asks later what belongs to a complete
        table, and how it was made; ``options`` of the command line, None for those that are stored
        already.
        """
        if options is None:
            try:
                options = json.loads((self.out / records.PLAN).read_text())["options"]
            except (*records.DAMAGE, OSError):
                options = []
        cells = ",\n  ".join(
            json.dumps(
                {
                    "run_id": cell.folder.name,
                    "label": self.label(cell),
                    "config": cell.config,
                    "robustness": cell.robustness,
                }
            )
            for cell in self.cells
        )
        head = {
            "schema_version": 1,
            "name": self.name,
            "file": self.file,
            "options": options,
            "notebooks": list(self.lessons),
        }
        records.atomic_write(
            self.out / records.PLAN,
            f'{json.dumps(head)[:-1]}, "cells": [\n  {cells}\n]}}\n'.encode(),
        )
        return self.out / records.PLAN


def goes_on(cell: TrainParams) -> bool:
    """Whether something of a cell was computed before: it is then not begun but ended."""
    return any(
        (cell.folder / file).exists()
        for file in (records.CHECKPOINT, records.PREVIOUS, records.RECORD)
    )


def source(name: str) -> Path:
    """The notebook of a name."""
    return project_root() / "notebooks" / f"{name}.ipynb"


def read_batch(path: Path, out: Path | None = None) -> Batch:
    """Expand a YAML grid into checked cells.

    Args:
        path: the YAML file; its name without ending is the batch's name.
        out: folder of the results; default runs/NAME.

    Raises:
        UserError: unreadable file, unknown or mistyped entries or parameters: one line naming all
            of them.
    """
    path = Path(path)
    try:
        content = yaml.load(path.read_text(), _UniqueKeys)
        file = BatchFile(**content) if isinstance(content, dict) else None
    except FileNotFoundError:
        beside = sorted(p.stem for p in (project_root() / "notebooks" / "batches").glob("*.yaml"))
        raise UserError(
            f"there is no batch file {path}; the project has {', '.join(beside) or 'none'} in"
            " notebooks/batches"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError, IsADirectoryError) as error:
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    except ValidationError as error:
        item = min(
            error.errors(), key=lambda item: item["type"] != "extra_forbidden"
        )  # a misspelt name explains a missing one
        name = ".".join(map(str, item["loc"]))
        remedy = (
            nearest(name, BatchFile.model_fields)
            if item["type"] == "extra_forbidden"
            else item["msg"]
        )
        raise UserError(f"{path}: {name}: {remedy}") from error
    if file is None:
        raise UserError(f"{path} is empty: expected the entries common, grid and notebooks")
    out = Path(out) if out else runs_dir() / path.stem
    out = (
        Path(os.path.relpath(out)) if out.resolve().is_relative_to(Path.cwd()) else out
    )  # no machine path in the notebooks
    cells, wrong = {}, {}
    if not all(
        value
        for block in (file.common, *file.grid)
        for value in block.values()
        if isinstance(value, list)
    ):
        raise UserError(
            f"{path}: an empty list spans no cell: give it values, or leave the parameter out"
        )
    for block in file.grid:
        for values in _expand(file.common | block):
            try:
                cell = parse(CELL, values | {"out": str(out)})
                known = cells.setdefault(cell.run_id, cell)
                if known.dataset != cell.dataset:
                    raise UserError(
                        f"{known.dataset} and {cell.dataset} would be one run: give the folders"
                        " different names"
                    )
            except UserError as error:
                wrong.setdefault(str(error).removeprefix(f"{CELL}: "), None)
    lessons = {}
    for name, values in file.notebooks.items():
        try:
            if name not in LESSONS:
                raise UserError(f"notebooks: {name}: {nearest(name, LESSONS)}")
            if cells:
                lessons[name] = parse(
                    name, _given(name, next(iter(cells.values())), out) | (values or {})
                )
                weight, weights = (
                    getattr(lessons[name], "clean_weight", None),
                    sorted({cell.clean_weight for cell in cells.values()}),
                )
                if weight is not None and weight not in weights:
                    raise UserError(
                        f"notebooks: {name}: clean_weight={weight:g} selects no cell of the grid:"
                        f" set it to one of {', '.join(f'{each:g}' for each in weights)}, or none"
                        " for all"
                    )
        except UserError as error:
            wrong.setdefault(str(error), None)
    if wrong:
        raise UserError(f"{path}: {'; '.join(wrong)}")
    return Batch(path.stem, out, list(cells.values()), lessons, _named(path))


def _named(path):
    """A batch file as plan.json names it: relative to the project, and elsewhere by its name alone,
    since no record holds a path.
    """
    root = project_root().resolve()
    return (
        path.resolve().relative_to(root).as_posix()
        if path.resolve().is_relative_to(root)
        else path.name
    )


def _given(name, cell, out):
    """What the grid says about the parameters of another notebook."""
    if issubclass(NOTEBOOKS[name], DataParams):
        return {"dataset": cell.dataset, "root": cell.root, "allow_partial": cell.allow_partial}
    if issubclass(NOTEBOOKS[name], NetworksParams):
        folder = (
            cell.dataset.removeprefix("folder:") if cell.dataset.startswith("folder:") else None
        )
        return {
            "runs": str(out),
            "root": folder or cell.root,
            "device": cell.device,
            "threads": cell.threads,
            "save": True,
        }
    return {"runs": str(out)}


def _expand(block):
    """The cells of one block: every list spans a dimension (for parameters that are lists, a list
    of lists does).
    """
    ranges = []
    for name, value in block.items():
        several = isinstance(value, list) and (
            not takes_list(CELL, name) or any(isinstance(v, list) for v in value)
        )
        ranges.append([(name, v) for v in (value if several else [value])])
    return [dict(pairs) for pairs in itertools.product(*ranges)]


# ----------------------------------------------------------------------------------------------
# what it will cost


@dataclass(frozen=True)
class Cost:
    """What a cell will take: seconds of its training and of what follows it, memory in MiB, and the
    hardware that this was measured on; ``exact``: by runs of the same experiment, else scaled from
    others by epochs, images and forwards.
    """

    seconds: float
    memory: float
    hardware: str
    exact: bool


def costs(batch: Batch) -> dict[str, Cost]:
    """What the cells of a batch will take, by run id, from the records of earlier runs: of the
    batch itself, of the project, and of what else lies in runs/; best from this machine's hardware.
    Cells like none before are left out.
    """
    known, alike, here = defaultdict(list), defaultdict(list), _hardware_here()
    for path in {
        path.parent.name: path
        for folder in (runs_dir(), results_dir(), batch.out)
        for path in folder.rglob(records.RECORD)
    }.values():
        try:  # not checked as a report checks it: a wrong one costs an estimate
            record = json.loads(path.read_text())
            config, hardware = (
                complete(record["config"]),
                record["hardware"].get("gpu") or record["hardware"]["cpu"],
            )
            row = (
                hardware == here,
                hardware,
                float(record["seconds"]),
                _seconds_after(path.parent),
                float(record["peak_memory_mib"]),
            )
            unit = record["seconds"] / (
                config["epochs"]
                * record["data"]["train_images"]
                * (1 + bool(config["clean_weight"]))
            )
            kind, speed = _kind(config), _speed(config)
        except (*records.DAMAGE, OSError):
            continue
        known[kind].append(row)
        alike[speed].append((*row, unit))
    known, alike, found = _middle(known), _middle(alike), {}
    for cell in batch.cells:
        config = complete(cell.config)
        if row := known.get(_kind(config)):
            hardware, seconds, after, memory = row
            found[cell.folder.name] = Cost(
                seconds + (after if cell.robustness else 0),
                memory,
                hardware,
                bool(after) or not cell.robustness,
            )
        elif cell.train_images and (row := alike.get(_speed(config))):
            hardware, *_, memory, unit = row
            found[cell.folder.name] = Cost(
                unit * cell.epochs * cell.train_images * (1 + bool(cell.clean_weight)),
                memory,
                hardware,
                False,
            )
    return found


def _middle(groups):
    """Of each group the rows of this machine's hardware, or all if there are none: (hardware,
    medians of seconds, of seconds after it, largest memory, ...).
    """
    found = {}
    for key, rows in groups.items():
        here = any(row[0] for row in rows)
        _, hardware, seconds, after, memory, *unit = zip(*(row for row in rows if row[0] == here))
        after = [each for each in after if each]
        found[key] = (
            hardware[0],
            statistics.median(seconds),
            statistics.median(after) if after else 0.0,
            max(memory),
            *map(statistics.median, unit),
        )
    return found


def _kind(config):
    """What runs must share to take equally long."""
    return json.dumps([experiment(config), bool(config["clean_weight"])], sort_keys=True)


def _speed(config):
    """What runs must share to take equally long per image."""
    return tuple(
        config[name]
        for name in ("dataset", "width", "stem_stride", "batch_size", "precision", "threads")
    )


def _seconds_after(folder):
    """Seconds that the measurements on a run's network took, all together."""
    files = [folder / f"{kind}.json" for kind in records.KINDS]
    return sum(
        row["seconds"]
        for file in files
        if file.exists()
        for row in json.loads(file.read_text())["measurements"]
    )


def _hardware_here():
    if shutil.which("nvidia-smi"):
        answer = subprocess.run(
            ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"],
            capture_output=True,
            text=True,
        )
        if answer.returncode == 0 and answer.stdout.strip():
            return answer.stdout.splitlines()[0].strip()
    return environment.cpu_name()


def duration(seconds: float) -> str:
    """'35 s', '12 min', '3 h 20 min', '2 d 4 h'."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def describe(batch: Batch, workers: int) -> str:
    """The plan for reading: every cell and notebook with its state, what it will take, and a
    summary; nothing is run.
    """
    plan, expected, lines = batch.plan(), costs(batch), []
    for state, text, cell in plan:
        cost = expected.get(cell.folder.name) if cell and state != "done" else None
        told = (
            f"  {'' if cost.exact else 'about '}{duration(cost.seconds)}, {cost.memory:.0f} MiB"
            if cost
            else ""
        )
        lines.append(f"{state:<8} {text}{told}")
    cells = [(state, expected.get(cell.folder.name)) for state, _, cell in plan if cell]
    todo = [cost for state, cost in cells if state != "done"]
    known = [cost for cost in todo if cost]
    text = (
        f"{len(cells)} cells: {len(cells) - len(todo)} done, {len(todo)} to run, {workers} at a"
        " time"
    )
    if known:
        behind = sorted({cost.hardware for cost in known})
        text += (
            f"; about {duration(sum(cost.seconds for cost in known) / min(workers, len(known)))}"
            f" and {max(cost.memory for cost in known):.0f} MiB for each at a time, by earlier runs"
            f" on {', '.join(behind)}"
        )
    if len(known) < len(todo):
        text += (
            f"; nothing like {len(todo) - len(known)} of them was run before, so their time is"
            " unknown"
        )
    return "\n".join([*lines, "", text + f"; in {batch.out}"])
