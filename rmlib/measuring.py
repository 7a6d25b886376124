"""What attacks and maps share: checked pixels, gradients, margins, a random stream per image."""

import contextlib
import hashlib
import math
from collections.abc import Callable, Collection, Iterator
from typing import Any, NamedTuple

import torch

from rmlib import UserError
from rmlib.data import ImageSet, to_float
from rmlib.evaluate import eval_mode, full_precision, logits_of, sample

ROUNDING = 1e-6  # how far a pixel may lie outside [0, 1] and is clipped


class Task(NamedTuple):
    """Something to measure on a network; ``compute()`` returns the result, of plain values.

    ``kind``: "attacks", "corruptions" or "cam". ``settings``: what identifies the measurement,
    all that its result depends on besides the weights.
    """

    model: torch.nn.Module
    kind: str
    settings: dict[str, Any]
    compute: Callable[[], dict[str, Any]]


def drawn(
    test_set: ImageSet, count: int | None, seed: int, purpose: str
) -> tuple[ImageSet, dict[str, Any]]:
    """``count`` images of a test set (None: all), and what settings say of them.

    Those of a smaller measurement are among those of a larger one.
    """
    data = test_set[sample(len(test_set), count, seed, purpose)]
    return data, {"images": len(data), "image_seed": seed, "checksum": data.checksum}


@contextlib.contextmanager
def with_gradients(model: torch.nn.Module) -> Iterator[None]:
    """Eval mode with gradients, in full precision, whatever the caller has switched on.

    Afterwards all is as it was, also after an error: modes, ``.grad`` and torch's random state.
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


def as_pixels(
    model: torch.nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    kinds: Collection[torch.dtype] = (torch.float32, torch.float64),
) -> torch.Tensor:
    """Check what an attack or a map is asked about; returns the images as float in [0, 1].

    Args:
        images: (N, C, H, W) floating point in [0, 1], or uint8, which is divided by 255. What lies
            outside by rounding, no more than ROUNDING, is clipped.
        labels: (N,) int64.
        kinds: types of parameters that the caller can work with.

    Raises:
        UserError: network of another type, pixels outside [0, 1], shapes that do not fit, negative
            labels.
    """
    for name, value in (("images", images), ("labels", labels)):
        if not isinstance(value, torch.Tensor):
            raise UserError(f"{name} are {type(value).__name__}: expected torch tensors")
    known = isinstance(model, torch.nn.Module)
    found = {parameter.dtype for parameter in model.parameters()} if known else set()
    if not found:
        raise UserError("the model has no parameters: hand over the network itself, an nn.Module")
    if not found <= set(kinds):
        names = ", ".join(sorted(str(kind).removeprefix("torch.") for kind in found))
        raise UserError(f"the network is in {names}: gradients vanish there; use model.float()")
    if images.dim() != 4 or labels.shape != images.shape[:1] or not len(images):
        got = f"images {tuple(images.shape)} and labels {tuple(labels.shape)}"
        raise UserError(f"{got}: expected (N, C, H, W) and (N,) with N >= 1")
    if labels.dtype != torch.int64 or int(labels.min()) < 0:
        got = f"labels are {labels.dtype} from {labels.min()}"
        raise UserError(f"{got}: expected int64 class numbers from 0")
    pixels = to_float(images) if images.dtype == torch.uint8 else images
    low, high = float(pixels.min()), float(pixels.max())
    if not (pixels.is_floating_point() and low >= -ROUNDING and high <= 1 + ROUNDING):
        got = f"images are {images.dtype} in [{low:g}, {high:g}]"
        remedy = "expected uint8, or floating point in [0, 1]; the model normalises them"
        raise UserError(f"{got}: {remedy}")
    return pixels if low >= 0 and high <= 1 else pixels.clamp(0, 1)


def first_logits(model: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Logits for the images asked about first.

    Raises:
        UserError: the network refuses them, as another size or number of channels.
    """
    try:
        return logits_of(model, images)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        got = f"images {tuple(images.shape)}"
        raise UserError(
            f"the network fails on {got}: {reason}; of what size are its images?"
        ) from error


def check_classes(logits: torch.Tensor, classes: torch.Tensor, verb: str) -> None:
    """Refuse a network with one logit, and classes that it does not know.

    Raises:
        UserError: with what cannot be done to the class, such as "attacked".
    """
    count, largest = logits.shape[1], int(classes.max())
    if count < 2:
        remedy = "for z that says class 1, let it return torch.cat([-z, z], 1) / 2"
        raise UserError(f"the network has one logit, and classes need one each: {remedy}")
    if largest >= count:
        raise UserError(f"class {largest} cannot be {verb}: the network has {count} classes")


def margins(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Logit of the true class minus the largest other one, (N,): right where above 0, a tie not.

    Logits are (N, C), labels (N,) int64.
    """
    true = labels[:, None]
    return logits.gather(1, true).squeeze(1) - logits.scatter(1, true, -math.inf).amax(1)


def image_keys(images: torch.Tensor, seed: int, purpose: str) -> list[bytes]:
    """32 bytes for every image, from seed, purpose and its own pixels alone.

    A random stream made of them is the same in any batch, in any order, on any machine. Images are
    (N, C, H, W) uint8, or floating point in [0, 1], of which 8 bits count.
    """
    pixels = images if images.dtype == torch.uint8 else (images * 255).round().to(torch.uint8)
    start, each = f"{seed}/{purpose}/".encode(), pixels.cpu().contiguous().numpy()
    return [hashlib.sha256(start + image.tobytes()).digest() for image in each]
