"""Figures of 04_cam: class activation maps, and measures of them."""

import itertools
import textwrap

import matplotlib.pyplot as plt

from rmlib.study.figures.style import COLOURS, dots_and_interval, panels, show_image, show_map


def cam_grid(images, titles, rows, masks=None):
    """Class activation maps over images: the images on top, then one row per network or layer.

    Args:
        images: (N, 3, H, W) float in [0, 1]; titles: N names.
        rows: list of (label, colour, (N, H, W) maps in [0, 1], N notes).
        masks: (N, H, W) bool of the objects; their outlines are drawn.
    """
    height, width = 1 + len(rows), len(images)
    figure, axes = plt.subplots(height, width, figsize=(1.25 * width, 1.4 * height), squeeze=False)
    for i, axis in enumerate(axes[0]):
        show_image(axis, images[i], titles[i])
    for line, (label, colour, grids, notes) in zip(axes[1:], rows):
        for i, axis in enumerate(line):
            show_map(axis, images[i], grids[i], notes[i])
        line[0].set_ylabel(label.replace(", ", ",\n"), fontsize=8, color=colour, fontweight="bold")
    if masks is not None:
        for line in axes:
            for mask, axis in zip(masks, line):
                axis.contour(mask.numpy(), [0.5], colors="white", linewidths=0.9)
    figure.tight_layout(pad=0.4)
    return figure


def grid_points(image, title, rows):
    """One image and its maps, each as computed and as a picture: how few numbers a map has.

    Args:
        image: (3, H, W) float in [0, 1]; title: its name.
        rows: list of (label, (h, w) map as computed, (H, W) map as a picture in [0, 1]).
    """
    columns = 1 + len(rows)
    figure, axes = plt.subplots(2, columns, figsize=(1.45 * columns, 3.1), squeeze=False)
    show_image(axes[0, 0], image, title)
    axes[1, 0].axis("off")
    for (label, small, picture), (above, below) in zip(rows, axes.T[1:]):
        above.imshow(small, cmap="turbo")
        above.set_title(f"{label}\n{small.shape[0]} x {small.shape[1]} grid points", fontsize=8)
        show_map(below, image, picture)
        above.set(xticks=[], yticks=[])
    figure.tight_layout(pad=0.4)
    return figure


def measures(groups: list):
    """Measures of maps: networks as circles, the mean with its 95 % interval as a bar.

    Args:
        groups: list of (title, {(mixer, name of the method): (means of the networks, low, high,
            control)}); all but the means may be NaN, and the control is a grey dash.
    """
    figure, axes = panels(len(groups), 4, 2.25, 2.5)
    for axis, (title, methods) in zip(axes.flat, groups):
        for place, ((mixer, _), (networks, low, high, control)) in enumerate(methods.items()):
            ends = [place - 0.3, place + 0.3]
            places = (place - 0.12, place + 0.12)
            axis.plot(ends, [control] * 2, color="#888888", lw=1.2, ls=(0, (3, 1.5)))
            dots_and_interval(axis, places, networks, low, high, colour=COLOURS[mixer], size=4)
        names = [name.replace("_", " ") for _, name in methods]
        names = [textwrap.fill(name, 8, break_long_words=False) for name in names]
        axis.set(xticks=range(len(methods)), xlim=(-0.5, len(methods) - 0.5))
        axis.set_xticklabels(names, fontsize=6.5)
        axis.set_title(title, fontsize=8)
        axis.tick_params(axis="y", labelsize=7)
    figure.tight_layout(pad=0.5)
    return figure


def lines(groups: list, steps: list, label: str, values: str):
    """Curves of several methods over the same steps, in panels.

    Args:
        groups: list of (title, control or None, {(mixer, name of the method): values, one for each
            step}).
        steps: numbers, or words.
        label, values: of the axes.
    """
    words = isinstance(steps[0], str)
    places = range(len(steps)) if words else steps
    figure, axes = panels(len(groups), len(groups), 3.9, 2.9, sharey=True)
    for axis, (title, control, methods) in zip(axes[0], groups):
        looks = zip(itertools.cycle(["-", "--", "-.", ":"]), itertools.cycle("osD^vP*X"))
        for ((mixer, name), curve), (style, marker) in zip(methods.items(), looks):
            axis.plot(places, curve, style, marker=marker, ms=3, color=COLOURS[mixer], label=name)
        if control is not None and control == control:
            axis.axhline(control, color="#888888", lw=1, ls=":", label="another image's map")
        if words:
            axis.set_xticks(places, steps, fontsize=8, rotation=35, ha="right")
        axis.set(xlabel=label)
        axis.set_title(title, fontsize=9)
    axes[0][0].set_ylabel(values)
    axes[0][-1].legend(frameon=False, fontsize=7)
    figure.tight_layout()
    return figure


def mean_maps(columns: list, k: int):
    """The mean of many maps for each method, with the borders of a k x k grid; all in one scale.

    Args:
        columns: list of (name, colour, (H, W) mean map).
    """
    count = len(columns)
    figure, axes = panels(count, count, 1.9, 2.1, margin=0.6, layout="constrained")
    low = min(float(each.min()) for _, _, each in columns)
    high = max(float(each.max()) for _, _, each in columns)
    for axis, (name, colour, grid) in zip(axes[0], columns):
        shown = axis.imshow(grid, cmap="turbo", vmin=low, vmax=high)
        for tile in range(1, k):
            axis.axvline(tile * grid.shape[1] / k - 0.5, color="white", lw=0.8)
            axis.axhline(tile * grid.shape[0] / k - 0.5, color="white", lw=0.8)
        axis.set_title(name, fontsize=8, color=colour, fontweight="bold")
        axis.set(xticks=[], yticks=[])
    figure.colorbar(shown, ax=axes[0], shrink=0.8).ax.tick_params(labelsize=7)
    return figure
