"""The same batch on a Ray cluster: what is lost is made again, once."""

import os
import re
import signal
import subprocess
from collections import Counter
from pathlib import Path

import psutil
import pytest
from faulty import noted
from standins import BATCH, counts, grid, run, until

from rmlib import UserError
from rmlib.study.batch import executors
from rmlib.study.runs import collection

ray = pytest.importorskip("ray")
DRIVER = [*BATCH, "--executor", "ray"]


def patiently(start):
    """Start a cluster or a node, again where Ray's 30 seconds were too short for a busy machine."""
    for _ in range(9):
        try:
            return start()
        except Exception as error:
            if "timed out" not in str(error):
                raise
            ray.shutdown()
    return start()


@pytest.fixture(autouse=True, scope="module")
def quiet():
    with pytest.MonkeyPatch.context() as patches:
        patches.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patches.setenv("RAY_AUTH_MODE", "disabled")  # else Ray writes a token into the user's home
        patches.delenv("RAY_ADDRESS", raising=False)
        yield


@pytest.fixture
def two_nodes():
    """A cluster whose head has no room for a run, and two nodes for one run each.

    They have a GPU each that is only counted. A node that is silent for some seconds is lost.
    """
    from ray.cluster_utils import Cluster

    health = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500}
    system = health | {"health_check_failure_threshold": 4}
    head = {"num_cpus": 0, "include_dashboard": False, "_system_config": system}
    cluster = patiently(lambda: Cluster(initialize_head=True, head_node_args=head))
    try:
        node = {"num_cpus": 2, "num_gpus": 1}
        yield cluster, [patiently(lambda: cluster.add_node(**node)) for _ in range(2)]
    finally:
        cluster.shutdown()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A cluster that the executor started on this machine."""
    plan = tmp_path_factory.mktemp("ray") / "plan.json"
    plan.write_text("plan")
    executor = patiently(lambda: executors.Ray(None, plan, 1, "cpu", workers=2))
    yield executor
    executor.close()


@pytest.fixture
def own_cluster(cluster, monkeypatch):
    """The same, for batches that ask for one."""

    def ray_of(address, plan, *_):
        assert address is None
        monkeypatch.setattr(cluster, "plan", plan)
        return cluster

    monkeypatch.setattr(executors, "Ray", ray_of)
    monkeypatch.setattr(cluster, "close", lambda: None)
    return cluster


def began():
    """[(seed, parent process)] of every kernel that began."""
    return [tuple(map(int, line.split())) for line in noted("began.txt")]


def test_what_was_lost_with_worker_node_or_cluster_is_made_again(project, two_nodes, request):
    """A worker is killed in the middle of a run, then a node goes. Then Ctrl-C ends a run.

    At last the whole cluster goes, with the batch.
    """
    cluster, (_, second) = two_nodes
    seeds = [20, 21, 22]
    grid(project, seed=seeds)
    command, pipes = [*DRIVER, "--address", cluster.address], {"stderr": subprocess.PIPE}
    driver = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **pipes)
    until(lambda: len(began()) >= 2, driver)
    seed, process = began()[0]
    psutil.Process(process).parent().kill()
    until(lambda: [each for each, _ in began()].count(seed) == 2, driver)
    cluster.remove_node(second, allow_graceful=False)
    Path("go").touch()
    output, errors = driver.communicate(timeout=600)
    assert driver.returncode == 0, output + errors
    assert f"{len(seeds)} to go, 2 at a time" in output
    assert Counter(noted("recorded.txt")) == Counter(map(str, seeds))
    assert len(collection.gather("out").records) == len(seeds)

    grid(project, seed=[3])
    driver = subprocess.Popen(command, stdout=subprocess.DEVNULL, text=True, **pipes)
    until(lambda: began()[-1][0] == 3, driver)
    process = psutil.Process(began()[-1][1])
    driver.send_signal(signal.SIGINT)
    _, errors = driver.communicate(timeout=300)
    assert driver.returncode == 130 and "the same command goes on" in errors
    until(lambda: not process.is_running())
    assert Path("interrupted.txt").exists(), "a training hears it and writes its checkpoint"

    Path("go").unlink()
    grid(project, seed=[23])
    driver = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until(lambda: began()[-1][0] == 23, driver)
    cluster.shutdown()
    driver.kill()
    driver.wait()
    Path("go").touch()
    request.getfixturevalue("own_cluster")
    assert run(executor="ray", workers=2) == counts(1), "the next cluster ends the batch"
    assert [each for each, _ in began()].count(23) == 2 and noted("recorded.txt")[-1] == "23"


def test_a_cluster_of_its_own_is_started_without_an_address(project, own_cluster):
    """A failing run beside a good one."""
    grid(project, seed=[0, 1])
    lines = []
    assert run(lines, executor="ray", workers=2) == counts(1, failed=1)
    assert any("AssertionError: seed 1 does not work" in line for line in lines)


def test_a_cluster_that_does_not_answer_is_named(project):
    grid(project, seed=[0])
    with pytest.raises(UserError, match="no Ray cluster answers") as error:
        run(executor="ray", address="127.0.0.1:1")
    assert "\n" not in str(error.value)


def test_a_machine_that_sees_another_folder_says_so(tmp_path):
    """What a node does with a job whose plan it does not see, or sees with other contents."""
    plan = tmp_path / "plan.json"
    plan.write_text("another")
    for path in (plan, tmp_path / "no" / "plan.json"):
        ended = executors._on_a_node(job(tmp_path), {}, str(path), b"this one", patience=0.1)
        words = "does not see plan.json of this batch: give --out a folder that all machines share"
        assert ended.code == 1 and words in ended.output
    ended = executors._on_a_node(job(tmp_path / "elsewhere"), {}, str(plan), b"another")
    assert ended.code == 1 and "has no folder" in ended.output
    assert "under one path on all machines" in ended.output


def job(folder, word="rmlib"):
    return executors.Job((word,), 1, Path("log.txt"), Path("lock"), None, str(folder))


def test_what_ray_cannot_do_is_named_and_tried_as_often_as_is_said(
    tmp_path, own_cluster, monkeypatch
):
    """An error of the executor itself, and a worker that dies each time: three more attempts.

    A machine without memory is not asked again: Ray's own retries would never end.
    """

    def broken(job, *_):
        with open(f"{job.folder}/{job.words[0]}", "a") as file:
            file.write(".")
        if job.words[0] == "worker":
            os._exit(1)
        raise LookupError("no such thing")

    def no_memory(reference):
        raise ray.exceptions.OutOfMemoryError("")

    monkeypatch.setattr(own_cluster, "start", ray.remote(max_retries=0)(broken).remote)
    monkeypatch.setattr(executors, "LOST", (0.1, 0.1, 0.1))
    for kind, words, attempts in (
        ("error", "cannot run it: .*no such thing", 1),
        ("worker", "lost with its worker or machine 4 times", 4),
    ):
        ended = own_cluster.run(job(tmp_path, kind))
        assert ended.code == 1 and re.search(words, ended.output)
        assert (tmp_path / kind).stat().st_size == attempts
    monkeypatch.setattr(ray, "get", no_memory)
    ended = own_cluster.run(job(tmp_path, "memory"))
    assert ended.code == 1 and "no memory left" in ended.output
