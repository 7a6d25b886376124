"""The parameters of every notebook, checked in one line before anything runs."""

import ast
from collections.abc import Callable
from functools import partial
from typing import Any, get_origin

from pydantic import Field, ValidationError

from rmlib import UserError, brief
from rmlib.maps.params import CamParams
from rmlib.params import Alpha, DataParams, Folder, Int, Params, TrainParams, choices, nearest
from rmlib.robustness.params import RobustnessParams


class MethodParams(DataParams):
    """Parameters of 01_method."""

    k: Int = Field(2, ge=1, description="tiles per side of the grid")
    alpha: Alpha = Field(1.0, description="of Beta(alpha, alpha), the distribution of lam")
    images: Int = Field(6, ge=4, le=128, description="images in the figures")
    draws: Int = Field(2000, ge=100, description="plans drawn for the statistics of soft targets")
    seed: Int = Field(0, ge=0, description="of every random choice")


class ResultsParams(Params):
    """Parameters of 05_results."""

    runs: Folder | None = Field(
        None, description="folder of the records (default: results/cifar10-small)"
    )


# the tables of `rmlib bench`
BENCHED = ("mixers", "loader", "training", "attacks", "maps")
# the notebook that a grid runs for each of its runs
CELL = "02_training"

NOTEBOOKS: dict[str, type[Params]] = {
    "01_method": MethodParams,
    "02_training": TrainParams,
    "03_robustness": RobustnessParams,
    "04_cam": CamParams,
    "05_results": ResultsParams,
}


def takes_list(name: str) -> bool:
    """Whether a list is one value of this parameter of a run, and no range of values in a grid."""
    field = TrainParams.model_fields.get(name)
    return field is not None and get_origin(field.annotation) is list


def parse(notebook: str, values: dict) -> Any:
    """The frozen record of a notebook's parameters: checked, defaults filled in, text a number.

    Raises:
        UserError: one line that names every unknown name, mistyped value and its remedy.
    """
    if notebook not in NOTEBOOKS:
        raise UserError(f"unknown notebook {notebook!r}: {nearest(notebook, NOTEBOOKS)}")
    model = NOTEBOOKS[notebook]
    try:
        return model(**values)
    except ValidationError as error:
        wrong = listed(error.errors(), partial(_explain, model))
        raise UserError(f"{notebook}: {wrong}") from None


def listed(problems: list, explain: Callable[[Any], str] = str, most: int = 10) -> str:
    """Problems in one line, and not more than can be read."""
    more = [f"and {len(problems) - most} more"] if len(problems) > most else []
    return "; ".join([*dict.fromkeys(map(explain, problems[:most])), *more])


def _explain(model, item):
    name, value = str(item["loc"][0]) if item["loc"] else "", item["input"]
    if item["type"] == "extra_forbidden":
        return f"unknown parameter {brief(name)}: {nearest(name, model.model_fields)}"
    words = choices(model.model_fields[name]) if name else ()
    if words:
        remedy = nearest(brief(value).strip("'"), words)
        return f"{name}={brief(value)}: {remedy}"
    message = item["msg"].removeprefix("Value error, ").split(", unable to parse")[0]
    return f"{name}={brief(value)}: {message[0].lower()}{message[1:]}" if name else message


def check(notebook: str, namespace: dict) -> Any:
    """Check the parameters of a running notebook, with ``globals()`` in the cell after them.

    Every name set in the parameter cells just run must be a parameter. So a misspelt name stops the
    notebook here, also one injected by papermill, which only warns. The cell can be run again.
    """
    known = NOTEBOOKS[notebook].model_fields if notebook in NOTEBOOKS else {}
    names = known.keys() | _names_just_set(namespace["In"])
    return parse(notebook, {name: value for name, value in namespace.items() if name in names})


def _names_just_set(history: list[str]) -> set[str]:
    """Names assigned right before the running cell, in cells that assign literals alone."""
    names: set[str] = set()
    for source in reversed(history[:-1]):
        found = assigned(source)
        if not found:
            break
        names |= found
    return names


def assigned(source: str) -> set[str] | None:
    """The names that a cell sets; None if it holds more than assignments of literals."""
    try:
        nodes: Any = ast.parse(source).body
        for node in nodes:
            ast.literal_eval(node.value)
        return {target.id for node in nodes for target in node.targets}
    except (SyntaxError, ValueError, AttributeError):
        return None
