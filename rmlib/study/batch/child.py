"""A process that ends with the one that started it: ``python -m rmlib.study.batch.child LOCKS MODULE
[ARGUMENTS]``; what executors start.

The parent holds the other end of standard input. When that end closes, also by SIGKILL which nobody
can answer, this process does what SIGTERM asks of it (a training writes its checkpoint), so that no
orphan works on beside the batch that is started again. Meanwhile the lock files LOCKS, a JSON list,
are held: whoever is started for the same cell waits until the one before has ended.
"""

import contextlib
import json
import os
import runpy
import signal
import sys
import threading
import time
from pathlib import Path

from filelock import FileLock, Timeout

# seconds between being told to end and being killed: a kernel gets 60 of them for its checkpoint
GRACE = 75.0
PATIENCE = GRACE + 45  # seconds to wait for what an earlier parent left behind


def main(locks: list[str], module: str, arguments: list[str]) -> None:
    """Hold the locks and run a module as a program, while the parent lives."""
    signal.pthread_sigmask(
        signal.SIG_SETMASK,
        (),
        # Ray's workers block SIGINT, and kernels would inherit that: an interrupted training could
        # not hear it
    )
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with contextlib.ExitStack() as held:
        for path in map(Path, locks):
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                held.enter_context(FileLock(path).acquire(timeout=PATIENCE, poll_interval=0.2))
            except Timeout:
                sys.exit(f"rmlib: another process holds {path}: wait for it, or stop it first")
            except OSError as error:
                sys.exit(
                    f"rmlib: {path.parent} cannot be written ({error.strerror or error}): choose"
                    " another folder with --out"
                )
        import_less()
        sys.argv = [module, *arguments]
        runpy.run_module(module, run_name="__main__", alter_sys=True)


def import_less() -> None:
    """For a process of our own: keep jsonschema (behind nbformat) from building a grammar of web
    addresses for a second, where that is installed.
    """
    sys.modules.setdefault("rfc3987_syntax", None)


def _end_with_parent():
    while os.read(
        0,
        1024,
        # until the other end closes: the parent writes nothing. (Not sys.stdin, whose lock Python
        # wants at its end.)
    ):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE)
    os._exit(1)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), sys.argv[2], sys.argv[3:])
