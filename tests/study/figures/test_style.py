"""What all figures share: colours that keep apart, and words for who does not see a figure."""

import base64
import struct

import matplotlib
import matplotlib.pyplot as plt
import pytest

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
