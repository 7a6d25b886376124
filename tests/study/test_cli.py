import os
import subprocess
import sys

import pytest
from made import make_record, save

from rmlib import UserError, extras
from rmlib.__main__ import console
from rmlib.params import TrainParams
from rmlib.paths import project_root
from rmlib.study.cli import build_parser, main

QUICK = str(project_root() / "notebooks/batches/quick.yaml")


@pytest.mark.parametrize(
    "words, code, message",
    [
        ([], 2, "COMMAND"),
        (["trian"], 2, "did you mean 'train'"),
        (["train", "--mixr", "mixup"], 2, "did you mean '--mixer'"),
        (["train", "--mixer", "mixupp"], 1, "did you mean 'mixup'"),
        (["train", "--alpha", "0"], 1, "alpha='0'"),
        (["train", "--lr", "8/x"], 1, "8/255"),
        (["data"], 2, "name"),
        (["data", "cifar-10"], 1, "did you mean 'cifar10'"),
        (["data", "cifar10", "--offline", "--root", "nowhere"], 1, "put cifar10.zip"),
        (["batch", "nothing.yaml"], 1, "there is no batch file"),
        (["batch", "b.yaml", "--workers", "0"], 1, "--workers 0: at least 1"),
        (["batch", "b.yaml", "--workers", "9999999999"], 1, "and at most 1000000"),
        (["batch", "b.yaml", "--workers", "x"], 2, "workers"),
        (["batch", "b.yaml", "--per-gpu", "0"], 1, "--per-gpu 0: at least 1"),
        (["batch", "b.yaml", "--max-minutes", "0"], 1, "--max-minutes 0: above 0"),
        (["batch", "b.yaml", "--max-minutes", "nan"], 1, "--max-minutes nan: above 0"),
        (["batch", "b.yaml", "--timeout", "-1"], 1, "--timeout -1: above 0"),
        (["batch", "b.yaml", "--executor", "rey"], 2, "invalid choice: 'rey'"),
        (["batch", "b.yaml", "--address", "auto"], 1, "does nothing without --executor ray"),
        (["batch", "b.yaml", "--together", "2"], 2, "unknown option --together"),
        (["batch", "b.yaml", "--keep-goin"], 2, "did you mean '--keep-going'"),
        (["batch", QUICK, "--dry-run", "--gpus", "7"], 1, "--gpus 7: this machine shows"),
        (["batch", QUICK, "--set", "epoch=3"], 1, "did you mean 'epochs'"),
        (["train", "--dataset", "folder:nothing"], 1, "there is no folder or zip nothing"),
        (["batch", "b.yaml", "--out", "~nosuch/x"], 2, "user who is not known here"),
        (["train", "--out", "~nosuch/x"], 1, "user who is not known here"),
        (["train", "--seed", "9" * 5000], 1, "characters"),
        (["report", "~nosuch/x"], 2, "user who is not known here"),
        (["explain", "~nosuch/x", "accuracy"], 2, "user who is not known here"),
        (["bench", "--out", "."], 1, "--out . is a folder"),
        (["report", "nowhere"], 1, "there is no record"),
        (["report", "--into", "nowhere.md"], 1, "nowhere.md"),
        (["explain"], 2, "WORD"),
        (["explain", "no/where", "accuracy"], 1, "there is no folder no/where"),
        (["explain", "--colum", "x", "accuracy"], 2, "did you mean '--column'"),
        (["bench", "--device", "tpu"], 2, "tpu"),
        (["bench", "--only", "trainin"], 2, "trainin"),
        (["bench", "--rounds", "0"], 1, "--rounds 0: at least 1"),
    ],
)
def test_mistakes_get_one_line_on_stderr(words, code, message, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RMLIB_RUNS", str(tmp_path / "runs"))
    assert main(words) == code
    output = capsys.readouterr()
    assert message in output.err and output.err.count("\n") == 1 and output.out == ""
    assert not list(tmp_path.rglob(".lock")), "no folder with a lock alone"


def test_ray_deals_out_the_gpus_itself(capsys):
    assert main(["batch", "b.yaml", "--executor", "ray", "--gpus", "0"]) == 1
    assert "Ray deals out the GPUs of its cluster itself" in capsys.readouterr().err


def test_torch_is_not_imported_for_mistakes():
    code = (
        "import sys; from rmlib.study.cli import main; code = main(['train', '--mixr', 'x']);"
        " assert code == 2 and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_a_missing_extra_is_named_with_its_remedy(monkeypatch):
    extras.needs("study", "maps")
    monkeypatch.setitem(extras.EXTRAS, "maps", ("json", "no_such"))
    with pytest.raises(UserError, match=r"not installed: no_such; pip install '\.\[maps\]'"):
        extras.needs("study", "maps")


def test_without_the_extra_the_command_is_one_line(monkeypatch, capsys):
    monkeypatch.setitem(extras.EXTRAS, "study", ("no_such",))
    with pytest.raises(SystemExit) as exit:
        console()
    output = capsys.readouterr()
    assert exit.value.code == 1 and output.out == ""
    assert output.err.count("\n") == 1 and "pip install '.[study]'" in output.err


@pytest.mark.parametrize("name", ["data", "train", "batch", "report", "explain", "bench", "lesson"])
def test_every_command_has_help(name, capsys):
    assert name in build_parser()[1]
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0 and f"usage: rmlib {name}" in capsys.readouterr().out


def test_the_options_of_train_are_the_parameters_of_the_notebook():
    _, parsers = build_parser()
    options = {action.dest for action in parsers["train"]._actions} - {"help"}
    assert options == set(TrainParams.model_fields)


def test_train_and_report(tiny_run, tmp_path, capsys):
    out = str(tmp_path / "runs")
    words = ["train", "--dataset", tiny_run["dataset"], "--width", "2", "--epochs", "1"]
    words += ["--batch-size", "16", "--train-images", "all", "--mixer", "mixup", "--alpha", "1/2"]
    words += ["--average", "--milestones", "0.2", "0.4", "--schedule", "multistep", "--out", out]
    assert main(words) == 0
    text = capsys.readouterr().out
    assert "epoch 1/1" in text and "accuracy" in text
    assert main(words) == 0 and "finished already" in capsys.readouterr().out
    assert main(["report", out]) == 0
    table = capsys.readouterr().out
    assert "| Mixup, alpha=0.5, average | 1 |" in table and "alpha 0.5, average True" in table


def test_home_is_expanded_where_the_shell_does_not(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    parser, _ = build_parser()
    for words in (["batch", "~/b.yaml"], ["report", "~/runs"], ["report"], ["bench"]):
        assert parser.parse_args([*words, "--out=~/out"]).out == tmp_path / "out"
    assert parser.parse_args(["batch", "~/b.yaml"]).file == tmp_path / "b.yaml"
    assert parser.parse_args(["report", "~/runs"]).folder == tmp_path / "runs"
    assert parser.parse_args(["explain", "~/runs", "~"]).words == [
        f"{tmp_path}/runs",
        str(tmp_path),
    ]


def test_a_report_needs_no_letters_of_the_terminal_and_no_library_of_attacks_or_maps(tmp_path):
    """In a terminal of ASCII a letter becomes its number, and the report ends with its book.

    `pip install .` without the extras can make tables of records.
    """
    save(tmp_path, *(make_record(80 + seed, seed=seed) for seed in range(2)))
    code = (
        "import atexit, sys; from rmlib.__main__ import console; atexit.register(lambda: print("
        "'used:', *{'pytorch_grad_cam', 'torchattacks', 'cv2'} & sys.modules.keys())); console()"
    )
    ascii_alone = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "LC_ALL": "C"}
    command = [sys.executable, "-c", code, "report", str(tmp_path)]
    answer = subprocess.run(command, env=ascii_alone, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    assert r"\xb1" in answer.stdout and (tmp_path / "report" / "index.html").exists()
    assert answer.stdout.endswith("used:\n"), "none of them"
    assert "±" in (tmp_path / "report" / "tables" / "tables.md").read_text(encoding="utf-8")


def test_a_document_in_another_encoding_is_named(tmp_path, capsys):
    (tmp_path / "a.md").write_bytes("<!-- report results --> ±".encode("utf-16"))
    assert main(["report", "--into", str(tmp_path / "a.md")]) == 1
    output = capsys.readouterr().err
    assert "a.md is no text in UTF-8" in output and output.count("\n") == 1


def test_data_describes_a_dataset(pictures):
    """As the program itself: ``python -m rmlib``."""
    command = [sys.executable, "-m", "rmlib", "data", f"folder:{pictures}"]
    answer = subprocess.run(command, capture_output=True, text=True)
    words = "60 training and 30 test images of 8 x 12 pixels, 3 classes, sha256"
    assert answer.returncode == 0 and words in answer.stdout
