"""Every figure of the study, one colour per method everywhere. Functions draw and return a figure;
the notebook shows it.
"""

import itertools
import textwrap
from fractions import Fraction

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
import torch

from rmlib import UserError
from rmlib.data import load, stream, to_float
from rmlib.mixers import CutMix, Mixup, Plan, RegionMixup
from rmlib.study.names import LABELS, METHOD, method_name
from rmlib.study.report import paper
from rmlib.study.report.stats import interval

# Colour-blind safe, and of different lightness, so that the order survives a grey print.
COLOURS = {"none": "#4d4d4d", "mixup": "#e69f00", "cutmix": "#56b4e9", "region_mixup": "#b2182b"}


def use_style():
    """The look of all figures; call it once per notebook."""
    sns.set_theme(
        context="notebook",
        style="ticks",
        font_scale=0.85,
        rc={
            "figure.dpi": 90,
            "savefig.bbox": "tight",
            "axes.spines.top": False,
            "axes.spines.right": False,
        },
    )


def _as_picture(image):
    """(C, H, W) in [0, 1] as (H, W, C) for imshow."""
    return image.permute(1, 2, 0).float().clamp(0, 1).numpy()


def show_image(axis, image, title=""):
    """One image (C, H, W) in [0, 1] on an axis without ticks."""
    axis.imshow(_as_picture(image))
    axis.set_title(title, fontsize=8)
    axis.set(xticks=[], yticks=[])
    sns.despine(ax=axis, left=True, bottom=True)


def target_text(target, classes, least=0.005) -> str:
    """A soft target (num_classes,) in words: '0.62 ring + 0.38 star', largest first."""
    order = np.argsort(-np.asarray(target))
    return "\n".join(f"{float(target[i]):.2f} {classes[i]}" for i in order if target[i] > least)


def draw_tiles(axis, plan: Plan, numbers=False):
    """Outline the tiles of a plan on an image axis, with the weight of the original in each if
    asked.
    """
    for (x1, y1, x2, y2), lam in zip(plan.boxes.tolist(), plan.lam[:, 0].tolist()):
        axis.add_patch(
            plt.Rectangle((x1 - 0.5, y1 - 0.5), x2 - x1, y2 - y1, fill=False, lw=1, ec="white")
        )
        if numbers:
            axis.text(
                (x1 + x2 - 1) / 2,
                (y1 + y2 - 1) / 2,
                f"{lam:.2f}",
                ha="center",
                va="center",
                fontsize=8,
                color="white" if lam < 0.6 else "black",
            )


def mixing_table(images, labels, classes, plans: dict, mixers: dict, row=0):
    """One image under every mixer: W, the partner in each tile, the mixed image and its soft
    target.

    Args:
        images: (N, 3, H, W) float in [0, 1]; labels: (N,); classes: their names.
        plans, mixers: name -> Plan, name -> Mixer, same names as COLOURS.
        row: which image of the batch is followed.
    """
    figure, axes = plt.subplots(len(plans), 4, figsize=(6.4, 1.75 * len(plans)), squeeze=False)
    for line, (name, plan) in zip(axes, plans.items()):
        mixed, targets = mixers[name].apply(images, labels, plan)
        weights = plan.weight_map()[row if plan.lam.shape[1] > 1 else 0]
        partner = images.new_ones(images.shape[1:])
        for (x1, y1, x2, y2), index in zip(plan.boxes.tolist(), plan.partners[:, row].tolist()):
            partner[:, y1:y2, x1:x2] = images[index][:, y1:y2, x1:x2]
        show_image(line[0], images[row], f"image: {classes[labels[row]]}")
        line[1].imshow(weights, cmap="gray", vmin=0, vmax=1)
        line[1].set(xticks=[], yticks=[])
        line[1].spines[:].set(visible=True, color="#bbbbbb", linewidth=0.8)
        line[1].set_title("W: weight of the image", fontsize=8)
        draw_tiles(line[1], plan, numbers=True)
        show_image(line[2], partner, "partners")
        draw_tiles(line[2], plan)
        show_image(line[3], mixed[row], "mixed")
        line[3].text(
            1.06,
            0.5,
            target_text(targets[row], classes),
            transform=line[3].transAxes,
            fontsize=8,
            va="center",
        )
        line[0].set_ylabel(LABELS[name], fontsize=9, color=COLOURS[name], fontweight="bold")
    figure.tight_layout(pad=0.6)
    return figure


def clear_plan(mixer, shape, seed: int, row: int = 0) -> Plan:
    """The first plan of a seed that is good to look at.

    Image ``row`` meets only other images, as many different ones as it can, and keeps 40 to 80 % of
    its label.
    """
    for number in range(2000):
        plan = mixer.draw(shape, generator=stream(seed, repr(mixer), number))
        partners, permutations = (
            set(plan.partners[:, row].tolist()),
            len(set(map(tuple, plan.partners.tolist()))),
        )
        various = row not in partners and len(partners) == min(permutations, shape[0] - 1)
        if various and 0.4 < plan.label_weights()[0, 0] < 0.8:
            return plan
    raise UserError(
        f"no plan of {mixer} shows image {row} with other images only: take another batch than"
        f" {shape[0]} images"
    )


def overview(seed: int = 0):
    """The picture of the README: one built-in image under Mixup, CutMix and Region Mixup."""
    data = load("shapes", split="test")
    batch = data[
        torch.tensor([int((data.labels == c).nonzero()[seed]) for c in range(len(data.classes))])
    ]
    images = to_float(batch.images)
    mixers = {"mixup": Mixup(10), "cutmix": CutMix(10), "region_mixup": RegionMixup(10)}
    star = batch.classes.index("star")
    plans = {name: clear_plan(mixer, images.shape, seed, star) for name, mixer in mixers.items()}
    return mixing_table(images, batch.labels, batch.classes, plans, mixers, row=star)


def batch_strip(images, titles=None, columns=8):
    """A row or more of images (N, 3, H, W) in [0, 1] with titles."""
    rows = -(-len(images) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(1.15 * columns, 1.45 * rows), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for i, (axis, image) in enumerate(zip(axes.flat, images)):
        show_image(axis, image, titles[i] if titles else "")
    figure.tight_layout(pad=0.4)
    return figure


def softness(weights: dict, title="weight of the original label"):
    """Histograms of the label weight of the original, one curve per mixer: name -> array of
    weights.
    """
    figure, axis = plt.subplots(figsize=(5.6, 2.8))
    styles = ["-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1))]
    palette = sns.color_palette("dark", len(weights))
    for (name, values), style, colour in zip(weights.items(), styles * 2, palette):
        sns.histplot(
            x=np.asarray(values),
            bins=np.linspace(0, 1, 26),
            stat="density",
            element="step",
            fill=False,
            ax=axis,
            label=name,
            linestyle=style,
            color=COLOURS.get(name, colour),
        )
    axis.set(xlabel=title, ylabel="density", xlim=(0, 1))
    axis.legend(frameon=False, fontsize=8)
    figure.tight_layout()
    return figure


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
    for (name, values), style, colour in zip(
        curves.items(), ("-", "--", ":"), ("#4d4d4d", "#b2182b", "#56b4e9")
    ):
        sns.histplot(
            x=np.asarray(values),
            bins=np.linspace(0, 1, 21),
            stat="percent",
            element="step",
            fill=False,
            ax=axis,
            label=name,
            linestyle=style,
            color=colour,
        )
    axis.set(xlabel="largest predicted probability", ylabel="images (%)", xlim=(0, 1))
    axis.legend(frameon=False, fontsize=8, loc="upper left")
    figure.tight_layout()
    return figure


def accuracy_against_eps(curves: dict, stronger: dict):
    """Accuracy after two attacks over the size of the perturbation, on an axis that doubles from
    1/255 on.

    Args:
        curves: (mixer, name of the method) -> list over networks of {eps as text: accuracy in
            percent}; thin lines, the mean bold.
        stronger: the same of a stronger attack, dashed.
    """
    figure, axis = plt.subplots(figsize=(6.2, 3.4))
    ticks = set()
    for number, ((mixer, name), networks) in enumerate(curves.items()):
        colour, marker = COLOURS[mixer], "osD^vP*X"[number % 8]
        for several, style, label in (
            (networks, "-", f"{name} (n = {len(networks)})"),
            (stronger[mixer, name], "--", None),
        ):
            sizes = [255 * float(Fraction(eps)) for eps in several[0]]
            ticks |= set(sizes)
            for network in several if len(several) > 1 else ():
                axis.plot(sizes, list(network.values()), style, color=colour, lw=0.8, alpha=0.4)
            axis.plot(
                sizes,
                np.mean([list(network.values()) for network in several], axis=0),
                style,
                marker=marker,
                color=colour,
                ms=4,
                label=label,
            )
    axis.set_xscale("symlog", base=2, linthresh=1)
    axis.set(
        xlabel="eps (in 255ths of the pixel range)",
        ylabel="accuracy (%)",
        ylim=(0, 100),
        xlim=(0, max(ticks) * 1.1 + 0.1),
    )
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
        for network in networks if len(networks) > 1 else ():
            axis.plot(steps, network, "-", color=COLOURS[mixer], lw=0.8, alpha=0.4)
        axis.plot(
            steps,
            np.mean(networks, axis=0),
            style,
            color=COLOURS[mixer],
            lw=2,
            label=f"{name} (n = {len(networks)})",
        )
    axis.set(xlabel=label, ylabel="accuracy (%)", ylim=(0, 100), xlim=(min(steps), max(steps)))
    axis.legend(frameon=False, fontsize=8)
    figure.tight_layout()
    return figure


def intervals(panels: dict):
    """Every network as a dot, and the mean of each method with its 95 % interval over seeds
    (Student's t) as a bar.

    Args:
        panels: title -> {(mixer, name of the method): accuracies in percent, one per network};
            methods without an interval show dots alone.
    """
    figure, axes = plt.subplots(
        1, len(panels), figsize=(0.6 + 2.5 * len(panels), 2.8), squeeze=False, sharey=True
    )
    for axis, (title, methods) in zip(axes[0], panels.items()):
        for place, ((mixer, _), values) in enumerate(methods.items()):
            low, high = interval(values)
            axis.plot([place] * len(values), values, "o", color=COLOURS[mixer], ms=5, mfc="white")
            axis.errorbar(
                place + 0.2,
                np.mean(values),
                yerr=None if low != low else [[np.mean(values) - low], [high - np.mean(values)]],
                fmt="_",
                color=COLOURS[mixer],
                lw=2,
                ms=10,
            )
        axis.set(xticks=range(len(methods)), xlim=(-0.5, len(methods) - 0.3))
        axis.set_xticklabels([name.replace(" ", "\n", 1) for _, name in methods], fontsize=7)
        axis.set_title(title, fontsize=8)
    axes[0][0].set(ylabel="accuracy (%)", ylim=(0, 100))
    figure.tight_layout()
    return figure


def perturbations(images, adversarial, before, after, eps: float):
    """Images, what an attack added to them (grey is nothing, the scale is +-eps) and the result, in
    three rows.

    Args:
        images, adversarial: (N, 3, H, W) float in [0, 1].
        before, after: titles of the images and of the attacked ones.
    """
    figure, axes = plt.subplots(3, len(images), figsize=(1.25 * len(images), 4.7), squeeze=False)
    for i, column in enumerate(axes.T):
        show_image(column[0], images[i], before[i])
        show_image(
            column[1],
            (
                (adversarial[i] - images[i]) / (2 * eps) + 0.5
                if eps
                else torch.full_like(images[i], 0.5)
            ),
        )
        show_image(column[2], adversarial[i], after[i])
    for axis, name in zip(axes[:, 0], ("image", "perturbation", "attacked")):
        axis.set_ylabel(name, fontsize=9)
    figure.tight_layout(pad=0.4)
    return figure


def cam_grid(images, titles, rows, masks=None):
    """Class activation maps over images: the images on top, then one row per network or layer.

    Args:
        images: (N, 3, H, W) float in [0, 1]; titles: N names.
        rows: list of (label, colour, (N, H, W) maps in [0, 1], N notes); maps are laid over the
            image, blue is 0, red 1.
        masks: (N, H, W) bool of the objects; their outlines are drawn.
    """
    figure, axes = plt.subplots(
        1 + len(rows),
        len(images),
        figsize=(1.25 * len(images), 1.4 * (1 + len(rows))),
        squeeze=False,
    )
    for i, axis in enumerate(axes[0]):
        show_image(axis, images[i], titles[i])
    for line, (label, colour, grids, notes) in zip(axes[1:], rows):
        for i, axis in enumerate(line):
            show_image(axis, images[i].mean(0, keepdim=True).expand(3, -1, -1), notes[i])
            axis.imshow(grids[i], cmap="turbo", vmin=0, vmax=1, alpha=0.5)
        line[0].set_ylabel(label.replace(", ", ",\n"), fontsize=8, color=colour, fontweight="bold")
    if masks is not None:
        for line in axes:
            for mask, axis in zip(masks, line):
                axis.contour(mask.numpy(), [0.5], colors="white", linewidths=0.9)
    figure.tight_layout(pad=0.4)
    return figure


def cells(image, title, rows):
    """One image beside its maps, each as its cells and laid over the image: how few numbers a
    smooth picture is made of.

    Args:
        image: (3, H, W) float in [0, 1]; title: its name.
        rows: list of (label, (h, w) map of the cells, (H, W) map as a picture in [0, 1]).
    """
    figure, axes = plt.subplots(
        2, 1 + len(rows), figsize=(1.45 * (1 + len(rows)), 3.1), squeeze=False
    )
    show_image(axes[0, 0], image, title)
    axes[1, 0].axis("off")
    for (label, small, picture), (above, below) in zip(rows, axes.T[1:]):
        above.imshow(small, cmap="turbo")
        above.set_title(f"{label}\n{small.shape[0]} x {small.shape[1]} cells", fontsize=8)
        show_image(below, image.mean(0, keepdim=True).expand(3, -1, -1))
        below.imshow(picture, cmap="turbo", vmin=0, vmax=1, alpha=0.5)
        above.set(xticks=[], yticks=[])
    figure.tight_layout(pad=0.4)
    return figure


def measures(panels: list):
    """Measures of maps: every network as a circle, the mean of each method with its 95 % interval
    as a bar, its control as a grey dash.

    Args:
        panels: list of (title, {(mixer, name of the method): (means of the networks, low, high,
            control)}); all but the means may be NaN.
    """
    columns = min(4, len(panels))
    rows = -(-len(panels) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(2.25 * columns, 2.5 * rows), squeeze=False)
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")
    for axis, (title, methods) in zip(axes.flat, panels):
        for place, ((mixer, _), (networks, low, high, control)) in enumerate(methods.items()):
            mean = np.mean(networks)
            axis.plot(
                [place - 0.3, place + 0.3], [control] * 2, color="#888888", lw=1.2, ls=(0, (3, 1.5))
            )
            axis.plot(
                [place - 0.12] * len(networks),
                networks,
                "o",
                color=COLOURS[mixer],
                ms=4,
                mfc="white",
            )
            axis.errorbar(
                place + 0.12,
                mean,
                yerr=None if low != low else [[mean - low], [high - mean]],
                fmt="_",
                color=COLOURS[mixer],
                lw=2,
                ms=8,
            )
        axis.set(xticks=range(len(methods)), xlim=(-0.5, len(methods) - 0.5))
        axis.set_xticklabels(
            [
                textwrap.fill(name.replace("_", " "), 8, break_long_words=False)
                for _, name in methods
            ],
            fontsize=6.5,
        )
        axis.set_title(title, fontsize=8)
        axis.tick_params(axis="y", labelsize=7)
    figure.tight_layout(pad=0.5)
    return figure


def lines(panels: list, steps: list, label: str, values: str):
    """Curves of several methods over the same steps, side by side.

    Args:
        panels: list of (title, control or None, {(mixer, name of the method): values, one for each
            step}).
        steps: numbers, or words.
        label, values: of the axes.
    """
    figure, axes = plt.subplots(
        1, len(panels), figsize=(3.9 * len(panels), 2.9), squeeze=False, sharey=True
    )
    places = range(len(steps)) if isinstance(steps[0], str) else steps
    for axis, (title, control, methods) in zip(axes[0], panels):
        for ((mixer, name), curve), style, marker in zip(
            methods.items(), itertools.cycle(["-", "--", "-.", ":"]), itertools.cycle("osD^vP*X")
        ):
            axis.plot(places, curve, style, marker=marker, ms=3, color=COLOURS[mixer], label=name)
        if control is not None and control == control:
            axis.axhline(control, color="#888888", lw=1, ls=":", label="another image's map")
        if isinstance(steps[0], str):
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
    figure, axes = plt.subplots(
        1,
        len(columns),
        figsize=(1.9 * len(columns) + 0.6, 2.1),
        squeeze=False,
        layout="constrained",
    )
    low, high = (
        min(float(each.min()) for _, _, each in columns),
        max(float(each.max()) for _, _, each in columns),
    )
    for axis, (name, colour, grid) in zip(axes[0], columns):
        shown = axis.imshow(grid, cmap="turbo", vmin=low, vmax=high)
        for tile in range(1, k):
            axis.axvline(tile * grid.shape[1] / k - 0.5, color="white", lw=0.8)
            axis.axhline(tile * grid.shape[0] / k - 0.5, color="white", lw=0.8)
        axis.set_title(name, fontsize=8, color=colour, fontweight="bold")
        axis.set(xticks=[], yticks=[])
    figure.colorbar(shown, ax=axes[0], shrink=0.8).ax.tick_params(labelsize=7)
    return figure


def seeds(groups: list):
    """Accuracy of every run, a dot for each, with the mean of each method as a bar.

    Args:
        groups: (title, DataFrame with columns mixer, clean loss ("with" or "without") and accuracy
            in percent) per experiment.
    """
    columns = min(3, len(groups))
    rows = -(-len(groups) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(1.0 + 2.5 * columns, 2.5 * rows), squeeze=False
    )
    for axis in axes.flat[len(groups) :]:
        axis.axis("off")
    for axis, (title, table) in zip(axes.flat, groups):
        order = [mixer for mixer in COLOURS if mixer in set(table["mixer"])]
        for place, mixer in enumerate(order):
            own = table[table["mixer"] == mixer]
            kinds = [kind for kind in ("with", "without") if kind in set(own["clean loss"])]
            for number, kind in enumerate(kinds):
                values = own.loc[own["clean loss"] == kind, "accuracy"]
                x = place + 0.36 * (number - (len(kinds) - 1) / 2)
                filled = COLOURS[mixer] if kind == "with" else "white"
                axis.plot(
                    [x] * len(values),
                    values,
                    "o" if kind == "with" else "s",
                    color=COLOURS[mixer],
                    mfc=filled,
                    ms=5,
                )
                axis.plot([x - 0.13, x + 0.13], [values.mean()] * 2, color=COLOURS[mixer], lw=2)
        axis.set(
            xticks=range(len(order)), xlim=(-0.5, len(order) - 0.5), ylabel="test accuracy (%)"
        )
        axis.set_xticklabels([LABELS[mixer].replace(" ", "\n") for mixer in order], fontsize=8)
        axis.set_title(title.replace(", bfloat16", ",\nbfloat16"), fontsize=8)
    handles = [
        plt.Line2D([], [], marker="o", ls="", color="#555555", label="with the clean loss"),
        plt.Line2D([], [], marker="s", ls="", color="#555555", mfc="white", label="without"),
    ]
    axes.flat[len(groups) - 1].legend(handles=handles, frameon=False, fontsize=7, loc="best")
    figure.tight_layout()
    return figure


def _forest(axis, table, title: str):
    """One panel of a forest plot; see :func:`forest`."""
    for place, row in enumerate(reversed(table.to_dict("records"))):
        colour = COLOURS[row["of"]]
        axis.plot(
            [row["low"], row["high"]], [place, place], color=colour, lw=2.2
        )  # NaN, where there is no interval, draws nothing
        axis.plot(
            [row.get("paired_low"), row.get("paired_high")],
            [place - 0.27] * 2,
            color=colour,
            lw=1,
            alpha=0.6,
        )
        axis.plot(
            row["points"],
            place,
            "o",
            color=colour,
            mfc=colour if row["state"] == "resolved" else "white",
            ms=6,
            mew=1.5,
        )
        if row.get("p") is not None:
            axis.text(
                1.01,
                place,
                f"p = {row['p']:.2g}" if row["p"] == row["p"] else "no p",
                transform=axis.get_yaxis_transform(),
                fontsize=7,
                va="center",
            )
    axis.axvline(0, color="#888888", lw=1, ls="--", zorder=0)
    axis.set(ylim=(-0.7, len(table) - 0.4))
    axis.set_yticks(range(len(table)), list(table["difference"])[::-1], fontsize=7.5)
    axis.set_title(
        title + ("" if table["low"].notna().any() else " (one run each)"), fontsize=8.5, loc="left"
    )
    axis.tick_params(axis="x", labelsize=7.5)


def forest(panels: list):
    """Differences with their 95 % intervals, a panel with its own scale for every experiment; what
    is unresolved is a hollow circle.

    Args:
        panels: list of (title, table) as of :func:`rmlib.study.report.report.differences`, with columns
            difference (text), of (mixer, the colour), points, low, high, state ("resolved" or not);
            paired_low and paired_high, where there are such columns, make a second, thinner line; p
            is written beside its row.
    """
    heights = [len(table) + 1.2 for _, table in panels]
    figure, axes = plt.subplots(
        len(panels),
        1,
        figsize=(6.2, 0.5 + 0.25 * sum(heights)),
        squeeze=False,
        height_ratios=heights,
        layout="constrained",
    )
    for axis, (title, table) in zip(axes[:, 0], panels):
        _forest(axis, table, title)
    axes[-1, 0].set_xlabel("difference in accuracy (points)", fontsize=9)
    grey = "#555555"
    handles = [
        plt.Line2D([], [], color=grey, lw=2.2, label="95 % interval, Welch"),
        plt.Line2D([], [], color=grey, lw=1, alpha=0.6, label="paired by seed"),
        plt.Line2D([], [], marker="o", ls="", color=grey, label="resolved"),
        plt.Line2D([], [], marker="o", ls="", color=grey, mfc="white", label="unresolved"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False, fontsize=7.5)
    return figure


def told_twice(curves: dict, panels: list):
    """Left: curves with their last epoch (a square) and their best (a triangle). Right: the
    differences of the same runs, told at the one and at the other.

    Args:
        curves: (mixer, name) -> test accuracies in percent over the epochs of one run.
        panels: as for :func:`forest`.
    """
    figure = plt.figure(
        figsize=(7.6, 0.5 + 0.3 * sum(len(table) + 1.5 for _, table in panels)),
        layout="constrained",
    )
    grid = figure.add_gridspec(
        len(panels),
        2,
        width_ratios=(1, 1.25),
        height_ratios=[len(table) + 1.5 for _, table in panels],
    )
    left = figure.add_subplot(grid[:, 0])
    for (mixer, name), curve in curves.items():
        left.plot(range(1, len(curve) + 1), curve, color=COLOURS[mixer], lw=1, label=name)
        for epoch, marker in ((len(curve) - 1, "s"), (int(np.argmax(curve)), "^")):
            left.plot(
                epoch + 1, curve[epoch], marker, color=COLOURS[mixer], mec="black", ms=8, ls=""
            )
    left.set(xlabel="epoch", ylabel="test accuracy (%)")
    left.legend(frameon=False, fontsize=8, loc="lower left")
    for place, (title, table) in enumerate(panels):
        _forest(figure.add_subplot(grid[place, 1]), table, title)
    figure.axes[-1].set_xlabel("difference in accuracy (points), 95 % interval", fontsize=8)
    return figure


def curves_of_runs(groups: list, curves: dict):
    """Test accuracy over the epochs of every run, a thin line each, with the paper's numbers where
    they lie near enough to be seen on the same axis.

    Args:
        groups: list of (title, runs of one experiment).
        curves: run_id -> [(epoch, accuracy in percent)], see :func:`rmlib.study.report.report.accuracy_curves`.
    """
    columns = min(2, len(groups))
    figure, axes = plt.subplots(
        -(-len(groups) // columns),
        columns,
        figsize=(6.2 * columns, 2.8 * -(-len(groups) // columns)),
        squeeze=False,
        layout="constrained",
    )
    for axis in axes.flat[len(groups) :]:
        axis.axis("off")
    for axis, (title, group) in zip(axes.flat, groups):
        seen, values = set(), []
        for run in group.sort_values(["config.average", "config.mixer"]).to_dict("records"):
            mixer, method = (
                run["config.mixer"],
                method_name({name: run[f"config.{name}"] for name in METHOD}),
            )
            style = ":" if run["config.average"] else "-" if run["config.clean_weight"] else "--"
            axis.plot(
                *zip(*curves[run["run_id"]] or [(np.nan, np.nan)]),
                style,
                color=COLOURS[mixer],
                lw=1,
                marker="osD^"[list(COLOURS).index(mixer)],
                ms=3,
                markevery=[-1],
                label=None if method in seen else method,
            )
            seen.add(method)
            values += [accuracy for _, accuracy in curves[run["run_id"]]]
        told = {
            mixer: mean
            for mixer, (mean, _) in paper.ACCURACY.get(group["config.dataset"].iloc[0], {}).items()
        }
        if told and min(told.values()) - max(values) <= max(values) - min(values):
            for mixer, mean in told.items():
                axis.axhline(mean, color=COLOURS[mixer], lw=0.8)
            note = (
                ""
                if len(paper.under_protocol(group))
                else "\n(another experiment: width 64, 400 epochs, all images)"
            )
            axis.annotate(
                "paper: "
                + ", ".join(f"{LABELS[mixer]} {mean:g}" for mixer, mean in told.items())
                + note,
                (0.01, min(told.values())),
                xycoords=("axes fraction", "data"),
                xytext=(0, -3),
                textcoords="offset points",
                va="top",
                fontsize=7.5,
            )
        axis.set(xlabel="epoch", ylabel="test accuracy (%)")
        axis.set_title(title, fontsize=9)
        axis.legend(frameon=False, fontsize=7.5, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


if __name__ == "__main__":  # python -m rmlib.study.figures.plots results/mixers.png
    import sys

    use_style()
    overview().savefig(sys.argv[1], dpi=110, metadata={"Software": None})
