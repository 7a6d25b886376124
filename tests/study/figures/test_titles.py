"""Names of classes and folders stand in figures as they are."""

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch

from rmlib.mixers import Mixup
from rmlib.study import figures

# a formula for matplotlib, and none that it can read
NAME = r"$\frac{a_$ & 5$"
COUNTS = np.array([[3, 1], [0, 2]])


def under_mixup(images):
    mixer = Mixup(2)
    plan = mixer.draw(images.shape, torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1])
    return figures.mixing_table(images, labels, (NAME, NAME), {"mixup": plan}, {"mixup": mixer})


def of_runs(draw):
    row = {"difference": "a", "of": "mixup", "points": 1.0, "low": 0.5, "high": 1.5}
    row |= {"state": "resolved", "mixer": "mixup", "clean loss": "with", "accuracy": 50.0}
    return lambda _: draw([(NAME, pd.DataFrame([row]))])


@pytest.mark.parametrize(
    "draw",
    [
        lambda images: figures.batch_strip(images, [NAME, NAME], columns=2),
        lambda images: figures.cam_grid(
            images, [NAME] * 2, [("Mixup", "red", images[:, 0], [NAME] * 2)]
        ),
        lambda images: figures.grid_points(images[0], NAME, [("a", images[0, 0], images[0, 0])]),
        lambda images: figures.perturbations(images, images, [NAME] * 2, [NAME] * 2, 0.1),
        under_mixup,
        of_runs(figures.forest),
        lambda _: figures.confusion([NAME, "b"], COUNTS),
        lambda _: figures.class_accuracy([NAME, "b"], COUNTS, "mixup"),
    ],
)
def test_a_dollar_sign_in_a_name_is_no_formula(draw):
    matplotlib.use("agg")
    figure = draw(torch.rand(2, 3, 8, 8))
    figure.canvas.draw()
    texts = [each.get_text() for each in figure.findobj(matplotlib.text.Text)]
    assert any(NAME in text for text in texts)


def test_of_many_classes_the_confusion_shows_those_with_mistakes():
    """Percents of the images of each row, without those of the classes that are left out."""
    counts = 20 * np.eye(6, dtype=int)
    counts[1, 4], counts[4, 4] = 5, 15
    axis = figures.confusion(list("abcdef"), counts, most=2).axes[0]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["b", "e"]
    assert [text.get_text() for text in axis.texts] == ["80", "20", "100"]
    assert "2 of 6 classes" in axis.get_title()
