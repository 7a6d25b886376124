"""A process that ends with the one that started it; what executors start.

``python -m rmlib.study.batch.child LOCK MODULE [ARGUMENTS]``. The parent holds the other end of
standard input. When that end closes, also by SIGKILL, this process does what SIGTERM asks of it: a
training writes its checkpoint. So no orphan works on while the batch is started again.
Meanwhile the file LOCK is held. Whoever is started for the same run waits.
"""

import os
import runpy
import signal
import sys
import threading
import time
from pathlib import Path

from rmlib import UserError
from rmlib.study.runs import records

# seconds between being asked to end and being killed: a kernel gets 60 of them for its checkpoint
GRACE = 75.0
PATIENCE = GRACE + 45  # seconds to wait for what an earlier parent left behind


def main(lock: str, module: str, *arguments: str) -> None:
    """Hold a lock and run a module as a program, while the parent lives."""
    # Ray's workers block SIGINT, and kernels would inherit that: a training could not hear it
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    refusal = f"another process holds {lock}: wait for it, or stop it first"
    try:
        with records.holding(Path(lock), refusal, PATIENCE):
            sys.argv = [module, *arguments]
            runpy.run_module(module, run_name="__main__", alter_sys=True)
    except UserError as error:
        sys.exit(f"rmlib: {error}")


def _end_with_parent():
    # until the other end closes: the parent writes nothing (not sys.stdin, whose lock Python wants)
    while os.read(0, 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE)
    os._exit(1)


if __name__ == "__main__":
    main(*sys.argv[1:])
