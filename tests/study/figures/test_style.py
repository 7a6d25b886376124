"""What all figures share: colours that keep apart, and words for who does not see a figure."""

import base64
import itertools
import struct

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch

from rmlib.paths import results_dir
from rmlib.study import figures


def luminance(colour: str) -> float:
    """Relative luminance of '#rrggbb' after WCAG 2, 0 for black to 1 for white."""
    levels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in levels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def lightness(colour: str) -> float:
    """L* of CIELAB, 0 to 100: what remains of a colour in a grey print."""
    return 116 * luminance(colour) ** (1 / 3) - 16


def contrast_on_white(colour: str) -> float:
    return 1.05 / (luminance(colour) + 0.05)


def test_the_formulas_know_black_white_and_grey():
    assert [round(luminance(c), 3) for c in ("#000000", "#ffffff")] == [0, 1]
    assert lightness("#777777") == pytest.approx(50.03, abs=0.1)
    assert contrast_on_white("#767676") == pytest.approx(4.54, abs=0.01)


def test_methods_keep_apart_in_grey_and_stand_out_on_white():
    levels = sorted(map(lightness, figures.COLOURS.values()))
    steps = [b - a for a, b in zip(levels, levels[1:])]
    assert min(steps) >= 12, f"lightness {levels}"
    assert all(contrast_on_white(colour) >= 3 for colour in figures.COLOURS.values())


def every_figure():
    """Each figure with axes of numbers, of two methods with long names."""
    ours, other = ("region_mixup", "Region Mixup, k=4"), ("none", "No mixing, clean_weight=0")
    curve = [90.0, 50.0, 20.0]
    several = {ours: [curve, curve], other: [curve]}
    sized = {name: [{"0": 90.0, "8/255": 50.0}] for name in (ours, other)}
    whole = {ours: ([1.0, 2.0], 0.5, 2.5, 0.7), other: ([3.0], 2.0, 4.0, 0.7)}
    row = {"epoch": 1, "clean_loss": 1.0, "mixed_loss": 2.0, "mixed_accuracy": 50.0}
    history = [row | {"clean_accuracy": 60.0, "test_accuracy": 70.0, "epoch": e} for e in (1, 2)]
    steps = {ours: curve, other: curve}
    spread = torch.linspace(0, 1, 50)
    compared = {"difference": "a - b", "of": "mixup", "points": 1.0, "low": 0.5, "high": 1.5}
    compared = pd.DataFrame([compared | {"state": "resolved", "p": 0.01}])
    yield figures.accuracy_against_eps(sized, sized, 10.0)
    yield figures.accuracy_over(range(3), several, "queries", 10.0)
    yield figures.intervals({"FGSM": {ours: [40.0, 50.0]}, "Square": {other: [60.0]}}, 10.0)
    yield figures.measures([("energy inside the object (%)", whole)] * 5)
    yield figures.lines([("a", 10.0, steps), ("b", None, steps)], ["head", "stem", "all"], "x", "y")
    yield figures.mean_maps([("Mixup", "red", torch.rand(8, 8))] * 4, 2)
    yield figures.learning_curves(history, "mixup", 1.0, 58.0, 10.0)
    yield figures.confidence({"training images": spread, "test images": spread}, "black")
    yield figures.softness({"k=2": spread}, {"k=2": "region_mixup"})
    yield figures.schedules({"onecycle": curve, "multistep": curve}, "onecycle", "black")
    yield figures.class_accuracy(["a", "b"], np.array([[3, 1], [0, 2]]), "mixup")
    yield figures.confusion(["a", "b"], np.array([[3, 1], [0, 2]]))
    yield figures.forest([("one", compared)])
    yield figures.reference_curves([results_dir() / "quick"])
    values = {name: [1.0, 2.0] for name in ("accuracy", "nll", "ece")}
    yield figures.against_softness([("mixup", "Mixup", 0.29, values)])


def test_text_can_be_read_and_no_legend_lies_on_data():
    matplotlib.use("agg")
    with matplotlib.rc_context():
        figures.use_style()
        for figure in every_figure():
            figure.canvas.draw()
            texts = [each for each in figure.findobj(matplotlib.text.Text) if each.get_text()]
            assert min(text.get_fontsize() for text in texts if text.get_visible()) >= 9
            legends = [*figure.legends, *filter(None, (a.get_legend() for a in figure.axes))]
            for legend, axis in itertools.product(legends, figure.axes):
                box = legend.get_window_extent()
                assert not box.overlaps(axis.get_window_extent()), axis.get_title()
            plt.close(figure)


def test_a_shown_figure_has_twice_the_pixels_and_its_words(monkeypatch):
    matplotlib.use("agg")
    shown = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    figure, _ = plt.subplots(figsize=(2, 1), dpi=50)
    figures.show(figure, "an empty axis")
    data, look = shown[0]._repr_png_()
    pixels = struct.unpack(">2I", base64.b64decode(data)[16:24])
    assert look["alt"] == "an empty axis"
    assert pixels[0] == 200 and pixels[1] == 100, "two inches, 2 x 50 pixels each"
    assert abs(2 * look["width"] - pixels[0]) <= 1
    assert figure.number not in plt.get_fignums(), "a notebook would show it again"
