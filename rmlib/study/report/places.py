"""The entries of a report's tables, and the ways to name one: by words of its row and a column, or
by a number that it shows.
"""

import re
from dataclasses import dataclass, replace

from rmlib import UserError
from rmlib.params import nearest
from rmlib.study.names import METHOD
from rmlib.study.report.values import Table, Value, heading

# columns that name a row by their text alone, and with their name
NAMING = {"method", "map", "measure", "difference", "claim", "class", "taken for"}
NAMING |= {"dataset", "experiment"}
KEYS = NAMING | {*METHOD, "clean loss", "shuffled", "eps", "in"}


@dataclass(frozen=True, eq=False)
class Place:
    """One entry of a table: which table of its kind (from 1), its row and its column."""

    kind: str
    number: int
    table: Table
    row: int
    name: str

    @property
    def entry(self):
        """What stands there: a :class:`rmlib.study.report.values.Value`, or something plain."""
        return self.table.rows[self.row].get(self.name)

    @property
    def values(self) -> dict[str, Value]:
        """The value that stands there, else all values of the row, by their columns."""
        if isinstance(self.entry, Value):
            return {self.name: self.entry}
        return self.table.values(self.row)

    @property
    def text(self) -> str:
        """The entry as it is printed."""
        return self.table.text(self.row, self.name)

    @property
    def head(self) -> str:
        """The heading of its column."""
        return heading(self.name)

    @property
    def is_key(self) -> bool:
        """Whether it names the row."""
        return self.name in KEYS and not isinstance(self.entry, Value)

    @property
    def of_row(self) -> str:
        """'table accuracy, shapes, width 8 | Mixup, clean_weight 1': its table, and what names its
        row.
        """
        of = ""
        if self.kind not in ("claims", "costs", "small"):
            of = ", " + self.table.caption.split(";")[0].split(" (the paper")[0]
        keys = [x for x in (replace(self, name=name) for name in self.table.names()) if x.is_key]
        words = [x.text if x.name in NAMING else f"{x.name} {x.text}" for x in keys]
        return f"table {self.kind}{of} | {', '.join(words)}"

    @property
    def where(self) -> str:
        """Its row and its heading."""
        return f"{self.of_row} | {self.head}"

    def is_called(self, word: str) -> bool:
        """Whether a word (lower case) is this entry, alone or as column=entry."""
        text = self.text.lower()
        return word in (text, f"{self.name}={text}".lower(), f"{self.head}={text}".lower())


def places(kind: str, several: list[Table]):
    """Every entry of the tables of a kind."""
    for number, table in enumerate(several, 1):
        for row in range(len(table.rows)):
            for name in table.names():
                yield Place(kind, number, table, row, name)


def select(kind: str, several: list[Table], words: list[str], column: str | None) -> list[Place]:
    """The entries of the rows that fit all words, of one column, or the values of the row.

    Raises:
        UserError: no row or column is called so; names the nearest.
    """
    found = list(places(kind, several))
    heads = {text.lower() for place in found for text in (place.head, place.name)}
    columns = [column.lower()] if column else []
    for word in map(str.lower, words):
        rows = _rows(place for place in found if place.is_called(word))
        if not rows and word in heads:
            columns.append(word)
            continue
        rows = rows or _rows(x for x in found if word in f"{x.text}\n{x.table.caption}".lower())
        if not rows:
            known = [place.text for place in found if place.is_key]
            known = list(dict.fromkeys(known + [place.head for place in found]))
            raise UserError(f"table {kind}: no row has {word!r}: {nearest(word, known)}")
        found = [place for place in found if (place.number, place.row) in rows]
    for name in columns:
        found = _of_column(kind, found, name)
    return found if columns else _values_of_rows(found)


def _rows(found):
    return {(place.number, place.row) for place in found}


def _of_column(kind, found, name):
    """The entries of the column called ``name`` (lower case), or whose heading has it."""
    own = [place for place in found if name in (place.head.lower(), place.name.lower())]
    own = own or [place for place in found if name in place.head.lower()]
    if not own:
        heads = list(dict.fromkeys(place.head for place in found))
        raise UserError(f"table {kind} has no column {name!r}: {nearest(name, heads)}")
    return own


def _values_of_rows(found):
    """The values among some entries; of a row without one its first entry that is no key."""
    values = [place for place in found if isinstance(place.entry, Value)]
    rows = _rows(values)
    others: dict = {}
    for place in found:
        if not place.is_key and (place.number, place.row) not in rows:
            others.setdefault((place.number, place.row), place)
    return values + list(others.values())


def showing(number: str, found: list[Place], folder) -> list[Place]:
    """The values that show a number: as mean, spread, end of the interval or control.

    Raises:
        UserError: none; names the nearest number.
    """
    wanted = number.replace("%", "").replace("−", "-").strip().lstrip("+")
    shown = [
        (text.lstrip("+"), place)
        for place in found
        if isinstance(place.entry, Value)
        for text in re.findall(r"[+-]?\d+(?:\.\d+)?(?:e[+-]\d+)?", place.text)
    ]
    hits = [place for text, place in shown if text == wanted]
    # a sentence may turn a difference round
    hits = hits or [place for text, place in shown if text.strip("-") == wanted.strip("-")]
    if hits:
        return list(dict.fromkeys(hits))
    try:
        near, place = min(shown, key=lambda pair: abs(float(pair[0]) - float(wanted)))
    except ValueError:
        kinds = ", ".join(dict.fromkeys(place.kind for place in found))
        raise UserError(
            f"{number!r} is neither a run, a table nor a number as it is printed: {kinds}"
        ) from None
    raise UserError(
        f"no table under {folder} shows {number}: the nearest is {near} ({place.where})"
    )
