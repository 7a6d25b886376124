"""Attacks against networks whose answer is known in closed form, and against the library."""

import numpy as np
import pytest
import torch
import torchattacks
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from toys import BY_GRADIENT, FAST, Linear, few, loud, network, pixels, touchy

from rmlib import UserError
from rmlib.packed import unpack_bits
from rmlib.robustness import attacks


@pytest.mark.parametrize("attack", FAST)
@settings(max_examples=6, deadline=None)
@given(level=st.integers(0, 64), seed=st.integers(0, 3), batch_size=st.sampled_from([1, 5, 12]))
def test_inside_the_ball_and_the_range(attack, level, seed, batch_size):
    images, labels = pixels(seed=seed)
    found = attacks.perturb(
        network(), images, labels, attack, f"{level}/255", batch_size=batch_size, **few(attack, 5)
    )
    assert (
        found.shape == images.shape and found.dtype == torch.float32 and found.device.type == "cpu"
    )
    assert (
        (found - images).abs().max() <= level / 255 + 1e-6 and found.min() >= 0 and found.max() <= 1
    )


@pytest.mark.parametrize("attack", FAST)
def test_eps_zero_changes_nothing(attack):
    images, labels = pixels()
    assert torch.equal(
        attacks.perturb(network(), images, labels, attack, 0, **few(attack, 3)), images
    )
    result = attacks.evaluate(network(), images, labels, attack, "0", **few(attack, 3))
    assert (
        result["accuracy_after"] == result["clean_accuracy"] == result["robust_accuracy"]
        and result["fooled"] == 0
    )


def test_pixels_outside_by_rounding_are_clipped_others_refused():
    images, labels = pixels()
    images[0, 0, 0, 0], images[1, 0, 0, 0] = 1 + 5e-7, -5e-7
    found = attacks.perturb(network(), images, labels, "fgsm", 0)
    assert torch.equal(found, images.clamp(0, 1)) and images.min() < 0, "the caller's stay"
    images[0, 0, 0, 0] = 1 + 1e-5
    with pytest.raises(UserError, match=r"in \[-5e-07, 1.00001\]"):
        attacks.perturb(network(), images, labels, "fgsm", 0)


@pytest.mark.parametrize("attack", BY_GRADIENT)
def test_attacks_by_gradient_on_a_linear_network_are_the_closed_form(attack):
    """The margin falls by eps * |w|_1, whatever the loss and the number of steps: an image is
    fooled exactly when its margin is smaller.
    """
    model, eps = Linear(), 0.1
    images, _ = pixels(200, 4, low=0.2, high=0.8)
    labels = torch.zeros(200, dtype=torch.int64)
    found = attacks.perturb(model, images, labels, attack, eps)
    assert torch.allclose(found, images - eps * model.w.sign(), atol=1e-6)
    margin = model(images)[:, 0]
    reach = eps * model.w.abs().sum()
    result = attacks.evaluate(model, images, labels, attack, eps)
    assert (
        result["clean_correct"] == int((margin > 0).sum())
        and result["misclassified"] == 200 - result["clean_correct"]
    )
    assert result["fooled"] == int(((margin > 0) & (margin <= reach)).sum()) > 0
    assert result["turned_right"] == 0, "the step lowers the margin of every image"
    assert result["zero_gradient"] == 0


def test_fgsm_is_the_sign_of_the_gradient_and_torchattacks():
    images, labels = pixels()
    model = network()
    inputs = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(model(inputs), labels), inputs)
    found = attacks.perturb(model, images, labels, "fgsm", "8/255", batch_size=12)
    assert torch.allclose(found, (images + 8 / 255 * gradient.sign()).clamp(0, 1), atol=1e-7)
    assert torch.equal(found, torchattacks.FGSM(model, eps=8 / 255)(images, labels))


def test_pgd_is_torchattacks_without_a_random_start():
    images, labels = pixels()
    model = network()
    found = attacks.perturb(model, images, labels, "pgd", "8/255", batch_size=12, steps=7)
    assert torch.equal(
        found,
        torchattacks.PGD(model, eps=8 / 255, alpha=1 / 255, steps=7, random_start=False)(
            images, labels
        ),
    )
    losses = [
        F.cross_entropy(model(batch), labels)
        for batch in (images, attacks.perturb(model, images, labels, "fgsm", "8/255"), found)
    ]
    assert losses[0] < losses[1] < losses[2], "more steps climb higher"


def test_square_leaves_the_lost_images_alone_and_fgsm_does_not():
    model, images, labels = touchy(30)
    wrong = model(images).argmax(1) != labels
    assert 0 < wrong.sum() < 30
    square = attacks.perturb(model, images, labels, "square", "16/255", queries=10)
    fgsm = attacks.perturb(model, images, labels, "fgsm", "16/255")
    assert (
        torch.equal(square[wrong], images[wrong])
        and not (fgsm[wrong] == images[wrong]).flatten(1).all(1).any()
    )


@pytest.mark.parametrize("attack", FAST)
def test_the_counts_fit_the_images(attack):
    model, images, labels = touchy(40)
    labels[:5] = 1  # FGSM turns some of the images that are wrong before
    found = attacks.perturb(model, images, labels, attack, "4/255", **few(attack, 20))
    before, after = model(images).argmax(1) == labels, model(found).argmax(1) == labels
    result = attacks.evaluate(model, images, labels, attack, "4/255", **few(attack, 20))
    assert 0 < result["fooled"] < result["clean_correct"] < 40
    assert result["clean_correct"] == before.sum() and result["fooled"] == (before & ~after).sum()
    assert (
        result["turned_right"] == (~before & after).sum()
        and result["misclassified"] == (~before).sum()
    )
    assert result["accuracy_after"] == pytest.approx(100 * after.double().mean())
    assert result["robust_accuracy"] == pytest.approx(100 * (before & after).double().mean())
    assert np.array_equal(unpack_bits(result["correct"], 40), after.numpy())


class Valley(nn.Module):
    """One pixel x, two classes: class 0 is right where 40 (x - 1/2)^2 > 1; a long step down the
    valley ends on the other side.
    """

    def __init__(self):
        super().__init__()
        self.centre = nn.Parameter(torch.tensor(0.5))

    def forward(self, images):
        x = images.flatten(1)
        return torch.cat([40 * (x - self.centre) ** 2, torch.ones_like(x)], 1)


def test_an_image_can_turn_right_and_is_not_robust():
    images = torch.tensor([0.45, 0.05, 0.9, 1.0]).view(
        4, 1, 1, 1
    )  # after the step: 0.75, 0.35, 0.6, 0.7
    result = attacks.evaluate(Valley(), images, torch.zeros(4, dtype=torch.int64), "fgsm", 0.3)
    assert (
        result["clean_correct"],
        result["misclassified"],
        result["fooled"],
        result["turned_right"],
    ) == (3, 1, 2, 1)
    assert (
        result["clean_accuracy"] == 75
        and result["accuracy_after"] == 50
        and result["robust_accuracy"] == 25
    )


def test_a_tie_is_a_wrong_answer():
    """Logits that are all alike name no class."""
    mute, labels = loud(Linear(), 0.0), torch.zeros(4, dtype=torch.int64)
    assert not attacks.right(mute, pixels(4, 4)[0], labels, 4).any()


def test_the_query_curve_starts_clean_and_ends_after_the_attack():
    model, images, labels = touchy(40)
    result = attacks.evaluate(model, images, labels, "square", "4/255", queries=20)
    queries = attacks.run(model, images, labels, "square", "4/255", queries=20).queries
    curve = attacks.query_curve(result, 20)
    assert (
        curve[0] == result["clean_accuracy"]
        and curve[-1] == result["accuracy_after"]
        and len(curve) == 21
    )
    assert (
        curve == sorted(curve, reverse=True)
        and sum(result["fooled_at"].values()) == result["fooled"]
    )
    for query in (
        1,
        5,
        19,
    ):  # a larger budget has another schedule, but these images fell within it
        assert curve[query] == pytest.approx(
            100
            * (
                (queries > query)
                | ((queries == 20) & torch.tensor(unpack_bits(result["correct"], 40)))
            )
            .double()
            .mean()
        )


def test_a_masked_gradient_is_visible_in_the_counts():
    """A gradient of zero wherever the network is right, so that FGSM and PGD stand still; the
    margin and Square are not deceived.
    """
    model, images, labels = touchy(40)
    for attack in ("fgsm", "pgd"):
        plain, masked = (
            attacks.evaluate(m, images, labels, attack, "2/255") for m in (model, loud(model))
        )
        assert (
            plain["zero_gradient"] == 0 and masked["zero_gradient"] == masked["clean_correct"] == 30
        )
        assert (
            masked["accuracy_after"] > plain["accuracy_after"]
            and masked["clean_accuracy"] == plain["clean_accuracy"]
        )
    for attack in ("fgsm_margin", "square"):
        plain, masked = (
            attacks.evaluate(m, images, labels, attack, "2/255") for m in (model, loud(model))
        )
        assert plain["correct"] == masked["correct"] and masked["fooled"] > 0, attack


class Corners(nn.Module):
    """Five classes, linear logits <w_c, x>: an image is robust exactly if no other class can
    overtake within eps.
    """

    def __init__(self, factor=1.0):
        super().__init__()
        self.w = nn.Parameter(torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(0)))
        self.factor = factor

    def forward(self, images):
        return self.factor * torch.einsum("nchw,kchw->nk", images, self.w)

    def robust(self, images, labels, eps):
        gaps = self.w[labels][:, None] - self.w
        worst = (gaps * images[:, None]).flatten(2).sum(2) - eps * gaps.abs().flatten(2).sum(2)
        return (worst > 0).sum(1) == 4  # all but the class itself


@pytest.mark.parametrize("factor", [1.0, 1e5])
def test_autoattack_is_the_closed_form_also_where_gradients_are_masked(factor):
    model = Corners(factor)
    images, _ = pixels(24, 4, low=0.2, high=0.8)
    labels = model(images).argmax(1)
    labels[:3] = (labels[:3] + 1) % 5  # wrong already
    with torch.no_grad():
        expected = model.robust(images, labels, 0.02) & (model(images).argmax(1) == labels)
    assert 5 < expected.sum() < 18
    result = attacks.evaluate(model, images, labels, "autoattack", 0.02)
    assert (
        np.array_equal(unpack_bits(result["correct"], 24), expected.numpy())
        and result["misclassified"] == 3
    )
    left = list(result["left"].values())
    assert (
        list(result["left"]) == ["apgd-ce", "apgd-t", "fab-t", "square"]
        and left == sorted(left, reverse=True)
        and left[-1] == expected.sum()
    )
    assert (left[0] == 21) == (factor > 1), (
        "the cross entropy of the louder network has no gradient"
    )


@pytest.mark.cuda
@pytest.mark.parametrize("attack", FAST)
def test_cuda_is_the_cpu_up_to_rounding(attack):
    """Same ball, same counts to the few images whose sign or margin is decided by rounding; the
    CUDA generator is left alone too.
    """
    model, images, labels = touchy(200)
    on_cpu = attacks.evaluate(model, images, labels, attack, "4/255", **few(attack, 20))
    state = torch.cuda.get_rng_state()
    on_cuda = attacks.evaluate(model.cuda(), images, labels, attack, "4/255", **few(attack, 20))
    assert torch.equal(torch.cuda.get_rng_state(), state)
    assert (
        abs(on_cpu["fooled"] - on_cuda["fooled"]) <= 20
        and on_cpu["clean_correct"] == on_cuda["clean_correct"]
    )
    assert attacks.perturb(model, images, labels, attack, "4/255").device.type == "cpu"
