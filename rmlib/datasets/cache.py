"""The cache of decoded images: whole or made again, and nothing half-written stays."""

import contextlib
import os
import sys
import zipfile

import numpy as np

try:
    import fcntl
except ImportError:  # Windows: what a killed process left stays
    fcntl = None  # type: ignore[assignment]


def read(path):
    """The cached arrays; None without a file, or with one that is damaged or lacks an array."""
    if not path.exists():
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            return {name: _array(archive, name) for name in _array(archive, "parts").tolist()}
    except Exception as error:  # a flipped bit in the directory of a zip can raise any
        print(f"the cache {path.name} is damaged ({error}); decoding again", file=sys.stderr)
        return None


def _array(archive, name):
    """One array, checked by its CRC-32, which zipfile compares when all has been read."""
    with archive.open(f"{name}.npy") as file:
        array = np.lib.format.read_array(file)
        if file.read(1):
            raise ValueError(f"{name} holds more than its shape")
    return array


def write(path, data):
    """Atomic; a cache that cannot be written costs time, not the run."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{os.getpid()}-{path.name}")
        try:
            with open(temporary, "wb") as file:
                with contextlib.suppress(OSError):
                    _lock(file)
                np.savez(file, **data, parts=np.array(list(data)))
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        message = f"images are not cached: {error}; set RMLIB_CACHE to a folder with room"
        print(message, file=sys.stderr)


def clear(folder):
    """Delete what processes left half-written that were killed: their locks went with them."""
    for half in folder.glob(".*.npz"):
        with contextlib.suppress(OSError), open(half, "rb") as file:
            _lock(file)
            half.unlink()


def _lock(file):
    """Lock an open file.

    Raises:
        OSError: another process holds it, or this system has no such locks.
    """
    if fcntl is None:
        raise OSError("no locks")
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
