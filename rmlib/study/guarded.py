"""What a user can mend becomes one line on stderr and an exit code; handlers of signals."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable

from rmlib import STOPPED, Stopped, UserError


class Usage(Exception):
    """The command was given wrongly."""


def guarded(command: Callable[[], int | None]) -> int:
    """Call a function; what a user can mend becomes one line on stderr. Returns the exit code.

    A letter that a terminal does not have, such as ± in ASCII, is printed as its number.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError):  # not of every stand-in for a stream
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        return command() or 0
    except Usage as error:
        return _fail(error, 2)
    except UserError as error:
        return _fail(f"rmlib: {error}", 1)
    except Stopped as error:
        return _fail(f"rmlib: {error}", STOPPED)
    except BrokenPipeError:  # whoever read the output has seen enough
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        return 1
    except OSError as error:
        return _fail(f"rmlib: {error.filename or ''}: {error.strerror or error}", 1)
    except KeyboardInterrupt:
        return _fail("rmlib: interrupted; the same command goes on from what was saved last", 130)


@contextlib.contextmanager
def handling(numbers, handler):
    """Answer signals by a handler meanwhile; only the main thread gets any."""
    main = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, handler) for number in numbers if main}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def _fail(message, code):
    print(" ".join(str(message).split()), file=sys.stderr)
    try:
        sys.stdout.flush()
    except OSError:  # nobody reads it any more; Python would exit with 120 for that
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    return code
