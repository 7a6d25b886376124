"""What a batch does with its runs and notebooks: stand-ins, done in this process at once."""

import importlib.util
import json
import os
import shutil
import time
from collections import Counter
from pathlib import Path

import nbformat
import pytest
import yaml
from faulty import noted
from made import make_record, measured
from standins import counts, grid, run, stand_in, write

from rmlib import UserError, extras
from rmlib.study.batch import executors
from rmlib.study.batch.batch import LOCK, Options, dry_run
from rmlib.study.batch.jobs import Jobs
from rmlib.study.batch.plan import read_batch
from rmlib.study.batch.progress import Progress
from rmlib.study.cli import build_parser, main
from rmlib.study.runs import collection, records
from rmlib.study.settings import CELL


def batch():
    return read_batch("grid.yaml", "out")


def began():
    """How often the notebook of each seed began."""
    return Counter(int(line.split()[0]) for line in noted("began.txt"))


def mend():
    Path("mended").touch()


def test_failures_are_kept_apart_named_and_repeatable(at_once):
    """Two runs fail, one also after its training; then only what failed runs again."""
    lines = []
    grid(at_once, seed=[0, 1, 5])
    assert run(lines, workers=2) == counts(1, failed=2)
    text = "\n".join(lines)
    assert "AssertionError: seed 1 does not work" in text and "80.00 %" in text
    assert "AssertionError: out of memory" in text
    states = [batch().state(each) for each in batch().runs]
    assert states == ["done", "failed", "failed"], "a record alone is not enough"
    error = (batch().runs[1].folder / "error.txt").read_text()
    assert error.splitlines()[0] == "AssertionError: seed 1 does not work"
    mend()
    assert run(lines := [], workers=2, only_failed=True) == counts(3)
    assert "1 done already, 2 to go" in lines[0]
    assert began() == {0: 1, 1: 2, 5: 2} and sorted(noted("recorded.txt")) == ["0", "1", "5"]
    assert run()["done"] == 3 and began().total() == 5, "a finished run is not run again"


@pytest.fixture
def others(at_once):
    """Stand-ins for the other notebooks; 04_cam fails until there is a file `mended`."""
    for name, first in (
        ("01_method", "k = 2"),
        ("03_robustness", "queries = 1"),
        ("04_cam", "images = 1"),
        ("05_results", "runs = None"),
    ):
        stand_in(at_once, name, first)
    return {"01_method": {}, "03_robustness": {"queries": 7}, "04_cam": None, "05_results": {}}


def order():
    """Notebooks in the order in which they ran, with the number of records that they saw."""
    lines = noted("order.txt")
    Path("order.txt").unlink(missing_ok=True)
    return [line.rsplit(" ", 1)[0] for line in lines]


def test_the_other_notebooks_run_around_the_grid(at_once, others):
    """A failing one does not stop the others; what is up to date is not run again."""
    lines = []
    grid(at_once, others, seed=[0])
    assert run(lines, workers=1) == counts(4, failed=1)
    assert order() == ["01_method 1", "03_robustness 1", "04_cam 1", "05_results 1"]
    assert any("failed" in line and "04_cam: AssertionError: no map" in line for line in lines)
    states = [batch().notebook_state(name) for name in others]
    assert states == ["done", "done", "failed", "done"]
    mend()
    assert run()["done"] == 5 and order() == ["04_cam 1"], "only what had failed"
    assert run()["done"] == 5 and order() == []
    assert {state for state, *_ in batch().plan()} == {"done"}
    grid(at_once, others, seed=[0, 4])
    planned = [state for state, *_ in batch().plan()]
    assert planned == ["done", "new", "done", "new", "new", "new"], "what will look at it is new"
    assert run(workers=1)["done"] == 6
    assert order() == ["03_robustness 2", "04_cam 2", "05_results 2"]
    grid(at_once, others | {"03_robustness": {"queries": 8}}, seed=[0, 4])
    assert run()["done"] == 6 and order() == ["03_robustness 2"], "its parameters are others"


def test_the_other_notebooks_wait_for_a_finished_run(at_once, others):
    grid(at_once, others, seed=[1])
    assert run() == counts(1, failed=1, left=3) and order() == ["01_method 0"]


def test_without_keep_going_nothing_more_is_started(at_once):
    grid(at_once, seed=[1, 0, 4])
    lines = []
    assert run(lines, workers=1, keep_going=False) == counts(0, failed=1, left=2)
    assert began() == {1: 1}
    assert sum("not started, after a failure" in line for line in lines) == 2


def test_what_hung_or_was_stopped_is_said(at_once, monkeypatch):
    """A run that its time limit ended has failed; one that stopped with a checkpoint has not."""
    grid(at_once, seed=[0])
    ends = [
        executors.Ended(-15, "", late=True),
        executors.Ended(1, "Stopped: by SIGTERM in epoch 3"),
    ]
    ends.append(executors.Ended(-9, "epoch 3/6\nbuilding a forest"))
    ends.append(executors.Ended(3, ""))
    monkeypatch.setattr(executors, "work", lambda *_: ends.pop(0))
    assert run(lines := [], timeout=0.5) == counts(0, failed=1)
    assert "longer than --timeout 0.5 minutes: ended" in lines[-1]
    assert run(lines := []) == counts(0, stopped=1)
    assert lines[-1].endswith("it begins again: by SIGTERM in epoch 3")
    assert (
        run(lines := []) == counts(0, failed=1)
        and "was killed (signal 9): out of memory?" in lines[-1]
    )
    assert "forest" not in lines[-1], "the last line that it printed is no reason"
    assert "building a forest" in (batch().runs[0].folder / "error.txt").read_text()
    assert run(lines := []) == counts(0, failed=1) and "(exit code 3)" in lines[-1]


@pytest.mark.parametrize(
    "there, words",
    [
        (records.CHECKPOINT, "left a checkpoint"),
        (records.RECORD, "its training is done, its notebook goes on from the record"),
        ("nothing", "nothing was saved yet, it begins again"),
    ],
)
def test_an_interrupted_run_says_what_it_goes_on_from(at_once, monkeypatch, there, words):
    """Wherever Ctrl-C met its kernel; the plan then calls it stopped."""
    grid(at_once, seed=[0])
    (params,) = batch().runs

    def interrupt(*_):
        (params.folder / there).touch()
        return executors.Ended(1, "KeyboardInterrupt: ")

    monkeypatch.setattr(executors, "work", interrupt)
    assert run(lines := []) == counts(0, stopped=1)
    assert lines[-1].endswith(f"stopped Region Mixup: {words}")
    (params.folder / records.RECORD).unlink(missing_ok=True)
    assert batch().plan()[0][0] == "stopped"


def test_a_run_whose_notebook_was_cut_off_after_its_record_trains_nothing(at_once):
    grid(at_once, seed=[0])
    assert run()["done"] == 1
    (batch().runs[0].folder / records.UNFINISHED).touch()  # as it is while the notebook runs
    assert batch().plan()[0][0] == "stopped"
    assert run()["done"] == 1 and batch().plan()[0][0] == "done"
    assert noted("recorded.txt") == ["0"]


def test_a_diverged_run_has_failed_whenever_one_asks(project):
    (params,) = read_batch(grid(project, seed=[0]), "out").runs
    records.write(make_record(status="diverged", **params.config), params.folder)
    assert batch().plan()[0][0] == "failed"


def test_a_record_of_other_images_stops_the_batch(at_once):
    (params,) = read_batch(grid(at_once, seed=[0]), "out").runs
    records.write(make_record(checksum="another", **params.config), params.folder)
    with pytest.raises(UserError, match="made from other images"):
        run()


@pytest.mark.parametrize("kind", ["truncated", "foreign"])
def test_a_record_that_cannot_be_used_is_set_aside_and_its_run_begins_again(at_once, kind):
    (params,) = read_batch(grid(at_once, seed=[0]), "out").runs
    foreign = params.model_copy(update={"seed": 7})
    made = params if kind == "truncated" else foreign
    path = records.write(make_record(99.0, **made.config), params.folder)
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:-200])
    content = path.read_bytes()
    assert batch().plan()[0][0] == "damaged"
    assert run(lines := [], only_failed=True)["done"] == 1
    (line,) = [line for line in lines if line.startswith("damaged")]
    assert ("is damaged" if kind == "truncated" else f"belongs to run {foreign.run_id}") in line
    assert records.read(params.folder).metrics["accuracy"] == 80
    assert path.with_name("record.json.damaged").read_bytes() == content


def test_a_record_of_a_later_rmlib_is_neither_set_aside_nor_trained_again(at_once):
    grid(at_once, seed=[0])
    path = records.write(make_record(**batch().runs[0].config), batch().runs[0].folder)
    path.write_text(path.read_text().replace('"schema_version": 1', '"schema_version": 2'))
    content = path.read_bytes()
    with pytest.raises(UserError, match="record.json is of schema 2.*: update rmlib"):
        run()
    assert path.read_bytes() == content and not began()
    assert os.listdir(path.parent) == ["record.json"]


def test_a_folder_deleted_meanwhile_ends_the_batch(at_once, monkeypatch):
    """With its lock: another batch may work there by now. Nothing more starts."""
    grid(at_once, seed=[0, 4])
    started = []

    def delete(job, *_):
        started.append(job)
        shutil.rmtree("out")
        return executors.Ended(0, "")

    monkeypatch.setattr(executors, "work", delete)
    with pytest.raises(UserError, match="^out was deleted while.*begins again$"):
        run(workers=1)
    assert len(started) == 1


MEASURED = {
    "localization": {"images": 3, "maps": [], "found": {}},
    records.KEPT: {"shape": [32, 32], "layers": {}},
}


def test_attacks_that_were_asked_for_belong_to_a_done_run(at_once):
    """It is stopped until the last of them is stored, and again when that file is damaged."""
    (params,) = read_batch(grid(at_once, seed=[0], robustness=True), "out").runs
    record, states = make_record(**params.config), []
    records.write(record, params.folder)
    for measure in ("localization", records.KEPT):
        states.append(batch().state(params))
        measured(Path("out"), record, "cam", ({"measure": measure}, MEASURED[measure]))
    states.append(batch().state(params))
    (params.folder / "cam.json").write_text("{")
    assert [*states, batch().state(params)] == ["stopped", "stopped", "done", "stopped"]


STORED = ["--per-gpu", "2", "--timeout", "1.5", "--compile"]


@pytest.mark.parametrize("words", [STORED, ["--timeout", "1"], []])
def test_the_plan_stores_words_that_the_command_line_takes(project, monkeypatch, words):
    """How the runs were made; a later call that runs none leaves it as it is."""
    monkeypatch.setattr(Jobs, "all", lambda *_: None)
    monkeypatch.setattr("rmlib.study.runs.run.need_compiler", lambda device: None)
    grid(project, seed=[1, 0])
    for call in (["--workers", "1", *words], ["--only-failed"]):  # the second finds nothing to do
        main(["batch", "grid.yaml", "--out", "out", *call])
        assert json.loads((project / "out" / "plan.json").read_text())["options"] == words
    build_parser()[0].parse_args(["batch", "grid.yaml", *words])


@pytest.fixture
def no_process(monkeypatch):
    monkeypatch.setattr(
        executors.subprocess, "Popen", lambda *_, **__: pytest.fail("a process was started")
    )


def test_missing_data_is_named_before_any_kernel_starts(project, no_process, monkeypatch):
    """Nothing is left behind. A dry run fetches nothing, and says that the batch will."""
    grid(project, seed=[0], dataset="cifar10", root=str(project))
    with pytest.raises(UserError, match="cifar10 is not in"):
        run()
    with pytest.raises(UserError, match="cifar10 is not in"):
        dry_run(batch(), Options())
    assert not Path("out").exists()
    monkeypatch.delenv("RMLIB_OFFLINE")
    assert dry_run(batch(), Options()).endswith("the batch fetches them first")


def test_a_dry_run_finds_what_the_batch_would_refuse(project, no_process):
    grid(project, seed=[0], k=9)
    with pytest.raises(UserError, match="k=9 tiles do not fit into 8 x 12"):
        dry_run(batch(), Options())
    grid(project, seed=[0], dataset="folder:pest")
    with pytest.raises(UserError, match="there is no folder or zip pest"):
        dry_run(batch(), Options())
    assert not Path("out").exists()


@pytest.mark.parametrize(
    "block, words",
    [
        ({"train_images": 2000}, "2000 images are no class-balanced subset"),
        ({"test_images": 4}, "4 images are no class-balanced subset"),
        ({"holdout": True}, "has 1 training images: at least 10 are needed"),
        ({"batch_size": 4}, "batch_size=4: there are only 3 training images"),
        ({"k": 9}, "k=9 tiles do not fit into 8 x 12"),
        ({"batch_size": 2, "stem_stride": 2}, "batch_size=2: the last of 3 images.*BatchNorm"),
        ({"robustness": True, "measured_images": 4}, "measured_images=4: there are only 3 test"),
        ({"device": "cuda"}, "device='cuda', but torch sees no CUDA device"),
        ({"compiled": True}, "compiled=True needs a C.. compiler"),
    ],
)
def test_what_does_not_fit_is_named_before_any_kernel_starts(
    project, no_process, monkeypatch, block, words
):
    """Of the run that it concerns, also where the others of the grid fit."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("shutil.which", lambda name: None)
    grids = [{"dataset": "folder:pets", "train_images": None, "batch_size": 3, "seed": 7}]
    write(project, yaml.safe_dump({"grid": [*grids, grids[0] | {"seed": 8} | block]}), "grid.yaml")
    with pytest.raises(UserError, match=words) as error:
        run()
    assert "\n" not in str(error.value) and str(error.value).startswith("Region Mixup, ")


@pytest.mark.parametrize(
    "name, setting, words",
    [
        ("01_method", {"k": 9}, "01_method: k=9 tiles do not fit: use k <= 8"),
        ("04_cam", {"k": 9}, "04_cam: k=9 tiles do not fit: use k <= 8"),
        ("04_cam", {"layer": "layer5"}, "layer='layer5': did you mean 'layer[1-4]'"),
        ("04_cam", {"beside": "layer4.2"}, "beside='layer4.2': did you mean 'layer4.[01]'"),
        ("04_cam", {"layer": "linear"}, "layer='linear': expected one of conv1, layer1|mean"),
    ],
)
def test_what_the_other_notebooks_cannot_do_is_named_before_any_kernel_starts(
    others, no_process, name, setting, words
):
    grid(Path("."), {name: setting}, seed=[0])
    with pytest.raises(UserError, match=words):
        run()


def test_devices_of_a_cluster_are_its_own_business(project, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    read_batch(grid(project, seed=[0], device="cuda"), "out")
    with pytest.raises(UserError, match="--address 127.0.0.1:1: no Ray cluster answers"):
        run(executor="ray", address="127.0.0.1:1")


@pytest.mark.parametrize("out", ["file/out", "/proc/self/out"])
def test_an_unwritable_out_is_named_before_any_kernel_starts(project, out, no_process):
    """Below a file, and in a file system that takes nothing."""
    (project / "file").write_text("")
    if out.startswith("/proc") and not Path("/proc/self").is_dir():
        pytest.skip("no /proc on this system")
    grid(project, seed=[0])
    with pytest.raises(UserError, match=f"{out} cannot be written .*choose another folder"):
        run(out=out)


@pytest.mark.parametrize("asked", [{"robustness": True}, {}])
def test_a_missing_extra_is_named_before_any_kernel_starts(project, monkeypatch, asked):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "torchattacks" else real(name)
    )
    monkeypatch.setattr(Jobs, "all", lambda *_: None)
    grid(project, seed=[0], **asked)
    if asked:
        message = r"not installed: torchattacks; pip install '\.\[robustness\]'"
        with pytest.raises(UserError, match=message):
            run()
    else:
        run()


def test_ray_is_missed_before_anything_starts_also_in_a_dry_run(project, monkeypatch):
    monkeypatch.setitem(extras.EXTRAS, "ray", ("no_such",))
    grid(project, seed=[0])
    for start in (lambda: run(executor="ray"), lambda: dry_run(batch(), Options(executor="ray"))):
        with pytest.raises(UserError, match=r"not installed: no_such; pip install '\.\[ray\]'"):
            start()


def edit(project, change):
    """02_training with its list of cells changed."""
    path = project / "notebooks" / f"{CELL}.ipynb"
    notebook = nbformat.read(path, as_version=4)
    change(notebook.cells)
    nbformat.write(notebook, path)


def first_cell(text):
    def change(cells):
        cells[0].source = text

    return change


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda cells: cells[0].metadata.pop("tags"), "no cells have the tag `parameters`"),
        (lambda cells: cells.insert(0, cells[0].copy()), "2 cells have the tag"),
        (first_cell("seed = 0\nsed = 1"), "unknown parameter 'sed': did you mean 'seed'"),
        (first_cell("import os"), "holds more than assignments"),
    ],
)
def test_parameters_that_papermill_cannot_set_are_named_before_any_kernel_starts(
    project, change, words, no_process
):
    edit(project, change)
    grid(project, seed=[0])
    with pytest.raises(UserError, match=words) as error:
        run()
    assert "\n" not in str(error.value)


def test_a_notebook_that_changes_its_parameters_later_is_no_run_of_the_grid(at_once, monkeypatch):
    """Its record lies elsewhere, under the name of what was run."""
    monkeypatch.setattr(executors, "work", lambda *_: executors.Ended(0, ""))
    grid(at_once, seed=[0])
    assert run(lines := []) == counts(0, failed=1)
    assert "does a cell of the notebook change its parameters?" in lines[-1]
    assert batch().plan()[0][0] == "failed"


def test_a_second_batch_on_the_folder_refuses(at_once):
    grid(at_once, seed=[0])
    with records.holding(Path("out") / LOCK, ""):
        with pytest.raises(UserError, match="another batch works in out: wait for it") as error:
            run()
        assert "\n" not in str(error.value) and not began()
    assert run()["done"] == 1


def test_the_time_that_is_left_is_the_limit_of_a_run(tmp_path):
    (params,) = read_batch(write(tmp_path, "grid: [{seed: 0}]"), tmp_path / "out").runs
    jobs = Jobs(None, None, None, Options(max_minutes=10, compiled=True))
    limited = jobs.limited(params)
    assert limited.max_minutes == pytest.approx(10, rel=0.01) and limited.compiled
    assert limited.run_id == params.run_id, "limits are no part of a run's identity"
    assert jobs.limited(params.model_copy(update={"max_minutes": 3})).max_minutes == 3
    assert Jobs(None, None, None, Options()).limited(params) == params


def test_nothing_starts_when_the_time_is_up(at_once):
    grid(at_once, seed=[0])
    assert run(lines := [], max_minutes=1e-9) == counts(0, left=1) and not began()
    assert "not started: the time is up" in lines[-1]


def test_a_clock_that_goes_backwards(at_once, monkeypatch):
    """Durations and limits come from a clock that cannot: nothing is late or negative."""
    now = iter(range(2_000_000_000, 0, -3600))
    monkeypatch.setattr(time, "time", lambda: next(now))
    grid(at_once, seed=[0, 4])
    assert run(lines := [], timeout=5, max_minutes=10)["done"] == 2
    assert not any(" -" in line for line in lines[1:])
    assert len(collection.gather("out").records) == 2


def test_the_state_counts_and_estimates():
    """Two places, runs of 100 s each by earlier ones; unknown ones count as those that ended."""
    lines, states = [], {"done": 5, "failed": 0, "stopped": 0}
    progress = Progress(states, dict.fromkeys("abcd", 100.0), 2, lines.append)
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
