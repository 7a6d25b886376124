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


def table(found: collection.Collection, group) -> Table | None:
    """A row for every class, a column for every method; None where no record counts classes."""
    methods = counted(found, group)
    if not methods:
        return None
    names, rates = _rates(methods)
    hardest = np.argsort(np.diag(rates), kind="stable").tolist()
    return _table(group, methods, [(names[place],) * 2 for place in hardest], NOTE)


def confusions(found: collection.Collection, group) -> Table | None:
    """A row for each of the MOST largest confusions, a column for every method; None where no class
    is taken for another.
    """
    methods = counted(found, group)
    if not methods:
        return None
    names, rates = _rates(methods)
    np.fill_diagonal(rates, 0)
    largest = np.argsort(-rates, axis=None, kind="stable")[:MOST]
    places = [divmod(int(place), len(names)) for place in largest if rates.flat[place] > 0]
    return _table(group, methods, [(names[a], names[b]) for a, b in places], CONFUSED)


def _rates(methods):
    """The classes, and how often the class of the row is named as that of the column, the sum over
    methods of the share of its images.
    """
    found = [matrix(list(own.values())) for _, own in methods]
    totals = [counts / np.maximum(counts.sum(1, keepdims=True), 1) for _, counts in found]
    return found[0][0], sum(totals)


def _table(group, methods, pairs, note):
    """A row for each pair of a class and what it is named."""
    rows = []
    for name, named in pairs:
        images = sum(next(iter(methods[0][1].values()))[name].values())
        row = {"class": name} | ({"taken for": named} if note == CONFUSED else {})
        row |= {"images": images}
        for method, own in methods if images else ():
            shares = {run_id: 100 * x[name].get(named, 0) / images for run_id, x in own.items()}
            row[method] = average(shares)
        rows += [row] if images else []
    caption = f"{groups.title(group)}; {note}; mean ± sample standard deviation"
    return Table(rows, caption) if rows else None
