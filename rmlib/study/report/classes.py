"""The classes: how often each is named right, and for what it is taken."""

import numpy as np

from rmlib.study.report import answer, groups
from rmlib.study.report.values import Table, average
from rmlib.study.runs import collection

NOTE = "percent of the images of each class that are named right, the hardest class first"


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


def table(found: collection.Collection, group) -> Table | None:
    """A row for every class, a column for every method; None where no record counts classes."""
    methods = counted(found, group)
    if not methods:
        return None
    rows = []
    sizes = _sizes(next(iter(methods[0][1].values())))
    for name, images in (pair for pair in sizes if pair[1]):
        row, shares = {"class": name, "images": images}, []
        for method, own in methods:
            right = {run_id: 100 * x[name].get(name, 0) / images for run_id, x in own.items()}
            row[method] = average(right)
            shares.append(row[method].mean)
        rows.append((sum(shares), row))
    hardest = [row for _, row in sorted(rows, key=lambda pair: pair[0])]
    return Table(hardest, f"{groups.title(group)}; {NOTE}; mean ± sample standard deviation")
