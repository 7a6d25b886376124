"""The plan of a batch: a YAML grid of runs, checked before any kernel starts.

A run (`cell` in this code and in plan.json) is notebook 02_training with its own parameters. It is
done when its record says so: papermill marks killed notebooks as completed. Its folder is
OUT/RUN_ID, and RUN_ID a hash of its parameters: a changed grid runs what changed. Around the grid
the file may name the other notebooks (NEEDS). They lie in OUT, and run again when what they look at
has changed.
"""

import hashlib
import itertools
import json
import os
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rmlib import UserError
from rmlib.params import DataParams, NetworksParams, Params, TrainParams, nearest
from rmlib.paths import project_root, runs_dir
from rmlib.study.runs import records
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

    common: dict[str, Any] = Field({}, description="parameters of all runs")
    grid: list[dict[str, Any]] = Field(
        min_length=1, description="blocks; in each, lists span a grid of runs"
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
    # records that were read, by run id
    kept: dict[str, records.Record] = field(default_factory=dict)

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
                f"{len(self.cells)} runs" if need == CELL else need
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
    """Expand a YAML grid into checked runs.

    Args:
        path: the YAML file; its name without ending is the batch's name.
        out: folder of the results; default runs/NAME.

    Raises:
        UserError: unreadable file, unknown or mistyped entries or parameters: one line naming all
            of them.
    """
    path = Path(path)
    file = _read_file(path)
    out = Path(out) if out else runs_dir() / path.stem
    if out.resolve().is_relative_to(Path.cwd()):  # no machine path in the notebooks
        out = Path(os.path.relpath(out))
    wrong = []
    cells = _cells(file, out, wrong)
    lessons = _lessons(file, cells, out, wrong)
    if wrong:
        raise UserError(f"{path}: {'; '.join(dict.fromkeys(wrong))}")
    return Batch(path.stem, out, cells, lessons, _named(path))


def _read_file(path):
    """The file with its entries checked, but not yet its parameters."""
    try:
        content = yaml.load(path.read_text(), _UniqueKeys)
        if not isinstance(content, dict):
            raise UserError(f"{path} is empty: expected the entries common, grid and notebooks")
        file = BatchFile(**content)
    except FileNotFoundError:
        known = sorted(each.stem for each in (project_root() / "notebooks/batches").glob("*.yaml"))
        raise UserError(
            f"there is no batch file {path}; notebooks/batches has {', '.join(known) or 'none'}"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError, IsADirectoryError) as error:
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    except ValidationError as error:
        # a misspelt name explains a missing one
        item = min(error.errors(), key=lambda item: item["type"] != "extra_forbidden")
        name, remedy = ".".join(map(str, item["loc"])), item["msg"]
        if item["type"] == "extra_forbidden":
            remedy = nearest(name, BatchFile.model_fields)
        raise UserError(f"{path}: {name}: {remedy}") from error
    if any(value == [] for block in (file.common, *file.grid) for value in block.values()):
        raise UserError(f"{path}: an empty list spans no run: give it values, or leave it out")
    return file


def _cells(file, out, wrong):
    """The runs of a file without repetitions; mistakes are added to ``wrong``."""
    cells = {}
    for values in (each for block in file.grid for each in _expand(file.common | block)):
        try:
            cell = parse(CELL, values | {"out": str(out)})
        except UserError as error:
            wrong.append(str(error).removeprefix(f"{CELL}: "))
            continue
        known = cells.setdefault(cell.run_id, cell)
        if known.dataset != cell.dataset:
            wrong.append(
                f"{known.dataset} and {cell.dataset} would be one run: give the folders different"
                " names"
            )
    return list(cells.values())


def _lessons(file, cells, out, wrong):
    """The other notebooks with their parameters; mistakes are added to ``wrong``."""
    lessons = {}
    for name, values in file.notebooks.items():
        if name not in LESSONS:
            wrong.append(f"notebooks: {name}: {nearest(name, LESSONS)}")
        elif cells:
            try:
                lessons[name] = parse(name, _given(name, cells[0], out) | (values or {}))
            except UserError as error:
                wrong.append(str(error))
                continue
            weight = getattr(lessons[name], "clean_weight", None)
            weights = sorted({cell.clean_weight for cell in cells})
            if weight is not None and weight not in weights:
                wrong.append(
                    f"notebooks: {name}: clean_weight={weight:g} selects no run of the grid: set it"
                    f" to one of {', '.join(f'{each:g}' for each in weights)}, or none for all"
                )
    return lessons


def _named(path):
    """A batch file as plan.json names it: relative to the project, and elsewhere by its name alone,
    since no record holds a path.
    """
    root, path = project_root().resolve(), path.resolve()
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name


def _given(name, cell, out):
    """What the grid says about the parameters of another notebook."""
    if issubclass(NOTEBOOKS[name], DataParams):
        return {"dataset": cell.dataset, "root": cell.root, "allow_partial": cell.allow_partial}
    if issubclass(NOTEBOOKS[name], NetworksParams):
        kind, _, folder = cell.dataset.partition(":")
        return {
            "runs": str(out),
            "root": folder if kind == "folder" else cell.root,
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
