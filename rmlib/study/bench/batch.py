"""Speed of the study's own machinery: what a batch costs beside its notebooks, several workers,
Ray, and plans and reports over many records.
"""

import base64
import contextlib
import importlib.util
import itertools
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nbformat
import numpy as np
import yaml

from rmlib.datasets import sources
from rmlib.params import MIXERS, TrainParams
from rmlib.study.batch import plan
from rmlib.study.runs import environment, records

FINISHED = 10_000


def synthetic_records(
    folder: Path, count: int, seeds: int = 50, images: int = 100, checksum: str = "synthetic"
) -> None:
    """Write ``count`` records that fit together, each in its own folder: experiments, networks of
    one width each, of 8 methods with ``seeds`` runs, with three rows of history and verdicts on
    ``images`` test images. Nothing was trained; the files are not forced onto the disk one by one.
    """
    made, rng = environment.environment("cpu"), np.random.default_rng(0)
    methods = list(itertools.product((1.0, 0.0), MIXERS))
    for number in range(count):
        (clean_weight, mixer), experiment = (
            methods[number // seeds % len(methods)],
            number // (seeds * len(methods)),
        )
        params = TrainParams(
            mixer=mixer,
            clean_weight=clean_weight,
            seed=number % seeds,
            epochs=3,
            width=experiment + 1,
            test_images=images,
        )
        right = rng.random(images) < 0.8
        record = records.Record(
            status="done",
            run_id=params.run_id,
            config=params.config,
            correct=base64.b64encode(np.packbits(right)).decode(),
            metrics={
                "accuracy": 100 * right.mean(),
                "top5": 99.0,
                "nll": rng.random(),
                "ece": 5 * rng.random(),
            },
            history=[{"epoch": epoch, "lr": 0.1, "loss": 2 / epoch} for epoch in (1, 2, 3)],
            data={"checksum": checksum, "train_images": 2000, "test_images": images, "classes": 10},
            seconds=60.0,
            images_per_second=100.0,
            peak_memory_mib=500.0,
            restarts=0,
            **made,
        )
        path = Path(folder) / record.run_id / records.RECORD
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(record.model_dump_json())


GRID = {
    "dataset": "shapes",
    "width": 8,
    "epochs": 3,
    "train_images": 1250,
    "test_images": 500,
    "eval_every": 0,
}  # cells of some ten seconds on one thread
CELLS = 4
RAY_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "disabled",
}  # a cluster for one measurement on this machine


def batch_rows(rounds: int) -> list[list]:
    """[(how, cells, seconds of all, seconds of a notebook's own work, seconds of the batch for each
    cell, times as fast as one worker)] of the same cells with one worker, with two, with two on a
    Ray cluster that is there already, and with two beside 10 000 finished cells; medians of
    ``rounds`` that take turns.
    """
    with tempfile.TemporaryDirectory() as scratch:
        root, times = Path(scratch), {}
        grid = {"common": GRID, "grid": [{"mixer": "mixup", "seed": list(range(CELLS))}]}
        (root / "grid.yaml").write_text(yaml.safe_dump(grid))
        synthetic_records(
            root / "many", FINISHED, checksum=str(sources.arrays("shapes")["checksum"])
        )
        many = [
            {
                "mixer": list(MIXERS),
                "clean_weight": [1.0, 0.0],
                "width": list(range(1, FINISHED // 400 + 1)),
                "seed": list(range(50)),
                "epochs": 3,
                "test_images": 100,
            }
        ]
        (root / "many.yaml").write_text(
            yaml.safe_dump({"grid": many + [GRID | each for each in grid["grid"]]})
        )
        environment = os.environ | RAY_ENVIRONMENT
        ways = {
            "one worker": ("grid", 1, None),
            "two workers": ("grid", 2, None),
            f"two workers beside {FINISHED} finished cells": ("many", 2, None),
        }
        with _ray_cluster() as address:
            if address:
                ways["two on Ray"] = ("grid", 2, address)
            for _ in range(rounds):
                for name, (file, workers, address) in ways.items():
                    out = root / ("many" if file == "many" else "out")
                    for run_id in _ids(root / "grid.yaml", out):
                        shutil.rmtree(out / run_id, ignore_errors=True)
                    begun = time.perf_counter()
                    code = (
                        "import sys; from rmlib import batch, plan; found ="
                        " batch.run_batch(plan.read_batch(sys.argv[1], sys.argv[2]),"
                        f" workers={workers}, executor={'ray' if address else 'local'!r},"
                        f" address={address!r}, log=lambda line: None); sys.exit(found['failed'] +"
                        " found['left'])"
                    )
                    subprocess.run(
                        [sys.executable, "-c", code, str(root / f"{file}.yaml"), str(out)],
                        check=True,
                        env=environment,
                        stdout=subprocess.DEVNULL,
                    )
                    seconds = time.perf_counter() - begun
                    own = [
                        sum(
                            cell.metadata.papermill.duration or 0
                            for cell in nbformat.read(out / run_id / "02_training.ipynb", 4).cells
                        )
                        for run_id in _ids(root / "grid.yaml", out)
                    ]
                    times.setdefault(name, []).append(
                        (seconds, sum(own) / CELLS, (seconds * workers - sum(own)) / CELLS)
                    )
        middle = {name: np.median(values, axis=0) for name, values in times.items()}
        return [
            [name, *values, middle["one worker"][0] / values[0]] for name, values in middle.items()
        ]


@contextlib.contextmanager
def _ray_cluster():
    """The address of a Ray cluster of this machine's own, for two cells; None where Ray is not
    installed or does not start.
    """
    if importlib.util.find_spec("ray") is None:
        yield None
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [
        "start",
        "--head",
        "--block",
        f"--port={port}",
        "--num-cpus=2",
        "--include-dashboard=false",
    ]
    cluster = subprocess.Popen(
        [sys.executable, "-m", "ray.scripts.scripts", *words],
        env=os.environ | RAY_ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        yield (
            f"127.0.0.1:{port}"
            if any("Ray runtime started" in line for line in cluster.stdout)
            else None
        )
    finally:
        cluster.terminate()
        cluster.communicate(timeout=60)


def _ids(grid, out):
    return [cell.run_id for cell in plan.read_batch(grid, out).cells]


def plan_rows() -> list[list]:
    """[(what, number, seconds)] of the commands that read many records: the plan of a batch of as
    many cells, all finished, and the report over them.
    """
    with tempfile.TemporaryDirectory() as scratch:
        root, rows = Path(scratch), []
        synthetic_records(root / "many", FINISHED)
        block = {
            "mixer": list(MIXERS),
            "clean_weight": [1.0, 0.0],
            "width": list(range(1, FINISHED // 400 + 1)),
            "seed": list(range(50)),
            "epochs": 3,
            "test_images": 100,
        }
        (root / "many.yaml").write_text(yaml.safe_dump({"grid": [block]}))
        for name, words in (
            (
                "rmlib batch --dry-run, all cells finished",
                ["batch", str(root / "many.yaml"), "--out", str(root / "many"), "--dry-run"],
            ),
            (
                "rmlib batch --dry-run, no cell finished",
                ["batch", str(root / "many.yaml"), "--out", str(root / "none"), "--dry-run"],
            ),
            (
                "rmlib report: verified, tables, CSV, Parquet, what is missing, HTML",
                ["report", str(root / "many")],
            ),
        ):
            begun = time.perf_counter()
            subprocess.run(
                [sys.executable, "-m", "rmlib", *words], check=True, stdout=subprocess.DEVNULL
            )
            rows.append([name, FINISHED, time.perf_counter() - begun])
        return rows
