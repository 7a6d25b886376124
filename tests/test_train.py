"""The loop of the paper: schedule, loss, order of the forwards, and where a training may stop."""

import inspect
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from rmlib import UserError, choices, data, train
from rmlib.choices import learning_rate
from rmlib.data import ImageSet, stream
from rmlib.params import TrainParams
from rmlib.train import (
    check_fits,
    losses,
    make_mixer,
    make_model,
    make_run,
    training,
    training_step,
)


def make(**changes):
    """A run of 3 epochs with 4 steps each."""
    pixels = torch.randint(0, 256, (60, 3, 8, 12), dtype=torch.uint8, generator=stream(0, "test"))
    images = ImageSet(pixels, torch.arange(60) % 3, ("a", "b", "c"), "")
    return make_run(TrainParams(width=2, epochs=3, batch_size=16, **changes), images)


def blank(count, height, width):
    """That many images of that size, of two classes."""
    pixels = torch.zeros(count, 3, height, width, dtype=torch.uint8)
    return ImageSet(pixels, torch.arange(count) % 2, ("a", "b"), "")


@pytest.mark.parametrize(
    "settings, images, words",
    [
        ({"batch_size": 17}, (16, 32, 32), "batch_size=17: there are only 16 training images"),
        ({"batch_size": 8, "k": 9}, (16, 8, 12), "k=9 tiles do not fit into 8 x 12.*k <= 8"),
        ({"batch_size": 8}, (17, 8, 8), "batch_size=8: the last of 17.*BatchNorm"),
        ({"batch_size": 8, "stem_stride": 4}, (17, 32, 32), "batch_size=8: the last of 17"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_the_first_step(settings, images, words):
    for refuse in (check_fits, make_run):
        with pytest.raises(UserError, match=words):
            refuse(TrainParams(width=1, **settings), blank(*images))


@pytest.mark.parametrize(
    "settings, images",
    [
        ({"batch_size": 16}, (16, 8, 8)),
        ({"batch_size": 8, "k": 8}, (16, 8, 12)),
        ({"batch_size": 8}, (17, 8, 9)),
        ({"batch_size": 8, "stem_stride": 3}, (17, 32, 32)),
    ],
)
def test_at_these_limits_a_run_can_be_trained(settings, images):
    params, data = TrainParams(width=1, epochs=1, **settings), blank(*images)
    data.images.random_(0, 256, generator=stream(0, "test"))
    for _ in training(make_run(params, data)):
        pass


# ----------------------------------------------------------------------------------------------
# schedule and loss


def test_the_papers_schedule_in_steps():
    paper = TrainParams(
        dataset="cifar10", width=64, epochs=400, batch_size=128, schedule="multistep", lr=0.1
    )
    rates = [learning_rate(paper, 391 * epoch, 391 * 400) for epoch in (0, 99, 100, 149, 150, 399)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])
    assert learning_rate(paper, 391 * 100 - 1, 391 * 400) == pytest.approx(0.1), (
        "the drop comes at the start of epoch 100"
    )


@pytest.mark.parametrize("epochs, steps_per_epoch", [(1, 4), (1, 7), (2, 3), (3, 5), (10, 391)])
def test_every_milestone_fires_in_every_schedule(epochs, steps_per_epoch):
    """Fractional epochs must not silently never fire."""
    steps = epochs * steps_per_epoch
    short = TrainParams(epochs=epochs, schedule="multistep", lr=1.0)
    rates = [round(learning_rate(short, step, steps), 6) for step in range(steps)]
    assert (
        rates[0] == 1.0
        and rates[-1] == 0.01
        and 0.1 in rates
        and rates == sorted(rates, reverse=True)
    )


def test_onecycle_rises_and_falls():
    lesson = TrainParams(schedule="onecycle", lr=0.5)
    rates = [learning_rate(lesson, step, 100) for step in range(100)]
    assert (
        rates[0] < 0.03
        and rates.index(max(rates)) == 20
        and max(rates) == pytest.approx(0.5)
        and 0 < rates[-1] < 0.01
    )


def loss_and_gradient(changes, mixer="region_mixup", seed=0):
    options = TrainParams(mixer=mixer, width=2, **changes)
    torch.manual_seed(seed)
    images, labels = torch.rand(6, 3, 8, 8), torch.tensor([0, 1, 2, 0, 1, 2])
    model = make_model(options, 3, None, None).double()
    mixed, targets = make_mixer(options, 3)(
        images.double(), labels, generator=torch.Generator().manual_seed(1)
    )
    clean_logits = model(images.double()) if options.clean_weight else None
    loss, *parts = losses(options, clean_logits, labels, model(mixed), targets.double())
    loss.backward()
    return loss.item(), torch.cat([p.grad.flatten() for p in model.parameters()]), parts


def test_the_loss_is_what_the_protocol_says():
    both, gradient, (clean, mixed) = loss_and_gradient({})
    assert both == pytest.approx(clean.item() + mixed.item())
    alone, _, (no_clean, mixed_alone) = loss_and_gradient({"clean_weight": 0})
    assert no_clean is None and alone == pytest.approx(mixed_alone.item())
    weighted, _, (clean, mixed) = loss_and_gradient({"clean_weight": 0.5})
    assert weighted == pytest.approx(0.5 * clean.item() + mixed.item())
    average, half, _ = loss_and_gradient({"average": True})
    assert average == pytest.approx(both / 2)
    torch.testing.assert_close(half, gradient / 2)


def test_no_mixing_with_the_clean_term_is_the_doubled_loss():
    doubled, twice, _ = loss_and_gradient({"clean_weight": 1}, "none")
    plain, once, _ = loss_and_gradient({"clean_weight": 0}, "none")
    assert doubled == pytest.approx(2 * plain)
    torch.testing.assert_close(twice, 2 * once)


def test_soft_targets_are_the_weighted_hard_losses():
    torch.manual_seed(0)
    logits, labels, partner = (
        torch.randn(5, 4),
        torch.tensor([0, 1, 2, 3, 0]),
        torch.tensor([1, 2, 3, 0, 0]),
    )
    targets = 0.3 * F.one_hot(labels, 4) + 0.7 * F.one_hot(partner, 4)
    torch.testing.assert_close(
        F.cross_entropy(logits, targets),
        0.3 * F.cross_entropy(logits, labels) + 0.7 * F.cross_entropy(logits, partner),
    )


# ----------------------------------------------------------------------------------------------
# the loop


def body(function):
    """The lines of a function without its head and docstring."""
    source = inspect.getsource(function)
    return source.split('"""')[-1].strip().splitlines()


@pytest.mark.parametrize("function", [training_step, training])
def test_the_loop_fits_on_a_slide(function):
    assert len(body(function)) <= 25


def test_the_core_is_read_in_one_sitting_and_stands_alone():
    names = ("mixers", "models", "data", "evaluate", "train")
    files = [Path(train.__file__).with_name(f"{name}.py") for name in names]
    assert sum(len(file.read_text().splitlines()) for file in files) <= 1000
    code = (
        "import sys; from rmlib import mixers, models, data, evaluate, train;"
        " print(*(name for name in sys.modules if name.startswith('rmlib.')))"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    imported = {name.split(".")[1] for name in answer.stdout.split()}
    assert imported.isdisjoint({"datasets", "robustness", "maps", "study"})


@pytest.mark.parametrize("clean_weight, forwards", [(1, 2), (0, 1)])
def test_the_clean_forward_comes_first_and_both_update_batchnorm(clean_weight, forwards):
    run, seen = make(clean_weight=clean_weight), []
    run.network = lambda images: seen.append(images) or run.model(images)
    row = run.draw(0).row(0, 16)
    images, _, mixed, _ = run.crop_flip_mix(row)
    training_step(run, row)
    assert len(seen) == forwards and torch.equal(seen[-1], mixed)
    assert torch.equal(seen[0], images) == bool(clean_weight)
    assert int(run.model.layer1[0].bn1.num_batches_tracked) == forwards


def test_gradients_are_of_one_step_alone():
    """What an earlier backward left in the parameters does not count."""
    runs = [make(), make()]
    for parameter in runs[0].model.parameters():
        parameter.grad = torch.ones_like(parameter)
    for run in runs:
        training_step(run, run.draw(0).row(0, 16))
    a, b = (run.model.state_dict().values() for run in runs)
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_a_training_may_stop_at_every_step_and_go_on():
    """Stopped after each of its steps by turns, it trains what it trains in one go."""
    whole, broken, places = make(), make(), []
    for _ in training(whole):
        places.append((whole.epoch, whole.step))
    assert places[:5] == [(0, 1), (0, 2), (0, 3), (0, 4), (1, 0)] and places[-1] == (3, 0)
    while broken.epoch < 3:
        steps = training(broken)
        next(steps)
        steps.close()
    assert torch.equal(whole.sums, broken.sums) and whole.sums[0] == 60
    a, b = (run.model.state_dict().values() for run in (whole, broken))
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert not list(training(whole)), "nothing is left to do"


def test_every_step_counts_its_seconds(monkeypatch):
    """Also those of a step that ends because the caller stops."""
    clock = [0.0]
    monkeypatch.setattr(train.time, "perf_counter", lambda: clock[0])
    run = make()
    steps = training(run)
    next(steps)
    clock[0] = 5
    steps.close()
    assert run.seconds == 5


def test_the_names_of_the_random_streams_stay(monkeypatch):
    """They are part of every result: another name is another stream."""
    purposes = set()

    def noticing(seed, purpose, epoch=0):
        purposes.add(purpose)
        return stream(seed, purpose, epoch)

    for module in (train, choices, data):
        monkeypatch.setattr(module, "stream", noticing)
    for _ in training(make()):
        pass
    assert purposes == {"initialisation", "order", "augmentation", "mixing"}
