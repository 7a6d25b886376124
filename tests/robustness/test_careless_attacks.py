"""Attacks and careless callers: what cannot be attacked is named, and nothing is left behind."""

import warnings

import pytest
import torch
import torchattacks
from torch import nn
from toys import (
    BY_GRADIENT,
    FAST,
    NO_LOGITS,
    Answering,
    Linear,
    few,
    loud,
    network,
    pixels,
    touchy,
)

from rmlib import UserError
from rmlib.robustness import attacks, corruptions
from rmlib.robustness.square import square


class Before(nn.Module):
    """A network behind a function of its input."""

    def __init__(self, function, model):
        super().__init__()
        self.function, self.model = function, model

    def forward(self, images):
        return self.model(self.function(images))


def test_a_gradient_that_is_no_number_counts_as_none():
    """sign(NaN) = 0: the image stands still, and that must be seen."""
    model, images, labels = touchy(40)
    masked = Before(
        lambda x: x + 0 * (x - x.detach()).flatten(1).pow(2).sum(1).sqrt()[:, None, None, None],
        model,
    )
    for attack in BY_GRADIENT:
        result = attacks.evaluate(masked, images, labels, attack, "8/255")
        assert result["fooled"] == 0 and result["zero_gradient"] == 40


def test_an_answer_that_is_no_number_is_a_wrong_one():
    """The same for every attack: FGSM and Square fool every image of a network that breaks off the
    grid of 8-bit images.
    """
    model = Linear(8)
    images = (
        torch.randint(0, 256, (20, 3, 8, 8), generator=torch.Generator().manual_seed(0)).float()
        / 255
    )
    labels = model(images).argmax(1)
    broken = Before(
        lambda x: (
            x
            + torch.where(
                ((255 * x) - (255 * x).round()).abs().flatten(1).amax(1) > 1e-2, torch.nan, 0.0
            )[:, None, None, None]
        ),
        model,
    )
    for attack in ("fgsm", "square", "pgd"):
        result = attacks.evaluate(broken, images, labels, attack, 0.01)
        assert result["clean_correct"] == 20 and result["accuracy_after"] == 0, attack


@pytest.mark.parametrize("attack", ["fgsm", "square"])
@pytest.mark.parametrize(
    "function, words",
    [
        (lambda x: x + 0.1 * torch.randn_like(x), "answers differently"),
        (
            lambda x: (
                x + torch.where(torch.arange(len(x)) > 20, torch.nan, 0.0)[:, None, None, None]
            ),
            "not finite",
        ),
    ],
)
def test_networks_that_cannot_be_attacked_are_named(attack, function, words):
    model, images, labels = touchy(40)
    with pytest.raises(UserError, match=words):
        attacks.evaluate(Before(function, model), images, labels, attack)


@pytest.mark.parametrize(
    "cut",
    [
        torch.Tensor.detach,
        lambda x: (x > 0.5).float(),
        lambda x: torch.from_numpy(x.detach().numpy()),
    ],
)
def test_a_cut_gradient_is_named_and_square_does_not_mind(cut):
    model, images, labels = touchy(40)
    for attack in BY_GRADIENT:
        with pytest.raises(UserError, match="no gradient reaches the pixels.*only 'square' can"):
            attacks.evaluate(Before(cut, model), images, labels, attack)
    assert attacks.evaluate(Before(cut, model), images, labels, "square", 0.3)["fooled"] > 0


def test_the_callers_images_stay_as_they_are():
    model, images, labels = touchy(10)
    before = images.clone()
    with pytest.raises(
        UserError, match="answers differently"
    ):  # a first layer that works in place spoils what it is asked about
        attacks.evaluate(Before(lambda x: x.sub_(0.1), model), images, labels, "square", queries=3)
    assert torch.equal(images, before)


def test_autoattack_says_what_it_needs():
    model, images, labels = touchy(4)
    with pytest.raises(
        UserError,
        match=(
            "autoattack needs a float32 network of at least 4 classes, not torch.float32 with 2"
        ),
    ):
        attacks.evaluate(model, images, labels, "autoattack")
    with pytest.raises(UserError, match="torch.float64 with 4"):
        attacks.evaluate(network().double(), *pixels(4), "autoattack")


def test_uint8_images_are_pixels():
    images = torch.randint(0, 256, (6, 3, 8, 8), dtype=torch.uint8)
    labels = torch.arange(6) % 3
    found = attacks.perturb(network(), images, labels, "fgsm", "2/255")
    assert torch.equal(found, attacks.perturb(network(), images / 255, labels, "fgsm", "2/255"))


def test_float64_networks_are_attacked_in_float64():
    found = attacks.perturb(
        Linear(dtype=torch.float64), pixels(4, 4)[0], torch.zeros(4, dtype=torch.int64), "fgsm", 0.1
    )
    assert found.dtype == torch.float64


@pytest.mark.parametrize("attack", attacks.ATTACKS)
@pytest.mark.parametrize("fails", [False, True])
def test_the_caller_finds_everything_as_it_was(attack, fails, monkeypatch):
    """Modes of every module (a BatchNorm frozen on purpose stays frozen), gradients, random state,
    grad mode and TF32 settings.
    """
    images, labels = pixels(4 if attack == "autoattack" else 12)
    model = network()
    with torch.no_grad():  # so that each class is the answer to some images
        model.linear.bias -= model(images).mean(0)
    model.train()
    model.layer2[0].bn1.eval()
    model(torch.rand(4, 3, 8, 8)).sum().backward()
    model.linear.weight.requires_grad_(False)
    modes = [module.training for module in model.modules()]
    gradients = [(p.grad, None if p.grad is None else p.grad.clone()) for p in model.parameters()]
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    if fails:

        def explode(*_, **__):
            raise ZeroDivisionError

        for library in (
            torchattacks.FGSM,
            torchattacks.PGD,
            torchattacks.Square,
            torchattacks.APGD,
        ):
            monkeypatch.setattr(library, "forward", explode)
        monkeypatch.setattr(attacks, "square", explode)
        monkeypatch.setattr(attacks, "_fgsm_on_margin", explode)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        if fails:
            with pytest.raises(ZeroDivisionError):
                attacks.evaluate(model, images, labels, attack, 1, **few(attack, 3))
        else:  # with eps = 1 every image falls, so that autoattack does not take long
            assert (
                attacks.evaluate(model, images, labels, attack, 1, batch_size=5, **few(attack, 3))[
                    "clean_correct"
                ]
                > 0
            )
        assert not torch.is_grad_enabled() and torch.is_autocast_enabled("cpu")
    assert torch.equal(torch.rand(3), expected), (
        "torchattacks' Square reseeds the global generator; the caller must not notice"
    )
    assert [module.training for module in model.modules()] == modes
    for parameter, (gradient, value) in zip(model.parameters(), gradients):
        assert parameter.grad is gradient and (value is None or torch.equal(parameter.grad, value))
    assert all(torch.equal(value, buffers[name]) for name, value in model.named_buffers())


def test_inference_mode_and_autocast_of_the_caller_do_not_matter():
    model, (images, labels) = network(), pixels()
    expected = attacks.perturb(model, images, labels, "fgsm", "8/255")
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(
            attacks.perturb(model, images.clone(), labels.clone(), "fgsm", "8/255"), expected
        )


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(attack="fgms"), "did you mean 'fgsm'"),
        (dict(eps=8), "eps=8: expected a size on the scale of pixels"),
        (dict(eps="-1/255"), "eps=-1/255"),
        (dict(eps="8/0"), "eps=8/0"),
        (dict(eps="weak"), "eps=weak"),
        (dict(eps=float("nan")), "eps=nan"),
        (dict(attack="square", queries=0), "queries=0"),
        (dict(attack="pgd", steps=0), "steps=0"),
        (dict(attack="square", queries=2.5), "queries=2.5: expected a whole number"),
        (dict(batch_size="many"), "batch_size='many'"),
        (dict(model=lambda images: images), "has no parameters"),
        (
            dict(queries=5),
            "queries=5 does nothing for attack 'fgsm' .it belongs to square",
        ),
        (dict(attack="pgd", step=5), "step=5 does nothing for attack 'pgd'"),
        (dict(batch_size=0), "batch_size=0"),
        (dict(labels=pixels()[1] + 3), "class 5 cannot be attacked: the network has 4"),
        (dict(attack="square", labels=pixels()[1] + 3), "class 5 cannot be attacked"),
        (dict(model=loud(network(), float("nan"))), "not finite"),
        (dict(images=pixels()[0].numpy()), "ndarray.*expected torch tensors"),
        (dict(model=nn.Flatten()), "has no parameters"),
        (dict(images=pixels()[0] * 4 - 2), r"\[-\d.*the model normalises them"),
        (dict(images=pixels()[0] * torch.nan), "nan"),
        (dict(images=pixels()[0].long()), "expected uint8"),
        (dict(images=pixels()[0][0]), "expected .N, C, H, W."),
        (dict(labels=pixels()[1][:5]), r"labels \(5,\)"),
        (dict(labels=pixels()[1] - 1), "from -1"),
        (dict(labels=pixels()[1].float()), "float32"),
        (dict(model=network().bfloat16()), "bfloat16.*use model.float"),
        (dict(model=nn.Sequential(network(), nn.Softmax(1))), "returns probabilities"),
        (dict(images=pixels()[0][:, :2]), r"the network fails on images \(\d, 2, .*of what size"),
    ],
)
def test_mistakes(change, words):
    images, labels = pixels()
    arguments = {
        "model": network(),
        "images": images,
        "labels": labels,
        "attack": "fgsm",
        "eps": "8/255",
    } | change
    with pytest.raises(UserError, match=words) as error:
        attacks.perturb(**arguments)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("attack", (*FAST, "autoattack"))
def test_a_network_that_returns_no_logits_is_named(attack):
    for answer, got in NO_LOGITS.items():
        with pytest.raises(UserError, match=f"returns {got}: expected logits.*wrap") as error:
            attacks.evaluate(Answering(answer), *pixels(), attack)
        assert "\n" not in str(error.value)


def test_square_and_corruptions_refuse_no_logits():
    images, labels = pixels()
    for answer, got in NO_LOGITS.items():
        with pytest.raises(UserError, match=f"the network returns {got}: expected logits"):
            square(Answering(answer), images, labels, 0.1)
        with pytest.raises(UserError, match=f"the network returns {got}: expected logits"):
            corruptions.evaluate(Answering(answer), (images * 255).byte(), labels)


def test_a_seed_beyond_64_bits_is_refused():
    """torch takes none, but only AutoAttack would say so, with a traceback."""
    with pytest.raises(UserError, match="seed=18446744073709551616: expected a whole number"):
        attacks.evaluate(network(), *pixels(), "autoattack", seed=2**64)


def test_an_attack_that_cheats_is_refused(monkeypatch):
    honest = torchattacks.FGSM.forward
    monkeypatch.setattr(
        torchattacks.FGSM,
        "forward",
        lambda self, images, labels: (honest(self, images, labels) + 0.5).clamp(0, 1),
    )
    with pytest.raises(RuntimeError, match="left the ball"):
        attacks.perturb(network(), *pixels(), "fgsm", "8/255")


@pytest.mark.cuda
def test_square_does_not_wait_for_the_device_at_every_query():
    """Between two looks at the fallen images nothing is read back (they come every tenth query)."""
    model, images, labels = touchy(50)
    model.cuda()
    waits = []
    for queries in (100, 200):
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                attacks.perturb(model, images, labels, "square", "1/255", queries=queries)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        waits.append(sum("synchron" in str(warning.message) for warning in caught))
    assert waits[1] - waits[0] < 60, "a hundred queries more, and not one wait for each"
