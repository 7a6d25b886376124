"""What is missing for complete tables: by the plan of a batch where there is one, else by what
other runs of the same experiment have.
"""

from pathlib import Path

from rmlib.params import config_id
from rmlib.study.names import experiment, longer
from rmlib.study.report import groups
from rmlib.study.runs import collection, records


def missing(found: collection.Collection) -> list[str]:
    """A line for everything that is missing in a collection; [] if it is complete."""
    lines, planned = [], set()
    for path in found.plans:
        plan = collection.read_plan(path)
        if plan is None:
            lines.append(
                f"{path} is damaged: the same batch writes it anew; until then other runs tell"
                " what is missing"
            )
            continue
        planned |= {run["run_id"] for run in plan.cells}
        lines += _of_plan(found, plan, path.parent)
    rest = found.runs[~found.runs["run_id"].isin(planned)] if len(found.runs) else found.runs
    experiments = groups.experiments(rest) if len(rest) else []
    for group in experiments:
        title = f"{groups.title(group)}: " if len(experiments) > 1 or planned else ""
        lines += [title + line for line in _of_experiment(found, group)]
    return lines


def interim(found: collection.Collection, group) -> str:
    """'interim, 20 of 55 planned runs': of an experiment whose plan is not done yet, else ''."""
    own = experiment(found.records[group["run_id"].iloc[0]].config)
    configs = found.planned
    planned = {run_id for run_id, config in configs.items() if experiment(config) == own}
    twins = [twin for run_id in planned for twin in longer(configs[run_id])]
    planned |= configs.keys() & set(map(config_id, twins))
    there = planned & found.records.keys()
    return f"interim, {len(there)} of {len(planned)} planned runs" if there < planned else ""


def _of_plan(found, plan, folder):
    """Runs without a record, each with its reason, and runs whose measurements did not come to
    their end.
    """
    name = plan.name or folder.name
    lines, not_run, measured = [], [], []
    for run in plan.cells:
        run_id, label = run["run_id"], run["label"]
        if run_id not in found.records:
            reason = why(folder / run_id)
            if reason == NOT_RUN:
                not_run.append(label)
            else:
                lines.append(f"{name}: {label} is missing ({reason})")
        elif found.records[run_id].status == "diverged":
            lines.append(f"{name}: {label} diverged")
        elif run.get("robustness"):
            measured.append(run)
    lines += _list(f"{name}: not run", not_run, len(plan.cells))
    for kind in records.KINDS:
        lacking = [run["label"] for run in measured if not _to_the_end(found, kind, run["run_id"])]
        lines += _list(f"{name}: {kind}: missing", lacking, len(measured))
    return lines


def _to_the_end(found, kind, run_id):
    """Whether a kind of measurement is there; maps are when the last of them is, see
    :func:`rmlib.study.runs.records.measured_to_the_end`.
    """
    if run_id not in found.measured[kind]:
        return False
    _, content = found.measured[kind][run_id]
    measures = [row.settings.get("measure") for row in content.measurements]
    return kind != "cam" or records.KEPT in measures


def _list(what, labels, total):
    if not labels:
        return []
    more = [f"and {len(labels) - SHOWN} more"] if len(labels) > SHOWN + 1 else []
    named = "; ".join([*(labels[:SHOWN] if more else labels), *more])
    return [f"{what} for {len(labels)} of {total} runs: {named}"]


NOT_RUN = "not run"
SHOWN = 6  # runs that one line names


def why(folder: Path) -> str:
    """Why a run has no usable record, as far as its folder tells."""
    if (folder / records.RECORD).exists():
        return "its record is left out"
    try:
        text = (folder / records.ERROR).read_text(encoding="utf-8")
        return f"status failed: {text.splitlines()[0].strip()}"
    except (OSError, UnicodeDecodeError):
        pass
    except IndexError:
        return "status failed"
    unfinished = (folder / records.CHECKPOINT).exists()
    return "status unfinished: it goes on from its checkpoint" if unfinished else NOT_RUN


def _of_experiment(found, group):
    """Seeds that some method of an experiment has and another lacks, and measurements that some
    runs with the same weight of the clean loss have.
    """
    lines: list[str] = []
    labels: dict[str, str] = {}
    seeds = sorted(set(group["config.seed"]))
    for _, runs in groups.methods(group):
        runs = runs.sort_values("config.seed")
        label = groups.name_of(runs, group)
        own = dict(zip(runs["config.seed"], runs["run_id"]))
        labels |= {run_id: f"{label}, seed {seed}" for seed, run_id in own.items()}
        diverged = runs.loc[runs["status"] == "diverged", "config.seed"]
        lines += [f"{label}: seed {seed} diverged" for seed in diverged]
        first = runs["run_id"].iloc[0]
        for seed in (seed for seed in seeds if seed not in own):
            run_id = config_id(found.records[first].config | {"seed": seed})
            reason = why(found.folders[first].parent / run_id)
            lines.append(f"{label}: seed {seed} is missing ({reason})")
    done = group[group["status"] == "done"]
    for _, alike in done.groupby("config.clean_weight", sort=False):
        counted = [run_id for run_id in labels if run_id in set(alike["run_id"])]
        for kind in records.KINDS:
            lacking = [labels[run_id] for run_id in counted if run_id not in found.measured[kind]]
            if len(lacking) < len(alike):
                lines += _list(f"{kind}: missing", lacking, len(alike))
    return lines
