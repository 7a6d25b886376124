"""The YAML file of a batch, and what ``--set`` says over it: read and bounded, not yet checked."""

import itertools
import math
from collections import Counter
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rmlib import UserError, brief
from rmlib.params import TrainParams, nearest, without_path
from rmlib.paths import project_root

# of a file: bytes; values, each as often as an alias repeats it; levels
MOST_BYTES, MOST_VALUES, MOST_LEVELS = 100_000, 50_000, 20


class _Loader(yaml.SafeLoader):
    """YAML of bounded size, in which a key given twice is a mistake: the last one does not win."""

    level = 0

    def compose_node(self, parent, index):
        self.level += 1
        if self.level > MOST_LEVELS:
            raise yaml.YAMLError(f"it is nested deeper than {MOST_LEVELS} levels")
        node = super().compose_node(parent, index)
        self.level -= 1
        return node

    def get_single_node(self):
        node = super().get_single_node()
        if node and _values(node, {}) > MOST_VALUES:
            raise yaml.YAMLError(f"its aliases repeat more than {MOST_VALUES} values")
        return node

    def construct_object(self, node, deep=False):
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, AttributeError, ArithmeticError):  # by its type
            kind, line = node.tag.rpartition(":")[2], node.start_mark.line + 1
            raise yaml.YAMLError(f"{brief(node.value)} is no {kind} (line {line})") from None

    def construct_mapping(self, node, deep=False):
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
        keys = [str(key.value) for key, _ in pairs if key.tag != "tag:yaml.org,2002:merge"]
        twice = sorted(key for key, count in Counter(keys).items() if count > 1)
        if twice:
            line = node.start_mark.line + 1
            raise yaml.YAMLError(f"{', '.join(twice)} is given twice in one block (line {line})")
        return super().construct_mapping(node, deep)


def _values(node, known):
    """How many values a node of YAML stands for; one that contains itself has no end."""
    if node not in known:
        known[node] = math.inf
        parts = node.value if isinstance(node, yaml.CollectionNode) else []
        if isinstance(node, yaml.MappingNode):
            parts = itertools.chain.from_iterable(parts)
        known[node] = 1 + sum(_values(part, known) for part in parts)
    return known[node]


class BatchFile(BaseModel):
    """The YAML file of a batch."""

    model_config = ConfigDict(extra="forbid")

    # parameters of all runs
    common: dict[str, Any] = {}
    # blocks; in each, lists span a grid of runs
    grid: list[dict[str, Any]] = Field(min_length=1)
    # plain training of twice the epochs beside every run with the clean loss
    equal_compute: bool = False
    # the difference named before the runs: what selects method A, and method B
    primary: list[dict[str, Any]] = Field([], min_length=2, max_length=2)
    # and in what they differ
    primary_metric: Literal["accuracy", "nll", "ece"] = "accuracy"
    # the other notebooks of the study, with their parameters
    notebooks: dict[str, dict[str, Any] | None] = {}


def read_file(path: Path, given: dict[str, Any]) -> BatchFile:
    """The file with its entries checked, not yet its parameters; ``given`` holds for all runs.

    Raises:
        UserError: it is missing, no YAML of a batch, or spans no run.
    """
    if not path.is_file():
        known = sorted(each.stem for each in (project_root() / "notebooks/batches").glob("*.yaml"))
        remedy = f"notebooks/batches has {', '.join(known)}"
        if not known:
            remedy = "run it in the folder of the project, a checkout or its source archive"
        raise UserError(f"there is no batch file {path}; {remedy}")
    try:
        if (size := path.stat().st_size) > MOST_BYTES:
            raise yaml.YAMLError(f"{size} bytes, and a batch has at most {MOST_BYTES}")
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
        if not isinstance(content, dict | None):
            raise yaml.YAMLError(f"{brief(content)} where common, grid and notebooks should stand")
        file = BatchFile.model_validate(content or {})
    except ValidationError as error:
        # a misspelt name explains a missing one
        misspelt = "extra_forbidden", "invalid_key"
        item = min(error.errors(), key=lambda item: item["type"] not in misspelt)
        places = [str(place) for place in item["loc"] if place != "[key]"]
        name, remedy = brief(".".join(places)).strip("'"), item["msg"]
        if item["type"] == "extra_forbidden":
            remedy = nearest(name, BatchFile.model_fields)
        elif item["type"] == "invalid_key" or "[key]" in item["loc"]:
            remedy = "a name is expected here, and names are text"
        raise UserError(f"{path}: {name}: {remedy}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{path} is not YAML of a batch: {reason}") from None
    file.grid = [block | given for block in file.grid]
    blocks = (file.common, *file.grid)
    if any(value == [] for block in blocks for value in block.values()):
        raise UserError(f"{path}: an empty list spans no run: give it values, or leave it out")
    if any("out" in block for block in blocks):
        raise UserError(f"{path}: out is no parameter of a grid: name the folder by --out")
    return file


def settings(texts: list[str]) -> dict[str, Any]:
    """The parameters in the texts NAME=VALUE of ``--set``; a VALUE in [] is a list of YAML.

    Raises:
        UserError: a text of another form, an unknown or repeated name.
    """
    given: dict[str, Any] = {}
    for text in texts:
        name, equals, value = (part.strip() for part in text.partition("="))
        name = name.replace("-", "_")
        if not equals:
            raise UserError(f"--set {text}: expected NAME=VALUE, such as epochs=20")
        if name not in TrainParams.model_fields:
            remedy = nearest(name, TrainParams.model_fields)
            raise UserError(f"--set {text}: unknown parameter {brief(name)}: {remedy}")
        if name in given:
            raise UserError(f"--set {text}: {name} is given twice: a list is {name}=[A, B]")
        try:
            given[name] = yaml.load(value, _Loader) if value.startswith("[") else value
        except yaml.YAMLError:
            raise UserError(f"--set {text}: no list of YAML, such as {name}=[A, B]") from None
    return given


def words(given: dict[str, Any]) -> list[str]:
    """The same for a command line on any machine: without paths."""
    found = []
    for name, value in given.items():
        if name == "dataset":
            several = isinstance(value, list)
            value = [without_path(each) for each in value] if several else without_path(value)
        found += ["--set", f"{name}={value}"] if name != "root" else []
    return found
