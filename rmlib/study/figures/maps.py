"""Figures of 04_cam: class activation maps, and measures of them."""

import itertools
import textwrap

from rmlib.study.figures.style import (
    COLOURS,
    GREY,
    MAP,
    TEXT,
    dots_and_interval,
    legend_below,
    panels,
    rows_of_methods,
    show_image,
    show_map,
)


def cam_grid(images, titles, rows, masks=None):
    """Class activation maps over images: the images on top, then one row per network or layer.

    Args:
        images: (N, 3, H, W) float in [0, 1]; titles: N names.
        rows: list of (label, colour, (N, H, W) maps in [0, 1], N notes).
        masks: (N, H, W) bool of the objects; their outlines are drawn.
    """
    width = len(images)
    figure, axes = panels(width * (1 + len(rows)), width, 1.3, 1.45, margin=0.8)
    for i, axis in enumerate(axes[0]):
        show_image(axis, images[i], titles[i])
    for line, (label, colour, grids, notes) in zip(axes[1:], rows):
        for i, axis in enumerate(line):
            shown = show_map(axis, images[i], grids[i], notes[i])
        look = {"fontsize": TEXT, "color": colour, "fontweight": "bold"}
        line[0].set_ylabel(textwrap.fill(label, 16), **look)
    if masks is not None:
        for line in axes:
            for mask, axis in zip(masks, line):
                axis.contour(mask.numpy(), [0.5], colors="white", linewidths=0.9)
    _bar(figure, shown, axes[1:], "part of the map's largest value", aspect=30)
    return figure


def _bar(figure, shown, axes, words, aspect=20):
    """The scale of maps at the right of them."""
    bar = figure.colorbar(shown, ax=axes, shrink=0.8, aspect=aspect)
    bar.set_label(words, fontsize=TEXT)
    bar.ax.tick_params(labelsize=TEXT)


def grid_points(image, title, rows):
    """One image and its maps, each as computed and as a picture: how few numbers a map has.

    Args:
        image: (3, H, W) float in [0, 1]; title: its name.
        rows: list of (label, (h, w) map as computed, (H, W) map as a picture in [0, 1]).
    """
    columns = 1 + len(rows)
    figure, axes = panels(2 * columns, columns, 1.5, 1.8, margin=0.8)
    show_image(axes[0, 0], image, title)
    axes[1, 0].axis("off")
    for (label, small, picture), (above, below) in zip(rows, axes.T[1:]):
        above.imshow(small / small.max().clamp(min=1e-12), cmap=MAP, vmin=0, vmax=1)
        title = f"{label}\n{small.shape[0]} x {small.shape[1]} grid points"
        above.set_title(title.replace(", ", ",\n"), fontsize=TEXT)
        shown = show_map(below, image, picture)
        above.set(xticks=[], yticks=[])
    _bar(figure, shown, axes, "part of the map's largest value", aspect=30)
    return figure


def measures(groups: list):
    """Measures of maps: networks as circles, the mean with its 95 % interval as a bar.

    Args:
        groups: list of (title, {(mixer, name of the method): (means of the networks, low, high,
            control)}); all but the means may be NaN, and the control is a grey dash.
    """
    methods = list(groups[0][1])
    height = 0.7 + 0.34 * len(methods)
    figure, axes = panels(len(groups), 4, 1.75, height, margin=1.2, sharey=True)
    for axis, (title, found) in zip(axes.flat, groups):
        for place, ((mixer, _), (networks, low, high, control)) in enumerate(found.items()):
            axis.plot([control] * 2, [place - 0.35, place + 0.35], color=GREY, lw=1.5, ls="--")
            dots_and_interval(axis, place, networks, low, high, COLOURS[mixer])
        axis.set_title(textwrap.fill(title, 20), fontsize=TEXT)
    rows_of_methods(axes, methods)
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
    figure, axes = panels(len(groups), len(groups), 3.9, 3.5, sharey=True)
    for axis, (title, control, methods) in zip(axes[0], groups):
        looks = zip(itertools.cycle(["-", "--", "-.", ":"]), itertools.cycle("osD^vP*X"))
        for ((mixer, name), curve), (style, marker) in zip(methods.items(), looks):
            axis.plot(places, curve, style, marker=marker, ms=4, color=COLOURS[mixer], label=name)
        if control is not None and control == control:
            axis.axhline(control, color=GREY, lw=1.5, ls=":", label="another image's map")
        if words:
            axis.set_xticks(places, steps, fontsize=TEXT, rotation=35, ha="right")
        axis.set(xlabel=label)
        axis.set_title(title, fontsize=TEXT + 1)
    axes[0][0].set_ylabel(values)
    legend_below(figure, axes[0][-1])
    return figure


def mean_maps(columns: list, k: int):
    """The mean of many maps for each method, with the borders of a k x k grid; all in one scale.

    Args:
        columns: list of (name, colour, (H, W) mean map).
    """
    count = len(columns)
    figure, axes = panels(count, count, 1.75, 2.1, margin=0.6)
    low = min(float(each.min()) for _, _, each in columns)
    high = max(float(each.max()) for _, _, each in columns)
    for axis, (name, colour, grid) in zip(axes[0], columns):
        shown = axis.imshow(grid, cmap=MAP, vmin=low, vmax=high)
        for tile in range(1, k):
            axis.axvline(tile * grid.shape[1] / k - 0.5, color="white", lw=0.8)
            axis.axhline(tile * grid.shape[0] / k - 0.5, color="white", lw=0.8)
        axis.set_title(name, fontsize=TEXT, color=colour, fontweight="bold")
        axis.set(xticks=[], yticks=[])
    _bar(figure, shown, axes, "mean map")
    return figure
