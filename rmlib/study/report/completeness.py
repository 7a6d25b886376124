"""What is missing for complete tables: by the plan of a batch where there is one, else by what
other runs of the same experiment have.
"""

import json
from pathlib import Path

from rmlib.params import config_id
from rmlib.study.names import LABELS
from rmlib.study.report import report
from rmlib.study.runs import collection, records


def missing(found: collection.Collection) -> list[str]:
    """A line for everything that is missing in a collection; [] if it is complete."""
    lines, planned = [], set()
    for path in found.plans:
        plan = read_plan(path)
        if plan is None:
            lines.append(
                f"{path} is damaged: the same batch writes it anew; what is missing is told from"
                " the other runs"
            )
            continue
        planned |= {cell["run_id"] for cell in plan["cells"]}
        lines += _of_plan(found, plan, path.parent)
    rest = found.runs[~found.runs["run_id"].isin(planned)] if len(found.runs) else found.runs
    groups = report.experiments(rest) if len(rest) else []
    for group in groups:
        lines += [
            f"{report.title(group)}: {line}" if len(groups) > 1 or planned else line
            for line in _of_experiment(found, group)
        ]
    return lines


def read_plan(path: Path) -> dict | None:
    """The content of a plan, or None if it cannot be used."""
    try:
        plan = json.loads(path.read_text())
        return (
            plan
            if plan["schema_version"] == 1
            and all(isinstance(cell["run_id"], str) and cell["label"] for cell in plan["cells"])
            else None
        )
    except (*records.DAMAGE, OSError):
        return None


def _of_plan(found, plan, folder):
    """Cells without a record, each with its reason, and cells whose measurements did not come to
    their end.
    """
    cells, name = plan["cells"], plan.get("name", folder.name)
    absent = {
        cell["label"]: why(folder / cell["run_id"])
        for cell in cells
        if cell["run_id"] not in found.records
    }
    lines = [
        f"{name}: {label} is missing ({reason})"
        for label, reason in absent.items()
        if reason != NOT_RUN
    ]
    lines += _list(
        f"{name}: not run",
        [label for label, reason in absent.items() if reason == NOT_RUN],
        len(cells),
        "cells",
    )
    trained = [cell for cell in cells if cell["run_id"] in found.records]
    lines += [
        f"{name}: {cell['label']} diverged"
        for cell in trained
        if found.records[cell["run_id"]].status == "diverged"
    ]
    measured = [
        cell
        for cell in trained
        if cell.get("robustness") and found.records[cell["run_id"]].status == "done"
    ]
    for kind in records.KINDS:
        lines += _list(
            f"{name}: {kind}: missing",
            [cell["label"] for cell in measured if not _to_the_end(found, kind, cell["run_id"])],
            len(measured),
            "runs",
        )
    return lines


def _to_the_end(found, kind, run_id):
    """Whether a kind of measurement is there; maps are when the last of them is, see
    :func:`rmlib.study.runs.records.measured_to_the_end`.
    """
    _, content = found.measured[kind].get(run_id, (None, None))
    return content is not None and (
        kind != "cam"
        or any(row.settings.get("measure") == records.KEPT for row in content.measurements)
    )


def _list(what, labels, total, unit):
    return [f"{what} for {len(labels)} of {total} {unit}: {'; '.join(labels)}"] if labels else []


NOT_RUN = "not run"


def why(folder: Path) -> str:
    """Why a run has no usable record, as far as its folder tells."""
    if (folder / records.RECORD).exists():
        return "its record is left out"
    try:
        return f"status failed: {(folder / records.ERROR).read_text().splitlines()[0].strip()}"
    except (OSError, UnicodeDecodeError):
        pass
    except IndexError:
        return "status failed"
    return (
        "status unfinished: it goes on from its checkpoint"
        if (folder / records.CHECKPOINT).exists()
        else NOT_RUN
    )


def _of_experiment(found, group):
    """Seeds that some method of an experiment has and another lacks, and measurements that some
    runs with the same weight of the clean loss have.
    """
    lines, labels = [], {}
    seeds = sorted(set(group["config.seed"]))
    for cells, runs in (
        (cells, runs.sort_values("config.seed")) for cells, runs in report.methods(group)
    ):
        label = ", ".join(
            [
                LABELS[cells["mixer"]],
                *(
                    f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}"
                    for name, value in cells.items()
                    if name != "mixer"
                ),
            ]
        )
        labels |= {
            run_id: f"{label}, seed {seed}"
            for run_id, seed in zip(runs["run_id"], runs["config.seed"])
        }
        lines += [
            f"{label}: seed {seed} diverged"
            for seed, status in zip(runs["config.seed"], runs["status"])
            if status == "diverged"
        ]
        first, own = runs["run_id"].iloc[0], set(runs["config.seed"])
        for seed in (seed for seed in seeds if seed not in own):
            run_id = config_id(found.records[first].config | {"seed": seed})
            reason = why(found.folders[first].parent / run_id)
            lines.append(f"{label}: seed {seed} is missing ({reason})")
    done = group[group["status"] == "done"]
    for _, alike in done.groupby("config.clean_weight", sort=False):
        own = set(alike["run_id"])
        for kind in records.KINDS:
            lacking = [
                label
                for run_id, label in labels.items()
                if run_id in own and run_id not in found.measured[kind]
            ]
            lines += (
                _list(f"{kind}: missing", lacking, len(alike), "runs")
                if len(lacking) < len(alike)
                else []
            )
    return lines
