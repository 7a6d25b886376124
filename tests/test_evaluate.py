import math

import numpy as np
import pytest
import torch
from toys import NO_LOGITS, Answering

from rmlib import UserError
from rmlib.data import load
from rmlib.evaluate import (
    eval_mode,
    evaluate,
    expected_calibration_error,
    full_precision,
    metrics,
    predict,
    sample,
)
from rmlib.models import preact_resnet18
from rmlib.packed import pack_bits, unpack_bits


def test_metrics_by_hand():
    probabilities = torch.tensor(
        [[0.5, 0.3, 0.2], [0.1, 0.6, 0.3], [0.2, 0.2, 0.6], [0.7, 0.2, 0.1]]
    )
    labels = torch.tensor([0, 2, 2, 0])
    result = metrics(probabilities.log(), labels)
    assert result["accuracy"] == 75.0 and result["top5"] == 100.0
    assert result["nll"] == pytest.approx(
        -(math.log(0.5) + math.log(0.3) + math.log(0.6) + math.log(0.7)) / 4
    )
    # bins of 1/15: 0.5 -> (7/15, 8/15], 0.6 twice -> (8/15, 9/15], 0.7 -> (10/15, 11/15]
    assert result["ece"] == pytest.approx(100 * (abs(1 - 0.5) + abs(1 - 1.2) + abs(1 - 0.7)) / 4)


def test_top5_counts_five():
    logits = torch.arange(10.0).expand(10, 10)  # the five best are classes 5..9
    assert metrics(logits, torch.arange(10))["top5"] == 50.0


def test_calibration_error_of_a_calibrated_and_a_boastful_predictor():
    rng = torch.Generator().manual_seed(0)
    confidence = 0.5 + 0.5 * torch.rand(20_000, generator=rng)
    labels = (
        torch.rand(20_000, generator=rng) > confidence
    ).long()  # class 0 with probability `confidence`
    logits = torch.stack([confidence, 1 - confidence], 1).log()
    assert expected_calibration_error(logits, labels) < 1.5
    assert expected_calibration_error(10 * logits, labels) > 10


def test_bits_survive_packing():
    correct = torch.rand(1003) < 0.3
    text = pack_bits(correct)
    assert np.array_equal(unpack_bits(text, 1003), correct.numpy()) and len(text) < 1003 / 5


def test_evaluation_leaves_the_model_as_it_was(pictures):
    torch.manual_seed(0)
    model = preact_resnet18(3, width=2).train()
    model.layer1.eval()  # frozen by the caller
    state = {name: value.clone() for name, value in model.state_dict().items()}
    result = evaluate(model, load(f"folder:{pictures}", split="test"))
    assert model.training and not model.layer1.training and model.layer2[0].bn1.training
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    right = result["predicted"] == load(f"folder:{pictures}", split="test").labels
    assert result["accuracy"] == pytest.approx(100 * right.double().mean())
    with pytest.raises(KeyError), eval_mode(model):
        assert not model.training
        raise KeyError
    assert model.training and torch.is_grad_enabled()


def test_prediction_does_not_depend_on_the_batch_size(pictures):
    torch.manual_seed(0)
    model, data = preact_resnet18(3, width=2), load(f"folder:{pictures}", split="test")
    torch.testing.assert_close(
        predict(model, data.images, batch_size=7), predict(model, data.images, batch_size=30)
    )


def test_full_precision_is_restored():
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = True
    try:
        with full_precision():
            assert not torch.backends.cudnn.allow_tf32
        assert torch.backends.cudnn.allow_tf32
    finally:
        torch.backends.cudnn.allow_tf32 = before


def test_samples_are_drawn_by_the_seed_and_never_twice():
    first = sample(100, 20, 0, "attacked")
    assert (
        torch.equal(first, sample(100, 20, 0, "attacked"))
        and first.unique().numel() == 20
        and torch.equal(first, first.sort().values)
    )
    assert not torch.equal(first, sample(100, 20, 1, "attacked")) and not torch.equal(
        first, sample(100, 20, 0, "maps")
    )
    assert torch.equal(sample(7, None, 0, "x"), torch.arange(7)) and torch.equal(
        sample(7, 50, 0, "x"), torch.arange(7)
    )
    assert set(sample(100, 20, 0, "attacked").tolist()) < set(
        sample(100, 30, 0, "attacked").tolist()
    ), "a larger sample contains the smaller"


def test_a_network_that_returns_no_logits_is_named():
    images = torch.zeros(3, 3, 8, 8, dtype=torch.uint8)
    for answer, got in NO_LOGITS.items():
        words = f"returns {got}: expected logits .N, classes. for N = 3 images; wrap"
        with pytest.raises(UserError, match=words):
            predict(Answering(answer), images)
