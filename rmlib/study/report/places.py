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
NAMING |= {"dataset", "experiment", "what differs"}
# as it is printed, with sign and exponent
NUMBER = r"[+-]?\d+(?:\.\d+)?(?:e[+-]\d+)?"
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
        row = self.table.rows[self.row]
        return {name: x for name, x in row.items() if isinstance(x, Value)}

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

    @property
    def around(self) -> str:
        """Its text and the caption of its table, in lower case."""
        return f"{self.text}\n{self.table.caption}".lower()

    def is_called(self, word: str) -> bool:
        """Whether a word (lower case) is this entry, alone or as column=entry."""
        text = self.text.lower()
        return word in (text, f"{self.name}={text}".lower(), f"{self.head}={text}".lower())


def rows(kind: str, several: list[Table]) -> list[list[Place]]:
    """Every row of the tables of a kind, as its entries."""
    return [
        [Place(kind, number, table, row, name) for name in table.names()]
        for number, table in enumerate(several, 1)
        for row in range(len(table.rows))
    ]


def places(kind: str, several: list[Table]) -> list[Place]:
    """Every entry of the tables of a kind."""
    return [place for row in rows(kind, several) for place in row]


def select(kind: str, several: list[Table], words: list[str], column: str | None) -> list[Place]:
    """The values of the rows that fit all words, or their entries of one column, which a word may
    name, too.

    Raises:
        UserError: no row or column is called so; names the nearest.
    """
    chosen = rows(kind, several)
    heads = dict.fromkeys(place.head for row in chosen for place in row)
    for word in map(str.lower, words):
        fit = [row for row in chosen if any(place.is_called(word) for place in row)]
        for near in ("text", "around"):
            texts = [[getattr(place, near).lower() for place in row] for row in chosen]
            inside = [any(word in text for text in own) for own in texts]
            fit = fit or [row for row, is_in in zip(chosen, inside) if is_in]
        if not fit and word in map(str.lower, heads):
            column = word
            continue
        if not fit:
            keys = dict.fromkeys(place.text for row in chosen for place in row if place.is_key)
            raise UserError(f"table {kind}: no row has {word!r}: {nearest(word, keys | heads)}")
        chosen = fit
    found = [place for row in chosen for place in row]
    if column is None:
        return [place for place in found if isinstance(place.entry, Value)]
    name = column.lower()
    own = [place for place in found if name in (place.head.lower(), place.name.lower())]
    own = own or [place for place in found if name in place.head.lower()]
    if not own:
        raise UserError(f"table {kind} has no column {name!r}: {nearest(name, heads)}")
    return own


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
        for text in re.findall(NUMBER, re.sub(r" \(n = \d+\)$", "", place.text))
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
