"""Accuracy, calibration and the prediction for every single image."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rmlib import UserError
from rmlib.data import ImageSet, stream, to_float


@contextlib.contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode; afterwards every module has the mode it had (a frozen BatchNorm stays frozen).

    By the flags alone: a network's own train() could do more than can be undone, or be missing.
    """
    modes = {module: module.training for module in model.modules()}
    for module in modes:
        module.training = False
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    """float32 means float32: TF32 off, whatever the caller allows; restored afterwards."""
    backends: tuple[Any, Any] = torch.backends.cuda.matmul, torch.backends.cudnn
    allowed = [backend.allow_tf32 for backend in backends]
    try:
        for backend in backends:
            backend.allow_tf32 = False
        yield
    finally:
        for backend, value in zip(backends, allowed):
            backend.allow_tf32 = value


def sample(count: int, size: int | None, seed: int, purpose: str) -> Tensor:
    """Sorted indices of ``size`` of ``count`` images (None: all), from a stream of the seed."""
    order = torch.randperm(count, generator=stream(seed, purpose))
    return order[:size].sort().values


def logits_of(model: nn.Module, images: Tensor) -> Tensor:
    """What a network returns for images: logits (N, classes), anything else is refused."""
    logits: Tensor = model(images)
    known = isinstance(logits, Tensor)
    if not known or logits.dim() != 2 or len(logits) != len(images):
        got = tuple(logits.shape) if known else type(logits).__name__
        words = f"expected logits (N, classes) for N = {len(images)} images"
        remedy = "wrap the network in a module that returns them alone"
        raise UserError(f"the network returns {got}: {words}; {remedy}")
    return logits


def predict(model: nn.Module, images: Tensor, batch_size: int = 500, bf16: bool = False) -> Tensor:
    """Logits (N, C) float32 on the CPU for uint8 images (N, 3, H, W), in eval mode, in batches."""
    device = next(model.parameters()).device
    bf16_allowed = torch.autocast(device.type, torch.bfloat16, enabled=bf16)
    with eval_mode(model), torch.no_grad(), full_precision(), bf16_allowed:
        parts = images.split(batch_size)
        return torch.cat([logits_of(model, to_float(x.to(device))).float() for x in parts]).cpu()


def metrics(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """``accuracy`` and ``top5`` in percent, ``nll`` in nats, ``ece`` in percent.

    Logits are (N, C) float, labels (N,) int64. ``top5`` with fewer than 5 classes counts all of
    them. ``nll`` is the mean negative log-likelihood, ``ece`` the expected calibration error.
    """
    top5 = logits.topk(min(5, logits.shape[1])).indices
    hits = top5 == labels[:, None]
    return {
        "accuracy": 100 * hits[:, 0].double().mean().item(),
        "top5": 100 * hits.any(1).double().mean().item(),
        "nll": F.cross_entropy(logits.double(), labels).item(),
        "ece": expected_calibration_error(logits, labels),
    }


def expected_calibration_error(logits: Tensor, labels: Tensor, bins: int = 15) -> float:
    """Expected calibration error in percent: mean |accuracy - confidence| of bins of confidence.

    Paper: Guo et al. 2017, https://arxiv.org/abs/1706.04599; bins of equal width, each (lower,
    upper], weighted by its number of images.
    """
    confidence, predicted = logits.double().softmax(1).max(1)
    correct = (predicted == labels).double()
    index = (confidence * bins).ceil().long().clamp(1, bins) - 1
    gap = torch.zeros(bins, dtype=torch.float64).scatter_add_(0, index, correct - confidence)
    return 100 * gap.abs().sum().item() / len(labels)


def evaluate(model: nn.Module, data: ImageSet, bf16: bool = False) -> dict[str, Any]:
    """Metrics of a model on a set, and ``predicted``, the class for each image (N,) int64."""
    logits = predict(model, data.images, bf16=bf16)
    return metrics(logits, data.labels) | {"predicted": logits.argmax(1)}
