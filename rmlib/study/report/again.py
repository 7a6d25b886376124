"""One run in words: what is known of it, and the commands that make it again."""

import shlex

from rmlib.params import TrainParams, complete
from rmlib.study.names import method_name
from rmlib.study.report.groups import DEFAULTS
from rmlib.study.runs import collection, environment, records
from rmlib.study.runs.records import KINDS
from rmlib.study.settings import CELL

# where a rerun goes: beside the old record it would be found finished
AGAIN = f"runs/{collection.REPEATED}"


def run_name(found, run_id) -> str:
    """'Region Mixup, k=4, seed 0'."""
    config = complete(found.records[run_id].config)
    return f"{method_name(config)}, seed {config['seed']}"


def run_text(found, run_id, everything: bool = False) -> str:
    """All that is known of a run, and how to make it again. ``everything``: also the parameters
    that have their defaults.
    """
    record, folder = found.records[run_id], found.folders[run_id]
    config = complete(record.config).items()
    shown = [f"{name}={x}" for name, x in config if everything or x != DEFAULTS.get(name, ...)]
    parameters = ", ".join(shown) + ("" if everything else " (the others are the defaults: --all)")
    notebook = folder / f"{CELL}.ipynb"
    missing = f"no executed {CELL}.ipynb beside the record"
    measured = [found.measured[kind][run_id][0] for kind in KINDS if run_id in found.measured[kind]]
    shared = f" shared by {record.together} runs" if record.together > 1 else ""
    told = [
        ("record", folder / records.RECORD),
        *(("measured", path) for path in measured),
        ("metrics", ", ".join(f"{name} {value:.6g}" for name, value in record.metrics.items())),
        ("parameters", parameters),
        ("notebook", notebook if notebook.exists() else missing),
        ("code", code_text(record.code)),
        ("versions", ", ".join(f"{name} {text}" for name, text in record.versions.items())),
        ("hardware", device_text(record.hardware)),
        ("finished", f"{record.finished}, after {record.seconds:.1f} s{shared}"),
        *(("again", line) for line in again(found, run_id)),
        ("note", "on another kind of device the same seed is another draw, see 05_results"),
    ]
    lines = [f"run {run_id}: {run_name(found, run_id)}: {record.status}"]
    return "\n".join([*lines, *(f"  {what:<10} {text}" for what, text in told)])


def code_text(code) -> str:
    """The version and commit of rmlib that did some work."""
    text = f"rmlib {code['version']}, commit {code['commit'] or 'not known'}"
    if code["dirty"] is None:
        return f"{text}, not known whether all was committed"
    return f"{text}, with changes that were not committed" if code["dirty"] else text


def device_text(hardware) -> str:
    """The device that did some work."""
    device = hardware.get("gpu") or hardware["cpu"]
    kind = [f"{hardware['cores']} cores", hardware.get("capability"), hardware.get("system", "?")]
    return f"{device} ({', '.join(filter(None, kind))})"


def again(found: collection.Collection, run_id: str) -> list[str]:
    """The commands that make a run again: the code of its time, then the run alone, or the whole
    batch where a plan names one.
    """
    record, lines = found.records[run_id], []
    commit = record.code["commit"]
    if commit and commit != environment.git_state()["commit"]:
        lines.append(f"git checkout {commit}")
    where = records.noted_images(found.folders[run_id])
    lines.append(shlex.join(["rmlib", *train_words(record, where)]))
    if record.config["dataset"].startswith("folder:") and not where:
        lines.append("with the path of that folder after folder: (a record holds its name alone)")
    for path in found.plans:
        plan = collection.read_plan(path)
        if plan and plan.file and run_id in [run["run_id"] for run in plan.cells]:
            words = ["rmlib", "batch", plan.file, "--out", AGAIN]
            own = f"dataset={record.config['dataset']}"
            named = f"dataset={where.get('dataset', record.config['dataset'])}"
            words += [named if word == own else word for word in plan.options]
            lines.append(f"or all of its batch: {shlex.join(words)}")
    return lines


def train_words(record: records.Record, where: dict | None = None) -> list[str]:
    """The words of the command line after ``rmlib`` that train a run again: what differs from the
    defaults, the device, and another folder. ``where`` the images lie: see
    :func:`rmlib.study.runs.records.noted_images`.
    """
    where = where or {}
    words = ["train"]
    for name, value in (complete(record.config) | where).items():
        option = name.replace("_", "-")
        # the default of train_images depends on the dataset
        default = value == DEFAULTS.get(name) and name != "train_images"
        if name not in TrainParams.model_fields or default:
            continue
        if isinstance(value, bool):
            words.append(f"--{option}" if value else f"--no-{option}")
        elif isinstance(value, list):
            words += [f"--{option}", *map(str, value)]
        else:
            words += [f"--{option}", "all" if value is None else str(value)]
    words += ["--compiled"] * record.compiled
    return [*words, "--device", record.hardware["device"], "--out", AGAIN]
