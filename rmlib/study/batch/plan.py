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
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from rmlib import UserError
from rmlib.params import DataParams, NetworksParams, Params, TrainParams, nearest
from rmlib.paths import expanded, project_root, runs_dir
from rmlib.study.batch import file as files
from rmlib.study.names import METHOD, longer, method_id, method_name
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

MOST_RUNS = 10_000  # of a batch


@dataclass
class Batch:
    """A checked batch, written below ``out``: its runs, each once, and the other notebooks."""

    name: str
    out: Path
    runs: list[TrainParams]
    notebooks: dict[str, Params]
    file: str
    # the words of the command line that changed the grid
    settings: list[str]
    # the ids of the runs on both sides of the difference named before them
    primary: list[list[str]]
    primary_metric: str

    def state(self, run: TrainParams) -> str:
        """What has become of a run: done, damaged, failed, stopped or new.

        Done needs the record, the attacks that were asked for, and a notebook that came to its end.
        A loss that became infinite has failed. Stopped has begun, perhaps without a checkpoint yet.
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
        begun = {records.CHECKPOINT, records.PREVIOUS, records.RECORD, records.UNFINISHED}
        return "stopped" if there & begun else "new"

    def record(self, run: TrainParams) -> records.Record:
        """The record of a run; one that belongs to another run is refused.

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

    def plan(self) -> list[tuple[str, str, str]]:
        """What a call would do: (state, name, text) of every run and other notebook. The text of a
        run leaves its seed out. A notebook that looks at something that will change is new.
        """
        rows = [(self.state(run), run.run_id, self._method(run)) for run in self.runs]
        changing = {CELL} if any(state != "done" for state, *_ in rows) else set()
        for name in (name for name in OTHERS if name in self.notebooks):
            needs = [need for need in NEEDS[name] if need in (CELL, *self.notebooks)]
            state = "new" if changing.intersection(needs) else self.notebook_state(name)
            if state != "done":
                changing.add(name)
            after = [f"{len(self.runs)} runs" if need == CELL else need for need in needs]
            rows.append((state, name, name + (f"  after {', '.join(after)}" if after else "")))
        return rows

    def work(self, states: set[str]) -> list[str]:
        """The names in :meth:`plan` of the runs in such a state, and of notebooks not done."""
        rows = [(state, name, name in self.notebooks) for state, name, _ in self.plan()]
        return [n for state, n, other in rows if state in states or (other and state != "done")]

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
        return [name for name in values if name not in METHOD and len(values[name]) > 1]

    def _method(self, run):
        """A run's method, and other parameters in which it differs from the batch's first run."""
        own, first = run.config, self.runs[0].config
        others = [name for name in self._varying if name != "seed" and own[name] != first[name]]
        return ", ".join([method_name(own), *(f"{name}={own[name]}" for name in others)])

    def label(self, run: TrainParams) -> str:
        """'Mixup, epochs=20, seed 0': how a run differs from others of the batch."""
        return self._method(run) + (f", seed {run.seed}" if "seed" in self._varying else "")

    @property
    def counted(self) -> str:
        """'45 runs and 1 notebook': the work that is counted."""
        numbers = {"run": len(self.runs), "notebook": len(self.notebooks)}
        return " and ".join(f"{n} {what}{'s' * (n > 1)}" for what, n in numbers.items() if n)

    def write(self, options: list[str] | None) -> Path:
        """Store as ``out/plan.json`` what a complete table needs.

        ``options``: of the command line, besides ``settings``; None keeps the stored ones.
        """
        path = self.out / records.PLAN
        if options is None:
            try:
                stored = json.loads(path.read_text(encoding="utf-8"))["options"]
                pairs = zip(["", *stored], stored)
                options = [word for before, word in pairs if "--set" not in (before, word)]
            except (*records.DAMAGE, OSError):
                options = []
        rows = []
        for run in self.runs:
            row = {"run_id": run.run_id, "label": self.label(run), "config": run.config}
            rows.append(row | {"robustness": run.robustness})
        fields = {"schema_version": 1, "name": self.name, "file": self.file}
        fields |= {"options": [*self.settings, *options]}
        if self.primary:
            fields |= {"primary": self.primary, "primary_metric": self.primary_metric}
        fields |= {"notebooks": list(self.notebooks), "cells": rows}
        records.atomic_write(path, records.in_rows(fields, "cells"))
        return path


def source(name: str) -> Path:
    """The notebook of a name."""
    return project_root() / "notebooks" / f"{name}.ipynb"


def read_batch(path: Path, out: Path | None = None, settings: list[str] | None = None) -> Batch:
    """Expand a YAML grid into checked runs; results go to ``out``, by default runs/NAME.

    ``settings``: texts NAME=VALUE, parameters of all runs in place of what the file says.

    Raises:
        UserError: unreadable file, unknown or mistyped entries or parameters: one line for all.
    """
    path = expanded(path)
    given = files.settings(settings or [])
    file = files.read_file(path, given)
    out = expanded(out) if out else runs_dir() / path.stem
    if out.resolve().is_relative_to(Path.cwd()):  # no machine path in the notebooks
        out = Path(os.path.relpath(out))
    wrong: list[str] = []
    runs = _runs(file, out, wrong)
    others = _others(file, runs, out, wrong) if runs else {}
    # other methods than the file's: its difference is not theirs
    primary = [] if given.keys() & set(METHOD) else _primary(file, runs, wrong)
    if wrong:
        where = " ".join([str(path), *(f"--set {text}" for text in settings or [])])
        raise UserError(f"{where}: {listed(list(dict.fromkeys(wrong)))}")
    words = files.words(given)
    metric = file.primary_metric
    return Batch(path.stem, out, runs, others, _named(path), words, primary, metric)


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
        twins = longer(run.model_dump()) if file.equal_compute else []
        for each in (run, *(parse(CELL, twin) for twin in twins)):
            known = runs.setdefault(each.run_id, each).dataset
            if known != run.dataset:
                remedy = "use different folder names"
                wrong.append(f"{known} and {run.dataset} would be one run: {remedy}")
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


def _primary(file, runs, wrong):
    """The ids of the runs on both sides of the difference that is named; mistakes are added to
    ``wrong``.
    """
    sides = []
    if file.primary_metric != "accuracy" and not file.primary:
        wrong.append("primary_metric: of what difference? name it with primary")
    for values in file.primary:
        for name in values.keys() - set(METHOD):
            wrong.append(f"primary: {name}: {nearest(name, METHOD)}")
        own = [
            run
            for run in runs
            if all(getattr(run, name, None) == value for name, value in values.items())
        ]
        if len({method_id(run.config) for run in own}) != 1:
            text = ", ".join(f"{name}={value}" for name, value in values.items())
            remedy = "give parameters that select the runs of one method"
            wrong.append(f"primary: {text} selects {'several' if own else 'no'} methods: {remedy}")
        sides.append([run.run_id for run in own])
    return sides


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
