"""A step that a GPU can replay takes everything that changes from tensors.

A recording on the CPU shows it without a GPU: it repeats the operations of one call with whatever
Python knew at the time.
"""

import copy

import pytest
import torch
from tapes import BATCH, COUNT, Called, Replayed, each_method, equal, make, trained

from rmlib import mixers, train
from rmlib.recorded import Recording


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
