"""Figures of 03_robustness: accuracy under attacks and corruptions."""

from fractions import Fraction

import matplotlib.pyplot as plt
import torch

from rmlib.study.figures.style import (
    COLOURS,
    dots_and_interval,
    networks_and_mean,
    panels,
    show_image,
)
from rmlib.study.report.stats import interval


def accuracy_against_eps(curves: dict, stronger: dict):
    """Accuracy after two attacks over eps, on an axis that doubles from 1/255 on.

    Args:
        curves: (mixer, name of the method) -> list over networks of {eps as text: accuracy in
            percent}; thin lines, the mean bold.
        stronger: the same of a stronger attack, dashed.
    """
    figure, axis = plt.subplots(figsize=(6.2, 3.4))
    ticks = set()
    for number, ((mixer, name), networks) in enumerate(curves.items()):
        look = {"colour": COLOURS[mixer], "marker": "osD^vP*X"[number % 8], "ms": 4}
        label = f"{name} (n = {len(networks)})"
        for several, style, words in ((networks, "-", label), (stronger[mixer, name], "--", None)):
            sizes = [255 * float(Fraction(eps)) for eps in several[0]]
            ticks |= set(sizes)
            values = [list(network.values()) for network in several]
            networks_and_mean(axis, sizes, values, thin=style, ls=style, label=words, **look)
    axis.set_xscale("symlog", base=2, linthresh=1)
    axis.set(xlabel="eps (in 255ths of the pixel range)", ylabel="accuracy (%)")
    axis.set(ylim=(0, 100), xlim=(0, max(ticks) * 1.1 + 0.1))
    axis.set_xticks(sorted(ticks), [f"{tick:g}" for tick in sorted(ticks)])
    axis.minorticks_off()
    axis.legend(frameon=False, fontsize=8)
    figure.tight_layout()
    return figure


def accuracy_over(steps, curves: dict, label: str):
    """Accuracy of several methods over something that grows, such as queries or severities.

    Args:
        steps: the values on the axis.
        curves: (mixer, name of the method) -> list over networks of accuracies in percent, one for
            each step; thin lines, the mean bold.
        label: of the axis.
    """
    figure, axis = plt.subplots(figsize=(5.6, 3.0))
    for ((mixer, name), networks), style in zip(curves.items(), ["-", "--", "-.", ":"] * 2):
        words = f"{name} (n = {len(networks)})"
        networks_and_mean(axis, steps, networks, COLOURS[mixer], ls=style, lw=2, label=words)
    axis.set(xlabel=label, ylabel="accuracy (%)", ylim=(0, 100), xlim=(min(steps), max(steps)))
    axis.legend(frameon=False, fontsize=8)
    figure.tight_layout()
    return figure


def intervals(groups: dict):
    """Networks as dots, and the mean of each method with its 95 % interval over seeds as a bar.

    Args:
        groups: title -> {(mixer, name of the method): accuracies in percent, one per network}; the
            interval is Student's t, and one network has none.
    """
    count = len(groups)
    figure, axes = panels(count, count, 2.5, 2.8, margin=0.6, sharey=True)
    for axis, (title, methods) in zip(axes[0], groups.items()):
        for place, ((mixer, _), values) in enumerate(methods.items()):
            look = {"colour": COLOURS[mixer], "size": 5}
            dots_and_interval(axis, (place, place + 0.2), values, *interval(values), **look)
        axis.set(xticks=range(len(methods)), xlim=(-0.5, len(methods) - 0.3))
        axis.set_xticklabels([name.replace(" ", "\n", 1) for _, name in methods], fontsize=7)
        axis.set_title(title, fontsize=8)
    axes[0][0].set(ylabel="accuracy (%)", ylim=(0, 100))
    figure.tight_layout()
    return figure


def perturbations(images, adversarial, before, after, eps: float):
    """Images, what an attack added to them (grey is nothing, the scale is +-eps), and the results.

    Args:
        images, adversarial: (N, 3, H, W) float in [0, 1].
        before, after: titles of the images and of the attacked ones.
    """
    added = torch.full_like(images, 0.5)
    if eps:
        added = (adversarial - images) / (2 * eps) + 0.5
    figure, axes = plt.subplots(3, len(images), figsize=(1.25 * len(images), 4.7), squeeze=False)
    for i, column in enumerate(axes.T):
        show_image(column[0], images[i], before[i])
        show_image(column[1], added[i])
        show_image(column[2], adversarial[i], after[i])
    for axis, name in zip(axes[:, 0], ("image", "perturbation", "attacked")):
        axis.set_ylabel(name, fontsize=9)
    figure.tight_layout(pad=0.4)
    return figure
