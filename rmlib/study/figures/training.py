"""Figures of 02_training."""

from textwrap import fill
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from rmlib.study.figures.style import COLOURS, histogram, titled
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


def class_accuracy(names, counts, mixer: str, most: int = 40):
    """Accuracy of every class as a bar, the hardest on top, and of all images as a line.

    Args:
        names, counts: of :func:`rmlib.study.report.classes.matrix`; mixer: the colour.
        most: classes that are shown, the hardest.
    """
    kept = [place for place in range(len(names)) if counts[place].sum()]
    percent = 100 * np.diag(counts) / np.maximum(counts.sum(1), 1)
    order = sorted(kept, key=lambda place: -percent[place])[-most:]
    figure, axis = plt.subplots(figsize=(5.6, 0.5 + 0.2 * len(order)), layout="constrained")
    axis.barh(range(len(order)), percent[order], color=COLOURS[mixer])
    whole = 100 * np.trace(counts) / counts.sum()
    axis.axvline(whole, color="black", lw=1, ls="--")
    axis.set_yticks(range(len(order)), [names[place] for place in order], fontsize=8)
    for label in axis.get_yticklabels():
        label.set_parse_math(False)
    axis.set(xlabel=f"accuracy (%); all images: {whole:.1f}", xlim=(0, 100))
    axis.set_ylim(-0.6, len(order) - 0.4)
    return figure


def confusion(names, counts, title: str = "", most: int = 25):
    """What is taken for what: each row a class, and the percent of its images named as each class.

    Args:
        names, counts: of :func:`rmlib.study.report.classes.matrix`.
        most: classes that are shown, those with the most mistakes.
    """
    wrong = counts - np.diag(np.diag(counts))
    order = np.sort(np.argsort(-(wrong.sum(0) + wrong.sum(1)), kind="stable")[:most])
    percent = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
    shown, labels = percent[np.ix_(order, order)], [names[place] for place in order]
    size = 2.4 + 0.36 * len(order)
    figure, axis = plt.subplots(figsize=(size, size), layout="constrained")
    axis.imshow(shown, cmap="Greys", vmin=0, vmax=100)
    for row, column in zip(*np.nonzero(shown >= 0.5)):
        look: Any = {"color": "white" if shown[row, column] > 50 else "black", "fontsize": 7}
        axis.text(column, row, f"{shown[row, column]:.0f}", ha="center", va="center", **look)
    axis.set_xticks(range(len(order)), labels, rotation=90, fontsize=8)
    axis.set_yticks(range(len(order)), labels, fontsize=8)
    for label in (*axis.get_xticklabels(), *axis.get_yticklabels()):
        label.set_parse_math(False)
    axis.set(xlabel="named as (% of the row)", ylabel="class")
    of = f"{len(order)} of {len(names)} classes, those with the most mistakes"
    words = [title, of] if len(order) < len(names) else [title]
    titled(axis, "\n".join(fill(text, 40) for text in words if text), fontsize=9)
    return figure
