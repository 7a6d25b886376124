"""The plan of a batch: a YAML grid of runs, checked before any kernel starts.

A run is notebook 02_training with its own parameters; plan.json calls it a cell. It is done when
its record says so: papermill marks killed notebooks as completed. Its folder is OUT/RUN_ID, and
RUN_ID a hash of its parameters: a changed grid runs what changed. Around the grid the file may name
the other notebooks (NEEDS). They lie in OUT, and run again when what they look at has changed.
"""

import hashlib
import itertools
import json
import math
import os
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rmlib import UserError, brief
from rmlib.params import DataParams, NetworksParams, Params, TrainParams, nearest
from rmlib.paths import expanded, project_root, runs_dir
from rmlib.study.runs import records
from rmlib.study.settings import CELL, NOTEBOOKS, listed, parse, takes_list

# what must have ended before a notebook starts
NEEDS = {
    "01_method": (),
    CELL: (),
    "03_robustness": (CELL,),
    "04_cam": (CELL,),
    "05_results": (CELL, "03_robustness", "04_cam"),
}
OTHERS = tuple(name for name in NEEDS if name != CELL)
# the files in the runs' folders at which a notebook looks, where it is not the record alone
LOOKS_AT = {
    "01_method": (),
    "05_results": (records.RECORD, *(f"{kind}.json" for kind in records.KINDS)),
}


# of a batch: runs; bytes of its file; values in it, each as often as an alias repeats it; levels
MOST_RUNS, MOST_BYTES, MOST_VALUES, MOST_LEVELS = 10_000, 100_000, 50_000, 20


class _Loader(yaml.SafeLoader):
    """YAML of bounded size, in which a key given twice is a mistake: the last one does not win."""

    level = 0

    def compose_node(self, parent, index):
        self.level += 1
        if self.level > MOST_LEVELS:
            raise yaml.YAMLError(f"it is nested deeper than {MOST_LEVELS} levels")
        node = super().compose_node(parent, index)
        self.level -= 1
        return node

    def get_single_node(self):
        node = super().get_single_node()
        if node and _values(node, {}) > MOST_VALUES:
            raise yaml.YAMLError(f"its aliases repeat more than {MOST_VALUES} values")
        return node

    def construct_object(self, node, deep=False):
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, AttributeError, ArithmeticError):  # by its type
            kind, line = node.tag.rpartition(":")[2], node.start_mark.line + 1
            raise yaml.YAMLError(f"{brief(node.value)} is no {kind} (line {line})") from None

    def construct_mapping(self, node, deep=False):
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
        keys = [str(key.value) for key, _ in pairs if key.tag != "tag:yaml.org,2002:merge"]
        twice = sorted(key for key, count in Counter(keys).items() if count > 1)
        if twice:
            line = node.start_mark.line + 1
            raise yaml.YAMLError(f"{', '.join(twice)} is given twice in one block (line {line})")
        return super().construct_mapping(node, deep)


def _values(node, known):
    """How many values a node of YAML stands for; one that contains itself has no end."""
    if node not in known:
        known[node] = math.inf
        parts = node.value if isinstance(node, yaml.CollectionNode) else []
        if isinstance(node, yaml.MappingNode):
            parts = itertools.chain.from_iterable(parts)
        known[node] = 1 + sum(_values(part, known) for part in parts)
    return known[node]


class BatchFile(BaseModel):
    """The YAML file of a batch."""

    model_config = ConfigDict(extra="forbid")

    # parameters of all runs
    common: dict[str, Any] = {}
    # blocks; in each, lists span a grid of runs
    grid: list[dict[str, Any]] = Field(min_length=1)
    # the other notebooks of the study, with their parameters
    notebooks: dict[str, dict[str, Any] | None] = {}


@dataclass
class Batch:
    """A checked batch, written below ``out``: its runs, each once, and the other notebooks."""

    name: str
    out: Path
    runs: list[TrainParams]
    notebooks: dict[str, Params]
    file: str

    def state(self, run: TrainParams) -> str:
        """What has become of a run: done, damaged, failed, partial or new.

        Done needs the record, the attacks that were asked for, and a notebook that came to its end.
        A loss that became infinite has failed. Partial has something to go on from.
        """
        folder = run.folder
        there = set(os.listdir(folder)) if folder.is_dir() else set()
        if records.RECORD in there:
            try:
                record = self.record(run)
            except records.Newer:
                raise
            except UserError:
                return "damaged"
            if record.status != "done":
                return "failed"
            measured = not run.robustness or records.measured_to_the_end(folder)
            if measured and not there & {records.ERROR, records.UNFINISHED}:
                return "done"
        if records.ERROR in there:
            return "failed"
        begun = there & {records.CHECKPOINT, records.PREVIOUS, records.RECORD}
        return "partial" if begun else "new"

    def record(self, run: TrainParams) -> records.Record:
        """The record of a run.

        Raises:
            UserError: it is not there, damaged, or belongs to another run.
        """
        record = records.read(run.folder)
        if record.run_id != run.run_id:
            raise UserError(f"{run.folder / records.RECORD} belongs to run {record.run_id}")
        return record

    def notebook_state(self, name: str) -> str:
        """Of another notebook: done (it ran to its end on what is there now), failed or new."""
        try:
            if (self.out / f"{name}.done").read_text(encoding="utf-8") == self.fingerprint(name):
                return "done"
        except OSError:
            pass
        return "failed" if (self.out / f"{name}.{records.ERROR}").exists() else "new"

    def plan(self) -> list[tuple[str, str, TrainParams | None]]:
        """What a call would do: (state, text, run or None) of every run and other notebook.

        A notebook that looks at something that will change is new.
        """
        rows: list[Any] = [(self.state(r), f"{r.run_id}  {self.label(r)}", r) for r in self.runs]
        changing = {CELL} if any(state != "done" for state, *_ in rows) else set()
        for name in (name for name in OTHERS if name in self.notebooks):
            needs = [need for need in NEEDS[name] if need in (CELL, *self.notebooks)]
            state = "new" if changing.intersection(needs) else self.notebook_state(name)
            if state != "done":
                changing.add(name)
            after = [f"{len(self.runs)} runs" if need == CELL else need for need in needs]
            rows.append((state, name + (f"  after {', '.join(after)}" if after else ""), None))
        return rows

    def fingerprint(self, name: str) -> str:
        """Hash of a notebook's source, its parameters and the files it looks at."""
        digest = hashlib.sha256(source(name).read_bytes())
        digest.update(json.dumps(self.notebooks[name].model_dump()).encode())
        files = LOOKS_AT.get(name, (records.RECORD,))
        for path in sorted(path for file in files for path in self.out.glob(f"*/{file}")):
            digest.update(f"{path.parent.name}/{path.name}".encode() + path.read_bytes())
        return digest.hexdigest()

    @cached_property
    def _varying(self):
        """The parameters in which the runs differ, other than the mixer."""
        configs = [run.config for run in self.runs]
        values = {name: {str(config[name]) for config in configs} for name in configs[0]}
        return [name for name in values if name != "mixer" and len(values[name]) > 1]

    def label(self, run: TrainParams) -> str:
        """The parameters in which this run differs from the others of the batch."""
        return " ".join([run.mixer, *(f"{name}={getattr(run, name)}" for name in self._varying)])

    def write(self, options: list[str] | None) -> Path:
        """Store as ``out/plan.json`` what a complete table needs; None keeps the stored options."""
        path = self.out / records.PLAN
        if options is None:
            try:
                options = json.loads(path.read_text(encoding="utf-8"))["options"]
            except (*records.DAMAGE, OSError):
                options = []
        rows = []
        for run in self.runs:
            row = {"run_id": run.run_id, "label": self.label(run), "config": run.config}
            rows.append(row | {"robustness": run.robustness})
        fields = {"schema_version": 1, "name": self.name, "file": self.file, "options": options}
        fields |= {"notebooks": list(self.notebooks), "cells": rows}
        records.atomic_write(path, records.in_rows(fields, "cells"))
        return path


def source(name: str) -> Path:
    """The notebook of a name."""
    return project_root() / "notebooks" / f"{name}.ipynb"


def read_batch(path: Path, out: Path | None = None) -> Batch:
    """Expand a YAML grid into checked runs; results go to ``out``, by default runs/NAME.

    Raises:
        UserError: unreadable file, unknown or mistyped entries or parameters: one line for all.
    """
    path = expanded(path)
    file = _read_file(path)
    out = expanded(out) if out else runs_dir() / path.stem
    if out.resolve().is_relative_to(Path.cwd()):  # no machine path in the notebooks
        out = Path(os.path.relpath(out))
    wrong: list[str] = []
    runs = _runs(file, out, wrong)
    others = _others(file, runs, out, wrong) if runs else {}
    if wrong:
        raise UserError(f"{path}: {listed(list(dict.fromkeys(wrong)))}")
    return Batch(path.stem, out, runs, others, _named(path))


def _read_file(path):
    """The file with its entries checked, but not yet its parameters."""
    if not path.is_file():
        known = sorted(each.stem for each in (project_root() / "notebooks/batches").glob("*.yaml"))
        words = f"there is no batch file {path}; notebooks/batches has {', '.join(known) or 'none'}"
        raise UserError(words)
    try:
        if (size := path.stat().st_size) > MOST_BYTES:
            raise yaml.YAMLError(f"{size} bytes, and a batch has at most {MOST_BYTES}")
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
        if not isinstance(content, dict | None):
            raise yaml.YAMLError(f"{brief(content)} where common, grid and notebooks should stand")
        file = BatchFile.model_validate(content or {})
    except ValidationError as error:
        # a misspelt name explains a missing one
        misspelt = "extra_forbidden", "invalid_key"
        item = min(error.errors(), key=lambda item: item["type"] not in misspelt)
        places = [str(place) for place in item["loc"] if place != "[key]"]
        name, remedy = brief(".".join(places)).strip("'"), item["msg"]
        if item["type"] == "extra_forbidden":
            remedy = nearest(name, BatchFile.model_fields)
        elif item["type"] == "invalid_key" or "[key]" in item["loc"]:
            remedy = "a name is expected here, and names are text"
        raise UserError(f"{path}: {name}: {remedy}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{path} is not YAML of a batch: {reason}") from None
    blocks = (file.common, *file.grid)
    if any(value == [] for block in blocks for value in block.values()):
        raise UserError(f"{path}: an empty list spans no run: give it values, or leave it out")
    if any("out" in block for block in blocks):
        raise UserError(f"{path}: out is no parameter of a grid: name the folder by --out")
    return file


def _runs(file, out, wrong):
    """The runs of a file without repetitions; mistakes are added to ``wrong``."""
    runs: dict[str, TrainParams] = {}
    blocks = [_ranges(file.common | block) for block in file.grid]
    count = sum(math.prod(map(len, block.values())) for block in blocks)
    if count > MOST_RUNS:
        wrong.append(f"the grid spans {count} runs: at most {MOST_RUNS} fit into a batch")
        blocks = []
    every = ((block, values) for block in blocks for values in itertools.product(*block.values()))
    for values in (dict(zip(block, values)) for block, values in every):
        try:
            run = parse(CELL, values | {"out": str(out)})
        except UserError as error:
            wrong.append(str(error).removeprefix(f"{CELL}: "))
            continue
        known = runs.setdefault(run.run_id, run).dataset
        if known != run.dataset:
            wrong.append(f"{known} and {run.dataset} would be one run: use different folder names")
    return list(runs.values())


def _others(file, runs, out, wrong):
    """The other notebooks with their parameters; mistakes are added to ``wrong``."""
    notebooks, weights = {}, sorted({run.clean_weight for run in runs})
    for name, values in file.notebooks.items():
        if name not in OTHERS:
            wrong.append(f"notebooks: {name}: {nearest(name, OTHERS)}")
            continue
        try:
            notebooks[name] = parse(name, _given(name, runs[0], out) | (values or {}))
        except UserError as error:
            wrong.append(str(error))
            continue
        weight = getattr(notebooks[name], "clean_weight", None)
        if weight is not None and weight not in weights:
            problem = f"notebooks: {name}: clean_weight={weight:g} selects no run of the grid"
            known = ", ".join(f"{each:g}" for each in weights)
            wrong.append(f"{problem}: set it to one of {known}, or none for all")
    return notebooks


def _named(path):
    """A batch file as plan.json names it: relative to the project, else by its name, no path."""
    root, path = project_root().resolve(), path.resolve()
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name


def _given(name, run, out):
    """What the grid says about the parameters of another notebook."""
    if issubclass(NOTEBOOKS[name], DataParams):
        return run.model_dump(include={"dataset", "root", "allow_partial"})
    given: dict[str, Any] = {"runs": str(out)}
    if issubclass(NOTEBOOKS[name], NetworksParams):
        kind, _, folder = run.dataset.partition(":")
        given |= {"root": folder if kind == "folder" else run.root, "save": True}
        given |= run.model_dump(include={"device", "threads"})
    return given


def _ranges(block):
    """The values of each parameter in a block, whose runs are all combinations.

    A list spans a dimension; for a parameter that is a list, a list of lists does.
    """
    ranges = {}
    for name, value in block.items():
        spans = isinstance(value, list)
        if spans and takes_list(name):
            spans = any(isinstance(each, list) for each in value)
        ranges[name] = value if spans else [value]
    return ranges
