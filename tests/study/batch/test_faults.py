"""What a batch with real kernels must survive.

Every fault is made. Then nothing is lost, nothing is counted twice, and one line says it.
"""

import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import nbformat
import pytest
import standins
from faulty import noted
from safetensors.torch import load_file
from standins import BATCH, counts, grid, run, until

from rmlib import UserError
from rmlib.study.batch import executors, notebooks
from rmlib.study.batch.plan import read_batch
from rmlib.study.runs import records
from rmlib.study.settings import CELL


def goes_on(monkeypatch, **options):
    """The next call of the batch, when what was wrong is mended; without kernels."""
    Path("mended").touch()
    monkeypatch.setattr(executors, "work", standins.at_once)
    return run(**options)


def test_runs_that_die_are_named_in_one_line_each_and_begin_once(project, monkeypatch):
    """Killed, out of memory, no room for its record or its notebook: failed, the other is done.

    Defaults that were edited in the notebook do not reach the runs.
    """
    standins.training(project, "seed = 44\nwidth = 1")
    faults = {
        2: "was killed or crashed",
        9: "MemoryError",
        7: "record.json cannot be written",
        8: "File too large",
    }
    grid(project, seed=[*faults, 0])
    lines = []
    assert run(lines, workers=2) == counts(1, failed=4)
    failed = [line for line in lines if "] failed " in line]
    assert not any("\n" in line for line in failed)
    for seed, words in faults.items():
        assert sum(f"seed {seed}: " in line and words in line for line in failed) == 1, failed
    assert not list(Path("out").glob("*/.record*")), "no half-written file"
    began = Counter(int(line.split()[0]) for line in noted("began.txt"))
    assert began == dict.fromkeys((*faults, 0), 1), "what fails is not tried again by itself"
    batch = read_batch("grid.yaml", "out")
    states = [batch.state(each) for each in batch.runs]
    assert states == ["failed"] * 4 + ["done"], "whatever its notebook or its record says"
    executed = nbformat.read(batch.runs[-1].folder / f"{CELL}.ipynb", as_version=4)
    assert str(project) not in nbformat.writes(executed), "no path of this machine"
    assert "seed = 0" in executed.cells[1].source, "what was injected"
    assert "half of it" in noted(batch.runs[-1].folder / "log.txt")
    kept = {path: path.stat().st_mtime_ns for path in Path("out").glob("*/record.json")}
    assert len(kept) == 2, "of seed 8 the record is whole"
    assert goes_on(monkeypatch, only_failed=True)["done"] == 5
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in kept.items())


def test_ctrl_c_reaches_the_kernels_also_when_nobody_reads_the_output(project, monkeypatch):
    """As with `rmlib batch ... | tee log`, whose tee ends first: what runs is interrupted.

    The finished run stays, and the next call does the rest.
    """
    grid(project, seed=[0, 3])
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen([*BATCH, "--workers", "2"], **pipes)
    batch = read_batch("grid.yaml", "out")
    until(lambda: len(noted("began.txt")) == 2, process)
    until(lambda: batch.state(batch.runs[0]) == "done", process)
    process.stdout.close()
    process.send_signal(signal.SIGINT)
    errors = process.stderr.read()
    assert process.wait() == 130 and Path("interrupted.txt").exists(), errors
    assert "interrupted" in errors and errors.count("\n") == 1
    assert [batch.state(each) for each in batch.runs] == ["done", "stopped"]
    log = noted(batch.runs[1].folder / "log.txt")
    assert log[-1].startswith("rmlib: stopped in cell"), "no bare KeyboardInterrupt"
    assert goes_on(monkeypatch)["done"] == 2


def test_a_kernel_deaf_to_everything_is_gone_with_its_process(project, monkeypatch):
    monkeypatch.setattr(executors, "GRACE", 1)
    local = executors.Local(1)
    monkeypatch.setattr(executors, "Local", lambda *_: local)
    grid(project, seed=[6])

    def stop():
        until(lambda: noted("beat.txt"))
        local.stop()

    threading.Thread(target=stop).start()
    assert run() == counts(0, failed=1)
    sizes = [0]

    def silent():
        time.sleep(0.5)
        sizes.append(os.path.getsize("beat.txt"))
        return sizes[-1] == sizes[-2]

    until(silent)


def test_killed_at_random_moments_the_grid_ends_as_if_undisturbed(project, pictures, tmp_path):
    """Real trainings. SIGKILL to the batch alone, while it starts and inside the epochs.

    The numbers are those of runs never stopped, bit for bit.
    """
    from rmlib.study.runs.run import train

    standins.training(project, "seed = 0", standins.REAL_TRAINING)
    block = {"dataset": f"folder:{pictures}", "width": 2, "epochs": 300, "batch_size": 30}
    path = grid(project, **block, train_images=30, eval_every=50)
    (params,) = read_batch(path, "out").runs
    options, dice = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}, random.Random(0)

    def epochs():
        lines = noted(params.folder / "log.txt")
        return sum(bool(re.match(r"epoch +\d+/", line)) for line in lines)

    for inside in (False, True, True):
        before = epochs()
        process = subprocess.Popen(BATCH, **options)
        if inside:
            until(lambda before=before: epochs() > before, process)
        time.sleep(dice.uniform(0, 0.3 if inside else 3))
        assert process.poll() is None, "the grid was not done before"
        process.kill()
        process.communicate()
    Path("go").touch()
    last = subprocess.run(BATCH, text=True, **options)
    assert last.returncode == 0, last.stdout
    alone = params.model_copy(update={"out": str(tmp_path / "alone")})
    expected, record = train(alone, log=lambda line: None), records.read(params.folder)
    assert record.restarts >= 2 and record.history == expected.history
    assert record.metrics == expected.metrics and record.correct == expected.correct
    weights, others = (load_file(each.folder / records.WEIGHTS) for each in (params, alone))
    assert all((weights[name] == others[name]).all() for name in others)
    assert not list(params.folder.glob("checkpoint*"))


def unready_kernel(folder, times):
    """JUPYTER_PATH with a kernel `python3` that ends at once, so many times, and then starts."""
    script, starts, spec = folder / "start.py", folder / "starts", folder / "kernels" / "python3"
    script.write_text(f"""
import os, sys
count = os.path.getsize({str(starts)!r})
open({str(starts)!r}, "a").write(".")
if count < {times}:
    sys.exit(3)
os.execv(sys.executable, [sys.executable, "-m", "ipykernel_launcher", *sys.argv[1:]])
""")
    starts.write_text("")
    spec.mkdir(parents=True)
    words = [sys.executable, str(script), "-f", "{connection_file}"]
    content = {"argv": words, "display_name": "Python 3", "language": "python"}
    (spec / "kernel.json").write_text(json.dumps(content))
    return str(folder)


@pytest.mark.parametrize("times, starts", [(2, 3), (9, 3)])
def test_a_kernel_that_does_not_start_is_tried_again_and_not_for_ever(
    project, tmp_path_factory, monkeypatch, times, starts
):
    folder = tmp_path_factory.mktemp("jupyter")
    monkeypatch.setenv("JUPYTER_PATH", unready_kernel(folder, times))
    monkeypatch.setattr(notebooks, "BACKOFF", (0.1, 0.1))
    (params,) = read_batch(grid(project, seed=[0]), "out").runs
    source = project / "notebooks" / f"{CELL}.ipynb"
    arguments = source, params.folder / f"{CELL}.ipynb", params.model_dump()
    if times < starts:
        notebooks.run(*arguments)
        assert records.read(params.folder).metrics["accuracy"] == 80
    else:
        with pytest.raises(UserError, match="did not start in 3 attempts"):
            notebooks.run(*arguments)
    assert os.path.getsize(folder / "starts") == starts
