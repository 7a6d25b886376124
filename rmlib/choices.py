"""All that is random or scheduled in an epoch, drawn beforehand as tables.

The tables are drawn on the CPU, from the streams of the seed, with one row for every step. So they
go to a device once an epoch, and every device and every mixer sees the same clean batches.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from rmlib.data import Loader, stream
from rmlib.mixers import Mixer, Plan
from rmlib.params import TrainParams


class Choices(NamedTuple):
    """The choices of an epoch of S steps with batches of B, or without the first axis of one step.

    ``order``, ``dy``, ``dx``, ``flip`` (S, B): see :meth:`rmlib.data.Loader.draw`.
    ``boxes`` (S, T, 4), ``lam`` (S, T, 1) or (S, T, B), ``partners`` (S, T, B): see
    :class:`rmlib.mixers.Plan`. ``lr`` (S,) float64: learning rates.
    Where the last batch is smaller, its row is filled up with zeros.
    """

    order: Tensor
    dy: Tensor
    dx: Tensor
    flip: Tensor
    boxes: Tensor
    lam: Tensor
    partners: Tensor
    lr: Tensor

    def to(self, device: torch.device) -> "Choices":
        """The same on another device."""
        return Choices(*(values.to(device) for values in self))

    def row(self, step: int, size: int) -> "Choices":
        """The choices of one step of an epoch, with ``size`` images."""
        return Choices(*(values[step] for values in self)).first(size)

    def first(self, size: int) -> "Choices":
        """Of one step: the choices of the first ``size`` images."""
        order, dy, dx, flip = (values[:size] for values in self[:4])
        lam, partners = self.lam[:, :size], self.partners[:, :size]
        return Choices(order, dy, dx, flip, self.boxes, lam, partners, self.lr)

    def plan(self, height: int, width: int) -> Plan:
        """Of one step: how its images are mixed."""
        return Plan(self.boxes, self.lam, self.partners, height, width)


def learning_rate(params: TrainParams, step: int, steps: int) -> float:
    """Learning rate of one of ``steps`` steps of the whole schedule, counted from 0.

    "multistep" divides by 10 at every milestone, a share of the schedule rounded up to a step.
    "onecycle" rises linearly from 4 % of the peak over the first fifth and falls linearly to zero.
    """
    if params.schedule == "multistep":
        passed = sum(step >= math.ceil(milestone * steps) for milestone in params.milestones)
        return params.lr * 0.1**passed
    warm = max(1, steps // 5)
    if step < warm:
        return params.lr * (0.04 + 0.96 * step / warm)
    return params.lr * ((steps - step) / (steps - warm))


def draw(params: TrainParams, loader: Loader, mixer: Mixer, epoch: int) -> Choices:
    """The choices of one epoch, on the CPU, a function of the run's seed and the epoch alone."""
    size, steps = loader.batch_size, len(loader)
    numbers = range(epoch * steps, (epoch + 1) * steps)
    rates = [learning_rate(params, number, params.epochs * steps) for number in numbers]
    missing, mixing = steps * size - len(loader.labels), stream(params.seed, "mixing", epoch)
    augmentation = [F.pad(values, (0, missing)).view(steps, size) for values in loader.draw(epoch)]
    shapes = [(loader.size_of(step), *loader.image_shape) for step in range(steps)]
    plans, names = [mixer.draw(shape, mixing) for shape in shapes], ("boxes", "lam", "partners")
    tables = [_stacked([getattr(plan, name) for plan in plans]) for name in names]
    tables = [*augmentation, *tables, torch.tensor(rates, dtype=torch.float64)]
    return Choices(*tables)


def _stacked(tensors: Sequence[Tensor]) -> Tensor:
    """Stack the tables of all steps; those of the last, smaller batch get the width of the rest."""
    width = tensors[0].shape[-1]
    return torch.stack([F.pad(tensor, (0, width - tensor.shape[-1])) for tensor in tensors])
