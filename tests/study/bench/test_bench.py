"""The benchmarks: what is counted must be what is said, so it is checked where it can be known."""

import gc
import weakref

import pytest
import torch

from rmlib.params import TrainParams
from rmlib.study.bench import measuring, mixing, timing
from rmlib.study.bench import training as bench
from rmlib.study.cli import main

CPU = torch.device("cpu")


def test_a_rate_counts_every_image_of_an_epoch_and_all_of_its_time(monkeypatch):
    """Every forward takes two seconds here, so that an epoch takes two seconds for each."""
    data, clock, sizes = bench.random_set(3 * 128, 8), [0.0], []
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock[0])
    make = bench.make_run

    def slow(*inputs):
        run = make(*inputs)
        run.model.register_forward_pre_hook(forward)
        return run

    def forward(_, inputs):
        clock[0] += 2.0
        sizes.append(len(inputs[0]))

    monkeypatch.setattr(bench, "make_run", slow)
    rates = bench.rates(CPU, data, 1, width=1)
    assert len(rates) == 9 and set(sizes) == {128}
    for name, rate in rates.items():
        assert rate == len(data) / (12 if name.endswith("clean + mixed") else 6)


@pytest.mark.parametrize("weight, factor", [(0, 1), (1, 2)])
def test_a_full_epoch_trains_on_every_image_with_every_call(weight, factor):
    """The second call goes on where the first one ended."""
    data = bench.random_set(256, 8)
    params = TrainParams(mixer="mixup", clean_weight=weight, width=1, batch_size=128, epochs=9)
    run, seen = bench.make_run(params, data, CPU), []
    run.model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    epoch = bench.full_epoch(run)
    epoch()
    assert sum(map(len, seen)) == factor * len(data)
    epoch()
    assert len(seen) == 4 * factor and not torch.equal(seen[0], seen[2 * factor])


def test_the_bare_step_trains_on_its_one_batch():
    """No loader, no mixing, no totals; and the whole network still learns."""
    data, seen = bench.random_set(256, 8), []
    params = TrainParams(mixer="none", clean_weight=0, width=1, batch_size=128, epochs=9)
    run = bench.make_run(params, data, CPU)
    before = [parameter.clone() for parameter in run.model.parameters()]
    run.model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    images = torch.rand(128, 3, 8, 8)
    bench.bare_epoch(params, run.model, run.optimizer, images, steps=2)()
    assert all((a != b).any() for a, b in zip(before, run.model.parameters()))
    assert len(seen) == 2 and all(each is images for each in seen)


@pytest.mark.cuda
@pytest.mark.parametrize("compiled", [False, True])
def test_a_recorded_bare_step_outlives_its_run(compiled):
    """Its network is still there and learns, and the step stays clear of what is allocated afterwards."""
    cuda, data = torch.device("cuda"), bench.random_set(256, 8)
    weightless = {"mixer": "none", "clean_weight": 0, "width": 2, "batch_size": 128}
    run = bench.make_run(TrainParams(**weightless, compiled=compiled), data, cuda)
    first = next(run.model.parameters())
    network = weakref.ref(run.model)
    images = torch.rand(128, 3, 8, 8, device=cuda)
    epoch = bench.bare_epoch(run.params, run.model, run.optimizer, images, steps=2)
    del run, images
    before = first.detach().clone()  # the recording has taken steps of its own
    gc.collect()
    others = [torch.full((100, 100), 7.0, device=cuda) for _ in range(100)]
    epoch()
    torch.cuda.synchronize()
    assert network() is not None
    assert torch.isfinite(first).all() and not torch.equal(first, before)
    assert all((each == 7).all() for each in others)


def test_every_table_has_its_rows(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(mixing, "SHAPES", ((8, 3, 8, 8),))
    monkeypatch.setattr(mixing, "IMAGES", 128)
    monkeypatch.setattr(bench, "BATCH", 16)
    monkeypatch.setitem(bench.SIZES, "cpu", (1, 2))
    monkeypatch.setitem(measuring.ATTACKED, "cpu", (4, 1, 1))
    monkeypatch.setitem(measuring.MAPPED, "cpu", (2, 1, 1))
    assert main(["bench", "--rounds", "1", "--out", str(tmp_path / "bench.md")]) == 0
    text = capsys.readouterr().out
    rows = [
        f"full step, {mixer}, {words}"
        for mixer in ("No mixing", "Mixup", "CutMix", "Region Mixup")
        for words in ("mixed alone", "clean + mixed")
    ]
    for row in ("bare step", *rows):
        line = next(line for line in text.splitlines() if line.startswith(f"| {row} |"))
        rate, share = line.split("|")[2:4]
        assert float(rate) > 0 and float(share.rstrip("% ")) > 0
        assert row != "bare step" or share == " 100.0 % "
    assert "width 1, fp32, batch 16, 32 random images" in text
    for name in (
        "naive loop k=4",
        "torchvision v2.MixUp",
        "on-device loader",
        "PIL + DataLoader",
        "fgsm",
        "square",
        "ours, layer4",
        "grad-cam, layer3",
    ):
        assert f"| {name} |" in text
    assert "| 8x3x8x8 | Region Mixup k=4 |" in text
    assert (tmp_path / "bench.md").read_text().strip() == text.strip()
