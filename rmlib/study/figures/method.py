"""Figures of 01_method: images, plans, soft targets, and the picture of the README."""

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.patches import Rectangle

from rmlib import UserError
from rmlib.data import load, stream, to_float
from rmlib.mixers import CutMix, Mixup, Plan, RegionMixup
from rmlib.study.figures.style import COLOURS, TEXT, histogram, legend_below, show_image
from rmlib.study.names import LABELS


def target_text(target, classes, least=0.005) -> str:
    """A soft target (num_classes,) in words: '0.62 ring + 0.38 star', largest first."""
    order = np.argsort(-np.asarray(target))
    return "\n".join(f"{float(target[i]):.2f} {classes[i]}" for i in order if target[i] > least)


def draw_tiles(axis, plan: Plan, numbers=False):
    """Outline the tiles of a plan on an image, on request with the original's weight in each."""
    for (x1, y1, x2, y2), lam in zip(plan.boxes.tolist(), plan.lam[:, 0].tolist()):
        corner = (x1 - 0.5, y1 - 0.5)
        axis.add_patch(Rectangle(corner, x2 - x1, y2 - y1, fill=False, lw=1, ec="white"))
        if numbers:
            centre = ((x1 + x2 - 1) / 2, (y1 + y2 - 1) / 2)
            colour = "white" if lam < 0.6 else "black"
            axis.text(*centre, f"{lam:.2f}", ha="center", va="center", fontsize=TEXT, color=colour)


def mixing_table(images, labels, classes, plans: dict, mixers: dict, row=0):
    """One image under every mixer: W, the partner in each tile, the mixed image and its target.

    Args:
        images: (N, 3, H, W) float in [0, 1]; labels: (N,); classes: their names.
        plans, mixers: name -> Plan, name -> Mixer, same names as COLOURS.
        row: which image of the batch is followed.
    """
    figure, axes = plt.subplots(len(plans), 4, figsize=(7.2, 1.85 * len(plans)), squeeze=False)
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
        line[1].set_title("W: weight of the image", fontsize=TEXT)
        draw_tiles(line[1], plan, numbers=True)
        show_image(line[2], partner, "partners")
        draw_tiles(line[2], plan)
        show_image(line[3], mixed[row], "mixed")
        words = target_text(targets[row], classes)
        look = {"fontsize": TEXT, "va": "center", "parse_math": False}
        line[3].text(1.06, 0.5, words, transform=line[3].transAxes, **look)
        line[0].set_ylabel(LABELS[name], fontsize=TEXT + 1, color=COLOURS[name], fontweight="bold")
    figure.tight_layout(pad=0.6)
    return figure


def clear_plan(mixer, shape, seed: int, row: int = 0) -> Plan:
    """The first plan of a seed that is good to look at.

    Image ``row`` meets only other images, as many different ones as it can, and keeps 40 to 80 %
    of its label.
    """
    for number in range(2000):
        plan = mixer.draw(shape, generator=stream(seed, repr(mixer), number))
        partners = set(plan.partners[:, row].tolist())
        permutations = len(set(map(tuple, plan.partners.tolist())))
        various = row not in partners and len(partners) == min(permutations, shape[0] - 1)
        if various and 0.4 < plan.label_weights()[0, 0] < 0.8:
            return plan
    problem = f"no plan of {mixer} shows image {row} with other images only"
    raise UserError(f"{problem}: take more than {shape[0]} images")


def overview():
    """The picture of the README: one built-in image under Mixup, CutMix and Region Mixup."""
    data = load("shapes", split="test")
    places = [int((data.labels == label).nonzero()[0]) for label in range(len(data.classes))]
    batch = data[torch.tensor(places)]
    images = to_float(batch.images)
    mixers = {"mixup": Mixup(10), "cutmix": CutMix(10), "region_mixup": RegionMixup(10)}
    star = batch.classes.index("star")
    plans = {name: clear_plan(mixer, images.shape, 0, star) for name, mixer in mixers.items()}
    return mixing_table(images, batch.labels, batch.classes, plans, mixers, row=star)


def batch_strip(images, titles, columns=6, colour=None):
    """A row or more of images (N, 3, H, W) in [0, 1] with titles, framed in a method's colour."""
    rows, lines = -(-len(images) // columns), 1 + max(title.count("\n") for title in titles)
    size = (1.35 * columns, (1.35 + 0.2 * lines) * rows)
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False)
    for axis in axes.flat[len(images) :]:
        axis.axis("off")
    for axis, image, title in zip(axes.flat, images, titles):
        show_image(axis, image, title)
        axis.spines[:].set(visible=colour is not None, color=colour, linewidth=2)
    figure.tight_layout(pad=0.4)
    return figure


def softness(weights: dict, chosen: dict):
    """Histograms of the original's label weight, a curve per mixer: name -> array of weights.

    Args:
        chosen: name -> mixer, the colour.
    """
    figure, axis = plt.subplots(figsize=(6.4, 3.4), layout="constrained")
    for (name, values), style in zip(weights.items(), ["-", "--", "-.", ":"] * 2):
        colour = COLOURS[chosen[name]]
        histogram(axis, values, 25, "density", label=name, linestyle=style, color=colour, lw=1.8)
    axis.set(xlabel="weight of the original label", ylabel="density", xlim=(0, 1))
    legend_below(figure, axis, 4)
    return figure
