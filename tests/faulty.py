"""What the stand-in for notebook 02 does: a record without training, or the fault of its seed."""

import json
import os
import resource
import signal
import time
from pathlib import Path

from rmlib.study.runs import records


def train(params, *words):
    """Write the record in template.json, or make the fault of the seed until `mended` is there.

    Seeds from 20 on wait for a file `go`. ``words`` are noted in began.txt, behind the seed.
    """
    note("began.txt", params.seed, *words)
    if not os.path.exists("mended"):
        FAULTS.get(params.seed, lambda: None)()
    print("half of it", flush=True)
    while params.seed >= 20 and not os.path.exists("go"):
        time.sleep(0.05)
    if not (params.folder / records.RECORD).exists():  # as a training does
        fields = json.loads(Path("template.json").read_text())
        fields |= {"run_id": params.run_id, "config": params.config}
        note("recorded.txt", params.seed)
        records.write(records.Record(**fields), params.folder)
    assert params.seed != 5 or os.path.exists("mended"), "out of memory"


def paced(line):
    """A log of a training: until there is a file `go`, every epoch takes some time."""
    print(line, flush=True)
    if not os.path.exists("go"):
        time.sleep(0.05)


def note(file, *words):
    """Append a line to a file of the project."""
    with open(file, "a") as lines:
        print(*words, file=lines)


def noted(file):
    """The lines of such a file."""
    return Path(file).read_text().splitlines() if Path(file).exists() else []


def fails():
    raise AssertionError("seed 1 does not work")


def killed():
    os.kill(os.getpid(), signal.SIGKILL)


def hangs():
    try:
        time.sleep(1000)
    except KeyboardInterrupt:
        note("interrupted.txt")
        raise


def deaf():
    """Hang, and hear nothing but SIGKILL."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    while True:
        note("beat.txt", "beat")
        time.sleep(0.1)


def no_room_for_a_record():
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))


def no_room_for_the_notebook():
    resource.prlimit(os.getppid(), resource.RLIMIT_FSIZE, (100, 100))


def no_memory():
    resource.setrlimit(resource.RLIMIT_AS, (2**32, 2**32))
    bytearray(2**34)


FAULTS = {
    1: fails,
    2: killed,
    3: hangs,
    6: deaf,
    7: no_room_for_a_record,
    8: no_room_for_the_notebook,
    9: no_memory,
}
