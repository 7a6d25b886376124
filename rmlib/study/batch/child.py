"""A process that ends with the one that started it; what executors start.

``python -m rmlib.study.batch.child LOCKS MODULE [ARGUMENTS]``. The parent holds the other end of
standard input. When that end closes, also by SIGKILL, this process does what SIGTERM asks of it: a
training writes its checkpoint. So no orphan works on beside the batch that is started again.
Meanwhile the lock files LOCKS, a JSON list, are held. Whoever is started for the same run waits.
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
    # Ray's workers block SIGINT, and kernels would inherit that: a training could not hear it
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with contextlib.ExitStack() as held:
        for path in map(Path, locks):
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                held.enter_context(FileLock(path).acquire(timeout=PATIENCE, poll_interval=0.2))
            except Timeout:
                sys.exit(f"rmlib: another process holds {path}: wait for it, or stop it first")
            except OSError as error:
                reason = error.strerror or error
                sys.exit(f"rmlib: {path.parent} cannot be written ({reason}): choose another --out")
        sys.argv = [module, *arguments]
        runpy.run_module(module, run_name="__main__", alter_sys=True)


def _end_with_parent():
    # until the other end closes: the parent writes nothing (not sys.stdin, whose lock Python wants)
    while os.read(0, 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE)
    os._exit(1)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), sys.argv[2], sys.argv[3:])
