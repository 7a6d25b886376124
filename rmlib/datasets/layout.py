"""Which files of a folder or zip are images of which class; all else is counted and named."""

import os
import re
import stat
import unicodedata
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from rmlib import UserError
from rmlib.paths import AGAIN, hidden, is_folder, walk

_ENDING = re.compile(r"\.(png|jpe?g|jpe|jfif|webp|avif|bmp|gif|tiff?|p[bgpn]m)", re.IGNORECASE)
_SPLIT = re.compile(r"(?:(train|test)(?:ing)?|(val)(?:id(?:ation)?)?)(?:[ _-]?set)?")
_OUTSIDE = "a name outside the zip"
_WANTED = "expected train/CLASS/* and test/CLASS/* (or val/CLASS/*), in one folder at most"

# split -> what happened -> names of the files
Remarks = defaultdict[str, defaultdict[str, set[str]]]


def remarks() -> Remarks:
    """An empty collection of them."""
    return defaultdict(lambda: defaultdict(set))


@dataclass
class Listing:
    """The files of a folder or zip, before anything is known of them.

    ``files`` maps their names, with slashes, to those they are read by; the name of a folder ends
    in a slash. ``top`` is the folder with the splits in it, with a slash, or "". ``stamps`` change
    with the content, ``odd`` are names that are no file, by reason.
    """

    top: str = ""
    files: dict[str, str] = field(default_factory=dict)
    stamps: list[str] = field(default_factory=list)
    odd: dict[str, str] = field(default_factory=dict)


@dataclass
class Layout:
    """Training and test images by class, and what is to be said about the rest.

    ``images`` has (name to read, label) for each split, ``folders`` the folder of each.
    """

    classes: list[str]
    images: dict[str, list[tuple[str, int]]]
    folders: dict[str, str]
    skipped: Remarks
    noted: Remarks


def split_of(name: str) -> str | None:
    """``train``, ``test`` or ``val`` for a folder of this name, such as Training; else None."""
    match = _SPLIT.fullmatch(name.casefold())
    return match and (match[1] or match[2])


def shown(name: str) -> str:
    """A name from a folder or zip as it may stand in a line of text."""
    return repr(name)[1:-1]


def some(names) -> str:
    """The first three names."""
    first = sorted(names)[:3]
    return ", ".join(map(shown, first)) + (", ..." if len(names) > len(first) else "")


def list_folder(path: Path) -> Listing:
    """The splits of a folder with all below, in one walk, and what else lies beside them.

    Raises:
        UserError: several folders hold splits, or a folder cannot be read.
    """

    def folders(inside):
        with os.scandir(path / inside) as entries:
            return [entry.name for entry in entries if is_folder(entry)]

    found = Listing(_top(path, folders))
    for beside in {"", found.top}:
        for entry in os.scandir(path / beside):
            name = beside + entry.name
            if is_folder(entry):
                if beside == found.top and split_of(entry.name):
                    _list_split(path, name, found)
                elif name + "/" != found.top:
                    found.odd[name] = ""
            else:
                _list_file(found, name, entry)
    found.stamps += [f"{name} {reason}" for name, reason in found.odd.items()]
    found.stamps.sort()
    return found


def _list_split(path, split, found):
    for folder, entries, problem in walk(path / split):
        name = folder.relative_to(path).as_posix()
        if problem and problem != AGAIN:
            raise UserError(f"{shown(str(folder))} {problem}: check its permissions")
        if problem:
            found.odd[name] = problem
            continue
        found.files[name + "/"] = name
        found.stamps.append(name)
        for entry in entries:
            if is_folder(entry):
                found.odd[f"{name}/{entry.name}"] = ""
            else:
                _list_file(found, f"{name}/{entry.name}", entry)


def _list_file(found, name, entry):
    # not a pipe or a device, which would never end
    if not (os.path.isfile(entry.path) if entry.is_symlink() else entry.is_file()):
        found.odd[name] = "a link to nothing, or no file"
        return
    found.files[name] = name
    found.stamps.append(f"{name} {stamp(entry.stat())}")


def stamp(status: os.stat_result) -> str:
    """Text that changes with a file, also when two files of one time change their names."""
    return f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"


def list_zip(path: Path) -> Listing:
    """The content of a zip, whatever made it; nothing is ever extracted.

    Raises:
        UserError: several folders hold splits.
    """
    found = Listing()
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            name = entry.filename.replace("\\", "/")
            parts = [part for part in name.split("/") if part not in ("", ".")]
            clean = "/".join(parts) + "/" * name.endswith("/")
            if not parts:
                continue
            if name.startswith("/") or re.match("[A-Za-z]:", name) or ".." in parts:
                found.odd[name] = _OUTSIDE
                continue
            if stat.S_ISLNK(entry.external_attr >> 16):
                found.odd[clean] = "a link in a zip"
                continue
            if not clean.endswith("/") and clean in found.files:
                found.odd[f"{clean} (earlier)"] = "a file that the zip holds twice"
            found.files[clean] = entry.filename
    inside: dict[str, set[str]] = defaultdict(set)
    for name in found.files:
        first, *rest = name.split("/")
        inside[""] |= {first} if rest else set()
        inside[first] |= {rest[0]} if len(rest) > 1 else set()
    found.top = _top(path, inside.__getitem__)
    return found


def _top(path, folders: Callable[[str], Iterable[str]]):
    """The one folder with splits in it, with a slash; "" for the outermost or if there is none."""
    outermost = [name for name in folders("") if not hidden(name)]
    if any(map(split_of, outermost)):
        return ""
    tops = sorted(name for name in outermost if any(map(split_of, folders(name))))
    if len(tops) > 1:
        remedy = f"name one, such as folder:{path / tops[0]}, or keep one in the zip"
        raise UserError(f"{path} has splits in several folders ({some(tops)}): {remedy}")
    return f"{tops[0]}/" if tops else ""


def find_images(path: Path, listing: Listing) -> Layout:
    """The images of ``[TOP/]train/CLASS/*`` and ``[TOP/]test/CLASS/*`` (or val), at any depth.

    Raises:
        UserError: there is no such layout, or it can be understood in several ways.
    """
    skipped, noted = remarks(), remarks()
    splits = _by_split(listing, skipped, noted)
    for split, found in splits.items():
        if len(found) > 1:
            raise UserError(f"{path} has {' and '.join(found)}, both for {split}: keep one")
    folders = {split: folder for split, found in splits.items() for folder in found}
    trained = splits["train"].get(folders.get("train"), {})
    if not any(trained.values()):
        instead = "; ".join(lines(skipped, "skipped, ")) or "it is empty"
        raise UserError(f"{path} has no training images: {_WANTED}; {instead}")
    classes = _classes(path, folders["train"], trained)
    used = {"train": folders["train"]}
    for split in ("test", "val"):
        found = splits[split].get(folders.get(split), {})
        images = {name for names in found.values() for name in names}
        if "test" in used:
            reason = "as test is used"
        elif any(names and _key(label) in classes for label, names in found.items()):
            used["test"] = folders[split]
            continue
        else:
            reason = "without a class of train"
        if images:
            skipped[split][reason] = images
    if "test" not in used:
        remedy = f"its folders must be named like those of train ({some(trained)})"
        raise UserError(f"{path} has no labelled test images, nor val: {remedy}")
    if split_of(used["test"]) == "val" and skipped["test"]:
        noted["test"]["val is used, as test has no labelled images"] = set()
    return _layout(splits, used, classes, skipped, noted)


def _by_split(listing, skipped, noted):
    """split -> its folder -> folder of a class -> images. Fills in what is skipped or noted."""
    splits: dict = {split: {} for split in ("train", "test", "val")}
    depth = listing.top.count("/")
    for name in sorted({*listing.files, *listing.odd} - {listing.top}):
        if listing.odd.get(name) == _OUTSIDE:
            skipped[""][_OUTSIDE].add(name)
            continue
        parts = name.split("/")
        inside = parts[depth:-1] if name.startswith(listing.top) else []
        split = split_of(inside[0]) if inside else None
        secret = next((i for i, part in enumerate(parts) if hidden(part)), None)
        if secret is not None:
            whole = "/".join(parts[: secret + 1])
            skipped[split or ""]["hidden or of the system"].add(whole)
            continue
        if split is None:
            known = depth if name.startswith(listing.top) else 0
            skipped[""]["outside train, test and val"].add("/".join(parts[: known + 1]))
            continue
        images = []
        if len(inside) > 1:
            images = splits[split].setdefault(inside[0], {}).setdefault(inside[1], [])
        if not parts[-1]:
            continue
        reason = _why_not(name, listing, inside)
        if reason:
            skipped[split][reason].add(name)
            continue
        images.append(listing.files[name])
        if len(inside) > 2:
            noted[split]["deeper than the folder of their class"].add(name)
    return splits


def _why_not(name, listing, inside):
    """Why a file of a split is no image of a class; None if it is one."""
    if name in listing.odd:
        return listing.odd[name]
    if not _ENDING.fullmatch(os.path.splitext(name)[1]):
        return "not an image by the ending"
    return None if len(inside) > 1 else "without the folder of a class"


def _key(label):
    """What two spellings of a class have in common."""
    return _nfc(_nfc(label).casefold()).strip()


def _nfc(text):
    return unicodedata.normalize("NFC", text)


def _classes(path, folder, trained):
    """key -> name of the classes of train, each with an image, no two alike."""
    labels: dict[str, str] = {}
    for label, images in trained.items():
        place, same = f"{path / folder / shown(label)}", labels.get(_key(label))
        if not images:
            raise UserError(f"{place} has no images: fill it or take it away")
        if same is not None:
            remedy = "rename or merge them"
            raise UserError(f"{place} differs from {shown(same)} only in spelling: {remedy}")
        if any(unicodedata.category(letter) in ("Cc", "Cs") for letter in label):
            raise UserError(f"{place} is no name of a class: rename it")
        labels[_key(label)] = label
    if len(labels) < 2:
        raise UserError(f"{path / folder} has one class only ({some(labels.values())}): {_WANTED}")
    return {key: _nfc(label) for key, label in labels.items()}


def _layout(splits, used, classes, skipped, noted):
    """Labels of the images of both splits, by the classes of train."""
    names = sorted(classes.values())
    images = {}
    for split, folder in used.items():
        labelled, present = [], set()
        for label, files in splits[split_of(folder)][folder].items():
            name = classes.get(_key(label))
            if name is None and files:
                skipped[split]["of no class of train"].update(files)
            elif files:
                present.add(name)
                labelled += [(file, names.index(name)) for file in files]
                if name != label:
                    noted[split]["folders not named as the class"].add(f"{folder}/{label}: {name}")
        if absent := classes.keys() - {_key(name) for name in present}:
            noted[split]["classes of train without an image"] = {classes[key] for key in absent}
        images[split] = labelled
    return Layout(names, images, used, skipped, noted)


def lines(found: Remarks, how: str = "") -> list[str]:
    """Remarks as text: the number of files and the first three names."""
    text = []
    for split, reasons in sorted(found.items()):
        for reason, names in sorted(reasons.items()):
            count = f"{len(names)} " if names else ""
            examples = f" ({some(names)})" if names else ""
            text.append(f"{split}{': ' if split else ''}{count}{how}{reason}{examples}")
    return text
