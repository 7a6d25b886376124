"""Attacks on other people's networks: torchvision's, tokens, one logit, an exported network."""

import pytest
import torch
from foreign import Tokens, convolutional, normalised, telling, vit
from torch import nn
from torch.nn import functional as F

from rmlib import UserError
from rmlib.evaluate import eval_mode
from rmlib.robustness import attacks, corruptions

EPS = 4 / 255


def pixels(count=6):
    images = torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    return images, torch.arange(count) % 4


def sign_of(loss, images):
    inputs = images.clone().requires_grad_()
    (slope,) = torch.autograd.grad(loss(inputs), inputs)
    return slope.sign()


MAKERS = {
    "resnet18": convolutional,
    "mobilenet_v3_small": lambda: convolutional("mobilenet_v3_small"),
    "vit": vit,
    "tokens": lambda: telling(Tokens()),
}


@pytest.mark.parametrize("name", MAKERS)
def test_the_step_is_that_of_autograd_and_the_counts_are_those_of_the_network(name):
    model, (images, _) = MAKERS[name](), pixels()
    with torch.no_grad():
        labels = model(images).argmax(1)
    labels[0] = (labels[0] + 1) % 4
    expected = (images + EPS * sign_of(lambda x: F.cross_entropy(model(x), labels), images)).clamp(
        0, 1
    )
    found = attacks.run(model.train(), images, labels, "fgsm", EPS)
    assert torch.allclose(found.images, expected, atol=1e-6) and model.training
    with eval_mode(model), torch.no_grad():
        assert torch.equal(found.after, model(found.images).argmax(1) == labels)
    assert found.before.tolist() == [False, *[True] * 5]
    square = attacks.evaluate(model, images, labels, "square", EPS, queries=4)
    assert square["clean_correct"] == 5 and sum(square["fooled_at"].values()) == square["fooled"]


class Two(nn.Module):
    """What the message about one logit advises."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        z = self.model(images)
        return torch.cat([-z, z], 1) / 2


def test_one_logit_is_refused_and_its_remedy_is_binary_cross_entropy():
    """Before, such a network was right about every image, and robust."""
    model, (images, labels) = convolutional(classes=1), pixels()
    words = r"has one logit, .*torch.cat\(\[-z, z\], 1\) / 2"
    for attack in (*attacks.OPTIONS,):
        with pytest.raises(UserError, match=words):
            attacks.evaluate(model, images, labels * 0, attack, EPS)
    with pytest.raises(UserError, match=words):
        corruptions.evaluate(model, (images * 255).byte(), labels * 0)
    labels %= 2
    # in float32 it is so sure of itself that no gradient is left
    model, images = model.double(), images.double()
    found = attacks.perturb(Two(model), images, labels, "fgsm", EPS)
    loss = lambda x: F.binary_cross_entropy_with_logits(model(x)[:, 0], labels.double())  # noqa: E731
    assert torch.allclose(found, (images + EPS * sign_of(loss, images)).clamp(0, 1), atol=1e-6)


def test_a_step_that_changes_its_input_in_place_is_named():
    model = normalised(convolutional()[1], inplace=True)
    images, labels = pixels()
    before = images.clone()
    for attack in attacks.OPTIONS:
        with pytest.raises(UserError, match="changes its input in place"):
            attacks.evaluate(model, images, labels, attack)
    assert torch.equal(images, before)


def test_an_exported_network_is_attacked_as_the_network():
    """It has neither eval() nor train()."""
    model = telling(nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 4)))
    images, _ = pixels()
    with torch.no_grad():
        labels = model(images).argmax(1)
    shapes = ({0: torch.export.Dim("batch")},)
    exported = torch.export.export(model, (images,), dynamic_shapes=shapes).module()
    for attack, eps, options in (
        ("fgsm", EPS, {}),
        ("square", EPS, {"queries": 5}),
        ("autoattack", 0.5, {}),
    ):
        a, b = (
            attacks.perturb(each, images, labels, attack, eps, **options)
            for each in (model, exported)
        )
        assert torch.allclose(a, b, atol=1e-5), attack
