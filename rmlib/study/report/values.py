"""The values of a report's tables, and the tables.

A :class:`Value` knows the numbers of the runs that it was made from. Markdown, CSV, the HTML pages
and ``rmlib explain`` all read the same object.
"""

import math
from dataclasses import dataclass, field

import pandas as pd

from rmlib.study.names import METHOD
from rmlib.study.report.stats import NEEDED, Difference, mean_std

CONTROL = "another image's map"

# decimals of columns that hold plain numbers
PLACES = {CONTROL: 1, "r": 2, "p": 4, "p (Holm)": 4}
# a larger number of seeds is printed as ">1000": no study has so many
MOST_SEEDS = 1000
# columns for figures and CSV alone
HIDDEN = ("diverged", "mixer", "of", "low", "high", "paired_low", "paired_high")

# heading and decimals of a column; the others keep their name, and have one decimal
HEADS = {
    "accuracy": ("accuracy (%)", 2),
    "nll": ("NLL (nats)", 3),
    "ece": ("ECE (%)", 1),
    "clean_accuracy": ("clean (%)", 1),
    "compute": ("compute (plain = 1)", 0),
    "fgsm": ("FGSM", 1),
    "zero_gradient": ("no gradient (%)", 1),
    "autoattack": ("AutoAttack", 1),
}


@dataclass(frozen=True)
class Value:
    """A number in a table, with what it was made from.

    Args:
        mean: the number; NaN where no run gives it.
        sides: {side: {run_id: number}}. A mean has one side named "", a difference two, A first, a
            change four.
        how: "mean" of one side with its ``std``; "difference" of the means of two sides; "change":
            a difference minus another one; "sum" of all sides.
        std: sample standard deviation over the runs, NaN for fewer than two.
        low, high: ends of the 95 % interval that is printed with it; NaN where there is none.
        control: the same measure of a control, and ``better``: whether the mean beats it.
        decimals: of a difference or change; those of the others are their column's.
        as_text: CSV holds the printed text.
        measured: {kind of measurement: settings} that the numbers were read from.
        fewer: it comes from fewer runs than its row says, so their number is printed with it.
        missing: what would have to be run, if nothing was.
    """

    mean: float
    sides: dict = field(default_factory=dict)
    how: str = "mean"
    std: float = math.nan
    low: float | None = None
    high: float | None = None
    control: float | None = None
    better: bool | None = None
    decimals: int = 2
    as_text: bool = False
    measured: dict = field(default_factory=dict)
    fewer: bool = False
    missing: str = ""

    @property
    def runs(self) -> list[str]:
        """The ids of the runs behind it, each once."""
        return list(dict.fromkeys(run_id for side in self.sides.values() for run_id in side))

    def again(self) -> float:
        """The number made again from its sides."""
        if self.how == "sum":
            return round(math.fsum(sum(side.values()) for side in self.sides.values()), 2)
        means = [mean_std(side.values())[0] for side in self.sides.values()]
        signs = (1, -1, -1, 1)  # of A, B, C and D in (A - B) - (C - D)
        return math.fsum(sign * mean for sign, mean in zip(signs, means))

    def text(self, decimals: int = 1) -> str:
        """'82.31 ± 0.40 [81.9, 82.7] (20.8)*': mean, spread, interval, control, and a star where
        it beats that; '+0.30 [+0.10, +0.50]' for a difference; a dash for what is not known.
        """
        if math.isnan(self.mean):
            return "–"
        if self.how == "sum":
            return f"{self.mean:g}"
        has_interval = self.low is not None and self.low == self.low
        if self.how in ("difference", "change"):
            ends = f" {span(self.low, self.high, self.decimals)}" if has_interval else ""
            return f"{self.mean:+.{self.decimals}f}{ends}"
        text = spread(self.mean, self.std, decimals)
        text += f" [{self.low:.1f}, {self.high:.1f}]" if has_interval else ""
        text += "" if self.control is None else f" ({self.control:.1f})"
        text += f" (n = {len(self.runs)})" if self.fewer else ""
        return text + ("*" if self.better else "")

    def columns(self, name: str) -> dict:
        """Its columns in CSV: X, and of a mean X_std, X_low, X_high, X_control, X_better, X_n."""
        if self.as_text:
            return {name: self.text()}
        found: dict = {name: self.mean}
        if self.how == "mean":
            found[f"{name}_std"] = self.std
        if self.fewer:
            found[f"{name}_n"] = len(self.runs)
        if self.low is not None:
            found |= {f"{name}_low": self.low, f"{name}_high": self.high}
        if self.control is not None:
            found |= {f"{name}_control": self.control, f"{name}_better": self.better}
        return found


def by_run(rows: pd.DataFrame, name: str = "number") -> dict:
    """run_id -> number, of a column of a table of runs or measurements; {} without the column."""
    return dict(zip(rows["run_id"], rows.get(name, ())))


def average(numbers: dict, **more) -> Value:
    """The mean and spread of some runs. ``numbers``: run_id -> number."""
    mean, std = mean_std(numbers.values())
    return Value(mean, {"": numbers}, std=std, **more)


def difference(found: Difference, *sides: tuple[str, dict], **more) -> Value:
    """A difference, or a change of four sides, with what it was made from: (name, run_id -> number)
    of each side.
    """
    how = "difference" if len(sides) == 2 else "change"
    return Value(found.mean, dict(sides), how, **more)


def heading(name: str) -> str:
    """The heading of a column."""
    return HEADS.get(name, (name, 1))[0]


def spread(mean: float, std: float, decimals: int) -> str:
    """'82.31 ± 0.40'; without a spread the mean alone, without a mean a dash."""
    if mean != mean:
        return "–"
    return f"{mean:.{decimals}f}" + (f" ± {std:.{decimals}f}" if std == std else "")


def span(low, high, decimals: int = 2) -> str:
    """'[-0.12, +0.48]': a 95 % interval; a dash where there is none."""
    return f"[{low:+.{decimals}f}, {high:+.{decimals}f}]" if low == low else "–"


@dataclass(eq=False)
class Table:
    """Rows of values and plain entries (column -> entry), with a caption; ``aside``: columns that
    stand in CSV alone.
    """

    rows: list[dict]
    caption: str = ""
    aside: tuple[str, ...] = ()

    def frame(self) -> pd.DataFrame:
        """The unrounded numbers, as they stand in CSV (see :meth:`Value.columns`)."""
        rows = []
        for row in self.rows:
            columns: dict = {}
            for name, entry in row.items():
                columns |= entry.columns(name) if isinstance(entry, Value) else {name: entry}
            rows.append(columns)
        return pd.DataFrame(rows)

    def names(self) -> list[str]:
        """The columns that are printed."""
        names = dict.fromkeys(name for row in self.rows for name in row)
        return [name for name in names if name not in (*HIDDEN, *self.aside)]

    def text(self, row: int, name: str) -> str:
        """An entry as it is printed."""
        entry = self.rows[row].get(name)
        if isinstance(entry, Value):
            return entry.text(HEADS.get(name, (name, 1))[1])
        text = _plain(name, entry)
        diverged = self.rows[row].get("diverged")
        return text + (f" (+ {diverged} diverged)" if name == "n" and diverged else "")

    def markdown(self) -> str:
        """The table in Markdown."""
        frame, names = self.frame(), self.names()
        rules = ["---:" if _is_number(frame, name) else "---" for name in names]
        lines = [[heading(name) for name in names], rules]
        lines += [[self.text(row, name) for name in names] for row in range(len(self.rows))]
        # the name of a class may hold what parts the columns
        lines = [[text.replace("|", r"\|") for text in line] for line in lines]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _is_number(frame, name):
    is_number = pd.api.types.is_numeric_dtype(frame[name]) and name not in METHOD
    return is_number or f"{name}_std" in frame


def _plain(name, entry):
    if entry is None or entry != entry:
        return "–"
    if name == NEEDED and entry > MOST_SEEDS:
        return f">{MOST_SEEDS}"
    if name in PLACES and not isinstance(entry, str):
        least = 10.0 ** -PLACES[name]
        small = name.startswith("p") and entry < least
        return f"<{least:g}" if small else f"{entry:.{PLACES[name]}f}"
    return f"{entry:g}" if isinstance(entry, float) else str(entry)
