"""Where a number comes from: from a value of a table to the runs behind it, their files, and the
commands that make them again.

A value knows the runs that it was made from (:mod:`rmlib.study.report.values`); every explanation
makes it again from them.
"""

import json
import os
import re
from pathlib import Path

from rmlib import UserError, paths
from rmlib.params import nearest
from rmlib.study.report import report
from rmlib.study.report.again import code_text, device_text, run_name, run_text
from rmlib.study.report.places import places, rows, select, showing
from rmlib.study.report.stats import mean_std
from rmlib.study.report.values import Value, spread
from rmlib.study.runs import collection
from rmlib.study.runs.records import RECORD

# notebook that measures a kind
NOTEBOOK = {"attacks": "03_robustness", "corruptions": "03_robustness", "cam": "04_cam"}
# values explained at once, and runs described in full
SHOWN, IN_FULL = 8, 3
HOW = {
    "mean": "mean and sample standard deviation of {count} values, one for each network:",
    "difference": "mean of {0} minus mean of {1}, over these runs:",
    "change": "mean of {0} minus mean of {1}, minus the same of {2} and {3}, over these runs:",
    "sum": "sum over these runs:",
}


def explain(words: list[str], column: str | None = None, everything: bool = False) -> str:
    """The text of ``rmlib explain``.

    Args:
        words: after an optional folder of records (default: runs/, then results/) a run id, a
            number as it is printed, or the kind of a table followed by words that select its rows:
            a whole entry, "clean_weight=0", or a part of an entry or caption.
        column: heading of the column; default: every value of the row.
        everything: every run in full, with every parameter.

    Raises:
        UserError: nothing fits; names what would.
    """
    folders, problems = records_folders(words), []
    words = words[1:] if Path(words[0]).is_dir() else words
    for folder in folders:
        found = collection.gather(folder)
        try:
            text = _explain(found, words, column, everything)
        except UserError as error:
            problems.append(error)
            continue
        left_out = f"left out as damaged or foreign: {len(found.problems)} of the files"
        left_out += f" (rmlib report {folder} names them)"
        return f"{text}\n\n{left_out}" if found.problems else text
    raise problems[0]


def _explain(found, words, column, everything):
    """What is known of the words below one folder."""
    if not words:
        raise UserError(
            f"explain what of {found.folder}? A run id, a number as it is printed, or a table and"
            f" words of its row: {', '.join(report.HEADINGS)}"
        )
    first = words[0]
    tables = report.tables(found, (first,) if first in report.HEADINGS else report.HEADINGS)
    ids = [run_id for run_id in found.records if len(first) >= 6 and run_id.startswith(first)]
    if len(ids) == 1 and len(words) == 1:
        head, _, rest = run_text(found, ids[0], everything).partition("\n")
        return "\n".join([head, _stands_in(tables, ids[0]), rest])
    chosen = _chosen(found, tables, words, column)
    if len(chosen) > SHOWN and len({(place.kind, place.number, place.row) for place in chosen}) > 1:
        lines = [f"{len(chosen)} values; name one of them by more words, or by --column:"]
        return "\n".join([*lines, *(f"  {place.where}: {place.text}" for place in chosen)])
    values = [value for place in chosen for value in place.values.values()]
    runs = dict.fromkeys(run_id for value in values for run_id in value.runs)
    told = [place_text(found, place) for place in chosen]
    if len(runs) > IN_FULL and not everything:
        one = next(iter(runs))
        return "\n\n".join([*told, f"one of the runs: rmlib explain {found.folder} {one}"])
    return "\n\n".join([*told, *(run_text(found, run_id, everything) for run_id in runs)])


def _chosen(found, tables, words, column):
    """The entries of tables that the words name."""
    folder, first = found.folder, words[0]
    if first in tables:
        if not tables[first]:
            raise UserError(f"nothing was measured for the table {first!r} under {folder}")
        return select(first, tables[first], words[1:], column)
    is_run_id = re.fullmatch("[0-9a-f]{6,}", first)
    if re.search(r"\d", first) and not (is_run_id and len(first) == 12):
        everywhere = [place for kind in tables for place in places(kind, tables[kind])]
        if column:
            everywhere = [place for place in everywhere if column.lower() in place.head.lower()]
        return showing(" ".join(words), everywhere, folder)
    known = [*tables, *(found.records if is_run_id else ())]
    raise UserError(f"{folder}: nothing is called {first!r}: {nearest(first, known)}")


def records_folders(words) -> list[Path]:
    """The folder that the first word names, else where new runs lie, and then results/.

    Raises:
        UserError: it looks like a folder and is none.
    """
    if Path(words[0]).is_dir():
        return [Path(words[0])]
    if "/" in words[0] and not re.match(r"[A-Za-z]+ |\d", words[0]):
        raise UserError(
            f"there is no folder {words[0]}: expected a folder of records, e.g. results/quick"
        )
    folders = [
        folder for folder in (paths.runs_dir(), paths.results_dir()) if paths.below(folder, RECORD)
    ]
    here = Path.cwd()
    near = [Path(os.path.relpath(x)) if x.is_relative_to(here) else x for x in folders]
    return near or [paths.runs_dir()]


def place_text(found, place) -> str:
    """How an entry of a table was made."""
    lines = [f"{found.folder}: {place.where}", f"  {place.text}"]
    values = place.values
    if not any(value.runs for value in values.values()):
        missing = [value.missing for value in values.values() if value.missing]
        missing.append("nothing was measured for this value")
        return "\n".join([*lines, f"  {missing[0]}"])
    if place.name not in values:
        lines.append("  made of what its whole row is made of:")
    for name, value in values.items():
        lines += _value(found, name, value, place.name != name)
    diverged = place.table.rows[place.row].get("diverged")
    lines += [f"  not averaged: {diverged} diverged"] if diverged else []
    measured = {json.dumps(value.measured): value for value in values.values()}
    for value in measured.values():
        lines += _measurements(found, value)
    return "\n".join(lines)


def _value(found, name, value, with_name):
    """The numbers of the runs behind a value, and the value made again from them."""
    how = HOW[value.how].format(*value.sides, count=len(value.runs))
    lines = [f"  {name}: {how}" if with_name else f"  {how}"]
    for side, numbers in value.sides.items():
        if side:
            lines.append(f"  {side}: {spread(*mean_std(numbers.values()), 4)}, n = {len(numbers)}")
        for run_id in sorted(numbers, key=lambda run_id: found.records[run_id].config["seed"]):
            lines.append(f"    {numbers[run_id]:<12.8g} {run_name(found, run_id)}  run {run_id}")
    if value.mean != value.mean and value.missing:
        lines.append(f"  {value.missing}")
    again = value.again()
    if again == again and value.runs:
        signed = f"{again:+.4f}"
        texts = {"difference": signed, "change": signed, "sum": f"{again:.2f}"}
        text = texts.get(value.how) or spread(again, value.std, 4)
        same = abs(value.mean - again) <= 1e-9 * max(1, abs(value.mean))
        wrong = f"but the table has {value.mean}: a mistake in rmlib, please report it"
        lines.append(f"  recomputed: {text}, {'as in the table' if same else wrong}")
    return lines


def _measurements(found, value: Value):
    """The stored measurements behind a value: settings once, and the file of each run."""
    lines = []
    for kind, wanted in value.measured.items():
        known: dict = {}
        stored = found.measured[kind]
        for path, content in (stored[run_id] for run_id in value.runs if run_id in stored):
            for each in content.measurements:
                if wanted.items() <= (each.result | each.settings).items():
                    settings = ", ".join(f"{name} {x}" for name, x in sorted(each.settings.items()))
                    known.setdefault(settings, []).append((path, each))
        for settings, several in known.items():
            lines.append(f"  measured with {settings}")
            lines += [
                f"    {path}, {each.seconds:.1f} s, finished {each.finished},"
                f" {code_text(each.code)}, {device_text(each.hardware)}"
                for path, each in several
            ]
        if known:
            lines += _notebooks(found, kind, value.runs)
    return lines


def _notebooks(found, kind, run_ids):
    """The executed notebooks that measured a kind."""
    name, lines = f"{NOTEBOOK[kind]}.ipynb", []
    for folder in dict.fromkeys(found.folders[run_id].parent for run_id in run_ids):
        if (folder / name).exists():
            lines.append(f"  executed notebook: {folder / name}")
        else:
            text = f"measured by notebook {NOTEBOOK[kind]} with save=True"
            lines.append(f"  {text} (no executed copy in {folder})")
    return lines


def _stands_in(tables, run_id):
    """The values that a run stands behind, a line for each row, or one for a table of many."""
    lines = []
    for kind, several in tables.items():
        named = []
        for row in rows(kind, several):
            values = [place for place in row if isinstance(place.entry, Value)]
            heads = [place.head for place in values if run_id in place.entry.runs]
            named += [f"{row[0].of_row}: {', '.join(heads)}"] if heads else []
        if len(named) > SHOWN:
            tables_of = dict.fromkeys(line.split(" | ")[0] for line in named)
            named = [f"{', '.join(tables_of)}: {len(named)} rows"]
        lines += [f"    {line}" for line in named]
    return "\n".join(["  stands behind:", *lines]) if lines else "  stands behind no value"
