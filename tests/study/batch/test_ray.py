"""The same batch on a Ray cluster of two nodes with a GPU each that is only counted, on this
machine: what is lost is made again, once.
"""

import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest
from standins import grid, run_batch

from rmlib import UserError
from rmlib.study.batch import executors
from rmlib.study.batch.plan import read_batch
from rmlib.study.runs import collection, records

ray = pytest.importorskip("ray")
DRIVER = [
    sys.executable,
    "-c",
    (
        "import sys; from pathlib import Path; from rmlib.study.batch import plan; from rmlib.study.cli import"
        " main; plan.project_root = lambda: Path.cwd(); sys.exit(main(['batch', 'grid.yaml',"
        " '--out', 'out', '--executor', 'ray', '--address', *sys.argv[1:]]))"
    ),
]


def two_nodes():
    """A cluster whose head has no room for a cell, and two nodes for one cell each; a node that is
    silent for some seconds is lost.
    """
    from ray.cluster_utils import Cluster

    cluster = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": 0,
            "include_dashboard": False,
            "_system_config": {
                "health_check_initial_delay_ms": 0,
                "health_check_period_ms": 500,
                "health_check_failure_threshold": 4,
            },
        },
    )
    return cluster, [cluster.add_node(num_cpus=2, num_gpus=1) for _ in range(2)]


@pytest.fixture
def quiet(monkeypatch):
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # else Ray writes a token into the user's home


def began():
    """[(seed, CUDA_VISIBLE_DEVICES, parent process)] of every kernel that began."""
    lines = Path("began.txt").read_text().splitlines() if Path("began.txt").exists() else []
    return [(int(seed), gpu, int(process)) for seed, gpu, _, process in map(str.split, lines)]


def until(condition, seconds=90):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.1)


def recorded():
    return (
        Counter(Path("recorded.txt").read_text().split())
        if Path("recorded.txt").exists()
        else Counter()
    )


def test_a_worker_and_a_node_are_lost_and_then_the_cluster(project, quiet):
    """A worker is killed in the middle of a cell, then a node goes, then all of it; a new cluster
    ends the batch. Every cell is recorded once.
    """
    seeds = [str(seed) for seed in range(20, 26)]
    grid(project, seed=[*map(int, seeds)])
    cluster, (first, second) = two_nodes()
    try:
        driver = subprocess.Popen(
            [*DRIVER, cluster.address], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        until(lambda: len(began()) >= 2)
        (seed, gpu, process), *_ = began()
        assert gpu == "0", "each node has one, and the kernel was told"
        psutil.Process(process).parent().kill()
        until(lambda: [each for each, *_ in began()].count(seed) == 2)
        cluster.remove_node(second, allow_graceful=False)
        until(lambda: len(recorded()) >= 3)
    finally:
        cluster.shutdown()
    try:
        driver.wait(5)
    except subprocess.TimeoutExpired:  # it still hopes for the cluster
        driver.kill()
    driver.communicate()
    before = {path: path.stat().st_mtime_ns for path in Path("out").glob("*/record.json")}
    assert 3 <= len(before) < len(seeds)
    done = sum(
        not (path.parent / records.UNFINISHED).exists() for path in before
    )  # the notebook of others was lost after its record, and is made again from that

    cluster, nodes = two_nodes()
    try:
        answer = subprocess.run(
            [*DRIVER, cluster.address], capture_output=True, text=True, timeout=180
        )
    finally:
        cluster.shutdown()
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert f"{done} done already, {len(seeds) - done} to run, 2 at a time" in answer.stdout
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in before.items()), (
        "what was finished stays as it was"
    )
    assert recorded() == Counter(seeds) and {
        str(record.config["seed"]) for record in collection.find(Path("out"))
    } == set(seeds)


def test_on_a_cluster_of_its_own_failures_are_told_and_ctrl_c_ends_well(
    project, quiet, monkeypatch
):
    """Without an address; a failing cell beside a good one; then a cell that hangs, ended by
    Ctrl-C, which leaves no process behind.
    """
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    grid(project, seed=[0, 1])
    lines = []
    try:
        counts = run_batch(
            read_batch("grid.yaml", "out"), executor="ray", workers=2, log=lines.append
        )
    finally:
        ray.shutdown()
    assert counts == {"done": 1, "failed": 1, "stopped": 0, "left": 0} and any(
        "AssertionError: seed 1 does not work" in line for line in lines
    )
    grid(project, seed=[3])
    driver = subprocess.Popen(
        [word for word in DRIVER[:2]] + [DRIVER[2].replace(", '--address'", "")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    until(lambda: any(seed == 3 for seed, *_ in began()))
    process = psutil.Process(began()[-1][2])
    driver.send_signal(signal.SIGINT)
    _, errors = driver.communicate(timeout=90)
    assert driver.returncode == 130 and "the same command goes on" in errors
    until(lambda: not process.is_running(), 30)
    assert Path("interrupted.txt").exists(), (
        "a training hears it and writes its checkpoint; it is not killed"
    )


def test_what_a_cluster_cannot_do_is_told_in_one_line(project, quiet):
    grid(project, seed=[0], threads=64)
    with pytest.raises(UserError, match="no Ray cluster answers") as error:
        run_batch(
            read_batch("grid.yaml", "out"),
            executor="ray",
            address="127.0.0.1:1",
            log=lambda line: None,
        )
    assert "\n" not in str(error.value)


def test_a_machine_that_sees_another_folder_is_told(tmp_path):
    """What a node does with a job whose plan it does not see, or sees with other contents."""
    (tmp_path / "plan.json").write_text("another")
    for path in (tmp_path / "plan.json", tmp_path / "no" / "plan.json"):
        ended = executors._on_a_node(job(tmp_path), {}, str(path), b"this one", patience=0.1)
        assert ended.code == 1 and re.search(
            "does not see plan.json of this batch: give --out a folder that all machines share",
            ended.output,
        )
    ended = executors._on_a_node(
        job(tmp_path / "elsewhere"), {}, str(tmp_path / "plan.json"), b"another"
    )
    assert (
        ended.code == 1
        and "has no folder" in ended.output
        and "under one path on all machines" in ended.output
    )


def job(folder, word="rmlib"):
    return executors.Job((word,), 1, Path("log.txt"), (), folder=str(folder))


@pytest.mark.parametrize("memory", [True, False])
def test_what_ray_cannot_do_is_told_and_tried_as_often_as_is_said(
    tmp_path, memory, quiet, monkeypatch
):
    """A machine without memory (Ray's own retries would never end); an error of the executor
    itself, and a worker that dies each time (three more attempts).
    """
    (tmp_path / "plan.json").write_text("plan")
    if memory:  # any use of it is then too much
        monkeypatch.setenv("RAY_memory_usage_threshold", "0.0001")
        monkeypatch.setenv("RAY_memory_monitor_refresh_ms", "100")

    def broken(job, *_):
        with open(f"{job.folder}/attempts", "a") as file:
            file.write(".")
        if job.words[0] == "memory":
            time.sleep(60)
        if job.words[0] == "worker":
            os._exit(1)
        raise LookupError("no such thing")

    monkeypatch.setattr(executors, "_on_a_node", broken)
    monkeypatch.setattr(executors, "LOST", (1, 1, 1))
    places = executors.Ray(None, tmp_path / "plan.json", 1, "cpu")
    try:
        for kind, words, attempts in (
            [("memory", "no memory left", (0, 1))]
            if memory
            else [
                ("error", "cannot run it: .*no such thing", (1,)),
                ("worker", "lost with its worker or machine 4 times", (4,)),
            ]
        ):
            (tmp_path / "attempts").write_text("")
            ended = places.run(job(tmp_path, kind))
            assert (
                ended.code == 1
                and re.search(words, ended.output)
                and (tmp_path / "attempts").stat().st_size in attempts
            )
    finally:
        places.close()
