"""Exercises: the students' copies of notebooks, and the verdicts of their checks.

An exercise is a notebook with its solution. Cells tagged ``solution`` hold the answers, cells
tagged ``check`` judge them by :func:`rmlib.study.lesson.check`. The copy has blanks for answers,
and no cell tagged ``source``. Beside it lie the lessons without their outputs, which tell what is
to be predicted.
"""

import ast
import contextlib
import io
import os
import re
import signal
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import nbformat

from rmlib import UserError
from rmlib.params import nearest
from rmlib.paths import project_root
from rmlib.study.batch.notebooks import KERNEL
from rmlib.study.guarded import handling
from rmlib.study.lesson import NOT_YET
from rmlib.study.runs.records import DAMAGE, atomic_write

BLANK_TEXT = "*Write your reason here.*"
LESSONS = "lessons"  # folder of the lessons, beside the students' copies
TITLE = re.compile(r'lesson\.check\(\s*"(.*?)",')
# seconds that a cell may take when it is checked
LIMIT = 60


def blank(source: str) -> str:
    """The code of an answer without it: what is assigned and what functions return is ``...``."""
    lines, kept = source.splitlines(), list[str]()
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            kept += ["", ""] if kept else []
            kept += [*lines[node.lineno - 1 : body[0].lineno - 1], "    return ...  # your turn"]
        elif isinstance(node, ast.Assign):
            kept.append(f"{', '.join(map(ast.unparse, node.targets))} = ...  # your turn")
    return "\n".join(kept)


def solutions() -> dict[str, Path]:
    """The notebooks with solutions, by name."""
    folder = project_root() / "notebooks" / "exercises"
    found = {path.stem: path for path in sorted(folder.glob("*.ipynb"))}
    if not found:
        raise UserError(f"there are no exercises in {folder}: call rmlib in the project's folder")
    return found


def students_copy(path: Path) -> nbformat.NotebookNode:
    """A notebook without its solutions and outputs."""
    notebook = _without_outputs(path, r"\.\./(\w+\.ipynb)", rf"{LESSONS}/\1")
    notebook.metadata["rmlib"] = nbformat.from_dict({"exercise": path.stem})
    notebook.cells = [c for c in notebook.cells if "source" not in c.metadata.get("tags", [])]
    for cell in notebook.cells:
        if "solution" in cell.metadata.get("tags", []):
            cell.source = blank(cell.source) if cell.cell_type == "code" else BLANK_TEXT
        if "check" in cell.metadata.get("tags", []):  # it tells much of the answer
            cell.metadata["jupyter"] = {"source_hidden": True}
    return notebook


def _without_outputs(path, link, new_link):
    """A notebook without outputs, with links that lead from the copy to other copies."""
    notebook = nbformat.read(path, as_version=4)
    notebook.metadata = nbformat.from_dict({"kernelspec": KERNEL})
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
        else:
            cell.source = re.sub(rf"(?<=\]\(){link}(?=\))", new_link, cell.source)
    return notebook


def build(folder: Path) -> Iterator[str]:
    """Write the students' copies into a folder, the lessons into one in it, and say so; what lies
    there stays as it is.
    """
    made = {folder / path.name: students_copy(path) for path in solutions().values()}
    notebooks = project_root() / "notebooks"
    for path in sorted(notebooks.glob("0*.ipynb")):
        made[folder / LESSONS / path.name] = _without_outputs(
            path, r"exercises/(\w+\.ipynb)", r"../\1"
        )
    texts = {target: nbformat.writes(notebook) + "\n" for target, notebook in made.items()}
    page = "playground.html"  # lesson 01 leads to it
    texts[folder / LESSONS / page] = (notebooks / page).read_text(encoding="utf-8")
    for target, text in texts.items():
        if target.exists():
            yield f"{target}: kept as it is"
        else:
            atomic_write(target, text.encode())
            yield f"{target}: written"


def verdicts(path: Path) -> Iterator[str]:
    """Run the cells of a student's notebook here, with the project's checks; yields their lines."""
    try:
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
        name = notebook.metadata.get("rmlib", {}).get("exercise", path.stem)
    except (*DAMAGE, OSError, nbformat.ValidationError) as error:
        raise UserError(f"{path} is no notebook ({str(error).splitlines()[0]})") from None
    if name not in solutions():
        raise UserError(f"{path}: unknown exercise {name!r}: {nearest(name, solutions())}")
    source = nbformat.read(solutions()[name], as_version=4)
    checks = {c.id: c.source for c in source.cells if "check" in c.metadata.get("tags", [])}
    # the check of an answer stands below it
    check_of = {above.id: below.id for above, below in pairwise(source.cells) if below.id in checks}
    os.environ["MPLBACKEND"] = "agg"  # no window opens
    names = {"__name__": "__main__", "display": print}
    stopped = set()
    for number, cell in enumerate((c for c in notebook.cells if c.cell_type == "code"), 1):
        own = cell.get("id")
        if own in stopped:
            continue
        place = f"{path.name}, code cell {number}"
        said, failure = _run(checks.get(own, cell.source), place, names)
        if own in checks:
            yield from said.splitlines()
        if failure:
            check = check_of.get(own, own)
            stopped.add(check)
            task = _title(checks[check]) if check in checks else f"code cell {number}"
            yield f"{task}: {NOT_YET}. {failure}"
            checks.pop(check, None)
        checks.pop(own, None)
    for check in checks.values():
        yield f"{_title(check)}: {NOT_YET}. Its check is missing here: build it anew"


def _title(check):
    """The task that a check judges."""
    return TITLE.findall(check)[0]


def _run(source, place, names):
    """Run a cell's code; what it printed, and how it failed."""

    def stop(*_):
        raise TimeoutError(f"no end within {LIMIT} s")

    # lines for IPython alone are left out
    code = re.sub(r"^[%!].*", "", source, flags=re.MULTILINE)
    said = io.StringIO()
    with handling((signal.SIGALRM,), stop):
        # again and again, as an answer may catch the first one
        signal.setitimer(signal.ITIMER_REAL, LIMIT, LIMIT)
        try:
            with contextlib.redirect_stdout(said):
                exec(compile(code, place, "exec"), names)
        except (Exception, SystemExit) as error:  # whatever the student wrote
            return said.getvalue(), f"It stops with {type(error).__name__}: {error}"
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    return said.getvalue(), None
