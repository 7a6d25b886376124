"""Where, when and by which code something was computed."""

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from rmlib import __version__
from rmlib.paths import project_root


def environment(device: str) -> dict:
    """``code``, ``versions``, ``hardware`` and ``finished`` of a record made now on cpu or cuda."""
    import torch

    versions = {"python": platform.python_version()}
    versions |= {name: metadata.version(name) for name in ("torch", "torchvision", "numpy")}
    hardware = {
        "device": device,
        "cpu": cpu_name(),
        # the instruction set of torch's kernels: the same seed gives other numbers on another
        "capability": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count() or 1,
        "system": platform.system(),
    }
    if device == "cuda":
        hardware["gpu"] = torch.cuda.get_device_name()
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return {"code": git_state(), "versions": versions, "hardware": hardware, "finished": now}


def cpu_name() -> str:
    """The processor in words."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def git_state() -> dict:
    """Version, commit and dirty flag of the code that runs; None where git cannot say."""
    commit = _git("rev-parse", "HEAD")
    changes = _git("status", "--porcelain", "--untracked-files=no")
    dirty = None if changes is None else bool(changes)
    return {"version": __version__, "commit": commit, "dirty": dirty}


def _git(*words):
    # killed within `git status` with its optional locks, it would leave the repository locked
    command = ["git", "--no-optional-locks", *words]
    try:
        answer = subprocess.run(command, cwd=project_root(), capture_output=True, text=True)
    except OSError:
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None
