"""What all figures share: one colour per method, and the pieces that they are made of."""

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns

# Colour-blind safe, and of different lightness, so that the order survives a grey print.
COLOURS = {"none": "#4d4d4d", "mixup": "#e69f00", "cutmix": "#56b4e9", "region_mixup": "#b2182b"}


def use_style():
    """The look of all figures; call it once per notebook."""
    options = {"figure.dpi": 90, "savefig.bbox": "tight"}
    options |= {"axes.spines.top": False, "axes.spines.right": False}
    sns.set_theme(context="notebook", style="ticks", font_scale=0.85, rc=options)


def panels(count: int, columns: int, width: float, height: float, **options):
    """A figure of ``count`` panels in rows of at most ``columns``; the places left over are empty.

    Args:
        width, height: of one panel in inches; options: of plt.subplots, and ``margin``, inches.
    """
    columns = min(columns, count)
    rows = -(-count // columns)
    size = (options.pop("margin", 0) + width * columns, height * rows)
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, **options)
    for axis in axes.flat[count:]:
        axis.axis("off")
    return figure, axes


def titled(axis, text: str, **look):
    """A title with names of classes or folders, in which a dollar sign begins no formula."""
    axis.set_title(text, parse_math=False, **look)


def show_image(axis, image, title=""):
    """One image (C, H, W) in [0, 1] on an axis without ticks."""
    axis.imshow(image.permute(1, 2, 0).float().clamp(0, 1).numpy())
    titled(axis, title, fontsize=8)
    axis.set(xticks=[], yticks=[])
    sns.despine(ax=axis, left=True, bottom=True)


def show_map(axis, image, grid, title=""):
    """A map (H, W) in [0, 1] over a grey image (3, H, W): blue is 0, red 1."""
    show_image(axis, image.mean(0, keepdim=True).expand(3, -1, -1), title)
    axis.imshow(grid, cmap="turbo", vmin=0, vmax=1, alpha=0.5)


def histogram(axis, values, bins: int, stat: str, **look):
    """The outline of a histogram of values in [0, 1]."""
    edges = np.linspace(0, 1, bins + 1)
    values = np.asarray(values)
    sns.histplot(x=values, bins=edges, stat=stat, element="step", fill=False, ax=axis, **look)


def networks_and_mean(axis, steps, networks, colour, thin="-", **bold):
    """A thin curve for each network, where there are several, and their mean."""
    for values in networks if len(networks) > 1 else ():
        axis.plot(steps, values, thin, color=colour, lw=0.8, alpha=0.4)
    axis.plot(steps, np.mean(networks, axis=0), color=colour, **bold)


def dots_and_interval(axis, places, values, low, high, **look):
    """Values as circles at ``places[0]``, their mean as a bar at ``places[1]``; NaN: no interval.

    Args:
        look: colour, and size of a circle in points.
    """
    colour, size = look["colour"], look["size"]
    mean = np.mean(values)
    error = None if np.isnan(low) else [[mean - low], [high - mean]]
    axis.plot([places[0]] * len(values), values, "o", color=colour, ms=size, mfc="white")
    axis.errorbar(places[1], mean, yerr=error, fmt="_", color=colour, lw=2, ms=2 * size)
