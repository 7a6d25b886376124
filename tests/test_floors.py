"""The floors: core < datasets < robustness, maps < study; and nobody imports in a circle."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import rmlib

ROOT = Path(rmlib.__file__).parent
FILES = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*.py"))
# floor -> the floors that it may import besides its own
ALLOWED = {
    "core": set(),
    "datasets": {"core"},
    "robustness": {"core", "datasets"},
    "maps": {"core", "datasets"},
    "study": {"core", "datasets", "robustness", "maps"},
}
# the loader of a named dataset, which imports them when it is called
DOOR = ("data.py", "datasets/sources.py")
LEAVES = {
    # both are copied into other packages, without the rest
    "inputs.py": set(),
    "mixers.py": {"inputs.py"},
    "study/guarded.py": {"__init__.py"},
    "extras.py": {"__init__.py"},
    "paths.py": {"__init__.py"},
    "study/names.py": {"params.py"},
}


def file_of(module):
    """The file of a module of this package; None for any other name."""
    place = "/".join(module.split(".")[1:])
    found = [each for each in (f"{place}.py", f"{place}/__init__.py".lstrip("/")) if each in FILES]
    return found[0] if module.split(".")[0] == "rmlib" and found else None


def imports(file, *, on_load=False):
    """The files of this package that a file imports; ``on_load``: not those inside functions."""
    tree = ast.parse((ROOT / file).read_text())
    nodes = tree.body if on_load else ast.walk(tree)
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            assert not node.level or file == "mixers.py", "only the mixers are copied elsewhere"
            base = node.module if not node.level else f"rmlib.{node.module or ''}".strip(".")
            parts = {file_of(f"{base}.{alias.name}") for alias in node.names}
            names |= {base} if None in parts else set()
            names |= {f"{base}.{alias.name}" for alias in node.names}
    return {file_of(name) for name in names} - {None}


def floor(file):
    """The floor of a file: the folder it lies in, or the core; the command is the study's."""
    if file == "__main__.py":
        return "study"
    return file.split("/")[0] if "/" in file else "core"


@pytest.mark.parametrize("file", FILES)
def test_a_file_imports_its_own_floor_and_those_below(file):
    own = floor(file)
    found = {floor(other) for other in imports(file) if (file, other) != DOOR}
    assert found <= ALLOWED[own] | {own}, f"{own} may import {sorted(ALLOWED[own])} only"


@pytest.mark.parametrize("file", LEAVES)
def test_what_everybody_imports_imports_nearly_nothing(file):
    assert imports(file) <= LEAVES[file]


def test_nothing_is_imported_in_a_circle():
    TopologicalSorter({file: imports(file, on_load=True) - {file} for file in FILES}).prepare()


def test_a_wrong_import_would_be_seen():
    assert "evaluate.py" in imports("robustness/masking.py"), "inside a function"
    assert "evaluate.py" not in imports("robustness/masking.py", on_load=True)
    assert "datasets/sources.py" in imports("data.py") and floor("maps/cam.py") == "maps"
