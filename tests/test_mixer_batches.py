"""What a mixer takes as a batch, where torchvision's v2.MixUp is the measure, and in workers."""

import copy
import importlib
import pickle
import sys
from collections import OrderedDict, UserDict, defaultdict, namedtuple
from functools import partial
from pathlib import Path
from types import MappingProxyType

import pytest
import torch
from batches import batch, each_mixer, generator
from PIL import Image
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision import tv_tensors
from torchvision.transforms import v2

import rmlib
from rmlib import UserError
from rmlib.mixers import CutMix, Mixup, NoMix, Plan, RegionMixup

Pair = namedtuple("Pair", "images labels names")


@each_mixer
def test_one_hot_and_soft_labels_are_mixed_by_the_same_weights(make):
    images, labels = batch()
    plan = make(4).draw(images.shape, generator())
    mixed, targets = make(4).apply(images, labels, plan)
    one_hot = F.one_hot(labels, 4)
    # torchvision takes whole numbers, too; float64 and bfloat16 rows come back as float32
    for kind in (one_hot, one_hot.double(), one_hot.bfloat16()):
        for mixer in (make(4), make(None)):
            same, soft = mixer.apply(images, kind, plan)
            torch.testing.assert_close(soft, targets)
            assert torch.equal(same, mixed) and soft.dtype == torch.float32
        assert soft.data_ptr() != kind.data_ptr()
    rows = torch.rand(5, 4)
    weights = plan.label_weights().expand(-1, 5)
    expected = weights[0, :, None] * rows
    for weight, partners in zip(weights[1:], plan.partners):
        expected += weight[:, None] * rows[partners]
    torch.testing.assert_close(make(None).apply(images, rows, plan)[1], expected)


def test_torchvision_mixes_soft_labels_to_the_same():
    images, rows = batch()[0], torch.rand(5, 4)
    rolled = torch.arange(5).roll(1)[None]
    plan = Plan(torch.tensor([[0, 0, 11, 7]]), torch.tensor([[0.3]]), rolled, 7, 11)
    forced = {"labels": rows, "batch_size": 5, "lam": 0.3}
    theirs = v2.MixUp().transform(rows, forced)
    torch.testing.assert_close(Mixup().apply(images, rows, plan)[1], theirs)


def test_two_mixers_in_a_row():
    images, labels = batch()
    mixed, targets = v2.Compose([RegionMixup(4), CutMix(), Mixup(4)])(images, labels)
    assert mixed.shape == images.shape
    torch.testing.assert_close(targets.sum(1), torch.ones(5))


@each_mixer
def test_the_default_dtype_and_device_change_nothing(make):
    images, labels = batch()
    plan = make(4).draw(images.shape, generator())
    expected = make(4).apply(images, labels, plan), plan.weight_map()
    for dtype in (torch.bfloat16, torch.float64):
        torch.set_default_dtype(dtype)
        try:
            again = make(4).draw(images.shape, generator())
            found = make(4).apply(images, labels, again), again.weight_map()
        finally:
            torch.set_default_dtype(torch.float32)
        assert again == plan and again.lam.dtype == torch.float32
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
    # where a forgotten device would give a tensor without values
    with torch.device("meta"):
        assert make(4).draw(images.shape, generator()) == plan
        found = make(4).apply(images, labels, plan), plan.weight_map()
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


class Features(UserDict):
    """A mapping as transformers' BatchFeature is one."""


@pytest.mark.parametrize(
    "kind",
    [dict, OrderedDict, UserDict, Features, partial(defaultdict, list), MappingProxyType],
    ids=str,
)
def test_a_mapping_comes_back_as_what_it_was(kind):
    images, labels = batch()
    ids = torch.arange(5)
    sample = kind({"pixel_values": images, "Labels": labels, "label_names": ["a"], "ids": ids})
    mixed = RegionMixup(4)(sample)
    assert type(mixed) is type(sample) and list(mixed) == list(sample)
    assert mixed["Labels"].shape == (5, 4) and not torch.equal(mixed["pixel_values"], images)
    assert mixed["label_names"] == ["a"] and mixed["ids"] is ids
    assert sample["Labels"] is labels and sample["pixel_values"] is images


def test_sequences_come_back_as_what_they_were():
    images, labels = batch()
    for sample in ([images, labels], (images, labels), Pair(images, labels, ["a"])):
        mixed = NoMix(4)(sample)
        assert type(mixed) is type(sample) and mixed[1].shape == (5, 4)
    assert NoMix(4)(Pair(images, labels, ["a"])).names == ["a"]
    nested = {"x": [images], "y": {"label": labels, "other": (1,)}}
    mixed = NoMix(4, labels_getter=lambda sample: sample["y"]["label"])(nested)
    assert torch.equal(mixed["x"][0], images) and mixed["y"]["label"].shape == (5, 4)
    assert mixed["y"]["other"] == (1,) and nested["y"]["label"] is labels


@pytest.mark.parametrize("make", [NoMix, Mixup, CutMix, RegionMixup])
def test_labels_are_found_by_a_key_or_a_function(make):
    images, labels = batch()
    sample = {"image": images, "target": labels, "label": "a word"}
    for getter in ("target", lambda sample: sample["target"]):
        mixed = make(4, labels_getter=getter)(sample)
        assert mixed["target"].shape == (5, 4) and mixed["label"] == "a word"
    mixed = make(4, labels_getter=2)(images, ["a"], labels)
    assert mixed[1] == ["a"] and mixed[2].shape == (5, 4)
    assert repr(make(4, labels_getter="target")) == repr(make(4))


def masks(count=5):
    return torch.zeros(count, 7, 11, dtype=torch.long)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda x, y: NoMix(4)(x, y, masks()), r"Tensor \(5, 7, 11\).*cannot be mixed"),
        (lambda x, y: NoMix(4)(x, y, tv_tensors.Mask(masks())), "Mask"),
        (lambda x, y: NoMix(4)({"image": x, "labels": y, "mask": masks()}), r"\(5, 7, 11\)"),
        (lambda x, y: NoMix(4)(x, y, [Image.new("L", (4, 4))]), "Image"),
        (
            lambda x, y: NoMix(4)(
                x, y, tv_tensors.BoundingBoxes([[0, 0, 1, 1]], format="XYXY", canvas_size=(7, 11))
            ),
            r"BoundingBoxes \(1, 4\)",
        ),
        (lambda x, y: NoMix(4)(x, masks()), r"labels \(5,\) int64 or \(5, 4\) soft, got \(5, 7"),
        (lambda x, y: NoMix(4)(x, torch.rand(5, 3)), r"\(5, 4\) soft, got \(5, 3\) torch.float32$"),
        (lambda x, y: NoMix()(x, y[:, None]), r"num_classes\) soft, got \(5, 1\).*squeeze"),
        (
            lambda x, y: NoMix(4)(x, y[:, None]),
            r"got \(5, 1\) torch.int64; use labels.squeeze\(1\)$",
        ),
        (lambda x, y: NoMix()(x, y), "class numbers need a mixer with num_classes"),
        (lambda x, y: NoMix(4)(x, y.tolist()), "expected labels as a tensor, got list"),
        (lambda x, y: NoMix(4)({"image": x, "target": y}), "'target'.*give their key"),
        (lambda x, y: NoMix(4, labels_getter="y")({"image": x, "t": y}), "labels_getter='y'"),
        (lambda x, y: NoMix(4)({"image": x, "label": y, "label2": y}), "'label2'"),
        (lambda x, y: NoMix(4)(y, x), "in this order"),
        (lambda x, y: NoMix(4)(y, y), "did you batch"),
        (lambda x, y: NoMix(4)(x, y, generator=3), "generator=3: expected a torch.Generator"),
        (lambda x, y: NoMix(4).draw((1, 2, 3, 4, 5, 6)), "did you batch"),
        (lambda x, y: NoMix(4)(x.to("meta"), y), "labels lie on cpu, images on meta: move both"),
    ],
)
def test_what_cannot_be_mixed_is_refused_in_one_line(call, words):
    with pytest.raises(UserError, match=words) as error:
        call(*batch())
    assert "\n" not in str(error.value)


@each_mixer
def test_frames_of_a_video_are_mixed_alike(make):
    videos = torch.rand(5, 6, 3, 7, 11)
    labels = torch.arange(5) % 4
    plan = make(4).draw(videos.shape, generator())
    for kind in (videos, videos.transpose(1, 2), tv_tensors.Video(videos)):
        mixed, targets = make(4).apply(kind, labels, plan)
        assert mixed.shape == kind.shape and type(mixed) is type(kind)
        frames = kind.unbind(2 if kind.shape[1] == 3 else 1)
        for frame, made in zip(frames, mixed.unbind(2 if kind.shape[1] == 3 else 1)):
            expected, same = make(4).apply(frame, labels, plan)
            torch.testing.assert_close(made, expected)
            assert torch.equal(same, targets)


@each_mixer
def test_a_tv_tensor_comes_back_as_one(make):
    images, labels = batch()
    wrapped = tv_tensors.Image(images)
    expected = make(4)(images, labels, generator=generator())
    mixed, targets = make(4)(wrapped, labels, generator=generator())
    assert type(mixed) is type(v2.MixUp(num_classes=4)(wrapped, labels)[0])
    assert torch.equal(mixed, expected[0]) and type(targets) is torch.Tensor
    parameter = torch.nn.Parameter(images)
    assert type(make(4)(parameter, labels)[0]) is torch.Tensor


def test_plans_are_equal_if_all_their_choices_are():
    mixer = RegionMixup(4)
    plan = mixer.draw((5, 3, 7, 11), generator())
    assert plan == mixer.draw((5, 3, 7, 11), generator()) == pickle.loads(pickle.dumps(plan))
    assert plan != mixer.draw((5, 3, 7, 11), generator(1)) and plan != "a plan"
    assert plan != mixer.draw((5, 3, 11, 7), generator()) != Mixup(4).draw((5, 3, 11, 7))
    assert plan != mixer.draw((4, 3, 7, 11), generator())


@each_mixer
def test_vmap_and_jvp_of_a_plan(make):
    """Of a plan drawn before: mixing is linear in the images, so its jvp mixes the tangents."""
    images, labels = batch()
    plan = make(4).draw(images.shape, generator())

    def mix(images, labels=labels):
        return make(4).apply(images, labels, plan)

    value, tangent = torch.func.jvp(lambda images: mix(images)[0], (images,), (images.flip(0),))
    torch.testing.assert_close(value, mix(images)[0])
    torch.testing.assert_close(tangent, mix(images.flip(0))[0])
    many, several = torch.stack([images, images.flip(0)]), torch.stack([labels, labels.flip(0)])
    mixed, targets = torch.vmap(mix)(many, several)
    for i in range(2):
        torch.testing.assert_close((mixed[i], targets[i]), mix(many[i], several[i]))


def test_mixing_compiles_as_one_graph():
    """Captured by dynamo without its backend, so that no compiler is needed."""
    images, labels = batch(height=8, width=12)
    for mixer, kind in ((RegionMixup(4), labels), (CutMix(), F.one_hot(labels, 4).float())):
        plan = mixer.draw(images.shape, generator())
        torch.compiler.reset()
        apply = torch.compile(mixer.apply, backend="eager", fullgraph=True)
        expected = mixer.apply(images, kind, plan)
        torch.testing.assert_close(apply(images, kind, plan), expected)


@pytest.mark.parametrize(
    "mixer",
    [NoMix(4), Mixup(4), CutMix(4, 0.5, 0.7), RegionMixup(4, 3, regions="random", per_sample=True)],
    ids=lambda mixer: type(mixer).__name__,
)
def test_drawing_and_mixing_compile_as_one_graph(mixer):
    """With torch's generator; the graph draws anew with every call, also for a smaller batch."""
    images, labels = batch(height=8, width=12)
    torch.compiler.reset()
    call = torch.compile(lambda x, y: mixer(x, y), backend="eager", fullgraph=True)
    seen = set()
    for seed in range(6):
        part = images[seed // 5 :], labels[seed // 5 :]
        torch.manual_seed(seed)
        mixed = call(*part)
        torch.manual_seed(seed)
        torch.testing.assert_close(mixed, mixer(*part))
        seen.add(str(mixed[1]))
    assert len(seen) > 2 or type(mixer) is NoMix


class Drawn:
    """A collate_fn that returns the weights it draws, with a generator of its own or none."""

    def __init__(self, mixer, generator=None):
        self.mixer, self.generator = mixer, generator

    def __call__(self, samples):
        return self.mixer.draw((len(samples), 3, 8, 8), self.generator).lam.flatten()

    def seed(self, worker, cut=2**64):
        self.generator.manual_seed(torch.initial_seed() % cut)

    def seed_short(self, worker):
        self.seed(worker, 2**32)


def weights(collate, workers=2, begin=None, epochs=2):
    torch.manual_seed(0)
    options = {"num_workers": workers, "collate_fn": collate, "worker_init_fn": begin}
    loader = DataLoader(range(12), batch_size=2, **options)
    return torch.stack([lam for _ in range(epochs) for lam in loader])


def test_workers_draw_streams_of_their_own_or_refuse():
    """A generator goes as a copy into every worker and every epoch; the mixes would repeat."""
    mixer = RegionMixup(4)
    own = Drawn(mixer, generator())
    with pytest.raises(UserError, match="each worker of the DataLoader has a copy"):
        weights(own)
    assert len(weights(Drawn(mixer)).unique(dim=0)) == 12
    found = weights(own, begin=own.seed)
    assert len(found.unique(dim=0)) == 12
    assert torch.equal(found[:6], weights(own, begin=own.seed, epochs=1)), "it can be repeated"
    assert len(weights(own, begin=own.seed_short, epochs=1).unique(dim=0)) == 6
    assert len(weights(own, workers=0).unique(dim=0)) == 12


def test_two_copied_files_work_in_any_package(tmp_path, monkeypatch):
    package = tmp_path / "theirs" / "deep"
    package.mkdir(parents=True)
    for name in ("mixers.py", "inputs.py"):
        text = (Path(rmlib.__file__).parent / name).read_text()
        (package / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    copied = importlib.import_module("theirs.deep.mixers")
    assert {name for name in sys.modules if name.startswith("theirs")} == {
        *("theirs", "theirs.deep", "theirs.deep.mixers", "theirs.deep.inputs")
    }
    images, labels = batch()
    sample = copied.RegionMixup(4)({"image": images, "label": labels}, generator=generator())
    expected = RegionMixup(4)(images, labels, generator=generator())
    torch.testing.assert_close(tuple(sample.values()), expected)
    with pytest.raises(ValueError, match="num_classes=1"):
        copied.NoMix(1)


def test_mixers_are_copied_and_pickled_with_their_settings():
    mixer = RegionMixup(4, 3, labels_getter="target")
    images, labels = batch()
    for again in (copy.deepcopy(mixer), pickle.loads(pickle.dumps(mixer))):
        assert repr(again) == repr(mixer)
        assert again({"image": images, "target": labels})["target"].shape == (5, 4)
