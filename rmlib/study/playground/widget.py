"""The playground in JupyterLab, with the mixers and figures of the lesson."""

from rmlib.data import stream
from rmlib.mixers import CutMix, Mixup, NoMix, RegionMixup
from rmlib.study import figures
from rmlib.study.figures.style import TEXT
from rmlib.study.names import LABELS
from rmlib.study.runs import checkpoint


def sliders(images, labels, classes):
    """Sliders that mix a batch and show its first image; None where nobody watches.

    Args:
        images: (N, 3, H, W) float in [0, 1]; labels: (N,); classes: their names.
    """
    if not checkpoint.interactive():
        return None
    import ipywidgets

    def mix(method="region_mixup", k=2, alpha=1.0, seed=0):
        count = len(classes)
        makers = {"none": NoMix(count), "mixup": Mixup(count, alpha)}
        makers |= {"cutmix": CutMix(count, alpha), "region_mixup": RegionMixup(count, k, alpha)}
        mixer = makers[method]
        plan = mixer.draw(images.shape, stream(seed, "playground"))
        target = mixer.apply(images, labels, plan)[1][0]
        table = figures.mixing_table(images, labels, classes, {method: plan}, {method: mixer})
        _bar(table.add_axes((0.05, -0.15, 0.9, 0.15)), target, classes, figures.COLOURS[method])
        words = figures.target_text(target, classes)
        figures.show(table, f"The first image under {LABELS[method]}; its target: {words}.")

    known = [(label, name) for name, label in LABELS.items()]
    ranges = {"k": (1, 4), "alpha": (0.1, 4.0, 0.1), "seed": (0, 20)}
    box = ipywidgets.interactive(mix, method=known, **ranges)
    for slider in box.children[1:4]:
        # a picture for every step of a drag would lag behind
        slider.continuous_update = False
    return box


def _bar(axis, target, classes, colour):
    """A soft target as one bar: each class a part of it, the largest first."""
    left = 0.0
    for place in target.argsort(descending=True):
        share = float(target[place])
        axis.barh(0, share, left=left, color=colour, alpha=0.35, edgecolor="black")
        words = f"{share:.2f} {classes[place]}" if share > 0.1 else ""
        look = {"ha": "center", "va": "center", "fontsize": TEXT, "parse_math": False}
        axis.text(left + share / 2, 0, words, **look)
        left += share
    axis.set(xlim=(0, 1), yticks=[])
