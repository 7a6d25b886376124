"""What stands behind the cells of a table, kept with the table by the functions that make it, so
that the two cannot drift apart.

A row is a dictionary on its way into a DataFrame. :func:`average` puts a mean into it and remembers
of what; :func:`table` makes the DataFrame, whose ``attrs["behind"]`` then is, for each row,
{column: {side: {run_id: value}}}. A mean has one side, named ""; a difference has two.
"""

import pandas as pd

from rmlib.study.report.stats import mean_std

BEHIND = "behind"


class Behind(list):
    """The origins of a table's rows; shared, not copied, when pandas copies a table's ``attrs`` (it
    does so at every step).
    """

    def __deepcopy__(self, memo):
        return self


def average(row: dict, column: str, values: dict) -> None:
    """Put mean and sample standard deviation of some runs into a row, as X and X_std. ``values``:
    run_id -> number.
    """
    row[column], row[f"{column}_std"] = mean_std(list(values.values()))
    note(row, column, {"": values})


def note(row: dict, column: str, sides: dict) -> None:
    """Remember what a cell was made of: {side: {run_id: value}}; the difference of two means has
    two sides, A first.
    """
    row.setdefault(BEHIND, {})[column] = {side: dict(values) for side, values in sides.items()}


def table(rows: list[dict]):
    """The DataFrame of some rows, with their origins in its ``attrs``."""
    found = pd.DataFrame(
        [{name: value for name, value in row.items() if name != BEHIND} for row in rows]
    )
    found.attrs[BEHIND] = Behind(row.get(BEHIND, {}) for row in rows)
    return found
