"""Splits, random streams and the loader of a run."""

import numpy as np
import pytest
import torch
from standins import draw_pictures
from torch.nn import functional as F

from rmlib import UserError
from rmlib.data import Loader, load, rank_in_class, stream
from rmlib.mixers import NoMix, RegionMixup


def test_val_is_a_balanced_tenth_and_holdout_leaves_it_out(pictures):
    name = f"folder:{pictures}"
    everything, val, rest, test = (
        load(name),
        load(name, split="val"),
        load(name, holdout=True),
        load(name, split="test"),
    )
    assert (
        len(val) == 6
        and torch.bincount(val.labels).tolist() == [2, 2, 2]
        and len(rest) == 54
        and len(test) == 30
    )
    keys = lambda data: {image.numpy().tobytes() for image in data.images}  # noqa: E731
    assert (
        keys(val) | keys(rest) == keys(everything)
        and not keys(val) & keys(rest)
        and not keys(test) & keys(everything)
    )


def test_a_class_too_small_for_a_tenth_is_named(tmp_path):
    name = f"folder:{draw_pictures(tmp_path, 9, 2)}"
    for options in ({"split": "val"}, {"holdout": True}):
        with pytest.raises(UserError, match="class '.*' has 9 training images: at least 10"):
            load(name, **options)
    assert len(load(name)) == 27


def test_subsets_are_balanced_and_nested(pictures):
    data = load(f"folder:{pictures}")
    small, larger = data.subset(15), data.subset(30)
    assert torch.bincount(small.labels).tolist() == [5, 5, 5] and data.subset(None) is data
    assert {i.numpy().tobytes() for i in small.images} < {
        i.numpy().tobytes() for i in larger.images
    }
    for wrong in (16, 0, 90):
        with pytest.raises(UserError, match=str(wrong)):
            data.subset(wrong)
    assert rank_in_class(torch.tensor([0, 0, 2, 2, 2])).tolist() == [0, 1, 0, 1, 2]


def test_channel_stats(pictures):
    data = load(f"folder:{pictures}")
    mean, std = data.channel_stats()
    pixels = data.images.numpy().astype(float) / 255
    np.testing.assert_allclose(mean, pixels.mean((0, 2, 3)))
    np.testing.assert_allclose(std, pixels.std((0, 2, 3)))


def test_streams_are_functions_of_seed_purpose_and_epoch():
    draw = lambda *key: torch.rand(3, generator=stream(*key)).tolist()  # noqa: E731
    assert draw(0, "order", 1) == draw(0, "order", 1)
    keys = [
        (seed, purpose, epoch)
        for seed in (0, 1, 11)
        for purpose in ("order", "mixing", "augmentation")
        for epoch in (0, 1, 11)
    ]
    assert len({tuple(draw(*key)) for key in keys}) == len(keys)


@pytest.fixture
def small(pictures):
    return load(f"folder:{pictures}")


def test_loader_against_a_plain_reference(small):
    """Pad, crop and flip image by image with the numbers of the streams."""
    seed, epoch = 3, 2
    images, labels = (torch.cat(parts) for parts in zip(*Loader(small, 16, seed).epoch(epoch)))
    order = torch.randperm(60, generator=stream(seed, "order", epoch))
    random = stream(seed, "augmentation", epoch)
    dy, dx = torch.randint(0, 5, (2, 60), generator=random).tolist()
    flip = (torch.rand(60, generator=random) < 0.5).tolist()
    for i, index in enumerate(order.tolist()):
        padded = F.pad(small.images[index], (2, 2, 2, 2))
        image = padded[:, dy[i] : dy[i] + 8, dx[i] : dx[i] + 12]
        image = image.flip(2) if flip[i] else image
        torch.testing.assert_close(images[i], image / 255.0)
        assert labels[i] == small.labels[index]
    assert set(dy) == set(dx) == set(range(5)) and 10 < sum(flip) < 50


def test_loader_without_augmentation_shows_every_image_once(small):
    loader = Loader(small, 16, 0, augment=False)
    batches = list(loader.epoch(0))
    assert len(batches) == len(loader) == 4 and [len(labels) for _, labels in batches] == [
        16,
        16,
        16,
        12,
    ]
    shown = torch.cat([images for images, _ in batches]).mul(255).round().to(torch.uint8)
    assert {i.contiguous().numpy().tobytes() for i in shown} == {
        i.numpy().tobytes() for i in small.images
    }
    assert all(
        images.is_contiguous(memory_format=torch.channels_last) and images.max() <= 1
        for images, _ in batches
    )


def test_all_mixers_see_the_same_clean_batches(small):
    """Whatever a mixer draws, the next clean batch stays what it was."""
    seen = []
    for mixer in (NoMix(3), RegionMixup(3, k=4, per_sample=True)):
        mixing = stream(0, "mixing", 0)
        seen.append([])
        for images, labels in Loader(small, 16, 0).epoch(0):
            mixer(images, labels, generator=mixing)
            seen[-1].append((images, labels))
    assert all(torch.equal(a, b) for first, second in zip(*seen) for a, b in zip(first, second))


def test_loader_checks_labels_once(small):
    import dataclasses

    with pytest.raises(UserError, match="there are 2 classes"):
        Loader(dataclasses.replace(small, classes=("a", "b")), 16, 0)


@pytest.mark.cuda
def test_cuda_batches_are_those_of_the_cpu(small):
    """Up to the last bit: dividing by 255 rounds otherwise there."""
    for (a, la), (b, lb) in zip(
        Loader(small, 16, 0).epoch(1), Loader(small, 16, 0, device="cuda").epoch(1)
    ):
        torch.testing.assert_close(a, b.cpu(), rtol=1e-6, atol=0)
        assert torch.equal(la, lb.cpu())
