"""Exercises: the check of an answer, the student's copy of a notebook, and its verdicts.

An exercise is a notebook with its solution. Cells tagged ``solution`` hold the answers, cells
tagged ``check`` judge them by :func:`check`. The student's copy has blanks instead of answers.
"""

import ast
import contextlib
import io
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import nbformat

from rmlib import UserError
from rmlib.params import nearest
from rmlib.paths import project_root
from rmlib.study.batch.notebooks import KERNEL
from rmlib.study.runs.records import DAMAGE, atomic_write

PASSED, BLANK, NOT_YET = "passed", "your turn", "not yet"
BLANK_TEXT = "*Write your reason here.*"


class YourTurn(Exception):
    """An answer is still blank."""


def check(task: str, judge: Callable, *answers) -> None:
    """Print one line about a task: passed, the hint, or that it is still the student's turn.

    Args:
        judge: takes the answers; an assertion that fails is the hint, what it returns the reason.
        answers: values and functions of the student; one that is ``...`` or gives it is blank.
    """
    try:
        line = f"{PASSED}. {judge(*map(_answered, answers)) or ''}"
    except YourTurn:
        line = f"{BLANK}: replace the ... above, and run both cells"
    except AssertionError as hint:
        line = f"{NOT_YET}. {hint or 'an assertion of yours failed'}"
    except Exception as error:  # whatever the student wrote
        line = f"{NOT_YET}. It stops with {type(error).__name__}: {error}"
    print(f"{task}: {' '.join(line.split())}")


def _answered(answer):
    """An answer that is no blank; a function is asked when it is called."""
    if answer is ...:
        raise YourTurn
    return (lambda *given: _answered(answer(*given))) if callable(answer) else answer


def blank(source: str) -> str:
    """The code of an answer without it: what is assigned and what functions return is ``...``."""
    lines, kept = source.splitlines(), []
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            kept += ["", ""] if kept else []
            kept += [*lines[node.lineno - 1 : body[0].lineno - 1], "    return ...  # your turn"]
        elif isinstance(node, ast.Assign):
            kept.append(f"{', '.join(map(ast.unparse, node.targets))} = ...  # your turn")
    return "\n".join(kept)


def exercises() -> dict[str, Path]:
    """The notebooks with solutions, by name."""
    folder = project_root() / "notebooks" / "exercises"
    return {path.stem: path for path in sorted(folder.glob("*.ipynb"))}


def students_copy(path: Path) -> nbformat.NotebookNode:
    """A notebook without its solutions and outputs."""
    notebook = nbformat.read(path, as_version=4)
    notebook.metadata = nbformat.from_dict({"kernelspec": KERNEL, "rmlib": {"exercise": path.stem}})
    for cell in notebook.cells:
        code = cell.cell_type == "code"
        if "solution" in cell.metadata.get("tags", []):
            cell.source = blank(cell.source) if code else BLANK_TEXT
        if not code:  # the lessons do not lie beside the copy
            cell.source = re.sub(r"\[(\w+)\]\(\.\./\S*\)", r"\1", cell.source)
        if code:
            cell.outputs, cell.execution_count = [], None
        if "check" in cell.metadata.get("tags", []):  # it tells much of the answer
            cell.metadata["jupyter"] = {"source_hidden": True}
    return notebook


def build(folder: Path) -> Iterator[str]:
    """Write the students' copies into a folder, and say so; what lies there stays as it is."""
    for path in exercises().values():
        target = folder / path.name
        if target.exists():
            yield f"{target}: kept, it may hold answers"
        else:
            atomic_write(target, (nbformat.writes(students_copy(path)) + "\n").encode())
            yield f"{target}: written"


def verdicts(path: Path) -> Iterator[str]:
    """Run the cells of a student's notebook here, with the project's checks; yields their lines."""
    try:
        notebook = nbformat.read(path, as_version=4)
    except (*DAMAGE, nbformat.ValidationError) as error:
        raise UserError(f"{path} is no notebook ({str(error).splitlines()[0]})") from None
    name = notebook.metadata.get("rmlib", {}).get("exercise", path.stem)
    if name not in exercises():
        raise UserError(f"{path}: unknown exercise {name!r}: {nearest(name, exercises())}")
    source = nbformat.read(exercises()[name], as_version=4)
    checks = {c.id: c.source for c in source.cells if "check" in c.metadata.get("tags", [])}
    os.environ["MPLBACKEND"] = "agg"  # no window opens
    names = {"__name__": "__main__", "display": print}
    for number, cell in enumerate((c for c in notebook.cells if c.cell_type == "code"), 1):
        # lines for IPython alone are left out
        code = re.sub(r"^[ \t]*[%!].*", "", checks.get(cell.id, cell.source), flags=re.MULTILINE)
        said = io.StringIO()
        try:
            with contextlib.redirect_stdout(said):
                exec(compile(code, f"{path.name}, code cell {number}", "exec"), names)
        except (Exception, SystemExit) as error:  # whatever the student wrote
            yield f"code cell {number}: {NOT_YET}. It stops with {type(error).__name__}: {error}"
        if checks.pop(cell.id, None):
            yield from said.getvalue().splitlines()
    yield from [f"a task: {NOT_YET}. Its check is missing here: build it anew"] * len(checks)
