"""Figures of 02_training."""

from textwrap import fill
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from rmlib.study.figures.style import (
    COLOURS,
    GREY,
    TEXT,
    chance_line,
    histogram,
    legend_below,
    titled,
)
from rmlib.study.names import LABELS
from rmlib.study.report import groups
from rmlib.study.runs.collection import gather

# of an epoch in a record, by the words of the axis
PARTS = {
    "loss of clean batches (nats)": "clean_loss",
    "loss of mixed batches (nats)": "mixed_loss",
    "accuracy on clean images (%)": "clean_accuracy",
}


def learning_curves(history, mixer: str, floor: float, ceiling: float, chance: float):
    """Loss and accuracy over the epochs of one run (a record's history).

    Args:
        floor: the smallest mixed loss in nats that any network reaches.
        ceiling, chance: the largest mixed accuracy in percent, and that of guessing.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.7), layout="constrained")
    epochs = [row["epoch"] for row in history]

    def line(axis, name, label, style, colour):
        points = [(row["epoch"], row[name]) for row in history if row.get(name) is not None]
        if points:
            axis.plot(*zip(*points), style, color=colour, label=label, ms=5)

    colour = COLOURS[mixer]
    line(left, "clean_loss", "clean batch", "s--", GREY)
    line(left, "mixed_loss", "mixed batch", "o-", colour)
    line(right, "clean_accuracy", "train, clean batch", "s--", GREY)
    line(right, "mixed_accuracy", "train, mixed batch", "o:", colour)
    line(right, "test_accuracy", "test", "D-", colour)
    left.set(xlabel="epoch", ylabel="cross entropy (nats)")
    right.set(xlabel="epoch", ylabel="accuracy (%)")
    left.axhline(floor, color=colour, lw=1, ls=(0, (1, 2)), label="floor of the mixed batch")
    right.axhline(ceiling, color=colour, lw=1, ls=(0, (1, 2)), label="ceiling of the mixed batch")
    chance_line(right, chance)
    left.set_ylim(bottom=0)
    right.set_ylim(0, 102)
    for axis in (left, right):
        axis.set_xticks(epochs if len(epochs) <= 10 else np.linspace(1, epochs[-1], 6).astype(int))
        look: Any = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.2), "frameon": False}
        axis.legend(fontsize=TEXT, ncols=2, **look)
    figure.suptitle(LABELS[mixer], color=colour, fontsize=TEXT + 1)
    return figure


def reference_curves(folders):
    """Loss and accuracy over the epochs of stored runs: mean and spread over the seeds of a method.

    Only the methods without other settings are shown.

    Args:
        folders: of records; each of their experiments is a row of panels.
    """
    stored = [gather(folder) for folder in folders]
    found = [(each.records, group) for each in stored for group in groups.experiments(each.runs)]
    size = (8.6, 0.5 + 2.9 * len(found))
    figure, axes = plt.subplots(len(found), 3, figsize=size, squeeze=False, layout="constrained")
    for line, (records, group) in zip(axes, found):
        methods = [each for each in groups.finished(group) if "," not in each.name]
        for number, method in enumerate(methods):
            histories = [records[run_id].history for run_id in method.runs["run_id"]]
            look: Any = {"color": COLOURS[method.mixer], "marker": "osD^v"[number], "ms": 4}
            look |= {"ls": "--" if method.loss[0] == 0 else "-", "markevery": (number, 5)}
            line[0].plot([], [], label=method.name, **look)
            for axis, part in zip(line, PARTS.values()):
                _mean_and_spread(axis, histories, part, method.mixer, look)
            test: Any = {
                "color": look["color"],
                "fmt": look["marker"],
                "mfc": "white",
                "ms": 5,
                "capsize": 2,
            }
            place = len(histories[0]) * (1.06 + 0.065 * number)
            line[2].errorbar(place, method.mean, method.accuracies.std(), **test)
        for axis, words in zip(line, PARTS):
            axis.set(xlabel="epoch", ylabel=words, ylim=(0, None))
        epochs = group["config.epochs"].max()
        line[2].set(ylim=(0, 102), xticks=range(0, epochs + 1, max(1, epochs // 4)))
        chance_line(line[2], 100 / group["data.classes"].iloc[0])
        counts = sorted({len(method.accuracies) for method in methods})
        seeds = " to ".join(map(str, {counts[0]: 0, counts[-1]: 0}))
        titled(line[0], f"{groups.title(group)}; {seeds} seeds each", fontsize=TEXT, loc="left")
        titled(line[2], "hollow: test, last epoch", fontsize=TEXT, loc="right")
    legend_below(figure, axes[0, 0])
    return figure


def _mean_and_spread(axis, histories, part, mixer, look):
    """A curve of a part of the history, and the band of its standard deviation over runs."""
    if mixer == "none":
        # its mixed batches are clean ones; plain training has no others
        part = part.replace("clean", "mixed") if "clean" in part else ""
    if part in histories[0][0]:
        values = np.array([[row[part] for row in history] for history in histories])
        epochs, mean = range(1, len(values[0]) + 1), values.mean(0)
        axis.plot(epochs, mean, **look)
        band = np.array([-1, 1])[:, None] * values.std(0, ddof=int(len(values) > 1))
        axis.fill_between(epochs, *(mean + band), color=look["color"], alpha=0.15, lw=0)


def confidence(curves: dict, colour: str):
    """Distributions of the largest predicted probability: label -> values in [0, 1], with means."""
    figure, axis = plt.subplots(figsize=(6, 3.2), layout="constrained")
    for (name, values), style in zip(curves.items(), ("-", "--", ":")):
        histogram(axis, values, 20, "percent", label=name, linestyle=style, color=colour, lw=1.8)
        axis.axvline(float(values.mean()), color=colour, lw=1, ls=style)
    axis.set(xlabel="largest predicted probability", ylabel="images (%)", xlim=(0, 1))
    legend_below(figure, axis)
    return figure


def class_accuracy(names, counts, mixer: str, most: int = 40):
    """Accuracy of every class, the hardest on top, and of all images as a line.

    Args:
        names, counts: of :func:`rmlib.study.report.classes.matrix`; mixer: the colour.
        most: classes that are shown, the hardest.
    """
    kept = [place for place in range(len(names)) if counts[place].sum()]
    percent = 100 * np.diag(counts) / np.maximum(counts.sum(1), 1)
    order = sorted(kept, key=lambda place: -percent[place])[-most:]
    figure, axis = plt.subplots(figsize=(6, 0.7 + 0.22 * len(order)), layout="constrained")
    axis.hlines(range(len(order)), 0, percent[order], color=COLOURS[mixer], lw=2.5)
    axis.plot(percent[order], range(len(order)), "o", color=COLOURS[mixer], ms=7)
    whole = 100 * np.trace(counts) / counts.sum()
    axis.axvline(whole, color="black", lw=1, ls="--")
    axis.set_yticks(range(len(order)), [names[place] for place in order], fontsize=TEXT)
    for label in axis.get_yticklabels():
        label.set_parse_math(False)
    axis.axvline(100 / len(names), color=GREY, lw=1, ls=":")
    axis.set(xlabel=f"accuracy (%); dashed: all images, {whole:.1f}; dotted: chance", xlim=(0, 101))
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
        look: Any = {"color": "white" if shown[row, column] > 50 else "black", "fontsize": TEXT}
        axis.text(column, row, f"{shown[row, column]:.0f}", ha="center", va="center", **look)
    axis.set_xticks(range(len(order)), labels, rotation=90, fontsize=TEXT)
    axis.set_yticks(range(len(order)), labels, fontsize=TEXT)
    for label in (*axis.get_xticklabels(), *axis.get_yticklabels()):
        label.set_parse_math(False)
    axis.set(xlabel="named as (% of the row)", ylabel="class")
    of = f"{len(order)} of {len(names)} classes, those with the most mistakes"
    words = [title, of] if len(order) < len(names) else [title]
    titled(axis, "\n".join(fill(text, 40) for text in words if text), fontsize=TEXT)
    return figure


def schedules(curves: dict, chosen: str, colour: str):
    """Learning rates over a schedule: name -> rates of its steps; ``chosen`` is this run's."""
    figure, axis = plt.subplots(figsize=(6, 2.9), layout="constrained")
    for (name, rates), style in zip(curves.items(), ("-", "--", ":")):
        own = name == chosen
        shares = [step / len(rates) for step in range(len(rates))]
        label = f"{name} (this run)" if own else name
        axis.plot(shares, rates, style, color=colour if own else GREY, label=label)
    axis.set(xlabel="share of the schedule", ylabel="learning rate")
    legend_below(figure, axis)
    return figure
