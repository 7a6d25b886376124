"""Exercises: the student's copy of a notebook, and the verdicts of its checks.

An exercise is a notebook with its solution. Cells tagged ``solution`` hold the answers, cells
tagged ``check`` judge them by :func:`rmlib.study.lesson.check`. The copy has blanks for answers.
"""

import ast
import contextlib
import io
import os
import re
from collections.abc import Iterator
from pathlib import Path

import nbformat

from rmlib import UserError
from rmlib.params import nearest
from rmlib.paths import project_root
from rmlib.study.batch.notebooks import KERNEL
from rmlib.study.lesson import NOT_YET
from rmlib.study.runs.records import DAMAGE, atomic_write

BLANK_TEXT = "*Write your reason here.*"


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
    for path in solutions().values():
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
    if name not in solutions():
        raise UserError(f"{path}: unknown exercise {name!r}: {nearest(name, solutions())}")
    source = nbformat.read(solutions()[name], as_version=4)
    checks = {c.id: c.source for c in source.cells if "check" in c.metadata.get("tags", [])}
    os.environ["MPLBACKEND"] = "agg"  # no window opens
    names = {"__name__": "__main__", "display": print}
    for number, cell in enumerate((c for c in notebook.cells if c.cell_type == "code"), 1):
        # lines for IPython alone are left out
        code = re.sub(r"^[%!].*", "", checks.get(cell.get("id"), cell.source), flags=re.MULTILINE)
        said = io.StringIO()
        try:
            with contextlib.redirect_stdout(said):
                exec(compile(code, f"{path.name}, code cell {number}", "exec"), names)
        except (Exception, SystemExit) as error:  # whatever the student wrote
            yield f"code cell {number}: {NOT_YET}. It stops with {type(error).__name__}: {error}"
        if checks.pop(cell.get("id"), None):
            yield from said.getvalue().splitlines()
    yield from [f"a task: {NOT_YET}. Its check is missing here: build it anew"] * len(checks)
