"""The benchmark of training: what it counts must be what it says, so its numbers are checked where
they can be known.
"""

import contextlib

import pytest
import torch

from rmlib.recorded import Step
from rmlib.study.bench import training as bench
from rmlib.study.cli import main

CPU = torch.device("cpu")


def test_operations_of_a_step_are_those_of_the_cost_model():
    """1.1109 GFLOP for the forward of one image at width 64, 2.997 times that for forward and
    backward: 20 convolutions counted by hand.
    """
    maps = [(3, 64, 32, 3)] + [(64, 64, 32, 3)] * 4
    for channels, size in ((64, 16), (128, 8), (256, 4)):
        maps += [(channels, 2 * channels, size, 3), (channels, 2 * channels, size, 1)] + [
            (2 * channels, 2 * channels, size, 3)
        ] * 3
    forward = sum(2 * c * out * size**2 * kernel**2 for c, out, size, kernel in maps) + 2 * 512 * 10
    assert forward == pytest.approx(1.1109e9, rel=1e-3)
    first = 2 * 3 * 64 * 32**2 * 9  # no gradient of the pixels
    assert bench.flops_per_image(64) == pytest.approx(3 * forward - first, rel=1e-6)


def test_the_matrix_rate_is_counted_right(monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr(
        bench.time, "perf_counter", lambda: next(clock)
    )  # every product takes one second
    assert bench.matrix_rate(CPU, torch.float32, repeats=1) == 2 * 1024**3


def test_a_rate_counts_every_image_of_an_epoch_and_all_of_its_time(monkeypatch):
    data, clock = bench.random_set(3 * 128 + 80, 8), [0.0]
    monkeypatch.setattr(bench.time, "perf_counter", lambda: clock[0])
    launch, sizes = Step.launch, []

    def slow(self, number):
        clock[0] += 2.0
        sizes.append(self.loader.size_of(number))
        launch(self, number)

    monkeypatch.setattr(Step, "launch", slow)
    rates = bench.Clock(
        {
            name: bench.make_step(data, CPU, kind, width=1, mixer="mixup")
            for name, kind in (("full", Step), ("bare", bench.Bare))
        }
    ).rates(1)
    assert rates == {"full": len(data) / 8, "bare": len(data) / 8} and sizes[:4] == [
        128,
        128,
        128,
        80,
    ]
    assert bench.together(data, CPU, 2, 1, width=1, mixer="mixup") == 2 * len(data) / 16


def test_the_bare_step_trains_on_its_one_batch():
    """No loader, no mixing, no totals; and the network still learns, so nothing of the step itself
    is left out.
    """
    data = bench.random_set(256, 8)
    step = bench.make_step(data, CPU, bench.Bare, width=1, mixer="none", clean_weight=0)
    before = [parameter.clone() for parameter in step.model.parameters()]
    list(step.steps(0))
    assert not step.sums.any() and all(
        (a != b).any() for a, b in zip(before, step.model.parameters())
    )
    images, labels, mixed, targets = step.batch(128)
    assert mixed is images and torch.equal(targets.argmax(1), labels)


def test_the_training_tables(capsys, monkeypatch):
    """Every row that the command promises, each with a number; processes and the plain loop on a
    set of a few batches.
    """
    monkeypatch.setitem(bench.SIZES, "cpu", (1, 2))
    monkeypatch.setattr(bench, "SEVERAL", (1,))
    assert main(["bench", "--only", "training", "--rounds", "1"]) == 0
    text = capsys.readouterr().out
    for row in (
        "bare step, operation by operation",
        "full step, Mixup, mixed alone",
        "full step, CutMix, clean + mixed",
        "full step, Region Mixup k=4, mixed alone",
        "loader, augmentation and targets",
        "mixing, Region Mixup",
        "running totals",
        "drawing (host), CutMix",
        "evaluation of 1000 images, fp32",
        "bytes of a checkpoint",
        "1 in one process",
        "1 processes",
        "DataLoader with 0 workers, torchvision v2, plain loop",
        "ours",
    ):
        line = next(line for line in text.splitlines() if line.startswith(f"| {row} |"))
        assert (
            row.startswith("mixing") or float(line.split("|")[2]) >= 0
        )  # a difference of two noisy times
    assert "TFLOP/s" in text and "of width 1, fp32, batch 128, 208 random images" in text


def test_a_part_that_does_not_exist(capsys):
    assert main(["bench", "--only", "trainin"]) == 2 and "trainin" in capsys.readouterr().err


@pytest.mark.cuda
def test_an_epoch_on_cuda_does_not_wait_for_the_host():
    """All steps of an epoch are sent off in a fraction of the time that they take, so the host read
    nothing back in between.
    """
    import time

    step = bench.make_step(
        bench.random_set(128 * 50),
        torch.device("cuda"),
        width=64,
        mixer="region_mixup",
        precision="bf16",
    )
    list(step.steps(0))
    step.begin(step.draw(1))
    step.wait()
    begun = time.perf_counter()
    for number in range(len(step.loader)):
        step.launch(number)
    sent = time.perf_counter() - begun
    step.wait()
    assert sent < 0.5 * (time.perf_counter() - begun)


def test_the_tables_of_the_batch(monkeypatch):
    """Every way runs the same cells; one worker is the measure."""
    from rmlib.study.bench import batch as bench_batch

    monkeypatch.setattr(bench_batch, "FINISHED", 400)
    monkeypatch.setattr(bench_batch, "CELLS", 1)
    monkeypatch.setattr(
        bench_batch,
        "GRID",
        bench_batch.GRID | {"width": 2, "epochs": 1, "train_images": 50, "test_images": 20},
    )
    monkeypatch.setattr(
        bench_batch, "_ray_cluster", contextlib.nullcontext
    )  # tested with clusters of its own
    rows = {name: values for name, *values in bench_batch.batch_rows(1)}
    assert (
        set(rows) == {"one worker", "two workers", "two workers beside 400 finished cells"}
        and rows["one worker"][-1] == 1
    )
    for seconds, own, beside, _ in rows.values():
        assert seconds > own > 0 and beside > 0
    assert [(count, seconds > 0) for _, count, seconds in bench_batch.plan_rows()] == [
        (400, True)
    ] * 3
