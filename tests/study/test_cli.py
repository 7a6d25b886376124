import subprocess
import sys

import pytest

from rmlib import UserError
from rmlib.__main__ import console
from rmlib.params import TrainParams
from rmlib.paths import project_root
from rmlib.study import guarded
from rmlib.study.cli import build_parser, main
from rmlib.study.guarded import needs


def rmlib(*words, **kwargs):
    return subprocess.run(
        [sys.executable, "-m", "rmlib", *map(str, words)], capture_output=True, text=True, **kwargs
    )


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
        (["batch", "b.yaml", "--workers", "0"], 1, "--workers 0"),
        (["batch", "b.yaml", "--workers", "x"], 2, "workers"),
        (["report", "nowhere"], 1, "there is no record"),
        (["report", "--into", "nowhere.md"], 1, "nowhere.md"),
        (["explain"], 2, "WORD"),
        (["explain", "no/where", "accuracy"], 1, "there is no folder no/where"),
        (["explain", "--colum", "x", "accuracy"], 2, "did you mean '--column'"),
        (["bench", "--device", "tpu"], 2, "tpu"),
    ],
)
def test_mistakes_get_one_line_on_stderr(words, code, message, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main(words) == code
    output = capsys.readouterr()
    assert (
        message in output.err
        and output.err.count("\n") == 1
        and "Traceback" not in output.err
        and output.out == ""
    )


def test_torch_is_not_imported_for_mistakes():
    code = (
        "import sys; from rmlib.study.cli import main; code = main(['train', '--mixr', 'x']); assert"
        " code == 2 and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.parametrize(
    "words, message",
    [
        (["--executor", "rey"], "invalid choice: 'rey'"),
        (["--executor", "ray", "--gpus", "0"], "Ray deals out the GPUs of its cluster itself"),
        (["--address", "auto"], "--address auto does nothing without --executor ray"),
        (["--per-gpu", "0"], "--per-gpu 0: at least 1"),
        (["--timeout", "0"], "--timeout 0: above 0"),
        (["--together", "2"], "unknown option --together"),
        (["--gpus", "7"], "--gpus 7: this machine shows"),
        (["--keep-goin"], "did you mean '--keep-going'"),
    ],
)
def test_mistakes_in_how_a_batch_is_run(words, message):
    answer = rmlib("batch", project_root() / "notebooks/batches/quick.yaml", "--dry-run", *words)
    assert (
        answer.returncode in (1, 2) and message in answer.stderr and answer.stderr.count("\n") == 1
    )


def test_a_missing_extra_is_named_with_its_remedy(monkeypatch):
    needs("study", "maps")
    monkeypatch.setitem(guarded.EXTRAS, "maps", ("json", "no_such"))
    with pytest.raises(UserError, match=r"not installed: no_such; pip install '\.\[maps\]'"):
        needs("study", "maps")


def test_without_the_extra_the_command_is_one_line(monkeypatch, capsys):
    monkeypatch.setitem(guarded.EXTRAS, "study", ("no_such",))
    with pytest.raises(SystemExit) as exit:
        console()
    output = capsys.readouterr()
    assert exit.value.code == 1 and output.out == ""
    assert output.err.count("\n") == 1 and "pip install '.[study]'" in output.err


def test_every_command_has_help():
    _, parsers = build_parser()
    assert set(parsers) == {"data", "train", "batch", "report", "explain", "bench"}
    for name in parsers:
        answer = rmlib(name, "--help")
        assert answer.returncode == 0 and "usage: rmlib" in answer.stdout


def test_the_options_of_train_are_the_parameters_of_the_notebook():
    _, parsers = build_parser()
    options = {action.dest for action in parsers["train"]._actions} - {"help"}
    assert options == set(TrainParams.model_fields)


def test_train_and_report(tiny_run, tmp_path):
    words = [
        "train",
        "--dataset",
        tiny_run["dataset"],
        "--width",
        2,
        "--epochs",
        1,
        "--batch-size",
        16,
        "--train-images",
        "all",
        "--mixer",
        "mixup",
        "--alpha",
        "1/2",
        "--average",
        "--milestones",
        "0.2",
        "0.4",
        "--schedule",
        "multistep",
        "--out",
        tmp_path / "runs",
    ]
    answer = rmlib(*words)
    assert (
        answer.returncode == 0 and "epoch 1/1" in answer.stdout and "accuracy" in answer.stdout
    ), answer.stderr
    again = rmlib(*words)
    assert again.returncode == 0 and "finished already" in again.stdout
    table = rmlib("report", tmp_path / "runs")
    assert (
        table.returncode == 0
        and "| Mixup | 1 |" in table.stdout
        and "alpha 0.5" in table.stdout
        and "average True" in table.stdout
    )


def test_data_describes_a_dataset(pictures):
    answer = rmlib("data", f"folder:{pictures}")
    assert (
        answer.returncode == 0
        and "60 training and 30 test images of 8 x 12 pixels, 3 classes, sha256" in answer.stdout
    )


def test_bench_prints_ratios(capsys, monkeypatch, tmp_path):
    from rmlib.study.bench import measuring, mixing

    monkeypatch.setattr(mixing, "SHAPES", ((8, 3, 8, 8),))
    monkeypatch.setitem(measuring.ATTACKED, "cpu", (6, 3, 2))
    monkeypatch.setitem(measuring.MAPPED, "cpu", (6, 4, 2))
    assert (
        main(
            [
                "bench",
                "--rounds",
                "2",
                "--only",
                "mixers",
                "loader",
                "attacks",
                "maps",
                "--out",
                str(tmp_path / "bench.md"),
            ]
        )
        == 0
    )
    text = capsys.readouterr().out
    for name in (
        "Region Mixup k=4",
        "naive loop k=4",
        "torchvision v2.MixUp",
        "on-device loader",
        "PIL + DataLoader",
        "FGSM",
        "Square, no image falls",
        "Square, eps 8/255, torchattacks alone",
        "ours, layer4",
        "grad-cam, layer3",
    ):
        assert f"| {name} |" in text
    assert (tmp_path / "bench.md").read_text().strip() == text.strip()
    assert "103 bare forwards per image" in text, "the library asks 103 times for a budget of 100"


def test_reports_need_no_library_of_attacks_or_maps():
    """`pip install .` without the extras can make tables of records."""
    code = (
        "import sys, rmlib.study.report.report, rmlib.study.report.pages; print([name for name in ('pytorch_grad_cam',"
        " 'torchattacks', 'cv2') if name in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert answer.stdout.strip() == "[]", answer.stderr
