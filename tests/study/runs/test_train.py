import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from torch.nn import functional as F

from rmlib import Stopped, UserError
from rmlib.data import load
from rmlib.evaluate import predict
from rmlib.params import TrainParams
from rmlib.recorded import learning_rate, losses
from rmlib.study.runs import networks, records
from rmlib.study.runs import run as train
from rmlib.study.runs.run import Run, make_mixer, make_model
from rmlib.study.settings import parse


def params(tiny_run, **changes) -> TrainParams:
    return parse("02_training", tiny_run | changes)


def quiet(_):
    pass


def train_epoch(run):
    for _ in run.steps():
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
    loss, *parts = losses(options, model, images.double(), labels, mixed, targets.double())
    loss.backward()
    return loss.item(), torch.cat([p.grad.flatten() for p in model.parameters()]), parts


def test_the_loss_is_what_the_protocol_says():
    both, gradient, (clean_logits, clean, mixed_logits, mixed) = loss_and_gradient({})
    assert both == pytest.approx(clean.item() + mixed.item())
    alone, _, (no_logits, _, _, mixed_alone) = loss_and_gradient({"clean_weight": 0})
    assert no_logits is None and alone == pytest.approx(mixed_alone.item())
    weighted, _, (_, clean, _, mixed) = loss_and_gradient({"clean_weight": 0.5})
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


def test_both_forwards_update_batchnorm(tiny_run):
    def batches_seen(**changes):
        run = Run(params(tiny_run, **changes))
        train_epoch(run)
        return int(run.model.layer1[0].bn1.num_batches_tracked)

    assert batches_seen() == 8 and batches_seen(clean_weight=0) == 4


# ----------------------------------------------------------------------------------------------
# runs


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
    record = train.train(options, log=lines.append)
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
    assert train.train(options, log=lines.append) == record and "finished already" in lines[-1]
    data = load(options.dataset, split="test")
    logits = predict(networks.load(options.folder), data.images)
    assert 100 * (logits.argmax(1) == data.labels).double().mean().item() == pytest.approx(
        record.metrics["accuracy"]
    )


def test_a_finished_run_of_other_images_is_refused(tiny_run, pictures, tmp_path):
    import shutil

    train.train(params(tiny_run, epochs=1), log=quiet)
    other = shutil.copytree(pictures, tmp_path / "elsewhere" / pictures.name)
    next((other / "train" / "red").iterdir()).unlink()
    with pytest.raises(UserError, match="other images"):
        train.train(params(tiny_run, epochs=1, dataset=f"folder:{other}"), log=quiet)


def test_a_checkpoint_of_other_images_is_refused(tiny_run, pictures, tmp_path):
    import shutil

    with pytest.raises(Stopped):
        train.train(params(tiny_run, max_minutes=1e-4), log=quiet)
    other = shutil.copytree(pictures, tmp_path / "elsewhere" / pictures.name)
    next((other / "train" / "red").iterdir()).unlink()
    with pytest.raises(UserError, match="other images"):
        train.train(params(tiny_run, dataset=f"folder:{other}"), log=quiet)


def test_two_processes_never_train_one_run(tiny_run):
    options = params(tiny_run)
    with records.only_process(options.folder):
        code = (
            "from rmlib import records; from pathlib import Path;"
            f" records.only_process(Path({str(options.folder)!r})).__enter__()"
        )
        answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert answer.returncode != 0 and "another process is training" in answer.stderr
    train.train(options, log=quiet)


def weights_of(folder):
    from safetensors.torch import load_file

    return load_file(folder / records.WEIGHTS)


@pytest.mark.parametrize("mixer", ["none", "region_mixup", "cutmix"])
def test_a_stopped_run_goes_on_bit_for_bit(tiny_run, tmp_path, mixer, monkeypatch):
    """Stopped inside an epoch, twice, and resumed: weights, history and verdicts equal those of a
    run never stopped.
    """
    changes = {"mixer": mixer, "eval_every": 2}
    whole = params(tiny_run, **changes)
    expected = train.train(whole, log=quiet)
    broken = params(tiny_run, **changes, out=str(tmp_path / "broken"))
    original = Run.steps
    for stop_at in (3, 7):  # of 12 steps: inside epochs 1 and 2

        def stopping(self, stop_at=stop_at):
            for _ in original(self):
                if self.progress["epoch"] * 4 + self.progress["step"] == stop_at:
                    raise Stopped("test")
                yield

        monkeypatch.setattr(Run, "steps", stopping)
        with pytest.raises(Stopped):
            train.train(broken, log=quiet)
        assert not (broken.folder / records.RECORD).exists()
    monkeypatch.setattr(Run, "steps", original)
    record = train.train(broken, log=quiet)
    assert (
        record.restarts == 2
        and record.history == expected.history
        and record.correct == expected.correct
    )
    assert record.metrics == expected.metrics
    a, b = weights_of(whole.folder), weights_of(broken.folder)
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_different_seed_is_a_different_run(tiny_run):
    losses_ = {
        seed: train.train(params(tiny_run, seed=seed, epochs=1), log=quiet).history[0]["loss"]
        for seed in (0, 1)
    }
    assert losses_[0] != losses_[1]


def test_all_mixers_start_from_the_same_network_and_see_the_same_clean_images(tiny_run):
    runs = {mixer: Run(params(tiny_run, mixer=mixer)) for mixer in ("none", "region_mixup")}
    a, b = (run.model.state_dict() for run in runs.values())
    assert all(torch.equal(a[name], b[name]) for name in a)
    for run in runs.values():
        run.seen = []
        original = run.loader.batch
        run.loader.batch = lambda *args, run=run, original=original: (
            x := original(*args),
            run.seen.append(x[0].clone()),
        )[0]
        train_epoch(run)
    assert (
        all(torch.equal(x, y) for x, y in zip(runs["none"].seen, runs["region_mixup"].seen))
        and len(runs["none"].seen) == 4
    )


def test_the_global_random_state_stays(tiny_run):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    train.train(params(tiny_run, epochs=1), log=quiet)
    assert torch.equal(torch.get_rng_state(), before)


def test_max_minutes_stops_with_a_checkpoint(tiny_run):
    with pytest.raises(Stopped, match="max_minutes=0.0001.*epoch 1 of 3.*goes on"):
        train.train(params(tiny_run, max_minutes=1e-4), log=quiet)
    assert train.train(params(tiny_run), log=quiet).restarts == 1


def test_checkpoints_take_a_hundredth_of_the_time(tiny_run, monkeypatch):
    """With a clock of our own: an epoch takes 10 s, a checkpoint 1 s, so one is written after every
    tenth epoch, and after the last.
    """
    clock, written = [0.0], []
    monkeypatch.setattr(train.time, "perf_counter", lambda: clock[0])
    run_steps, write = Run.steps, records.atomic_write

    def slow_epoch(self):
        clock[0] += 10
        yield from run_steps(self)

    def slow_write(path, content, **options):
        if path.name == records.CHECKPOINT:
            clock[0] += 1
            written.append(clock[0])
        write(path, content, **options)

    monkeypatch.setattr(Run, "steps", slow_epoch)
    monkeypatch.setattr(records, "atomic_write", slow_write)
    record = train.train(
        params(tiny_run, epochs=25, train_images=6, batch_size=6, eval_every=0), log=quiet
    )
    epochs = [round((moment - number) / 10) for number, moment in enumerate(written, 1)]
    assert epochs == [1, 11, 21, 25] and record.checkpoint_seconds == 4


# ---------------------------------------------------------------------------------------------- go
# or no go


def test_a_run_that_is_too_slow_is_given_up(tiny_run):
    options = params(tiny_run, epochs=50, min_images_per_second=1e9)
    with pytest.raises(
        UserError,
        match=r"no go after epoch 2 of 50: \d+ images/s, below min_images_per_second=1e\+09",
    ):
        train.train(options, log=quiet)
    assert train.train(params(tiny_run, min_images_per_second=1), log=quiet).status == "done"


def test_a_run_whose_loss_does_not_fall_is_given_up(tiny_run):
    """A learning rate at which nothing moves, so that two epochs differ by their batches alone, one
    way or the other.
    """
    answers = set()
    for seed in range(6):
        try:
            train.train(
                params(tiny_run, seed=seed, lr=1e-12, min_images_per_second=1, eval_every=0),
                log=quiet,
            )
        except UserError as error:
            answers.add(str(error).split(" (")[0])
    assert answers == {"no go after epoch 2 of 3: the loss does not fall"}


def test_a_run_that_goes_on_is_not_given_up_for_its_loss(tiny_run):
    """Late in a schedule the loss of one epoch to the next is noise; and nothing is given up after
    its last epoch.
    """
    still = params(tiny_run, lr=1e-12, epochs=6, eval_every=0)
    run = Run(still)
    for _ in range(2):
        train_epoch(run)
        run.close_epoch()
    run.save()
    assert (
        train.train(still.model_copy(update={"min_images_per_second": 1}), log=quiet).status
        == "done"
    )
    assert (
        train.train(params(tiny_run, epochs=2, min_images_per_second=1e9), log=quiet).status
        == "done"
    )


def test_a_schedule_that_does_not_fit_is_given_up_at_once(tiny_run):
    options = params(tiny_run, epochs=10**6, max_minutes=0.5, must_fit=True)
    with pytest.raises(
        train.DoesNotFit,
        match=r"the rest of the 1000000 epochs needs \d+\.\d minutes and 0\.\d are left",
    ):
        train.train(options, log=quiet)
    assert not (options.folder / train.CHECKPOINT).exists(), (
        "a later batch would take it for a run to go on with"
    )
    assert train.train(params(tiny_run, max_minutes=5, must_fit=True), log=quiet).status == "done"


def test_a_run_that_goes_on_keeps_its_checkpoint_where_it_does_not_fit(tiny_run):
    options = params(tiny_run, epochs=10**6, max_minutes=1e-3)
    with pytest.raises(Stopped):
        train.train(options, log=quiet)
    with pytest.raises(train.DoesNotFit):
        train.train(options.model_copy(update={"must_fit": True, "max_minutes": 0.5}), log=quiet)
    assert (options.folder / train.CHECKPOINT).exists()


def test_must_fit_needs_a_limit(tiny_run):
    with pytest.raises(UserError, match="must_fit=True does nothing without max_minutes"):
        params(tiny_run, must_fit=True)


# ----------------------------------------------------------------------------------------------
# several in one process


def test_runs_side_by_side_are_the_runs_alone(tiny_run, tmp_path):
    cells = [
        params(tiny_run, mixer=mixer, seed=seed, epochs=epochs)
        for mixer, seed, epochs in (("mixup", 0, 3), ("region_mixup", 1, 2), ("cutmix", 0, 1))
    ]
    lines = []
    together = train.train_together(
        [cell.model_copy(update={"out": str(tmp_path / "together")}) for cell in cells],
        log=lines.append,
    )
    for cell, record in zip(cells, together):
        alone = train.train(cell, log=quiet)
        assert (
            record.history == alone.history
            and record.correct == alone.correct
            and record.run_id == alone.run_id
        )
    assert sum("mixup seed 0: epoch" in line for line in lines) == 3, "every line says whose it is"


def test_runs_side_by_side_stop_and_fail_together(tiny_run, monkeypatch):
    """A limit stops all with a checkpoint; an error of one stops the others with one, and the next
    call goes on with all.
    """
    cells = [params(tiny_run, seed=seed, max_minutes=1e-4) for seed in (0, 1)]
    with pytest.raises(Stopped):
        train.train_together(cells, log=quiet)
    assert all((cell.folder / train.CHECKPOINT).exists() for cell in cells)
    cells = [
        params(
            tiny_run, seed=seed, **({"min_images_per_second": 1e9} if seed == 2 else {"epochs": 4})
        )
        for seed in (2, 3)
    ]
    with pytest.raises(UserError, match="no go"):
        train.train_together(cells, log=quiet)
    run = Run(cells[1])
    assert (
        run.progress["restarts"] == 1 and run.progress["epoch"] == 1 and run.progress["step"] == 4
    ), "of the second epoch, which was under way"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_with_a_checkpoint(tiny_run, number):
    many = tiny_run | {"epochs": 500, "checkpoint_every": 1000}
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
    run = Run(params(many))
    assert run.progress["restarts"] == 1 and run.progress["epoch"] >= 1


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
    while not (killed.folder / train.CHECKPOINT).exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    record, whole = train.train(killed, log=quiet), train.train(params(many), log=quiet)
    assert (
        record.restarts == 1 and record.history == whole.history and record.correct == whole.correct
    )
    a, b = weights_of(killed.folder), weights_of(params(many).folder)
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_diverged_run_says_so(tiny_run):
    lines = []
    begun = time.perf_counter()
    record = train.train(params(tiny_run, lr=1e30, epochs=50), log=lines.append)
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
        train.train(options, log=quiet)
    path = options.folder / train.CHECKPOINT
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match="checkpoint.pt is damaged.*delete it") as error:
        train.train(options, log=quiet)
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
    monkeypatch.setattr(train, "CHECKPOINT_SHARE", float("inf"))  # one after every epoch
    many, lines, written = tiny_run | {"epochs": 5}, [], []
    options, save = params(many, out=str(tmp_path / "stopped")), Run.save

    def stop(run):
        save(run)
        written.append(run.progress["epoch"])
        if run.progress["epoch"] == 3:
            raise InterruptedError("the power is cut")

    monkeypatch.setattr(Run, "save", stop)
    with pytest.raises(InterruptedError):
        train.train(options, log=quiet)
    monkeypatch.setattr(Run, "save", save)
    assert written == [1, 2, 3]
    damage(options.folder / train.CHECKPOINT)
    left = (options.folder / train.CHECKPOINT).exists()
    record, whole = train.train(options, log=lines.append), train.train(params(many), log=quiet)
    assert ("checkpoint.pt is damaged" in lines[0] and "the one before is used" in lines[0]) == left
    assert any("goes on from epoch 3" in line for line in lines[:2])
    assert (
        record.restarts == 1 and record.history == whole.history and record.correct == whole.correct
    )
    a, b = weights_of(options.folder), weights_of(params(many).folder)
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_good_checkpoint_is_never_replaced_by_a_damaged_one(tiny_run, monkeypatch):
    """The last one is damaged, the one before is used, and then the disk is full while the next is
    written, or the process is killed there.
    """
    monkeypatch.setattr(train, "CHECKPOINT_SHARE", float("inf"))
    options = params(tiny_run, epochs=5, max_minutes=1e-4)
    for _ in range(2):
        with pytest.raises(Stopped):
            train.train(options, log=quiet)
    path = options.folder / train.CHECKPOINT
    assert path.exists() and (options.folder / train.PREVIOUS).exists()
    path.write_bytes(path.read_bytes()[:1000])
    (options.folder / f".{train.CHECKPOINT}.123").write_bytes(b"half of one")
    run = Run(options, log=quiet)
    assert not (options.folder / f".{train.CHECKPOINT}.123").exists(), (
        "what a killed process left is cleaned away"
    )
    place = run.progress["epoch"], run.progress["step"]
    with monkeypatch.context() as full:
        full.setattr("builtins.open", _full_disk)
        with pytest.raises(UserError, match="No space left"):
            run.save()
    again = Run(options, log=lambda line: pytest.fail(line))
    assert (again.progress["epoch"], again.progress["step"]) == place
    with monkeypatch.context() as killed:
        killed.setattr(records.os, "replace", lambda *_: os._exit(9))  # at its first replacement
        process = os.fork()
        if not process:
            run.save()
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 9
    again = Run(options, log=lambda line: pytest.fail(line))
    assert (again.progress["epoch"], again.progress["step"]) == place


def test_a_second_signal_does_not_cost_the_checkpoint(tiny_run, monkeypatch):
    """A machine that shuts down signals every process, and an ending batch its kernels. Where
    somebody watches, the second Ctrl-C interrupts at once.
    """
    for watched in (False, True):
        monkeypatch.setattr(train, "interactive", lambda: watched)
        with train.noticing_signals() as seen:
            for number in (signal.SIGTERM, signal.SIGTERM):
                os.kill(os.getpid(), number)
            try:
                os.kill(os.getpid(), signal.SIGINT)
                interrupted = False
            except KeyboardInterrupt:
                interrupted = True
        assert seen[0] == "SIGTERM" and interrupted == watched


def test_a_full_disk_loses_nothing(tiny_run, monkeypatch):
    monkeypatch.setattr(train, "CHECKPOINT_SHARE", float("inf"))  # one after every epoch
    options = params(tiny_run)
    original, calls = records.atomic_write, []

    def full(path, content, **options):
        calls.append(path.name)
        if len(calls) == 3:
            monkeypatch.setattr("builtins.open", _full_disk)
        original(path, content, **options)

    monkeypatch.setattr(records, "atomic_write", full)
    with pytest.raises(UserError, match="cannot be written.*No space left.*make room"):
        train.train(options, log=quiet)
    monkeypatch.undo()
    run = Run(options)
    assert run.progress["epoch"] == 2, "the checkpoint of the second epoch is whole"
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
        train.train(params(tiny_run, **changes), log=quiet)


def test_an_unwritable_folder(tiny_run, tmp_path):
    blocked = tmp_path / "a file"
    blocked.write_text("")
    with pytest.raises(UserError, match="choose another folder"):
        train.train(params(tiny_run, out=str(blocked / "runs")), log=quiet)


def test_holdout_trains_without_val_and_evaluates_on_it(tiny_run):
    run = Run(params(tiny_run, holdout=True))
    assert (len(run.train_set), len(run.test_set)) == (54, 6)


def test_bf16_trains_close_to_fp32(tiny_run):
    losses_ = [
        train.train(params(tiny_run, precision=p, epochs=1), log=quiet).history[0]["loss"]
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
    assert 75 < train.train(options, log=quiet).metrics["accuracy"] < 92


@pytest.mark.cuda
def test_a_cuda_run_has_the_same_course(tiny_run):
    on_cpu = train.train(params(tiny_run, epochs=1), log=quiet)
    on_cuda = Run(params(tiny_run, epochs=1, device="cuda"))
    train_epoch(on_cuda)
    assert on_cuda.close_epoch()["loss"] == pytest.approx(on_cpu.history[0]["loss"], rel=0.02)


@pytest.mark.cuda
def test_a_stopped_run_on_cuda_goes_on_within_the_difference_of_two_runs(tiny_run, tmp_path):
    """Kernels there may add in another order; a run that was stopped must differ from a whole one
    no more than two whole ones do.
    """
    cells = [
        params(tiny_run, device="cuda", out=str(tmp_path / name))
        for name in ("one", "another", "stopped")
    ]
    for cell in cells[:2]:
        train.train(cell, log=quiet)
    run = Run(cells[2])
    for number, _ in enumerate(run.steps()):
        if number == 2:
            break
    run.save()
    del run
    assert train.train(cells[2], log=quiet).restarts == 1
    one, another, stopped = (
        torch.cat([value.double().flatten() for value in weights_of(cell.folder).values()])
        for cell in cells
    )
    assert (another - one).abs().max() < 0.05 and (stopped - one).abs().max() <= 10 * (
        another - one
    ).abs().max() + 1e-6
