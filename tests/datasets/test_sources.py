"""Folders, zips and official archives: the same images are the same dataset."""

import hashlib
import os
import pickle
import shutil
import subprocess
import sys
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from rmlib import UserError
from rmlib.data import load
from rmlib.datasets import cache as cache_module
from rmlib.datasets import sources


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RMLIB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def pack(folder, target, top=""):
    with zipfile.ZipFile(target, "w") as archive:
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            archive.write(path, top + path.relative_to(folder).as_posix())
    return target


def test_folder_and_zip_are_the_same_dataset(pictures, tmp_path, cache):
    folder = load(f"folder:{pictures}")
    zipped = load(f"folder:{pack(pictures, tmp_path / 'a.zip', 'top/')}")
    assert folder.checksum == zipped.checksum and torch.equal(folder.images, zipped.images)
    assert folder.classes == ("blue moon", "green", "red") and folder.images.shape == (60, 3, 8, 12)
    assert folder.labels.tolist() == [0] * 20 + [1] * 20 + [2] * 20
    order = [hashlib.sha256(image.numpy().tobytes()).digest() for image in folder.images]
    assert all(
        order[i] < order[i + 1] for i in range(59) if folder.labels[i] == folder.labels[i + 1]
    )
    first = np.asarray(Image.open(pictures / "train" / "green" / "0.png")).transpose(2, 0, 1)
    assert any(np.array_equal(first, image) for image in folder.images[20:40].numpy()), (
        "pixels are as stored"
    )


def test_file_names_do_not_matter_and_pixels_do(pictures, tmp_path, cache):
    other = shutil.copytree(pictures, tmp_path / "other")
    for i, path in enumerate(sorted((other / "train" / "red").iterdir(), reverse=True)):
        path.rename(path.with_name(f"renamed {i}.png"))
    assert load(f"folder:{other}").checksum == load(f"folder:{pictures}").checksum
    Image.new("RGB", (12, 8)).save(other / "train" / "red" / "renamed 0.png")
    assert load(f"folder:{other}").checksum != load(f"folder:{pictures}").checksum


def test_moved_and_renamed_classes_are_noticed(pictures, tmp_path, cache):
    other = shutil.copytree(pictures, tmp_path / "other")
    before = load(f"folder:{other}")
    (other / "train" / "red" / "19.png").rename(other / "train" / "green" / "x19.png")
    moved = load(f"folder:{other}")
    assert (
        torch.bincount(moved.labels).tolist() == [20, 21, 19] and moved.checksum != before.checksum
    )
    for split in ("train", "test"):
        (other / split / "red").rename(other / split / "crimson")
    assert load(f"folder:{other}").classes == ("blue moon", "crimson", "green")


def test_a_cache_without_one_of_its_arrays_is_made_again(pictures, cache, capsys):
    before = load(f"folder:{pictures}")
    (stored,) = cache.iterdir()
    with np.load(stored) as archive:
        arrays = dict(archive)
    for name in arrays:
        np.savez(stored, **{key: array for key, array in arrays.items() if key != name})
        assert load(f"folder:{pictures}").checksum == before.checksum
        assert "damaged" in capsys.readouterr().err, name
    load(f"folder:{pictures}")
    assert capsys.readouterr().err == ""


def test_a_flipped_bit_in_a_cache_is_found(tmp_path, capsys):
    """In every byte but those of dates and the like, which change no array."""
    path, arrays = tmp_path / "a.npz", {"a": np.arange(24).reshape(6, 4), "b": np.array("text")}
    cache_module.write(path, arrays)
    whole = path.read_bytes()
    damaged = 0
    for place in range(len(whole)):
        content = bytearray(whole)
        content[place] ^= 1 << place % 8
        path.write_bytes(content)
        found = cache_module.read(path)
        damaged += found is None
        if found is not None:
            assert found.keys() == arrays.keys(), place
            assert all(np.array_equal(found[name], arrays[name]) for name in arrays), place
    assert damaged > len(whole) / 2
    assert "damaged" in capsys.readouterr().err


WRITING = """
import sys, numpy as np
from rmlib.datasets import sources
def stop(file, **_):
    file.write(b"half")
    file.flush()
    print("writing", flush=True)
    sys.stdin.read()
np.savez = stop
sources.read(sys.argv[1])
"""


def test_what_a_killed_process_left_in_the_cache_is_cleared(pictures, cache):
    """By the next that loads anything; what another process is writing stays."""
    command = [sys.executable, "-c", WRITING, f"folder:{pictures}"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as writing:
        assert writing.stdout.readline() == "writing\n"
        (half,) = cache.iterdir()
        for _ in range(2):
            load(f"folder:{pictures}")
            assert half.exists()
        writing.kill()
        writing.wait()
    load(f"folder:{pictures}")
    assert not half.exists() and len(list(cache.iterdir())) == 1


def test_an_image_changed_in_place_is_decoded_again(pictures, tmp_path, cache):
    """Also where size and time stay, as with two files of one archive that change names."""
    other = shutil.copytree(pictures, tmp_path / "other")
    paths = [other / "train" / label / "0.png" for label in ("red", "green")]
    for path in paths:
        Image.open(path).save(path.with_suffix(".bmp"))
        path.unlink()
    red, green = (path.with_suffix(".bmp") for path in paths)
    for path in (red, green):
        os.utime(path, (1, 1))
    before = load(f"folder:{other}").checksum
    red.rename(tmp_path / "aside")
    green.rename(red)
    (tmp_path / "aside").rename(green)
    assert load(f"folder:{other}").checksum != before


def test_the_cache_is_used_and_optional(pictures, cache, monkeypatch, capsys):
    load(f"folder:{pictures}")
    monkeypatch.setattr(sources, "decode", lambda *_: pytest.fail("decoded although cached"))
    load(f"folder:{pictures}")
    monkeypatch.undo()
    blocked = cache.parent / "a file"
    blocked.write_text("")
    monkeypatch.setenv("RMLIB_CACHE", str(blocked / "cache"))
    assert len(load(f"folder:{pictures}")) == 60
    assert "not cached" in capsys.readouterr().err


def tiny_imagenet(root, classes=3, train=4, val=2):
    """A miniature in the official layout; the pixels of an image carry its class."""
    top, rng = root / "tiny-imagenet-200", np.random.default_rng(0)
    wnids = [
        f"n0{9 - i}" for i in range(classes)
    ]  # not in alphabetical order, as in the official file
    (top / "val" / "images").mkdir(parents=True)
    (top / "wnids.txt").write_text("\n".join(wnids))

    def picture(path, label):
        pixels = rng.integers(0, 50, (64, 64, 3), dtype=np.uint8) + np.uint8(60 * label)
        Image.fromarray(pixels).save(path, quality=95)

    rows = []
    for label, wnid in enumerate(wnids):
        folder = top / "train" / wnid / "images"
        folder.mkdir(parents=True)
        for i in range(train):
            picture(folder / f"{wnid}_{i}.JPEG", label)
        (folder.parent / f"{wnid}_boxes.txt").write_text(
            "".join(f"{wnid}_{i}.JPEG\t{i}\t2\t{40 + i}\t63\n" for i in range(train))
        )
        for _ in range(val):
            name = f"val_{len(rows)}.JPEG"
            picture(top / "val" / "images" / name, label)
            rows.append(f"{name}\t{wnid}\t0\t{label}\t62\t63\n")
    (top / "val" / "val_annotations.txt").write_text("".join(rows))
    return top


@pytest.mark.parametrize("zipped", [False, True])
def test_tiny_imagenet_in_its_official_layout(tmp_path, cache, zipped):
    top = tiny_imagenet(tmp_path)
    if zipped:
        pack(top, tmp_path / "tiny-imagenet-200.zip", "tiny-imagenet-200/")
        shutil.rmtree(top)
    with pytest.raises(UserError, match="incomplete.*allow_partial"):
        load("tiny-imagenet", tmp_path)
    train, test = (
        load("tiny-imagenet", tmp_path, split, allow_partial=True) for split in ("train", "test")
    )
    assert train.classes == ("n07", "n08", "n09") and len(train) == 12
    assert test.labels.tolist() == [
        0,
        0,
        1,
        1,
        2,
        2,
    ], "val labels come from val_annotations.txt, not from the folder"
    brightness = test.images.double().mean((1, 2, 3)).view(3, 2)
    assert brightness.diff(dim=0).max() < -30, "labels belong to their images"
    assert sorted(train.boxes[train.labels == 0].tolist()) == [
        [i, 2, 41 + i, 64] for i in range(4)
    ], "boxes are half open"
    assert test.boxes[4].tolist() == [0, 0, 63, 64]


def test_official_cifar_pickles(tmp_path, cache, monkeypatch):
    import torchvision

    rng, folder = np.random.default_rng(0), tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    names = ["airplane", "bird"]
    contents = {"data_batch_1": (6, [1, 0, 1, 0, 1, 0]), "test_batch": (2, [0, 1])}
    kind, listed = torchvision.datasets.CIFAR10, {}
    for name, (count, labels) in contents.items():
        data = {"data": rng.integers(0, 256, (count, 3072), dtype=np.uint8), "labels": labels}
        (folder / name).write_bytes(pickle.dumps(data))
        listed[name] = [name, hashlib.md5((folder / name).read_bytes()).hexdigest()]
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": names}))
    monkeypatch.setattr(kind, "train_list", [listed["data_batch_1"]])
    monkeypatch.setattr(kind, "test_list", [listed["test_batch"]])
    monkeypatch.setattr(
        kind,
        "meta",
        kind.meta | {"md5": hashlib.md5((folder / "batches.meta").read_bytes()).hexdigest()},
    )
    data = load("cifar10", tmp_path, "test", allow_partial=True)
    stored = pickle.loads((folder / "test_batch").read_bytes())["data"].reshape(2, 3, 32, 32)
    assert data.classes == ("airplane", "bird") and np.array_equal(data.images.numpy(), stored)
    with tarfile.open(tmp_path / "cifar-10-python.tar.gz", "w:gz") as archive:
        archive.add(folder, folder.name)
    shutil.rmtree(folder)
    shutil.rmtree(cache)
    assert load("cifar10", tmp_path, "test", allow_partial=True).checksum == data.checksum
    (folder / "test_batch").write_bytes(b"broken")
    shutil.rmtree(cache)
    with pytest.raises(UserError, match="cannot be read"):
        load("cifar10", tmp_path, allow_partial=True)


@pytest.mark.parametrize(
    "prepare, name, words",
    [
        (lambda p: None, "cifar10", "put cifar10.zip or cifar-10-python.tar.gz there"),
        (lambda p: None, "cifar-10", "did you mean 'cifar10'"),
        (lambda p: None, "folder:{p}/nowhere", "there is no folder or zip"),
        (
            lambda p: (p / "cifar10.zip").write_bytes(b"PK\x03\x04 broken"),
            "cifar10",
            "cifar10.zip cannot be read",
        ),
        (lambda p: (p / "empty").mkdir(), "folder:{p}/empty", "train/CLASS"),
    ],
)
def test_missing_and_broken_data_get_one_clear_line(tmp_path, cache, prepare, name, words):
    prepare(tmp_path)
    with pytest.raises(UserError, match=words) as error:
        load(name.replace("{p}", str(tmp_path)), tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("given", ["~nosuch", "~nosuch/data"])
def test_a_home_of_nobody_is_no_folder_of_datasets(given):
    with pytest.raises(UserError, match="home of a user who is not known"):
        load("cifar10", given)
