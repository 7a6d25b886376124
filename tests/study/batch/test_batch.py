"""Batches: planning in-process; execution with small stand-in notebooks that write records without
training, and one real cell.
"""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
import yaml
from standins import grid, run_batch, stand_in, write

from rmlib import UserError
from rmlib.paths import project_root
from rmlib.study.batch import costs, executors
from rmlib.study.batch.batch import Options
from rmlib.study.batch.jobs import Jobs
from rmlib.study.batch.plan import read_batch
from rmlib.study.runs import collection, records


def test_a_grid_is_expanded_and_checked(tmp_path):
    batch = read_batch(
        write(
            tmp_path,
            """
common: {epochs: 4, lr: 1e-2, snapshots: [2, 4]}
grid:
  - {mixer: [mixup, region_mixup], clean_weight: [1, 0], seed: [0, 1, 2]}
  - {mixer: region_mixup, k: [1, 2], seed: 0}
""",
        ),
        tmp_path / "out",
    )
    assert len(batch.cells) == 12 + 1, "k = 2, seed 0 is in both blocks and counts once"
    assert {cell.lr for cell in batch.cells} == {0.01}, "YAML reads 1e-2 as text"
    assert all(cell.snapshots == [2, 4] for cell in batch.cells), "a list that is one value"
    assert batch.label(batch.cells[0]) == "mixup k=2 clean_weight=1.0 seed=0"
    assert {cell.folder.parent for cell in batch.cells} == {tmp_path / "out"}


@pytest.mark.parametrize(
    "text, words",
    [
        ("grid: [{sed: [0, 1]}]", "unknown parameter 'sed': did you mean 'seed'"),
        ("grid: [{seed: [0, one]}]", "seed='one'"),
        ("grid: [{mixer: [mixup, cutmx]}]", "did you mean 'cutmix'"),
        ("grid: [{mixer: mixup, k: 4}]", "k=4 does nothing"),
        ("grids: [{seed: 0}]", "did you mean 'grid'"),
        ("grid: []", "grid"),
        ("", "is empty"),
        ("grid: [{seed: []}]", "empty list"),
        ("common: {seed: []}\ngrid: [{lr: 0.1}]", "empty list"),
        ("grid: [{1: 2}]", "grid.0.1"),
        ("grid: [{seed: 0}]\nnotebooks: {05_results: {1: 2}}", "notebooks.05_results.1"),
        ("grid: [{lr: 0.1, lr: 0.2}]", "lr is given twice"),
        ("grid: [{dataset: ['folder:a/pets', 'folder:b/pets']}]", "different names"),
        ("grid: [{", "is not YAML"),
        ("notebook: 01_method\ngrid: [{seed: 0}]", "did you mean .notebooks"),
        ("grid: [{seed: 0}]\nnotebooks: {03_robustnes: {}}", "did you mean '03_robustness'"),
        (
            "grid: [{seed: 0}]\nnotebooks: {02_training: {}}",
            "expected one of 01_method, 03_robustness",
        ),
        (
            "grid: [{seed: 0, clean_weight: 0.5}]\nnotebooks: {03_robustness: {}}",
            "clean_weight=1 selects no run of the grid: set it to one of 0.5",
        ),
        ("grid: [{seed: 0}]\nnotebooks: {03_robustness: {quieries: 5}}", "did you mean 'queries'"),
        ("grid: [{seed: 0}]\nnotebooks: {03_robustness: {eps: [8]}}", "scale of pixels"),
    ],
)
def test_mistakes_in_a_batch_file(tmp_path, text, words):
    with pytest.raises(UserError, match=words) as error:
        read_batch(write(tmp_path, text))
    assert "\n" not in str(error.value)


def test_blocks_may_share_what_they_have_in_common(tmp_path):
    """YAML's merge keys; what stands in the block itself counts more, and is not given twice."""
    batch = read_batch(
        write(tmp_path, "grid:\n- &short {epochs: 3, lr: 0.1}\n- {<<: *short, lr: 0.2, seed: 1}\n")
    )
    assert [(cell.epochs, cell.lr, cell.seed) for cell in batch.cells] == [(3, 0.1, 0), (3, 0.2, 1)]


def test_an_unknown_batch_file_names_the_known_ones():
    with pytest.raises(UserError, match="quick"):
        read_batch("notebooks/batches/quik.yaml")


def measured(cell, seconds):
    """A finished run that took some seconds."""
    from made import make_record

    record = make_record(80.0, checksum="00", **cell.config)
    records.write(record.model_copy(update={"seconds": seconds}), cell.folder)


def test_the_plan_says_what_runs_will_take(tmp_path, monkeypatch):
    """From runs of the same experiment with as many forwards; else scaled by epochs, images and
    forwards; else nothing.
    """
    monkeypatch.setattr(costs, "results_dir", lambda: tmp_path / "none")
    batch = read_batch(
        write(
            tmp_path,
            """
common: {width: 8, epochs: 4, train_images: 1000, mixer: mixup}
grid: [{seed: [0, 1, 2, 3]}, {clean_weight: 0}, {epochs: 8}, {width: 9}]
""",
        ),
        tmp_path / "out",
    )
    first, second, third, fourth, plain, longer, wider = batch.cells
    for cell, seconds in ((first, 100.0), (second, 120.0), (third, 200.0)):
        measured(cell, seconds)
    found = costs.costs(batch)
    assert found[fourth.run_id] == pytest.approx(140), "the mean"
    assert found[plain.run_id] == pytest.approx(70), "one forward instead of two"
    assert found[longer.run_id] == pytest.approx(280) and wider.run_id not in found
    text = costs.describe(batch, 2)
    assert "7 runs: 3 done, 4 to run, 2 at a time; about 4 min of training" in text
    assert "1 like none before" in text
    assert f"new      {fourth.run_id}  {batch.label(fourth)}  2 min" in text
    stray = first.folder / "record.json"
    whole = stray.read_text()
    assert '"seconds": 100.0' in whole
    stray.write_text(whole.replace('"seconds": 100.0', '"seconds": null'))
    assert costs.costs(batch)[fourth.run_id] == 160, "a foreign record costs its part alone"


def test_the_plan_knows_what_waits_for_what(tmp_path):
    lines = costs.describe(
        read_batch(
            write(
                tmp_path,
                "grid: [{seed: [0, 1]}]\nnotebooks: {01_method: , 03_robustness: , 05_results: }",
            ),
            tmp_path / "out",
        ),
        1,
    ).splitlines()
    assert [line.split(maxsplit=1)[1] for line in lines[2:5]] == [
        "01_method",
        "03_robustness  after 2 runs",
        "05_results  after 2 runs, 03_robustness",
    ]


def test_the_plan_is_kept_beside_the_results(project):
    """plan.json names cells, notebooks and the command's file and options, and no path of this
    machine.
    """
    batch = read_batch(grid(project, seed=[0, 1]), "out")
    content = json.loads(batch.write(["--compile"]).read_text())
    assert [cell["run_id"] for cell in content["cells"]] == [
        cell.run_id for cell in batch.cells
    ] and content["cells"][1]["config"] == batch.cells[1].config
    assert (
        content["schema_version"],
        content["name"],
        content["file"],
        content["options"],
        content["notebooks"],
    ) == (1, "grid", "grid.yaml", ["--compile"], [])
    assert "/" not in (project / "out" / "plan.json").read_text()


@pytest.mark.parametrize(
    "seconds, text",
    [(35.4, "35 s"), (100, "2 min"), (3600 * 3.4, "3 h 24 min"), (3600 * 52, "2 d 4 h")],
)
def test_durations_in_words(seconds, text):
    assert costs.duration(seconds) == text


def test_failures_are_kept_apart_named_and_repeatable(project):
    """One cell fails, one is killed, one works; then only the failed ones run again."""
    path, lines = grid(project, seed=[0, 1, 2]), []
    counts = run_batch(read_batch(path, "out"), workers=2, log=lines.append)
    assert counts == {"done": 1, "failed": 2, "stopped": 0, "left": 0}
    text = "\n".join(lines)
    assert (
        "AssertionError: seed 1 does not work" in text
        and "80.00 %" in text
        and "was killed or crashed" in text
    )
    batch = read_batch(path, "out")
    assert [batch.state(cell) for cell in batch.cells] == [
        "done",
        "failed",
        "failed",
    ], "a killed kernel is not done, whatever its notebook says"
    done = batch.cells[0].folder
    executed = nbformat.read(done / "02_training.ipynb", as_version=4)
    assert str(project) not in nbformat.writes(executed), "no path of this machine"
    injected = next(
        cell for cell in executed.cells if "injected-parameters" in cell.metadata.get("tags", [])
    )
    assert "seed = 0" in injected.source
    stamp = (done / records.RECORD).stat().st_mtime_ns
    (project / "mended").write_text("")
    lines.clear()
    counts = run_batch(read_batch(path, "out"), workers=2, only_failed=True, log=lines.append)
    assert counts == {"done": 3, "failed": 0, "stopped": 0, "left": 0} and "2 to run" in lines[0]
    assert (done / records.RECORD).stat().st_mtime_ns == stamp, "a finished cell is not run again"
    assert run_batch(read_batch(path, "out"), log=lines.append)["done"] == 3


LESSON = """
from rmlib.study import settings
from rmlib.study.runs import collection
settings = settings.check({name!r}, globals())
with open("order.txt", "a") as file:
    print({name!r}, {looks}, file=file)
"""


@pytest.fixture
def lessons(project):
    """Stand-ins for the other notebooks, which note in order.txt what they see; 04_cam fails until
    there is a file `mended`.
    """
    for name, first, looks in (
        ("01_method", "k = 2", "settings.dataset"),
        (
            "03_robustness",
            "queries = 1",
            "(len(collection.find(settings.runs)), settings.queries, settings.save)",
        ),
        ("04_cam", "images = 1", "len(collection.find(settings.runs))"),
        ("05_results", "runs = None", "len(collection.find(settings.runs))"),
    ):
        stand_in(project, name, first, LESSON.format(name=name, looks=looks))
    failing = (
        (project / "notebooks" / "04_cam.ipynb")
        .read_text()
        .replace(
            "from rmlib.study import settings",
            "import os\\nassert os.path.exists('mended'), 'no map'\\nfrom rmlib.study import settings",
        )
    )
    (project / "notebooks" / "04_cam.ipynb").write_text(failing)
    return {"01_method": {}, "03_robustness": {"queries": 7}, "04_cam": None, "05_results": {}}


def noted():
    return Path("order.txt").read_text().splitlines()


def test_the_other_notebooks_run_around_the_grid(project, lessons):
    """01 beside the cells, 03 and 04 after them, 05 at last; a failing one is named and does not
    stop the others; what is up to date is not run again, and what looks at something new is.
    """
    path, lines = grid(project, lessons, seed=[0]), []
    counts = run_batch(read_batch(path, "out"), workers=1, log=lines.append)
    assert counts == {"done": 4, "failed": 1, "stopped": 0, "left": 0}
    assert noted() == ["01_method shapes", "03_robustness (1, 7, True)", "05_results 1"]
    assert any("failed" in line and "04_cam: AssertionError: no map" in line for line in lines)
    batch = read_batch(path, "out")
    assert {name: batch.lesson_state(name) for name in batch.lessons} == {
        "01_method": "done",
        "03_robustness": "done",
        "04_cam": "failed",
        "05_results": "done",
    }
    assert (Path("out") / "03_robustness.ipynb").exists() and str(project) not in (
        Path("out") / "03_robustness.ipynb"
    ).read_text()

    Path("mended").write_text("")
    Path("order.txt").unlink()
    assert run_batch(read_batch(path, "out"), log=lines.append) == {
        "done": 5,
        "failed": 0,
        "stopped": 0,
        "left": 0,
    }
    assert noted() == ["04_cam 1"], "only what had failed"
    Path("order.txt").unlink()
    assert (
        run_batch(read_batch(path, "out"), log=lines.append)["done"] == 5
        and not Path("order.txt").exists()
    )

    assert {state for state, *_ in read_batch(path, "out").plan()} == {"done"}
    planned = [state for state, *_ in read_batch(grid(project, lessons, seed=[0, 4]), "out").plan()]
    assert planned == [
        "done",
        "new",
        "done",
        "new",
        "new",
        "new",
    ], "the plan knows what will look at something new"
    path = grid(
        project, lessons, seed=[0, 4]
    )  # one more cell: what looks at the cells runs again, the method does not
    assert run_batch(read_batch(path, "out"), workers=1, log=lines.append)["done"] == 6
    assert noted() == ["03_robustness (2, 7, True)", "04_cam 2", "05_results 2"]
    Path("order.txt").unlink()
    path = grid(project, lessons | {"03_robustness": {"queries": 8}}, seed=[0, 4])
    assert run_batch(read_batch(path, "out"), log=lines.append)["done"] == 6 and noted() == [
        "03_robustness (2, 8, True)"
    ]


def test_the_other_notebooks_wait_for_a_finished_cell(project, lessons):
    counts = run_batch(
        read_batch(grid(project, lessons, seed=[1]), "out"), log=lambda _: None
    )  # seed 1 fails
    assert counts == {"done": 1, "failed": 1, "stopped": 0, "left": 3} and noted() == [
        "01_method shapes"
    ]


def test_what_the_grid_says_reaches_the_other_notebooks(tmp_path):
    path = write(
        tmp_path,
        """
common: {dataset: tiny-imagenet, root: somewhere, allow_partial: true, device: cpu, threads: 2}
grid: [{mixer: [mixup, cutmix]}]
notebooks: {01_method: {k: 3}, 03_robustness: {eps: [0, 8/255]}, 05_results: }
""",
    )
    found = read_batch(path, tmp_path / "out").lessons
    assert list(found) == ["01_method", "03_robustness", "05_results"]
    method, robustness = found["01_method"], found["03_robustness"]
    assert (method.dataset, method.root, method.allow_partial, method.k) == (
        "tiny-imagenet",
        "somewhere",
        True,
        3,
    )
    assert (
        robustness.runs,
        robustness.root,
        robustness.device,
        robustness.threads,
        robustness.save,
    ) == (str(tmp_path / "out"), "somewhere", "cpu", 2, True)
    assert robustness.eps == ["0", "8/255"] and found["05_results"].runs == str(tmp_path / "out")
    folder = read_batch(
        write(tmp_path, "grid: [{dataset: 'folder:my/pets'}]\nnotebooks: {04_cam: }"),
        tmp_path / "out",
    ).lessons["04_cam"]
    assert folder.root == "my/pets", "a record keeps no path, so the notebook is told"


def test_an_interrupted_batch_goes_on(project):
    """SIGTERM while one cell hangs: the finished cell stays, the command says so, the next call
    does the rest.
    """
    grid(project, seed=[0, 3])
    code = (
        "import sys; from pathlib import Path; from rmlib.study.batch import plan; from rmlib.study.cli import"
        " main; plan.project_root = lambda: Path.cwd(); sys.exit(main(['batch', 'grid.yaml',"
        " '--out', 'out', '--workers', '2']))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    batch = read_batch("grid.yaml", "out")
    deadline = time.time() + 180
    while batch.state(batch.cells[0]) != "done" and time.time() < deadline:
        time.sleep(0.2)
    time.sleep(1)
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and "interrupted" in errors and errors.strip().count("\n") == 0
    assert [batch.state(cell) for cell in batch.cells] == ["done", "new"]
    (project / "mended").write_text("")
    assert run_batch(read_batch("grid.yaml", "out"), log=lambda _: None)["done"] == 2


def test_a_record_of_other_images_stops_the_batch(project):
    from made import make_record

    batch = read_batch(grid(project, seed=[0]), "out")
    records.write(make_record(checksum="another", **batch.cells[0].config), batch.cells[0].folder)
    with pytest.raises(UserError, match="made from other images"):
        run_batch(batch, log=lambda _: None)


@pytest.mark.parametrize("kind", ["truncated", "foreign"])
def test_a_record_that_cannot_be_used_is_set_aside_and_its_cell_runs_again(project, kind):
    """A truncated one, and a whole one of another run: told in one line, kept under another name,
    and not counted.
    """
    from made import make_record

    batch, lines = read_batch(grid(project, seed=[0]), "out"), []
    (cell,) = batch.cells
    foreign = cell.model_copy(update={"seed": 7})
    records.write(
        make_record(99.0, **(cell if kind == "truncated" else foreign).config), cell.folder
    )
    path = cell.folder / records.RECORD
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:-200])
    content = path.read_bytes()
    assert batch.state(cell) == "damaged" and batch.plan()[0][0] == "damaged"
    assert run_batch(batch, log=lines.append, only_failed=True)["done"] == 1
    (told,) = [line for line in lines if line.startswith("damaged")]
    assert ("is damaged" if kind == "truncated" else f"belongs to run {foreign.run_id}") in told
    assert (
        records.read(cell.folder).metrics["accuracy"] == 80
        and (cell.folder / "record.json.damaged").read_bytes() == content
    )


@pytest.mark.parametrize(
    "words, stored",
    [
        (
            ["--per-gpu", "2", "--compile", "--timeout", "1.5"],
            ["--per-gpu", "2", "--timeout", "1.5", "--compile"],
        ),
        (["--timeout", "1"], ["--timeout", "1"]),
        ([], []),
    ],
)
def test_the_plan_stores_words_that_the_command_line_takes(project, monkeypatch, words, stored):
    """How the cells were run; a later call that runs none leaves it as it is."""
    from rmlib.study.cli import build_parser, main

    monkeypatch.setattr(Jobs, "all", lambda *_: None)
    grid(project, seed=[1, 0])
    for call in (words, ["--only-failed"]):  # none has failed: nothing runs
        main(["batch", "grid.yaml", "--out", "out", *call])
        assert json.loads((project / "out" / "plan.json").read_text())["options"] == stored
    options, again = (
        build_parser()[0].parse_args(["batch", "grid.yaml", *each]) for each in (words, stored)
    )
    assert options == again


def test_missing_data_is_told_before_any_kernel_starts(project, monkeypatch):
    monkeypatch.setattr(
        executors.subprocess, "Popen", lambda *_, **__: pytest.fail("a kernel was started")
    )
    with pytest.raises(UserError, match="cifar10 is not in"):
        run_batch(
            read_batch(grid(project, seed=[0], dataset="cifar10", root=str(project)), "out"),
            log=lambda _: None,
        )


@pytest.mark.parametrize("out", ["file/out", "/proc/self/out", "read-only/out"])
def test_an_unwritable_out_is_told_before_any_kernel_starts(project, out, monkeypatch):
    """Below a file, in a file system that takes nothing, and without the right to write (which root
    has everywhere).
    """
    monkeypatch.setattr(
        executors.subprocess, "Popen", lambda *_, **__: pytest.fail("a kernel was started")
    )
    (project / "file").write_text("")
    (project / "read-only").mkdir(mode=0o555)
    if (
        out.startswith("read-only")
        and os.access("read-only", os.W_OK)
        or out.startswith("/proc")
        and not os.path.isdir("/proc/self")
    ):
        pytest.skip("it can be written here")
    with pytest.raises(
        UserError, match=f"{out} cannot be written .*choose another folder"
    ) as error:
        run_batch(read_batch(grid(project, seed=[0]), out), log=lambda _: None)
    assert "\n" not in str(error.value)


def test_all_five_notebooks_end_to_end(pictures, tmp_path):
    """The command line, papermill and the notebooks as they are, on a tiny folder of pictures
    without masks; dry run first.
    """
    block = dict(
        dataset=f"folder:{pictures}",
        width=2,
        epochs=2,
        batch_size=16,
        mixer="cutmix",
        train_images=None,
    )
    lessons = {
        "01_method": {"draws": 100},
        "03_robustness": {"images": 12, "eps": [0, "8/255"], "queries": 5},
        "04_cam": {"images": 3, "measured": 5, "perturbed": 3},
        "05_results": {},
    }
    path = write(tmp_path, yaml.safe_dump({"grid": [block], "notebooks": lessons}))
    command = [sys.executable, "-m", "rmlib", "batch", str(path), "--out", str(tmp_path / "out")]
    dry = subprocess.run(
        [*command, "--dry-run"], capture_output=True, text=True, cwd=project_root()
    )
    assert dry.returncode == 0 and dry.stdout.count("new ") == 5 and not (tmp_path / "out").exists()
    answer = subprocess.run(command, capture_output=True, text=True, cwd=project_root())
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert (
        "| CutMix | 1 |" in answer.stdout and (tmp_path / "out" / "report" / "index.html").exists()
    )
    (record,) = collection.find(tmp_path / "out")
    assert record.config["mixer"] == "cutmix" and record.config["epochs"] == 2
    executed = tmp_path / "out" / record.run_id / "02_training.ipynb"
    for notebook in (executed, *(tmp_path / "out" / f"{name}.ipynb" for name in lessons)):
        text = notebook.read_text()
        assert (
            notebook.stat().st_size < 1_000_000
            and "widget-view" not in text
            and os.path.expanduser("~") + "/" not in text
        )
        assert (
            tmp_path
            / "out"
            / "report"
            / "-".join(notebook.relative_to(tmp_path / "out").with_suffix(".html").parts)
        ).exists()
    stored = records.measurements(tmp_path / "out" / record.run_id, "attacks")
    assert sorted(
        (row.settings["attack"], row.settings["eps"]) for row in stored.measurements
    ) == [  # three classes: no AutoAttack
        ("fgsm", "0"),
        ("fgsm", "8/255"),
        ("fgsm_margin", "8/255"),
        ("pgd", "8/255"),
        ("square", "8/255"),
    ]
    assert all(row.result["images"] == 12 for row in stored.measurements)
    assert (
        list(collection.collect_measurements(tmp_path / "out", "cam")["images"]) == [5, 3, 3, 5, 3]
        and (tmp_path / "out" / "maps-layer4.png").exists()
    )
    assert (
        "| CutMix | 1 | 12 |" in (tmp_path / "out" / "report" / "tables" / "tables.md").read_text()
    )


def test_an_interrupted_training_cell_leaves_a_checkpoint_inside_its_epochs(pictures, tmp_path):
    """SIGTERM to the batch reaches the kernel, which ends after a whole step with a checkpoint."""
    from rmlib.study.runs.records import CHECKPOINT
    from rmlib.study.runs.run import StoredRun

    block = dict(
        dataset=f"folder:{pictures}",
        width=2,
        epochs=5000,
        batch_size=16,
        train_images=None,
        eval_every=0,
    )
    path = write(tmp_path, yaml.safe_dump({"grid": [block]}))
    (cell,) = read_batch(path, tmp_path / "out").cells
    process = subprocess.Popen(
        [sys.executable, "-m", "rmlib", "batch", str(path), "--out", str(tmp_path / "out")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        cwd=project_root(),
    )
    deadline = time.time() + 120
    while (
        not (cell.folder / CHECKPOINT).exists()
        and process.poll() is None
        and time.time() < deadline
    ):
        time.sleep(0.05)
    signalled = time.time()
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=90)
    assert process.returncode == 130 and "interrupted" in errors
    assert (cell.folder / CHECKPOINT).stat().st_mtime > signalled, "written because of the signal"
    run = StoredRun(cell)
    assert run.progress["restarts"] == 1 and 0 < run.core.epoch < block["epochs"]


# ----------------------------------------------------------------------------------------------
# a machine lent for a time


def test_a_batch_with_a_limit_stops_with_a_checkpoint(pictures, tmp_path):
    """What trains when the time is over stops and goes on later; what waits then does not start."""
    block = dict(
        dataset=f"folder:{pictures}",
        width=2,
        epochs=10**6,
        batch_size=16,
        seed=[0, 1],
        train_images=None,
        eval_every=0,
    )
    path = write(tmp_path, yaml.safe_dump({"grid": [block]}))
    command = [sys.executable, "-m", "rmlib", "batch", str(path), "--out", str(tmp_path / "out")]
    limit = ["--workers", "1", "--max-minutes", "0.5"]
    answer = subprocess.run([*command, *limit], capture_output=True, text=True, cwd=project_root())
    assert answer.returncode == 75, answer.stdout + answer.stderr
    assert "stopped by max_minutes=" in answer.stdout
    assert "not started: the time is up" in answer.stdout
    assert "0 done, 0 failed, 1 stopped, 1 left" in answer.stdout
    batch = read_batch(path, tmp_path / "out")
    assert [batch.state(cell) for cell in batch.cells] == ["partial", "new"]


def test_the_time_that_is_left_is_the_limit_of_a_run(tmp_path):
    (cell,) = read_batch(write(tmp_path, "grid: [{seed: 0}]"), tmp_path / "out").cells
    jobs = Jobs(None, None, None, Options(max_minutes=10, compiled=True))
    limited = jobs.limited(cell)
    assert limited.max_minutes == pytest.approx(10, rel=0.01) and limited.compiled
    assert limited.run_id == cell.run_id, "limits are no part of a run's identity"
    assert jobs.limited(cell.model_copy(update={"max_minutes": 3})).max_minutes == 3
    assert Jobs(None, None, None, Options()).limited(cell) == cell


@pytest.mark.parametrize("asked", [{"robustness": True}, {}])
def test_a_missing_extra_is_named_before_any_kernel_starts(project, monkeypatch, asked):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "torchattacks" else real(name)
    )
    monkeypatch.setattr(Jobs, "all", lambda *_: None)
    batch = read_batch(grid(project, seed=[0], **asked), "out")
    if asked:
        with pytest.raises(
            UserError, match=r"not installed: torchattacks; pip install '\.\[robustness\]'"
        ):
            run_batch(batch, log=lambda _: None)
    else:
        run_batch(batch, log=lambda _: None)


def test_attacks_that_fail_after_a_training_are_no_success(project):
    """The record is whole, the notebook is not: told as a failure; and with attacks asked for, the
    cell is not done without them.
    """
    batch, lines = read_batch(grid(project, seed=[5], robustness=True), "out"), []
    counts = run_batch(batch, log=lines.append)
    assert (
        counts["failed"] == 1
        and "AssertionError: out of memory" in lines[-1]
        and batch.state(batch.cells[0]) == "failed"
    )
    for name in ("error.txt", records.UNFINISHED):
        (batch.cells[0].folder / name).unlink()
    assert batch.state(batch.cells[0]) == "partial", (
        "attacks are asked for that the first call did not make"
    )
    what = {"measure": "localization", "images": 3}
    (batch.cells[0].folder / records.WEIGHTS).write_bytes(b"weights")
    records.measure(batch.cells[0].folder, "cam", what, lambda: {}, "cpu", save=True)
    assert batch.state(batch.cells[0]) == "partial", "or during the measures of the maps"
    records.measure(
        batch.cells[0].folder, "cam", what | {"measure": records.KEPT}, lambda: {}, "cpu", save=True
    )
    assert batch.state(batch.cells[0]) == "done"
    (batch.cells[0].folder / "cam.json").write_text("{")
    assert batch.state(batch.cells[0]) == "partial", (
        "a damaged file is told when it is measured again"
    )


@pytest.mark.parametrize(
    "words",
    [
        ["--per-gpu", "0"],
        ["--max-minutes", "0"],
        ["--timeout", "-1"],
        ["--max-minutes", "nan"],
    ],
)
def test_wrong_limits(words):
    answer = subprocess.run(
        [
            sys.executable,
            "-m",
            "rmlib",
            "batch",
            "notebooks/batches/quick.yaml",
            *words,
            "--dry-run",
        ],
        capture_output=True,
        text=True,
        cwd=project_root(),
    )
    assert answer.returncode == 1 and words[0] in answer.stderr and answer.stderr.count("\n") == 1


def test_the_papers_batches_begin_with_one_of_each(tmp_path):
    """The order of the ledger: seed 0 of every method with the clean loss, then the primary claim
    to six seeds.
    """
    for name in ("cifar10", "cifar100"):
        cells = read_batch(project_root() / f"notebooks/batches/{name}.yaml", tmp_path).cells
        assert [(cell.mixer, cell.seed, cell.clean_weight) for cell in cells[:4]] == [
            (mixer, 0, 1) for mixer in ("none", "mixup", "cutmix", "region_mixup")
        ]
        assert {(cell.mixer, cell.seed) for cell in cells[4:14]} == {
            (mixer, seed) for mixer in ("mixup", "region_mixup") for seed in range(1, 6)
        }
        assert len(cells) == 33 and all(
            cell.robustness and cell.snapshots == [200] and cell.epochs == 400 for cell in cells
        )
