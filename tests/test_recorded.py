"""A step that a GPU can replay must read nothing back and take everything that changes from
tensors. Both can be shown without a GPU: under fake CUDA tensors, which have no values to read, and
by a recording on the CPU that, as a CUDA graph does, repeats the operations of one call with
whatever Python knew at the time.
"""

import copy
import functools
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

from rmlib import UserError, mixers, recorded, train
from rmlib.choices import Choices, learning_rate
from rmlib.data import ImageSet, stream
from rmlib.mixers import Plan
from rmlib.models import preact_resnet18
from rmlib.params import TrainParams
from rmlib.recorded import Recording
from rmlib.train import Run, losses, make_mixer, make_optimizer, make_run, training

COUNT, BATCH, CLASSES = 40, 16, 3  # the last batch has 8 images
CLASS_NAMES = ("a", "b", "c")
METHODS = [
    {"mixer": "none"},
    {"mixer": "none", "clean_weight": 0},
    {"mixer": "mixup"},
    {"mixer": "cutmix", "cutmix_prob": 0.5},
    {"mixer": "region_mixup"},
    {"mixer": "region_mixup", "clean_weight": 0},
    {"mixer": "region_mixup", "k": 3, "regions": "random"},
    {"mixer": "region_mixup", "per_sample": True, "shared_partner": True},
    {"mixer": "region_mixup", "average": True, "alpha": 0.4},
]


class Tape(TorchDispatchMode):
    """All operations on tensors of one call, with every other argument as it was; ``replay``
    repeats them. What a CUDA graph is, on the CPU.
    """

    def __init__(self, function):
        super().__init__()
        self.calls, self.kept = [], []
        with self:
            function()

    def __torch_dispatch__(self, operation, types, arguments=(), keywords=None):
        results = operation(*arguments, **(keywords or {}))
        self.calls.append((operation, arguments, keywords or {}, results))
        return results

    @torch.no_grad()
    def replay(self):
        # tensors of the recording -> those of this replay; all others are what they were: static
        made = {}

        def now(values):
            return tree_map_only(torch.Tensor, lambda tensor: made.get(id(tensor), tensor), values)

        for operation, arguments, keywords, results in self.calls:
            again = operation(*now(arguments), **now(keywords))
            known = {
                id(tensor)
                for tensor in tree_flatten((arguments, keywords))[0]
                if isinstance(tensor, torch.Tensor)
            }
            for old, new in zip(tree_flatten(results)[0], tree_flatten(again)[0]):
                if (
                    isinstance(old, torch.Tensor) and id(old) not in known
                ):  # not what an operation in place hands back
                    made[id(old)] = new


class Replayed(Recording):
    """Steps replayed from recordings, on the CPU."""

    def capture(self, size):
        return Tape(lambda: self.compute(size))


class Called(Recording):
    """The same steps, called one after the other."""

    def record(self):
        for size in self.rows:
            self.graphs[size] = SimpleNamespace(replay=functools.partial(self.compute, size))


def make(changes, seed=0, device="cpu"):
    params = TrainParams(width=2, batch_size=BATCH, epochs=2, lr=0.05, seed=seed, **changes)
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (COUNT, 3, 9, 12), dtype=torch.uint8, generator=generator)
    return make_run(
        params, ImageSet(images, torch.arange(COUNT) % CLASSES, CLASS_NAMES, ""), device
    )


def trained(run, kind=None, epochs=2):
    """Weights, running statistics and totals after some epochs; ``kind`` records the steps."""
    recording, places, sums = kind(run) if kind else None, [], 0
    for _ in training(run, recording):
        places.append((run.epoch, run.step))
        if run.step == 0:
            sums = sums + run.sums
        if places[-1] == (epochs, 0):
            break
    expected = [(epoch, step) for epoch in range(epochs) for step in (1, 2, 3, 0)]
    assert places == [(epoch + (step == 0), step) for epoch, step in expected]
    return [*run.model.state_dict().values(), sums]


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


each_method = pytest.mark.parametrize(
    "changes", METHODS, ids=lambda changes: "-".join(map(str, changes.values()))
)


@pytest.fixture
def boxes_in_tensors(monkeypatch):
    """As on a GPU: the host does not read boxes."""
    monkeypatch.setattr(mixers, "_on_host", lambda boxes: False)


@each_method
def test_a_recorded_step_replayed_trains_the_same_network(changes, boxes_in_tensors):
    """Two epochs of three steps, the last of each smaller; one recording per size of batch, made
    from the first step.
    """
    assert equal(trained(make(changes), Replayed), trained(make(changes), Called))


@each_method
def test_the_step_of_the_gpu_is_the_step_of_the_cpu(changes, monkeypatch):
    """Fused SGD and one gather against SGD in a loop and tile by tile: equal but for the rounding
    of the optimiser.
    """
    on_cpu = trained(make(changes))
    monkeypatch.setattr(mixers, "_on_host", lambda boxes: False)
    for mine, theirs in zip(trained(make(changes), Called), on_cpu, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)


# ---------------------------------------------------------------------------------------------
# wrong recordings


def rate_as_number(optimizer, rate):
    """The learning rate of the step that is recorded, for all."""
    optimizer.param_groups[0]["lr"] = rate.item()


class FirstRow(Replayed):
    """The first row of the tables for all."""

    def compute(self, size):
        super().compute(size)
        self.index -= 1


class LastTotals(Replayed):
    """Totals of the last step alone."""

    def compute(self, size):
        self.run.sums.zero_()
        super().compute(size)


class WarmedUp(Replayed):
    """A warm-up that is not undone."""

    def record(self):
        super().record()
        self.compute(BATCH)


class WarmedUpOnAnother(Replayed):
    """A warm-up of the small batch on the row of a whole one."""

    def __init__(self, run):
        super().__init__(run)
        self.rows = dict.fromkeys(self.rows, 0)


class SameTables(Replayed):
    """Tables that stay those of the first epoch."""

    def begin(self, choices, start=0):
        super().begin(choices if self.tables is None else self.tables, start)


# partners beyond the smaller batch
OUT_OF_RANGE = (FirstRow, WarmedUpOnAnother)


@pytest.mark.parametrize("kind", [FirstRow, LastTotals, WarmedUp, WarmedUpOnAnother, SameTables])
def test_a_wrong_recording_is_caught(kind, boxes_in_tensors):
    right = trained(make({"mixer": "region_mixup"}), Called)
    if kind in OUT_OF_RANGE:
        with pytest.raises(IndexError):
            trained(make({"mixer": "region_mixup"}), kind)
    else:
        assert not equal(trained(make({"mixer": "region_mixup"}), kind), right)


def test_a_rate_that_stays_is_caught(boxes_in_tensors, monkeypatch):
    right = trained(make({"mixer": "region_mixup"}), Called)
    monkeypatch.setattr(train, "set_learning_rate", rate_as_number)
    assert not equal(trained(make({"mixer": "region_mixup"}), Replayed), right)


def test_choices_of_another_epoch_are_caught(boxes_in_tensors):
    right, wrong = (make({"mixer": "region_mixup"}) for _ in range(2))
    draw = wrong.draw
    wrong.draw = lambda epoch: draw(0)
    assert not equal(trained(wrong, Replayed), trained(right, Called))


def test_the_recording_leaves_no_trace(boxes_in_tensors):
    """Warm-up and recording train: afterwards everything must be as it was, also the momentum,
    which starts at zero.
    """
    run = make({"mixer": "mixup"})
    run.model.train()
    before, recording = copy.deepcopy(run.model.state_dict()), Replayed(run)
    recording.begin(run.draw(0))
    assert equal(run.model.state_dict().values(), before.values())
    assert not run.sums.any() and recording.index.item() == 0
    assert len(run.optimizer.state) == len(list(run.model.parameters()))
    assert not any(state["momentum_buffer"].any() for state in run.optimizer.state.values())
    assert set(recording.graphs) == {BATCH, COUNT % BATCH}


# ----------------------------------------------------------------------------------------------
# nothing waits for the host


class DeviceLeaps(TorchDispatchMode):
    """Operations that take tensors from one device to another. (The fused optimiser has no fake
    version and is only looked at.)
    """

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, operation, types, arguments=(), keywords=None):
        results = (
            operation(*arguments, **(keywords or {}))
            if operation != torch.ops.aten._fused_sgd_.tensor_lr
            else None
        )
        tensors = [
            value
            for value in tree_flatten((arguments, keywords, results))[0]
            if isinstance(value, torch.Tensor)
        ]
        if len({tensor.device.type for tensor in tensors}) > 1:
            self.found.append(str(operation))
        return results


def on_fake_cuda(changes, monkeypatch, kind=Recording):
    """Two steps on CUDA tensors that have shapes and no values, so that whatever the host wanted to
    know raises; the backward, which needs a device, is torch's own and left out. Returns the
    operations that went from one device to another.
    """
    with monkeypatch.context() as patches:
        patches.setattr(torch.cuda, "Stream", lambda: None)
        real = make(changes)
        choices = real.draw(0)
        with FakeTensorMode() as mode, torch.device("cuda"):
            model = preact_resnet18(CLASSES, 2).train()
            loader = copy.copy(real.loader)
            loader.device = torch.device("cuda")
            loader.labels = torch.empty(COUNT, dtype=torch.int64)
            pixels = torch.empty(COUNT, 3, 13, 16, dtype=torch.uint8)
            loader._windows = pixels.unfold(2, 9, 1).unfold(3, 12, 1)
            optimizer, sums = make_optimizer(real.params, model), torch.zeros(6).double()
            run = Run(real.params, model, optimizer, real.mixer, loader, model, sums)
            recording = kind(run)
            recording.prepare(Choices(*(mode.from_tensor(values) for values in choices)))

            def backward(loss):
                for parameter in model.parameters():
                    parameter.grad = torch.empty_like(parameter)

            patches.setattr(torch.Tensor, "backward", backward)
            with DeviceLeaps() as leaps:
                recording.compute(BATCH)
                recording.compute(COUNT % BATCH)
            assert run.sums.device.type == "cuda"
    return leaps.found


@each_method
def test_a_step_on_cuda_never_waits_for_the_host(changes, monkeypatch):
    assert on_fake_cuda(changes, monkeypatch) == []


def read_loss(*parts):
    """Losses, one of which the host reads."""
    found = losses(*parts)
    return found if found[0] > 0 else None


@pytest.mark.parametrize(
    "module, name, wrong",
    [
        (mixers, "_on_host", lambda boxes: True),
        (train, "set_learning_rate", rate_as_number),
        (train, "losses", read_loss),
    ],
    ids=["boxes", "lr", "loss"],
)
def test_a_step_that_waits_is_caught(module, name, wrong, monkeypatch):
    monkeypatch.setattr(module, name, wrong)
    with pytest.raises(DataDependentOutputException):
        on_fake_cuda({"mixer": "mixup"}, monkeypatch)


class Leaping(Recording):
    """A step that takes a number from the host."""

    def compute(self, size):
        super().compute(size)
        self.index += torch.ones(1, dtype=torch.int64, device="cpu").to(self.device)


def test_a_step_that_takes_from_the_host_is_caught(monkeypatch):
    assert on_fake_cuda({"mixer": "mixup"}, monkeypatch, Leaping) != []


# ----------------------------------------------------------------------------------------------
# tables


@each_method
def test_the_tables_are_the_draws_of_the_epoch(changes):
    """Independently: the loader's own batches, and the mixer's plans from the stream of the epoch,
    drawn one after the other.
    """
    run = make(changes)
    choices, mixing = run.draw(1), stream(0, "mixing", 1)
    for number, (images, labels) in enumerate(run.loader.epoch(1)):
        plan = run.mixer.draw(images.shape, mixing)
        expected = (images, labels, *run.mixer.apply(images, labels, plan))
        row = choices.row(number, len(labels))
        assert equal(run.crop_flip_mix(row), expected)
        assert row.lr.item() == learning_rate(run.params, 3 + number, 6)


def test_a_later_step_of_an_epoch_is_the_same(monkeypatch):
    """Starting at step 2 gives the targets that step 2 of the whole epoch gives."""
    right, seen, last = train.totals, [], []

    def noticing(clean_logits, labels, mixed_logits, targets, *parts):
        seen.append(targets)
        return right(clean_logits, labels, mixed_logits, targets, *parts)

    monkeypatch.setattr(train, "totals", noticing)
    for start in (0, 2):
        run = make({"mixer": "region_mixup"})
        run.step = start
        for _ in training(run):
            if run.step == 0:
                break
        last.append(seen[-1])
    assert len(seen) == 4 and torch.equal(*last)


@pytest.mark.parametrize("fmt", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_boxes_in_a_tensor_give_the_same_bits(fmt, dtype):
    """A gather from a map of partners, and tile by tile; also a box that leaves most of the image
    alone, an empty one, and no box.
    """
    images = torch.rand(5, 3, 9, 14).to(dtype, memory_format=fmt)
    generator = torch.Generator().manual_seed(0)
    plans = [
        make_mixer(TrainParams(**changes), 4).draw(images.shape, generator)
        for changes in METHODS
        for _ in range(5)
    ]
    plans += [
        Plan(
            torch.tensor([[2, 1, 5, 4]]),
            torch.tensor([[0.3]]),
            torch.arange(5).roll(1)[None],
            9,
            14,
        ),
        Plan(
            torch.tensor([[0, 0, 0, 0]]),
            torch.tensor([[0.0]]),
            torch.arange(5).roll(1)[None],
            9,
            14,
        ),
    ]
    for plan in plans:
        by_tile = mixers.blend(images, plan.boxes.tolist(), plan.lam, plan.partners)
        by_map = mixers.blend(images, plan.boxes, plan.lam, plan.partners)
        assert (
            torch.equal(by_tile, by_map)
            and by_map.stride() == by_tile.stride()
            and by_map.data_ptr() != images.data_ptr()
        )


def test_totals_of_a_step():
    """Loss, and how often the guess was right, weighted with the images; recomputed by hand from
    the step's own logits.
    """
    run = make({"mixer": "region_mixup"})
    row = run.draw(0).row(0, BATCH)
    run.model.train()
    model = copy.deepcopy(run.model)
    images, labels, mixed, targets = run.crop_flip_mix(row)
    clean_logits, mixed_logits = model(images), model(mixed)
    loss, clean_loss, mixed_loss = losses(run.params, clean_logits, labels, mixed_logits, targets)
    train.training_step(run, row)
    right = sum(int(row.argmax() == label) for row, label in zip(clean_logits, labels))
    weight = sum(float(target[row.argmax()]) for row, target in zip(mixed_logits, targets))
    expected = [
        BATCH,
        loss.item() * BATCH,
        clean_loss.item() * BATCH,
        right,
        mixed_loss.item() * BATCH,
        weight,
    ]
    assert run.sums.tolist() == pytest.approx(expected, rel=1e-6)


# ----------------------------------------------------------------------------------------------
# compiled, and on a device


@pytest.fixture
def compiler(monkeypatch, tmp_path):
    """A machine that seems to have one."""
    monkeypatch.setattr(recorded.shutil, "which", lambda name: "/usr/bin/c++")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))


def test_a_compiled_step_trains_the_same_network(compiler, boxes_in_tensors, monkeypatch):
    """As torch.compile captures it, forward and backward; its code generation, half a minute on the
    CPU, is left out (`rmlib bench --compile` uses it).
    """
    compiled = []

    def capture(function):
        compiled.append(function)
        return torch.compile(function, backend="aot_eager", dynamic=False)

    monkeypatch.setattr(recorded, "compile_whole", capture)
    changes = {"mixer": "region_mixup"}
    found = trained(make(changes | {"compiled": True}), Called)
    for mine, theirs in zip(found, trained(make(changes), Called), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)
    assert len(compiled) == 2, "the batch and the network"


def test_on_the_cpu_the_network_alone_is_compiled(compiler, monkeypatch):
    compiled = []
    monkeypatch.setattr(recorded, "compile_whole", lambda function: compiled.append(function))
    run = make({"compiled": True})
    assert recorded.recording_of(run) is None and compiled == [run.model]
    assert recorded.recording_of(make({})) is None and len(compiled) == 1


def test_without_a_compiler_nothing_is_compiled(monkeypatch):
    monkeypatch.setattr(recorded.shutil, "which", lambda name: None)
    with pytest.raises(UserError, match="compiled=True needs a C.* compiler.*or leave it out"):
        recorded.recording_of(make({"compiled": True}))


def test_what_is_compiled_lies_in_the_cache_of_the_project(compiler, tmp_path, monkeypatch):
    """torch sets that folder itself as soon as an optimiser is made; the user's own choice stays,
    and an import sets nothing.
    """
    monkeypatch.setattr(recorded, "compile_whole", lambda function: function)
    recorded.recording_of(make({"compiled": True}))
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path)
    monkeypatch.setenv("RMLIB_CACHE", str(tmp_path))
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    torch.optim.SGD([torch.zeros(1)])
    recorded.recording_of(make({"compiled": True}))
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "compiled")
    code = (
        "import os; before = dict(os.environ); import rmlib.recorded; assert before == os.environ"
    )
    environment = {name: value for name, value in os.environ.items() if "INDUCTOR" not in name}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


def agree(found, expected, rtol, atol):
    *weights, sums = (tensor.cpu() for tensor in found)
    *others, totals = (tensor.cpu() for tensor in expected)
    for mine, theirs in zip(weights, others, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=rtol, atol=atol)
    torch.testing.assert_close(sums[[0, 1, 2, 4]], totals[[0, 1, 2, 4]], rtol=rtol, atol=atol)
    assert (sums - totals).abs()[[3, 5]].max() <= 1, "a guess may tip over"


@pytest.mark.cuda
@each_method
def test_graphs_on_cuda_train_the_network_of_the_cpu(changes):
    on_cuda = trained(make(changes, device="cuda"), Recording, epochs=1)
    agree(on_cuda, trained(make(changes), epochs=1), 0.02, 2e-3)


@pytest.mark.cuda
@pytest.mark.parametrize(
    "changes",
    [
        {"mixer": "region_mixup"},
        {"mixer": "cutmix"},
        {"mixer": "mixup", "precision": "bf16"},
        {"mixer": "region_mixup", "compiled": True},
    ],
    ids=str,
)
def test_replays_on_cuda_are_the_calls(changes):
    """Two epochs, so that tables of a second one are taken; bfloat16 and compiled too."""
    atol = 0.02 if "precision" in changes else 2e-3
    found, called = (trained(make(changes, device="cuda"), kind) for kind in (Recording, Called))
    agree(found, called, 0.02, atol)


@pytest.mark.cuda
def test_no_call_within_an_epoch_synchronises():
    run = make({"mixer": "region_mixup"}, device="cuda")
    run.model.train()
    recording = Recording(run)
    recording.begin(run.draw(0))
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in range(len(run.loader)):
            recording.replay(step)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    recording.wait()
    assert run.sums[0].item() == COUNT
