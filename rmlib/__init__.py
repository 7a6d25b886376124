"""Region Mixup, studied: mixers, models and the training loop behind the notebooks.

Two conventions hold everywhere. ``lam`` is always the weight of the ORIGINAL image, never of its
partner. Images are ``(N, C, H, W)`` in [0, 1]; normalisation is the first layer of the model.
Importing this package imports nothing else, so that ``from rmlib.mixers import RegionMixup`` needs
torch alone.
"""

__version__ = "0.1.0"

STOPPED = 75  # exit code of a run that was stopped and can go on: EX_TEMPFAIL of sysexits.h


class UserError(ValueError):
    """A mistake that the user can mend: the message is one line with the value and the remedy."""

    def _render_traceback_(self) -> list[str]:
        """What IPython shows in a notebook: that line, not the way through the library."""
        return [f"{type(self).__name__}: {self}"]


class Stopped(RuntimeError):
    """A run was asked to stop early; with its checkpoint the same command goes on from there."""
