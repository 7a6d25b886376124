"""Verdicts and values on single images as short texts in records; numpy alone, so that reports need
no torch.
"""

import base64
import zlib

import numpy as np
from numpy.typing import ArrayLike, NDArray


def pack_bits(correct: ArrayLike) -> str:
    """Per-image verdicts (N,) bool as base64 text: 10 000 images take 1.7 kB."""
    return base64.b64encode(np.packbits(np.asarray(correct)).tobytes()).decode()


def unpack_bits(text: str, count: int) -> NDArray[np.bool]:
    """The (count,) bool verdicts behind :func:`pack_bits`."""
    return np.unpackbits(np.frombuffer(base64.b64decode(text), dtype=np.uint8), count=count).astype(
        bool
    )


def pack_values(values: ArrayLike) -> str:
    """A value for each image, (N,) in percent or points, as base64 text, rounded to quarters: 500
    images take some 0.7 kB.

    Values beyond +-8191 are cut there.
    """
    quarters = np.clip(
        np.round(4 * np.asarray(values, dtype=np.float64)), -(2**15), 2**15 - 1
    ).astype("<i2")
    return base64.b64encode(
        zlib.compress(quarters.view(np.uint8).reshape(-1, 2).T.tobytes(), 9)
    ).decode()  # low bytes first: they compress alone


def unpack_values(text: str) -> NDArray[np.float64]:
    """The (N,) float64 values behind :func:`pack_values`."""
    low, high = np.frombuffer(zlib.decompress(base64.b64decode(text)), dtype=np.uint8).reshape(
        2, -1
    )
    return np.stack((low, high), 1).copy().view("<i2")[:, 0] / 4
