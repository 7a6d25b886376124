"""What users give: numbers and batches; a mistake is one line with the value and the remedy.

:mod:`rmlib.mixers` needs this file and torch: copy both. Importing this one imports no torch.
"""

import copy
from collections.abc import Mapping, MutableMapping
from numbers import Real
from typing import Any, TypeVar

ALPHAS = 1e-300, 1e300  # of Beta(alpha, alpha): beyond these its draws overflow
N = TypeVar("N", int, float)


class UserError(ValueError):
    """A mistake that the user can mend: the message is one line with the value and the remedy."""

    def _render_traceback_(self) -> list[str]:
        """What IPython shows in a notebook: that line, not the way through the library."""
        return [f"{type(self).__name__}: {self}"]


def checked(name: str, value: Any, low: float, high: float, kind: type[N], remedy: str = "") -> N:
    """A number from low to high as ``kind``: float, or int for a whole one; numpy's count, too.

    Raises:
        UserError: anything else, such as text, None, True, NaN, or 2.5 as int.
    """
    # of numpy, whose float32 overflows at some limits; a compiler knows no attributes of an int
    if type(value) is not int and getattr(value, "ndim", None) == 0:
        value = value.item()
    real = isinstance(value, Real) and not isinstance(value, bool)
    if not real or not low <= value <= high or (kind is int and value % 1):
        words = "a whole number" if kind is int else "a number"
        raise UserError(f"{name}={brief(value)}: expected {words} from {low:g} to {high:g}{remedy}")
    return kind(value)


def brief(value: object) -> str:
    """A value as Python writes it, shortened for a message."""
    try:
        text = repr(value)
    except ValueError:  # Python writes no number of more than 4300 digits
        return "a number of thousands of digits"
    return text if len(text) <= 80 else f"{text[:60]}... ({len(text)} characters)"


def check_batch(images: Any, labels: Any, plan: Any, num_classes: int | None) -> None:
    """Refuse what no mixer mixes."""
    import torch

    for name, value in (("images", images), ("labels", labels)):
        if not torch.is_tensor(value):
            raise UserError(f"expected {name} as a tensor, got {type(value).__name__}")
    if images.ndim not in (4, 5) or min(images.shape) < 1:
        raise UserError(f"expected (N, C, H, W), got {tuple(images.shape)}; did you batch?")
    if not images.is_floating_point():
        raise UserError(f"expected floating point, got {images.dtype}; use x.float() / 255")
    if labels.device != images.device:
        raise UserError(f"labels lie on {labels.device}, images on {images.device}: move both")
    _check_labels(labels, len(images), num_classes)
    # a look at them would stall a device, and break a compiled graph
    if labels.ndim == 1 and labels.is_cpu and not torch.compiler.is_compiling():
        _check_classes(labels, num_classes)
    drawn = plan.partners.shape[1], plan.height, plan.width
    asked = len(images), *images.shape[-2:]
    if drawn != asked:
        raise UserError(f"the plan is for (N, H, W) = {drawn}, not {asked}: draw a new one")


def _check_labels(labels: Any, count: int, num_classes: int | None) -> None:
    """Refuse labels that are neither class numbers nor weights of all classes."""
    import torch

    numbers = labels.shape == (count,)
    classes = (num_classes or max(labels.shape[1], 2)) if labels.ndim == 2 else None
    soft = labels.shape == (count, classes) and not labels.is_complex()
    if soft or (numbers and num_classes and labels.dtype == torch.int64):
        return
    got = f"got {tuple(labels.shape)} {labels.dtype}"
    if numbers and num_classes is None:
        raise UserError(f"{got}: class numbers need a mixer with num_classes=...")
    remedy = "; use labels.long()" if numbers else ""
    if labels.shape == (count, 1):
        remedy = "; use labels.squeeze(1)"
    wanted = f"({count},) int64 or ({count}, {num_classes or 'num_classes'}) soft"
    raise UserError(f"expected labels {wanted}, {got}{remedy}")


def _check_classes(labels: Any, num_classes: Any) -> None:
    """Refuse class numbers outside [0, num_classes)."""
    try:
        low, high = map(int, labels.aminmax())
    except RuntimeError:  # vmap hides the values
        return
    if low < 0 or high >= num_classes:
        raise UserError(f"labels lie in [{low}, {high}], but num_classes={num_classes}")


def check_generator(generator: Any) -> None:
    """Refuse what is none, and one that a worker has as a copy: all workers would draw alike."""
    if generator is None:
        return
    import torch
    from torch.utils.data import get_worker_info

    if not isinstance(generator, torch.Generator):
        raise UserError(f"generator={brief(generator)}: expected a torch.Generator, or None")
    # a worker has a seed of its own; many take its lower 32 bits, as numpy asks for them
    if get_worker_info() and (generator.initial_seed() - torch.initial_seed()) % 2**32:
        raise UserError(
            "each worker of the DataLoader has a copy of this generator, and all would draw alike: "
            "leave it out, or give it in worker_init_fn the seed torch.initial_seed()"
        )


def images_and_labels(sample: Any, labels_getter: Any) -> tuple[Any, Any]:
    """The images and the labels in a batch: ``(images, labels, ...)``, a mapping, or nested ones.

    Labels are the second item of a sequence, or in a mapping what is called "labels", or has
    "label" in its name. Any ``labels_getter`` but "default" finds them instead: a function of the
    batch, or a key or index of it.

    Raises:
        UserError: masks, boxes or a second view, which would stay unmixed. That is every tensor of
            three or more dimensions besides the images, and those that torchvision marks.
    """
    fits = isinstance(sample, Mapping) or (isinstance(sample, (tuple, list)) and len(sample) > 1)
    if not fits:
        raise UserError(f"expected a batch (images, labels), got {type(sample).__name__}")
    labels = _labels(sample, labels_getter)
    large = [leaf for leaf in _leaves(sample) if leaf is not labels and _is_large(leaf)]
    if len(large) != 1:
        got = [f"{type(leaf).__name__} {tuple(getattr(leaf, 'shape', ()))}" for leaf in large]
        remedy = "take out what cannot be mixed, or mix by mixer.draw and mixer.apply"
        if not large:
            remedy = "is it (images, labels), in this order, and did you batch?"
        raise UserError(f"expected one 4-d tensor of images beside labels, got {got}: {remedy}")
    return large[0], labels


def _labels(sample: Any, getter: Any) -> Any:
    """The labels in a batch."""
    if callable(getter):
        return getter(sample)
    if getter == "default" and not isinstance(sample, Mapping):
        sample = sample[1]
        if not isinstance(sample, Mapping):
            return sample
    names = list(sample) if isinstance(sample, Mapping) else range(len(sample))
    found = [name for name in names if name == getter]
    if getter == "default":
        with_label = [name for name in names if "label" in str(name).lower()]
        found = [name for name in with_label if str(name).lower() == "labels"] or with_label
    if len(found) != 1:
        raise UserError(
            f"labels_getter={getter!r}: expected the labels under one of {list(names)}; "
            "give their key, or a function of the batch"
        )
    return sample[found[0]]


def _leaves(sample: Any) -> list[Any]:
    """Everything in a batch that is no container."""
    if isinstance(sample, Mapping):
        sample = list(sample.values())
    if isinstance(sample, (tuple, list)):
        return [leaf for part in sample for leaf in _leaves(part)]
    return [sample]


def _is_large(leaf: Any) -> bool:
    """Whether it has pixels, or places of them: a tensor of them, or of torchvision's types."""
    home = type(leaf).__module__
    return getattr(leaf, "ndim", 0) >= 3 or home.startswith(("torchvision.tv_tensors", "PIL."))


def replaced(sample: Any, *pairs: tuple[Any, Any]) -> Any:
    """The batch with (old, new) objects exchanged; each container comes back as what it was."""
    for old, new in pairs:
        if sample is old:
            return new
    if isinstance(sample, Mapping):
        changed = {key: replaced(value, *pairs) for key, value in sample.items()}
        if not isinstance(sample, MutableMapping):
            return type(sample)(changed)  # type: ignore[call-arg]
        result = copy.copy(sample)
        result.update(changed)
        return result
    if isinstance(sample, (tuple, list)):
        items = [replaced(part, *pairs) for part in sample]
        return sample._make(items) if hasattr(sample, "_make") else type(sample)(items)
    return sample
