import hashlib
import http.server
import os
import pickle
import shutil
import threading
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from rmlib import UserError
from rmlib.data import Loader, load, rank_in_class, stream
from rmlib.datasets import shapes, sources
from rmlib.datasets.download import download
from rmlib.mixers import NoMix, RegionMixup


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RMLIB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def pack(folder, target, top=""):
    with zipfile.ZipFile(target, "w") as archive:
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            archive.write(path, top + path.relative_to(folder).as_posix())
    return target


# ----------------------------------------------------------------------------------------------
# shapes


def test_shapes_are_deterministic_balanced_and_marked():
    images, labels, masks = shapes.draw_images("train", 0, 200)
    again, _, _ = shapes.draw_images("train", 100, 200)
    assert np.array_equal(images[100:], again), (
        "an image does not depend on what was drawn before it"
    )
    assert not np.array_equal(images[:100], shapes.draw_images("test", 0, 100)[0])
    assert not np.array_equal(images[:10], shapes.draw_images("train", 0, 10, seed=1)[0])
    assert np.bincount(labels).tolist() == [20] * 10
    assert images.shape == (200, 3, 32, 32) and images.dtype == np.uint8
    assert (masks.sum((1, 2)) > 60).all(), "every figure is there"
    boxes = sources._mask_boxes(masks)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes):
        assert mask[y1:y2, x1:x2].sum() == mask.sum() and mask[y1].any() and mask[:, x2 - 1].any()


def linear_accuracy(features, labels, test_features, test_labels):
    """Test accuracy of ridge regression on one-hot targets, in percent."""
    mean, std = features.mean(0), features.std(0) + 1e-6
    x, z = ((f - mean) / std for f in (features, test_features))
    x, z = (np.concatenate([f, np.ones((len(f), 1))], axis=1) for f in (x, z))
    weights = np.linalg.solve(x.T @ x + 100 * np.eye(x.shape[1]), x.T @ np.eye(10)[labels])
    return 100 * np.mean((z @ weights).argmax(1) == test_labels)


def test_no_single_property_of_shapes_tells_the_class():
    train, test = (
        load("shapes", split=split).subset(count)
        for split, count in (("train", 5000), ("test", 2000))
    )

    def accuracy(feature):
        return linear_accuracy(
            feature(train), train.labels.numpy(), feature(test), test.labels.numpy()
        )

    def position_and_size(data):
        boxes, masks = data.boxes.numpy().astype(float), data.masks.numpy()
        centre = np.stack([boxes[:, 0] + boxes[:, 2], boxes[:, 1] + boxes[:, 3]], 1)
        return np.concatenate([centre, centre**2, masks.mean((1, 2))[:, None]], 1)

    def colour(data):
        pixels = data.images.numpy().astype(np.float32) / 255
        return np.concatenate(
            [
                pixels.mean((2, 3)),
                pixels.std((2, 3)),
                np.percentile(pixels, [5, 50, 95], axis=(2, 3))
                .transpose(1, 2, 0)
                .reshape(len(pixels), -1),
            ],
            1,
        )

    def texture(data):
        """Differences between neighbours both of which lie on the figure, in four directions."""
        grey, masks = data.images.numpy().mean(1), data.masks.numpy()
        inner = masks.copy()  # without the border, whose pixels are blended with the background
        for axis in (1, 2):
            for step in (-1, 1):
                inner &= np.roll(masks, step, axis)
        masks, features = inner, []
        for y, x in ((0, 1), (1, 0), (1, 1), (0, 2)):
            pairs = masks[:, y:, x:] & masks[:, : 32 - y, : 32 - x]
            steps = np.abs(grey[:, y:, x:] - grey[:, : 32 - y, : 32 - x]) * pairs
            features.append(steps.sum((1, 2)) / pairs.sum((1, 2)).clip(1))
        return np.stack(features, 1)

    def pixels(data):
        return data.images.numpy().reshape(len(data), -1) / 255.0

    assert accuracy(position_and_size) < 25  # chance is 10
    assert accuracy(colour) < 20
    assert accuracy(texture) < 20
    assert accuracy(pixels) < 35

    def outline(data):
        """The mask, cut to its box and brought to 12 x 12."""
        grids = []
        for mask, (x1, y1, x2, y2) in zip(data.masks.numpy(), data.boxes.tolist()):
            rows, columns = (
                np.linspace(y1, y2 - 1, 12).round().astype(int),
                np.linspace(x1, x2 - 1, 12).round().astype(int),
            )
            grids.append(mask[np.ix_(rows, columns)].ravel())
        return np.array(grids, dtype=float)

    assert accuracy(outline) > 90, "the outline does tell the class, and this test could see it"


# ----------------------------------------------------------------------------------------------
# reading


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


def test_val_counts_where_there_is_no_test_and_hidden_files_never(pictures, tmp_path, cache):
    other = shutil.copytree(pictures, tmp_path / "other")
    shutil.copytree(other / "test", other / "val")
    (other / "train" / "red" / "._0.png").write_bytes(b"left by a file manager")
    assert len(load(f"folder:{other}", split="test")) == 30 and len(load(f"folder:{other}")) == 60
    shutil.rmtree(other / "test")
    assert len(load(f"folder:{other}", split="test")) == 30


def test_a_damaged_cache_is_rebuilt(pictures, cache, capsys):
    name = f"folder:{pictures}"
    before = load(name)
    (stored,) = cache.iterdir()
    content = bytearray(stored.read_bytes())
    content[len(content) // 3] ^= 255
    stored.write_bytes(content)
    assert torch.equal(load(name).images, before.images) and "damaged" in capsys.readouterr().err
    stored.write_bytes(b"<html>")
    assert load(name).checksum == before.checksum
    assert load(name).checksum == before.checksum and "damaged" in capsys.readouterr().err
    assert capsys.readouterr().err == ""


def test_the_cache_is_used_and_optional(pictures, cache, monkeypatch, capsys):
    load(f"folder:{pictures}")
    monkeypatch.setattr(sources, "_decode", lambda *_: pytest.fail("decoded although cached"))
    load(f"folder:{pictures}")
    monkeypatch.undo()
    blocked = cache.parent / "a file"
    blocked.write_text("")
    monkeypatch.setenv("RMLIB_CACHE", str(blocked / "cache"))
    assert len(load(f"folder:{pictures}")) == 60
    assert "not cached" in capsys.readouterr().err


def test_val_is_a_balanced_tenth_and_holdout_leaves_it_out(pictures, cache):
    name = f"folder:{pictures}"
    everything, val, rest, test = (
        load(name),
        load(name, split="val"),
        load(name, holdout=True),
        load(name, split="test"),
    )
    assert (
        len(val) == 6
        and torch.bincount(val.labels).tolist() == [2, 2, 2]
        and len(rest) == 54
        and len(test) == 30
    )
    keys = lambda data: {image.numpy().tobytes() for image in data.images}  # noqa: E731
    assert (
        keys(val) | keys(rest) == keys(everything)
        and not keys(val) & keys(rest)
        and not keys(test) & keys(everything)
    )


def test_subsets_are_balanced_and_nested(pictures, cache):
    data = load(f"folder:{pictures}")
    small, larger = data.subset(15), data.subset(30)
    assert torch.bincount(small.labels).tolist() == [5, 5, 5] and data.subset(None) is data
    assert {i.numpy().tobytes() for i in small.images} < {
        i.numpy().tobytes() for i in larger.images
    }
    for wrong in (16, 0, 90):
        with pytest.raises(UserError, match=str(wrong)):
            data.subset(wrong)
    assert rank_in_class(torch.tensor([0, 0, 2, 2, 2])).tolist() == [0, 1, 0, 1, 2]


def test_channel_stats(pictures, cache):
    data = load(f"folder:{pictures}")
    mean, std = data.channel_stats()
    pixels = data.images.numpy().astype(float) / 255
    np.testing.assert_allclose(mean, pixels.mean((0, 2, 3)))
    np.testing.assert_allclose(std, pixels.std((0, 2, 3)))


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


def test_broken_and_unequal_images(pictures, tmp_path, cache):
    other = shutil.copytree(pictures, tmp_path / "other")
    (other / "test" / "red" / "0.png").write_bytes(b"not an image")
    with pytest.raises(UserError, match="test/red/0.png.*cannot be read as an image"):
        load(f"folder:{other}")
    Image.new("RGB", (5, 5)).save(other / "test" / "red" / "0.png")
    with pytest.raises(UserError, match="different sizes"):
        load(f"folder:{other}")


# ----------------------------------------------------------------------------------------------
# download


class Mirror(http.server.BaseHTTPRequestHandler):
    """Serves archives; /cut/ stops half-way, /page/ answers with a web page, /wrong/ with other
    bytes.
    """

    content, requests = os.urandom(200_000), []

    def do_GET(self):
        kind = self.path.split("/")[1]
        self.requests.append(kind)
        body = {"page": b"<html>", "wrong": b"x" * 1000}.get(kind, self.content)
        if kind == "gone":
            return self.send_error(404)
        self.send_response(200)
        self.send_header("Content-Type", "text/html" if kind == "page" else "application/gzip")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if kind == "cut" else body)

    def log_message(self, *_):
        pass


@pytest.fixture
def mirror():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Mirror)
    Mirror.requests.clear()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


MD5 = hashlib.md5(Mirror.content).hexdigest()


def test_download_tries_mirrors(mirror, tmp_path):
    urls = [
        f"{mirror}/{kind}/archive.tar.gz?download=1" for kind in ("gone", "page", "cut", "good")
    ]
    path = download("archive.tar.gz", MD5, urls, tmp_path)
    assert path.read_bytes() == Mirror.content
    assert Mirror.requests == ["gone", "page", "cut", "good"]
    assert [p.name for p in tmp_path.iterdir()] == ["archive.tar.gz"]


def test_wrong_bytes_are_not_kept(mirror, tmp_path):
    urls = [f"{mirror}/{kind}/archive.tar.gz" for kind in ("wrong", "good")]
    assert download("archive.tar.gz", MD5, urls, tmp_path).read_bytes() == Mirror.content
    assert Mirror.requests == ["wrong", "good"]


def test_own_mirror_first_and_a_clear_end(mirror, tmp_path, monkeypatch):
    monkeypatch.setenv("RMLIB_MIRROR", f"{mirror}/page")
    with pytest.raises(UserError, match="web page.*by hand.*RMLIB_MIRROR") as error:
        download("archive.tar.gz", MD5, [f"{mirror}/gone/archive.tar.gz"], tmp_path)
    assert Mirror.requests == ["page", "gone"] and "\n" not in str(error.value)


# ----------------------------------------------------------------------------------------------
# streams and loader


def test_streams_are_functions_of_seed_purpose_and_epoch():
    draw = lambda *key: torch.rand(3, generator=stream(*key)).tolist()  # noqa: E731
    assert draw(0, "order", 1) == draw(0, "order", 1)
    keys = [
        (seed, purpose, epoch)
        for seed in (0, 1, 11)
        for purpose in ("order", "mixing", "augmentation")
        for epoch in (0, 1, 11)
    ]
    assert len({tuple(draw(*key)) for key in keys}) == len(keys)


@pytest.fixture
def small(pictures, cache):
    return load(f"folder:{pictures}")


def test_loader_against_a_plain_reference(small):
    """Pad, crop and flip image by image with the numbers of the streams."""
    seed, epoch = 3, 2
    images, labels = (torch.cat(parts) for parts in zip(*Loader(small, 16, seed).epoch(epoch)))
    order = torch.randperm(60, generator=stream(seed, "order", epoch))
    random = stream(seed, "augmentation", epoch)
    dy, dx = torch.randint(0, 5, (2, 60), generator=random).tolist()
    flip = (torch.rand(60, generator=random) < 0.5).tolist()
    for i, index in enumerate(order.tolist()):
        padded = F.pad(small.images[index], (2, 2, 2, 2))
        image = padded[:, dy[i] : dy[i] + 8, dx[i] : dx[i] + 12]
        image = image.flip(2) if flip[i] else image
        torch.testing.assert_close(images[i], image / 255.0)
        assert labels[i] == small.labels[index]
    assert set(dy) == set(dx) == set(range(5)) and 10 < sum(flip) < 50


def test_loader_without_augmentation_shows_every_image_once(small):
    loader = Loader(small, 16, 0, augment=False)
    batches = list(loader.epoch(0))
    assert len(batches) == len(loader) == 4 and [len(labels) for _, labels in batches] == [
        16,
        16,
        16,
        12,
    ]
    shown = torch.cat([images for images, _ in batches]).mul(255).round().to(torch.uint8)
    assert {i.contiguous().numpy().tobytes() for i in shown} == {
        i.numpy().tobytes() for i in small.images
    }
    assert all(
        images.is_contiguous(memory_format=torch.channels_last) and images.max() <= 1
        for images, _ in batches
    )


def test_all_mixers_see_the_same_clean_batches(small):
    """Whatever a mixer draws, the next clean batch stays what it was."""
    seen = []
    for mixer in (NoMix(3), RegionMixup(3, k=4, per_sample=True)):
        mixing = stream(0, "mixing", 0)
        seen.append([])
        for images, labels in Loader(small, 16, 0).epoch(0):
            mixer(images, labels, generator=mixing)
            seen[-1].append((images, labels))
    assert all(torch.equal(a, b) for first, second in zip(*seen) for a, b in zip(first, second))


def test_loader_checks_labels_once(small):
    import dataclasses

    with pytest.raises(UserError, match="there are 2 classes"):
        Loader(dataclasses.replace(small, classes=("a", "b")), 16, 0)


@pytest.mark.cuda
def test_cuda_batches_equal_cpu_batches(small):
    for (a, la), (b, lb) in zip(
        Loader(small, 16, 0).epoch(1), Loader(small, 16, 0, device="cuda").epoch(1)
    ):
        assert torch.equal(a, b.cpu()) and torch.equal(la, lb.cpu())
