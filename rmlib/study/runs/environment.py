"""Where, when and by which code something was computed."""

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from rmlib.paths import project_root


def environment(device: str) -> dict:
    """The ``code``, ``versions``, ``hardware`` and ``finished`` of a record made now; device is
    "cpu" or "cuda".
    """
    versions = {"python": platform.python_version()}
    versions |= {name: metadata.version(name) for name in ("torch", "torchvision", "numpy")}
    import torch

    # the instruction set that torch's kernels use: the same seed gives other numbers on another one
    hardware = {
        "device": device,
        "cpu": cpu_name(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "system": platform.system(),
    }
    if device == "cuda":
        hardware["gpu"] = torch.cuda.get_device_name()
    return {
        "code": git_state(),
        "versions": versions,
        "hardware": hardware,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def cpu_name() -> str:
    """The processor in words."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(
            line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")
        )
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def git_state() -> dict:
    """Version, commit and dirty flag of the code that runs."""

    def git(*words):
        # without optional locks: killed within `git status`, it would leave the user's repository
        # locked
        answer = subprocess.run(
            ["git", "--no-optional-locks", *words],
            cwd=project_root(),
            capture_output=True,
            text=True,
        )
        return answer.stdout.strip() if answer.returncode == 0 else None

    try:
        commit, changes = (
            git("rev-parse", "HEAD"),
            git("status", "--porcelain", "--untracked-files=no"),
        )
    except OSError:
        commit = changes = None
    from rmlib import __version__

    return {
        "version": __version__,
        "commit": commit,
        "dirty": None if changes is None else bool(changes),
    }
