"""Every figure of the study, one colour per method everywhere. Functions draw and return a figure; the notebook shows it."""

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
import torch

from rmlib import UserError
from rmlib.data import load, stream, to_float
from rmlib.mixers import CutMix, Mixup, Plan, RegionMixup
from rmlib.report import LABELS

# Colour-blind safe, and of different lightness, so that the order survives a grey print.
COLOURS = {"none": "#4d4d4d", "mixup": "#e69f00", "cutmix": "#56b4e9", "region_mixup": "#b2182b"}


def use_style():
    """The look of all figures; call it once per notebook."""
    sns.set_theme(context="notebook", style="ticks", font_scale=0.85,
                  rc={"figure.dpi": 90, "savefig.bbox": "tight", "axes.spines.top": False, "axes.spines.right": False})


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
    """Outline the tiles of a plan on an image axis, with the weight of the original in each if asked."""
    for (x1, y1, x2, y2), lam in zip(plan.boxes.tolist(), plan.lam[:, 0].tolist()):
        axis.add_patch(plt.Rectangle((x1 - 0.5, y1 - 0.5), x2 - x1, y2 - y1, fill=False, lw=1, ec="white"))
        if numbers:
            axis.text((x1 + x2 - 1) / 2, (y1 + y2 - 1) / 2, f"{lam:.2f}", ha="center", va="center", fontsize=8,
                      color="white" if lam < 0.6 else "black")


def mixing_table(images, labels, classes, plans: dict, mixers: dict, row=0):
    """One image under every mixer: W, the partner in each tile, the mixed image and its soft target.

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
        line[3].text(1.06, 0.5, target_text(targets[row], classes), transform=line[3].transAxes, fontsize=8, va="center")
        line[0].set_ylabel(LABELS[name], fontsize=9, color=COLOURS[name], fontweight="bold")
    figure.tight_layout(pad=0.6)
    return figure


def clear_plan(mixer, shape, seed: int, row: int = 0) -> Plan:
    """The first plan of a seed that is good to look at.

    Image ``row`` meets only other images, as many different ones as it can, and keeps 40 to 80 % of its label.
    """
    for number in range(2000):
        plan = mixer.draw(shape, generator=stream(seed, repr(mixer), number))
        partners, permutations = set(plan.partners[:, row].tolist()), len(set(map(tuple, plan.partners.tolist())))
        various = row not in partners and len(partners) == min(permutations, shape[0] - 1)
        if various and 0.4 < plan.label_weights()[0, 0] < 0.8:
            return plan
    raise UserError(f"no plan of {mixer} shows image {row} with other images only: take another batch than {shape[0]} images")


def overview(seed: int = 0):
    """The picture of the README: one built-in image under Mixup, CutMix and Region Mixup."""
    data = load("shapes", split="test")
    batch = data[torch.tensor([int((data.labels == c).nonzero()[seed]) for c in range(len(data.classes))])]
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
    """Histograms of the label weight of the original, one curve per mixer: name -> array of weights."""
    figure, axis = plt.subplots(figsize=(5.6, 2.8))
    styles = ["-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1))]
    palette = sns.color_palette("dark", len(weights))
    for (name, values), style, colour in zip(weights.items(), styles * 2, palette):
        sns.histplot(x=np.asarray(values), bins=np.linspace(0, 1, 26), stat="density", element="step", fill=False, ax=axis,
                     label=name, linestyle=style, color=COLOURS.get(name, colour))
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
    for (name, values), style, colour in zip(curves.items(), ("-", "--", ":"), ("#4d4d4d", "#b2182b", "#56b4e9")):
        sns.histplot(x=np.asarray(values), bins=np.linspace(0, 1, 21), stat="percent", element="step", fill=False, ax=axis,
                     label=name, linestyle=style, color=colour)
    axis.set(xlabel="largest predicted probability", ylabel="images (%)", xlim=(0, 1))
    axis.legend(frameon=False, fontsize=8, loc="upper left")
    figure.tight_layout()
    return figure


if __name__ == "__main__":  # python -m rmlib.plots results/mixers.png
    import sys

    use_style()
    overview().savefig(sys.argv[1], dpi=110, metadata={"Software": None})
