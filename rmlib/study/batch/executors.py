"""Where the jobs of a batch run: in processes of this machine, or on the nodes of a Ray cluster.

An executor has ``places``, the number of jobs it takes at the same time; ``run(job)``, which waits
for one and is called from as many threads; ``stop()``, after which running jobs end with a
checkpoint; and ``close()``. Both run a job by :func:`work`, in a separate process. Its threads and
its GPU are set before it starts.
What a job has done lies in files, so being run twice is being resumed.
"""

import collections
import contextlib
import os
import queue
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rmlib import STOPPED, UserError
from rmlib.study.batch import child
from rmlib.study.guarded import handling

GRACE = child.GRACE
# of the environment, to other machines
HANDED_ON = ("RMLIB_DATA", "RMLIB_CACHE", "RMLIB_RUNS", "RMLIB_MIRROR", "RMLIB_OFFLINE")
# seconds before a lost job is given to another worker: a cluster needs some to notice
LOST = (2, 10, 30)
RECALL = 5  # seconds before a job is cancelled again: a busy cluster loses such a message


@dataclass(frozen=True)
class Job:
    """A module of this package to run in a process of its own."""

    words: tuple[str, ...]  # module and arguments
    threads: int  # of its computations, however many jobs there are
    log: Path  # gets what it prints, as it is printed
    lock: Path  # held while it runs
    minutes: float | None  # after this time it is asked to end
    folder: str  # it runs there


@dataclass(frozen=True)
class Ended:
    """What became of a job: exit code, its last lines, and whether its time limit ended it."""

    code: int
    output: str
    late: bool = False


def work(job: Job, environment: dict, stop: threading.Event) -> Ended:
    """Run a job to its end in a process of its own.

    It is asked to end (SIGTERM; a training writes its checkpoint) after its time limit or when
    ``stop`` is set, and killed GRACE seconds later. It ends by itself when this process is killed.
    ``environment``: variables besides those of this process and the numbers of threads.
    """
    begun, asked, late = time.monotonic(), None, False
    process, lines = _start(job, environment), collections.deque[str](maxlen=200)
    log = Path(job.folder, job.log)
    reader = threading.Thread(target=_listen, args=(process.stdout, log, lines), daemon=True)
    reader.start()
    try:
        while process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.5)
            now = time.monotonic()
            over = job.minutes is not None and now - begun > 60 * job.minutes
            if asked is None and (stop.is_set() or over):
                asked, late = now, not stop.is_set()
                process.terminate()
            elif asked is not None and now - asked > GRACE:
                _kill(process)
    finally:
        _kill(process)
        process.stdin.close()
        reader.join(5)  # a kernel that outlives its parent by a second has the same output
    return Ended(process.returncode, "\n".join(lines), late)


def _start(job, environment):
    """The process of a job, in a session of its own."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    threads = dict.fromkeys(names, str(job.threads))
    environment = {**os.environ, **threads, "PYTHONUNBUFFERED": "1", **environment}
    # a batch started from a notebook is not watched there
    environment.pop("JPY_SESSION_NAME", None)
    command = [sys.executable, "-m", child.__name__, str(job.lock), *job.words]
    options: Any = {"cwd": job.folder, "env": environment, "start_new_session": True}
    options |= {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(command, **options)


def _kill(process):
    with contextlib.suppress(ProcessLookupError):
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _listen(stream, log, lines):
    """Keep the last lines of a stream, and all in a file: a full disk costs only the log."""
    for line in stream:
        lines.append(line.decode(errors="replace").rstrip())
        with contextlib.suppress(OSError):
            log.parent.mkdir(parents=True, exist_ok=True)
            with open(log, "ab") as file:
                file.write(line)


class Local:
    """Processes on this machine, dealt out over the GPUs that CUDA_VISIBLE_DEVICES shall name."""

    def __init__(self, workers: int, gpus: tuple[str, ...] = ()):
        self.places, self.stopping = workers, threading.Event()
        self.free: queue.SimpleQueue[dict] = queue.SimpleQueue()
        for number in range(workers):
            self.free.put({"CUDA_VISIBLE_DEVICES": gpus[number % len(gpus)]} if gpus else {})

    def run(self, job: Job) -> Ended:
        place = self.free.get()
        try:
            return work(job, place, self.stopping)
        finally:
            self.free.put(place)

    def stop(self):
        self.stopping.set()

    def close(self):
        pass


def visible_gpus() -> list[str]:
    """The GPUs that a new process may use: of CUDA_VISIBLE_DEVICES, else all of the driver's."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name.strip() for name in named.split(",") if name.strip()]
    if not shutil.which("nvidia-smi"):
        return []
    command = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    answer = subprocess.run(command, capture_output=True, text=True)
    return answer.stdout.split() if answer.returncode == 0 else []


def chosen_gpus(words: str) -> tuple[str, ...]:
    """``--gpus``: "all", or some of :func:`visible_gpus` such as "0,2".

    Raises:
        UserError: there is none, or no such one.
    """
    visible = visible_gpus()
    chosen = visible if words == "all" else [word.strip() for word in words.split(",")]
    if not chosen or not set(chosen) <= set(visible):
        shown = f"this machine shows {','.join(visible) or 'no GPU'}"
        raise UserError(f"--gpus {words}: {shown}; leave it out to take the first")
    return tuple(chosen)


class Ray:
    """The nodes of a Ray cluster, which all see the folder of results under the same path.

    Args:
        address: of a running cluster, such as auto or 10.0.0.1:6379; None starts one here.
        plan: a file in the folder of results, by which a node shows that it sees the same folder.
        threads: of a job; device: cpu, cuda, or auto for a GPU where the cluster has any.
        per_gpu: jobs that share one.
        workers: jobs at the same time; None: as many as the cluster takes.

    Raises:
        UserError: there is no cluster, or it has no room for a single job.
    """

    def __init__(
        self, address: str | None, plan: Path, threads: int, device: str, per_gpu=1, workers=None
    ):
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        import ray

        self.ray, self.plan = ray, plan
        self.stopping, self.running = threading.Event(), set[Any]()
        _connect(ray, address)
        found = ray.cluster_resources()
        cpus, gpus = found.get("CPU", 0), found.get("GPU", 0)
        share = 1 / per_gpu if device == "cuda" or (device == "auto" and gpus) else 0
        fits = int(min(cpus // threads, gpus * per_gpu if share else cpus))
        if fits < 1:
            self.close()
            run = f"a run of {threads} threads with device={device!r}"
            raise UserError(f"{cpus:g} CPUs and {gpus:g} GPUs of the cluster are too few for {run}")
        self.places = workers or fits
        # tried again below: Ray itself would never give up a job without memory
        remote = ray.remote(num_cpus=threads, num_gpus=share, max_retries=0)
        self.start = remote(_on_a_node).remote

    def run(self, job: Job) -> Ended:
        handed_on = {name: os.environ[name] for name in HANDED_ON if name in os.environ}
        errors = self.ray.exceptions
        for pause in (0, *LOST):
            if self.stopping.wait(pause):
                return Ended(STOPPED, "not started")
            reference = self.start(job, handed_on, str(self.plan.resolve()), self.plan.read_bytes())
            self.running.add(reference)
            if self.stopping.is_set():  # between the two lines before
                self.ray.cancel(reference)
            try:
                while not self.ray.wait([reference], timeout=RECALL)[0]:
                    if self.stopping.is_set():
                        self.ray.cancel(reference)
                return self.ray.get(reference)
            except errors.TaskCancelledError:
                return Ended(STOPPED, "stopped")
            except errors.OutOfMemoryError:
                return Ended(1, "a machine of the cluster had no memory left: try fewer --workers")
            except errors.RayTaskError as error:
                reason = str(error).strip().splitlines()[-1]
                return Ended(1, f"a machine of the cluster cannot run it: {reason}")
            except errors.RayError as error:  # its worker or machine is gone
                lost = str(error).strip().splitlines()[0]
            finally:
                self.running.discard(reference)
        return Ended(1, f"lost with its worker or machine {1 + len(LOST)} times: {lost}")

    def stop(self):
        self.stopping.set()
        for reference in list(self.running):
            self.ray.cancel(reference)

    def close(self):
        self.ray.shutdown()


def _connect(ray, address):
    """Join a cluster, or start one on this machine."""
    own = {} if address else {"include_dashboard": False}
    try:
        # Ray itself would try for minutes
        if found := re.fullmatch(r"(?:ray://)?([^:/]+):(\d+)", address or ""):
            socket.create_connection((found[1], int(found[2])), timeout=10).close()
        ray.init(address=address or "local", log_to_driver=False, logging_level="ERROR", **own)
    except (OSError, RuntimeError, ValueError) as error:
        problem = f"no Ray cluster answers ({str(error).splitlines()[0][:100]})"
        remedy = "run `ray start --head`, leave --address out, or set RAY_AUTH_MODE=token"
        raise UserError(f"--address {address}: {problem}; {remedy}") from None


def _on_a_node(job, environment, plan, content, patience=10.0):
    """A job on a node of the cluster, if the node sees project and folder of the batch."""
    if not Path(job.folder).is_dir():
        remedy = "project and --out must lie under one path on all machines"
        return Ended(1, f"a machine of the cluster has no folder {job.folder}: {remedy}")
    begun, stop = time.monotonic(), threading.Event()
    while time.monotonic() - begun < patience:  # a network file system may be late by some seconds
        with contextlib.suppress(OSError):
            if Path(plan).read_bytes() == content:
                # how Ray cancels a job, perhaps more than once, wherever this thread is
                with handling((signal.SIGINT,), lambda *_: stop.set()):
                    return work(job, environment, stop)
        time.sleep(0.1)
    problem = f"a machine of the cluster does not see {Path(plan).name} of this batch"
    return Ended(1, f"{problem}: give --out a folder that all machines share under one path")
