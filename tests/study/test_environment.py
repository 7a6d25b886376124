import re
import tomllib
from importlib import metadata

import yaml
from packaging.requirements import Requirement

from rmlib.paths import project_root

ROOT = project_root()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCK = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())
EXTRAS = PROJECT["optional-dependencies"]
REQUIRED = [
    Requirement(r)
    for r in [*PROJECT["dependencies"], *EXTRAS["study"], *EXTRAS["ray"], *EXTRAS["test"]]
    if not r.startswith("rmlib[")
]


def normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_lock_pins_every_requirement_and_names_no_host():
    text = (ROOT / "constraints.txt").read_text()
    assert re.fullmatch(r"(?:[A-Za-z0-9._-]+==[A-Za-z0-9.!+]+\n)+", text), (
        "name==version lines alone"
    )
    pinned = {normal(name): version for name, version in LOCK.items()}
    for requirement in REQUIRED:
        assert requirement.specifier.contains(pinned[normal(requirement.name)]), requirement


def test_the_environment_in_use_is_the_locked_one():
    for requirement in REQUIRED:
        version = metadata.version(requirement.name).split("+")[0]
        assert (
            version
            == {normal(n): v for n, v in LOCK.items()}[normal(requirement.name)].split("+")[0]
        ), requirement.name


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
        "--editable .[study,test]",
    ]


def test_torchattacks_is_the_version_that_lives_beside_jupyterlab():
    """3.5.1 pins requests~=2.25.1; 3.3.0 does not, and its Linf attacks return the same images (see
    pyproject.toml).
    """
    assert metadata.version("torchattacks") == "3.3.0"
    assert Requirement("requests>=2.31").specifier.contains(metadata.version("requests"))
