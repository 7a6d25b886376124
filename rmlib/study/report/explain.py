"""Where a number comes from: from a cell of a table to the runs behind it, their files, and the
commands that make them again.

The runs and values behind a mean are those that the table itself remembers
(:mod:`rmlib.study.report.origin`); every explanation recomputes the cell from them.
"""

import json
import os
import re
import shlex
from pathlib import Path

from rmlib import UserError
from rmlib.params import TrainParams, complete, nearest
from rmlib.paths import results_dir
from rmlib.study.names import LABELS, method_name
from rmlib.study.report import completeness, origin, paper, report
from rmlib.study.report.cells import cells_of, is_value, select, showing
from rmlib.study.report.stats import mean_std
from rmlib.study.runs import collection, environment, records
from rmlib.study.settings import CELL

NOTEBOOK = {
    "attacks": "03_robustness",
    "corruptions": "03_robustness",
    "cam": "04_cam",
}  # that measures a kind
AGAIN = "runs/again"  # where a rerun goes: beside the old record it would be found finished
SHOWN = 8  # cells explained at once


def explain(words: list[str], column: str | None = None, everything: bool = False) -> str:
    """The text of ``rmlib explain``.

    Args:
        words: after an optional folder of records (default: results/) a run id, a number as it is
            printed, or the kind of a table followed by words that select its rows: a whole cell,
            "clean_weight=0", or a part of a cell or caption.
        column: heading of the column;
        default: every mean of the row.
        everything: also every parameter of the runs.

    Raises:
        UserError: nothing fits; names what would.
    """
    folder = records_folder(words)
    found = collection.gather(folder)
    text = _explain(
        found, list(words[1:] if Path(words[0]).is_dir() else words), column, everything
    )
    return text + (
        f"\n\nleft out as damaged or foreign: {len(found.problems)} of the files (rmlib report"
        f" {folder} names them)"
        if found.problems
        else ""
    )


def _explain(found, words, column, everything):
    folder, tables = found.folder, report.tables(found)
    if not words:
        raise UserError(
            f"explain what of {folder}? A run id, a number as it is printed, or a table and words"
            f" of its row: {', '.join(tables)}"
        )
    first = words[0]
    ids = [run_id for run_id in found.records if len(first) >= 6 and run_id.startswith(first)]
    if len(ids) == 1 and len(words) == 1:
        return _run(found, ids[0], everything) + "\n" + _stands_in(tables, ids[0])
    if first in tables:
        if not tables[first]:
            raise UserError(f"nothing was measured for the table {first!r} under {folder}")
        cells = select(first, tables[first], words[1:], column)
    elif re.search(r"\d", first) and not re.fullmatch("[0-9a-f]{12}", first):
        cells = showing(
            " ".join(words),
            [
                cell
                for kind in tables
                for cell in cells_of(kind, tables[kind])
                if not column or column.lower() in cell.head.lower()
            ],
            folder,
        )
    else:
        known = list(tables)
        if re.fullmatch("[0-9a-f]{6,}", first):
            known += found.records
        raise UserError(f"{folder}: nothing is called {first!r}: {nearest(first, known)}")
    rows = {(cell.kind, cell.number, cell.row) for cell in cells}
    if len(cells) > SHOWN and len(rows) > 1:
        return "\n".join(
            [
                f"{len(cells)} cells; name one of them by more words, or by --column:",
                *(f"  {cell.where}: {cell.text}" for cell in cells),
            ]
        )
    told, runs = [], {}
    for cell in cells:
        text, behind = _cell(found, cell)
        told.append(text)
        runs |= dict.fromkeys(behind)
    return "\n\n".join([*told, *(_run(found, run_id, everything) for run_id in runs)])


def records_folder(words) -> Path:
    """The folder that the first word names, else results/ of the project.

    Raises:
        UserError: it looks like a folder and is none.
    """
    if Path(words[0]).is_dir():
        return Path(words[0])
    if "/" in words[0] and not re.match(r"[A-Za-z]+ |\d", words[0]):
        raise UserError(
            f"there is no folder {words[0]}: expected a folder of records, e.g. results/quick"
        )
    folder = results_dir()
    return Path(os.path.relpath(folder)) if folder.is_relative_to(Path.cwd()) else folder


def _cell(found, cell):
    """How a cell was made, as (text, the runs behind it)."""
    lines = [f"{found.folder}: {cell.where}", f"  {cell.text}"]
    sides, how = _sides(found, cell)
    runs = dict.fromkeys(run_id for values in sides.values() for run_id in values)
    lines.append(f"  {how}")
    for side, values in sides.items() if runs else ():
        mean, std = mean_std(list(values.values()))
        if side:
            lines.append(f"  {side}: {report.cell(mean, std, 4)}, n = {len(values)}")
        lines += [
            f"    {value:<12.8g} {_name(found, run_id)}  run {run_id}"
            for run_id, value in sorted(
                values.items(), key=lambda item: found.records[item[0]].config["seed"]
            )
        ]
    lines += [f"  recomputed: {text}" for text in [_recomputed(cell, sides)] if text]
    diverged = (
        cell.table.to_dict("records")[cell.row].get("diverged") if cell.kind == "accuracy" else None
    )
    lines += [f"  not averaged: {diverged} diverged"] if diverged else []
    lines += _measurements(found, cell, runs)
    return "\n".join(lines), runs


def _name(found, run_id):
    config = complete(found.records[run_id].config)
    return f"{method_name(config)}, seed {config['seed']}"


def _recomputed(cell, sides):
    """The cell made again from the values listed, and whether it is the one in the table."""
    means = [mean_std(list(values.values())) for values in sides.values()]
    value = cell.table[cell.name].iloc[cell.row]
    if value != value or value == "–":
        return None
    if len(means) == 1 and sides.get(""):
        again, text = (
            means[0][0],
            report.cell(*means[0], max(4, (report.HEADS.get(cell.name, (0, 1))[1] or 1))),
        )
    elif len(means) == 2 and (cell.name in ("points", "A - B") or is_value(cell.kind, cell.name)):
        again, text = means[0][0] - means[1][0], f"{means[0][0] - means[1][0]:+.4f}"
        if cell.kind == "claims" and "% slower" in cell.keys:
            again = 100 * again / means[1][0]
            text = f"{again:+.4f} % of the second's mean"
        if isinstance(value, str):  # '+0.30 [+0.10, +0.50]'
            value, again = float(value.split()[0]), round(again, 2)
    else:
        return None
    same = value == again or abs(value - again) <= 1e-9 * max(1, abs(value))
    if same:
        return f"{text}, as in the table"
    return f"{text}, but the table has {value}: a mistake in rmlib, please report it"


def _sides(found, cell):
    """({side: {run_id: value}}, how the cell was made of them)."""
    behind = cell.table.attrs.get(origin.BEHIND, [])
    if cell.kind in ("differences", "networks"):
        (sides,) = behind[cell.row].values()
        return (
            sides,
            (
                "from the accuracies of these runs (in percent, A before B), their spread, and"
                " their number; p corrected for the other rows of the table:"
            ),
        )
    if cell.kind == "costs":
        sides = cell.sides or behind[cell.row]["sum"]
        hours = ", ".join(f"{sum(values.values()):.4f} of {name}" for name, values in sides.items())
        return (
            sides,
            (
                "images per second of training, of each run:"
                if "" in sides
                else f"hours, {hours} together, of each run:"
            ),
        )
    if cell.sides:
        sides, count = cell.sides, sum(map(len, cell.sides.values()))
        if not count:
            return {}, _not_run(cell)
        if len(sides) == 2:
            return sides, f"mean of {' minus mean of '.join(sides)}, over pairs of runs"
        return (
            sides,
            (
                f"mean{' and sample standard deviation' if count > 1 else ''} of {count}"
                f" value{'s' if count > 1 else ''}, one for each network:"
            ),
        )
    if cell.kind == "claims":
        claim, runs = paper.CLAIMS[cell.row], paper.under_protocol(found.runs)
        sides = {
            _side(*side): paper.by_run(
                paper.values(runs, found.tables["attacks"], claim.metric, claim.dataset, *side)
            )
            for side in (claim.a, claim.b)
        }
        what = (
            f"{paper.METRICS[claim.metric]} of runs under the paper's protocol, A before B; from"
            " their means, spreads and pairs of equal seeds:"
        )
        return sides, what if all(sides.values()) else _not_run(cell)
    if cell.kind == "eps":
        row, runs = cell.table.iloc[cell.row], paper.under_protocol(found.runs)
        dataset = next(name for name, label in paper.DATASETS.items() if label == row["dataset"])
        sides = {
            LABELS[mixer]: paper.by_run(
                paper.values(runs, found.tables["attacks"], "accuracy", dataset, mixer, 1.0)
            )
            for mixer in paper.METHODS
        }
        return (
            sides,
            (
                "fitted to the curves of accuracy over sizes of perturbation of these networks"
                " (clean accuracy listed):"
                if all(sides.values())
                else _not_run(cell)
            ),
        )
    # a count, an interval, a state: made of what the rest of its row is made of
    sides = {
        name if len(entry) == 1 else f"{name}, {side}": values
        for name, entry in (behind[cell.row] if behind else {}).items()
        for side, values in entry.items()
    }
    return sides, (
        "made of what its whole row is made of:" if any(sides.values()) else _not_run(cell)
    )


def _side(mixer, clean_weight):
    return f"{LABELS[mixer]}, clean_weight={clean_weight:g}"


def _not_run(cell):
    """What a cell without a value would need."""
    if cell.kind not in ("paper", "claims", "eps"):
        return "nothing was measured for this cell"
    if cell.kind == "claims":
        claim = paper.CLAIMS[cell.row]
        name, metric, sides, count = (
            claim.dataset,
            claim.metric,
            " and of ".join(_side(*side) for side in (claim.a, claim.b)),
            claim.runs,
        )
    else:
        row = cell.table.iloc[cell.row]
        name = next(name for name, label in paper.DATASETS.items() if label == row["dataset"])
        metric = (
            {"Table 3": "fgsm", "Table 4": "square"}.get(cell.caption[:7], "accuracy")
            if cell.kind == "paper"
            else row["attack"].lower()
        )
        sides = (
            _side(row["mixer"], 0.0 if row.get("clean loss") == "without" else 1.0)
            if cell.kind == "paper"
            else "each method, clean_weight=1"
        )
        count = paper.RUNS
    needed = (
        f", and beside each an attacks.json with {metric} on all test images"
        if metric in ("fgsm", "square")
        else ""
    )
    return (
        f"not run: needs at least {count} finished records of {sides} on the whole of {name} under"
        " the paper's protocol (width 64, 400 epochs; rmlib.study.report.paper.PROTOCOL)"
        f"{needed}; rmlib batch notebooks/batches/{name}.yaml --out results/{name} makes them"
    )


def _measurements(found, cell, runs):
    """The stored measurements behind a cell of a measured table: settings once, and the file of
    each run.
    """
    sources = (
        report.MEASURED[cell.kind][2]
        if cell.kind in report.MEASURED
        else (
            ("attacks",)
            if cell.caption.startswith(("Table 3", "Table 4")) or "attack" in cell.table
            else ()
        )
    )
    if cell.kind == "robustness":
        sources = (
            ("corruptions",)
            if cell.name == "corrupted (mean)"
            else sources
            if cell.name == "clean_accuracy"
            else ("attacks",)
        )
    row, lines = cell.table.to_dict("records")[cell.row], []
    for kind in sources:
        known = {}
        for run_id in runs:
            for each in _content(found, kind, run_id):
                if _belongs(cell, row, kind, each):
                    known.setdefault(json.dumps(each.settings, sort_keys=True), []).append(
                        (found.measured[kind][run_id][0], each)
                    )
        for settings, several in known.items():
            lines.append(
                "  measured with"
                f" {', '.join(f'{name} {value}' for name, value in json.loads(settings).items())}"
            )
            lines += [
                f"    {path}, {each.seconds:.1f} s, finished {each.finished}, {_code(each.code)},"
                f" {_device(each.hardware)}"
                for path, each in several
            ]
        notebooks = dict.fromkeys(
            found.folders[run_id].parent / f"{NOTEBOOK[kind]}.ipynb"
            for run_id in runs
            if run_id in found.folders
        )
        lines += [
            (
                f"  executed notebook: {path}"
                if path.exists()
                else (
                    f"  measured by notebook {NOTEBOOK[kind]} with save=True (no executed copy in"
                    f" {path.parent})"
                )
            )
            for path in notebooks
        ]
    return lines


def _content(found, kind, run_id):
    """What was measured of a kind on the network of a run."""
    return found.measured[kind][run_id][1].measurements if run_id in found.measured[kind] else []


def _belongs(cell, row, kind, measurement):
    """Whether a stored measurement is of the cell's attack, size, measure and sample."""
    what, found = measurement.settings, measurement.result
    if cell.kind in report.LOOKS:
        return what.get("measure") in report.LOOKS[cell.kind] and (
            "images" not in row or what.get("images") == row["images"]
        )
    if kind == "attacks" and cell.kind == "robustness" and cell.name != "clean_accuracy":
        return report.attack_name(what) == cell.name and found.get("images") == row["images"]
    if cell.kind == "checks":
        return what.get("eps") == row["eps"]
    if cell.kind == "paper":
        return (
            what.get("attack") == ("fgsm" if cell.caption.startswith("Table 3") else "square")
            and f"eps {what.get('eps')} " in cell.caption
        )
    return cell.kind in ("robustness", "corrupted", "eps")


def _stands_in(tables, run_id):
    """The cells that a run stands behind, a line for each row."""
    rows = {}
    for kind, several in tables.items():
        for cell in cells_of(kind, several):
            if any(run_id in values for values in cell.sides.values()):
                rows.setdefault((kind, cell.number, cell.row), []).append(cell)
    lines = [
        f"    {cells[0].where.rsplit(' | ', 1)[0]}: {', '.join(cell.head for cell in cells)}"
        for cells in rows.values()
    ]
    return "\n".join(["  stands behind:", *lines]) if lines else "  stands behind no mean"


def _run(found, run_id, everything):
    """All that is known of a run, and how to make it again."""
    record, folder = found.records[run_id], found.folders[run_id]
    config = complete(record.config)
    metrics = ", ".join(f"{name} {value:.6g}" for name, value in record.metrics.items())
    told = {
        name: value
        for name, value in config.items()
        if everything or name not in report.DEFAULTS or value != report.DEFAULTS[name]
    }
    notebook = folder / f"{CELL}.ipynb"
    beside = [
        str(found.measured[kind][run_id][0])
        for kind in records.KINDS
        if run_id in found.measured[kind]
    ]
    lines = [
        f"run {run_id}: {_name(found, run_id)}: {record.status}",
        f"  record     {folder / records.RECORD}",
        *(f"  measured   {path}" for path in beside),
        f"  metrics    {metrics}",
        (
            f"  parameters {', '.join(f'{name}={value}' for name, value in told.items())}"
            f"{'' if everything else ' (the others are the defaults: --all)'}"
        ),
        (
            "  notebook  "
            f" {notebook if notebook.exists() else f'no executed {CELL}.ipynb beside the record'}"
        ),
        f"  code       {_code(record.code)}",
        (
            "  versions  "
            f" {', '.join(f'{name} {version}' for name, version in record.versions.items())}"
        ),
        f"  hardware   {_device(record.hardware)}",
        f"  finished   {record.finished}, after {record.seconds:.1f} s"
        + (f" shared by {record.together} runs" if record.together > 1 else ""),
    ]
    return "\n".join([*lines, *(f"  again      {line}" for line in again(found, run_id))])


def _code(code):
    state = {
        True: ", with changes that were not committed",
        None: ", not known whether all was committed",
    }.get(code["dirty"], "")
    return f"rmlib {code['version']}, commit {code['commit'] or 'not known'}{state}"


def _device(hardware):
    return (
        f"{hardware.get('gpu') or hardware['cpu']} ({hardware['cores']} cores,"
        f" {hardware.get('system', '?')})"
    )


def again(found: collection.Collection, run_id: str) -> list[str]:
    """The commands that make a run again: the code of its time, then the run alone, or the whole
    batch where a plan names one.
    """
    record = found.records[run_id]
    commit, lines = record.code["commit"], []
    if commit and commit != environment.git_state()["commit"]:
        lines.append(f"git checkout {commit}")
    lines.append(shlex.join(["rmlib", *train_words(record)]))
    for path in found.plans:
        plan = completeness.read_plan(path)
        if plan and plan.get("file") and any(cell["run_id"] == run_id for cell in plan["cells"]):
            lines.append(
                "or all of its batch: "
                + shlex.join(
                    [
                        "rmlib",
                        "batch",
                        plan["file"],
                        "--out",
                        str(path.parent),
                        *plan.get("options", ()),
                    ]
                )
            )
    return lines


def train_words(record: records.Record) -> list[str]:
    """The words of the command line after ``rmlib`` that train a run again: what differs from the
    defaults, the device, and another folder. Of a dataset ``folder:NAME`` a record keeps the name
    alone: the path is the user's to fill in.
    """
    words = ["train"]
    for name, value in complete(record.config).items():
        option = name.replace("_", "-")
        if name not in TrainParams.model_fields or value == report.DEFAULTS[name]:
            continue
        if isinstance(value, bool):
            words.append(f"--{option}" if value else f"--no-{option}")
        elif isinstance(value, list):
            words += [f"--{option}", *map(str, value)]
        else:
            words += [f"--{option}", "all" if value is None else str(value)]
    return [
        *words,
        *["--compiled"] * record.compiled,
        "--device",
        record.hardware["device"],
        "--out",
        AGAIN,
    ]
