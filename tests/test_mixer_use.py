"""The mixers in a program: types, formats, torchvision's places, and mistakes."""

import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch
from batches import batch, each_mixer, generator
from torch.utils.data import DataLoader, TensorDataset, default_collate
from torchvision.transforms import v2

from rmlib import UserError, mixers
from rmlib.mixers import ALPHAS, CutMix, Mixup, NoMix, RegionMixup, beta


@each_mixer
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_types_and_formats_are_kept(make, dtype, memory_format):
    images, labels = batch()
    reference, targets = make(4)(images, labels, generator=generator())
    given_ = images.to(dtype).contiguous(memory_format=memory_format)
    mixed, same_targets = make(4)(given_, labels, generator=generator())
    assert mixed.dtype == dtype and mixed.is_contiguous(memory_format=memory_format)
    assert same_targets.dtype == torch.float32 and torch.equal(targets, same_targets)
    torch.testing.assert_close(
        mixed.float(), reference, atol=0.02 if dtype.itemsize == 2 else 1e-6, rtol=0
    )


@each_mixer
def test_a_single_image(make):
    images, labels = batch(count=1)
    mixed, targets = make(4)(images, labels)
    torch.testing.assert_close(mixed, images)  # its only partner is itself
    torch.testing.assert_close(targets, torch.eye(4)[labels])


def test_views_and_slices_are_mixed_right():
    images, labels = batch(height=20, width=20)
    strided = images[:, :, ::2, 1::2]
    a, b = (
        RegionMixup(4)(x, labels, generator=generator())[0] for x in (strided, strided.contiguous())
    )
    assert torch.equal(a, b)


def test_it_goes_wherever_torchvision_mixup_goes():
    images, labels = batch(count=8)
    dataset = TensorDataset(images, labels)
    for mix in (v2.MixUp(num_classes=4), RegionMixup(4)):
        loader = DataLoader(
            dataset, batch_size=8, collate_fn=lambda samples: mix(*default_collate(samples))
        )
        uses = [
            next(iter(loader)),
            v2.Compose([v2.Identity(), mix])(images, labels),
            mix((images, labels)),
        ]
        for mixed, targets in uses:
            assert mixed.shape == images.shape and targets.shape == (8, 4)
            torch.testing.assert_close(targets.sum(1), torch.ones(8))
        sample = mix({"image": images, "labels": labels, "name": "kept"})
        assert sample["labels"].shape == (8, 4) and sample["name"] == "kept"


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda x, y: RegionMixup(4)(x[0], y), "did you batch"),
        (lambda x, y: RegionMixup(4)((x * 255).to(torch.uint8), y), "uint8"),
        (lambda x, y: RegionMixup(4)(x, y.float()), "int64"),
        (lambda x, y: RegionMixup(4)(x, y[:3]), r"\(5,\)"),
        (lambda x, y: RegionMixup(4)(x, y + 2), "num_classes=4"),
        (lambda x, y: RegionMixup(4)(x, y - 1), r"\[-1"),
        (lambda x, y: RegionMixup(4, k=8)(x, y), "k <= 7"),
        (
            lambda x, y: RegionMixup(4).apply(x, y, RegionMixup(4).draw((4, 3, 7, 11))),
            "draw a new one",
        ),
        (lambda x, y: RegionMixup(4, k=0), "k=0"),
        (lambda x, y: RegionMixup(4, k=1.5), "k=1.5"),
        (lambda x, y: RegionMixup(4, regions="hexagons"), "hexagons"),
        (lambda x, y: Mixup(4, alpha=0), "alpha=0"),
        (lambda x, y: CutMix(4, alpha=float("nan")), "alpha=nan"),
        (lambda x, y: CutMix(4, prob=1.2), "prob=1.2"),
        (lambda x, y: NoMix(1), "num_classes=1"),
        (lambda x, y: NoMix(4)(x), "labels"),
        (lambda x, y: NoMix(4)({"pictures": x}), "pictures"),
        (lambda x, y: NoMix(4)({"image": x, "mask": x, "label": y}), "one 4-d tensor"),
        (lambda x, y: RegionMixup(4)(x, y.int()), "labels.long"),
        (lambda x, y: RegionMixup(4)(x[:0], y[:0]), "batch"),
        (lambda x, y: RegionMixup(4).draw(None), "did you batch"),
        (lambda x, y: RegionMixup(4).draw((4, 3, 8.5, 8)), "shape=8.5: expected a whole number"),
        (lambda x, y: RegionMixup(4).draw("4388"), "did you batch"),
    ],
)
def test_mistakes_get_one_clear_line(call, words):
    with pytest.raises(ValueError, match=words) as error:
        call(*batch())
    assert "\n" not in str(error.value)


WHOLE = ((RegionMixup, "num_classes"), (partial(RegionMixup, 4), "k"))
REAL = ((partial(Mixup, 4), "alpha"), (partial(CutMix, 4), "prob"), (partial(CutMix, 4), "alpha"))
NO_NUMBERS = ("1", True, np.True_, [1], 1j, float("nan"), float("inf"), 10**5000, -1)


@pytest.mark.parametrize("make, name", WHOLE + REAL)
def test_a_setting_that_is_no_such_number_is_refused(make, name):
    # without a number of classes a mixer takes soft labels
    more = [10.7] if (make, name) in WHOLE else []
    for value in (*NO_NUMBERS, *more, *([] if name == "num_classes" else [None])):
        with pytest.raises(UserError, match=f"{name}=.*expected a.*number from") as error:
            make(**{name: value})
        assert len(str(error.value)) < 200


def test_numbers_of_numpy_are_numbers():
    mixer = RegionMixup(np.int64(10), np.uint8(3), np.float32(0.5))
    assert (mixer.num_classes, mixer.k, mixer.alpha) == (10, 3, 0.5)
    assert type(mixer.num_classes) is type(mixer.k) is int
    assert CutMix(10.0, prob=1).num_classes == 10


def test_switches_are_no_words():
    for name in ("per_sample", "shared_partner", "shared_weight"):
        with pytest.raises(UserError, match=f"{name}='no': expected True or False"):
            RegionMixup(4, **{name: "no"})


def test_draws_are_numbers_wherever_alpha_may_lie():
    """Beyond the limits Gamma's logarithms overflow, and the draws were NaN."""
    for alpha in ALPHAS:
        lam = beta(alpha, (1000,), torch.Generator().manual_seed(0))
        assert ((lam == lam.round()) if alpha < 1 else (lam - 0.5).abs() < 1e-6).all()
        assert 0 < lam.mean() < 1
    for alpha in (1e-320, 1e301):
        with pytest.raises(UserError, match="alpha=.*expected a number from 1e-300 to 1e.300"):
            Mixup(4, alpha)


def test_importing_the_mixers_needs_torch_alone():
    code = (
        "import sys, torch; before = set(sys.modules); import rmlib.mixers; new = {m.split('.')[0]"
        " for m in set(sys.modules) - before}; assert new <= {'rmlib'} |"
        " set(sys.stdlib_module_names), new"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    "mixer",
    [
        Mixup(4),
        RegionMixup(4),
        RegionMixup(4, k=4, per_sample=True),
        RegionMixup(4, k=3),
        CutMix(4),
        RegionMixup(4, k=2, regions="random"),
    ],
    ids=repr,
)
def test_blend_compiles_to_the_same(mixer):
    """What `rmlib bench --compile` times; captured by dynamo without its backend, so that no
    compiler is needed.
    """
    images, labels = batch(height=8, width=12)
    plan = mixer.draw(images.shape, generator())
    parts = (images, plan.boxes.tolist(), plan.lam, plan.partners)
    torch.compiler.reset()
    compiled = torch.compile(mixers.blend, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(*parts), mixers.blend(*parts))


@each_mixer
def test_gradients_reach_the_images(make):
    """Hidden features can be mixed, too: the gradient of each image is the weight it has in all
    mixtures.
    """
    images, labels = batch()
    mixer = make(4)
    plan = mixer.draw(images.shape, generator())
    leaf = images.clone().requires_grad_()
    mixed, _ = mixer.apply(leaf, labels, plan)
    torch.testing.assert_close(mixed.detach(), mixer.apply(images, labels, plan)[0])
    mixed.sum().backward()
    assert leaf.grad.sum().item() == pytest.approx(images.numel(), rel=1e-5)


@pytest.mark.cuda
@each_mixer
def test_cuda_equals_cpu(make):
    images, labels = batch()
    plan = make(4).draw(images.shape, generator())
    on_cpu, on_cuda = (
        make(4).apply(images, labels, plan),
        make(4).apply(images.cuda(), labels.cuda(), plan),
    )
    for a, b in zip(on_cpu, on_cuda):
        torch.testing.assert_close(a, b.cpu())


@each_mixer
def test_inputs_stay_untouched_and_results_repeat(make):
    images, labels = batch()
    before, labels_before, state = images.clone(), labels.clone(), torch.get_rng_state()
    first, second = (make(4)(images, labels, generator=generator(7)) for _ in range(2))
    assert torch.equal(images, before) and torch.equal(labels, labels_before)
    assert torch.equal(torch.get_rng_state(), state), (
        "drew from the global generator although one was given"
    )
    assert all(torch.equal(a, b) for a, b in zip(first, second))
    assert first[0].data_ptr() != images.data_ptr()


def test_the_global_generator_is_the_default():
    images, labels = batch()
    results = []
    for _ in range(2):
        torch.manual_seed(5)
        results.append(RegionMixup(4)(images, labels)[0])
    assert torch.equal(*results) and not torch.equal(results[0], RegionMixup(4)(images, labels)[0])
