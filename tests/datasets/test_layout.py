"""Folders and zips in every shape: what is used, and that the rest is said or refused."""

import os
import shutil
import stat
import unicodedata
import zipfile

import numpy as np
import pytest
from PIL import Image

from rmlib import UserError
from rmlib.data import load
from rmlib.datasets import sources
from rmlib.study.cli import main


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RMLIB_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def make(tmp_path):
    """A folder of files: an image for every name that ends like one, each with its own pixels."""
    number = iter(range(1, 10_000))

    def make(*names, root="pets"):
        for name in names:
            path = tmp_path / root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix == ".png":
                pixels = np.full((4, 6, 3), next(number) % 256, np.uint8)
                pixels[0, 0] = next(number) // 256
                Image.fromarray(pixels).save(path)
            else:
                path.write_text("no image")
        return tmp_path / root

    return make


FOLDERS = ("train/cat", "train/dog", "test/cat", "test/dog")
PETS = [f"{folder}/{i}.png" for folder in FOLDERS for i in (1, 2)]
ONE = ["train/cat/1.png", "train/dog/1.png"]


def pack(folder, target, rename=lambda name: name):
    with zipfile.ZipFile(target, "w") as archive:
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            archive.writestr(rename(path.relative_to(folder).as_posix()), path.read_bytes())
    return target


def both(folder, capsys):
    """(classes, images of train and test, notes) of a folder, and that its zip has the same."""
    found = []
    for path in (folder, pack(folder, folder.with_suffix(".zip"))):
        train, test = load(f"folder:{path}"), load(f"folder:{path}", split="test")
        notes = capsys.readouterr().err.replace(f"folder:{path}: ", "")
        found.append((train.classes, len(train), len(test), notes, train.checksum))
    assert found[0] == found[1]
    return found[0][:4]


def test_a_plain_folder_has_nothing_to_say(make, capsys):
    assert both(make(*PETS), capsys) == (("cat", "dog"), 4, 4, "")


def test_val_is_used_beside_a_test_without_labels(make, capsys):
    labelled = [name.replace("test", "val") for name in PETS]
    for unlabelled in ("test/images/7.png", "test/7.png"):
        shutil.rmtree(make(), ignore_errors=True)
        classes, train, test, notes = both(make(*labelled, unlabelled), capsys)
        assert (classes, train, test) == (("cat", "dog"), 4, 4)
        assert "val is used, as test has no labelled images" in notes and unlabelled in notes


def test_only_a_test_without_labels_is_refused(make):
    with pytest.raises(UserError, match="no labelled test images.*like those of train"):
        load(f"folder:{make(*ONE, 'test/images/1.png')}")


def test_a_val_that_is_not_used_is_said(make, capsys):
    *_, train, test, notes = both(make(*PETS, "val/cat/9.png"), capsys)
    assert (train, test) == (4, 4)
    assert notes == "val: 1 skipped, as test is used (val/cat/9.png)\n"


@pytest.mark.parametrize(
    "train, test",
    [
        ("Train", "TEST"),
        ("training", "validation"),
        ("TRAINING", "valid"),
        ("train_set", "Testing"),
        ("training_set", "Val"),
    ],
)
def test_splits_by_other_spellings(make, capsys, train, test):
    names = [name.replace("train", train).replace("test", test) for name in PETS]
    assert both(make(*names), capsys) == (("cat", "dog"), 4, 4, "")
    assert main(["data", f"folder:{make()}"]) == 0
    table = capsys.readouterr().out
    assert f"train  {train} " in table and f"test   {test} " in table


def test_two_spellings_of_a_split_are_refused(make):
    with pytest.raises(UserError, match="has Train and train, both for train: keep one"):
        load(f"folder:{make(*PETS, 'Train/cat/1.png')}")


def test_classes_are_those_of_train(make, capsys):
    classes, train, test, notes = both(make(*PETS, "test/wolf/1.png", "train/fox/1.png"), capsys)
    assert (classes, train, test) == (("cat", "dog", "fox"), 5, 4)
    assert "test: 1 skipped, of no class of train (test/wolf/1.png)" in notes
    assert "test: 1 classes of train without an image (fox)" in notes


@pytest.mark.parametrize(
    "name, other",
    [("cat", "Cat"), ("cat", "CAT"), ("café", unicodedata.normalize("NFD", "café")), ("ß", "SS")],
)
def test_one_class_spelled_in_two_ways(make, capsys, name, other):
    names = [f"train/{name}/1.png", "train/zebra/1.png", f"test/{other}/1.png", "test/zebra/1.png"]
    classes, _, test, notes = both(make(*names), capsys)
    assert classes == tuple(sorted([unicodedata.normalize("NFC", name), "zebra"])) and test == 2
    assert notes == f"test: 1 folders not named as the class (test/{other}: {name})\n"
    with pytest.raises(UserError, match="only in spelling: rename or merge"):
        load(f"folder:{make(f'train/{other}/2.png')}")


def test_hidden_and_system_files_are_no_classes_and_no_images(make, capsys):
    junk = [".ipynb_checkpoints/1.png", "cat/.ipynb_checkpoints/1.png", "cat/._1.png", "Thumbs.db"]
    junk += [
        "cat/Thumbs.db",
        "cat/.DS_Store",
        "__MACOSX/cat/1.png",
        "dog/desktop.ini",
        "@eaDir/1.png",
    ]
    beside = ["__MACOSX/train/cat/1.png", ".git/train/cat/1.png"]
    folder = make(*PETS, *beside, *[f"train/{name}" for name in junk])
    classes, train, test, notes = both(folder, capsys)
    assert (classes, train, test) == (("cat", "dog"), 4, 4)
    assert f"train: {len(junk)} skipped, hidden or of the system" in notes
    assert "2 skipped, hidden or of the system (.git, __MACOSX)" in notes


def test_deeper_images_belong_to_their_class(make, capsys):
    classes, train, _, notes = both(make(*PETS, "train/cat/a/b/7.png", "train/cat/a/8.png"), capsys)
    assert (classes, train) == (("cat", "dog"), 6)
    deeper = "train: 2 deeper than the folder of their class"
    assert notes == f"{deeper} (train/cat/a/8.png, train/cat/a/b/7.png)\n"


def test_every_other_file_is_counted_and_named(make, capsys):
    odd = ["train/1.png", "train/cat/notes.txt", "train/labels.csv", "README.md", "all/cat/3.png"]
    *_, train, test, notes = both(make(*PETS, *odd, *[f"test/dog/{i}" for i in "abcd"]), capsys)
    assert (train, test) == (4, 4)
    assert notes.splitlines() == [
        "2 skipped, outside train, test and val (README.md, all)",
        "test: 4 skipped, not an image by the ending (test/dog/a, test/dog/b, test/dog/c, ...)",
        "train: 2 skipped, not an image by the ending (train/cat/notes.txt, train/labels.csv)",
        "train: 1 skipped, without the folder of a class (train/1.png)",
    ]
    assert main(["data", f"folder:{make()}"]) == 0
    table = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert " ".join(table[0]) == "split folder classes images per class size modes skipped"
    assert " ".join(table[1]).startswith("train train 2 4 2 to 2 4 x 6 4 RGB 1 without")
    assert "4 not an image by the ending" in " ".join(table[2])
    assert "2 outside train, test and val" in " ".join(table[3])


def test_one_folder_around_the_splits_and_no_more(make, capsys):
    names = [f"fold1/{name}" for name in PETS]
    assert both(make(*names), capsys) == (("cat", "dog"), 4, 4, "")
    *_, notes = both(make("notes/a.txt", "fold1/notes.txt", "fold1/.x"), capsys)
    assert "2 skipped, outside train, test and val (fold1/notes.txt, notes)" in notes
    folder = make(*[f"fold2/{name}" for name in PETS])
    for path in (folder, pack(folder, folder.with_suffix(".zip"))):
        with pytest.raises(
            UserError, match=r"splits in several folders \(fold1, fold2\): name one"
        ):
            load(f"folder:{path}")
    assert len(load(f"folder:{folder / 'fold2'}")) == 4


@pytest.mark.parametrize(
    "names, words",
    [
        (["train/cat/1.png", "test/cat/1.png"], "one class only .cat."),
        (["test/cat/1.png", "test/dog/1.png"], "no training images.*train/CLASS"),
        (
            ["train/cat/1.txt", "train/dog/1.txt", *PETS[4:]],
            "2 skipped, not an image by the ending",
        ),
        ([*PETS, "train/fox/1.txt"], "train/fox has no images: fill it or take it away"),
        (["a/b/train/cat/1.png", "a/b/test/cat/1.png"], "no training images"),
        (["cat/1.png", "dog/1.png"], "2 skipped, outside train, test and val .cat, dog."),
    ],
)
def test_what_is_no_dataset_is_refused_in_one_line(make, names, words):
    folder = make(*names)
    for path in (folder, pack(folder, folder.with_suffix(".zip"))):
        with pytest.raises(UserError, match=words) as error:
            load(f"folder:{path}")
        assert "\n" not in str(error.value)


def test_the_empty_folder_of_a_class_is_refused(make, tmp_path):
    folder = make(*PETS)
    (folder / "train/fox").mkdir()
    with zipfile.ZipFile(pack(folder, tmp_path / "a.zip"), "a") as archive:
        archive.mkdir("train/fox")
    for path in (folder, tmp_path / "a.zip"):
        with pytest.raises(UserError, match="fox has no images"):
            load(f"folder:{path}")


def test_links_are_followed(make, tmp_path):
    plain = load(f"folder:{make(*PETS)}")
    linked = make("train/dog/x.png", "test/x.txt", root="linked")
    shutil.rmtree(linked / "train/dog")
    (linked / "test").rename(linked / "beside")
    (linked / "train/cat").symlink_to(make() / "train/cat")
    (linked / "train/dog").mkdir()
    for i in (1, 2):
        (linked / f"train/dog/{i}.png").symlink_to(make() / f"train/dog/{i}.png")
    (linked / "test").symlink_to(make() / "test")
    (tmp_path / "entry").symlink_to(linked)
    for path in (linked, tmp_path / "entry"):
        assert load(f"folder:{path}").checksum == plain.checksum


def test_loops_and_links_to_nothing_are_said(make, capsys):
    folder = make(*PETS)
    (folder / "train/cat/loop").symlink_to(folder / "train")
    (folder / "train/dog/up").symlink_to(folder)
    (folder / "train/dog/self").symlink_to("self")
    (folder / "train/dog/gone.png").symlink_to("nowhere.png")
    os.mkfifo(folder / "train/dog/pipe.png")
    assert len(load(f"folder:{folder}")) == 4
    notes = capsys.readouterr().err
    again = "a link to a folder that is above it or read already (train/cat/loop, train/dog/up)"
    assert f"train: 2 skipped, {again}" in notes
    nothing = "train/dog/gone.png, train/dog/pipe.png, train/dog/self"
    assert f"train: 3 skipped, a link to nothing, or no file ({nothing})" in notes


def test_an_image_with_its_twin_in_another_split_is_told(make, capsys):
    folder = make(*PETS)
    shutil.copy(folder / "train/cat/1.png", folder / "test/dog/x.png")
    # other bytes, the same pixels
    Image.open(folder / "train/dog/2.png").save(folder / "test/dog/2.png", compress_level=0)
    *_, notes = both(folder, capsys)
    pairs = "test/dog/2.png = train/dog/2.png, test/dog/x.png = train/cat/1.png"
    assert notes == f"test: 2 also in train, pixel for pixel ({pairs})\n"
    shutil.copy(folder / "test/cat/1.png", folder / "test/cat/3.png")
    shutil.copy(folder / "train/cat/1.png", folder / "train/dog/3.png")
    *_, notes = both(folder, capsys)
    assert "train: 1 also in train, pixel for pixel (train/dog/3.png = train/cat/1.png)" in notes
    assert "test: 1 also in test, pixel for pixel (test/cat/3.png = test/cat/1.png)" in notes
    assert f"test: 2 also in train, pixel for pixel ({pairs})" in notes
    assert load(f"folder:{folder}") and capsys.readouterr().err == "", "once in a process"
    assert main(["data", f"folder:{folder}"]) == 0 and pairs in capsys.readouterr().out


def test_zips_of_other_tools(make, tmp_path, capsys):
    folder = make(*PETS)
    plain = load(f"folder:{folder}").checksum
    for i, rename in enumerate(
        [
            lambda name: name.replace("/", "\\"),
            lambda name: f"./{name}",
            lambda name: f"top//{name}",
            lambda name: f"Top\\{name}",
        ]
    ):
        path = pack(folder, tmp_path / f"{i}.zip", rename)
        assert load(f"folder:{path}").checksum == plain and capsys.readouterr().err == ""


def test_names_that_leave_a_zip_links_and_doubles_are_said(make, tmp_path, capsys):
    folder = make(*PETS)
    path = pack(folder, tmp_path / "a.zip")
    image = (folder / "train/cat/1.png").read_bytes()
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        for name in ("/train/cat/x.png", "../train/cat/y.png", "C:\\train\\cat\\z.png"):
            archive.writestr(name, image)
        archive.writestr("train/dog/1.png", image)
        link = zipfile.ZipInfo("train/dog/link.png")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "1.png")
    data = load(f"folder:{path}")
    notes = capsys.readouterr().err
    assert len(data) == 4 and (data.images[:, 0, 0, 0] == 0).all()
    assert "3 skipped, a name outside the zip (../train/cat/y.png, /train/cat/x.png, " in notes
    assert "train: 1 skipped, a link in a zip (train/dog/link.png)" in notes
    assert "train: 1 skipped, a file that the zip holds twice (train/dog/1.png (earlier))" in notes


def test_names_that_are_no_text(make):
    folder = make(*PETS)
    shutil.copy(folder / "train/cat/1.png", os.fsencode(folder) + b"/train/cat/\xff\n.png")
    assert len(load(f"folder:{folder}")) == 5
    os.rename(folder / "train/cat", os.fsencode(folder) + b"/train/c\xff")
    with pytest.raises(UserError, match=r"train/c\\udcff is no name of a class: rename it"):
        load(f"folder:{folder}")


def test_a_folder_is_read_once(make, monkeypatch):
    folder, read = make(*PETS, "all/cat/1.png"), []
    scan = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: read.append(os.fspath(path)) or scan(path))
    sources.read(f"folder:{folder}")
    inside = sorted(os.path.relpath(path, folder) for path in read)
    splits = [f"{split}{name}" for split in ("test", "train") for name in ("", "/cat", "/dog")]
    assert [path for path in inside if path != "."] == splits


def test_a_folder_that_cannot_be_read_is_named(make, monkeypatch):
    folder, scan = make(*PETS), os.scandir

    def refusing(path):
        if os.fspath(path).endswith("train/dog"):
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(UserError, match="train/dog cannot be read .Permission denied."):
        load(f"folder:{folder}")


@pytest.mark.parametrize(
    "name", ["folder:./~nosuch/x", "folder:", "folder:a\0b", "folder:" + "x" * 999]
)
def test_folders_that_cannot_be(name):
    with pytest.raises(UserError, match="there is no folder or zip"):
        load(name)
