"""The printed cells of a report's tables, and the ways to name one: by words of its row and a
column, or by the number that stands in it.
"""

import re
from dataclasses import dataclass

from rmlib import UserError
from rmlib.params import nearest
from rmlib.study.names import METHOD
from rmlib.study.report import origin, report

KEYS = (
    *METHOD,
    "dataset",
    "clean loss",
    "map",
    "measure",
    "shuffled",
    "method",
    "eps",
    "difference",
    "two networks",
    "claim",
    "in",
    "attack",
    "experiment",
)  # columns that name a row
COUNTS = (
    "n",
    "images",
    "its images",
    "runs",
    "paper",
)  # columns in which nobody looks for a number


@dataclass(frozen=True, eq=False)
class Cell:
    """One printed cell: which table of its kind, its row and column, and the text."""

    kind: str
    number: int
    caption: str
    table: object
    row: int
    name: str
    head: str
    text: str
    keys: str  # what names the row

    @property
    def where(self) -> str:
        of = (
            ""
            if self.kind in ("claims", "eps", "costs")
            else f", {self.caption.split(';')[0].split(' (the paper')[0]}"
        )
        return f"table {self.kind}{of} | {self.keys} | {self.head}"

    @property
    def sides(self) -> dict:
        """What the table remembers of this cell: {side: {run_id: value}}, {} if nothing."""
        behind = self.table.attrs.get(origin.BEHIND, [])
        return behind[self.row].get(self.name, {}) if behind else {}


def is_value(kind: str, name: str) -> bool:
    """Whether a column called as one that names a row is none: the difference of two precisions."""
    return kind == "precision" and name == "difference"


def cells_of(kind: str, several: list):
    """Every printed cell of the tables of a kind, ``several`` as in
    :func:`rmlib.study.report.report.tables`.
    """
    for number, (caption, table) in enumerate(several, 1):
        names, heads, _, lines = report.cells(table)
        for row, texts in enumerate(lines):
            keys = ", ".join(
                (
                    text
                    if name
                    in (
                        "mixer",
                        "method",
                        "map",
                        "measure",
                        "difference",
                        "claim",
                        "dataset",
                        "experiment",
                        "two networks",
                    )
                    else f"{name} {text}"
                )
                for name, text in zip(names, texts)
                if name in KEYS and not is_value(kind, name)
            )
            yield from (
                Cell(kind, number, caption, table, row, name, head, text, keys)
                for name, head, text in zip(names, heads, texts)
            )


def select(kind: str, several: list, words: list[str], column: str | None) -> list[Cell]:
    """The cells of the rows that fit all words, of one column or of every one that is a mean or has
    sides.

    Raises:
        UserError: no row or column is called so; names the nearest.
    """
    cells, columns = list(cells_of(kind, several)), [column] if column else []

    def fits(cell, word, whole):
        texts = [cell.text, f"{cell.name}={cell.text}", f"{cell.head}={cell.text}"]
        return (
            word in map(str.lower, texts)
            if whole
            else word in cell.text.lower() or word in cell.caption.lower()
        )

    heads = {text.lower() for cell in cells for text in (cell.head, cell.name)}
    for word in map(str.lower, words):
        hits = {(cell.number, cell.row) for cell in cells if fits(cell, word, True)}
        if not hits and word in heads:
            columns.append(word)
            continue
        hits = hits or {(cell.number, cell.row) for cell in cells if fits(cell, word, False)}
        if not hits:
            valid = dict.fromkeys(cell.text for cell in cells if cell.name in KEYS)
            raise UserError(
                f"table {kind}: no row has {word!r}:"
                f" {nearest(word, [*valid, *dict.fromkeys(cell.head for cell in cells)])}"
            )
        cells = [cell for cell in cells if (cell.number, cell.row) in hits]
    for name in columns:
        name = name.lower()
        own = [cell for cell in cells if name in (cell.head.lower(), cell.name.lower())] or [
            cell for cell in cells if name in cell.head.lower()
        ]
        if not own:
            raise UserError(
                f"table {kind} has no column {name!r}:"
                f" {nearest(name, list(dict.fromkeys(cell.head for cell in cells)))}"
            )
        cells = own
    if columns:
        return cells
    made = {(cell.number, cell.row) for cell in cells if cell.sides}
    first = {}  # of a row that remembers nothing one cell stands for all
    for cell in cells:
        if cell.name not in KEYS or is_value(kind, cell.name):
            first.setdefault((cell.number, cell.row), cell)
    return [cell for cell in cells if cell.sides] + [
        cell for row, cell in first.items() if row not in made
    ]


def showing(number: str, cells: list[Cell], folder) -> list[Cell]:
    """The cells in which a number stands as it is printed.

    Raises:
        UserError: none; names the nearest number.
    """
    wanted = number.replace("%", "").replace("−", "-").strip().lstrip("+")
    cells = [
        cell for cell in cells if cell.name not in KEYS + COUNTS or is_value(cell.kind, cell.name)
    ]
    printed = {
        cell: [token.lstrip("+") for token in re.findall(r"[-+]?\d+(?:\.\d+)?", cell.text)]
        for cell in cells
    }
    hits = [cell for cell in cells if wanted == cell.text or wanted in printed[cell]]
    if not hits:
        try:
            near, cell = min(
                ((token, cell) for cell in cells for token in printed[cell]),
                key=lambda pair: abs(float(pair[0]) - float(wanted)),
            )
        except ValueError:
            raise UserError(
                f"{number!r} is neither a run, a table nor a number as it is printed:"
                f" {', '.join(dict.fromkeys(cell.kind for cell in cells))}"
            ) from None
        raise UserError(
            f"no table under {folder} shows {number}: the nearest is {near} ({cell.where})"
        )
    return hits
