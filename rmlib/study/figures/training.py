"""Figures of 02_training."""

import matplotlib.pyplot as plt
import numpy as np

from rmlib.study.figures.style import COLOURS, histogram
from rmlib.study.names import LABELS


def learning_curves(history, mixer: str):
    """Loss and accuracy over the epochs of one run (a record's history)."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(7.6, 2.9))
    epochs = [row["epoch"] for row in history]

    def line(axis, name, label, style, colour):
        points = [(row["epoch"], row[name]) for row in history if row.get(name) is not None]
        if points:
            axis.plot(*zip(*points), style, color=colour, label=label, ms=4)

    grey, colour = "#888888", COLOURS[mixer]
    line(left, "clean_loss", "clean batch", "s--", grey)
    line(left, "mixed_loss", "mixed batch", "o-", colour)
    line(right, "clean_accuracy", "train, clean batch", "s--", grey)
    line(right, "mixed_accuracy", "train, mixed batch", "o:", colour)
    line(right, "test_accuracy", "test", "D-", colour)
    left.set(xlabel="epoch", ylabel="cross entropy (nats)")
    right.set(xlabel="epoch", ylabel="accuracy (%)")
    for axis in (left, right):
        axis.set_xticks(epochs if len(epochs) <= 10 else np.linspace(1, epochs[-1], 6).astype(int))
        axis.legend(frameon=False, fontsize=8)
    figure.suptitle(LABELS[mixer], color=colour, fontsize=10)
    figure.tight_layout()
    return figure


def confidence(curves: dict):
    """Distributions of the largest predicted probability: label -> array of values in [0, 1]."""
    figure, axis = plt.subplots(figsize=(5.2, 2.6))
    looks = (("-", COLOURS["none"]), ("--", COLOURS["region_mixup"]), (":", COLOURS["cutmix"]))
    for (name, values), (style, colour) in zip(curves.items(), looks):
        histogram(axis, values, 20, "percent", label=name, linestyle=style, color=colour)
    axis.set(xlabel="largest predicted probability", ylabel="images (%)", xlim=(0, 1))
    axis.legend(frameon=False, fontsize=8, loc="upper left")
    figure.tight_layout()
    return figure
