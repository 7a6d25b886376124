"""The mixers in all their forms, and batches for them."""

import pytest
import torch

from rmlib.mixers import CutMix, Mixup, NoMix, RegionMixup

ALL = {
    "none": NoMix,
    "mixup": Mixup,
    "cutmix": CutMix,
    "cutmix prob": lambda n: CutMix(n, prob=0.5),
    "region k=2": RegionMixup,
    "region k=3": lambda n: RegionMixup(n, k=3, alpha=0.4),
    "random": lambda n: RegionMixup(n, k=3, regions="random"),
    "per sample": lambda n: RegionMixup(n, k=2, per_sample=True),
    "per sample random": lambda n: RegionMixup(n, k=3, regions="random", per_sample=True),
    "shared partner": lambda n: RegionMixup(n, k=2, shared_partner=True),
    "shared weight": lambda n: RegionMixup(n, k=2, shared_weight=True),
}
each_mixer = pytest.mark.parametrize("make", ALL.values(), ids=ALL.keys())


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def batch(count=5, channels=3, height=7, width=11, classes=4, seed=0):
    g = generator(seed)
    return torch.rand(count, channels, height, width, generator=g), torch.randint(
        0, classes, (count,), generator=g
    )
