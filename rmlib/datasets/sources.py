"""Where images come from: built-in figures, folders and zips of images, official archives; decoded
once, then cached.

Everything here is numpy; :mod:`rmlib.data` makes tensors of it. A dataset is a dictionary of arrays
(see :func:`arrays`), in an order that depends on the pixels alone, so that a folder, a zip and the
official files of one dataset are the same.
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
from joblib.externals.loky import get_reusable_executor
from PIL import Image
from tqdm import tqdm

from rmlib import UserError
from rmlib.datasets import shapes
from rmlib.datasets.download import ARCHIVES, download

# classes, training and test images per class
SIZES = {"cifar10": (10, 5000, 1000), "cifar100": (100, 500, 100), "tiny-imagenet": (200, 500, 50)}

_CIFAR_FOLDERS = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}
_TINY_FOLDER = "tiny-imagenet-200"
_IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


def data_root(root=None) -> Path:
    """Folder of the datasets: ``root``, else $RMLIB_DATA, else data/ in the project."""
    from rmlib.paths import project_root

    return Path(root or os.environ.get("RMLIB_DATA") or project_root() / "data").expanduser()


def cache_dir() -> Path:
    """Folder of the decoded arrays: $RMLIB_CACHE, else the user's cache folder."""
    import pooch

    return Path(os.environ.get("RMLIB_CACHE") or pooch.os_cache("rmlib"))


def arrays(
    name: str, root=None, *, offline: bool = False, allow_partial: bool = False
) -> dict[str, np.ndarray]:
    """All images of a dataset, from the cache when it is whole, else decoded (and downloaded) now.

    Returns a dictionary with, for SPLIT in train and test: ``SPLIT_images`` (N, 3, H, W) uint8,
    ``SPLIT_labels`` (N,) int64, where known ``SPLIT_boxes`` (N, 4) int64 and ``SPLIT_masks`` (N, H,
    W) bool; ``classes`` (C,) text, sorted; and ``checksum``, the sha256 over the pixels and labels
    of both splits. Images are sorted by class, then by a hash of their pixels. Boxes are x1, y1,
    x2, y2, half open.

    Raises:
        UserError: unknown name, missing or incomplete or unreadable data, a download that failed
            everywhere.
    """
    source = _find(name, data_root(root), offline or bool(os.environ.get("RMLIB_OFFLINE")))
    cache = cache_dir() / f"{re.sub(r'[^A-Za-z0-9]+', '-', name)[-40:]}-{source.fingerprint()}.npz"
    data = _read_cache(cache)
    if data is None:
        data = _in_order(source.read())
        _write_cache(cache, data)
    _check_size(name, data, allow_partial)
    return data


# ----------------------------------------------------------------------------------------------
# finding a dataset


class _Source:
    """One place a dataset can be read from. ``read`` returns unsorted arrays, ``fingerprint``
    changes with the content.
    """

    def __init__(self, path: Path, read):
        self.path, self._read = path, read

    def fingerprint(self) -> str:
        files = (
            [self.path]
            if self.path.is_file()
            else sorted(p for p in self.path.rglob("*") if p.is_file())
        )
        listing = "".join(
            f"{p.relative_to(self.path)} {p.stat().st_size} {p.stat().st_mtime_ns}\n" for p in files
        )
        return hashlib.sha256(f"{self.path.resolve()}\n{listing}".encode()).hexdigest()[:16]

    def read(self):
        try:
            return self._read(self.path)
        except (zipfile.BadZipFile, EOFError, OSError, KeyError) as error:
            raise UserError(
                f"{self.path} cannot be read ({type(error).__name__}: {error}): put a whole copy in"
                " its place"
            ) from error


class _Shapes(_Source):
    def fingerprint(self):
        versions = f"{np.__version__} {Image.__version__}"
        return hashlib.sha256(self.path.read_bytes() + versions.encode()).hexdigest()[:16]


def _find(name: str, root: Path, offline: bool) -> _Source:
    if name == "shapes":
        return _Shapes(Path(shapes.__file__), _read_shapes)
    if name.startswith("folder:"):
        path = Path(name[len("folder:") :]).expanduser()
        if not path.exists():
            raise UserError(f"dataset {name!r}: there is no folder or zip {path}")
        return _Source(path, _read_image_tree)
    if name not in SIZES:
        from rmlib.params import DATASETS, nearest

        raise UserError(f"unknown dataset {name!r}: {nearest(name, (*DATASETS, 'folder:PATH'))}")
    for path in (root / f"{name}.zip", root / name):
        if path.exists():
            return _Source(path, _read_image_tree)
    archive, md5, urls = ARCHIVES[name]
    tiny = name == "tiny-imagenet"
    folder = root / (_TINY_FOLDER if tiny else _CIFAR_FOLDERS[name])
    read = _read_tiny if tiny else lambda path: _read_cifar(name, root)
    for path in (folder, root / archive):
        if path.exists():
            return _Source(path, read)
    if offline:
        raise UserError(
            f"{name} is not in {root} and downloading is off: put {name}.zip or {archive} there, "
            "or name its folder with --root or RMLIB_DATA"
        )
    download(archive, md5, urls, root)
    return _Source(root / archive, read)


def _check_size(name, data, allow_partial):
    if name not in SIZES or allow_partial:
        return
    expected = dict(zip(("classes", "train", "test"), SIZES[name]))
    for split in ("train", "test"):
        counts = np.bincount(data[f"{split}_labels"], minlength=len(data["classes"]))
        if len(counts) != expected["classes"] or (counts != expected[split]).any():
            raise UserError(
                f"{name} is incomplete: {len(counts)} classes with {counts.min()} to {counts.max()}"
                f" {split} images each, expected {expected['classes']} with {expected[split]}:"
                " fetch it again, or pass allow_partial=True"
            )


# ----------------------------------------------------------------------------------------------
# reading


def _parallel(function, tasks, description):
    """``function`` over the tasks in as many processes as there are cores, in order, with a bar
    where somebody looks.
    """
    bar = dict(total=len(tasks), desc=description, leave=False, disable=not sys.stderr.isatty())
    workers = min(os.cpu_count() or 1, len(tasks))
    if workers < 2:
        return list(tqdm(map(function, tasks), **bar))
    # joblib's processes need no `if __name__ == "__main__"` in the caller's script, those of
    # multiprocessing do
    results = joblib.Parallel(n_jobs=workers, return_as="generator")(
        joblib.delayed(function)(task) for task in tasks
    )
    try:
        return list(tqdm(results, **bar))
    finally:
        get_reusable_executor().shutdown(wait=False)


def _draw_chunk(task):
    return shapes.draw_images(*task)


def _read_shapes(path):
    step, data = 1000, {"classes": np.array(shapes.CLASSES)}
    for split, count in shapes.COUNTS.items():
        chunks = _parallel(
            _draw_chunk,
            [(split, i, min(i + step, count)) for i in range(0, count, step)],
            f"drawing {split}",
        )
        images, labels, masks = (np.concatenate(column) for column in zip(*chunks))
        data |= {
            f"{split}_images": images,
            f"{split}_labels": labels,
            f"{split}_masks": masks,
            f"{split}_boxes": _mask_boxes(masks),
        }
    return data


def _mask_boxes(masks):
    def ends(line):  # first and one past the last True of each row
        return line.argmax(1), line.shape[1] - line[:, ::-1].argmax(1)

    (x1, x2), (y1, y2) = ends(masks.any(1)), ends(masks.any(2))
    return np.stack([x1, y1, x2, y2], axis=1).astype(np.int64)


def _decode_chunk(task):
    """RGB pixels (N, 3, H, W) uint8 of some files of a folder or members of a zip."""
    path, names = task
    archive = zipfile.ZipFile(path) if path.is_file() else None
    pixels = []
    for name in names:
        with io.BytesIO(archive.read(name)) if archive else open(path / name, "rb") as file:
            try:
                pixels.append(np.asarray(Image.open(file).convert("RGB")).transpose(2, 0, 1))
            except (Image.UnidentifiedImageError, OSError, SyntaxError) as error:
                raise UserError(
                    f"{name} in {path} cannot be read as an image: mend it or take it away"
                ) from error
    sizes = {p.shape for p in pixels}
    if len(sizes) > 1:
        raise UserError(
            f"{path}: images of different sizes ({sorted((s[2], s[1]) for s in sizes)[:3]} ...):"
            " resize them to one size first"
        )
    return np.stack(pixels)


def _decode(path, names, description):
    step = 1000
    chunks = _parallel(
        _decode_chunk,
        [(path, names[i : i + step]) for i in range(0, len(names), step)],
        description,
    )
    if len({chunk.shape[1:] for chunk in chunks}) > 1:
        raise UserError(f"{path}: images of different sizes: resize them to one size first")
    return np.concatenate(chunks)


def _file_names(path: Path) -> list[str]:
    if path.is_file():
        with zipfile.ZipFile(path) as archive:
            return sorted(archive.namelist())
    return sorted(p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file())


def _read_image_tree(path):
    """``[TOP/]train/CLASS/*`` and ``[TOP/]test/CLASS/*`` (or val) of a folder or zip."""
    split_names = {"train": [], "test": [], "val": []}
    for name in _file_names(path):
        match = re.fullmatch(
            r"(?:[^/]+/)?(train|test|val)/([^/]+)/([^/.][^/]*)", name
        )  # files with a leading dot are no images
        if match and name.lower().endswith(_IMAGE_ENDINGS):
            split_names[match[1]].append((name, match[2]))
    found = {
        "train": split_names["train"],
        "test": split_names["test"] or split_names["val"],
    }  # val counts where there is no test
    if not all(found.values()):
        missing = " and ".join(split for split, names in found.items() if not names)
        raise UserError(
            f"{path} has no {missing} images: expected train/CLASS/* and test/CLASS/* (or"
            f" val/CLASS/*) with {', '.join(_IMAGE_ENDINGS)}"
        )
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

    kind = {"cifar10": torchvision.datasets.CIFAR10, "cifar100": torchvision.datasets.CIFAR100}[
        name
    ]
    archive, md5, _ = ARCHIVES[name]
    if not (root / _CIFAR_FOLDERS[name]).exists():
        torchvision.datasets.utils.extract_archive(str(root / archive), str(root))
    data = {}
    for split in ("train", "test"):
        try:
            images = kind(str(root), train=split == "train", download=False)
        except RuntimeError as error:
            raise OSError(str(error)) from error
        data |= {
            f"{split}_images": images.data.transpose(0, 3, 1, 2),
            f"{split}_labels": np.array(images.targets),
        }
    assert images.classes == sorted(images.classes)
    return data | {"classes": np.array(images.classes)}


def _read_tiny(path):
    """The official layout. Labels and boxes of ``val`` stand in val_annotations.txt; read as a
    folder it has ONE class.
    """
    top = f"{_TINY_FOLDER}/" if path.is_file() else ""
    names = _file_names(path)
    archive = zipfile.ZipFile(path) if path.is_file() else None

    def lines(name):
        text = archive.read(name).decode() if archive else (path / name).read_text()
        return [line.split("\t") for line in text.splitlines() if line.strip()]

    annotated = {"train": [], "test": []}  # (file, wnid, corners)
    for name in names:
        if re.fullmatch(rf"{top}train/([^/]+)/\1_boxes.txt", name):
            wnid = name.split("/")[-2]
            annotated["train"] += [
                (f"{top}train/{wnid}/images/{file}", wnid, corners)
                for file, *corners in lines(name)
            ]
    annotated["test"] = [
        (f"{top}val/images/{file}", wnid, corners)
        for file, wnid, *corners in lines(f"{top}val/val_annotations.txt")
    ]
    present = set(names)
    classes = sorted(wnid for (wnid,) in lines(f"{top}wnids.txt"))
    index = {wnid: i for i, wnid in enumerate(classes)}
    data = {"classes": np.array(classes)}
    for split, rows in annotated.items():
        rows = [row for row in rows if row[0] in present]
        if not rows:
            raise UserError(
                f"{path} holds no {split} images in the layout of Tiny ImageNet: fetch it again"
            )
        corners = np.array([[int(v) for v in row[2]] for row in rows])
        data[f"{split}_images"] = _decode(path, [row[0] for row in rows], f"decoding {split}")
        data[f"{split}_labels"] = np.array([index[row[1]] for row in rows])
        data[f"{split}_boxes"] = corners + [0, 0, 1, 1]  # the files count the last pixel in
    return data


# ----------------------------------------------------------------------------------------------
# order and cache


def _in_order(data):
    """Sort by class and pixel hash, and add the checksum of the whole."""
    total = hashlib.sha256()
    ordered = {"classes": data["classes"]}
    for split in ("train", "test"):
        images, labels = (
            np.ascontiguousarray(data[f"{split}_images"]),
            data[f"{split}_labels"].astype(np.int64),
        )
        keys = [hashlib.sha256(image.tobytes()).digest() for image in images]
        order = sorted(range(len(keys)), key=lambda i: (labels[i], keys[i]))
        ordered |= {
            name: np.ascontiguousarray(array[order])
            for name, array in data.items()
            if name.startswith(split)
        }
        ordered[f"{split}_labels"] = labels[order]
        total.update(ordered[f"{split}_images"].tobytes())
        total.update(ordered[f"{split}_labels"].tobytes())
    return ordered | {"checksum": np.array(total.hexdigest())}


def _read_cache(path):
    """The cached arrays, or None when there are none or the file is damaged (every array carries a
    CRC-32).
    """
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
        print(
            f"the decoded images are not cached: {error}; set RMLIB_CACHE to a folder with room",
            file=sys.stderr,
        )
