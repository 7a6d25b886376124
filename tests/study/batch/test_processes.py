"""The processes of a batch, here of small modules instead of notebooks."""

import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from faulty import noted
from standins import counts, grid, run, until

from rmlib import UserError
from rmlib.study.batch import executors
from rmlib.study.batch.executors import Job, Local, work

HEADER = """
import os, signal, sys, time
sys.path.insert(0, {tests!r})
from faulty import note
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A function that makes a job of some lines of Python."""
    monkeypatch.chdir(tmp_path)

    def make(*lines, minutes=None):
        header = HEADER.format(tests=str(Path(__file__).parents[2]))
        (tmp_path / "small.py").write_text("\n".join([header, *lines]))
        return Job(("small",), 3, Path("log.txt"), Path("lock"), minutes, str(tmp_path))

    return make


def test_what_a_job_prints_is_in_its_log_before_it_ends(module):
    """It has its threads and its GPU before it starts."""
    job = module(
        "print(os.environ['OMP_NUM_THREADS'], os.environ['CUDA_VISIBLE_DEVICES'])",
        "while not os.path.exists('go'):",
        "    time.sleep(0.05)",
        "sys.exit(7)",
    )
    with ThreadPoolExecutor() as pool:
        ended = pool.submit(Local(1, ("5",)).run, job)
        until(lambda: noted("log.txt") == ["3 5"])
        assert not ended.done()
        Path("go").touch()
        assert ended.result() == executors.Ended(7, "3 5")


def test_a_job_is_ended_by_its_time_limit(module):
    ended = work(module("time.sleep(1000)", minutes=1e-4), {}, threading.Event())
    assert ended.code and ended.late


def test_a_job_that_is_deaf_is_killed(module, monkeypatch):
    monkeypatch.setattr(executors, "GRACE", 0.5)
    stop = threading.Event()
    job = module(
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)", "note('began.txt')", "time.sleep(1000)"
    )
    with ThreadPoolExecutor() as pool:
        ended = pool.submit(work, job, {}, stop)
        until(lambda: noted("began.txt"))
        stop.set()
        assert ended.result() == executors.Ended(-9, "")


def test_an_orphan_ends_by_itself_and_its_successor_waits_for_that(module):
    """The parent is killed, so that no handler runs."""
    job = module(
        "def end(*_):",
        "    time.sleep(1)",
        "    note('order.txt', 'ends')",
        "    sys.exit(1)",
        "signal.signal(signal.SIGTERM, end)",
        "note('order.txt', 'begins')",
        "time.sleep(0 if os.path.exists('go') else 1000)",
    )
    code = f"""
import threading
from pathlib import PosixPath
from rmlib.study.batch.executors import Job, work
work({job!r}, {{}}, threading.Event())
"""
    parent = subprocess.Popen([sys.executable, "-c", code])
    until(lambda: noted("order.txt"), parent)
    parent.kill()
    parent.wait()
    Path("go").touch()
    assert work(job, {}, threading.Event()).code == 0
    assert noted("order.txt") == ["begins", "ends", "begins"]


def test_a_signal_that_another_thread_gets_ends_the_batch(at_once, monkeypatch):
    """The system may give it to any thread, and the one that waits for the runs sleeps on."""
    heard = []

    def signalled(job, environment, stop):
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)
        heard.append(stop.wait(60))
        return executors.Ended(1, "")

    monkeypatch.setattr(executors, "work", signalled)
    grid(at_once, seed=[0])
    with pytest.raises(KeyboardInterrupt):
        run()
    assert heard == [True]


@pytest.fixture
def two_gpus(tmp_path_factory, monkeypatch):
    """A machine that shows two GPUs."""
    folder = tmp_path_factory.mktemp("driver")
    (folder / "nvidia-smi").write_text("#!/bin/sh\necho 0\necho 1\n")
    (folder / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_runs_are_dealt_out_to_the_gpus(at_once, two_gpus):
    """Two places on each of two GPUs; threads are those of a run, however many are beside it."""
    grid(at_once, seed=[10, 11, 12, 13], threads=3)
    lines = []
    assert run(lines, gpus="all", per_gpu=2) == counts(4) and "4 at a time" in lines[0]
    assert Counter(line.split(" ", 1)[1] for line in noted("began.txt")) == {"0 3": 2, "1 3": 2}


def test_a_gpu_that_is_not_there_is_named(two_gpus, monkeypatch):
    assert executors.chosen_gpus("1") == ("1",)
    with pytest.raises(UserError, match="--gpus 0,2: this machine shows 0,1"):
        executors.chosen_gpus("0,2")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert executors.chosen_gpus("all") == ("1",), "the others were taken from this process"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(UserError, match="shows no GPU"):
        executors.chosen_gpus("all")
