"""Image files as arrays of RGB pixels, read in parallel, each measured before it is read."""

import contextlib
import io
import os
import warnings
import zipfile
from collections import Counter
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path

import joblib
import numpy as np
from joblib.externals.loky import get_reusable_executor
from PIL import Image, ImageOps
from tqdm import tqdm

from rmlib import UserError
from rmlib.datasets.layout import remarks, shown

CHUNK = 1000  # images that a process draws or decodes at a time
LARGEST = 256  # MiB of a file that is read
# by content, whatever the ending says; none of them runs other programs
_FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "BMP", "GIF", "TIFF", "PPM")


def parallel(function, tasks, description):
    """``function`` over the tasks in a process per core, in order, with a bar on a terminal."""
    # unlike multiprocessing's, these need no `if __name__ == "__main__"` in the caller's script
    workers = joblib.Parallel(min(os.cpu_count() or 1, len(tasks)), return_as="generator")
    results = workers(joblib.delayed(function)(*task) for task in tasks)
    try:
        return list(tqdm(results, description, len(tasks), leave=False, disable=None))
    except BrokenProcessPool as error:
        remedy = "it needs more memory, or smaller images"
        raise UserError(f"a process was killed while {description}: {remedy}") from error
    finally:
        get_reusable_executor().shutdown(wait=False)


@contextlib.contextmanager
def reading(path: Path):
    """A function from the name of a file in a folder or zip to its bytes."""
    if not path.is_file():
        yield partial(_file, path)
        return
    with zipfile.ZipFile(path) as archive:
        yield partial(_entry, archive)


def _file(folder, name):
    _measure(name, (folder / name).stat().st_size)
    return (folder / name).read_bytes()


def _entry(archive, name):
    """An entry of a zip, never more than the size that it states."""
    info = archive.getinfo(name)
    _measure(name, info.file_size)
    encrypted = info.flag_bits & 1
    if encrypted or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        what = "encrypted" if encrypted else f"compressed by method {info.compress_type}"
        raise UserError(f"{shown(name)} is {what}: pack the zip again, stored or deflated")
    with archive.open(info) as file:
        return file.read(info.file_size)


def _measure(name, size):
    if size > LARGEST * 2**20:
        found = f"{shown(name)} has {size / 2**20:.0f} MiB, an image here at most {LARGEST}"
        raise UserError(f"{found}: make it smaller or take it away")


def decode(path: Path, names, split: str):
    """Pixels (N, 3, H, W) uint8 of some files, how many of each mode, and what was changed.

    Raises:
        UserError: an image cannot be read, or they are of different sizes.
    """
    _check_memory(path, names)
    tasks = [(path, names[i : i + CHUNK]) for i in range(0, len(names), CHUNK)]
    chunks = parallel(_decode_chunk, tasks, f"decoding {split}")
    pixels, modes, changes = zip(*chunks)
    same_size(path, [(chunk, files[0]) for chunk, (_, files) in zip(pixels, tasks)])
    noted = remarks()
    for change in changes:
        for what, files in change.items():
            noted[split][what].update(files)
    return np.concatenate(pixels), dict(sum(modes, Counter())), noted


def _check_memory(path, names):
    """Refuse images that cannot lie in memory together, by the size of the first."""
    if not hasattr(os, "sysconf"):  # Windows
        return
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    first = _decode_chunk(path, names[:1])[0]
    if first.nbytes * len(names) > memory:
        size = f"{len(names)} images of {first.shape[2]} x {first.shape[3]}"
        need = f"{first.nbytes * len(names) / 2**30:.0f} of {memory / 2**30:.0f} GiB of memory"
        raise UserError(f"{path}: {size} need {need}: resize them first")


def same_size(path, arrays):
    """Refuse (pixels, name of a file) whose heights or widths differ."""
    first, first_name = arrays[0]
    for pixels, name in arrays:
        if pixels.shape[-2:] != first.shape[-2:]:
            found = " and ".join(
                f"{shape[-2]} x {shape[-1]} ({shown(file)})"
                for shape, file in ((first.shape, first_name), (pixels.shape, name))
            )
            raise UserError(f"{path}: images of different sizes, {found}: resize them first")


def _decode_chunk(path, names):
    pixels, modes = [], Counter[str]()
    changes: dict[str, list[str]] = {}
    with reading(path) as read, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # more than 89 million pixels
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        Image.init()
        formats = [format for format in _FORMATS if format in Image.OPEN]
        for name in names:
            try:
                picture, mode, changed = _picture(read(name), formats)
            except UserError:
                raise
            # Pillow and zlib raise a dozen kinds for a broken file
            except Exception as error:
                reason = f"{type(error).__name__}: {str(error).partition('. ')[0][:120]}"
                words = f"cannot be read as an image ({reason}): mend it or take it away"
                raise UserError(f"{shown(name)} in {path} {words}") from error
            pixels.append(picture.transpose(2, 0, 1))
            same_size(path, [(pixels[0], names[0]), (pixels[-1], name)])
            modes[mode] += 1
            for what in changed:
                changes.setdefault(what, []).append(name)
    return np.stack(pixels), modes, changes


def _picture(content, formats):
    """Pixels (H, W, 3) uint8 as a viewer shows them, the mode in the file, and what was changed."""
    image: Image.Image = Image.open(io.BytesIO(content), formats=formats)
    mode, raw, changed = image.mode, str(getattr(image, "tile", "")), []
    grey = mode.startswith("I;16") or (mode == "I" and image.format == "PPM")
    # of a TIFF, which Pillow minds only in 8 bits
    white_is_zero = getattr(image, "tag_v2", {}).get(262) == 0
    if getattr(image, "is_animated", False):
        changed.append("with several pictures, of which the first counts")
    turned = _orientation(image) in range(2, 9)
    image.load()
    if turned:
        image = ImageOps.exif_transpose(image)
        changed.append("turned as their EXIF orientation says")
    if grey or ";16" in raw:
        changed.append("of 16 bits, of which the high 8 count")
    if grey:
        high = np.asarray(image) >> (4 if "I;12" in raw else 8)
        high = 255 - high if white_is_zero else high
        return np.repeat(high.astype(np.uint8)[..., None], 3, axis=2), mode, changed
    if mode in ("I", "F"):
        raise ValueError("greys of 32 bits have no fixed black and white, make them 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if image.getchannel("A").getextrema()[0] != 255:
            changed.append("transparent, laid on white")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    if mode == "CMYK":
        changed.append("of CMYK colours, made RGB")
    return np.asarray(image.convert("RGB")), mode, changed


def _orientation(image):
    """The EXIF orientation, 1 to 8; 1 where there is none to be read."""
    try:
        return image.getexif().get(0x0112, 1)
    except Exception:  # broken EXIF is no broken picture
        return 1
