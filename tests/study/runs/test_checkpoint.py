"""A run that was stopped, killed, or whose checkpoint is damaged ends as if never stopped."""

import os
import shutil
import signal
import subprocess
import sys
import zipfile

import pytest
import torch
from safetensors.torch import load_file

from rmlib import Stopped, UserError
from rmlib.params import TrainParams
from rmlib.study.runs import checkpoint, records, run
from rmlib.study.runs.checkpoint import Checkpoints
from rmlib.study.runs.records import CHECKPOINT, PREVIOUS
from rmlib.study.runs.run import StoredRun, train
from rmlib.study.settings import parse
from rmlib.train import training


def params(tiny_run, **changes) -> TrainParams:
    return parse("02_training", tiny_run | changes)


def quiet(_):
    pass


def weights_of(options):
    return load_file(options.folder / records.WEIGHTS)


def assert_equal(options, record, whole, expected):
    """A run and its record equal those of a run that was never stopped, bit for bit."""
    assert record.history == expected.history and record.metrics == expected.metrics
    assert record.correct == expected.correct
    weights, others = weights_of(options), weights_of(whole)
    assert all(torch.equal(weights[name], others[name]) for name in others)


@pytest.fixture(scope="module")
def five_epochs(pictures, tmp_path_factory):
    """Parameters and record of a run of five epochs that was never stopped."""
    out = str(tmp_path_factory.mktemp("whole"))
    size = {"width": 2, "epochs": 5, "batch_size": 16, "lr": 0.02, "train_images": None}
    options = TrainParams(dataset=f"folder:{pictures}", out=out, device="cpu", **size)
    return options, train(options, log=quiet)


def stopping_at(step):
    """The training of a run that is stopped after that step, counted over its epochs of 4."""

    def stopped(core, recording=None):
        for _ in training(core, recording):
            if core.step and core.epoch * 4 + core.step == step:
                raise Stopped("test")
            yield

    return stopped


@pytest.mark.parametrize("mixer", ["region_mixup", "cutmix"])
def test_a_stopped_run_goes_on_bit_for_bit(tiny_run, tmp_path, mixer, monkeypatch):
    """Stopped inside an epoch, twice, and resumed."""
    changes = {"mixer": mixer, "eval_every": 2}
    whole = params(tiny_run, **changes)
    broken = params(tiny_run, **changes, out=str(tmp_path / "broken"))
    for stop_at in (3, 7):  # of 12 steps: inside epochs 1 and 2
        with monkeypatch.context() as patches, pytest.raises(Stopped):
            patches.setattr(run, "training", stopping_at(stop_at))
            train(broken, log=quiet)
        assert not (broken.folder / records.RECORD).exists()
    record = train(broken, log=quiet)
    assert record.restarts == 2
    assert_equal(broken, record, whole, train(whole, log=quiet))


def test_max_minutes_stops_with_a_checkpoint(tiny_run):
    with pytest.raises(Stopped, match="max_minutes=0.0001.*epoch 1 of 3.*goes on"):
        train(params(tiny_run, max_minutes=1e-4), log=quiet)
    assert train(params(tiny_run), log=quiet).restarts == 1


def test_checkpoints_take_a_hundredth_of_the_time(tiny_run, monkeypatch):
    """With a clock of our own: an epoch takes 10 s, a checkpoint 1 s.

    So one is written after every tenth epoch, and after the last.
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
    small = {"train_images": 6, "batch_size": 6, "eval_every": 0}
    record = train(params(tiny_run, epochs=25, **small), log=quiet)
    epochs = [round((moment - number) / 10) for number, moment in enumerate(written, 1)]
    assert epochs == [1, 11, 21, 25] and record.checkpoint_seconds == 4


# `rmlib train`, which gets a signal in the middle of its third epoch
SIGNALLED = """
import os, sys
from rmlib.study.cli import main
from rmlib.study.runs import run
training = run.training
def signalled(core, recording=None):
    for _ in training(core, recording):
        if (core.epoch, core.step) == (2, 2):
            os.kill(os.getpid(), int(sys.argv[1]))
        yield
run.training = signalled
sys.exit(main(["train", *sys.argv[2:]]))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_run_that_is_stopped_or_killed_goes_on_bit_for_bit(five_epochs, tmp_path, number):
    """SIGTERM: it ends with a checkpoint. SIGKILL, as a power cut: it has the last one."""
    whole, record = five_epochs
    broken = whole.model_copy(update={"out": str(tmp_path / "broken")})
    names = ("dataset", "width", "epochs", "batch_size", "lr", "out", "device")
    words = [f"--{name.replace('_', '-')}={getattr(broken, name)}" for name in names]
    command = [sys.executable, "-c", SIGNALLED, str(int(number)), "--train-images", "all", *words]
    process = subprocess.run(command, capture_output=True, text=True)
    if number == signal.SIGTERM:
        assert process.returncode == 75 and "SIGTERM in epoch 3 of 5" in process.stderr
        assert process.stderr.count("\n") == 1
    else:
        assert process.returncode == -signal.SIGKILL and (broken.folder / CHECKPOINT).exists()
    resumed = train(broken, log=quiet)
    assert resumed.restarts == 1
    assert_equal(broken, resumed, whole, record)


def flip_one_bit(path):
    """In the middle of the largest tensor: a weight that could be one, of another network."""
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda part: part.file_size)
        data = archive.read(largest)
    content = bytearray(path.read_bytes())
    content[content.index(data) + len(data) // 2] ^= 1 << 4
    path.write_bytes(content)


DAMAGES = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:1000]),
    "gone": lambda path: path.unlink(),
    "another program's": lambda path: torch.save({"model": {}}, path),
    "one bit flipped": flip_one_bit,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_costs_one_checkpoint(five_epochs, tmp_path, monkeypatch, damage):
    """The one before is used and says so; the run ends as if never stopped, bit for bit."""
    monkeypatch.setattr(checkpoint, "SHARE", float("inf"))  # one after every epoch
    whole, expected = five_epochs
    options = whole.model_copy(update={"out": str(tmp_path / "stopped")})
    lines, written, save = [], [], Checkpoints.save

    def stop(checkpoints):
        save(checkpoints)
        written.append(checkpoints.run.core.epoch)
        if written[-1] == 3:
            raise InterruptedError("the power is cut")

    with monkeypatch.context() as patches, pytest.raises(InterruptedError):
        patches.setattr(Checkpoints, "save", stop)
        train(options, log=quiet)
    assert written == [1, 2, 3]
    DAMAGES[damage](options.folder / CHECKPOINT)
    left = (options.folder / CHECKPOINT).exists()
    record = train(options, log=lines.append)
    assert ("checkpoint.pt is damaged" in lines[0] and "the one before is used" in lines[0]) == left
    assert any("goes on from epoch 3" in line for line in lines[:2])
    assert record.restarts == 1
    assert_equal(options, record, whole, expected)


def test_a_good_checkpoint_is_never_replaced_by_a_damaged_one(tiny_run, monkeypatch):
    """The last one is damaged, the one before is used.

    Then the disk is full while the next is written, or the process is killed there.
    """
    options = params(tiny_run, max_minutes=1e-4)
    for _ in range(2):
        with pytest.raises(Stopped):
            train(options, log=quiet)
    path = options.folder / CHECKPOINT
    assert path.exists() and (options.folder / PREVIOUS).exists()
    path.write_bytes(path.read_bytes()[:1000])
    stored = StoredRun(options, log=quiet)
    place = stored.core.epoch, stored.core.step
    with monkeypatch.context() as full:
        full.setattr("builtins.open", full_disk)
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


def test_a_run_whose_folder_is_deleted_ends_and_writes_nothing(tiny_run, monkeypatch):
    """Another process may train it by now."""
    monkeypatch.setattr(checkpoint, "SHARE", float("inf"))  # one after every epoch
    options = params(tiny_run)
    with pytest.raises(UserError, match="was deleted while this process worked in it") as error:
        train(options, log=lambda line: shutil.rmtree(options.folder))
    assert "\n" not in str(error.value) and not options.folder.exists()


def full_disk(*_, **__):
    raise OSError(28, "No space left on device")


def test_a_full_disk_loses_nothing(tiny_run, monkeypatch):
    monkeypatch.setattr(checkpoint, "SHARE", float("inf"))  # one after every epoch
    options = params(tiny_run)
    original, calls = records.atomic_write, []

    def full(path, content, **options):
        calls.append(path.name)
        if len(calls) == 3:
            monkeypatch.setattr("builtins.open", full_disk)
        original(path, content, **options)

    monkeypatch.setattr(records, "atomic_write", full)
    with pytest.raises(UserError, match="cannot be written.*No space left.*make room"):
        train(options, log=quiet)
    monkeypatch.undo()
    assert StoredRun(options).core.epoch == 2, "the checkpoint of the second epoch is whole"
    assert [path.name for path in options.folder.glob(".*")] == [".lock"], "nothing half-written"


def test_any_flipped_bit_of_a_checkpoint_is_found_or_changes_nothing(tiny_run):
    """Bits of padding, and of the second copy of a checksum, change nothing."""
    options = params(tiny_run, max_minutes=1e-4)
    with pytest.raises(Stopped):
        train(options, log=quiet)
    path, stored = options.folder / CHECKPOINT, StoredRun(options, log=quiet)
    content, whole = path.read_bytes(), state_of(stored)
    found = 0
    for place in range(7, len(content), len(content) // 150):
        flipped = bytearray(content)
        flipped[place] ^= 1 << place % 8
        path.write_bytes(flipped)
        try:
            stored.checkpoints.restore(quiet)
        except UserError as error:
            assert "checkpoint.pt is damaged" in str(error) and "delete it" in str(error)
            assert "\n" not in str(error)
            found += 1
            continue
        again = state_of(stored)
        assert all(torch.equal(again[name], whole[name]) for name in whole), place
    assert found > 75, "most of the file is numbers"


def state_of(stored):
    momenta = stored.core.optimizer.state_dict()["state"]
    state = {f"momentum {name}": each["momentum_buffer"] for name, each in momenta.items()}
    state |= stored.core.model.state_dict() | {"sums": stored.core.sums}
    place = torch.tensor([stored.core.epoch, stored.core.step, stored.core.seconds])
    return {name: value.clone() for name, value in (state | {"place": place}).items()}


@pytest.mark.parametrize("watched", [False, True])
def test_a_second_signal_does_not_cost_the_checkpoint(watched, monkeypatch):
    """A machine that shuts down signals every process, and an ending batch its kernels.

    Where somebody watches, the second Ctrl-C interrupts at once.
    """
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


@pytest.mark.cuda
def test_a_stopped_run_on_cuda_goes_on_within_the_difference_of_two_runs(
    tiny_run, tmp_path, monkeypatch
):
    """Kernels there may add in another order, so that two whole runs differ, too."""
    one, another, stopped = (
        params(tiny_run, device="cuda", out=str(tmp_path / name)) for name in ("1", "2", "3")
    )
    train(one, log=quiet)
    train(another, log=quiet)
    with monkeypatch.context() as patches, pytest.raises(Stopped):
        patches.setattr(run, "training", stopping_at(3))
        train(stopped, log=quiet)
    assert train(stopped, log=quiet).restarts == 1
    first, second, third = (
        torch.cat([value.double().flatten() for value in weights_of(options).values()])
        for options in (one, another, stopped)
    )
    usual = (second - first).abs().max()
    assert usual < 0.05 and (third - first).abs().max() <= 10 * usual + 1e-6
