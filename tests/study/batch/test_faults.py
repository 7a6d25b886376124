"""What a batch must survive: every fault is made, and then nothing is lost, nothing is counted
twice, and one line tells it.
"""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import nbformat
import pytest
import yaml
from safetensors.torch import load_file
from standins import grid, run_batch, write

from rmlib import UserError
from rmlib.paths import project_root
from rmlib.study.batch import executors, notebooks
from rmlib.study.batch.plan import read_batch
from rmlib.study.runs import collection, records
from rmlib.study.settings import CELL

BATCH = [
    sys.executable,
    "-c",
    (
        "import sys; from pathlib import Path; from rmlib.study.batch import plan; from rmlib.study.cli import"
        " main; plan.project_root = lambda: Path.cwd(); sys.exit(main(['batch', 'grid.yaml',"
        " '--out', 'out', *sys.argv[1:]]))"
    ),
]


def run(project, lines=None, **options):
    """Run grid.yaml; returns (counts, lines)."""
    lines = [] if lines is None else lines
    return run_batch(read_batch("grid.yaml", "out"), log=lines.append, **options), lines


def mend(project):
    (project / "mended").write_text("")


def until(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.05)


def test_cells_that_die_are_told_in_one_line_each_and_do_not_run_twice(project):
    """Killed, out of memory, no room for its record, or always failing: failed, once per call; the
    other is done, and later they are.
    """
    faults = {
        2: "was killed or crashed",
        9: "MemoryError",
        7: "record.json cannot be written",
        1: "seed 1 does not work",
    }
    grid(project, seed=[*faults, 0])
    counts, lines = run(project, workers=2)
    told = [line for line in lines if "] failed " in line]
    assert counts == {"done": 1, "failed": 4, "stopped": 0, "left": 0} and not any(
        "\n" in line for line in told
    )
    assert all(
        sum(f"seed={seed}: " in line and words in line for line in told) == 1
        for seed, words in faults.items()
    ), told
    assert not list(Path("out").glob("*/.record*")), "no half-written file"
    assert Counter(
        int(line.split()[0]) for line in Path("began.txt").read_text().splitlines()
    ) == dict.fromkeys((*faults, 0), 1), "what fails is not tried again by itself"
    mend(project)
    assert run(project, only_failed=True, workers=2)[0]["done"] == 5


def test_no_room_for_the_notebook(project):
    """The record is whole: the cell has failed, and once there is room its notebook is made again,
    from the record.
    """
    grid(project, seed=[8])
    counts, lines = run(project)
    assert counts["failed"] == 1 and "File too large" in lines[-1]
    assert read_batch("grid.yaml", "out").plan()[0][0] == "failed", (
        "a record alone does not make it done"
    )
    (record,) = Path("out").glob("*/record.json")
    stamp = record.stat().st_mtime_ns
    mend(project)
    assert run(project)[0]["done"] == 1 and Path("recorded.txt").read_text() == "8\n"
    assert (
        record.stat().st_mtime_ns == stamp
        and (record.parent / "02_training.ipynb").stat().st_size > 1000
    )


def test_a_notebook_that_was_killed_after_the_record_is_made_again(project):
    """Batch and notebook were killed between the record and the last cell: the next call does not
    take it for done, and trains nothing.
    """
    grid(project, seed=[0])
    batch = read_batch("grid.yaml", "out")
    assert run(project)[0]["done"] == 1
    (batch.cells[0].folder / records.UNFINISHED).touch()  # as it is while the notebook runs
    assert batch.plan()[0][0] == "partial"
    assert (
        run(project)[0]["done"] == 1
        and batch.plan()[0][0] == "done"
        and Path("recorded.txt").read_text() == "0\n"
    )


def test_a_diverged_cell_has_failed_whenever_one_asks(project):
    from made import make_record

    batch = read_batch(grid(project, seed=[0]), "out")
    records.write(make_record(status="diverged", **batch.cells[0].config), batch.cells[0].folder)
    assert batch.plan()[0][0] == "failed"


def test_ctrl_c_reaches_the_cells_also_when_nobody_reads_the_output(project):
    """As with `rmlib batch ... | tee log`, whose tee ends first: the running cell is interrupted,
    the batch ends.
    """
    grid(project, seed=[3])
    batch = subprocess.Popen(BATCH, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    until(lambda: Path("began.txt").exists())
    batch.stdout.close()
    batch.send_signal(signal.SIGINT)
    assert batch.wait(60) == 130 and Path("interrupted.txt").exists()
    mend(project)
    assert run(project)[0]["done"] == 1


def test_a_cell_that_hangs_is_ended_by_its_time_limit(project):
    """One that can be interrupted, and one deaf to everything: both end, their processes too, and
    the third cell is done.
    """
    grid(project, seed=[0, 3, 6])
    lines, before = [], executors.GRACE
    executors.GRACE = 2
    try:
        counts, _ = run(project, lines, workers=3, timeout=0.5)
    finally:
        executors.GRACE = before
    assert counts == {"done": 1, "failed": 2, "stopped": 0, "left": 0}
    assert sum("longer than --timeout 0.5 minutes" in line for line in lines) == 2
    time.sleep(1.5)
    size = os.path.getsize("beat.txt")
    time.sleep(0.5)
    assert os.path.getsize("beat.txt") == size, "its kernel is gone, too"
    mend(project)
    assert run(project, only_failed=True)[0]["done"] == 3


def test_without_keep_going_nothing_more_is_started(project):
    grid(project, seed=[1, 0, 4])
    counts, lines = run(project, workers=1, keep_going=False)
    assert (
        counts == {"done": 0, "failed": 1, "stopped": 0, "left": 2}
        and Path("began.txt").read_text().split()[0] == "1"
    )
    assert sum("not started, after a failure" in line for line in lines) == 2


def test_a_second_batch_on_the_folder_refuses(project):
    """The first one is not disturbed, and ends well; then the folder is free again."""
    grid(project, seed=[0, 3])
    first = subprocess.Popen(
        [*BATCH, "--workers", "1"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    until(
        lambda: (
            list(Path("out").glob("*/log.txt")) and "3 " in Path("began.txt").read_text()
            if Path("began.txt").exists()
            else False
        )
    )
    with pytest.raises(UserError, match="another batch works in out: wait for it") as error:
        run(project)
    assert "\n" not in str(error.value)
    first.send_signal(signal.SIGINT)
    assert first.wait(60) == 130
    mend(project)
    assert run(project)[0]["done"] == 2 and Path("began.txt").read_text().count("0 None") == 1


def test_what_an_orphan_leaves_is_gone_on_from(project):
    """The batch is killed (no handler runs): its kernel ends by itself, and the batch that is
    started at once waits for that.
    """
    grid(project, seed=[3])
    first = subprocess.Popen(BATCH, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until(lambda: Path("began.txt").exists())
    first.kill()
    first.wait()
    mend(project)
    counts, lines = run(project)
    assert counts["done"] == 1 and len(collection.find(Path("out"))) == 1


def test_killed_at_twenty_random_moments_the_grid_ends_as_if_undisturbed(pictures, tmp_path):
    """Real trainings through the command line. SIGKILL to the batch alone, most of them while it
    starts and every fifth inside the epochs; the numbers are those of runs never stopped, bit for
    bit.
    """
    from rmlib.study.runs.run import train

    block = dict(
        dataset=f"folder:{pictures}",
        width=2,
        epochs=300,
        batch_size=30,
        train_images=30,
        eval_every=50,
        mixer=["mixup", "region_mixup"],
    )
    path, dice = write(tmp_path, yaml.safe_dump({"grid": [block]})), random.Random(0)
    batch, command = (
        read_batch(path, tmp_path / "out"),
        [
            sys.executable,
            "-m",
            "rmlib",
            "batch",
            str(path),
            "--out",
            str(tmp_path / "out"),
            "--workers",
            "2",
        ],
    )
    logs = [cell.folder / "log.txt" for cell in batch.cells]

    def epochs():
        lines = [line for log in logs if log.exists() for line in log.read_text().splitlines()]
        return sum(bool(re.match(r"epoch +\d+/", line)) for line in lines)

    kills = 0
    for number in range(20):
        before, process = (
            epochs(),
            subprocess.Popen(
                command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=project_root()
            ),
        )
        if number % 5 == 4:
            until(lambda: epochs() > before or process.poll() is not None)
        time.sleep(dice.uniform(0.1, 0.6) if number % 5 == 4 else dice.uniform(0.1, 2.5))
        kills += process.poll() is None
        process.kill()
        process.wait()
    assert kills == 20, "the grid was not done before"
    last = subprocess.run(command, capture_output=True, text=True, cwd=project_root())
    assert last.returncode == 0, last.stdout + last.stderr
    found = {record.run_id: record for record in collection.find(tmp_path / "out")}
    assert len(found) == 2 and max(record.restarts for record in found.values()) >= 2
    for cell in batch.cells:
        alone = train(
            cell.model_copy(update={"out": str(tmp_path / "alone")}), log=lambda line: None
        )
        record = found[cell.run_id]
        assert (
            record.history == alone.history
            and record.correct == alone.correct
            and record.metrics == alone.metrics
        )
        weights, others = (
            load_file(Path(folder, cell.run_id, records.WEIGHTS))
            for folder in (tmp_path / "out", tmp_path / "alone")
        )
        assert all((weights[name] == others[name]).all() for name in others)
        assert (
            not (cell.folder / records.CHECKPOINT).exists()
            and not (cell.folder / records.PREVIOUS).exists()
        )


def test_a_clock_that_goes_backwards(project, monkeypatch):
    """Durations and limits come from a clock that cannot: nothing is late, negative, or counted
    twice.
    """
    now = iter(range(2_000_000_000, 0, -3600))
    monkeypatch.setattr(time, "time", lambda: next(now))
    grid(project, seed=[0, 20])
    counts, lines = run(project, timeout=5, max_minutes=10)
    assert counts["done"] == 2 and not any(
        "-" in line.split("]")[0].split(", about")[-1] for line in lines[1:]
    )
    assert len(collection.collect(Path("out"))) == 2


# ----------------------------------------------------------------------------------------------
# notebooks that were edited


def edited(project, change):
    """02_training with its list of cells changed."""
    path = project / "notebooks" / f"{CELL}.ipynb"
    notebook = nbformat.read(path, as_version=4)
    change(notebook.cells)
    nbformat.write(notebook, path)


def source_of(text):
    def change(cells):
        cells[0].source = text

    return change


def test_an_edited_default_does_not_reach_the_cells(project):
    edited(project, source_of("seed = 44\nwidth = 1"))
    grid(project, seed=[0])
    assert run(project)[0]["done"] == 1 and collection.find(Path("out"))[0].config["seed"] == 0


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda cells: cells[0].metadata.pop("tags"), "no cells have the tag `parameters`"),
        (lambda cells: cells.insert(0, cells[0].copy()), "2 cells have the tag"),
        (source_of("seed = 0\nsed = 1"), "unknown parameter 'sed' .* did you mean 'seed'"),
        (source_of("import os"), "holds more than assignments"),
    ],
)
def test_a_cell_of_parameters_that_papermill_cannot_use_is_told_before_any_kernel(
    project, change, words, monkeypatch
):
    monkeypatch.setattr(
        executors.subprocess, "Popen", lambda *_, **__: pytest.fail("a kernel was started")
    )
    edited(project, change)
    grid(project, seed=[0])
    with pytest.raises(UserError, match=words) as error:
        run(project)
    assert "\n" not in str(error.value)


def test_a_parameter_changed_in_a_later_cell_is_no_run_of_the_grid(project):
    """Its record lies elsewhere, under the name of what was run, and the cell has failed."""
    edited(project, lambda cells: cells.insert(1, nbformat.v4.new_code_cell("seed = 13")))
    grid(project, seed=[0])
    counts, lines = run(project)
    assert (
        counts["failed"] == 1 and "does a cell of the notebook change its parameters?" in lines[-1]
    )
    assert read_batch("grid.yaml", "out").state(read_batch("grid.yaml", "out").cells[0]) == "failed"


# ----------------------------------------------------------------------------------------------
# kernels that do not start


def unready_kernel(folder, times):
    """JUPYTER_PATH with a kernel `python3` that ends at once, so many times, and then is the real
    one.
    """
    script = folder / "start.py"
    script.write_text(
        "import os, sys\ncount ="
        f" os.path.getsize({str(folder / 'starts')!r})\nopen({str(folder / 'starts')!r},"
        f" 'a').write('.')\nsys.exit(3) if count < {times} else os.execv(sys.executable,"
        " [sys.executable, '-m', 'ipykernel_launcher', *sys.argv[1:]])\n"
    )
    (folder / "starts").write_text("")
    spec = folder / "kernels" / "python3"
    spec.mkdir(parents=True)
    (spec / "kernel.json").write_text(
        json.dumps(
            {
                "argv": [sys.executable, str(script), "-f", "{connection_file}"],
                "display_name": "Python 3",
                "language": "python",
            }
        )
    )
    return str(folder)


@pytest.mark.parametrize("times, done", [(2, 1), (9, 0)])
def test_a_kernel_that_does_not_start_is_tried_again_and_not_for_ever(
    project, tmp_path_factory, monkeypatch, times, done
):
    folder = tmp_path_factory.mktemp("jupyter")
    monkeypatch.setenv("JUPYTER_PATH", unready_kernel(folder, times))
    monkeypatch.setattr(notebooks, "BACKOFF", (0.1, 0.1))
    source = project / "notebooks" / f"{CELL}.ipynb"
    cell = read_batch(grid(project, seed=[0]), "out").cells[0]
    if done:
        notebooks.run(source, cell.folder / f"{CELL}.ipynb", cell.model_dump())
        assert (
            records.read(cell.folder).metrics["accuracy"] == 80
            and os.path.getsize(folder / "starts") == times + 1
        )
    else:
        with pytest.raises(UserError, match="did not start in 3 attempts"):
            notebooks.run(source, cell.folder / f"{CELL}.ipynb", cell.model_dump())
        assert os.path.getsize(folder / "starts") == 3


# ----------------------------------------------------------------------------------------------
# places and progress


@pytest.fixture
def two_gpus(tmp_path_factory, monkeypatch):
    """A machine that shows two GPUs."""
    folder = tmp_path_factory.mktemp("driver")
    (folder / "nvidia-smi").write_text("#!/bin/sh\necho 0\necho 1\n")
    (folder / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_cells_are_dealt_out_to_the_gpus_before_their_kernels_start(project, two_gpus):
    """Two GPUs, two cells on each at the same time; threads are those of a cell, however many run
    beside it.
    """
    grid(project, seed=[20, 21, 22, 23], threads=3)
    assert run(project, gpus="all", per_gpu=2)[0]["done"] == 4
    assert (
        sorted(line.split()[1:3] for line in Path("began.txt").read_text().splitlines())
        == [["0", "3"]] * 2 + [["1", "3"]] * 2
    )


def test_a_gpu_that_is_not_there_is_told(two_gpus, monkeypatch):
    assert executors.chosen_gpus("1") == ("1",)
    with pytest.raises(UserError, match="--gpus 0,2: this machine shows the GPUs 0,1"):
        executors.chosen_gpus("0,2")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert executors.chosen_gpus("all") == ("1",), (
        "what was taken from this process is not given to its cells"
    )
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(UserError, match="shows no GPU"):
        executors.chosen_gpus("all")


def test_what_a_cell_prints_is_in_its_log_before_it_ends(project):
    grid(project, seed=[20])
    batch, seen = read_batch("grid.yaml", "out"), []
    process = subprocess.Popen(BATCH, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    log = batch.cells[0].folder / "log.txt"
    until(lambda: log.exists() and "half of it" in log.read_text())
    seen.append((batch.cells[0].folder / records.RECORD).exists())
    output, _ = process.communicate(timeout=60)
    assert (
        seen == [False]
        and process.returncode == 0
        and "[1 done, 0 running] done    region_mixup: 80.00 %" in output
    )


def test_the_state_counts_and_estimates():
    """Two places, runs of 100 s each by earlier ones; unknown ones count as those that ended."""
    from rmlib.study.batch.progress import Progress

    lines, counts = [], {"done": 5, "failed": 0, "stopped": 0}
    progress = Progress(counts, dict.fromkeys("abcd", 100.0), 2, lines.append)
    assert progress.state() == "5 done, 0 running, 4 to go, about 3 min left"
    progress.begin("a")
    progress.begin("b")
    progress.running["a"] = time.monotonic() - 110
    progress.end("a", "run a", "failed", "a reason")
    state = "5 done, 1 running, 1 failed, 2 to go"
    assert lines == [f"[{state}, about 2 min left] failed  run a: a reason"]
    progress.expected = dict.fromkeys(progress.expected)
    assert progress.state() == f"{state}, about 3 min left", "3 of 110 s, two at a time"
    progress.took = []
    assert progress.state() == state, "of runs like none before nothing is said"
