import ast
import importlib
import json
import re
import sys
import tomllib
from importlib import metadata

import pytest
import yaml
from packaging.requirements import Requirement

import rmlib
from rmlib.extras import EXTRAS as EXTRAS_NAMED
from rmlib.paths import project_root

ROOT = project_root()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCK = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())
EXTRAS = PROJECT["optional-dependencies"]
# what runs and measures; `dev` is the tools of make check
RUNNING = ("datasets", "robustness", "maps", "study", "ray", "loops", "test")


def requirements(*extras):
    texts = [*PROJECT["dependencies"], *(text for extra in extras for text in EXTRAS[extra])]
    return [Requirement(text) for text in texts if not text.startswith("rmlib[")]


def normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_lock_pins_every_requirement_and_names_no_host():
    text = (ROOT / "constraints.txt").read_text()
    assert re.fullmatch(r"(?:[A-Za-z0-9._-]+==[A-Za-z0-9.!+]+\n)+", text), (
        "name==version lines alone"
    )
    pinned = {normal(name): version for name, version in LOCK.items()}
    for requirement in requirements(*EXTRAS):
        assert requirement.specifier.contains(pinned[normal(requirement.name)]), requirement


def test_the_environment_in_use_is_the_locked_one():
    pinned = {normal(name): version for name, version in LOCK.items()}
    for requirement in requirements(*RUNNING):
        version = metadata.version(requirement.name).split("+")[0]
        assert version == pinned[normal(requirement.name)].split("+")[0], requirement.name


def test_conda_users_get_the_same():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    python = next(
        entry
        for entry in environment["dependencies"]
        if isinstance(entry, str) and entry.startswith("python=")
    )
    pip = next(entry for entry in environment["dependencies"] if isinstance(entry, dict))["pip"]
    assert python == "python=3.11" and pip == [
        "--constraint constraints.txt",
        "--editable .[test,dev]",
    ]


def test_torchattacks_is_the_version_that_lives_beside_jupyterlab():
    """3.5.1 pins requests~=2.25.1; 3.3.0 does not, and its Linf attacks return the same images (see
    pyproject.toml).
    """
    assert metadata.version("torchattacks") == "3.3.0"
    assert Requirement("requests>=2.31").specifier.contains(metadata.version("requests"))


MODULES = {"grad-cam": "pytorch_grad_cam", "pyyaml": "yaml", "pillow": "PIL", "myst-nb": "myst_nb"}
# without them all but the notebooks in a browser works
BROWSER = {"jupyterlab", "ipywidgets"}
# they come with sphinx, papermill and ipykernel
BROUGHT = {"IPython", "docutils", "nbclient", "traitlets", "zmq"}


def modules(texts):
    names = [Requirement(text).name for text in texts if not text.startswith("rmlib[")]
    return {MODULES.get(name, name) for name in names}


@pytest.mark.parametrize("extra", EXTRAS_NAMED)
def test_the_message_about_an_extra_names_what_it_installs(extra):
    assert set(EXTRAS_NAMED[extra]) == modules(EXTRAS[extra]) - BROWSER


def imported(path):
    """The packages that a file imports, at its top or within a function."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module.split(".")[0]


@pytest.mark.parametrize(
    "folder, extras",
    [
        (".", ()),
        ("datasets", ("datasets",)),
        ("robustness", ("robustness",)),
        ("maps", ("maps",)),
        ("study", ("datasets", "robustness", "maps", "study", "ray")),
    ],
)
def test_what_is_imported_is_what_is_installed(folder, extras):
    installed = modules([*PROJECT["dependencies"], *(r for e in extras for r in EXTRAS[e])])
    files = (ROOT / "rmlib" / folder).glob("*.py" if folder == "." else "**/*.py")
    found = {name for path in files for name in imported(path)}
    assert found - set(sys.stdlib_module_names) - {"rmlib"} - BROUGHT <= installed


def names_from(notebook):
    """(module, name) of what a notebook takes from this package, also within a branch."""
    cells = [cell for cell in json.loads(notebook.read_text())["cells"]]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "rmlib":
            yield from ((node.module, alias.name) for alias in node.names)


@pytest.mark.parametrize(
    "name", ["01_method", "02_training", "03_robustness", "04_cam", "05_results"]
)
def test_what_a_notebook_imports_is_there(name):
    found = [*names_from(ROOT / f"notebooks/{name}.ipynb")]
    assert found
    for module, each in found:
        known = hasattr(importlib.import_module(module), each)
        assert known or importlib.util.find_spec(f"{module}.{each}"), (module, each)


def test_the_version_stands_in_one_place():
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert PROJECT["dynamic"] == ["version"] and "version" not in PROJECT
    assert tool["dynamic"]["version"] == {"attr": "rmlib.__version__"}
    # where one cites from, which cannot ask
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == rmlib.__version__


def test_types_are_shipped():
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    data = tool["package-data"]["rmlib"]
    assert "py.typed" in data and (ROOT / "rmlib/py.typed").exists()
    installed = {path for pattern in data for path in (ROOT / "rmlib").glob(pattern)}
    others = {
        path
        for path in (ROOT / "rmlib").rglob("*.*")
        if path.suffix in (".css", ".html", ".js", ".typed")
    }
    assert installed == others, "what is no Python file is installed only if it is named"
