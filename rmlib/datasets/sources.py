"""Where images come from: drawn figures, folders and zips of images, official archives.

Everything here is numpy, decoded once and then cached; :mod:`rmlib.data` makes tensors of it. The
order depends on the pixels alone: a folder, a zip and the official files of a dataset are the same.
"""

import functools
import hashlib
import json
import os
import re
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
import PIL

from rmlib import UserError
from rmlib.datasets import cache, layout, shapes
from rmlib.datasets.decode import CHUNK, decode, parallel, reading, same_size
from rmlib.datasets.download import ARCHIVES, download
from rmlib.paths import cache_dir, expanded, project_root

# classes, training and test images per class
SIZES = {"cifar10": (10, 5000, 1000), "cifar100": (100, 500, 100), "tiny-imagenet": (200, 500, 50)}

_DRAWN = Path(shapes.__file__)
# of what is made of the same files; another number makes the cache anew
_RULES = 2
# what a file raises that is no zip or no dataset, or damaged
_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, OSError, LookupError, ValueError, RuntimeError)


class NotHere(UserError):
    """A named dataset is not on this machine, and must not be downloaded now."""


def data_root(root=None) -> Path:
    """Folder of the datasets: ``root``, else $RMLIB_DATA, else data/ in the project."""
    return expanded(root or os.environ.get("RMLIB_DATA") or project_root() / "data")


def arrays(
    name: str, root=None, *, offline: bool = False, allow_partial: bool = False
) -> dict[str, np.ndarray]:
    """All images of a dataset, from the cache when it is whole, else decoded (and downloaded) now.

    Returns a dictionary with, for SPLIT in train and test: ``SPLIT_images`` (N, 3, H, W) uint8,
    ``SPLIT_labels`` (N,) int64, where known ``SPLIT_boxes`` (N, 4) int64, half open x1, y1, x2, y2,
    and ``SPLIT_masks`` (N, H, W) bool; ``classes`` (C,) text, sorted; and ``checksum``, the sha256
    over pixels and labels of both splits. Images are sorted by class, then by a hash of the pixels.

    What was left out, converted or found twice is said on stderr, once in a process.

    Raises:
        UserError: unknown, missing, incomplete or unreadable data; a failed download.
    """
    data = read(name, root, offline=offline, allow_partial=allow_partial)
    _tell(name, str(data["checksum"]), str(data["report"]))
    return data


@functools.cache
def _tell(name, _, report):
    for line in json.loads(report)["notes"]:
        print(f"{name}: {line}", file=sys.stderr)


def read(
    name: str, root=None, *, offline: bool = False, allow_partial: bool = False
) -> dict[str, np.ndarray]:
    """The same, where ``report`` says in JSON what :func:`arrays` tells, and :func:`table` shows.

    Raises:
        UserError: see :func:`arrays`.
    """
    path, make = _find(name, data_root(root), offline or bool(os.environ.get("RMLIB_OFFLINE")))
    try:
        # a zip is listed when it is read: its size and time tell whether it changed
        listing = layout.Listing() if path.is_file() else layout.list_folder(path)
        short = re.sub(r"[^A-Za-z0-9]+", "-", name)[-40:]
        stored = cache_dir() / f"{short}-{_fingerprint(path, listing)}.npz"
        cache.clear(stored.parent)
        data = cache.read(stored)
        if data is None:
            if path.is_file() and make in (_read_image_tree, _read_tiny):
                listing = layout.list_zip(path)
            data = _in_order(make(path, listing))
            cache.write(stored, data)
    except UserError:
        raise
    except _DAMAGE as error:
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"{path} cannot be read ({reason}): put a whole copy there") from error
    _check_size(name, data, allow_partial)
    return data


def _fingerprint(path: Path, listing) -> str:
    """A hash that changes with the content of a file or folder."""
    if path == _DRAWN:
        versions = f"{np.__version__} {PIL.__version__}"
        return hashlib.sha256(path.read_bytes() + versions.encode()).hexdigest()[:16]
    stamps = [layout.stamp(path.stat())] if path.is_file() else listing.stamps
    content = "\n".join([str(_RULES), str(path.resolve()), *stamps])
    return hashlib.sha256(os.fsencode(content)).hexdigest()[:16]


def _find(name: str, root: Path, offline: bool):
    """(path, function that reads it): what there is of a dataset, or what is now downloaded."""
    if name == "shapes":
        return _DRAWN, _read_shapes
    if name.startswith("folder:"):
        given = name[len("folder:") :]
        path = expanded(given)
        if not given or not os.path.exists(path):
            raise UserError(f"dataset {name!r}: there is no folder or zip {path}")
        return path, _read_image_tree
    if name not in SIZES:
        from rmlib.params import nearest_dataset

        raise UserError(f"unknown dataset {name!r}: {nearest_dataset(name)}")
    for path in (root / f"{name}.zip", root / name):
        if path.exists():
            return path, _read_image_tree
    archive, folder, md5, urls = ARCHIVES[name]
    read = _read_tiny
    if name != "tiny-imagenet":
        read = functools.partial(_read_cifar, name, root)
    for path in (root / folder, root / archive):
        if path.exists():
            return path, read
    if offline:
        remedy = f"put {name}.zip or {archive} there, or name its folder by --root or RMLIB_DATA"
        raise NotHere(f"{name} is not in {root} and downloading is off: {remedy}")
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


def _read_shapes(_path, _listing):
    data = {"classes": np.array(shapes.CLASSES)}
    for split, count in shapes.COUNTS.items():
        tasks = [(split, i, min(i + CHUNK, count)) for i in range(0, count, CHUNK)]
        chunks = parallel(shapes.draw_images, tasks, f"drawing {split}")
        images, labels, masks = (np.concatenate(column) for column in zip(*chunks))
        data |= {f"{split}_images": images, f"{split}_labels": labels}
        data |= {f"{split}_masks": masks, f"{split}_boxes": _mask_boxes(masks)}
    return data


def _mask_boxes(masks):
    def ends(line):  # first and one past the last True of each row
        return line.argmax(1), line.shape[1] - line[:, ::-1].argmax(1)

    (x1, x2), (y1, y2) = ends(masks.any(1)), ends(masks.any(2))
    return np.stack([x1, y1, x2, y2], axis=1).astype(np.int64)


def _read_image_tree(path, listing):
    """``[TOP/]train/CLASS/*`` and ``[TOP/]test/CLASS/*`` (or val) of a folder or zip."""
    found = layout.find_images(path, listing)
    data, modes = {"classes": np.array(found.classes)}, {}
    for split, labelled in found.images.items():
        names, labels = [name for name, _ in labelled], [label for _, label in labelled]
        data[f"{split}_images"], modes[split], changed = decode(path, names, split)
        data[f"{split}_labels"] = np.array(labels)
        data[f"{split}_names"] = np.array(names)
        found.noted[split] |= changed[split]
    same_size(path, [(data[f"{split}_images"], found.images[split][0][0]) for split in modes])
    counts = {
        split: {reason: len(names) for reason, names in reasons.items()}
        for split, reasons in found.skipped.items()
    }
    notes = layout.lines(found.skipped, "skipped, ") + layout.lines(found.noted)
    report = {"folders": found.folders, "modes": modes, "skipped": counts, "notes": notes}
    return data | {"report": report}


def _read_cifar(name, root, _path, _listing):
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


def _read_tiny(path, listing):
    """The official layout; val_annotations.txt has the labels and boxes of val."""
    top, names = listing.top, listing.files
    with reading(path) as read:

        def lines(name):
            text = read(names[name]).decode()
            return [line.split("\t") for line in text.splitlines() if line.strip()]

        # (file, class, corners of the box)
        rows: dict[str, list] = {"train": [], "test": []}
        for name in sorted(names):
            if match := re.fullmatch(rf"({re.escape(top)}train/([^/]+)/)\2_boxes.txt", name):
                folder, wnid = match.groups()
                boxes = lines(name)
                rows["train"] += [(f"{folder}images/{file}", wnid, box) for file, *box in boxes]
        for file, wnid, *box in lines(f"{top}val/val_annotations.txt"):
            rows["test"].append((f"{top}val/images/{file}", wnid, box))
        classes = sorted(wnid for (wnid,) in lines(f"{top}wnids.txt"))
    index = {wnid: i for i, wnid in enumerate(classes)}
    data, modes = {"classes": np.array(classes)}, {}
    for split, each in rows.items():
        found = [row for row in each if row[0] in names]
        if not found:
            raise UserError(f"{path} has no {split} images of Tiny ImageNet: fetch it again")
        listed, wnids, corners = zip(*found)
        files = [names[file] for file in listed]
        data[f"{split}_images"], modes[split], _ = decode(path, files, split)
        data[f"{split}_labels"] = np.array([index[wnid] for wnid in wnids])
        # the files count the last pixel in
        data[f"{split}_boxes"] = np.array(corners).astype(int) + [0, 0, 1, 1]
        data[f"{split}_names"] = np.array(files)
    return data | {"report": {"modes": modes}}


def _in_order(data):
    """Sort by class and pixel hash, and add the checksum of the whole and the report."""
    total, noted = hashlib.sha256(), layout.remarks()
    seen: dict[bytes, tuple[str, str]] = {}
    ordered = {"classes": data["classes"]}
    report = {"folders": {}, "modes": {}, "skipped": {}, "notes": []} | data.pop("report", {})
    for split in ("train", "test"):
        data[f"{split}_labels"] = labels = data[f"{split}_labels"].astype(np.int64)
        keys = [hashlib.sha256(image.tobytes()).digest() for image in data[f"{split}_images"]]
        names = data.pop(f"{split}_names", [f"{split} image {i}" for i in range(len(keys))])
        for key, name in zip(keys, names):
            first, twin = seen.setdefault(key, (split, name))
            if twin != name:
                noted[split][f"also in {first}, pixel for pixel"].add(f"{name} = {twin}")
        order = sorted(range(len(keys)), key=lambda i: (labels[i], keys[i]))
        for name, array in data.items():
            if name.startswith(split):
                ordered[name] = np.ascontiguousarray(array[order])
        total.update(ordered[f"{split}_images"].tobytes())
        total.update(ordered[f"{split}_labels"].tobytes())
    report["notes"] += layout.lines(noted)
    ordered["report"] = np.array(json.dumps(report))
    return ordered | {"checksum": np.array(total.hexdigest())}


def table(data) -> str:
    """What there is of each split, as text: classes, images, sizes, modes, and what was skipped."""
    report = json.loads(str(data["report"]))
    rows = [("split", "folder", "classes", "images", "per class", "size", "modes", "skipped")]
    for split in ("train", "test", *(report["skipped"].keys() - {"train", "test"})):
        skipped = report["skipped"].get(split, {})
        last = ", ".join(f"{count} {reason}" for reason, count in skipped.items()) or "-"
        if f"{split}_images" not in data:
            rows.append((split or "beside", "-", "-", "-", "-", "-", "-", last))
            continue
        count, _, height, width = data[f"{split}_images"].shape
        per_class = np.bincount(data[f"{split}_labels"], minlength=len(data["classes"]))
        modes = report["modes"].get(split, {"RGB": count})
        rows.append(
            (
                split,
                report["folders"].get(split, split),
                f"{np.count_nonzero(per_class)}",
                f"{count}",
                f"{per_class.min()} to {per_class.max()}",
                f"{height} x {width}",
                ", ".join(f"{modes[mode]} {mode}" for mode in sorted(modes)),
                last,
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows)]
    padded = (("  ".join(map(str.ljust, row, widths))).rstrip() for row in rows)
    return "\n".join([*padded, *report["notes"]])
