"""One run: the paper's protocol as a loop that can be stopped anywhere and goes on as if it had not
been (bit for bit on a CPU; on CUDA as close as two runs of one seed are, since some kernels there
add in no fixed order).

Loss = clean_weight * CE(clean batch) + CE(mixed batch, soft targets): two forwards of the same
augmented batch, the clean one first, both in train mode (each updates BatchNorm), for every mixer.
SGD with momentum and weight decay on all parameters. The last epoch counts; the test set chooses
nothing.
"""

import contextlib
import copy
import dataclasses
import io
import json
import math
import os
import resource
import signal
import sys
import threading
import time

import torch
from safetensors.torch import save as save_tensors
from tqdm import tqdm

from rmlib import Stopped, UserError
from rmlib.data import ImageSet, Loader, load, stream
from rmlib.datasets import sources
from rmlib.evaluate import evaluate
from rmlib.mixers import CutMix, Mixer, Mixup, NoMix, RegionMixup
from rmlib.models import PreActResNet18, preact_resnet18
from rmlib.params import TrainParams
from rmlib.recorded import Step, learning_rate, make_optimizer
from rmlib.study.runs import environment, records
from rmlib.study.runs.records import CHECKPOINT, PREVIOUS, WEIGHTS, Record, check_images
from rmlib.study.settings import parse

CHECKPOINT_SHARE = 0.01  # of a run's time that its checkpoints may take


class DoesNotFit(Stopped):
    """A run with ``must_fit`` was given up early, without a checkpoint, because its schedule would
    not end within ``max_minutes``.
    """


def make_mixer(params: TrainParams, num_classes: int) -> Mixer:
    """The mixer that the parameters name."""
    if params.mixer == "none":
        return NoMix(num_classes)
    if params.mixer == "mixup":
        return Mixup(num_classes, params.alpha)
    if params.mixer == "cutmix":
        return CutMix(num_classes, params.alpha, params.cutmix_prob)
    return RegionMixup(
        num_classes,
        params.k,
        params.alpha,
        regions=params.regions,
        per_sample=params.per_sample,
        shared_partner=params.shared_partner,
        shared_weight=params.shared_weight,
    )


def make_model(params: TrainParams, num_classes: int, mean, std) -> PreActResNet18:
    """The network, initialised from its own stream of the seed, on the CPU; the global random state
    stays as it is.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream(params.seed, "initialisation").initial_seed())
        model = preact_resnet18(
            num_classes, params.width, params.stem_stride, mean, std, params.final_norm
        )
    return model.to(memory_format=torch.channels_last)


def training_set(params: TrainParams) -> ImageSet:
    """The images a run is trained on."""
    return load(
        params.dataset,
        params.root,
        "train",
        holdout=params.holdout,
        allow_partial=params.allow_partial,
    ).subset(params.train_images)


def evaluation_set(params: TrainParams) -> ImageSet:
    """The images a run is evaluated on: the test set, or ``val`` in a run that holds it out."""
    split = "val" if params.holdout else "test"
    return load(params.dataset, params.root, split, allow_partial=params.allow_partial).subset(
        params.test_images
    )


class Run:
    """A training in progress: data, network, optimiser and the place in the schedule."""

    def __init__(self, params: TrainParams, log=print):
        self.params, self.folder = params, params.folder
        self.device = pick_device(params.device)
        torch.set_num_threads(params.threads)
        self.train_set, test_set = training_set(params), evaluation_set(params)
        self.test_set = dataclasses.replace(test_set, images=test_set.images.to(self.device))
        self.num_classes = len(self.train_set.classes)
        if params.mixer == "region_mixup" and params.k > min(self.train_set.images.shape[2:]):
            raise UserError(
                f"k={params.k} tiles do not fit into images of"
                f" {tuple(self.train_set.images.shape[2:])} pixels"
            )
        self.channels = self.train_set.channel_stats()
        self.model = make_model(params, self.num_classes, *self.channels).to(self.device)
        self.optimizer = make_optimizer(params, self.model)
        self.mixer = make_mixer(params, self.num_classes)
        self.loader = Loader(
            self.train_set,
            params.batch_size,
            params.seed,
            augment=params.augment,
            device=self.device,
        )
        self.step = Step(params, self.model, self.optimizer, self.mixer, self.loader)
        self.progress = {
            "epoch": 0,
            "step": 0,
            "history": [],
            "snapshots": {},
            "train_seconds": 0.0,
            "seconds": 0.0,
            "checkpoint_seconds": 0.0,
            "restarts": 0,
        }
        self.final = None  # evaluation after the last epoch
        self.together = 1  # runs of this process that share its time
        self.saved, self.saving = (
            time.perf_counter(),
            0.0,
        )  # when the last checkpoint was written, seconds that it took
        self._restore(log)

    def ready(self):
        """Get ready for the first step; on CUDA it is recorded now."""
        self.model.train()
        if self.progress["epoch"] < self.params.epochs:
            self.step.ready(self.progress["epoch"], self.progress["step"])

    def steps(self):
        """Train for the rest of the current epoch: a generator that yields after every step. It may
        be closed after any of them.
        """
        place = self.progress
        self.model.train()
        earlier = place["train_seconds"] - self.step.busy
        numbers = self.step.steps(place["epoch"], place["step"])
        shown = (
            tqdm(
                numbers,
                f"epoch {place['epoch'] + 1}",
                len(self.loader),
                initial=place["step"],
                leave=False,
            )
            if interactive()
            else numbers
        )
        try:
            for number in shown:
                place["step"] = number + 1
                if self.device.type == "cpu" and self.diverged():
                    return
                yield
        finally:
            shown.close()  # the bar, where there is one
            numbers.close()
            place["train_seconds"] = earlier + self.step.busy

    def close_epoch(self) -> dict:
        """Evaluate where due, add the epoch's row to the history, and move on. Returns the row."""
        params, place = self.params, self.progress
        count, *sums = self.step.sums.tolist()
        loss, clean_loss, clean_hits, mixed_loss, mixed_hits = (value / count for value in sums)
        epoch = place["epoch"] + 1
        row = {
            "epoch": epoch,
            "lr": learning_rate(
                params, epoch * len(self.loader) - 1, params.epochs * len(self.loader)
            ),
            "loss": loss,
            "mixed_loss": mixed_loss,
            "mixed_accuracy": 100 * mixed_hits,
        }
        if params.clean_weight:
            row |= {"clean_loss": clean_loss, "clean_accuracy": 100 * clean_hits}
        if math.isfinite(loss):
            snapshot = epoch in params.snapshots
            if (
                snapshot
                or (params.eval_every and epoch % params.eval_every == 0)
                or epoch == params.epochs
            ):
                curve_only = not snapshot and epoch <= params.epochs - 10
                result = evaluate(
                    self.model, self.test_set, bf16=curve_only and params.precision == "bf16"
                )
                self.final = dict(result) if epoch == params.epochs else None
                row["test_accuracy"] = result["accuracy"]
                if snapshot:
                    place["snapshots"][str(epoch)] = result
        place["history"].append(row)
        place["epoch"], place["step"] = epoch, 0
        self.step.sums.zero_()
        return row

    def diverged(self) -> bool:
        """Whether the loss of this epoch is no longer a finite number (then the model is beyond
        repair).
        """
        return not bool(torch.isfinite(self.step.sums[1]))

    def go_or_not(self, train_seconds: float, seconds: float, so_far: float) -> None:
        """Give a run up in its first minute rather than at the end of the night: after two epochs
        in this process, from the time of the second.

        Args:
            train_seconds: of the training in that epoch, shared among the runs of the process.
            seconds: of all of it.
            so_far: since the start.

        Raises:
            UserError: slower than ``min_images_per_second``, or with it given a new run whose loss
                does not fall, or a device nearly full.
            DoesNotFit: with ``must_fit``, the rest of the schedule will take longer than
                ``max_minutes`` leaves.
        """
        params, history = self.params, self.progress["history"]
        if params.min_images_per_second is not None:
            speed, wrong = len(self.train_set) / train_seconds, []
            if speed < params.min_images_per_second:
                wrong.append(
                    f"{speed:.0f} images/s, below"
                    f" min_images_per_second={params.min_images_per_second:g}"
                )
            if (
                history[-1]["epoch"] == 2 and history[-1]["loss"] >= history[-2]["loss"]
            ):  # later on it falls too little to tell from noise
                wrong.append(
                    f"the loss does not fall ({history[-2]['loss']:.3f}, then"
                    f" {history[-1]['loss']:.3f})"
                )
            if self.device.type == "cuda":
                free, total = torch.cuda.mem_get_info()
                if free < 0.05 * total:
                    wrong.append(
                        f"{free / 2**20:.0f} of {total / 2**20:.0f} MiB are left on the device"
                    )
            if wrong:
                raise UserError(
                    f"no go after epoch {history[-1]['epoch']} of {params.epochs}:"
                    f" {'; '.join(wrong)}"
                )
        if params.must_fit:
            needed, left = (
                seconds * (params.epochs - history[-1]["epoch"]) / 60,
                params.max_minutes - so_far / 60,
            )
            if needed > left:
                if not self.progress["restarts"]:
                    for name in (CHECKPOINT, PREVIOUS):
                        (self.folder / name).unlink(missing_ok=True)
                raise DoesNotFit(
                    f"the rest of the {params.epochs} epochs needs {needed:.1f} minutes and"
                    f" {left:.1f} are left: give it more time, or leave must_fit out to stop with a"
                    " checkpoint"
                )

    def checkpoint_is_cheap(self) -> bool:
        """Whether a checkpoint that costs what the last one did would take less than
        CHECKPOINT_SHARE of the time since.
        """
        return self.saving <= CHECKPOINT_SHARE * (time.perf_counter() - self.saved)

    def save(self):
        """Write the checkpoint, atomically; the one before is kept beside it."""
        begun, path = time.perf_counter(), self.folder / CHECKPOINT
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "sums": self.step.sums,
            "progress": json.dumps(self.progress),
            "images": self.train_set.checksum,
        }
        buffer = (
            io.BytesIO()
        )  # torch reports a full disk as an obscure RuntimeError; a plain write says what it is
        torch.save(state, buffer)
        records.atomic_write(path, buffer.getbuffer(), before=PREVIOUS)
        self.saved = time.perf_counter()
        self.saving = self.saved - begun
        self.progress["checkpoint_seconds"] += self.saving

    def _restore(self, log):
        """Go on from the last checkpoint, or from the one before if that is damaged."""
        for half in (
            half
            for name in (CHECKPOINT, WEIGHTS, records.RECORD)
            for half in self.folder.glob(f".{name}.*")
        ):
            half.unlink(missing_ok=True)  # of a process that was killed while it wrote
        wrong = []
        for path in (self.folder / CHECKPOINT, self.folder / PREVIOUS):
            if not path.exists():
                continue
            try:
                images = self._load(path)
            except Exception as error:  # torch raises many kinds for a broken file
                wrong.append(
                    f"the checkpoint {path} is damaged"
                    f" ({(str(error) or type(error).__name__).splitlines()[0][:100]})"
                )
                continue
            check_images(self.params, self.train_set.checksum, images)
            if wrong:
                log(f"{wrong[0]}: the one before is used")
                os.replace(
                    path, self.folder / CHECKPOINT
                )  # the damaged one must not take its place when the next is written
            self.progress["restarts"] += 1
            return
        if wrong:
            raise UserError(
                f"{' and '.join(wrong)}: delete {'it' if len(wrong) == 1 else 'them'} to start this"
                " run again"
            )

    def _load(self, path):
        """Take over a checkpoint; returns the checksum of its images."""
        state = torch.load(path, map_location=self.device, weights_only=True)
        progress = json.loads(state["progress"])
        self.model.load_state_dict(state["model"])
        settings = self.optimizer.state_dict()[
            "param_groups"
        ]  # these follow from the parameters and the device
        self.optimizer.load_state_dict(
            {"state": state["optimizer"]["state"], "param_groups": settings}
        )
        self.step.sums.copy_(state["sums"])
        self.progress |= progress
        return state["images"]

    def finish(self, status: str) -> Record:
        """Final evaluation in float32, weights, then the record; the checkpoint goes last."""
        params, place = self.params, self.progress
        started, result, recalibrated = time.perf_counter(), {}, None
        if status == "done":
            result = self.final or evaluate(self.model, self.test_set)
            if params.bn_recalibration:
                recalibrated = evaluate(
                    recalibrate_batchnorm(self.model, self.loader), self.test_set
                )
            records.atomic_write(
                self.folder / WEIGHTS, save_tensors(stored_weights(self.model, params.half_weights))
            )
        else:  # of an earlier attempt
            (self.folder / WEIGHTS).unlink(missing_ok=True)
        seen = sum(1 for row in place["history"] if math.isfinite(row["loss"])) * len(
            self.train_set
        )
        record = Record(
            status=status,
            run_id=params.run_id,
            config=params.config,
            correct=result.pop("correct", None),
            metrics=result,
            snapshots=place["snapshots"],
            bn_recalibrated=recalibrated,
            history=[finite(row) for row in place["history"]],
            data={
                "checksum": self.train_set.checksum,
                "train_images": len(self.train_set),
                "test_images": len(self.test_set),
                "classes": self.num_classes,
                "mean": self.channels[0],
                "std": self.channels[1],
            },
            seconds=place["seconds"] + time.perf_counter() - started,
            images_per_second=seen / place["train_seconds"] if place["train_seconds"] else 0.0,
            peak_memory_mib=peak_memory_mib(self.device),
            checkpoint_seconds=place["checkpoint_seconds"],
            together=self.together,
            compiled=params.compiled,
            restarts=place["restarts"],
            **environment.environment(self.device.type),
        )
        records.forget_others(self.folder, params.run_id)
        records.write(record, self.folder)
        for name in (CHECKPOINT, PREVIOUS):
            (self.folder / name).unlink(missing_ok=True)
        return record


def train(params: TrainParams, log=print) -> Record:
    """Run one cell to the end of its schedule and return its record; go on from a checkpoint, or
    load a finished record.

    Args:
        params: of notebook 02_training; ``params.folder`` gets checkpoint, weights and record.
        log: called with one line per epoch.

    Raises:
        UserError: something to mend (no CUDA, missing data, full disk, damaged checkpoint, slower
            than ``min_images_per_second``).
        Stopped: ``max_minutes`` passed, SIGTERM or Ctrl-C arrived; the checkpoint is written.
            :class:`DoesNotFit`: see there.
    """
    return train_together([params], log)[0]


def train_together(cells: list[TrainParams], log=print) -> list[Record]:
    """Run several cells in one process, one step of each in turn; see :func:`train`.

    Every run gives what it gives alone, bit for bit on a CPU. On CUDA each has its own stream, so
    that the kernels of one fill the card where those of another leave it idle.

    Args:
        cells: parameters of 02_training, on one device and with equal ``threads``.
        log: called with one line per epoch and run.

    Returns:
        Their records, in the same order.

    Raises:
        UserError: as for :func:`train`, with the run's id before it; the others are stopped with a
            checkpoint.
        Stopped: one or more of them were stopped; the others went on to their end.
    """
    finished = {
        params.run_id: _finished(params, log)
        for params in cells
        if (params.folder / records.RECORD).exists()
    }
    waiting = {params.run_id: params for params in cells if params.run_id not in finished}
    begun, courses, stopped = time.perf_counter(), {}, []
    with contextlib.ExitStack() as held, noticing_signals() as signals:
        for run_id, params in waiting.items():
            held.enter_context(records.only_process(params.folder))
            told = (
                log
                if len(waiting) == 1
                else lambda line, name=f"{run_id} {params.mixer} seed {params.seed}": log(
                    f"{name}: {line}"
                )
            )
            run = Run(params, told)
            run.together = len(waiting)
            courses[run_id] = _course(run, begun, signals, told)
            held.callback(courses[run_id].close)
        while courses:
            for run_id, course in list(courses.items()):
                try:
                    next(course)
                except StopIteration as end:
                    finished[run_id] = end.value
                    del courses[run_id]
                except Stopped as reason:
                    stopped.append(reason)
                    del courses[run_id]
                except UserError as error:
                    raise UserError(
                        f"run {run_id}: {error}" if len(waiting) > 1 else str(error)
                    ) from error
        if stopped:
            raise stopped[0]
    return [finished[params.run_id] for params in cells]


def _finished(params, log):
    """The record of a run that has ended, if it was made from the images that are there now."""
    record = records.read(params.folder)
    if params.dataset not in sources.SIZES or params.allow_partial:
        images = sources.arrays(params.dataset, params.root, allow_partial=params.allow_partial)
        check_images(params, images["checksum"], record.data["checksum"])
    log(f"run {params.run_id} is finished already: its record is loaded, nothing is trained")
    return record


def _course(run, begun, signals, log):
    """The rest of a run as a generator that yields when it is ready and after every step, and
    returns the record.
    """
    params, place, earlier, first = (
        run.params,
        run.progress,
        run.progress["seconds"],
        run.progress["epoch"],
    )
    if place["restarts"]:
        log(
            f"run {params.run_id} goes on from epoch {place['epoch'] + 1}, step {place['step'] + 1}"
        )
    try:
        run.ready()
        yield
        while place["epoch"] < params.epochs:
            started, trained = time.perf_counter(), place["train_seconds"]
            with contextlib.closing(run.steps()) as steps:
                for _ in steps:
                    minutes = (time.perf_counter() - begun) / 60
                    if signals or (
                        params.max_minutes is not None and minutes >= params.max_minutes
                    ):
                        reason = signals[0] if signals else f"max_minutes={params.max_minutes:g}"
                        raise Stopped(
                            f"stopped by {reason} in epoch {place['epoch'] + 1} of {params.epochs};"
                            " the same command goes on from the checkpoint"
                        )
                    yield
            diverged = run.diverged()
            row = run.close_epoch()
            place["seconds"] = earlier + time.perf_counter() - begun
            log(epoch_line(row, params.epochs, place, len(run.train_set)))
            if diverged:
                log(
                    f"run {params.run_id} diverged in epoch {row['epoch']}: the loss is no longer"
                    " finite; try a smaller lr"
                )
                return run.finish("diverged")
            if row["epoch"] == first + 2 < params.epochs:
                run.go_or_not(
                    (place["train_seconds"] - trained) / run.together,
                    time.perf_counter() - started,
                    time.perf_counter() - begun,
                )
            if row["epoch"] == params.epochs or (
                row["epoch"] % params.checkpoint_every == 0 and run.checkpoint_is_cheap()
            ):
                run.save()
    except (Stopped, GeneratorExit) as reason:
        if not isinstance(reason, DoesNotFit):
            place["seconds"] = earlier + time.perf_counter() - begun
            run.save()
        raise
    return run.finish("done")


def epoch_line(row: dict, epochs: int, place: dict, images: int) -> str:
    """One line of the log for one row of the history."""
    parts = [
        f"epoch {row['epoch']:>{len(str(epochs))}}/{epochs}",
        f"lr {row['lr']:.4f}",
        f"loss {row['loss']:.3f}",
    ]
    names = {"clean_accuracy": "clean", "mixed_accuracy": "mixed", "test_accuracy": "test"}
    parts += [f"{label} {row[name]:.1f} %" for name, label in names.items() if name in row]
    left = place["seconds"] / row["epoch"] * (epochs - row["epoch"])
    return "  ".join(
        [
            *parts,
            f"{images * row['epoch'] / max(place['train_seconds'], 1e-9):.0f} images/s",
            f"{left:.0f} s left",
        ]
    )


def recalibrate_batchnorm(model, loader: Loader):
    """A copy of the model whose BatchNorm statistics are those of one epoch of clean, augmented
    images.
    """
    model = copy.deepcopy(model)
    layers = [layer for layer in model.modules() if isinstance(layer, torch.nn.BatchNorm2d)]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # the plain average over all batches
    model.train()
    with torch.no_grad():
        for images, _ in loader.epoch(0):
            model(images)
    return model


def stored_weights(model, half: bool) -> dict[str, torch.Tensor]:
    """The state dict as it is written to a file; ``half`` rounds to float16."""
    return {
        name: (value.half() if half and value.is_floating_point() else value).contiguous()
        for name, value in model.state_dict().items()
    }


def pick_device(name: str) -> torch.device:
    """ "auto" takes CUDA where there is one; asking for CUDA where there is none is an error."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "device='cuda', but torch sees no CUDA device here: use device='auto' or 'cpu'"
        )
    return torch.device(
        "cuda" if name == "cuda" or (name == "auto" and torch.cuda.is_available()) else "cpu"
    )


def peak_memory_mib(device: torch.device) -> float:
    """Largest memory so far, MiB: of the process on CPU, of torch's allocator on CUDA."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    unit = 2**20 if sys.platform == "darwin" else 2**10  # bytes on macOS, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def finite(row: dict) -> dict:
    """A history row for JSON, which has no NaN: they become None."""
    return {name: value if math.isfinite(value) else None for name, value in row.items()}


def interactive() -> bool:
    """Whether somebody watches: a terminal, or a notebook opened in Jupyter (papermill and nbval do
    not set its variable).
    """
    return sys.stdout.isatty() or "JPY_SESSION_NAME" in os.environ


@contextlib.contextmanager
def noticing_signals():
    """A list that SIGTERM and Ctrl-C (or "interrupt kernel") enter, so that the loop can end after
    a whole step with a checkpoint. Where somebody watches, a second Ctrl-C interrupts at once, and
    what the last checkpoint does not hold is lost; elsewhere signals come in numbers (a machine
    that shuts down tells every process), and that would lose it for nothing. Only the main thread
    can be told.
    """
    received = []

    def notice(number, _):
        if received and number == signal.SIGINT and interactive():
            raise KeyboardInterrupt
        received.append(signal.Signals(number).name)

    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    before = {number: signal.signal(number, notice) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


if __name__ == "__main__":  # what a batch starts for cells that are trained together
    from rmlib.study.guarded import guarded

    sys.exit(
        guarded(
            lambda: (
                train_together(
                    [parse("02_training", values) for values in json.loads(sys.argv[1])],
                    log=lambda line: print(line, flush=True),
                )
                and 0
            )
        )
    )
