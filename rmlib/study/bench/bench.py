"""Speed against public implementations, as ratios of medians of interleaved calls in one run.

Machines differ and are noisy. A ratio of two things measured in turn in one process can be
compared.
"""

import platform

import torch

from rmlib.study.bench.measuring import attack_table, map_table
from rmlib.study.bench.mixing import loader_table, mixer_table
from rmlib.study.bench.training import training_table
from rmlib.study.runs import environment
from rmlib.study.runs.run import pick_device
from rmlib.study.settings import BENCHED


def bench(name: str, rounds: int, compiled: bool, only=BENCHED, width: int | None = None) -> str:
    """Measure and return the Markdown tables; one CPU thread.

    ``name``: of the device. The rest are the options of the command line. Of training a tenth as
    many epochs as ``rounds`` are timed, at least 3.
    """
    device = pick_device(name)
    make = {
        "mixers": lambda: mixer_table(device, rounds, compiled),
        "loader": lambda: loader_table(device, rounds),
        "training": lambda: training_table(device, max(3, rounds // 10), width, compiled),
        "attacks": lambda: attack_table(device, rounds),
        "maps": lambda: map_table(device, rounds),
    }
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        tables = ["\n".join(make[each]()) for each in BENCHED if each in only]
    finally:
        torch.set_num_threads(threads)
    where = environment.environment(device.type)["hardware"]
    method = f"one thread, medians of {rounds} interleaved calls"
    machine = f"{where.get('gpu', where['cpu'])}, torch {torch.__version__}"
    head = f"float32 where nothing else is said, {method}; {machine}, Python"
    kinds = ", ".join(each for each in BENCHED if each in only)
    title = f"# Speed of {kinds}: ratios within one run"
    return "\n\n".join([title, f"{head} {platform.python_version()}", *tables]) + "\n"
