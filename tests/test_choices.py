"""The tables of an epoch's choices, and the steps that take their rows."""

import copy

import pytest
import torch
from tapes import BATCH, METHODS, each_method, equal, make

from rmlib import mixers, train
from rmlib.choices import learning_rate
from rmlib.data import stream
from rmlib.mixers import Plan
from rmlib.params import TrainParams
from rmlib.train import losses, make_mixer, training


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
