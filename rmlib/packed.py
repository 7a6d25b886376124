"""Verdicts and values on single images as short texts in records.

numpy alone, so that reports need no torch.
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
    packed = np.frombuffer(base64.b64decode(text), dtype=np.uint8)
    return np.unpackbits(packed, count=count).astype(bool)


def pack_values(values: ArrayLike) -> str:
    """A value for each image, (N,), as base64 text, rounded to quarters and cut at +-8191.

    500 images take some 0.7 kB.
    """
    quarters = np.round(4 * np.asarray(values, dtype=np.float64))
    stored = np.clip(quarters, -(2**15), 2**15 - 1).astype("<i2").view(np.uint8)
    # low bytes first: they compress alone
    return base64.b64encode(zlib.compress(stored.reshape(-1, 2).T.tobytes(), 9)).decode()


def unpack_values(text: str) -> NDArray[np.float64]:
    """The (N,) float64 values behind :func:`pack_values`."""
    stored = np.frombuffer(zlib.decompress(base64.b64decode(text)), dtype=np.uint8)
    quarters = np.ascontiguousarray(stored.reshape(2, -1).T).view(np.dtype("<i2"))
    return np.asarray(quarters[:, 0], dtype=np.float64) / 4
