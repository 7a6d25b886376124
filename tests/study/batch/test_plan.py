"""The plan of a batch: what a file means, which mistakes are named, and what it will take."""

import json
import re

import pytest
import torch
from made import make_record
from standins import grid, write

from rmlib import UserError
from rmlib.params import MIXERS
from rmlib.paths import project_root
from rmlib.study.batch import costs
from rmlib.study.batch.plan import read_batch
from rmlib.study.runs import records


def planned(tmp_path, text):
    return read_batch(write(tmp_path, text), tmp_path / "out")


def test_a_grid_is_expanded_and_checked(tmp_path):
    text = """
common: {epochs: 4, lr: 1e-2, snapshots: [2, 4]}
grid:
  - {mixer: [mixup, region_mixup], clean_weight: [1, 0], seed: [0, 1, 2]}
  - {mixer: region_mixup, k: [1, 2], seed: 0}
"""
    batch = planned(tmp_path, text)
    assert len(batch.runs) == 12 + 1, "k = 2, seed 0 is in both blocks and counts once"
    assert {run.lr for run in batch.runs} == {0.01}, "YAML reads 1e-2 as text"
    assert all(run.snapshots == [2, 4] for run in batch.runs), "a list that is one value"
    assert batch.label(batch.runs[0]) == "Mixup, seed 0"
    assert batch.label(batch.runs[3]) == "Mixup, clean_weight=0, seed 0"
    assert {run.folder.parent for run in batch.runs} == {tmp_path / "out"}


ONE = "grid: [{seed: 0}]\n"
MISTAKES = {
    "grid: [{sed: [0, 1]}]": "unknown parameter 'sed': did you mean 'seed'",
    "grid: [{seed: [0, one]}]": "seed='one'",
    "grid: [{seed: 0..2}]": r"seed='0..2': .*in a batch a list of them, such as \[0, 1, 2\]",
    "grid: [{mixer: [mixup, cutmx]}]": "did you mean 'cutmix'",
    "grid: [{mixer: mixup, k: 4}]": "k=4 does nothing",
    "grids: [{seed: 0}]": "did you mean 'grid'",
    "grid: []": "grid",
    "": "grid: Field required",
    "grid: [{seed: []}]": "empty list",
    "common: {seed: []}\ngrid: [{lr: 0.1}]": "empty list",
    "1: 2": "1: a name is expected here, and names are text",
    "grid: [{1: 2}]": "grid.0.1: a name is expected",
    ONE + "common: {1: 2}": "common.1: a name is expected",
    ONE + "notebooks: {05_results: {1: 2}}": "notebooks.05_results.1: a name is expected",
    ONE + "notebooks: {3: {}}": "notebooks.3: a name is expected",
    "grid: [{seed: 2001-99-99}]": "'2001-99-99' is no timestamp .line 1",
    "grid: [{seed: !!int x}]": "'x' is no int .line 1",
    "grid: !!bool maybe": "'maybe' is no bool",
    "grid: !!set maybe": "expected a mapping node, but found scalar",
    "grid: !!python/object:os.system x": "could not determine a constructor",
    "? [a]\n: b": "unhashable key",
    "- a": "where common, grid and notebooks should stand",
    ONE + "common: {out: x}": "name the folder by --out",
    "grid: [{lr: 0.1, lr: 0.2}]": "lr is given twice",
    "grid: [{dataset: ['folder:a/pets', 'folder:b/pets']}]": "different folder names",
    "grid: [{": "is not YAML",
    "some text": "is not YAML of a batch",
    ONE + "notebook: 01_method": "did you mean .notebooks",
    ONE + "notebooks: {03_robustnes: {}}": "did you mean '03_robustness'",
    ONE + "notebooks: {02_training: {}}": "expected one of 01_method, 03_robustness",
    "grid: [{seed: 0, clean_weight: 0.5}]\nnotebooks: {03_robustness: {}}": (
        "clean_weight=1 selects no run of the grid: set it to one of 0.5"
    ),
    ONE + "notebooks: {03_robustness: {quieries: 5}}": "did you mean 'queries'",
    ONE + "notebooks: {03_robustness: {eps: [8]}}": "scale of pixels",
    ONE + "primary_metric: ece": "primary_metric: of what difference",
    ONE + "primary_metric: loss": "primary_metric: .* 'accuracy', 'nll' or 'ece'",
    ONE + "primary: [{mixer: none}]": "primary: .* at least 2 items",
    ONE + "primary: [{mixr: none}, {}]": "primary: mixr: did you mean 'mixer'",
    ONE + "primary: [{}, {mixer: mixup}]": "primary: mixer=mixup selects no methods: give param",
    "grid: [{mixer: [none, mixup]}]\nprimary: [{mixer: none}, {clean_weight: 1}]": (
        "primary: clean_weight=1 selects several methods"
    ),
}


@pytest.mark.parametrize("text", MISTAKES)
def test_mistakes_in_a_batch_file(tmp_path, text):
    with pytest.raises(UserError, match=MISTAKES[text]) as error:
        planned(tmp_path, text)
    assert "\n" not in str(error.value)


def test_the_command_line_sets_parameters_of_all_runs(tmp_path):
    """In place of what blocks and ``common`` say; a list spans the grid; ids are those of a file."""
    path = write(tmp_path, "grid:\n- {seed: [0, 1], mixer: [none, mixup]}\n- {mixer: mixup, lr: 1}")
    texts = ["seed=[5, 6, 7]", "lr=1/2", "clean-weight = 0", "snapshots=[2, 4]", "holdout=true"]
    runs = read_batch(path, tmp_path / "out", texts).runs
    written = write(
        tmp_path,
        "common: {lr: 0.5, clean_weight: 0, snapshots: [2, 4], holdout: true}\n"
        "grid: [{seed: [5, 6, 7], mixer: [none, mixup]}]",
        "c.yaml",
    )
    assert runs == read_batch(written, tmp_path / "out").runs
    notebooks = write(tmp_path, f"{ONE}notebooks: {{01_method: }}", "d.yaml")
    method = read_batch(notebooks, None, ["dataset=folder:a: b #c"]).notebooks["01_method"]
    assert method.dataset == "folder:a: b #c", "text is no YAML"


@pytest.mark.parametrize(
    "texts, words",
    [
        (["epoch=3"], "--set epoch=3: unknown parameter 'epoch': did you mean 'epochs'"),
        (["epochs"], "--set epochs: expected NAME=VALUE, such as epochs=20"),
        (["lr=1", "lr=2"], r"--set lr=2: lr is given twice: a list is lr=\[A, B\]"),
        (["seed=[0, 1"], r"--set seed=\[0, 1: no list of YAML"),
        (["seed=[]"], "an empty list spans no run"),
        (["out=x"], "name the folder by --out"),
        (["epochs=x", "k=2"], "b.yaml --set epochs=x --set k=2: epochs='x'"),
        (["seed=0..2"], r"such as \[0, 1, 2\]"),
        (["mixer=mixop"], "did you mean 'mixup'"),
        (["dataset=/my/images"], "did you mean 'folder:/my/images'"),
        (["alpha=0.5"], "alpha=0.5 does nothing for mixer 'none'"),
    ],
)
def test_mistakes_in_what_the_command_line_sets(tmp_path, texts, words):
    path = write(tmp_path, "grid: [{seed: [0, 1], mixer: [none, mixup]}]")
    with pytest.raises(UserError, match=words) as error:
        read_batch(path, tmp_path / "out", texts)
    assert "\n" not in str(error.value)


def test_the_plan_keeps_what_the_command_line_set_without_paths(project):
    """Before the options of the last call that ran something; another grid has other words."""
    path = grid(project, seed=[0])
    texts = ["dataset=folder:/far/pets", "root=/far", "epochs=[1, 2]"]

    def stored(texts, options):
        plan = read_batch(path, "out", texts).write(options)
        assert "/far" not in plan.read_text()
        return json.loads(plan.read_text())["options"]

    words = ["--set", "dataset=folder:pets", "--set", "epochs=[1, 2]"]
    assert stored(texts, ["--compile"]) == [*words, "--compile"]
    assert stored(texts, None) == [*words, "--compile"]
    assert stored(["seed=1"], None) == ["--set", "seed=1", "--compile"]


def test_the_batch_for_somebodys_own_images(tmp_path):
    """Nine methods, seed by seed. No test image is used; no image of the training is left out."""
    path = project_root() / "notebooks/batches/my-images.yaml"
    batch = read_batch(path, tmp_path, [f"dataset=folder:{tmp_path}/pets"])
    runs = batch.runs
    methods = {(run.mixer, run.clean_weight, run.epochs) for run in runs[:9]}
    both = {(mixer, weight, 60) for mixer in MIXERS for weight in (0, 1)}
    assert methods == both | {("none", 0, 120)}, "and plain training of equal compute"
    assert [run.seed for run in runs] == [seed for seed in range(5) for _ in range(9)]
    assert all(run.holdout and run.train_images is None for run in runs)
    assert not any(run.robustness for run in runs) and list(batch.notebooks) == ["05_results"]
    chosen = ["dataset=folder:pets", "holdout=false", "mixer=[none, cutmix]", "clean_weight=0"]
    last = read_batch(path, tmp_path, chosen).runs
    assert len(last) == 10 and not any(run.holdout for run in last)
    longer = read_batch(path, tmp_path, [chosen[0], "epochs=7", "seed=0"]).runs
    assert [run.epochs for run in longer if run.epochs != 7] == [14]


ALIASES = "a0: &a0 [1, 2]\n" + "".join(
    f"a{i}: &a{i} [{10 * f'*a{i - 1}, '}]\n" for i in range(1, 30)
)
MERGES = "- &a0 {seed: 1}\n" + "".join(
    f"- &a{i} {{<<: [{10 * f'*a{i - 1}, '}]}}\n" for i in range(1, 30)
)
SIX = ("seed", "k", "epochs", "width", "batch_size", "threads")
HUGE = {
    "aliases that multiply": (ALIASES + ONE, "aliases repeat more than"),
    "merges that multiply": (f"grid:\n{MERGES}", "aliases repeat more than"),
    "an alias in itself": (f"common: &a {{seed: *a}}\n{ONE}", "aliases repeat more than"),
    "lists in lists": ("grid: " + 3000 * "[" + 3000 * "]", "nested deeper than 20"),
    "blocks in blocks": ("".join(" " * i + "a:\n" for i in range(300)), "nested deeper than 20"),
    "a long grid": (
        f"grid: [{{{', '.join(f'{n}: {list(range(1, 31))}' for n in SIX)}}}]",
        "729000000",
    ),
    "a long seed": (f"grid: [{{seed: {5000 * '9'}}}]", "5002 characters. is no int"),
    "a long text": (f"grid: [{{seed: '{5000 * '9'}'}}]", "5002 characters"),
    "a long number of base 60": (f"grid: [{{lr: 1:{300 * '59:'}0.5}}]", "is no float"),
    "a long hexadecimal": (f"grid: [{{seed: 0x{5000 * 'f'}}}]", "thousands of digits"),
    "many mistakes": (f"grid: [{{seed: [{', '.join(f'x{i}' for i in range(5000))}]}}]", "and 4990"),
    "many names": (f"grid: [{{{', '.join(f'x{i}: 1' for i in range(3000))}}}]", "and 2990 more"),
    "a large file": (ONE + "#" * 200_000, "at most 100000"),
}


@pytest.mark.parametrize("kind", HUGE)
def test_a_file_that_would_grow_without_end_is_answered_in_a_line(tmp_path, kind):
    """Without these bounds, each takes minutes, all the memory, or ends in a traceback."""
    text, words = HUGE[kind]
    with pytest.raises(UserError, match=words) as error:
        planned(tmp_path, text)
    assert "\n" not in str(error.value) and len(str(error.value)) < 5000


def test_a_file_in_another_encoding_or_no_file_is_named(tmp_path):
    (tmp_path / "b.yaml").write_bytes("grid: [{dataset: 'folder:Bär'}]".encode("latin-1"))
    with pytest.raises(UserError, match="b.yaml is not YAML of a batch.*utf-8"):
        read_batch(tmp_path / "b.yaml")
    for name in (tmp_path, "/dev/zero", "~/no-such.yaml"):
        with pytest.raises(UserError, match="there is no batch file"):
            read_batch(name)


def test_blocks_may_share_what_they_have_in_common(tmp_path):
    """YAML's merge keys; what stands in the block itself counts more, and is not given twice."""
    text = "grid:\n- &short {epochs: 3, lr: 0.1}\n- {<<: *short, lr: 0.2, seed: 1}\n"
    runs = planned(tmp_path, text).runs
    assert [(run.epochs, run.lr, run.seed) for run in runs] == [(3, 0.1, 0), (3, 0.2, 1)]


def test_an_unknown_batch_file_names_the_known_ones():
    with pytest.raises(UserError, match="quick"):
        read_batch("notebooks/batches/quik.yaml")


@pytest.fixture
def no_other_runs(tmp_path, monkeypatch):
    """Neither in results/ nor in runs/."""
    for name in ("results_dir", "runs_dir"):
        monkeypatch.setattr(costs, name, lambda: tmp_path / "none")


def ended(run, seconds, folder=None, notebook=None, here=True, **settings):
    """A run has ended; all but the last of its seconds went into training."""
    record = make_record(80.0, checksum="00", **run.config)
    speed = run.epochs * record.data["train_images"] / (seconds - 1)
    data = record.data | {"test_images": run.test_images or 8}
    change = {"seconds": seconds, "images_per_second": speed, "data": data, "correct": None}
    if not here:
        change["hardware"] = record.hardware | {"cpu": "another"}
    records.write(record.model_copy(update=change), folder or run.folder)
    if notebook:
        executed(run.folder / "02_training.ipynb", run, notebook, **settings)


def executed(path, parameters, seconds, **change):
    """A notebook that was executed, with what is noted in it."""
    noted = {"exception": None, "seconds": seconds, "parameters": parameters.model_dump() | change}
    path.write_text(json.dumps({"metadata": {"papermill": noted}}))


def seconds_of(batch):
    return {name: round(cost.seconds) for name, cost in costs.costs(batch).items()}


EVERYTHING = {"new", "stopped", "failed", "damaged"}


def test_the_plan_says_what_runs_will_take(tmp_path, no_other_runs):
    """The mean of whole notebooks of the same kind, else what the images take is scaled."""
    text = """
common: {width: 8, epochs: 4, train_images: 1000, test_images: 100, mixer: mixup, eval_every: 0}
grid: [{seed: [0, 1, 2, 3]}, {clean_weight: 0}, {epochs: 8}, {width: 9}]
"""
    batch = planned(tmp_path, text)
    *_, fourth, plain, longer, wider = (run.run_id for run in batch.runs)
    for run, seconds in zip(batch.runs, (100.0, 120.0, 200.0)):
        ended(run, seconds, notebook=seconds + 30)
    found = seconds_of(batch)
    assert found[fourth] == 170, "the mean of 130, 150 and 230"
    assert found[plain] == pytest.approx(30 + 140 / 2, abs=1), "one forward instead of two"
    assert found[longer] == pytest.approx(30 + 140 * 2, abs=1), "twice the epochs, one start"
    assert wider not in found
    text = costs.describe(batch, 2, EVERYTHING)
    assert "7 runs: 3 done, 4 to go, 2 at a time; about 7 min by earlier ones on this mach" in text
    assert (
        "machine (between 5 min and 9 min), for those known; time of 1 unknown, since nothing like them"
        in text
    )
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert lines[:3] == [
        "done Mixup, seeds 0, 1, 2",
        "new Mixup, seed 3 3 min",
        "new Mixup, clean_weight=0, seed 0 2 min",
    ]
    assert lines[4] == "new Mixup, width=9, seed 0 time unknown"
    for run, content in ((batch.runs[5], 6), (batch.runs[4], None)):
        run.folder.mkdir()
        state = {"progress": json.dumps({"epoch": content})}
        torch.save(state if content else "damaged", run.folder / records.CHECKPOINT)
    assert seconds_of(batch)[longer] == pytest.approx(found[longer] / 4, abs=1), "6 of 8 epochs"
    assert seconds_of(batch)[plain] == found[plain], "of a damaged checkpoint nothing is known"
    stray = batch.runs[0].folder / "record.json"
    stray.write_text(stray.read_text().replace('"seconds": 100.0', '"seconds": null'))
    assert seconds_of(batch)[fourth] == 190, "a foreign record costs its part alone"


def test_what_another_machine_did_counts_where_this_one_did_nothing(tmp_path, no_other_runs):
    """A record alone tells of its training alone; so does the notebook of a resumed run."""
    batch = planned(tmp_path, "grid: [{mixer: mixup, seed: [0, 1, 2]}]")
    one, two, three = batch.runs
    ended(one, 500.0, here=False)
    assert costs.costs(batch)[three.run_id][:3] == (pytest.approx(500), False, False)
    text = costs.describe(batch, 1, EVERYTHING)
    assert "by earlier ones on other hardware, counting trainings alone: not before " in text
    ended(two, 50.0, notebook=10)
    assert costs.costs(batch)[three.run_id][:3] == (pytest.approx(50), True, False)
    executed(two.folder / "02_training.ipynb", two, 70, robustness=True)
    assert not costs.costs(batch)[three.run_id].whole, "attacks are another thing"
    executed(two.folder / "02_training.ipynb", two, 70)
    assert costs.costs(batch)[three.run_id][:3] == (pytest.approx(70), True, True)


def test_a_trial_on_the_same_images_tells_what_a_batch_of_all_of_them_takes(tmp_path, monkeypatch):
    """Of a folder nobody has counted the images yet: the record of the trial has."""
    monkeypatch.setattr(costs, "results_dir", lambda: tmp_path / "none")
    monkeypatch.setattr(costs, "runs_dir", lambda: tmp_path / "runs")
    text = "common: {dataset: 'folder:pets', eval_every: 0}\ngrid: [{epochs: 1}]"
    path = write(tmp_path, text)
    (trial,) = read_batch(path, tmp_path / "runs" / "trial").runs
    ended(trial, 10.0, notebook=30)
    batch = read_batch(path, tmp_path / "out", ["epochs=[7, 1]"])
    assert list(seconds_of(batch).values()) == [21 + 7 * 9, 30]
    assert re.search(
        r"this machine: ends about \d\d:\d\d; in", costs.describe(batch, 1, EVERYTHING)
    )
    some = read_batch(path, tmp_path / "out", ["train_images=12"])
    assert list(seconds_of(some).values()) == [21], "a handful of the 60 000"
    ended(some.runs[0], 5.0)
    (trial.folder / "record.json").unlink()
    assert costs.costs(batch) == {}, "how many there are is not known"


def test_the_plan_says_what_notebooks_will_take(tmp_path, no_other_runs):
    """As earlier ones with the same parameters, for as many networks, after the runs."""
    text = "grid: [{mixer: mixup, seed: [0, 1, 2, 3]}]\nnotebooks: {04_cam: , 05_results: }"
    batch = planned(tmp_path, text)
    for run in batch.runs[:2]:
        ended(run, 60.0, notebook=100)
    executed(tmp_path / "out" / "05_results.ipynb", batch.notebooks["05_results"], 40)
    assert {"05_results": 40}.items() <= seconds_of(batch).items()
    assert "04_cam" not in seconds_of(batch)
    maps = batch.notebooks["04_cam"]
    executed(tmp_path / "out" / "04_cam.ipynb", maps, 50, images=maps.images + 1)
    assert "04_cam" not in seconds_of(batch), "its parameters were others"
    executed(tmp_path / "out" / "04_cam.ipynb", maps, 50, runs="elsewhere")
    assert seconds_of(batch)["04_cam"] == 100, "four networks instead of two"
    words = costs.describe(batch, 2, EVERYTHING)
    assert "4 runs and 2 notebooks: 2 done, 4 to go, 2 at a time; about 4 min by" in words, (
        "100 s of runs, 100 of maps, then 40"
    )


def test_the_plan_knows_what_waits_for_what(tmp_path):
    text = "grid: [{seed: [0, 1]}]\nnotebooks: {01_method: , 03_robustness: , 05_results: }"
    lines = costs.describe(planned(tmp_path, text), 1, EVERYTHING).splitlines()
    assert [re.sub("^new +|  time unknown$", "", line) for line in lines[1:4]] == [
        "01_method",
        "03_robustness  after 2 runs",
        "05_results  after 2 runs, 03_robustness",
    ]


def test_the_plan_is_kept_beside_the_results(project):
    """plan.json names runs, notebooks, the batch's file and options, and no path of the machine."""
    batch = read_batch(grid(project, seed=[0, 1]), "out")
    path = batch.write(["--compile"])
    content = json.loads(path.read_text())
    cells = content.pop("cells")
    assert [cell["run_id"] for cell in cells] == [run.run_id for run in batch.runs]
    assert cells[1]["config"] == batch.runs[1].config
    assert content == {
        "schema_version": 1,
        "name": "grid",
        "file": "grid.yaml",
        "options": ["--compile"],
        "notebooks": [],
    }
    assert "/" not in path.read_text()


@pytest.mark.parametrize(
    "seconds, text",
    [(35.4, "35 s"), (100, "2 min"), (3600 * 3.4, "3 h 24 min"), (3600 * 52, "2 d 4 h")],
)
def test_durations_in_words(seconds, text):
    assert costs.duration(seconds) == text


def test_what_the_grid_says_reaches_the_other_notebooks(tmp_path):
    text = """
common: {dataset: tiny-imagenet, root: somewhere, allow_partial: true, device: cpu, threads: 2}
grid: [{mixer: [mixup, cutmix]}]
notebooks: {01_method: {k: 3}, 03_robustness: {eps: [0, 8/255]}, 05_results: }
"""
    found, out = planned(tmp_path, text).notebooks, str(tmp_path / "out")
    assert list(found) == ["01_method", "03_robustness", "05_results"]
    method, robustness = found["01_method"], found["03_robustness"]
    assert (method.dataset, method.root, method.k) == ("tiny-imagenet", "somewhere", 3)
    assert method.allow_partial and robustness.save
    assert (robustness.runs, robustness.root) == (out, "somewhere")
    assert (robustness.device, robustness.threads) == ("cpu", 2)
    assert robustness.eps == ["0", "8/255"] and found["05_results"].runs == out
    text = "grid: [{dataset: 'folder:my/pets'}]\nnotebooks: {04_cam: }"
    root = planned(tmp_path, text).notebooks["04_cam"].root
    assert root == "my/pets", "a record keeps no path, so the notebook gets it here"


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_the_papers_batches_begin_with_one_of_each(tmp_path, name):
    """Seed 0 of every method with the clean loss, then the primary claim to six seeds."""
    runs = read_batch(project_root() / f"notebooks/batches/{name}.yaml", tmp_path).runs
    mixers = ("none", "mixup", "cutmix", "region_mixup")
    first = [(run.mixer, run.seed, run.clean_weight) for run in runs[:4]]
    assert first == [(mixer, 0, 1) for mixer in mixers]
    primary = {(mixer, seed) for mixer in ("mixup", "region_mixup") for seed in range(1, 6)}
    assert {(run.mixer, run.seed) for run in runs[4:14]} == primary
    assert len(runs) == 33 and all(run.robustness and run.epochs == 400 for run in runs)
    assert all(run.snapshots == [200] for run in runs)
