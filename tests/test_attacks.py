"""Attacks against networks whose answer is known in closed form, and against careless callers."""

import numpy as np
import pytest
import torch
import torchattacks
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from rmlib import UserError, attacks
from rmlib.evaluate import unpack_bits
from rmlib.models import preact_resnet18


class Linear(nn.Module):
    """Logits (margin, 0), margin = <w, x> + b: FGSM of eps moves the margin by exactly eps * |w|_1 where nothing is clipped."""

    def __init__(self, size=4, bias=0.0, dtype=torch.float32):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.w = nn.Parameter(torch.randn(3, size, size, generator=generator).to(dtype))
        self.bias = bias

    def forward(self, images):
        margin = (images * self.w).sum((1, 2, 3)) + self.bias
        return torch.stack([margin, torch.zeros_like(margin)], 1)


def network(seed=0):
    torch.manual_seed(seed)
    return preact_resnet18(3, 2).eval()


def touchy(count, size=8):
    """A linear network with small margins, and images of class 0 of which it has three quarters right: some fall, some do not."""
    images, _ = pixels(count, size, seed=1)
    model = Linear(size)
    model.requires_grad_(False)
    model.bias = -float(model(images)[:, 0].quantile(0.25))
    return model, images, torch.zeros(count, dtype=torch.int64)


def pixels(count=12, size=8, seed=0, low=0.0, high=1.0):
    generator = torch.Generator().manual_seed(seed)
    return low + (high - low) * torch.rand(count, 3, size, size, generator=generator), torch.arange(count) % 3


@pytest.mark.parametrize("attack", attacks.ATTACKS)
@settings(max_examples=8, deadline=None)
@given(level=st.integers(0, 64), seed=st.integers(0, 3), batch_size=st.sampled_from([1, 5, 12]))
def test_inside_the_ball_and_the_range(attack, level, seed, batch_size):
    images, labels = pixels(seed=seed)
    found = attacks.perturb(network(), images, labels, attack, f"{level}/255", queries=5, batch_size=batch_size, seed=seed)
    assert found.shape == images.shape and found.dtype == torch.float32 and found.device.type == "cpu"
    assert (found - images).abs().max() <= level / 255 + 1e-6 and found.min() >= 0 and found.max() <= 1


@pytest.mark.parametrize("attack", attacks.ATTACKS)
def test_eps_zero_changes_nothing(attack):
    images, labels = pixels()
    assert torch.equal(attacks.perturb(network(), images, labels, attack, 0, queries=3), images)
    result = attacks.evaluate(network(), images, labels, attack, "0", queries=3)
    assert result["accuracy_after"] == result["clean_accuracy"] == result["robust_accuracy"] and result["fooled"] == 0
    assert result["unchanged"] == len(images)


def test_fgsm_on_a_linear_network_is_the_closed_form():
    """The margin falls by eps * |w|_1: an image is fooled exactly when its margin is smaller than that."""
    model, eps = Linear(), 0.1
    images, _ = pixels(200, 4, low=0.2, high=0.8)
    labels = torch.zeros(200, dtype=torch.int64)
    found = attacks.perturb(model, images, labels, "fgsm", eps)
    assert torch.allclose(found, images - eps * model.w.sign(), atol=1e-6)
    margin = model(images)[:, 0]
    reach = eps * model.w.abs().sum()
    result = attacks.evaluate(model, images, labels, "fgsm", eps)
    assert result["clean_correct"] == int((margin > 0).sum()) and result["misclassified"] == 200 - result["clean_correct"]
    assert result["fooled"] == int(((margin > 0) & (margin <= reach)).sum()) > 0
    assert result["turned_right"] == 0, "the step lowers the margin of every image"


def test_fgsm_is_the_sign_of_the_gradient_and_torchattacks():
    images, labels = pixels()
    model = network()
    inputs = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(model(inputs), labels), inputs)
    found = attacks.perturb(model, images, labels, "fgsm", "8/255", batch_size=12)
    assert torch.allclose(found, (images + 8 / 255 * gradient.sign()).clamp(0, 1), atol=1e-7)
    assert torch.equal(found, torchattacks.FGSM(model, eps=8 / 255)(images, labels))


def test_square_is_the_library_with_a_seed_per_batch():
    from rmlib.data import stream

    model, images, labels = touchy(20)
    found = attacks.perturb(model, images, labels, "square", "8/255", queries=20, batch_size=10, seed=4)
    seeds = [stream(4, "square attack", number).initial_seed() for number in range(2)]
    library = [torchattacks.Square(model, eps=8 / 255, n_queries=20, seed=seed)(images[i:i + 10], labels[i:i + 10])
               for seed, i in zip(seeds, (0, 10))]
    assert torch.equal(found, torch.cat(library)) and not torch.equal(found, images)
    assert seeds[0] != seeds[1]


def test_square_leaves_the_lost_images_alone_and_fgsm_does_not():
    model, images, labels = touchy(30)
    wrong = model(images).argmax(1) != labels
    assert 0 < wrong.sum() < 30
    square = attacks.perturb(model, images, labels, "square", "16/255", queries=10)
    fgsm = attacks.perturb(model, images, labels, "fgsm", "16/255")
    assert torch.equal(square[wrong], images[wrong]) and not (fgsm[wrong] == images[wrong]).flatten(1).all(1).any()


@pytest.mark.parametrize("attack", attacks.ATTACKS)
def test_the_counts_fit_the_images(attack):
    model, images, labels = touchy(40)
    labels[:5] = 1  # FGSM turns some of the images that are wrong before
    found = attacks.perturb(model, images, labels, attack, "4/255", queries=20)
    before, after = model(images).argmax(1) == labels, model(found).argmax(1) == labels
    result = attacks.evaluate(model, images, labels, attack, "4/255", queries=20)
    assert 0 < result["fooled"] < result["clean_correct"] < 40
    assert result["clean_correct"] == before.sum() and result["fooled"] == (before & ~after).sum()
    assert result["turned_right"] == (~before & after).sum() and result["misclassified"] == (~before).sum()
    assert result["accuracy_after"] == pytest.approx(100 * after.double().mean())
    assert result["robust_accuracy"] == pytest.approx(100 * (before & after).double().mean())
    assert np.array_equal(unpack_bits(result["correct"], 40), after.numpy())


def test_a_masked_gradient_is_visible_in_the_counts():
    """Logits times 1e6: the same decisions, but a gradient of zero wherever the network is right, so that FGSM stands still."""
    model, images, labels = touchy(40)
    loud = nn.Sequential(model, nn.Identity())
    loud[1].register_forward_hook(lambda module, inputs, logits: 1e6 * logits)
    plain, masked = (attacks.evaluate(m, images, labels, "fgsm", "2/255") for m in (model, loud))
    assert plain["unchanged"] == 0 and masked["unchanged"] == masked["clean_correct"] == 30
    assert masked["accuracy_after"] > plain["accuracy_after"] and masked["clean_accuracy"] == plain["clean_accuracy"]
    squares = [attacks.evaluate(m, images, labels, "square", "2/255", queries=20) for m in (model, loud)]
    assert squares[0]["correct"] == squares[1]["correct"] and squares[1]["fooled"] > 0, "an attack without gradients is not deceived"


def test_uint8_images_are_pixels():
    images = torch.randint(0, 256, (6, 3, 8, 8), dtype=torch.uint8)
    labels = torch.arange(6) % 3
    found = attacks.perturb(network(), images, labels, "fgsm", "2/255")
    assert torch.equal(found, attacks.perturb(network(), images / 255, labels, "fgsm", "2/255"))


def test_float64_networks_are_attacked_in_float64():
    found = attacks.perturb(Linear(dtype=torch.float64), pixels(4, 4)[0], torch.zeros(4, dtype=torch.int64), "fgsm", 0.1)
    assert found.dtype == torch.float64


@pytest.mark.parametrize("attack", attacks.ATTACKS)
@pytest.mark.parametrize("fails", [False, True])
def test_the_caller_finds_everything_as_it_was(attack, fails, monkeypatch):
    """Modes of every module (a BatchNorm frozen on purpose stays frozen), gradients, random state, grad mode and TF32 settings."""
    model = network().train()
    model.layer2[0].bn1.eval()
    model(torch.rand(4, 3, 8, 8)).sum().backward()
    model.linear.weight.requires_grad_(False)
    modes = [module.training for module in model.modules()]
    gradients = [(p.grad, None if p.grad is None else p.grad.clone()) for p in model.parameters()]
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    images, labels = pixels()
    if fails:
        def explode(*_, **__):
            raise ZeroDivisionError
        monkeypatch.setattr(torchattacks.FGSM, "forward", explode)
        monkeypatch.setattr(torchattacks.Square, "forward", explode)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        if fails:
            with pytest.raises(ZeroDivisionError):
                attacks.evaluate(model, images, labels, attack, queries=3)
        else:
            attacks.evaluate(model, images, labels, attack, queries=3)
        assert not torch.is_grad_enabled() and torch.is_autocast_enabled("cpu")
    assert torch.equal(torch.rand(3), expected), "torchattacks' Square reseeds the global generator; the caller must not notice"
    assert [module.training for module in model.modules()] == modes
    for parameter, (gradient, value) in zip(model.parameters(), gradients):
        assert parameter.grad is gradient and (value is None or torch.equal(parameter.grad, value))
    assert all(torch.equal(value, buffers[name]) for name, value in model.named_buffers())


def test_inference_mode_and_autocast_of_the_caller_do_not_matter():
    model, (images, labels) = network(), pixels()
    expected = attacks.perturb(model, images, labels, "fgsm", "8/255")
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(attacks.perturb(model, images.clone(), labels.clone(), "fgsm", "8/255"), expected)


@pytest.mark.parametrize("change, words", [
    (dict(attack="fgms"), "did you mean 'fgsm'"),
    (dict(eps=8), "eps=8: expected a size on the scale of pixels"),
    (dict(eps="-1/255"), "eps=-1/255"),
    (dict(eps="8/0"), "eps=8/0"),
    (dict(eps="weak"), "eps=weak"),
    (dict(eps=float("nan")), "eps=nan"),
    (dict(queries=0), "queries=0"),
    (dict(batch_size=0), "batch_size=0"),
    (dict(labels=pixels()[1] + 3), "class 5 cannot be attacked: the network has 3"),
    (dict(attack="square", labels=pixels()[1] + 3), "class 5 cannot be attacked"),
    (dict(images=pixels()[0].numpy()), "ndarray.*expected torch tensors"),
    (dict(model=nn.Flatten()), "has no parameters"),
    (dict(images=pixels()[0] * 4 - 2), r"\[-\d.*normalisation belongs into the model"),
    (dict(images=pixels()[0] * torch.nan), "nan"),
    (dict(images=pixels()[0].long()), "expected uint8"),
    (dict(images=pixels()[0][0]), "expected .N, C, H, W."),
    (dict(labels=pixels()[1][:5]), r"labels \(5,\)"),
    (dict(labels=pixels()[1] - 1), "from -1"),
    (dict(labels=pixels()[1].float()), "float32"),
    (dict(model=network().bfloat16()), "bfloat16.*use model.float"),
    (dict(model=nn.Sequential(network(), nn.Softmax(1))), "returns probabilities"),
])
def test_mistakes(change, words):
    images, labels = pixels()
    arguments = {"model": network(), "images": images, "labels": labels, "attack": "fgsm", "eps": "8/255"} | change
    with pytest.raises(UserError, match=words) as error:
        attacks.perturb(**arguments)
    assert "\n" not in str(error.value)


def test_an_attack_that_cheats_is_refused(monkeypatch):
    monkeypatch.setattr(torchattacks.FGSM, "forward", lambda self, images, labels: (images + 0.5).clamp(0, 1))
    with pytest.raises(RuntimeError, match="left the ball"):
        attacks.perturb(network(), *pixels(), "fgsm", "8/255")


def test_settings_name_what_the_result_depends_on():
    common = dict(queries=100, batch_size=50, seed=0, images=10, checksum="c")
    fgsm, square = (attacks.settings(name, "8/255", **common) for name in attacks.ATTACKS)
    assert fgsm == attacks.settings("fgsm", "8/255", **common | {"queries": 7}), "queries mean nothing to FGSM"
    assert square != attacks.settings("square", "8/255", **common | {"queries": 7})
    assert "torchattacks 3.3.0" == fgsm["library"] and fgsm["eps"] == "8/255"


@pytest.mark.cuda
@pytest.mark.parametrize("attack", attacks.ATTACKS)
def test_cuda_is_the_cpu_up_to_rounding(attack):
    """Same ball, same counts to the few images whose sign or margin is decided by rounding; the CUDA generator is left alone too."""
    model, images, labels = touchy(200)
    on_cpu = attacks.evaluate(model, images, labels, attack, "4/255", queries=20)
    state = torch.cuda.get_rng_state()
    on_cuda = attacks.evaluate(model.cuda(), images, labels, attack, "4/255", queries=20)
    assert torch.equal(torch.cuda.get_rng_state(), state)
    assert abs(on_cpu["fooled"] - on_cuda["fooled"]) <= 20 and on_cpu["clean_correct"] == on_cuda["clean_correct"]
    assert attacks.perturb(model, images, labels, attack, "4/255", queries=3).device.type == "cpu"
