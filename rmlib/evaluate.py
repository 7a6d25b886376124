"""Accuracy, calibration and the verdict on every single image."""

import contextlib
import math

import torch
from torch.nn import functional as F

from rmlib import UserError
from rmlib.data import ImageSet, stream, to_float
from rmlib.packed import pack_bits


@contextlib.contextmanager
def eval_mode(model):
    """Eval mode; afterwards every module has the mode it had (a frozen BatchNorm stays frozen)."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@contextlib.contextmanager
def evaluating(model):
    """Eval mode without gradients; afterwards everything is as it was."""
    with eval_mode(model), torch.no_grad():
        yield


@contextlib.contextmanager
def with_gradients(model):
    """Eval mode with gradients, in full precision, whatever the caller has switched on; afterwards
    everything is as it was, also after an error: the mode of every module, the ``.grad`` of every
    parameter, and torch's random state.
    """
    gradients = {parameter: parameter.grad for parameter in model.parameters()}
    device = next(iter(gradients)).device
    cuda = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    for parameter in gradients:
        parameter.grad = None
    try:
        with (
            eval_mode(model),
            full_precision(),
            torch.random.fork_rng(cuda),
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.autocast(device.type, enabled=False),
        ):
            yield
    finally:
        for parameter, gradient in gradients.items():
            parameter.grad = gradient


@contextlib.contextmanager
def full_precision():
    """float32 means float32: TF32 off, whatever the caller allows; restored afterwards."""
    backends = torch.backends.cuda.matmul, torch.backends.cudnn
    allowed = [backend.allow_tf32 for backend in backends]
    try:
        for backend in backends:
            backend.allow_tf32 = False
        yield
    finally:
        for backend, value in zip(backends, allowed):
            backend.allow_tf32 = value


def as_pixels(
    model, images: torch.Tensor, labels: torch.Tensor, kinds=(torch.float32, torch.float64)
) -> torch.Tensor:
    """Check what an attack or a map is asked about; returns the images as float in [0, 1], uint8
    ones divided by 255.

    Args:
        kinds: types of parameters that the caller can work with.

    Raises:
        UserError: network of another type, pixels outside [0, 1], shapes that do not fit, negative
            labels.
    """
    if not (isinstance(images, torch.Tensor) and isinstance(labels, torch.Tensor)):
        raise UserError(
            f"images are {type(images).__name__}, labels {type(labels).__name__}: expected torch"
            " tensors"
        )
    found = (
        {parameter.dtype for parameter in model.parameters()}
        if isinstance(model, torch.nn.Module)
        else ()
    )
    if not found:
        raise UserError(
            "the model has no parameters, so its device and type are unknown: hand over the network"
            " itself, an nn.Module"
        )
    if not found <= set(kinds):
        names = ", ".join(sorted(str(kind).removeprefix("torch.") for kind in found))
        raise UserError(
            f"the network is in {names}: small gradients vanish there; use model.float()"
        )
    if images.dim() != 4 or labels.shape != images.shape[:1] or not len(images):
        raise UserError(
            f"images {tuple(images.shape)} and labels {tuple(labels.shape)}: expected (N, C, H, W)"
            " and (N,) with N >= 1"
        )
    if labels.dtype != torch.int64 or int(labels.min()) < 0:
        raise UserError(
            f"labels are {labels.dtype} from {labels.min()}: expected int64 class numbers from 0"
        )
    pixels = to_float(images) if images.dtype == torch.uint8 else images
    low, high = float(pixels.min()), float(pixels.max())
    if not (pixels.is_floating_point() and low >= 0 and high <= 1):
        raise UserError(
            f"images are {images.dtype} in [{low:g}, {high:g}]: expected uint8, or floating point"
            " in [0, 1]; the normalisation belongs into the model"
        )
    return pixels


def sample(count: int, size: int | None, seed: int, purpose: str) -> torch.Tensor:
    """Indices of ``size`` of ``count`` images, drawn without replacement from a stream of the seed,
    sorted; None, or more than there are: all of them.
    """
    order = torch.randperm(count, generator=stream(seed, purpose))
    return order[:size].sort().values


def predict(model, images: torch.Tensor, batch_size: int = 500, bf16: bool = False) -> torch.Tensor:
    """Logits (N, C) float32 on the CPU for uint8 images (N, 3, H, W) on any device, in eval mode,
    on the model's device.
    """
    device = next(model.parameters()).device
    with (
        evaluating(model),
        full_precision(),
        torch.autocast(device.type, torch.bfloat16, enabled=bf16),
    ):
        return torch.cat(
            [model(to_float(batch.to(device))).float() for batch in images.split(batch_size)]
        ).cpu()


def margins(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Logit of the true class minus the largest other one, (N,), from logits (N, classes) and
    labels (N,) int64: an image is right where it is above 0 (a tie is not).
    """
    true = labels[:, None]
    return logits.gather(1, true).squeeze(1) - logits.scatter(1, true, -math.inf).amax(1)


def metrics(logits: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """Summary of predictions.

    Args:
        logits: (N, C) float. labels: (N,) int64.

    Returns:
        ``accuracy`` and ``top5`` in percent (top5 with fewer than 5 classes: all of them), ``nll``
        the mean negative log-likelihood in nats, ``ece`` the expected calibration error in percent.
    """
    top5 = logits.topk(min(5, logits.shape[1])).indices
    hits = top5 == labels[:, None]
    return {
        "accuracy": 100 * hits[:, 0].double().mean().item(),
        "top5": 100 * hits.any(1).double().mean().item(),
        "nll": F.cross_entropy(logits.double(), labels).item(),
        "ece": expected_calibration_error(logits, labels),
    }


def expected_calibration_error(logits: torch.Tensor, labels: torch.Tensor, bins: int = 15) -> float:
    """Expected calibration error in percent: |accuracy - confidence| averaged over equal-width bins
    of confidence.

    Paper: Guo et al. 2017, "On calibration of modern neural networks",
    https://arxiv.org/abs/1706.04599; 15 bins, each bin (lower, upper], weighted by its number of
    images.
    """
    confidence, predicted = logits.double().softmax(1).max(1)
    correct = (predicted == labels).double()
    index = (confidence * bins).ceil().long().clamp(1, bins) - 1
    gap = torch.zeros(bins, dtype=torch.float64).scatter_add_(0, index, correct - confidence)
    return 100 * gap.abs().sum().item() / len(labels)


def evaluate(model, data: ImageSet, bf16: bool = False) -> dict:
    """Metrics of a model on a set, with ``correct``: the packed verdict on every image in the set's
    order.
    """
    logits = predict(model, data.images, bf16=bf16)
    return metrics(logits, data.labels) | {"correct": pack_bits(logits.argmax(1) == data.labels)}
