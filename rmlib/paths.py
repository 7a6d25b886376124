"""Where the project, its results and new runs lie, and how folders are walked."""

import os
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

from platformdirs import user_cache_path

from rmlib import UserError

# of desktops, file servers and Python; names with a leading dot are hidden anyway
_SYSTEM = {"__macosx", "__pycache__", "thumbs.db", "ehthumbs.db", "desktop.ini", "@eadir"}
_SYSTEM |= {"icon\r", "lost+found", "$recycle.bin", "system volume information"}


def expanded(path: str | Path) -> Path:
    """A path that somebody wrote, with ``~`` and ``~NAME`` as the home folders they stand for.

    Raises:
        UserError: nobody here has that name.
    """
    found = os.path.expanduser(path)
    if str(found).startswith("~"):
        remedy = f"write the whole path, or ./{path} for a folder of that name"
        raise UserError(f"{path} is in the home of a user who is not known here: {remedy}")
    return Path(found)


def project_root() -> Path:
    """The checkout that this package is installed from, or the current folder without one."""
    checkout = Path(__file__).resolve().parent.parent
    return checkout if (checkout / "notebooks").is_dir() else Path.cwd()


def networks_dir(runs: str | None = None) -> Path:
    """Folder of the networks to look at: ``runs``, else the small ones of the project."""
    return expanded(runs) if runs else results_dir() / "quick"


def studied_dir(runs: str | None = None) -> Path:
    """Folder of the records to look at: ``runs``, else the small-data study."""
    return expanded(runs) if runs else results_dir() / "cifar10-small"


def results_dir() -> Path:
    """Folder of the committed records."""
    return project_root() / "results"


def cache_dir() -> Path:
    """Folder of what can be made anew, such as decoded images: $RMLIB_CACHE, or the user's."""
    return expanded(os.environ.get("RMLIB_CACHE") or user_cache_path("rmlib"))


def runs_dir() -> Path:
    """Where runs are written: $RMLIB_RUNS, or runs/ in the project."""
    return expanded(os.environ.get("RMLIB_RUNS") or project_root() / "runs")


AGAIN = "a link to a folder that is above it or read already"


def hidden(name: str) -> bool:
    """Whether a file or folder of this name belongs to a tool, not to the user."""
    return name.startswith(".") or name.casefold() in _SYSTEM


def walk(root: Path) -> Iterator[tuple[Path, list["os.DirEntry[str]"], str]]:
    """Every folder below one: (folder, what else lies in it, "" or why it is not read).

    Links to folders are followed, after the real ones. Each folder is read once, and none above
    the root, so that a loop ends. Hidden and system folders are listed and not entered.
    """
    folders, links = [Path(root)], list[Path]()
    seen = {_identity(above) for above in folders[0].resolve().parents}
    while folders or links:
        folder = folders.pop() if folders else links.pop(0)
        try:
            if _identity(folder) in seen:
                yield folder, [], AGAIN
                continue
            seen.add(_identity(folder))
            with os.scandir(folder) as listed:
                entries = sorted(listed, key=lambda entry: entry.name)
        except FileNotFoundError:  # deleted meanwhile
            continue
        except OSError as error:
            yield folder, [], f"cannot be read ({error.strerror})"
            continue
        inside = [each for each in entries if is_folder(each) and not hidden(each.name)]
        links += [Path(each.path) for each in inside if each.is_symlink()]
        folders += [Path(each.path) for each in reversed(inside) if not each.is_symlink()]
        entered = {each.name for each in inside}
        yield folder, [each for each in entries if each.name not in entered], ""


def below(root: str | Path, pattern: str) -> list[Path]:
    """The files in a folder and below it whose names fit a pattern, sorted; see :func:`walk`."""
    walked = ((folder, each.name) for folder, entries, _ in walk(Path(root)) for each in entries)
    return sorted(folder / name for folder, name in walked if fnmatchcase(name, pattern))


def is_folder(entry: "os.DirEntry[str]") -> bool:
    """Whether an entry is a folder or a link to one; a link in a loop is none."""
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino
