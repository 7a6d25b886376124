"""Region Mixup, studied: mixers, models and the training loop behind the notebooks.

Two conventions hold everywhere. ``lam`` is always the weight of the ORIGINAL image, never of its
partner. Images are ``(N, C, H, W)`` in [0, 1]; normalisation is the first layer of the model.
Importing this package imports no library, so that ``from rmlib.mixers import RegionMixup`` needs
torch alone.
"""

from rmlib.inputs import ALPHAS as ALPHAS
from rmlib.inputs import UserError as UserError
from rmlib.inputs import brief as brief
from rmlib.inputs import checked as checked

__version__ = "0.1.0"

STOPPED = 75  # exit code of a run that was stopped and can go on: EX_TEMPFAIL of sysexits.h


class Stopped(RuntimeError):
    """A run was asked to stop early; with its checkpoint the same command goes on from there."""
