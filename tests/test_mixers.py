"""What the mixers draw and compute, against the formula and other implementations."""

import numpy as np
import pytest
import torch
from batches import batch, each_mixer, generator
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms import v2

from rmlib import mixers
from rmlib.mixers import CutMix, Mixup, Plan, RegionMixup


def colour_error(mixer, count, height, width, seed):
    """Image i is 1 in channel i: after mixing, the channel means must be the soft targets."""
    images = torch.zeros(count, count, height, width)
    images[range(count), range(count)] = 1
    mixed, targets = mixer(images, torch.arange(count), generator=generator(seed))
    return (mixed.mean((2, 3)) - targets).abs().max().item()


@each_mixer
@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(2, 6),
    height=st.integers(3, 13),
    width=st.integers(3, 13),
    seed=st.integers(0, 2**30),
)
def test_colour(make, count, height, width, seed):
    assert colour_error(make(count), count, height, width, seed) < 1e-5


class NominalCutMix(CutMix):
    """The classic bug: the label weight is the number drawn (here: the area before clipping), not
    the area pasted.
    """

    def apply(self, images, labels, plan):
        mixed, targets = super().apply(images, labels, plan)
        w = plan.label_weights()[0].clamp(max=0.5)
        one_hot = torch.eye(self.num_classes)
        return mixed, w * one_hot[labels] + (1 - w) * one_hot[labels[plan.partners[0]]]


class EqualTiles(RegionMixup):
    """Another: 1 / k^2 for every tile, although tiles differ in size."""

    def apply(self, images, labels, plan):
        mixed, _ = super().apply(images, labels, plan)
        one_hot = torch.eye(self.num_classes)
        parts = [
            lam * one_hot[labels] + (1 - lam) * one_hot[labels[p]]
            for lam, p in zip(plan.lam, plan.partners)
        ]
        return mixed, sum(parts) / len(parts)


class Transposed(RegionMixup):
    """And a third: x and y exchanged, invisible on squares."""

    def draw(self, shape, generator=None):
        plan = super().draw((shape[0], shape[1], shape[3], shape[2]), generator)
        return Plan(plan.boxes, plan.lam, plan.partners, plan.width, plan.height)


@pytest.mark.parametrize(
    "wrong", [NominalCutMix, lambda n: EqualTiles(n, k=2), lambda n: Transposed(n, k=3)]
)
def test_the_colour_test_catches_wrong_mixers(wrong):
    errors = []
    for seed in range(5):
        try:
            errors.append(colour_error(wrong(4), 4, 7, 11, seed))
        except (RuntimeError, ValueError):  # a tile outside the image is caught, too
            errors.append(1.0)
    assert max(errors) > 0.01


@each_mixer
def test_pixels_one_by_one(make):
    """Independent recomputation of images and targets with plain loops."""
    images, labels = batch()
    mixer = make(4)
    plan = mixer.draw(images.shape, generator(3))
    mixed, targets = mixer.apply(images, labels, plan)
    count, channels, height, width = images.shape
    expected, expected_targets = np.zeros(images.shape), np.zeros((count, 4))
    for n in range(count):
        for y in range(height):
            for x in range(width):
                inside = [
                    t
                    for t, (x1, y1, x2, y2) in enumerate(plan.boxes.tolist())
                    if x1 <= x < x2 and y1 <= y < y2
                ]
                assert len(inside) <= 1, "tiles overlap"
                lam, partner = 1.0, n
                if inside:
                    lam, partner = (
                        plan.lam[inside[0], n % plan.lam.shape[1]].item(),
                        plan.partners[inside[0], n].item(),
                    )
                expected[n, :, y, x] = (
                    lam * images[n, :, y, x].numpy() + (1 - lam) * images[partner, :, y, x].numpy()
                )
                expected_targets[n, labels[n]] += lam / (height * width)
                expected_targets[n, labels[partner]] += (1 - lam) / (height * width)
    np.testing.assert_allclose(mixed.numpy(), expected, atol=1e-6)
    np.testing.assert_allclose(targets.numpy(), expected_targets, atol=1e-6)


@each_mixer
def test_weight_map_and_label_weights_belong_together(make):
    plan = make(4).draw((5, 3, 7, 11), generator(1))
    weights = plan.label_weights()
    torch.testing.assert_close(plan.weight_map().mean((1, 2)), weights[0].expand(plan.lam.shape[1]))
    torch.testing.assert_close(weights.sum(0), torch.ones(weights.shape[1]))
    assert ((plan.lam >= 0) & (plan.lam <= 1)).all()


@pytest.mark.parametrize("regions", ["grid", "random"])
@pytest.mark.parametrize("height, width, k", [(8, 8, 2), (7, 11, 3), (5, 5, 5), (4, 9, 1)])
def test_regions_cover_every_pixel_once(regions, height, width, k):
    covered = torch.zeros(height, width)
    for x1, y1, x2, y2 in (
        RegionMixup(4, k, regions=regions).draw((2, 3, height, width), generator()).boxes.tolist()
    ):
        assert x1 < x2 and y1 < y2
        covered[y1:y2, x1:x2] += 1
    assert (covered == 1).all()


def test_random_borders_move_and_grid_borders_do_not():
    boxes = {
        regions: {
            str(RegionMixup(4, 2, regions=regions).draw((2, 3, 9, 9), generator(s)).boxes.tolist())
            for s in range(20)
        }
        for regions in ("grid", "random")
    }
    assert len(boxes["grid"]) == 1 and len(boxes["random"]) > 10


def test_torchvision_mixup_is_an_oracle():
    images, labels = batch()
    shifted = torch.arange(5).roll(1)
    plan = Plan(torch.tensor([[0, 0, 11, 7]]), torch.tensor([[0.3]]), shifted[None], 7, 11)
    mixed, targets = Mixup(4).apply(images, labels, plan)
    theirs = v2.MixUp(num_classes=4)
    forced = {"labels": labels, "batch_size": 5, "lam": 0.3}
    torch.testing.assert_close(mixed, theirs.transform(images, forced))
    torch.testing.assert_close(targets, theirs.transform(labels, forced))


def test_torchvision_cutmix_is_an_oracle(monkeypatch):
    """The same numbers forced into both: same box, pixels and label weight, clipped or not."""
    images, labels = batch(height=9, width=14)
    theirs, ours = v2.CutMix(num_classes=4), CutMix(4)
    for lam in (0.02, 0.3, 0.77, 0.999):
        for column, row in ((0, 0), (13, 8), (5, 3), (13, 0)):
            uniform = torch.tensor([(column + 0.5) / 14, (row + 0.5) / 9, 0.5], dtype=torch.float64)
            monkeypatch.setattr(mixers, "beta", lambda *_: torch.tensor([lam], dtype=torch.float64))
            with monkeypatch.context() as patch:
                patch.setattr(torch, "rand", lambda *_, **__: uniform)
                plan = ours.draw(images.shape, generator())
            with monkeypatch.context() as patch:
                patch.setattr(theirs._dist, "sample", lambda *_: torch.tensor(lam))
                patch.setattr(
                    torch,
                    "randint",
                    lambda high, **_: torch.tensor([column if high == 14 else row]),
                )
                forced = theirs.make_params([images])
            assert tuple(plan.boxes[0].tolist()) == tuple(map(int, forced["box"]))
            plan = Plan(plan.boxes, plan.lam, torch.arange(5).roll(1)[None], 9, 14)
            mixed, targets = ours.apply(images, labels, plan)
            forced |= {"labels": labels, "batch_size": 5}
            torch.testing.assert_close(mixed, theirs.transform(images, forced))
            torch.testing.assert_close(targets, theirs.transform(labels, forced))


def test_the_textbook_loop_is_an_oracle():
    """The whole batch gathered for every tile, with its draws forced into a plan."""
    images, labels = batch(height=8, width=8)
    mixed, targets, one_hot = images.clone(), torch.zeros(5, 4), torch.eye(4)[labels]
    torch.manual_seed(0)
    for row in range(2):
        for column in range(2):
            lam, order = torch.rand(()).item(), torch.randperm(5)
            ys, xs = slice(4 * row, 4 * row + 4), slice(4 * column, 4 * column + 4)
            tile = images[:, :, ys, xs]
            mixed[:, :, ys, xs] = lam * tile + (1 - lam) * tile[order]
            targets += (lam * one_hot + (1 - lam) * one_hot[order]) / 4
    torch.manual_seed(0)
    lam, partners = zip(*[(torch.rand(()), torch.randperm(5)) for _ in range(4)])
    plan = RegionMixup(4, 2).draw(images.shape)
    ours = RegionMixup(4, 2).apply(
        images, labels, Plan(plan.boxes, torch.stack(lam)[:, None], torch.stack(partners), 8, 8)
    )
    torch.testing.assert_close(ours[0], mixed)
    torch.testing.assert_close(ours[1], targets)


def test_one_tile_is_mixup():
    images, labels = batch()
    for a, b in zip(
        Mixup(4, 0.7)(images, labels, generator=generator()),
        RegionMixup(4, 1, 0.7)(images, labels, generator=generator()),
    ):
        assert torch.equal(a, b)


@pytest.mark.parametrize("lam, expected", [(1.0, "the image"), (0.0, "the partners")])
def test_extreme_weights_are_exact(lam, expected):
    images, labels = batch()
    plan = RegionMixup(4, 2).draw(images.shape, generator())
    shifted = torch.arange(5).roll(1).expand(4, 5)
    mixed, targets = RegionMixup(4, 2).apply(
        images, labels, Plan(plan.boxes, torch.full((4, 1), lam), shifted, 7, 11)
    )
    order = torch.arange(5) if expected == "the image" else torch.arange(5).roll(1)
    assert torch.equal(mixed, images[order])
    torch.testing.assert_close(targets, torch.eye(4)[labels[order]])


@pytest.mark.parametrize("alpha", [0.05, 0.2, 1.0, 4.0])
def test_weights_follow_the_beta_distribution(alpha):
    lam = mixers.beta(alpha, (40_000,), generator())
    variance = 1 / (4 * (2 * alpha + 1))
    assert abs(lam.mean().item() - 0.5) < 5 * (variance / 40_000) ** 0.5
    assert abs(lam.var().item() - variance) < 0.02 * variance + 0.002
    assert lam.isfinite().all()


def test_tiny_alpha_gives_no_nan():
    lam = mixers.beta(1e-4, (10_000,), generator())
    assert lam.isfinite().all() and 0.45 < lam.mean() < 0.55


def test_options_switch_single_ingredients():
    shape = (6, 3, 8, 8)
    plain, per_sample = (
        RegionMixup(4).draw(shape, generator()),
        RegionMixup(4, per_sample=True).draw(shape, generator()),
    )
    assert (
        plain.lam.shape == (4, 1)
        and len(plain.lam.unique()) == 4
        and len({tuple(p) for p in plain.partners.tolist()}) == 4
    )
    assert per_sample.lam.shape == (4, 6) and len(per_sample.lam.unique()) == 24
    partner, weight = (
        RegionMixup(4, shared_partner=True).draw(shape, generator()),
        RegionMixup(4, shared_weight=True).draw(shape, generator()),
    )
    assert (
        len({tuple(p) for p in partner.partners.tolist()}) == 1 and len(partner.lam.unique()) == 4
    )
    assert len({tuple(p) for p in weight.partners.tolist()}) == 4 and len(weight.lam.unique()) == 1
    for plan in (plain, per_sample, partner, weight):
        assert all(sorted(row) == list(range(6)) for row in plan.partners.tolist()), (
            "partners are permutations"
        )


def test_cutmix_probability():
    g = generator()
    mixed = [
        CutMix(4, prob=0.3).draw((2, 3, 32, 32), g).label_weights()[1, 0] > 0 for _ in range(500)
    ]
    assert 0.2 < np.mean(mixed) < 0.4
    assert all((CutMix(4, prob=0).draw((2, 3, 8, 8), g).boxes == 0).all() for _ in range(20))
