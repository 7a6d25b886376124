"""Figures of 03_robustness: accuracy under attacks and corruptions."""

from fractions import Fraction

import matplotlib.pyplot as plt

from rmlib.study.figures.style import (
    COLOURS,
    GREY,
    TEXT,
    chance_line,
    dots_and_interval,
    legend_below,
    networks_and_mean,
    panels,
    rows_of_methods,
    show_image,
)
from rmlib.study.report.stats import interval


def accuracy_against_eps(curves: dict, stronger: dict, chance: float):
    """Accuracy after two attacks over eps, on an axis that doubles from 1/255 on.

    Args:
        curves: (mixer, name of the method) -> list over networks of {eps as text: accuracy in
            percent}; thin lines, the mean bold.
        stronger: the same of a stronger attack, dashed.
        chance: accuracy in percent of a network that guesses.
    """
    figure, axis = plt.subplots(figsize=(6.6, 4.2), layout="constrained")
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
    chance_line(axis, chance)
    legend_below(figure, axis)
    return figure


def accuracy_over(steps, curves: dict, label: str, chance: float):
    """Accuracy of several methods over something that grows, such as queries or severities.

    Args:
        steps: the values on the axis.
        curves: (mixer, name of the method) -> list over networks of accuracies in percent, one for
            each step; thin lines, the mean bold.
        label: of the axis.
        chance: accuracy in percent of a network that guesses.
    """
    figure, axis = plt.subplots(figsize=(6.2, 3.8), layout="constrained")
    looks = zip(["-", "--", "-.", ":"] * 2, "osD^vP*X")
    every = max(1, len(steps) // 10)
    for ((mixer, name), networks), (style, marker) in zip(curves.items(), looks):
        look = {"ls": style, "lw": 1.8, "marker": marker, "ms": 4, "markevery": every}
        look["label"] = f"{name} (n = {len(networks)})"
        networks_and_mean(axis, steps, networks, COLOURS[mixer], **look)
    axis.set(xlabel=label, ylabel="accuracy (%)", ylim=(0, 100))
    chance_line(axis, chance)
    legend_below(figure, axis)
    return figure


def intervals(groups: dict, chance: float):
    """Networks as dots, and the mean of each method with its 95 % interval over seeds as a bar.

    Args:
        groups: title -> {(mixer, name of the method): accuracies in percent, one per network}; the
            interval is Student's t, and one network has none.
        chance: accuracy in percent of a network that guesses, a dotted line.
    """
    count, rows = len(groups), list(dict.fromkeys(each for own in groups.values() for each in own))
    figure, axes = panels(count, count, 2.1, 0.9 + 0.34 * len(rows), margin=1.2, sharey=True)
    for axis, (title, methods) in zip(axes[0], groups.items()):
        for method, values in methods.items():
            colour = COLOURS[method[0]]
            dots_and_interval(axis, rows.index(method), values, *interval(values), colour)
        axis.set_title(title, fontsize=TEXT)
        axis.set(xlabel="accuracy (%)", xlim=(0, 100))
        axis.axvline(chance, color=GREY, lw=1, ls=":")
    rows_of_methods(axes, rows)
    return figure


def perturbations(images, adversarial, before, after, eps: float):
    """Images, what an attack added to them (grey is nothing, the scale is +-eps > 0), and the
    results.

    Args:
        images, adversarial: (N, 3, H, W) float in [0, 1].
        before, after: titles of the images and of the attacked ones.
    """
    added = (adversarial - images) / (2 * eps) + 0.5
    figure, axes = plt.subplots(3, len(images), figsize=(1.35 * len(images), 5.0), squeeze=False)
    for i, column in enumerate(axes.T):
        show_image(column[0], images[i], before[i])
        show_image(column[1], added[i])
        show_image(column[2], adversarial[i], after[i])
    for axis, name in zip(axes[:, 0], ("image", "perturbation", "attacked")):
        axis.set_ylabel(name, fontsize=TEXT)
    figure.tight_layout(pad=0.4)
    return figure
