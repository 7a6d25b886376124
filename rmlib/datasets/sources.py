"""Where images come from: drawn figures, folders and zips of images, official archives.

Everything here is numpy, decoded once and then cached; :mod:`rmlib.data` makes tensors of it. The
order depends on the pixels alone: a folder, a zip and the official files of a dataset are the same.
"""

import hashlib
import io
import os
import re
import sys
import zipfile
from pathlib import Path

import joblib
import numpy as np
import PIL
from joblib.externals.loky import get_reusable_executor
from PIL import Image
from tqdm import tqdm

from rmlib import UserError
from rmlib.datasets import shapes
from rmlib.datasets.download import ARCHIVES, download
from rmlib.paths import cache_dir, project_root

# classes, training and test images per class
SIZES = {"cifar10": (10, 5000, 1000), "cifar100": (100, 500, 100), "tiny-imagenet": (200, 500, 50)}

_IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
_DRAWN = Path(shapes.__file__)
CHUNK = 1000  # images that a process draws or decodes at a time


def data_root(root=None) -> Path:
    """Folder of the datasets: ``root``, else $RMLIB_DATA, else data/ in the project."""
    return Path(root or os.environ.get("RMLIB_DATA") or project_root() / "data").expanduser()


def arrays(
    name: str, root=None, *, offline: bool = False, allow_partial: bool = False
) -> dict[str, np.ndarray]:
    """All images of a dataset, from the cache when it is whole, else decoded (and downloaded) now.

    Returns a dictionary with, for SPLIT in train and test: ``SPLIT_images`` (N, 3, H, W) uint8,
    ``SPLIT_labels`` (N,) int64, where known ``SPLIT_boxes`` (N, 4) int64, half open x1, y1, x2, y2,
    and ``SPLIT_masks`` (N, H, W) bool; ``classes`` (C,) text, sorted; and ``checksum``, the sha256
    over pixels and labels of both splits. Images are sorted by class, then by a hash of the pixels.

    Raises:
        UserError: unknown, missing, incomplete or unreadable data; a failed download.
    """
    path, read = _find(name, data_root(root), offline or bool(os.environ.get("RMLIB_OFFLINE")))
    cache = cache_dir() / f"{re.sub(r'[^A-Za-z0-9]+', '-', name)[-40:]}-{_fingerprint(path)}.npz"
    data = _read_cache(cache)
    if data is None:
        try:
            data = _in_order(read(path))
        except (zipfile.BadZipFile, EOFError, OSError, KeyError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise UserError(f"{path} cannot be read ({reason}): put a whole copy there") from error
        _write_cache(cache, data)
    _check_size(name, data, allow_partial)
    return data


def _fingerprint(path: Path) -> str:
    """A hash that changes with the content of a file or folder."""
    if path == _DRAWN:
        versions = f"{np.__version__} {PIL.__version__}"
        return hashlib.sha256(path.read_bytes() + versions.encode()).hexdigest()[:16]
    listing = f"{path.resolve()}\n"
    for file in [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file()):
        stat = file.stat()
        listing += f"{file.relative_to(path)} {stat.st_size} {stat.st_mtime_ns}\n"
    return hashlib.sha256(listing.encode()).hexdigest()[:16]


def _find(name: str, root: Path, offline: bool):
    """(path, function that reads it): what there is of a dataset, or what is now downloaded."""
    if name == "shapes":
        return _DRAWN, _read_shapes
    if name.startswith("folder:"):
        path = Path(name[len("folder:") :]).expanduser()
        if not path.exists():
            raise UserError(f"dataset {name!r}: there is no folder or zip {path}")
        return path, _read_image_tree
    if name not in SIZES:
        from rmlib.params import DATASETS, nearest

        raise UserError(f"unknown dataset {name!r}: {nearest(name, (*DATASETS, 'folder:PATH'))}")
    for path in (root / f"{name}.zip", root / name):
        if path.exists():
            return path, _read_image_tree
    archive, folder, md5, urls = ARCHIVES[name]
    read = _read_tiny if name == "tiny-imagenet" else lambda path: _read_cifar(name, root)
    for path in (root / folder, root / archive):
        if path.exists():
            return path, read
    if offline:
        remedy = f"put {name}.zip or {archive} there, or name its folder by --root or RMLIB_DATA"
        raise UserError(f"{name} is not in {root} and downloading is off: {remedy}")
    return download(archive, md5, urls, root), read


def _check_size(name, data, allow_partial):
    if name not in SIZES or allow_partial:
        return
    classes, *sizes = SIZES[name]
    for split, size in zip(("train", "test"), sizes):
        counts = np.bincount(data[f"{split}_labels"], minlength=len(data["classes"]))
        if len(counts) != classes or (counts != size).any():
            got = f"{len(counts)} classes with {counts.min()} to {counts.max()} {split} images each"
            remedy = f"expected {classes} with {size}: fetch it again, or pass allow_partial=True"
            raise UserError(f"{name} is incomplete: {got}, {remedy}")


def _parallel(function, tasks, description):
    """``function`` over the tasks in a process per core, in order, with a bar on a terminal."""
    # unlike multiprocessing's, these need no `if __name__ == "__main__"` in the caller's script
    workers = joblib.Parallel(min(os.cpu_count() or 1, len(tasks)), return_as="generator")
    results = workers(joblib.delayed(function)(*task) for task in tasks)
    quiet = not sys.stderr.isatty()
    try:
        return list(tqdm(results, description, len(tasks), leave=False, disable=quiet))
    finally:
        get_reusable_executor().shutdown(wait=False)


def _read_shapes(path):
    data = {"classes": np.array(shapes.CLASSES)}
    for split, count in shapes.COUNTS.items():
        tasks = [(split, i, min(i + CHUNK, count)) for i in range(0, count, CHUNK)]
        chunks = _parallel(shapes.draw_images, tasks, f"drawing {split}")
        images, labels, masks = (np.concatenate(column) for column in zip(*chunks))
        data |= {f"{split}_images": images, f"{split}_labels": labels}
        data |= {f"{split}_masks": masks, f"{split}_boxes": _mask_boxes(masks)}
    return data


def _mask_boxes(masks):
    def ends(line):  # first and one past the last True of each row
        return line.argmax(1), line.shape[1] - line[:, ::-1].argmax(1)

    (x1, x2), (y1, y2) = ends(masks.any(1)), ends(masks.any(2))
    return np.stack([x1, y1, x2, y2], axis=1).astype(np.int64)


def _tree(path: Path):
    """A folder or the content of a zip, with the same methods."""
    return zipfile.Path(path) if path.is_file() else path


def _decode_chunk(path, names):
    """RGB pixels (N, 3, H, W) uint8 of some files of a folder or zip."""
    tree, pixels = _tree(path), []
    for name in names:
        file = io.BytesIO((tree / name).read_bytes())
        try:
            pixels.append(np.asarray(Image.open(file).convert("RGB")).transpose(2, 0, 1))
        except (PIL.UnidentifiedImageError, OSError, SyntaxError) as error:
            words = "cannot be read as an image: mend it or take it away"
            raise UserError(f"{name} in {path} {words}") from error
    _check_equal_sizes(path, pixels)
    return np.stack(pixels)


def _check_equal_sizes(path, arrays):
    sizes = {array.shape[-2:] for array in arrays}
    if len(sizes) > 1:
        found = ", ".join(f"{height} x {width}" for height, width in sorted(sizes)[:3])
        raise UserError(f"{path}: images of different sizes ({found} ...): resize them first")


def _decode(path, names, description):
    tasks = [(path, names[i : i + CHUNK]) for i in range(0, len(names), CHUNK)]
    chunks = _parallel(_decode_chunk, tasks, description)
    _check_equal_sizes(path, chunks)
    return np.concatenate(chunks)


def _file_names(path: Path) -> list[str]:
    if path.is_file():
        with zipfile.ZipFile(path) as archive:
            return sorted(archive.namelist())
    return sorted(p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file())


def _read_image_tree(path):
    """``[TOP/]train/CLASS/*`` and ``[TOP/]test/CLASS/*`` (or val) of a folder or zip."""
    split_names: dict[str, list] = {"train": [], "test": [], "val": []}
    for name in _file_names(path):
        # files with a leading dot are no images
        match = re.fullmatch(r"(?:[^/]+/)?(train|test|val)/([^/]+)/([^/.][^/]*)", name)
        if match and name.lower().endswith(_IMAGE_ENDINGS):
            split_names[match[1]].append((name, match[2]))
    # val counts where there is no test
    found = {"train": split_names["train"], "test": split_names["test"] or split_names["val"]}
    if not all(found.values()):
        missing = " and ".join(split for split, names in found.items() if not names)
        wanted = f"train/CLASS/* and test/CLASS/* (or val) with {', '.join(_IMAGE_ENDINGS)}"
        raise UserError(f"{path} has no {missing} images: expected {wanted}")
    classes = sorted({label for names in found.values() for _, label in names})
    index = {label: i for i, label in enumerate(classes)}
    data = {"classes": np.array(classes)}
    for split, names in found.items():
        data[f"{split}_images"] = _decode(path, [name for name, _ in names], f"decoding {split}")
        data[f"{split}_labels"] = np.array([index[label] for _, label in names])
    return data


def _read_cifar(name, root):
    """The official pickles, read by torchvision, which knows their checksums."""
    import torchvision

    kind, (archive, folder, *_) = getattr(torchvision.datasets, name.upper()), ARCHIVES[name]
    if not (root / folder).exists():
        torchvision.datasets.utils.extract_archive(str(root / archive), str(root))
    data = {}
    for split in ("train", "test"):
        try:
            images = kind(str(root), train=split == "train", download=False)
        except RuntimeError as error:
            raise OSError(str(error)) from error
        data[f"{split}_images"] = images.data.transpose(0, 3, 1, 2)
        data[f"{split}_labels"] = np.array(images.targets)
    assert images.classes == sorted(images.classes)
    return data | {"classes": np.array(images.classes)}


def _read_tiny(path):
    """The official layout; val_annotations.txt has the labels and boxes of val."""
    top, tree = "tiny-imagenet-200/" if path.is_file() else "", _tree(path)

    def lines(name):
        text = (tree / name).read_text(encoding="utf-8")
        return [line.split("\t") for line in text.splitlines() if line.strip()]

    # (file, class, corners of the box)
    rows: dict[str, list] = {"train": [], "test": []}
    names = _file_names(path)
    for name in names:
        if match := re.fullmatch(rf"({top}train/([^/]+)/)\2_boxes.txt", name):
            folder, wnid = match.groups()
            rows["train"] += [(f"{folder}images/{file}", wnid, box) for file, *box in lines(name)]
    for file, wnid, *box in lines(f"{top}val/val_annotations.txt"):
        rows["test"].append((f"{top}val/images/{file}", wnid, box))
    classes = sorted(wnid for (wnid,) in lines(f"{top}wnids.txt"))
    present, index = set(names), {wnid: i for i, wnid in enumerate(classes)}
    data = {"classes": np.array(classes)}
    for split, listed in rows.items():
        found = [row for row in listed if row[0] in present]
        if not found:
            raise UserError(f"{path} has no {split} images of Tiny ImageNet: fetch it again")
        files, wnids, boxes = zip(*found)
        data[f"{split}_images"] = _decode(path, files, f"decoding {split}")
        data[f"{split}_labels"] = np.array([index[wnid] for wnid in wnids])
        # the files count the last pixel in
        data[f"{split}_boxes"] = np.array(boxes).astype(int) + [0, 0, 1, 1]
    return data


def _in_order(data):
    """Sort by class and pixel hash, and add the checksum of the whole."""
    total = hashlib.sha256()
    ordered = {"classes": data["classes"]}
    for split in ("train", "test"):
        data[f"{split}_labels"] = labels = data[f"{split}_labels"].astype(np.int64)
        keys = [hashlib.sha256(image.tobytes()).digest() for image in data[f"{split}_images"]]
        order = sorted(range(len(keys)), key=lambda i: (labels[i], keys[i]))
        for name, array in data.items():
            if name.startswith(split):
                ordered[name] = np.ascontiguousarray(array[order])
        total.update(ordered[f"{split}_images"].tobytes())
        total.update(ordered[f"{split}_labels"].tobytes())
    return ordered | {"checksum": np.array(total.hexdigest())}


def _read_cache(path):
    """The cached arrays; None without a file, or with a damaged one: arrays carry a CRC-32."""
    if not path.exists():
        return None
    try:
        with np.load(path) as archive:
            return {name: archive[name] for name in archive.files}
    except (zipfile.BadZipFile, ValueError, KeyError, EOFError, OSError) as error:
        print(f"the cache {path.name} is damaged ({error}); decoding again", file=sys.stderr)
        return None


def _write_cache(path, data):
    """Atomic; a cache that cannot be written costs time, not the run."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{os.getpid()}-{path.name}")
        try:
            np.savez(temporary, **data)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        message = f"images are not cached: {error}; set RMLIB_CACHE to a folder with room"
        print(message, file=sys.stderr)
