"""A value and its printed forms: Markdown, CSV and explanation read the same object."""

import math

import pytest

from rmlib.study.report.stats import NEEDED, Difference
from rmlib.study.report.values import CONTROL, Table, Value, average, difference, span


def test_a_mean_with_everything_beside_it():
    value = average({"a": 80.0, "b": 82.0}, low=79.0, high=83.0, control=20.8, better=True)
    assert value.text(2) == "81.00 ± 1.41 [79.0, 83.0] (20.8)*"
    assert value.columns("x") == {
        "x": 81.0,
        "x_std": pytest.approx(math.sqrt(2)),
        "x_low": 79.0,
        "x_high": 83.0,
        "x_control": 20.8,
        "x_better": True,
    }
    assert value.runs == ["a", "b"] and value.again() == 81.0


def test_one_run_has_no_spread_and_no_run_is_a_dash():
    assert average({"a": 80.0}).text(1) == "80.0"
    nothing = average({})
    assert nothing.text(1) == "–" and math.isnan(nothing.again())
    assert average({"a": 1.0}, low=math.nan, high=math.nan).text(1) == "1.0"


def test_a_difference_is_signed_and_comes_from_its_two_sides():
    found = Difference(0.5, -0.25, 1.25, 0.2, (2, 2))
    a, b = ("A", {"x": 81.0, "y": 82.0}), ("B", {"z": 81.0})
    points = difference(found, a, b)
    assert points.text() == "+0.50" and points.columns("p") == {"p": 0.5}
    assert points.again() == 0.5 and points.runs == ["x", "y", "z"]
    stored = difference(found, a, b, low=found.low, high=found.high, decimals=3, as_text=True)
    assert stored.columns("p") == {"p": "+0.500 [-0.250, +1.250]"}
    assert difference(found, a, ("B", {"z": 80.0})).again() == 1.5, "the sides speak, not the table"


def test_a_sum_is_over_all_sides():
    total = Value(0.31, {"training": {"a": 0.1, "b": 0.2}, "measurements": {"a": 0.01}}, "sum")
    assert total.again() == pytest.approx(0.31) and total.text() == "0.31"


def test_a_table_prints_values_and_plain_entries():
    row = {
        "method": "Region Mixup",
        "mixer": "region_mixup",
        "n": 2,
        "diverged": 1,
        "accuracy": average({"a": 1.0, "b": 2.0}),
    }
    table = Table([row, {"method": "Mixup", "mixer": "mixup", "n": 0, CONTROL: 3.0}], "what it is")
    assert table.names() == ["method", "n", "accuracy", CONTROL]
    assert table.markdown() == (
        f"| method | n | accuracy (%) | {CONTROL} |\n"
        "| --- | ---: | ---: | ---: |\n"
        "| Region Mixup | 2 (+ 1 diverged) | 1.50 ± 0.71 | – |\n"
        "| Mixup | 0 | – | 3.0 |\n"
    )
    frame = table.frame()
    assert list(frame) == ["method", "mixer", "n", "diverged", "accuracy", "accuracy_std", CONTROL]


def test_columns_aside_stand_in_csv_alone():
    table = Table([{"claim": "A > B", "r": 0.5}], aside=("r",))
    assert table.markdown() == "| claim |\n| --- |\n| A > B |\n"
    assert table.frame().to_dict("records") == table.rows


def test_an_interval_that_is_not_known_is_a_dash():
    assert span(math.nan, math.nan) == "–" and span(-0.125, 0.5, 1) == "[-0.1, +0.5]"


def test_plain_numbers_have_fixed_decimals():
    """A p that rounds to nothing is no zero; r keeps its second decimal."""
    rows = [{"r": 0.5, "p": 0.01}, {"r": -1.0, "p": 3e-7}, {"r": float("nan"), "p": 1.0}]
    text = Table(rows).markdown()
    assert "| 0.50 | 0.0100 |\n| -1.00 | <0.0001 |\n| – | 1.0000 |" in text


def test_a_number_of_seeds_that_no_study_has_is_only_said_to_be_large():
    table = Table([{NEEDED: 1000.0}, {NEEDED: 226932.0}, {NEEDED: math.inf}])
    assert "| 1000 |\n| >1000 |\n| >1000 |" in table.markdown()
    assert table.frame()[NEEDED].tolist() == [1000, 226932, math.inf], "CSV has the number"
