"""The classes: how often each is named right, and for what it is taken."""

import numpy as np

from rmlib.study.report import answer, groups
from rmlib.study.report.values import Table, average
from rmlib.study.runs import collection

MOST = 10  # rows of the table of confusions
NOTE = "percent of the images of each class that are named right, the hardest class first"
CONFUSED = (
    "percent of the images of a class that are taken for another, the largest over all methods"
)


def matrix(confusions: list[dict]) -> tuple[list[str], np.ndarray]:
    """The classes, and their confusions of :class:`rmlib.study.runs.schema.Record` summed.

    The sum is (classes, classes): images of the class of the row, named as the class of the column.
    """
    names = list(confusions[0])
    counts = [[[each[a].get(b, 0) for b in names] for a in names] for each in confusions]
    return names, np.array(counts).sum(0)


def counted(found: collection.Collection, group) -> list[tuple[str, dict]]:
    """(method, run_id -> confusion) of an experiment, best method first.

    Runs of older records, and of other test images than the first, do not count.
    """
    runs = {
        method.name: {run_id: found.records[run_id].confusion for run_id in method.runs["run_id"]}
        for method in answer.methods(group)
    }
    first = next((_sizes(x) for own in runs.values() for x in own.values() if x), None)
    alike = [
        (name, {run_id: x for run_id, x in own.items() if x and _sizes(x) == first})
        for name, own in runs.items()
    ]
    return [(name, own) for name, own in alike if own]


def _sizes(confusion):
    """(class, its test images) of every class, in their order."""
    return [(name, sum(row.values())) for name, row in confusion.items()]


def table(found: collection.Collection, group, confused: bool = False) -> Table | None:
    """A row for every class, or for each of the MOST largest confusions, a column for every method;
    None where no record counts classes, or nothing is confused.
    """
    methods = counted(found, group)
    if not methods:
        return None
    matrices = [matrix(list(own.values())) for _, own in methods]
    names, images = matrices[0][0], matrices[0][1].sum(1) // len(methods[0][1])
    # shares of the images of a class, summed over methods
    shares = sum(counts / np.maximum(counts.sum(1, keepdims=True), 1) for _, counts in matrices)
    places = [(a, b) for a, b in np.ndindex(shares.shape) if images[a] and (a != b) == confused]
    places.sort(key=lambda place: shares[place] * (-1 if confused else 1))
    rows = []
    for a, b in [place for place in places if shares[place] > 0][:MOST] if confused else places:
        row: dict = {"class": names[a]} | ({"taken for": names[b]} if confused else {})
        row["images"] = int(images[a])
        for method, own in methods:
            right = {run_id: x[names[a]].get(names[b], 0) for run_id, x in own.items()}
            row[method] = average({run_id: 100 * n / images[a] for run_id, n in right.items()})
        rows.append(row)
    note = f"{CONFUSED if confused else NOTE}; mean ± sample standard deviation"
    return Table(rows, f"{groups.title(group)}; {note}") if rows else None
