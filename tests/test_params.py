import subprocess
import sys

import numpy as np
import pytest

from rmlib import UserError
from rmlib.params import ADDED, TrainParams, complete, config_id, eps_text
from rmlib.paths import runs_dir
from rmlib.study.settings import NOTEBOOKS, check, parse


@pytest.mark.parametrize(
    "value, expected",
    [("8/255", 8 / 255), (" 1 / 4 ", 0.25), ("1e-3", 1e-3), (1, 1.0), ("0.5", 0.5)],
)
def test_numbers_as_papermill_and_yaml_deliver_them(value, expected):
    assert parse("02_training", {"lr": value}).lr == pytest.approx(expected)


@pytest.mark.parametrize(
    "values, words",
    [
        ({"epochss": 3}, "unknown parameter 'epochss': did you mean 'epochs'"),
        ({"mixer": "regionmixup"}, "mixer='regionmixup': did you mean 'region_mixup'"),
        ({"mixer": "CutMix"}, "did you mean 'cutmix'"),
        ({"dataset": "cifar-100"}, "did you mean 'cifar100'"),
        ({"lr": "fast"}, "lr='fast'.*number"),
        ({"lr": "1/0"}, "lr='1/0'"),
        ({"lr": float("nan")}, "lr=nan"),
        ({"alpha": 0}, "alpha=0.*greater than 0"),
        ({"epochs": True}, "epochs=True: expected a number"),
        ({"epochs": 2.5}, "epochs=2.5"),
        ({"snapshots": 3}, "snapshots=3"),
        ({"snapshots": [9], "epochs": 3}, "epoch 9 is not in 1..3"),
        ({"milestones": [100, 150]}, "shares of the schedule"),
        ({"mixer": "mixup", "k": 4}, "k=4 does nothing for mixer 'mixup'"),
        ({"mixer": "none", "alpha": 0.2}, "alpha=0.2 does nothing"),
        ({"cutmix_prob": 0.5}, "belongs to 'cutmix'"),
        ({"milestones": [0.5, 0.25]}, "growing shares of the schedule"),
        ({"milestones": [0.25, 0.25]}, "growing shares of the schedule"),
        ({"alpha": 1e-320}, "alpha=1e-320: expected 1e-300"),
        ({"alpha": None}, "alpha=None.*number"),
        ({"epochs": None}, "epochs=None.*integer"),
        ({"epochs": np.True_}, "epochs=.*expected a number"),
        ({"seed": 2**63}, "seed=9223372036854775808: expected at most 9223372036854775807"),
        ({"seed": 10**5000}, "seed=a number of thousands of digits"),
        ({"seed": "9" * 5000}, r"seed='9+\.\.\. \(5002 characters\)"),
        ({"lr": "9" * 400 + "/1"}, "lr=.*8/255"),
        ({"lr": 1e39}, "lr=1e.39: input should be less than or equal to"),
        ({"weight_decay": 1e300}, "weight_decay=1e.300"),
        ({"threads": 10**6}, "threads=1000000"),
        ({"width": 10**9}, "width=1000000000"),
        ({"mixer": 10**5000}, "mixer=a number of thousands.*expected one of"),
        ({"mixer": "x" * 10**6}, "mixer=.*expected one of"),
        ({"snapshots": ["x"] * 50}, "snapshots='x'"),
        ({"dataset": "folder:"}, "folder:PATH"),
        ({"dataset": "my/images"}, "did you mean 'folder:my/images'?"),
        ({"dataset": "folder:/"}, "a name at its end"),
        ({"dataset": "folder:a/.zip"}, "a name at its end"),
        ({"dataset": "folder:a/~b"}, "does not begin with ~"),
        ({"dataset": "folder:~nosuch/x"}, "user who is not known here"),
        ({"out": "~nosuch/x"}, "out='~nosuch/x'.*user who is not known here"),
        ({"root": "~nosuch"}, "root='~nosuch'.*not known here"),
        ({"device": "gpu"}, "device='gpu'.*expected one of|did you mean"),
    ],
)
def test_mistakes_name_value_and_remedy(values, words):
    with pytest.raises(UserError, match=words) as error:
        parse("02_training", values)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


def test_a_size_of_perturbation_is_read_at_once():
    """Fraction would write out every zero of such an exponent."""
    for text in ("1e999999999", "inf", "nan", "1" * 5000, None):
        with pytest.raises(UserError, match="scale of pixels"):
            parse("03_robustness", {"eps": [text]})
    assert eps_text("1e-999999999") == "0" and eps_text("0.1") == "0.1"
    assert eps_text(8 / 255) == eps_text("8 / 255") == "8/255"


def test_home_means_the_same_in_every_path(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    params = TrainParams(out="~/runs", root="~/data", dataset="folder:~/pets")
    assert params.folder.parent == tmp_path / "runs" and params.root == str(tmp_path / "data")
    assert params.run_id == TrainParams(dataset="folder:elsewhere/pets").run_id
    assert parse("04_cam", {"runs": "~"}).runs == str(tmp_path)
    assert TrainParams(out="./runs/").out == "./runs/", "all else stays as it was written"
    monkeypatch.setenv("RMLIB_RUNS", "~/all")
    assert runs_dir() == tmp_path / "all"


def test_a_folder_is_called_by_its_name_wherever_one_stands(monkeypatch, tmp_path):
    """So that the configuration of every run can be read back."""
    (tmp_path / "pets" / "deep").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "pets")
    named = {"folder:.", "folder:./", "folder:deep/..", "folder:../pets", f"folder:{tmp_path}/pets"}
    configs = [TrainParams(dataset=name).config for name in named]
    assert all(config["dataset"] == "folder:pets" for config in configs)
    assert TrainParams(**configs[0]).config == configs[0]


def test_of_somebodys_own_images_none_is_left_out_unasked():
    """The default depends on the dataset; what is named is kept, as in every record."""
    own = {"dataset": "folder:pets"}
    assert parse("02_training", own).train_images is None
    assert parse("02_training", own | {"train_images": "2000"}).train_images == 2000
    assert TrainParams(dataset="cifar10").train_images == TrainParams().train_images == 2000
    for params in (TrainParams(**own), TrainParams(**own, train_images=2000)):
        assert TrainParams(**params.config).run_id == params.run_id


def test_all_mistakes_are_told_at_once():
    with pytest.raises(UserError) as error:
        parse("02_training", {"lr": "x", "epochs": 0, "seeed": 1})
    assert all(name in str(error.value) for name in ("lr", "epochs", "seeed"))


def test_unknown_notebook():
    with pytest.raises(UserError, match="did you mean '02_training'"):
        parse("2_training", {})


IMPORTS, DEFAULTS, CHECK = (
    "import torch",
    "# of Beta\nalpha = 1.0\nseed = 0",
    'settings.check("01_method", globals())',
)


def test_check_reads_the_parameter_cells_of_a_notebook():
    namespace = {
        "__name__": "__main__",
        "_dh": ["x"],
        "Out": {},
        "torch": sys,
        "seed": 3,
        "alpha": "1/2",
    }
    injected = "# Parameters\nseed = 3\nalpha = '1/2'"
    params = check("01_method", namespace | {"In": ["", IMPORTS, DEFAULTS, injected, CHECK]})
    assert params.seed == 3 and params.alpha == 0.5
    with pytest.raises(UserError, match="unknown parameter 'sed': did you mean 'seed'"):
        check(
            "01_method",
            namespace | {"sed": 3, "In": ["", IMPORTS, DEFAULTS, "# Parameters\nsed = 3", CHECK]},
        )
    with pytest.raises(UserError, match="unknown parameter 'alhpa'"):
        check(
            "01_method", namespace | {"alhpa": 3, "In": ["", IMPORTS, "alhpa = 3\nseed = 0", CHECK]}
        )


def test_check_can_be_run_again_when_the_notebook_has_variables_of_its_own():
    namespace = {
        "seed": 4,
        "lam": 0.7,
        "names": ["a"],
        "In": ["", IMPORTS, DEFAULTS, CHECK, "lam = 0.7", "names = list('a')", CHECK],
    }
    assert check("01_method", namespace).seed == 4
    assert check("01_method", namespace | {"In": [*namespace["In"], "seed = 4", CHECK]}).seed == 4


def test_the_run_id_follows_what_can_change_the_result():
    base = TrainParams()
    assert (
        base.run_id == TrainParams(out="elsewhere", device="cpu", max_minutes=3, root="data").run_id
    )
    ids = {
        TrainParams(**change).run_id
        for change in (
            {},
            {"seed": 1},
            {"mixer": "mixup"},
            {"epochs": 7},
            {"threads": 2},
            {"width": 16},
        )
    }
    assert len(ids) == 6


def test_a_parameter_added_later_leaves_the_older_ids_alone():
    """The ids of the committed records were made before these parameters existed; they must stay
    what they are.
    """
    base = TrainParams()
    old = {name: value for name, value in base.config.items() if name not in ADDED}
    assert old != base.config and config_id(old) == base.run_id and complete(old) == base.config
    assert all(config_id({**base.config, name: "another"}) != base.run_id for name in ADDED)
    assert all(TrainParams.model_fields[name].default == value for name, value in ADDED.items())
    assert base.run_id == "53fc4e0f59c6", (
        "the hash of the defaults is part of the format of records"
    )


def test_no_configuration_holds_a_path():
    config = TrainParams(
        dataset="folder:/somewhere/private/pets.zip", root="/private", out="/private/out"
    ).config
    assert config["dataset"] == "folder:pets" and "private" not in str(config)


def test_every_parameter_is_explained():
    for model in NOTEBOOKS.values():
        assert all(field.description for field in model.model_fields.values())


def test_runs_dir(monkeypatch, tmp_path):
    monkeypatch.setenv("RMLIB_RUNS", str(tmp_path))
    assert runs_dir() == tmp_path and TrainParams().folder.parent == tmp_path / "single"
    monkeypatch.delenv("RMLIB_RUNS")
    assert (runs_dir().parent / "notebooks").is_dir()


def test_checking_parameters_does_not_import_torch():
    code = (
        "import sys; import rmlib.params, rmlib.study.batch.batch, rmlib.study.cli;"
        " assert 'torch' not in sys.modules, 'torch was imported'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
