"""Figures of results show the numbers of their tables."""

import pandas as pd
import pytest
from made import PAPERS, make_record, save

from rmlib.study import figures
from rmlib.study.report import groups


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


@pytest.mark.parametrize(
    "change, note, shown",
    [
        ({}, True, True),
        (PAPERS, False, True),
        ({"dataset": "shapes"}, False, False),
        ({"far": True}, False, False),
    ],
)
def test_curves_of_all_runs_and_the_papers_numbers_where_they_belong(tmp_path, change, note, shown):
    import matplotlib

    matplotlib.use("agg")
    change = dict(change)
    values = [10.0, 20.0] if change.pop("far", False) else [30.0, 80.0]
    made = [
        make_record(values[1], seed=seed, mixer=mixer, **{"dataset": "cifar10"} | change)
        for seed in range(2)
        for mixer in ("mixup", "region_mixup")
    ]
    save(tmp_path, *made)
    group = groups.runs_below(tmp_path)
    figure = figures.curves_of_runs(
        [("one", group)], {record.run_id: [(1, values[0]), (2, values[1])] for record in made}
    )
    (lines,), text = drawn(figure), " ".join(each.get_text() for each in figure.axes[0].texts)
    assert sum(y == values for _, y, *_ in lines) == 4, "every run has its line"
    assert [y[0] for _, y, *_ in lines if y[0] == y[1]] == ([95.82, 95.89, 96.19] if shown else [])
    assert ("paper: CutMix 95.82, Mixup 95.89, Region Mixup 96.19" in text) == shown and (
        "another experiment" in text
    ) == note
