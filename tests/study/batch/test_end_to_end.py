"""The command line, papermill and the notebooks as they are, on a tiny folder of pictures."""

import os
import signal
import subprocess
import sys

import pytest
import yaml
from standins import until, write

from rmlib.paths import project_root
from rmlib.study.batch.plan import read_batch
from rmlib.study.cli import main
from rmlib.study.runs import collection, records
from rmlib.study.runs.run import StoredRun


@pytest.fixture
def block(pictures, monkeypatch):
    """A block of a grid: a network of width 2."""
    monkeypatch.chdir(project_root())
    block = {"dataset": f"folder:{pictures}", "width": 2, "batch_size": 16, "train_images": None}
    return block | {"eval_every": 0}


def test_a_grid_and_the_notebooks_on_its_networks(block, tmp_path, capsys):
    """Dry run first; the pictures have no masks, and three classes are too few for AutoAttack."""
    notebooks = {
        "03_robustness": {"images": 12, "eps": [0, "8/255"], "queries": 5},
        "04_cam": {"images": 3, "measured": 5, "perturbed": 3},
        "05_results": {},
    }
    grid = {"grid": [block | {"epochs": 2, "mixer": "cutmix"}], "notebooks": notebooks}
    out, path = tmp_path / "out", write(tmp_path, yaml.safe_dump(grid))
    command = ["batch", str(path), "--out", str(out)]
    assert main([*command, "--dry-run"]) == 0
    assert capsys.readouterr().out.count("new ") == 4 and not out.exists()
    code, output = main(command), capsys.readouterr()
    assert code == 0, output.out + output.err
    assert "| CutMix | 1 |" in output.out and (out / "report" / "index.html").exists()
    (record,) = collection.gather(out).records.values()
    assert record.config["mixer"] == "cutmix" and record.config["epochs"] == 2
    names = [f"{record.run_id}/02_training", *notebooks]
    for notebook in (out / f"{name}.ipynb" for name in names):
        text = notebook.read_text()
        assert notebook.stat().st_size < 1_000_000 and "widget-view" not in text
        assert os.path.expanduser("~") + "/" not in text
    for name in [f"run-{record.run_id}", *notebooks]:
        assert (out / "report" / "notebooks" / f"{name}.html").exists()
    stored = records.measurements(out / record.run_id, "attacks").measurements
    assert sorted((row.settings["attack"], row.settings["eps"]) for row in stored) == [
        ("fgsm", "0"),
        ("fgsm", "8/255"),
        ("fgsm_margin", "8/255"),
        ("pgd", "8/255"),
        ("square", "8/255"),
    ]
    assert all(row.result["images"] == 12 for row in stored)
    assert list(collection.collect_measurements(out, "cam")["images"]) == [5, 3, 3, 3]
    assert (out / "maps-layer4.png").exists()
    assert "| CutMix | 1 | 12 |" in (out / "report" / "tables" / "tables.md").read_text()


def test_an_interrupted_training_leaves_a_checkpoint_inside_its_epochs(block, tmp_path):
    """SIGTERM to the batch reaches the kernel, which ends after a whole step with a checkpoint."""
    path = write(tmp_path, yaml.safe_dump({"grid": [block | {"epochs": 5000}]}))
    (params,) = read_batch(path, tmp_path / "out").runs
    checkpoint = params.folder / records.CHECKPOINT
    command = [sys.executable, "-m", "rmlib", "batch", str(path), "--out", str(tmp_path / "out")]
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, **pipes)
    until(checkpoint.exists, process)
    before = checkpoint.stat().st_mtime_ns
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 130 and "interrupted" in errors
    assert checkpoint.stat().st_mtime_ns > before, "written because of the signal"
    run = StoredRun(params)
    assert run.progress["restarts"] == 1 and 0 < run.core.epoch < 5000


def test_a_batch_with_a_limit_stops_with_a_checkpoint(block, tmp_path, capsys):
    """What trains when the time is over stops and goes on later; what waits then does not start."""
    block |= {"epochs": 10**6, "seed": [0, 1]}
    path = write(tmp_path, yaml.safe_dump({"grid": [block]}))
    command = ["batch", str(path), "--out", str(tmp_path / "out"), "--workers", "1"]
    code, text = main([*command, "--max-minutes", "0.05"]), capsys.readouterr().out
    assert code == 75, text
    assert "stopped by max_minutes=" in text and "not started: the time is up" in text
    assert "0 done, 0 failed, 1 stopped, 1 left" in text
    batch = read_batch(path, tmp_path / "out")
    assert [batch.state(run) for run in batch.runs] == ["stopped", "new"]
