"""Figures of results show the numbers of their tables."""

import numpy as np
import pandas as pd
import pytest

from rmlib.paths import results_dir
from rmlib.study import figures
from rmlib.study.runs import records


def drawn(figure):
    """Every line of a figure's axes as (x, y, its colour, the colour within its marker)."""
    from matplotlib.colors import to_hex

    return [
        [
            (
                list(map(float, line.get_xdata())),
                list(map(float, line.get_ydata())),
                to_hex(line.get_color()),
                to_hex(line.get_markerfacecolor()),
            )
            for line in axis.lines
        ]
        for axis in figure.axes
    ]


def test_the_forest_shows_what_the_table_says(tmp_path):
    import matplotlib

    matplotlib.use("agg")
    row = {
        "difference": "a",
        "of": "mixup",
        "points": 1.0,
        "low": 0.5,
        "high": 1.5,
        "state": "resolved",
        "paired_low": 0.75,
        "paired_high": 1.25,
    }
    other = row | {
        "difference": "b",
        "of": "cutmix",
        "points": -3.0,
        "low": float("nan"),
        "high": float("nan"),
        "state": "unresolved",
    }
    (lines,) = drawn(figures.forest([("one", pd.DataFrame([row, other]))]))
    orange, blue = figures.COLOURS["mixup"], figures.COLOURS["cutmix"]
    points = {(*x, *y): (colour, face) for x, y, colour, face in lines if len(x) == 1}
    assert points == {
        (1.0, 1.0): (orange, orange),
        (-3.0, 0.0): (blue, "#ffffff"),
    }, "the first row on top; filled is resolved"
    assert [x for x, y, colour, _ in lines if len(x) == 2 and colour == orange] == [
        [0.5, 1.5],
        [0.75, 1.25],
    ] and lines[-1][0] == [0, 0], "zero is a line"
    assert all(
        x != x
        for line, _, colour, _ in lines
        if colour == blue and len(line) == 2 and line != [0.75, 1.25]
        for x in line
    ), "no interval, no line"
    figure = figures.forest([("one", pd.DataFrame([other]))])
    assert figure.axes[0].get_title(loc="left") == "one (one run each)"


def test_reference_curves_show_the_records_over_their_seeds():
    import matplotlib

    matplotlib.use("agg")
    folder = results_dir() / "quick"
    own = {}
    for record in map(records.read, folder.glob("*/")):
        if record.config["mixer"] == "mixup":
            own[record.config["seed"]] = record
    figure = figures.reference_curves([folder])
    orange = figures.COLOURS["mixup"]
    last = []
    for axis in figure.axes:
        lines = [each for each in axis.lines if len(each.get_xdata()) == 20]
        # plain training and the control have no mixed batch
        assert len(lines) == (3 if axis is figure.axes[1] else 5)
        last += [line.get_ydata()[-1] for line in lines if line.get_color() == orange]
    parts = ("clean_loss", "mixed_loss", "clean_accuracy")
    ends = [[record.history[-1][part] for record in own.values()] for part in parts]
    assert len(own) == 3 and last == pytest.approx(np.mean(ends, axis=1))
    (test,) = (
        each.get_ydata()[0]
        for each in figure.axes[2].lines
        if each.get_color() == orange and len(each.get_xdata()) == 1 and each.get_mfc() == "white"
    )
    assert test == pytest.approx(np.mean([record.metrics["accuracy"] for record in own.values()]))
