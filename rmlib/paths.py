"""Where the project, its results and new runs lie."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from rmlib import UserError


def expanded(path: str | Path) -> Path:
    """A path that somebody wrote, with ``~`` and ``~NAME`` as the home folders they stand for.

    Raises:
        UserError: nobody here has that name.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        remedy = f"write the whole path, or ./{path} for a folder of that name"
        raise UserError(
            f"{path} is in the home of a user who is not known here: {remedy}"
        ) from None


def project_root() -> Path:
    """The checkout that this package is installed from, or the current folder without one."""
    checkout = Path(__file__).resolve().parent.parent
    return checkout if (checkout / "notebooks").is_dir() else Path.cwd()


def networks_dir(runs: str | None = None) -> Path:
    """Folder of the networks to look at: ``runs``, else the small ones of the project."""
    return expanded(runs) if runs else project_root() / "results" / "quick"


def results_dir(runs: str | None = None) -> Path:
    """Folder of the records to report: ``runs``, else the committed ones."""
    return expanded(runs) if runs else project_root() / "results"


def cache_dir() -> Path:
    """Folder of what can be made anew, such as decoded images: $RMLIB_CACHE, or the user's."""
    import pooch

    return expanded(os.environ.get("RMLIB_CACHE") or pooch.os_cache("rmlib"))


def runs_dir() -> Path:
    """Where runs are written: $RMLIB_RUNS, or runs/ in the project."""
    return expanded(os.environ.get("RMLIB_RUNS") or project_root() / "runs")


def walk(
    root: Path, unreadable: Callable[[OSError], object] | None = None
) -> Iterator[tuple[Path, list[str]]]:
    """The folders below one, except hidden ones, each with the names of its files.

    Links are followed, and a folder is visited once, also where links form a loop.

    Args:
        unreadable: called for each folder that cannot be listed.
    """
    seen = set()
    for name, below, files in os.walk(root, onerror=unreadable, followlinks=True):
        place = os.path.realpath(name)
        # a folder before the links to it, so that it has its own name
        below.sort(key=lambda each: (os.path.islink(os.path.join(name, each)), each))
        below[:] = [each for each in below if place not in seen and not each.startswith(".")]
        if place not in seen:
            yield Path(name), sorted(files)
        seen.add(place)
