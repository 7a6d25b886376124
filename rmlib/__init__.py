"""Region Mixup, studied: mixers, models and the training loop behind the notebooks.

Two conventions hold everywhere. ``lam`` is always the weight of the ORIGINAL image, never of its
partner. Images are ``(N, C, H, W)`` in [0, 1]; normalisation is the first layer of the model.
Importing this package imports nothing else, so that ``from rmlib.mixers import RegionMixup`` needs
torch alone.
"""

from numbers import Real
from typing import Any, TypeVar

__version__ = "0.1.0"

ALPHAS = 1e-300, 1e300  # of Beta(alpha, alpha): beyond these its draws overflow
N = TypeVar("N", int, float)

STOPPED = 75  # exit code of a run that was stopped and can go on: EX_TEMPFAIL of sysexits.h


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
    if getattr(value, "ndim", None) == 0:  # of numpy, whose float32 overflows at some limits
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


class Stopped(RuntimeError):
    """A run was asked to stop early; with its checkpoint the same command goes on from there."""
