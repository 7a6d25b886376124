"""Recordings on the CPU that, as CUDA graphs do, repeat the operations of one call."""

import functools
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

from rmlib.data import ImageSet
from rmlib.evaluate import full_precision
from rmlib.params import TrainParams
from rmlib.recorded import Recording
from rmlib.train import make_run, training

COUNT, BATCH, CLASSES = 40, 16, 3  # the last batch has 8 images
CLASS_NAMES = ("a", "b", "c")
METHODS = [
    {"mixer": "none"},
    {"mixer": "none", "clean_weight": 0},
    {"mixer": "mixup"},
    {"mixer": "cutmix", "cutmix_prob": 0.5},
    {"mixer": "region_mixup"},
    {"mixer": "region_mixup", "clean_weight": 0},
    {"mixer": "region_mixup", "k": 3, "regions": "random"},
    {"mixer": "region_mixup", "per_sample": True, "shared_partner": True},
    {"mixer": "region_mixup", "average": True, "alpha": 0.4},
]


class Tape(TorchDispatchMode):
    """All operations on tensors of one call, with every other argument as it was; ``replay``
    repeats them. What a CUDA graph is, on the CPU.
    """

    def __init__(self, function):
        super().__init__()
        self.calls, self.kept = [], []
        with self:
            function()

    def __torch_dispatch__(self, operation, types, arguments=(), keywords=None):
        results = operation(*arguments, **(keywords or {}))
        self.calls.append((operation, arguments, keywords or {}, results))
        return results

    @torch.no_grad()
    def replay(self):
        # tensors of the recording -> those of this replay; all others are what they were: static
        made = {}

        def now(values):
            return tree_map_only(torch.Tensor, lambda tensor: made.get(id(tensor), tensor), values)

        for operation, arguments, keywords, results in self.calls:
            again = operation(*now(arguments), **now(keywords))
            known = {
                id(tensor)
                for tensor in tree_flatten((arguments, keywords))[0]
                if isinstance(tensor, torch.Tensor)
            }
            for old, new in zip(tree_flatten(results)[0], tree_flatten(again)[0]):
                if (
                    isinstance(old, torch.Tensor) and id(old) not in known
                ):  # not what an operation in place hands back
                    made[id(old)] = new


class Replayed(Recording):
    """Steps replayed from recordings, on the CPU."""

    def capture(self, size):
        return Tape(lambda: self.compute(size))


class Called(Recording):
    """The same steps, called one after the other, in the precision in which others record."""

    def record(self):
        for size in self.rows:
            call = full_precision()(functools.partial(self.compute, size))
            self.graphs[size] = SimpleNamespace(replay=call)


def make(changes, seed=0, device="cpu"):
    params = TrainParams(width=2, batch_size=BATCH, epochs=2, lr=0.05, seed=seed, **changes)
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (COUNT, 3, 9, 12), dtype=torch.uint8, generator=generator)
    return make_run(
        params, ImageSet(images, torch.arange(COUNT) % CLASSES, CLASS_NAMES, ""), device
    )


def trained(run, kind=None, epochs=2):
    """Weights, running statistics and totals after some epochs; ``kind`` records the steps."""
    recording, places, sums = kind(run) if kind else None, [], 0
    for _ in training(run, recording):
        places.append((run.epoch, run.step))
        if run.step == 0:
            sums = sums + run.sums
        if places[-1] == (epochs, 0):
            break
    expected = [(epoch, step) for epoch in range(epochs) for step in (1, 2, 3, 0)]
    assert places == [(epoch + (step == 0), step) for epoch, step in expected]
    return [*run.model.state_dict().values(), sums]


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


each_method = pytest.mark.parametrize(
    "changes", METHODS, ids=lambda changes: "-".join(map(str, changes.values()))
)
