"""The wheel and the source archive, in an environment that has nothing else of this project."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_string
from pathlib import Path

import pytest

import rmlib
from rmlib.paths import project_root

pytestmark = pytest.mark.slow
ROOT = project_root()
# folders of a checkout that an archive is made of, beside the files
FOLDERS = ("rmlib", "tests", "notebooks", "results")
CACHES = shutil.ignore_patterns("__pycache__", ".*")


def run(*words, at, path, code=0):
    """Output of a Python that sees one folder of packages before those of the tests."""
    known = {**os.environ, "PYTHONPATH": str(path), "COLUMNS": "200"}
    # where pip, setuptools and the packages that are installed already are enough
    known |= {"PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    done = subprocess.run(
        [sys.executable, *map(str, words)], cwd=at, env=known, capture_output=True, text=True
    )
    assert done.returncode == code, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout if code == 0 else done.stderr


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Folders of the unpacked source archive and of the installed wheel that is made of it."""
    pytest.importorskip("setuptools", minversion="77")
    root = tmp_path_factory.mktemp("package")
    for name in FOLDERS:
        shutil.copytree(ROOT / name, root / "copy" / name, ignore=CACHES)
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, root / "copy")
    make = "from setuptools.build_meta import build_sdist as make; make('..')"
    run("-c", make, at=root / "copy", path=root / "none")
    (packed,) = root.glob("*.tar.gz")
    with tarfile.open(packed) as archive:
        archive.extractall(root, filter="data")
    source, site = root / f"rmlib-{rmlib.__version__}", root / "site"
    pip = "-m", "pip", "--quiet"
    make = *pip, "wheel", "--no-build-isolation", "--no-deps", "--wheel-dir", root, packed
    run(*make, at=root, path=root / "none")
    (wheel,) = root.glob("*.whl")
    # as another program would read it
    run(*pip, "install", "--no-deps", "--target", site, wheel, at=root, path=root / "none")
    return source, site, zipfile.ZipFile(wheel)


def test_the_wheel_is_the_package_and_says_what_it_is(built):
    *_, wheel = built
    names = set(wheel.namelist())
    files = {path.relative_to(ROOT).as_posix() for path in (ROOT / "rmlib").rglob("*.py")}
    assert files | {"rmlib/py.typed", "rmlib/study/report/book.css"} <= names
    about = f"rmlib-{rmlib.__version__}.dist-info/"
    assert not {name for name in names if not name.startswith(("rmlib/", about))}
    known = message_from_string(wheel.read(about + "METADATA").decode())
    needed = [each for each in known.get_all("Requires-Dist") if "extra ==" not in each]
    assert [each.split(">=")[0] for each in needed] == [
        "torch",
        "numpy",
        "platformdirs",
        "pydantic",
    ]
    assert known["Project-URL"] == "Paper, https://arxiv.org/abs/2409.15028"
    assert known["Version"] == rmlib.__version__ and "Typing :: Typed" in str(known)


CORE = """
import sys
for name in "torchvision PIL joblib pooch tqdm scipy matplotlib pandas torchattacks".split():
    sys.modules[name] = None  # not installed
sys.modules["pytorch_grad_cam"] = None
from pathlib import Path
import torch
import rmlib
from rmlib import mixers, models, data, evaluate, train
from rmlib.mixers import RegionMixup

assert Path(rmlib.__file__).is_relative_to(sys.argv[1]), rmlib.__file__
images, labels = torch.rand(8, 3, 16, 16), torch.arange(8) % 4
mixed, targets = RegionMixup(num_classes=4, k=2)(images, labels)
model = models.preact_resnet18(4, width=2)
before = model.linear.weight.clone()
optimizer = torch.optim.SGD(model.parameters(), 0.1)
torch.nn.functional.cross_entropy(model(mixed), targets).backward()
optimizer.step()
assert not torch.equal(before, model.linear.weight)
assert evaluate.predict(model, (images * 255).byte()).shape == (8, 4)

import importlib
for extra, module in [("datasets", "sources"), ("robustness", "attacks"), ("maps", "cam")]:
    try:
        importlib.import_module(f"rmlib.{extra}.{module}")
    except ImportError as error:
        assert "not installed: " in str(error) and f"pip install '.[{extra}]'" in str(error)
        assert "\\n" not in str(error) and isinstance(error, rmlib.UserError)
    else:
        raise AssertionError(extra)
try:
    data.load("shapes")
except rmlib.UserError as error:
    assert "[datasets]" in str(error)
from rmlib.__main__ import console
sys.argv = ["rmlib", "--help"]
console()
"""


def test_the_core_works_without_any_extra_and_names_those_that_are_missing(built, tmp_path):
    _, site, _ = built
    text = run("-c", CORE, site, at=tmp_path, path=site, code=1)
    line = text.strip().splitlines()[-1]
    assert line.startswith("rmlib: not installed: ") and line.count("pip install '.[study]'") == 1


FOREIGN = """
import sys
import torch, torchvision
from torch import nn
import rmlib
from rmlib.maps import cam
from rmlib.robustness import attacks

assert rmlib.__file__.startswith(sys.argv[1])
torch.manual_seed(0)
model = nn.Sequential(
    torchvision.transforms.Normalize([0.5] * 3, [0.25] * 3),
    torchvision.models.resnet18(num_classes=4),
)
images = torch.rand(4, 3, 64, 64)
labels = model.eval()(images).argmax(1)
assert attacks.evaluate(model, images, labels, "fgsm", "8/255")["clean_correct"] == 4
assert cam.maps(model, images, labels, "1.layer4").amax() > 0.99
"""


def test_a_network_of_torchvision_is_attacked_and_explained(built, tmp_path):
    _, site, _ = built
    run("-c", FOREIGN, site, at=tmp_path, path=site)


def test_the_command_finds_batches_in_the_folder_of_the_project(built, tmp_path):
    """They are in the source archive, and the wheel says so."""
    source, site, _ = built
    command, batch = site / "bin" / "rmlib", Path("notebooks/batches/quick.yaml")
    assert "batch" in run(command, "--help", at=tmp_path, path=site)
    text = run(command, "batch", batch, "--dry-run", at=tmp_path, path=site, code=1)
    remedy = "run it in the folder of the project, a checkout or its source archive"
    assert text == f"rmlib: there is no batch file {batch}; {remedy}\n"
    found = {path.name for path in (source / "notebooks/batches").glob("*.yaml")}
    assert found == {path.name for path in (ROOT / "notebooks/batches").glob("*.yaml")}
    # read and checked as a grid of this project; without the mistake it would draw the images
    words = command, "batch", batch, "--dry-run", "--set", "epochs=0"
    assert f"{batch} --set epochs=0: epochs='0'" in run(*words, at=source, path=site, code=1)


def test_the_tests_run_in_the_source_archive(built):
    """The floors and the documents, which look at every file of the project."""
    source, *_ = built
    files = "tests/test_floors.py", "tests/test_documents.py"
    words = "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", *files
    last = (
        run(*words, "-k", "file or links or floor", at=source, path=source).strip().splitlines()[-1]
    )
    assert " passed" in last and "skipped" not in last
