"""``rmlib`` and ``python -m rmlib``: the command line, which needs the extra ``study``."""

import sys

from rmlib.extras import needs
from rmlib.study.guarded import guarded


def console() -> None:
    """Run the command and exit with its code; a missing extra is one line on stderr."""
    sys.exit(guarded(command))


def command() -> int:
    """The command, as soon as what it imports is known to be there."""
    needs("study")
    from rmlib.study.cli import main

    return main()


if __name__ == "__main__":
    console()
