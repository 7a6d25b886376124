"""A run from its images to its record: stopped, killed, damaged, and always the same result."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from rmlib import Stopped, UserError
from rmlib.data import load
from rmlib.evaluate import predict
from rmlib.params import TrainParams
from rmlib.study.runs import checkpoint, networks, records, run
from rmlib.study.runs.checkpoint import Checkpoints
from rmlib.study.runs.records import CHECKPOINT, PREVIOUS
from rmlib.study.runs.run import StoredRun, train
from rmlib.study.settings import parse
from rmlib.train import training


def params(tiny_run, **changes) -> TrainParams:
    return parse("02_training", tiny_run | changes)


def quiet(_):
    pass


def train_epoch(stored):
    for _ in training(stored.core):
        if stored.core.step == 0:
            break


def test_a_run_learns_and_leaves_a_complete_record(tiny_run):
    options = params(
        tiny_run,
        epochs=8,
        width=4,
        mixer="none",
        clean_weight=0,
        snapshots=[2],
        bn_recalibration=True,
    )
    lines = []
    record = train(options, log=lines.append)
    assert record.metrics["accuracy"] > 60, "three classes of plain colours; chance is 33"
    assert [row["epoch"] for row in record.history] == list(range(1, 9)) and len(lines) == 8
    assert record.history[1]["test_accuracy"] == record.snapshots["2"]["accuracy"]
    assert record.history[-1]["test_accuracy"] == record.metrics["accuracy"]
    assert set(record.bn_recalibrated) == set(record.metrics) | {"correct"}
    assert sorted(p.name for p in options.folder.iterdir()) == [
        ".lock",
        "record.json",
        "weights.safetensors",
    ]
    text = (options.folder / "record.json").read_text()
    assert (
        tiny_run["dataset"].removeprefix("folder:") not in text
        and os.path.expanduser("~") not in text
    )
    assert train(options, log=lines.append) == record and "finished already" in lines[-1]
    data = load(options.dataset, split="test")
    logits = predict(networks.load(options.folder), data.images)
    assert 100 * (logits.argmax(1) == data.labels).double().mean().item() == pytest.approx(
        record.metrics["accuracy"]
    )


def test_a_finished_run_of_other_images_is_refused(tiny_run, pictures, tmp_path):
    train(params(tiny_run, epochs=1), log=quiet)
    other = shutil.copytree(pictures, tmp_path / "elsewhere" / pictures.name)
    next((other / "train" / "red").iterdir()).unlink()
    with pytest.raises(UserError, match="other images"):
        train(params(tiny_run, epochs=1, dataset=f"folder:{other}"), log=quiet)


def test_a_checkpoint_of_other_images_is_refused(tiny_run, pictures, tmp_path):
    with pytest.raises(Stopped):
        train(params(tiny_run, max_minutes=1e-4), log=quiet)
    other = shutil.copytree(pictures, tmp_path / "elsewhere" / pictures.name)
    next((other / "train" / "red").iterdir()).unlink()
    with pytest.raises(UserError, match="other images"):
        train(params(tiny_run, dataset=f"folder:{other}"), log=quiet)


def test_two_processes_never_train_one_run(tiny_run):
    options = params(tiny_run)
    with records.only_process(options.folder):
        code = (
            "from rmlib.study.runs import records; from pathlib import Path;"
            f" records.only_process(Path({str(options.folder)!r})).__enter__()"
        )
        answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert answer.returncode != 0 and "another process is training" in answer.stderr
    train(options, log=quiet)


def weights_of(folder):
    return load_file(folder / records.WEIGHTS)


def equal_weights(a, b):
    a, b = weights_of(a.folder), weights_of(b.folder)
    return all(torch.equal(a[name], b[name]) for name in a)


def stopping_at(step):
    """The training of a run that is stopped after that step, counted over its epochs of 4."""

    def stopped(core, recording=None):
        for _ in training(core, recording):
            if core.step and core.epoch * 4 + core.step == step:
                raise Stopped("test")
            yield

    return stopped


@pytest.mark.parametrize("mixer", ["none", "region_mixup", "cutmix"])
def test_a_stopped_run_goes_on_bit_for_bit(tiny_run, tmp_path, mixer, monkeypatch):
    """Stopped inside an epoch, twice, and resumed: weights, history and verdicts equal those of a
    run never stopped.
    """
    changes = {"mixer": mixer, "eval_every": 2}
    whole = params(tiny_run, **changes)
    expected = train(whole, log=quiet)
    broken = params(tiny_run, **changes, out=str(tmp_path / "broken"))
    for stop_at in (3, 7):  # of 12 steps: inside epochs 1 and 2
        with monkeypatch.context() as patches, pytest.raises(Stopped):
            patches.setattr(run, "training", stopping_at(stop_at))
            train(broken, log=quiet)
        assert not (broken.folder / records.RECORD).exists()
    record = train(broken, log=quiet)
    assert (
        record.restarts == 2
        and record.history == expected.history
        and record.correct == expected.correct
    )
    assert record.metrics == expected.metrics
    assert equal_weights(whole, broken)


def test_a_different_seed_is_a_different_run(tiny_run):
    losses_ = {
        seed: train(params(tiny_run, seed=seed, epochs=1), log=quiet).history[0]["loss"]
        for seed in (0, 1)
    }
    assert losses_[0] != losses_[1]


def test_all_mixers_start_from_the_same_network_and_see_the_same_clean_images(tiny_run):
    stored = [StoredRun(params(tiny_run, mixer=mixer)) for mixer in ("none", "region_mixup")]
    a, b = (each.core.model.state_dict() for each in stored)
    assert all(torch.equal(a[name], b[name]) for name in a)
    seen = []
    for each in stored:
        images, make_batch = [], each.core.crop_flip_mix
        each.core.crop_flip_mix = lambda choices, images=images, make_batch=make_batch: (
            images.append(make_batch(choices)[0]) or make_batch(choices)
        )
        train_epoch(each)
        seen.append(images)
    assert len(seen[0]) == 4 and all(torch.equal(x, y) for x, y in zip(*seen, strict=True))


def test_the_global_random_state_stays(tiny_run):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    train(params(tiny_run, epochs=1), log=quiet)
    assert torch.equal(torch.get_rng_state(), before)


def test_max_minutes_stops_with_a_checkpoint(tiny_run):
    with pytest.raises(Stopped, match="max_minutes=0.0001.*epoch 1 of 3.*goes on"):
        train(params(tiny_run, max_minutes=1e-4), log=quiet)
    assert train(params(tiny_run), log=quiet).restarts == 1


def test_checkpoints_take_a_hundredth_of_the_time(tiny_run, monkeypatch):
    """With a clock of our own: an epoch takes 10 s, a checkpoint 1 s, so one is written after every
    tenth epoch, and after the last.
    """
    clock, written, write = [0.0], [], records.atomic_write
    monkeypatch.setattr(run.time, "perf_counter", lambda: clock[0])

    def slow_epochs(core, recording=None):
        for _ in training(core, recording):
            clock[0] += 10 * (core.step == 0)
            yield

    def slow_write(path, content, **options):
        if path.name == CHECKPOINT:
            clock[0] += 1
            written.append(clock[0])
        write(path, content, **options)

    monkeypatch.setattr(run, "training", slow_epochs)
    monkeypatch.setattr(records, "atomic_write", slow_write)
    record = train(
        params(tiny_run, epochs=25, train_images=6, batch_size=6, eval_every=0), log=quiet
    )
    epochs = [round((moment - number) / 10) for number, moment in enumerate(written, 1)]
    assert epochs == [1, 11, 21, 25] and record.checkpoint_seconds == 4


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_with_a_checkpoint(tiny_run, number):
    many = tiny_run | {"epochs": 500}
    options = [
        word for name, value in many.items() for word in (f"--{name.replace('_', '-')}", str(value))
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "rmlib", "train", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert "epoch" in process.stdout.readline(), "it trains"
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 75 and number.name in errors and errors.count("\n") == 1
    stored = StoredRun(params(many))
    assert stored.progress["restarts"] == 1 and stored.core.epoch >= 1


def test_a_killed_run_goes_on_from_its_last_checkpoint_bit_for_bit(tiny_run, tmp_path):
    """As after a power cut: SIGKILL at some moment after the first checkpoint; no half-written file
    is in the way.
    """
    many = tiny_run | {"epochs": 40, "eval_every": 20}
    options = [
        word
        for name, value in (many | {"out": str(tmp_path / "killed")}).items()
        if value is not None
        for word in (f"--{name.replace('_', '-')}", str(value))
    ]
    killed = params(many, out=str(tmp_path / "killed"))
    process = subprocess.Popen(
        [sys.executable, "-m", "rmlib", "train", "--train-images", "all", *options],
        stdout=subprocess.DEVNULL,
    )
    while not (killed.folder / CHECKPOINT).exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    record, whole = train(killed, log=quiet), train(params(many), log=quiet)
    assert (
        record.restarts == 1 and record.history == whole.history and record.correct == whole.correct
    )
    assert equal_weights(killed, params(many))


def test_a_diverged_run_says_so(tiny_run):
    lines = []
    begun = time.perf_counter()
    record = train(params(tiny_run, lr=1e30, epochs=50), log=lines.append)
    assert (
        record.status == "diverged"
        and record.metrics == {}
        and len(record.history) < 5
        and "diverged" in lines[-1]
    )
    assert (
        json.loads((params(tiny_run, lr=1e30, epochs=50).folder / "record.json").read_text())[
            "history"
        ][-1]["loss"]
        is None
    )
    assert time.perf_counter() - begun < 30


def test_a_truncated_checkpoint_is_named(tiny_run):
    options = params(tiny_run, max_minutes=1e-4)
    with pytest.raises(Stopped):
        train(options, log=quiet)
    path = options.folder / CHECKPOINT
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match="checkpoint.pt is damaged.*delete it") as error:
        train(options, log=quiet)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:1000]),
        lambda path: path.write_bytes(b""),
        lambda path: path.unlink(),
        lambda path: torch.save({"model": {}}, path),
        lambda path: path.write_bytes(
            path.read_bytes().replace(path.read_bytes()[5000:5064], b"x" * 64)
        ),
    ],
    ids=["truncated", "empty", "gone", "another program's", "overwritten in the middle"],
)
def test_a_damaged_checkpoint_costs_one_checkpoint(tiny_run, tmp_path, monkeypatch, damage):
    """The one before is used and says so; the run ends as if never stopped, bit for bit."""
    monkeypatch.setattr(checkpoint, "SHARE", float("inf"))  # one after every epoch
    many, lines, written = tiny_run | {"epochs": 5}, [], []
    options, save = params(many, out=str(tmp_path / "stopped")), Checkpoints.save

    def stop(checkpoints):
        save(checkpoints)
        written.append(checkpoints.run.core.epoch)
        if written[-1] == 3:
            raise InterruptedError("the power is cut")

    with monkeypatch.context() as patches, pytest.raises(InterruptedError):
        patches.setattr(Checkpoints, "save", stop)
        train(options, log=quiet)
    assert written == [1, 2, 3]
    damage(options.folder / CHECKPOINT)
    left = (options.folder / CHECKPOINT).exists()
    record, whole = train(options, log=lines.append), train(params(many), log=quiet)
    assert ("checkpoint.pt is damaged" in lines[0] and "the one before is used" in lines[0]) == left
    assert any("goes on from epoch 3" in line for line in lines[:2])
    assert (
        record.restarts == 1 and record.history == whole.history and record.correct == whole.correct
    )
    assert equal_weights(options, params(many))


def test_a_good_checkpoint_is_never_replaced_by_a_damaged_one(tiny_run, monkeypatch):
    """The last one is damaged, the one before is used, and then the disk is full while the next is
    written, or the process is killed there.
    """
    monkeypatch.setattr(checkpoint, "SHARE", float("inf"))
    options = params(tiny_run, epochs=5, max_minutes=1e-4)
    for _ in range(2):
        with pytest.raises(Stopped):
            train(options, log=quiet)
    path = options.folder / CHECKPOINT
    assert path.exists() and (options.folder / PREVIOUS).exists()
    path.write_bytes(path.read_bytes()[:1000])
    (options.folder / f".{CHECKPOINT}.123").write_bytes(b"half of one")
    stored = StoredRun(options, log=quiet)
    assert not (options.folder / f".{CHECKPOINT}.123").exists(), (
        "what a killed process left is cleaned away"
    )
    place = stored.core.epoch, stored.core.step
    with monkeypatch.context() as full:
        full.setattr("builtins.open", _full_disk)
        with pytest.raises(UserError, match="No space left"):
            stored.checkpoints.save()
    again = StoredRun(options, log=lambda line: pytest.fail(line))
    assert (again.core.epoch, again.core.step) == place
    with monkeypatch.context() as killed:
        killed.setattr(records.os, "replace", lambda *_: os._exit(9))  # at its first replacement
        process = os.fork()
        if not process:
            stored.checkpoints.save()
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 9
    again = StoredRun(options, log=lambda line: pytest.fail(line))
    assert (again.core.epoch, again.core.step) == place


def test_a_second_signal_does_not_cost_the_checkpoint(tiny_run, monkeypatch):
    """A machine that shuts down signals every process, and an ending batch its kernels. Where
    somebody watches, the second Ctrl-C interrupts at once.
    """
    for watched in (False, True):
        monkeypatch.setattr(checkpoint, "interactive", lambda: watched)
        with checkpoint.noticing_signals() as seen:
            for number in (signal.SIGTERM, signal.SIGTERM):
                os.kill(os.getpid(), number)
            try:
                os.kill(os.getpid(), signal.SIGINT)
                interrupted = False
            except KeyboardInterrupt:
                interrupted = True
        assert seen[0] == "SIGTERM" and interrupted == watched


def test_a_full_disk_loses_nothing(tiny_run, monkeypatch):
    monkeypatch.setattr(checkpoint, "SHARE", float("inf"))  # one after every epoch
    options = params(tiny_run)
    original, calls = records.atomic_write, []

    def full(path, content, **options):
        calls.append(path.name)
        if len(calls) == 3:
            monkeypatch.setattr("builtins.open", _full_disk)
        original(path, content, **options)

    monkeypatch.setattr(records, "atomic_write", full)
    with pytest.raises(UserError, match="cannot be written.*No space left.*make room"):
        train(options, log=quiet)
    monkeypatch.undo()
    assert StoredRun(options).core.epoch == 2, "the checkpoint of the second epoch is whole"
    assert not [
        p for p in options.folder.iterdir() if p.name.startswith(".") and p.name != ".lock"
    ], "no half-written file is left"


def _full_disk(*_, **__):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"device": "cuda"}, "no CUDA device"),
        ({"k": 9}, "k=9 tiles do not fit"),
        ({"train_images": 16}, "number of classes \\(3\\), here at most 60, or all"),
    ],
)
def test_mistakes_that_need_the_data_or_the_machine(tiny_run, changes, words, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=words):
        train(params(tiny_run, **changes), log=quiet)


def test_an_unwritable_folder(tiny_run, tmp_path):
    blocked = tmp_path / "a file"
    blocked.write_text("")
    with pytest.raises(UserError, match="choose another folder"):
        train(params(tiny_run, out=str(blocked / "runs")), log=quiet)


def test_holdout_trains_without_val_and_evaluates_on_it(tiny_run):
    stored = StoredRun(params(tiny_run, holdout=True))
    assert (len(stored.train_set), len(stored.test_set)) == (54, 6)


def test_bf16_trains_close_to_fp32(tiny_run):
    losses_ = [
        train(params(tiny_run, precision=p, epochs=1), log=quiet).history[0]["loss"]
        for p in ("fp32", "bf16")
    ]
    assert losses_[0] != losses_[1] and losses_[0] == pytest.approx(losses_[1], rel=0.05)


def test_a_narrow_network_learns_most_of_shapes_and_not_all(tmp_path):
    """The stated size, seed and length: 1800 images, 3 epochs, seed 0, width 8; measured on val
    (seeds 0 to 2: 88, 85, 88 %).
    """
    options = TrainParams(
        mixer="none",
        clean_weight=0,
        epochs=3,
        train_images=1800,
        batch_size=25,
        lr=0.02,
        holdout=True,
        eval_every=0,
        out=str(tmp_path),
    )
    assert 75 < train(options, log=quiet).metrics["accuracy"] < 92


@pytest.mark.cuda
def test_a_cuda_run_has_the_same_course(tiny_run, tmp_path):
    on_cpu = train(params(tiny_run, epochs=1), log=quiet)
    on_cuda = train(params(tiny_run, epochs=1, device="cuda", out=str(tmp_path)), log=quiet)
    assert on_cuda.history[0]["loss"] == pytest.approx(on_cpu.history[0]["loss"], rel=0.02)


@pytest.mark.cuda
def test_a_stopped_run_on_cuda_goes_on_within_the_difference_of_two_runs(
    tiny_run, tmp_path, monkeypatch
):
    """Kernels there may add in another order; a run that was stopped must differ from a whole one
    no more than two whole ones do.
    """
    cells = [
        params(tiny_run, device="cuda", out=str(tmp_path / name))
        for name in ("one", "another", "stopped")
    ]
    for cell in cells[:2]:
        train(cell, log=quiet)
    with monkeypatch.context() as patches, pytest.raises(Stopped):
        patches.setattr(run, "training", stopping_at(3))
        train(cells[2], log=quiet)
    assert train(cells[2], log=quiet).restarts == 1
    one, another, stopped = (
        torch.cat([value.double().flatten() for value in weights_of(cell.folder).values()])
        for cell in cells
    )
    assert (another - one).abs().max() < 0.05 and (stopped - one).abs().max() <= 10 * (
        another - one
    ).abs().max() + 1e-6
