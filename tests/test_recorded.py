"""A step that a GPU can replay must read nothing back and take everything that changes from
tensors. Both can be shown without a GPU: under fake CUDA tensors, which have no values to read, and
by a recording on the CPU that, as a CUDA graph does, repeats the operations of one call with
whatever Python knew at the time.
"""

import copy
import os
import subprocess
import sys

import pytest
import torch
from conftest import mutated
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

from rmlib import UserError, mixers
from rmlib import recorded as step_module
from rmlib.data import ImageSet, Loader, stream
from rmlib.mixers import Plan
from rmlib.models import preact_resnet18
from rmlib.params import TrainParams
from rmlib.recorded import Step, Tables, draw_tables, learning_rate, losses, make_optimizer
from rmlib.study.runs.run import make_mixer, make_model

COUNT, BATCH, CLASSES = 40, 16, 3  # the last batch has 8 images
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


class Recording(TorchDispatchMode):
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


class Replayed(Step):
    """Steps replayed from recordings, on the CPU."""

    def capture(self, size):
        return Recording(lambda: self.compute(size))


class Called(Step):
    """The same steps, called one after the other."""

    def _record(self):
        pass


def make(kind, changes, recorded=True, seed=0):
    params = TrainParams(width=2, batch_size=BATCH, epochs=2, lr=0.05, seed=seed, **changes)
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (COUNT, 3, 9, 12), dtype=torch.uint8, generator=generator)
    loader = Loader(ImageSet(images, torch.arange(COUNT) % CLASSES, tuple("abc"), ""), BATCH, seed)
    model = make_model(params, CLASSES, None, None).train()
    return kind(
        params, model, make_optimizer(params, model), make_mixer(params, CLASSES), loader, recorded
    )


def run(step, epochs=2):
    """Weights, running statistics and totals after some epochs."""
    for epoch in range(epochs):
        assert list(step.steps(epoch)) == [0, 1, 2]
    return [*step.model.state_dict().values(), step.sums]


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize(
    "changes", METHODS, ids=lambda changes: "-".join(map(str, changes.values()))
)
def test_a_recorded_step_replayed_trains_the_same_network(changes, monkeypatch):
    """Two epochs of three steps, the last of each smaller; one recording per size of batch, made
    from the first step.
    """
    monkeypatch.setattr(mixers, "_on_host", lambda boxes: False)
    replayed, called = run(make(Replayed, changes)), run(make(Called, changes))
    assert equal(replayed, called)


@pytest.mark.parametrize(
    "changes", METHODS, ids=lambda changes: "-".join(map(str, changes.values()))
)
def test_the_step_of_the_gpu_is_the_step_of_the_cpu(changes, monkeypatch):
    """Fused SGD and one gather against SGD in a loop and tile by tile: equal but for the rounding
    of the optimiser.
    """
    on_cpu = run(make(Step, changes, recorded=False))
    monkeypatch.setattr(mixers, "_on_host", lambda boxes: False)
    for mine, theirs in zip(run(make(Called, changes)), on_cpu, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)


MISTAKES = {
    "the learning rate of the first step for all": (
        "compute",
        'group["lr"].copy_(rate)',
        'group["lr"] = rate.item()',
    ),
    "the first row of the tables for all": ("compute", "self.index += 1", "pass"),
    "totals of the last step alone": ("count", "self.sums +=", "self.sums ="),
    "a warm-up that is not undone": ("_record", "tensor.copy_(value)", "pass"),
    "a warm-up of the small batch on the row of a whole one": ("_record", "fill_(row)", "fill_(0)"),
    "the tables of this epoch for the next": ("steps", "self.draw(epoch + 1)", "self.draw(epoch)"),
    "tables that stay those of the first epoch": ("begin", "mine.copy_(", "mine.clone().copy_("),
}


OUT_OF_RANGE = (
    "the first row of the tables for all",
    "a warm-up of the small batch on the row of a whole one",
)  # partners beyond the smaller batch


@pytest.mark.parametrize("name", MISTAKES)
def test_a_wrong_recording_is_caught(name, monkeypatch):
    monkeypatch.setattr(mixers, "_on_host", lambda boxes: False)
    method, old, new = MISTAKES[name]
    right = run(make(Called, {"mixer": "region_mixup"}))
    monkeypatch.setattr(Step, method, mutated_method(method, old, new))
    if name in OUT_OF_RANGE:
        with pytest.raises(IndexError):
            run(make(Replayed, {"mixer": "region_mixup"}))
    else:
        assert not equal(run(make(Replayed, {"mixer": "region_mixup"})), right)


def mutated_method(name, old, new):
    """A deliberately wrong version of a method of Step."""
    import inspect

    assert old in inspect.getsource(getattr(Step, name)), "the mutation must touch the method"
    return getattr(mutated(Step, old, new), name)


def test_the_recording_leaves_no_trace(monkeypatch):
    """Warm-up and recording train: afterwards everything must be as it was, also the momentum,
    which starts at zero.
    """
    monkeypatch.setattr(mixers, "_on_host", lambda boxes: False)
    step = make(Replayed, {"mixer": "mixup"})
    before = copy.deepcopy(step.model.state_dict())
    step.begin(draw_tables(step.params, step.loader, step.mixer, 0))
    assert (
        equal(step.model.state_dict().values(), before.values())
        and not step.sums.any()
        and step.index.item() == 0
    )
    assert len(step.optimizer.state) == len(list(step.model.parameters()))
    assert not any(state["momentum_buffer"].any() for state in step.optimizer.state.values())
    assert set(step.graphs) == {BATCH, COUNT % BATCH}


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


def on_fake_cuda(changes, monkeypatch):
    """Two steps on CUDA tensors that have shapes and no values, so that whatever the host wanted to
    know raises; the backward, which needs a device, is torch's own and left out. Returns the
    operations that went from one device to another.
    """
    with monkeypatch.context() as patches:
        patches.setattr(torch.cuda, "Stream", lambda: None)
        real = make(Step, changes, recorded=False)
        tables = draw_tables(real.params, real.loader, real.mixer, 0)
        with FakeTensorMode() as mode, torch.device("cuda"):
            model = preact_resnet18(CLASSES, 2).train()
            loader = copy.copy(real.loader)
            loader.device, loader.labels = (
                torch.device("cuda"),
                torch.empty(COUNT, dtype=torch.int64),
            )
            loader._windows = (
                torch.empty(COUNT, 3, 13, 16, dtype=torch.uint8).unfold(2, 9, 1).unfold(3, 12, 1)
            )
            step = Step(real.params, model, make_optimizer(real.params, model), real.mixer, loader)
            step.prepare(Tables(*(mode.from_tensor(tensor) for tensor in tables.tensors())))

            def backward(loss):
                for parameter in model.parameters():
                    parameter.grad = torch.empty_like(parameter)

            patches.setattr(torch.Tensor, "backward", backward)
            with DeviceLeaps() as leaps:
                step.compute(BATCH)
                step.compute(COUNT % BATCH)
            assert step.sums.device.type == "cuda"
    return leaps.found


@pytest.mark.parametrize(
    "changes", METHODS, ids=lambda changes: "-".join(map(str, changes.values()))
)
def test_a_step_on_cuda_never_waits_for_the_host(changes, monkeypatch):
    assert on_fake_cuda(changes, monkeypatch) == []


@pytest.mark.parametrize("mistake", ["boxes", "lr", "loss", "leap"])
def test_a_step_that_waits_is_caught(mistake, monkeypatch):
    if mistake == "boxes":
        monkeypatch.setattr(mixers, "_on_host", lambda boxes: True)
    elif mistake == "lr":
        monkeypatch.setattr(
            Step,
            "compute",
            mutated_method("compute", 'group["lr"].copy_(rate)', 'group["lr"] = rate.item()'),
        )
    elif mistake == "loss":
        monkeypatch.setattr(
            Step,
            "compute",
            mutated_method("compute", "loss.backward()", "loss.backward() if loss > 0 else None"),
        )
    else:
        monkeypatch.setattr(
            Step,
            "compute",
            mutated_method(
                "compute",
                "self.index += 1",
                "self.index += torch.ones(1, dtype=torch.int64, device='cpu').to(self.device)",
            ),
        )
        assert on_fake_cuda({"mixer": "mixup"}, monkeypatch) != []
        return
    with pytest.raises(DataDependentOutputException):
        on_fake_cuda({"mixer": "mixup"}, monkeypatch)


# ----------------------------------------------------------------------------------------------
# tables


@pytest.mark.parametrize(
    "changes", METHODS, ids=lambda changes: "-".join(map(str, changes.values()))
)
def test_the_tables_are_the_draws_of_the_epoch(changes):
    """Independently: the loader's own batches, and the mixer's plans from the stream of the epoch,
    drawn one after the other.
    """
    step = make(Step, changes, recorded=False)
    tables, mixing = draw_tables(step.params, step.loader, step.mixer, 1), stream(0, "mixing", 1)
    step.begin(tables)
    for number, (images, labels) in enumerate(step.loader.epoch(1)):
        plan = step.mixer.draw(images.shape, mixing)
        expected = (images, labels, *step.mixer.apply(images, labels, plan))
        row = [tensor[number] for tensor in tables.tensors()]
        assert equal(step.batch(len(labels), *row[:-1]), expected)
        assert row[-1].item() == learning_rate(step.params, 3 + number, 6)


def test_a_later_step_of_an_epoch_is_the_same(monkeypatch):
    """Starting at step 2 gives the targets that step 2 of the whole epoch gives."""
    seen = {}
    for start in (0, 2):
        step = make(Step, {"mixer": "region_mixup"}, recorded=False)
        monkeypatch.setattr(
            step, "count", lambda labels, targets, *rest, start=start: seen.update({start: targets})
        )
        assert list(step.steps(0, start)) == [*range(start, 3)]
    assert torch.equal(seen[0], seen[2])


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
    step = make(Step, {"mixer": "region_mixup"}, recorded=False)
    tables = draw_tables(step.params, step.loader, step.mixer, 0)
    step.begin(tables)
    model = copy.deepcopy(step.model)
    images, labels, mixed, targets = step.batch(
        BATCH, *(tensor[0] for tensor in tables.tensors()[:-1])
    )
    loss, clean_logits, clean_loss, mixed_logits, mixed_loss = losses(
        step.params, model, images, labels, mixed, targets
    )
    step.launch(0)
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
    assert step.sums.tolist() == pytest.approx(expected, rel=1e-6)


# ----------------------------------------------------------------------------------------------
# compiled, and on a device


def test_a_compiled_step_trains_the_same_network(monkeypatch):
    """As torch.compile captures it, forward and backward; its code generation, half a minute on the
    CPU, is left out (`rmlib bench --compile` uses it).
    """
    compiled = []

    def capture(function):
        compiled.append(function)
        return torch.compile(function, backend="aot_eager", dynamic=False)

    monkeypatch.setattr(step_module, "compile_whole", capture)
    monkeypatch.setattr(step_module.shutil, "which", lambda name: "/usr/bin/c++")
    monkeypatch.setattr(mixers, "_on_host", lambda boxes: False)
    changes = {"mixer": "region_mixup"}
    found = run(make(Called, changes | {"compiled": True}))
    for mine, theirs in zip(found, run(make(Called, changes)), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)
    assert len(compiled) == 2, "the batch and the network"


def test_without_a_compiler_nothing_is_compiled(monkeypatch):
    monkeypatch.setattr(step_module.shutil, "which", lambda name: None)
    with pytest.raises(UserError, match="compiled=True needs a C.* compiler.*or leave it out"):
        make(Step, {"compiled": True})


def test_what_is_compiled_lies_in_the_cache_of_the_project(tmp_path):
    """torch sets that folder itself as soon as an optimiser is made, so it must be known before."""
    code = (
        "import os; from rmlib import train; from rmlib.params import TrainParams; import torch;"
        " torch.optim.SGD([torch.zeros(1)]); print(os.environ['TORCHINDUCTOR_CACHE_DIR'])"
    )
    environment = {
        name: value for name, value in os.environ.items() if name != "TORCHINDUCTOR_CACHE_DIR"
    } | {"RMLIB_CACHE": str(tmp_path)}
    answer = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == str(tmp_path / "compiled")


def on_cuda(kind, changes):
    """The same step as on the CPU, on a device."""
    cpu = make(Step, changes, recorded=False)
    loader = Loader(
        ImageSet(cpu.loader._windows[:, :, 2, 2].contiguous(), cpu.loader.labels, tuple("abc"), ""),
        BATCH,
        0,
        device="cuda",
    )
    model = make_model(cpu.params, CLASSES, None, None).cuda().train()
    return kind(cpu.params, model, make_optimizer(cpu.params, model), cpu.mixer, loader)


def agree(found, expected, rtol, atol):
    *weights, sums = (tensor.cpu() for tensor in found)
    *others, totals = (tensor.cpu() for tensor in expected)
    for mine, theirs in zip(weights, others, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=rtol, atol=atol)
    torch.testing.assert_close(sums[[0, 1, 2, 4]], totals[[0, 1, 2, 4]], rtol=rtol, atol=atol)
    assert (sums - totals).abs()[[3, 5]].max() <= 1, "a guess may tip over"


@pytest.mark.cuda
@pytest.mark.parametrize(
    "changes", METHODS, ids=lambda changes: "-".join(map(str, changes.values()))
)
def test_graphs_on_cuda_train_the_network_of_the_cpu(changes):
    agree(
        run(on_cuda(Step, changes), epochs=1),
        run(make(Step, changes, recorded=False), epochs=1),
        0.02,
        2e-3,
    )


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
    agree(run(on_cuda(Step, changes)), run(on_cuda(Called, changes)), 0.02, atol)


@pytest.mark.cuda
def test_no_call_within_an_epoch_synchronises():
    step = on_cuda(Step, {"mixer": "region_mixup"})
    step.ready(0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for number in range(len(step.loader)):
            step.launch(number)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    step.wait()
    assert step.sums[0].item() == COUNT
