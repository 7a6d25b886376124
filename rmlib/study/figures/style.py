"""What all figures share: one colour per method, and the pieces that they are made of."""

import io

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns

# Steps of lightness (L* 13, 33, 46, 61) keep them apart in a grey print and for the colour-blind;
# the lightest still has a contrast of 3 on white, which a thin line needs.
COLOURS = {"none": "#222222", "region_mixup": "#9b1030", "cutmix": "#0072b2", "mixup": "#c98500"}
# of controls, chance and what belongs to no method
GREY = "#666666"
# of a map: its lightness grows evenly, with no dark end on top
MAP = "magma"
# the smallest text in points
TEXT = 9


def use_style():
    """The look of all figures; call it once per notebook."""
    options = {"figure.dpi": 90, "savefig.bbox": "tight"}
    options |= {"axes.spines.top": False, "axes.spines.right": False}
    sns.set_theme(context="notebook", style="ticks", font_scale=0.85, rc=options)


def show(figure, words: str):
    """Show a figure in a notebook at twice its resolution, with words for who does not see it.

    They are stored as the picture's ``alt``, from which Jupyter and the HTML pages take them.
    """
    from IPython.display import Image, display

    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=2 * figure.dpi)
    plt.close(figure)
    display(Image(file.getvalue(), retina=True, alt=" ".join(words.split())))


def panels(count: int, columns: int, width: float, height: float, margin=0.0, sharey=False):
    """A figure of ``count`` panels in rows of at most ``columns``; the places left over are empty.

    Args:
        width, height: of one panel in inches; margin: at the left of all.
    """
    columns = min(columns, count)
    rows = -(-count // columns)
    figure, axes = plt.subplots(rows, columns, squeeze=False, sharey=sharey, layout="constrained")
    figure.set_size_inches(margin + width * columns, height * rows)
    for axis in axes.flat[count:]:
        axis.axis("off")
    return figure, axes


def titled(axis, text: str, **look):
    """A title with names of classes or folders, in which a dollar sign begins no formula."""
    axis.set_title(text, parse_math=False, **look)


def show_image(axis, image, title=""):
    """One image (C, H, W) in [0, 1] on an axis without ticks."""
    axis.imshow(image.permute(1, 2, 0).float().clamp(0, 1).numpy())
    titled(axis, title, fontsize=TEXT)
    axis.set(xticks=[], yticks=[])
    sns.despine(ax=axis, left=True, bottom=True)


def show_map(axis, image, grid, title=""):
    """A map (H, W) in [0, 1] over a grey image (3, H, W); returns what a colour bar needs."""
    show_image(axis, image.mean(0, keepdim=True).expand(3, -1, -1), title)
    return axis.imshow(grid, cmap=MAP, vmin=0, vmax=1, alpha=0.6)


def chance_line(axis, chance: float):
    """A dotted line at the accuracy in percent of a network that guesses."""
    axis.axhline(chance, color=GREY, lw=1, ls=":", label="chance")


def legend_below(figure, axis, columns: int = 3):
    """The legend of an axis under its figure, where it hides nothing; needs layout constrained."""
    names = axis.get_legend_handles_labels()
    figure.legend(*names, loc="outside lower center", ncols=columns, frameon=False, fontsize=TEXT)


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


def dots_and_interval(axis, place, values, low, high, colour):
    """The values of row ``place`` as circles, below them their mean as a bar with its interval.

    Args:
        low, high: of the interval; NaN: none.
    """
    mean = np.mean(values)
    error = None if np.isnan(low) else [[mean - low], [high - mean]]
    axis.plot(values, [place - 0.12] * len(values), "o", color=colour, ms=5, mfc="white")
    axis.errorbar(mean, place + 0.14, xerr=error, fmt="|", color=colour, lw=2, ms=10)


def rows_of_methods(axes, methods: list):
    """Name the methods, (mixer, name) from the top, at the left of panels that share the height."""
    for axis in axes.flat:
        axis.set_yticks(range(len(methods)), [name for _, name in methods])
        axis.set_ylim(len(methods) - 0.4, -0.6)
        axis.tick_params(labelsize=TEXT)
