"""Figures of 05_results and of reports: accuracies, and differences with their intervals."""

from textwrap import fill
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.lines import Line2D

from rmlib.study.figures.style import COLOURS, GREY, legend_below, titled
from rmlib.study.report.stats import interval

LINE = 60  # letters of a title beside long names


def _forest(axis, table, title: str):
    """One panel of a forest plot; see :func:`forest`. An interval of NaN draws nothing."""
    for place, row in enumerate(reversed(table.to_dict("records"))):
        colour = COLOURS[row["of"]]
        paired = [row.get("paired_low"), row.get("paired_high")]
        filled = colour if row["state"] == "resolved" else "white"
        axis.plot([row["low"], row["high"]], [place, place], color=colour, lw=2.2)
        axis.plot(paired, [place - 0.27] * 2, color=colour, lw=1, alpha=0.6)
        axis.plot(row["points"], place, "o", color=colour, mfc=filled, ms=6, mew=1.5)
    axis.axvline(0, color=GREY, lw=1, ls="--", zorder=0)
    axis.set(ylim=(-0.7, len(table) - 0.4))
    axis.set_yticks(range(len(table)), list(table["difference"])[::-1], fontsize=9)
    title += "" if table["low"].notna().any() else " (one run each)"
    titled(axis, fill(title, LINE), fontsize=9, loc="left")
    axis.tick_params(axis="x", labelsize=9)


def forest(groups: list):
    """Differences with their 95 % intervals, a panel with a scale for every experiment.

    Args:
        groups: list of (title, table) as of ``report.differences``, with columns difference (text),
            of (mixer, the colour), points, low, high, state: what is not "resolved" is hollow.
            Columns paired_low and paired_high make a thin line.
    """
    heights = [len(table) + 1.2 for _, table in groups]
    size = (6.6, 1 + 0.28 * sum(heights))
    look: Any = {"height_ratios": heights, "layout": "constrained", "squeeze": False}
    figure, axes = plt.subplots(len(groups), 1, figsize=size, **look)
    for axis, (title, table) in zip(axes[:, 0], groups):
        _forest(axis, table, title)
    axes[-1, 0].set_xlabel("difference in accuracy (points)", fontsize=9)
    handles = [
        Line2D([], [], color=GREY, lw=2.2, label="95 % interval, Welch"),
        Line2D([], [], color=GREY, lw=1, alpha=0.6, label="paired by seed"),
        Line2D([], [], marker="o", ls="", color=GREY, label="resolved"),
        Line2D([], [], marker="o", ls="", color=GREY, mfc="white", label="unresolved"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    return figure


def methods(groups: list):
    """Accuracy of every run as a dot, with each method's mean and 95 % interval, best on top.

    Args:
        groups: (title, methods as of :func:`rmlib.study.report.answer.methods`) per experiment.
    """
    heights = [len(found) + 1.2 for _, found in groups]
    look: Any = {"height_ratios": heights, "layout": "constrained", "squeeze": False}
    figure, axes = plt.subplots(len(groups), 1, figsize=(7, 0.5 + 0.28 * sum(heights)), **look)
    for axis, (title, found) in zip(axes[:, 0], groups):
        for place, method in enumerate(reversed(found)):
            low, high = interval(method.accuracies)
            axis.plot([low, high], [place] * 2, color=COLOURS[method.mixer], lw=2.2)
            dots = [place] * len(method.accuracies)
            axis.plot(method.accuracies, dots, "o", color=COLOURS[method.mixer], mfc="white", ms=5)
            axis.plot(method.mean, place, "|", color=COLOURS[method.mixer], ms=14, mew=2.5)
        names = [f"{method.name} (n = {len(method.accuracies)})" for method in found]
        axis.set_yticks(range(len(found)), names[::-1], fontsize=9)
        axis.set(ylim=(-0.6, len(found) - 0.4))
        titled(axis, fill(title, LINE), fontsize=9, loc="left")
        axis.tick_params(axis="x", labelsize=9)
    axes[-1, 0].set_xlabel("accuracy (%)", fontsize=9)
    return figure


def against_softness(found: list):
    """Accuracy, NLL and ECE of every run over the softness of the targets, each with the mean of
    its method and its 95 % interval over seeds (Student's t). Methods of equal softness stand side
    by side.

    Args:
        found: (mixer, name, standard deviation of the original's weight, metric -> values); a
            method without values stands in the legend alone.
    """
    words = {"accuracy": "accuracy (%)", "nll": "NLL (nats)", "ece": "ECE (%)"}
    figure, axes = plt.subplots(1, 3, figsize=(8.6, 3.4), layout="constrained")
    for axis, (metric, label) in zip(axes, words.items()):
        for number, (mixer, name, deviation, values) in enumerate(found):
            # beside each other where targets are equally soft
            alike = sum(abs(other[2] - deviation) < 1e-9 for other in found[:number])
            place = deviation + 0.02 * alike
            look = {"color": COLOURS[mixer], "marker": "osD^vP*"[number % 7]}
            several = values[metric]
            count = f"n = {len(several)}" if several else "not run yet"
            axis.plot([], [], ls="", label=f"{name} ({count})", **look)
            if several:
                axis.plot([place] * len(several), several, ls="", mfc="white", ms=4, **look)
                axis.plot([place + 0.008] * 2, interval(several), color=COLOURS[mixer], lw=1.5)
                axis.plot(place + 0.008, np.mean(several), ms=7, **look)
        axis.set(ylabel=label, xlim=(0.05, 0.34))
    axes[1].set_xlabel("standard deviation of the original's weight (left: nearer to its mean)")
    legend_below(figure, axes[0])
    return figure
