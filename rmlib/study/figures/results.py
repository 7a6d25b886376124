"""Figures of 05_results: accuracies of runs, their curves, and differences with intervals."""

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.lines import Line2D

from rmlib.study.figures.style import COLOURS, panels, titled
from rmlib.study.names import LABELS, METHOD, method_name
from rmlib.study.report import paper

GREY = "#555555"


def seeds(groups: list):
    """Accuracy of every run, a dot for each, with the mean of each method as a bar.

    Args:
        groups: (title, DataFrame with columns mixer, clean loss ("with" or "without") and accuracy
            in percent) per experiment.
    """
    figure, axes = panels(len(groups), 3, 2.5, 2.5, margin=1.0)
    for axis, (title, table) in zip(axes.flat, groups):
        _seeds(axis, table)
        titled(axis, title.replace(", bfloat16", ",\nbfloat16"), fontsize=8)
    circle = Line2D([], [], marker="o", ls="", color=GREY, label="with the clean loss")
    square = Line2D([], [], marker="s", ls="", color=GREY, mfc="white", label="without")
    last = axes.flat[len(groups) - 1]
    last.legend(handles=[circle, square], frameon=False, fontsize=7, loc="best")
    figure.tight_layout()
    return figure


def _seeds(axis, table):
    """One panel of :func:`seeds`."""
    order = [mixer for mixer in COLOURS if mixer in set(table["mixer"])]
    for place, mixer in enumerate(order):
        own = table[table["mixer"] == mixer]
        colour = COLOURS[mixer]
        kinds = [kind for kind in ("with", "without") if kind in set(own["clean loss"])]
        for number, kind in enumerate(kinds):
            values = own.loc[own["clean loss"] == kind, "accuracy"]
            x = place + 0.36 * (number - (len(kinds) - 1) / 2)
            marker, filled = ("o", colour) if kind == "with" else ("s", "white")
            axis.plot([x] * len(values), values, marker, color=colour, mfc=filled, ms=5)
            axis.plot([x - 0.13, x + 0.13], [values.mean()] * 2, color=colour, lw=2)
    axis.set(xticks=range(len(order)), xlim=(-0.5, len(order) - 0.5), ylabel="test accuracy (%)")
    axis.set_xticklabels([LABELS[mixer].replace(" ", "\n") for mixer in order], fontsize=8)


def _forest(axis, table, title: str):
    """One panel of a forest plot; see :func:`forest`. An interval of NaN draws nothing."""
    for place, row in enumerate(reversed(table.to_dict("records"))):
        colour = COLOURS[row["of"]]
        paired = [row.get("paired_low"), row.get("paired_high")]
        filled = colour if row["state"] == "resolved" else "white"
        axis.plot([row["low"], row["high"]], [place, place], color=colour, lw=2.2)
        axis.plot(paired, [place - 0.27] * 2, color=colour, lw=1, alpha=0.6)
        axis.plot(row["points"], place, "o", color=colour, mfc=filled, ms=6, mew=1.5)
        if row.get("p") is not None:
            words = f"p = {row['p']:.2g}" if row["p"] == row["p"] else "no p"
            beside = axis.get_yaxis_transform()
            axis.text(1.01, place, words, transform=beside, fontsize=7, va="center")
    axis.axvline(0, color="#888888", lw=1, ls="--", zorder=0)
    axis.set(ylim=(-0.7, len(table) - 0.4))
    axis.set_yticks(range(len(table)), list(table["difference"])[::-1], fontsize=7.5)
    title += "" if table["low"].notna().any() else " (one run each)"
    titled(axis, title, fontsize=8.5, loc="left")
    axis.tick_params(axis="x", labelsize=7.5)


def forest(groups: list):
    """Differences with their 95 % intervals, a panel with a scale for every experiment.

    Args:
        groups: list of (title, table) as of ``report.differences``, with columns difference (text),
            of (mixer, the colour), points, low, high, state: what is not "resolved" is hollow.
            Columns paired_low and paired_high make a thin line; p is written next to its row.
    """
    heights = [len(table) + 1.2 for _, table in groups]
    size = (6.2, 0.5 + 0.25 * sum(heights))
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
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False, fontsize=7.5)
    return figure


def told_twice(curves: dict, groups: list):
    """Left: curves with their last epoch (a square) and their best (a triangle).

    Right: the differences of the same runs at the one and at the other.

    Args:
        curves: (mixer, name) -> test accuracies in percent over the epochs of one run.
        groups: as for :func:`forest`.
    """
    heights = [len(table) + 1.5 for _, table in groups]
    figure = plt.figure(figsize=(7.6, 0.5 + 0.3 * sum(heights)), layout="constrained")
    grid = figure.add_gridspec(len(groups), 2, width_ratios=(1, 1.25), height_ratios=heights)
    left = figure.add_subplot(grid[:, 0])
    for (mixer, name), curve in curves.items():
        colour = COLOURS[mixer]
        left.plot(range(1, len(curve) + 1), curve, color=colour, lw=1, label=name)
        for epoch, marker in ((len(curve) - 1, "s"), (int(np.argmax(curve)), "^")):
            left.plot(epoch + 1, curve[epoch], marker, color=colour, mec="black", ms=8, ls="")
    left.set(xlabel="epoch", ylabel="test accuracy (%)")
    left.legend(frameon=False, fontsize=8, loc="lower left")
    for place, (title, table) in enumerate(groups):
        _forest(figure.add_subplot(grid[place, 1]), table, title)
    figure.axes[-1].set_xlabel("difference in accuracy (points), 95 % interval", fontsize=8)
    return figure


def curves_of_runs(groups: list, curves: dict):
    """Test accuracy over the epochs of every run, a thin line each, and the paper's numbers.

    Args:
        groups: list of (title, runs of one experiment).
        curves: run_id -> [(epoch, accuracy in percent)], see ``report.accuracy_curves``.
    """
    figure, axes = panels(len(groups), 2, 6.2, 2.8, layout="constrained")
    for axis, (title, group) in zip(axes.flat, groups):
        seen = set()
        for run in group.sort_values(["config.average", "config.mixer"]).to_dict("records"):
            mixer = run["config.mixer"]
            method = method_name({name: run[f"config.{name}"] for name in METHOD})
            style = "-" if run["config.clean_weight"] else "--"
            if run["config.average"]:
                style = ":"
            look = {"color": COLOURS[mixer], "marker": "osD^vP*X"[list(COLOURS).index(mixer) % 8]}
            label = None if method in seen else method
            points = curves[run["run_id"]] or [(np.nan, np.nan)]
            axis.plot(*zip(*points), style, lw=1, ms=3, markevery=[-1], label=label, **look)
            seen.add(method)
        _papers_numbers(axis, group, [y for id in group["run_id"] for _, y in curves[id]])
        axis.set(xlabel="epoch", ylabel="test accuracy (%)")
        titled(axis, title, fontsize=9)
        axis.legend(frameon=False, fontsize=7.5, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def _papers_numbers(axis, group, values):
    """Lines at the paper's accuracies, where they lie near enough to be seen on the same axis."""
    reported: Any = paper.ACCURACY.get(group["config.dataset"].iloc[0], {})
    means = {mixer: mean for mixer, (mean, _) in reported.items()}
    if not means or min(means.values()) - max(values) > max(values) - min(values):
        return
    for mixer, mean in means.items():
        axis.axhline(mean, color=COLOURS[mixer], lw=0.8)
    words = "paper: " + ", ".join(f"{LABELS[mixer]} {mean:g}" for mixer, mean in means.items())
    if not len(paper.under_protocol(group)):
        words += "\n(another experiment: width 64, 400 epochs, all images)"
    place, below = (0.01, min(means.values())), {"xytext": (0, -3), "textcoords": "offset points"}
    axis.annotate(words, place, xycoords=("axes fraction", "data"), va="top", fontsize=7.5, **below)
