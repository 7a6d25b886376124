"""Our Square attack against an independent recomputation, torchattacks' schedule and distribution,
and deliberately wrong versions of itself.
"""

import math

import numpy as np
import pytest
import torch
import torchattacks
from torch import nn

from rmlib.measuring import image_keys
from rmlib.robustness import square as module
from rmlib.robustness.square import random_words, side, square


class Counting(nn.Module):
    """Margin <w, x> + bias against one other class; keeps every batch it was asked about."""

    def __init__(self, shape, dtype=torch.float64, seed=0, scale=1.0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.w = nn.Parameter(
            scale * torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype),
            requires_grad=False,
        )
        self.bias, self.asked = 0.0, []

    def forward(self, images):
        self.asked.append(images.clone())
        margin = (images * self.w).flatten(1).sum(1) + self.bias
        return torch.stack([margin, torch.zeros_like(margin)], 1)


def case(count=12, shape=(3, 8, 9), dtype=torch.float64, **options):
    """A network that has most images right, by margins of the size that an attack with 4/255 can
    overcome or not.
    """
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(
        120, 136, (count, *shape), generator=generator
    )  # alike, so that small changes decide
    images[:, :, 0] *= torch.randint(
        0, 2, images[:, :, 0].shape, generator=generator
    )  # and some at the end of the range
    images[:, :, -1] += 119
    images = images.clamp(0, 255).to(dtype) / 255
    model = Counting(shape, dtype, **options)
    model.bias = -float(model(images)[:, 0].quantile(0.25))
    model.asked.clear()
    return model, images, torch.zeros(count, dtype=torch.int64)


def by_hand(model, image, eps, queries, seed):
    """The attack on one image, written from the paper's pseudocode with the image's own random
    numbers: (image, right, queries).
    """
    channels, height, width = image.shape
    (key,) = image_keys(image[None], seed, "square")

    def margin(candidate):
        logits = model(candidate[None])[0]
        return float(logits[0] - logits[1])

    if margin(image) <= 0:
        return image, False, 0
    signs = random_words([key], 0, channels * width)[0].reshape(channels, width) >> 31
    best = image + eps * (2 * signs.to(image)[:, None, :] - 1)
    best, asked = best.clamp(0, 1), 1
    lowest = margin(best)
    while lowest > 0 and asked < queries:
        number = asked - 1
        words = (
            random_words([key], 1 + number // 100, 100 * (2 + channels))[0]
            .reshape(100, -1)[number % 100]
            .tolist()
        )
        s = side(number, queries, height, width)
        y, x = words[0] * (height - s) // 2**32, words[1] * (width - s) // 2**32
        candidate = best.clone()
        for channel in range(channels):
            sign = 1 if words[2 + channel] >= 2**31 else -1
            candidate[channel, y : y + s, x : x + s] = (
                image[channel, y : y + s, x : x + s] + sign * eps
            ).clamp(0, 1)
        asked, value = asked + 1, margin(candidate)
        if value < lowest:
            best, lowest = candidate, value
    return best, lowest > 0, asked


# 130 queries: more than one block of random numbers
@pytest.mark.parametrize("queries, eps", [(30, 4 / 255), (130, 2 / 255)])
def test_it_is_the_attack_written_by_hand(queries, eps):
    """Every promise of the attack on one case."""
    model, images, labels = case(24)
    found, right, used = square(model, images, labels, eps, queries=queries, batch_size=5, seed=3)
    rows = sum(len(batch) for batch in model.asked)
    assert rows == len(images) + int(used.sum()), "one clean evaluation, and the queries it reports"
    assert used.max() <= queries and (found - images).abs().max() <= eps + 1e-7
    assert found.min() >= 0 and found.max() <= 1
    for i, image in enumerate(images):
        expected, stands, asked = by_hand(model, image, eps, queries, 3)
        assert torch.equal(found[i], expected)
        assert (bool(right[i]), int(used[i])) == (stands, asked)
    assert 0 < right.sum() < (used > 0).sum() < len(images), (
        "the case has misclassified, fallen and standing images"
    )
    assert len(used[~right].unique()) > 5, "that fall at different times"


@pytest.mark.parametrize(
    "size, sides", [(32, (29, 14, 10, 7, 5, 4, 3, 2, 1)), (64, (57, 29, 20, 14, 10, 7, 5, 4, 3))]
)
def test_schedule_of_a_hundred_queries(size, sides):
    firsts = (0, 1, 3, 6, 11, 21, 41, 61, 81, 99)
    expected = [s for s, a, b in zip(sides, firsts, firsts[1:]) for _ in range(a, b)]
    assert [side(i, 100, size, size) for i in range(99)] == expected


@pytest.mark.parametrize("queries", [20, 100, 999, 5000])
def test_schedule_is_torchattacks(queries):
    library = torchattacks.Square(Counting((1, 1, 1)), n_queries=queries)
    for number in range(queries):
        assert side(number, queries, 32, 32) == max(
            round(math.sqrt(library.p_selection(number) * 32 * 32)), 1
        )


@pytest.mark.parametrize("queries", [1, 2, 7, 100])
def test_a_budget_of_n_is_n_evaluations(queries):
    model, images, labels = case()
    model.bias = 1e6  # never fooled
    _, right, used = square(model, images, labels, 8 / 255, queries=queries, batch_size=4)
    assert right.all() and set(used.tolist()) == {queries}
    rows = torch.cat(model.asked)
    assert len(rows) == len(images) * (1 + queries)
    perturbed = rows[len(images) :]
    assert not any((row == images).flatten(1).all(1).any() for row in perturbed), (
        "every query is about a perturbed image"
    )


def test_the_first_query_is_vertical_stripes():
    model, images, labels = case()
    model.bias = 1e6
    found, _, _ = square(model, images * 0.5 + 0.25, labels, 0.1, queries=1)
    stripes = found - (images * 0.5 + 0.25)
    assert torch.allclose(stripes.abs(), torch.tensor(0.1, dtype=torch.float64)) and torch.allclose(
        stripes, stripes[:, :, :1].expand_as(stripes)
    )
    assert abs(float(stripes.sign().mean())) < 0.2, "as many up as down"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_no_image_depends_on_its_neighbours(dtype):
    """Permuted, alone, in other batches, in part: every proposal is bit-equal; in float64 every
    verdict and count, too.
    """
    model, images, labels = case(20, dtype=dtype)
    everything = square(model, images, labels, 4 / 255, queries=40, batch_size=20, seed=2)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    every = torch.arange(20)
    for index, batch_size in ((every, 1), (every, 7), (order, 20), (order, 3), (order[:5], 5)):
        some = square(
            model, images[index], labels[index], 4 / 255, queries=40, batch_size=batch_size, seed=2
        )
        if dtype == torch.float64:
            assert all(torch.equal(a[index], b) for a, b in zip(everything, some))
    proposals = []
    for batch_size in (20, 3):
        model.bias = 1e6
        model.w.data.zero_()  # ties everywhere: what is proposed does not hang on what was kept
        model.asked.clear()
        square(model, images, labels, 4 / 255, queries=40, batch_size=batch_size, seed=2)
        rows = torch.cat(model.asked)
        proposals.append(rows.view(41, 20, *images.shape[1:]))
    assert torch.equal(*proposals) and len(proposals[0].flatten(1).unique(dim=0)) == 41


def test_looking_less_often_changes_nothing(monkeypatch):
    """On a GPU fallen images leave the batch only now and then; nothing may happen to them
    meanwhile.
    """
    model, images, labels = case(20)
    often = square(model, images, labels, 4 / 255, queries=40, seed=2)
    monkeypatch.setitem(module.SWEEPS, "cpu", 7)
    seldom = square(model, images, labels, 4 / 255, queries=40, seed=2)
    assert all(torch.equal(a, b) for a, b in zip(often, seldom)) and 0 < often[1].sum() < 15


def test_random_numbers_are_the_same_on_every_machine():
    """Pinned: SHA-256 and SHAKE-128 of the pixels, little-endian words."""
    image = torch.arange(48, dtype=torch.uint8).view(1, 3, 4, 4)
    (key,) = image_keys(image, 5, "square")
    assert key.hex()[:16] == "423ba078bf7fba3a"
    assert random_words([key], 0, 3).tolist() == [[2576112108, 464265893, 96399940]]
    assert (
        image_keys(image.double() / 255, 5, "square")
        == image_keys(image.float().to(memory_format=torch.channels_last) / 255, 5, "square")
        == [key]
    )
    others = {
        image_keys(image, 6, "square")[0],
        image_keys(image, 5, "else")[0],
        image_keys(image + 1, 5, "square")[0],
    }
    assert len(others | {key}) == 4


def test_random_numbers_are_uniform():
    words = random_words([bytes([i]) for i in range(200)], 1, 500).double() / 2**32
    assert abs(words.mean() - 0.5) < 0.005 and abs(words.std() - math.sqrt(1 / 12)) < 0.005
    assert len(words.unique()) > 0.99 * words.numel()
    assert abs(np.corrcoef(words[0], words[1])[0, 1]) < 0.2


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 5, 11), (3, 1, 1), (4, 2, 3)])
def test_any_shape_of_images(shape):
    model, images, labels = case(6, shape)
    found, _, used = square(model, images, labels, 0.1, queries=12)
    assert found.shape == images.shape and used.max() <= 12
    assert (found - images).abs().max() <= 0.1 + 1e-7


def test_nothing_to_attack_is_not_asked():
    model, images, labels = case()
    model.bias = -1e6
    found, right, used = square(model, images, labels, 0.1, queries=10)
    assert torch.equal(found, images) and not right.any() and not used.any()
    assert len(torch.cat(model.asked)) == len(images)


def test_same_success_as_torchattacks_over_seeds():
    """In distribution: mean success over seeds within what the spread over seeds allows."""
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 5, stride=2),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * 4 * 4, 3),
    ).eval()
    images = torch.rand(100, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    labels = model(images).argmax(1).detach()
    eps = 16 / 255

    @torch.no_grad()
    def ours(seed, batch=100):
        _, right, _ = square(model, images, labels, eps, queries=50, batch_size=batch, seed=seed)
        return right

    @torch.no_grad()
    def theirs(seed, batch=100):
        attack = torchattacks.Square(model, eps=eps, n_queries=50, seed=seed)
        parts = zip(images.split(batch), labels.split(batch))
        return model(torch.cat([attack(*part) for part in parts])).argmax(1) == labels

    def rates(attack):
        """Success of the attack with each seed."""
        return np.array([1 - attack(seed).double().mean().item() for seed in range(30)])

    own, peer = rates(ours), rates(theirs)
    allowed = 3 * math.sqrt((own.var(ddof=1) + peer.var(ddof=1)) / len(own))
    assert 0.3 < peer.mean() < 0.7 and abs(own.mean() - peer.mean()) < allowed
    assert own.std() < peer.std(), "shared squares make a whole batch lucky or unlucky together"
    assert torch.equal(ours(0), ours(0, 16)), "a verdict does not hang on who else is there"
    assert not torch.equal(theirs(0), theirs(0, 16)), "torchattacks' does"
