"""Batches of stand-ins: notebooks that write records without training, or that need no kernel."""

import json
import os
import sys
import time
from pathlib import Path

import faulty
import nbformat
import numpy as np
import yaml
from made import make_record
from PIL import Image

from rmlib.datasets import sources
from rmlib.params import TrainParams
from rmlib.study.batch import batch as batches
from rmlib.study.batch.executors import Ended
from rmlib.study.batch.plan import read_batch
from rmlib.study.settings import CELL

TRAINING = """
import os, sys
sys.path.insert(0, {tests!r})
import faulty
from rmlib.study import settings
faulty.train(settings.check("02_training", globals()), os.getppid())
"""
# a real training, without the rest of notebook 02
REAL_TRAINING = """
import sys
sys.path.insert(0, {tests!r})
import faulty
from rmlib.study import settings
from rmlib.study.runs.run import train
train(settings.check("02_training", globals()), log=faulty.paced)
"""
# the command line of `rmlib batch` in a project of stand-ins
COMMAND = """
import sys
from pathlib import Path
from rmlib.study.batch import plan
from rmlib.study.cli import main
plan.project_root = lambda: Path.cwd()
sys.exit(main(["batch", "grid.yaml", "--out", "out", *sys.argv[1:]]))
"""
BATCH = [sys.executable, "-c", COMMAND]


def stand_in(root, name, *cells):
    """A notebook whose first cell is the one of parameters."""
    cells = [nbformat.v4.new_code_cell(text) for text in cells]
    cells[0].metadata["tags"] = ["parameters"]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    notebook = nbformat.v4.new_notebook(cells=cells, metadata=metadata)
    nbformat.write(notebook, root / "notebooks" / f"{name}.ipynb")


def draw_pictures(root, train, test):
    """A folder dataset with so many images of each of three classes; returns ``root``."""
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("test", test)):
        for label, name in enumerate(("blue moon", "green", "red")):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 120, (8, 12, 3), dtype=np.uint8)
                pixels[..., 2 - label] += 60
                Image.fromarray(pixels).save(root / split / name / f"{number}.png")
    return root


def stand_in_project(root):
    """A project folder with a few pictures and a stand-in for notebook 02.

    It needs neither torch nor pandas: see :func:`faulty.train`.
    """
    (root / "notebooks").mkdir(parents=True)
    pets = f"folder:{draw_pictures(root / 'pets', 1, 1)}"
    record = make_record(80.0, checksum=str(sources.arrays(pets)["checksum"]), dataset=pets)
    (root / "template.json").write_text(record.model_dump_json())
    training(root, "seed = 0")


def training(root, parameters, text=TRAINING):
    """A stand-in for 02_training with a cell of parameters and one that trains, or seems to."""
    tests = os.path.relpath(Path(__file__).parent, root)
    stand_in(root, CELL, parameters, text.format(tests=tests))


def at_once(job, environment, stop):
    """What :func:`rmlib.study.batch.executors.work` would do, without a process or a kernel."""
    _, _, source, _, values = job.words
    name, values = Path(source).stem, json.loads(values)
    try:
        if name == CELL:
            gpu = environment.get("CUDA_VISIBLE_DEVICES")
            faulty.train(TrainParams(**values), gpu, job.threads)
        else:
            seen = len(list(Path("out").glob("*/record.json")))
            faulty.note("order.txt", name, seen, values.get("queries"))
            assert name != "04_cam" or os.path.exists("mended"), "no map"
    except AssertionError as error:
        return Ended(1, f"some\nAssertionError: {error}\n")
    return Ended(0, "")


def run(lines=None, out="out", **options):
    """Run grid.yaml; returns how many runs and notebooks are done, failed, stopped and left."""
    log = (lambda line: None) if lines is None else lines.append
    return batches.run_batch(read_batch("grid.yaml", out), batches.Options(**options), log)


def counts(done, failed=0, stopped=0, left=0):
    return {"done": done, "failed": failed, "stopped": stopped, "left": left}


def grid(folder, notebooks=None, **block):
    """A grid of one block in grid.yaml, on the few pictures; returns its path."""
    block = {"dataset": "folder:pets", "train_images": None, "batch_size": 3} | block
    content = {"grid": [block]} | ({"notebooks": notebooks} if notebooks else {})
    return write(folder, yaml.safe_dump(content), "grid.yaml")


def write(folder, text, name="b.yaml"):
    path = folder / name
    path.write_text(text)
    return path


def until(condition, process=None, seconds=300):
    """Wait for something that happens soon, also on a busy machine, while a process lives."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it took too long"
        assert process is None or process.poll() is None, "the process has ended"
        time.sleep(0.05)
