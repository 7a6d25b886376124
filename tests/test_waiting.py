"""A step on a GPU never waits for the host.

Fake CUDA tensors show it without a GPU: they have no values that the host could read.
"""

import copy

import pytest
import torch
from tapes import BATCH, CLASSES, COUNT, each_method, make
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from rmlib import mixers, train
from rmlib.choices import Choices
from rmlib.models import preact_resnet18
from rmlib.recorded import Recording
from rmlib.train import Run, losses, make_optimizer


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


def rate_as_number(optimizer, rate):
    """A learning rate that the host reads."""
    optimizer.param_groups[0]["lr"] = rate.item()


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
