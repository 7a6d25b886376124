"""Tests and notebooks run without network, data and GPU, in folders of their own.

Kernels started by nbval inherit this.
"""

import gc
import os
import shutil
import tempfile
from pathlib import Path

import pytest

SCRATCH = Path(tempfile.mkdtemp(prefix="rmlib-tests-"))
os.environ["RMLIB_RUNS"] = str(SCRATCH / "runs")
if "PYTEST_XDIST_WORKER" not in os.environ:  # the processes of xdist share what is decoded
    os.environ["RMLIB_CACHE"] = str(SCRATCH / "cache")
os.environ["RMLIB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # several tests run side by side
for name in ("RMLIB_DATA", "RMLIB_MIRROR", "JPY_SESSION_NAME"):
    os.environ.pop(name, None)


def pytest_collection_finish():
    """What was imported stays: collecting garbage, as statsmodels does at every correction for
    several claims, need not look through torch each time.
    """
    gc.collect()
    gc.freeze()


def pytest_unconfigure(config):
    gc.unfreeze()
    shutil.rmtree(SCRATCH, ignore_errors=True)


# the longest first; those at the top that need no drawn images let others draw them once
SLOW = (
    "03_robustness.ipynb",
    "test_faults.py",
    "test_ray.py",
    "02_training.ipynb",
    "test_end_to_end.py",
    "test_recorded.py",
    "04_cam.ipynb",
    "test_attacks.py",
)


def pytest_collection_modifyitems(items):
    """The slow files first, so that nothing waits for the last one alone."""
    items.sort(key=lambda item: SLOW.index(item.path.name) if item.path.name in SLOW else len(SLOW))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config):
    """Of `--numprocesses auto`: one more than there are cores, since the slow tests wait for
    kernels and clusters most of the time.
    """
    return (os.cpu_count() or 1) + 1


def pytest_runtest_setup(item):
    if "cuda" in item.keywords:
        import torch

        if not torch.cuda.is_available():
            pytest.skip("no CUDA device")


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """A folder dataset: 3 classes of 8 x 12 pixels, learnable from the mean colour.

    Each has 20 training and 10 test images.
    """
    from standins import draw_pictures

    return draw_pictures(tmp_path_factory.mktemp("pictures"), 20, 10)


@pytest.fixture
def tiny_run(pictures, tmp_path):
    """Parameters of a run of a second or two, as keyword arguments."""
    return dict(
        dataset=f"folder:{pictures}",
        width=2,
        epochs=3,
        batch_size=16,
        lr=0.02,
        train_images=None,
        out=str(tmp_path / "runs"),
        device="cpu",
    )


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project folder (with a space in its name) with a stand-in for 02_training."""
    from standins import stand_in_project

    from rmlib.study.batch import plan

    root = tmp_path / "a project"
    stand_in_project(root)
    monkeypatch.setattr(plan, "project_root", lambda: root)
    monkeypatch.chdir(root)
    return root


@pytest.fixture
def at_once(project, monkeypatch):
    """The same, where notebooks are done in this process, without a kernel."""
    import standins

    from rmlib.study.batch import executors

    monkeypatch.setattr(executors, "work", standins.at_once)
    return project
