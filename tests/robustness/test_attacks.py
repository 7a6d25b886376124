"""Attacks against networks whose answer is known in closed form, and against careless callers."""

import warnings

import numpy as np
import pytest
import torch
import torchattacks
from conftest import mutated
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from toys import Linear, loud, pixels, touchy

from rmlib import UserError
from rmlib.data import stream
from rmlib.models import preact_resnet18
from rmlib.packed import unpack_bits
from rmlib.robustness import attacks

FAST = (
    "fgsm",
    "fgsm_margin",
    "pgd",
    "square",
    "square_torchattacks",
)  # all but autoattack, which has tests of its own


def few(attack, number):
    """The option that makes an attack short, where it has one."""
    name = {"pgd": "steps"}.get(attack, "queries")
    return {name: number} if name in attacks.OPTIONS[attack] else {}


def network(seed=0):
    torch.manual_seed(seed)
    return preact_resnet18(4, 2).eval()


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


@pytest.mark.parametrize("attack", attacks.BY_GRADIENT)
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


def test_square_torchattacks_is_the_library_with_a_seed_per_batch():
    model, images, labels = touchy(20)
    found = attacks.perturb(
        model, images, labels, "square_torchattacks", "8/255", queries=20, batch_size=10, seed=4
    )
    seeds = [stream(4, "square attack", number).initial_seed() for number in range(2)]
    library = [
        torchattacks.Square(model, eps=8 / 255, n_queries=20, seed=seed)(
            images[i : i + 10], labels[i : i + 10]
        )
        for seed, i in zip(seeds, (0, 10))
    ]
    assert torch.equal(found, torch.cat(library)) and not torch.equal(found, images)
    assert seeds[0] != seeds[1]


@pytest.mark.parametrize("attack", ["square", "square_torchattacks"])
def test_square_leaves_the_lost_images_alone_and_fgsm_does_not(attack):
    model, images, labels = touchy(30)
    wrong = model(images).argmax(1) != labels
    assert 0 < wrong.sum() < 30
    square = attacks.perturb(model, images, labels, attack, "16/255", queries=10)
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
    for attack in attacks.BY_GRADIENT:
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
    for attack in attacks.BY_GRADIENT:
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


def test_autoattack_says_what_it_needs():
    model, images, labels = touchy(4)
    with pytest.raises(
        UserError,
        match=(
            "autoattack needs a float32 network of at least 4 classes, this one is torch.float32"
            " with 2"
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
    model = network().train()
    model.layer2[0].bn1.eval()
    model(torch.rand(4, 3, 8, 8)).sum().backward()
    model.linear.weight.requires_grad_(False)
    modes = [module.training for module in model.modules()]
    gradients = [(p.grad, None if p.grad is None else p.grad.clone()) for p in model.parameters()]
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    images, labels = pixels(4 if attack == "autoattack" else 12)
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
            "queries=5 does nothing for attack 'fgsm' .it belongs to square, square_torchattacks",
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


def test_an_attack_that_cheats_is_refused(monkeypatch):
    honest = torchattacks.FGSM.forward
    monkeypatch.setattr(
        torchattacks.FGSM,
        "forward",
        lambda self, images, labels: (honest(self, images, labels) + 0.5).clamp(0, 1),
    )
    with pytest.raises(RuntimeError, match="left the ball"):
        attacks.perturb(network(), *pixels(), "fgsm", "8/255")


@pytest.mark.parametrize(
    "function, old, new, caught_by",
    [
        ("_fgsm_on_margin", "images - size", "images + size", "closed form"),
        ("_fgsm_on_margin", "size * gradient.sign()", "size * gradient", "closed form"),
        ("_by_gradient", "eps=size, alpha", "eps=2 * size, alpha", "closed form"),
        ("_by_gradient", "alpha=size / 8", "alpha=size / 80", "closed form"),
        ("_by_gradient", "random_start=False", "random_start=True", "library"),
        (
            "_by_gradient",
            "zip(images.split(batch_size)",
            "zip(images.flip(0).split(batch_size)",
            "closed form",
        ),
        ("right", "> 0", ">= 0", "tie"),
        ("right", "images.split(batch_size)", "images.flip(0).split(batch_size)", "counts"),
        ("evaluate", "(before & ~after)", "(~after)", "closed form"),
        ("evaluate", "(before & after)", "after", "turned right"),
        (
            "query_curve",
            'left, curve = result["clean_correct"]',
            'left, curve = result["images"]',
            "curve",
        ),
    ],
)
def test_wrong_versions_are_caught(function, old, new, caught_by, monkeypatch):
    """Each of the tests above must be able to fail."""

    def check():
        if caught_by == "tie":
            assert not attacks.right(
                loud(Linear(), 0.0), pixels(4, 4)[0], torch.zeros(4, dtype=torch.int64), 4
            ).any(), "logits all alike name no class"
        for attack in attacks.BY_GRADIENT if caught_by == "closed form" else ():
            test_attacks_by_gradient_on_a_linear_network_are_the_closed_form(attack)
        {
            "library": test_pgd_is_torchattacks_without_a_random_start,
            "counts": lambda: test_the_counts_fit_the_images("fgsm"),
            "curve": test_the_query_curve_starts_clean_and_ends_after_the_attack,
            "turned right": test_an_image_can_turn_right_and_is_not_robust,
        }.get(caught_by, lambda: None)()

    check()
    monkeypatch.setattr(attacks, function, mutated(getattr(attacks, function), old, new))
    with pytest.raises((AssertionError, RuntimeError, ValueError)):
        check()


def test_settings_name_what_the_result_depends_on():
    common = dict(batch_size=50, image_seed=0, images=10, checksum="c")
    fgsm, square = (attacks.settings(name, "8/255", **common) for name in ("fgsm", "square"))
    assert square["queries"] == 100 and square["seed"] == 0 and "queries" not in fgsm
    assert square != attacks.settings("square", "8/255", **common, queries=7)
    assert (
        fgsm["library"] == "torchattacks 3.3.0"
        and fgsm["eps"] == "8/255"
        and square["library"].startswith("rmlib ")
    )
    with pytest.raises(UserError, match="does nothing for attack 'fgsm'"):
        attacks.settings("fgsm", "8/255", **common, queries=7)


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
