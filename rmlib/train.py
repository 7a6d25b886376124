"""One run: the paper's protocol as a loop that can be stopped anywhere and goes on as if it had not been.

Loss = clean_weight * CE(clean batch) + CE(mixed batch, soft targets): two forwards of the same augmented batch, the clean
one first, both in train mode (each updates BatchNorm), for every mixer. SGD with momentum and weight decay on all
parameters. The last epoch counts; the test set chooses nothing.
"""

import contextlib
import copy
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
from torch.nn import functional as F
from tqdm import tqdm

from rmlib import Stopped, UserError, records, sources
from rmlib.data import ImageSet, Loader, load, stream
from rmlib.evaluate import evaluate
from rmlib.mixers import CutMix, Mixer, Mixup, NoMix, RegionMixup
from rmlib.models import PreActResNet18, preact_resnet18
from rmlib.params import TrainParams
from rmlib.records import CHECKPOINT, WEIGHTS, Record, check_images


def make_mixer(params: TrainParams, num_classes: int) -> Mixer:
    """The mixer that the parameters name."""
    if params.mixer == "none":
        return NoMix(num_classes)
    if params.mixer == "mixup":
        return Mixup(num_classes, params.alpha)
    if params.mixer == "cutmix":
        return CutMix(num_classes, params.alpha, params.cutmix_prob)
    return RegionMixup(num_classes, params.k, params.alpha, regions=params.regions, per_sample=params.per_sample,
                       shared_partner=params.shared_partner, shared_weight=params.shared_weight)


def make_model(params: TrainParams, num_classes: int, mean, std) -> PreActResNet18:
    """The network, initialised from its own stream of the seed, on the CPU; the global random state stays as it is."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream(params.seed, "initialisation").initial_seed())
        model = preact_resnet18(num_classes, params.width, params.stem_stride, mean, std, params.final_norm)
    return model.to(memory_format=torch.channels_last)


def make_optimizer(params: TrainParams, model) -> torch.optim.SGD:
    """SGD with momentum, without Nesterov, weight decay on all parameters."""
    return torch.optim.SGD(model.parameters(), params.lr, params.momentum, weight_decay=params.weight_decay)


def learning_rate(params: TrainParams, step: int, steps: int) -> float:
    """Learning rate of one of ``steps`` steps of the whole schedule, counted from 0.

    "multistep" divides by 10 at every milestone, a share of the schedule rounded up to a step: 0.25 and 0.375 of 400 epochs
    are the paper's 100 and 150, and a short or broken schedule still reaches both. "onecycle" rises linearly from 4 % of
    the peak over the first fifth and falls linearly to zero: for lessons of a few epochs.
    """
    if params.schedule == "multistep":
        return params.lr * 0.1 ** sum(step >= math.ceil(milestone * steps) for milestone in params.milestones)
    warm = max(1, steps // 5)
    return params.lr * (0.04 + 0.96 * step / warm if step < warm else (steps - step) / (steps - warm))


def losses(params: TrainParams, model, images, labels, mixed, targets):
    """The loss of one step and its parts.

    Args:
        images, mixed: (N, 3, H, W) float in [0, 1]; labels: (N,) int64; targets: (N, C) float, rows sum to 1.

    Returns:
        (loss, clean logits (N, C) or None, clean loss, mixed logits (N, C), mixed loss); losses are scalars in nats. Without
        a clean term there is no clean forward.

    Paper: Saha & Garain 2024, Algorithm 1 (the clean term in magenta). Its weight is not given there; 1 is assumed.
    """
    clean_logits, clean_loss = None, 0.0
    if params.clean_weight:
        clean_logits = model(images)
        clean_loss = F.cross_entropy(clean_logits, labels)
    mixed_logits = model(mixed)
    mixed_loss = F.cross_entropy(mixed_logits, targets)
    loss = params.clean_weight * clean_loss + mixed_loss
    if params.average:
        loss = loss / (1 + params.clean_weight)
    return loss, clean_logits, clean_loss, mixed_logits, mixed_loss


def training_set(params: TrainParams) -> ImageSet:
    """The images a run is trained on."""
    return load(params.dataset, params.root, "train", holdout=params.holdout, allow_partial=params.allow_partial).subset(params.train_images)


def evaluation_set(params: TrainParams) -> ImageSet:
    """The images a run is evaluated on: the test set, or ``val`` in a run that holds it out."""
    split = "val" if params.holdout else "test"
    return load(params.dataset, params.root, split, allow_partial=params.allow_partial).subset(params.test_images)


class Run:
    """A training in progress: data, network, optimiser and the place in the schedule."""

    def __init__(self, params: TrainParams):
        self.params, self.folder = params, params.folder
        self.device = pick_device(params.device)
        torch.set_num_threads(params.threads)
        self.train_set, self.test_set = training_set(params), evaluation_set(params)
        self.num_classes = len(self.train_set.classes)
        if params.mixer == "region_mixup" and params.k > min(self.train_set.images.shape[2:]):
            raise UserError(f"k={params.k} tiles do not fit into images of {tuple(self.train_set.images.shape[2:])} pixels")
        self.channels = self.train_set.channel_stats()
        self.model = make_model(params, self.num_classes, *self.channels).to(self.device)
        self.optimizer = make_optimizer(params, self.model)
        self.mixer = make_mixer(params, self.num_classes)
        self.loader = Loader(self.train_set, params.batch_size, params.seed, augment=params.augment, device=self.device)
        self.steps = params.epochs * len(self.loader)
        self.progress = {"epoch": 0, "step": 0, "history": [], "snapshots": {}, "train_seconds": 0.0, "seconds": 0.0, "restarts": 0}
        self.sums = self._no_sums()
        self.final = None  # evaluation after the last epoch
        self._restore()

    def _no_sums(self):
        """Running totals of an epoch: images, loss, clean loss, clean hits, mixed loss, mixed hits."""
        return torch.zeros(6, dtype=torch.float64, device=self.device)

    def train_epoch(self, check_stop=lambda: None):
        """The rest of the current epoch; ``check_stop`` is called after every step and may raise."""
        params, place = self.params, self.progress
        mixing = stream(params.seed, "mixing", place["epoch"])
        for _ in range(place["step"]):  # after a restart inside the epoch: draw past what was used
            self.mixer.draw((params.batch_size, *self.train_set.images.shape[1:]), mixing)
        self.model.train()
        batches = self.loader.epoch(place["epoch"], start=place["step"])
        if interactive():
            batches = tqdm(batches, f"epoch {place['epoch'] + 1}", len(self.loader), initial=place["step"], leave=False)
        begun = time.perf_counter()
        try:
            for images, labels in batches:
                mixed, targets = self.mixer(images, labels, generator=mixing)
                with torch.autocast(self.device.type, torch.bfloat16, enabled=params.precision == "bf16"):
                    loss, clean_logits, clean_loss, mixed_logits, mixed_loss = losses(params, self.model, images, labels, mixed, targets)
                self.optimizer.param_groups[0]["lr"] = learning_rate(
                    params, place["epoch"] * len(self.loader) + place["step"], self.steps)
                self.optimizer.zero_grad()
                loss.backward()
                self.optimizer.step()
                self._count(labels, targets, loss, clean_logits, clean_loss, mixed_logits, mixed_loss)
                place["step"] += 1
                if self.device.type == "cpu" and not math.isfinite(loss.item()):
                    return
                check_stop()
        finally:
            if self.device.type == "cuda":
                torch.cuda.synchronize()
            place["train_seconds"] += time.perf_counter() - begun

    @torch.no_grad()
    def _count(self, labels, targets, loss, clean_logits, clean_loss, mixed_logits, mixed_loss):
        clean_hits = 0 if clean_logits is None else (clean_logits.argmax(1) == labels).double().mean()
        mixed_hits = targets.gather(1, mixed_logits.argmax(1, keepdim=True)).double().mean()  # target's weight on the guess
        means = [1, loss, clean_loss, clean_hits, mixed_loss, mixed_hits]
        self.sums += torch.stack([torch.as_tensor(v, dtype=torch.float64, device=self.device) for v in means]) * len(labels)

    def close_epoch(self) -> dict:
        """Evaluate where due, add the epoch's row to the history, and move on. Returns the row."""
        params, place = self.params, self.progress
        count, *sums = self.sums.tolist()
        loss, clean_loss, clean_hits, mixed_loss, mixed_hits = (value / count for value in sums)
        epoch = place["epoch"] + 1
        row = {"epoch": epoch, "lr": self.optimizer.param_groups[0]["lr"], "loss": loss, "mixed_loss": mixed_loss,
               "mixed_accuracy": 100 * mixed_hits}
        if params.clean_weight:
            row |= {"clean_loss": clean_loss, "clean_accuracy": 100 * clean_hits}
        if math.isfinite(loss):
            snapshot = epoch in params.snapshots
            if snapshot or (params.eval_every and epoch % params.eval_every == 0) or epoch == params.epochs:
                curve_only = not snapshot and epoch <= params.epochs - 10
                result = evaluate(self.model, self.test_set, bf16=curve_only and params.precision == "bf16")
                self.final = dict(result) if epoch == params.epochs else None
                row["test_accuracy"] = result["accuracy"]
                if snapshot:
                    place["snapshots"][str(epoch)] = result
        place["history"].append(row)
        place["epoch"], place["step"], self.sums = epoch, 0, self._no_sums()
        return row

    def diverged(self) -> bool:
        """Whether the loss of this epoch is no longer a finite number (then the model is beyond repair)."""
        return not bool(torch.isfinite(self.sums[1]))

    def save(self):
        """Write the checkpoint, atomically."""
        state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "sums": self.sums,
                 "progress": json.dumps(self.progress), "images": self.train_set.checksum}
        buffer = io.BytesIO()  # torch reports a full disk as an obscure RuntimeError; a plain write says what it is
        torch.save(state, buffer)
        records.atomic_write(self.folder / CHECKPOINT, buffer.getvalue())

    def _restore(self):
        path = self.folder / CHECKPOINT
        if not path.exists():
            return
        try:
            state = torch.load(path, map_location=self.device, weights_only=True)
            images = state["images"]
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.sums, self.progress = state["sums"], json.loads(state["progress"])
        except Exception as error:  # torch raises many kinds for a broken file
            reason = str(error).splitlines()[0][:100]
            raise UserError(f"the checkpoint {path} is damaged ({reason}): delete it to start this run again") from error
        check_images(self.params, self.train_set.checksum, images)
        self.progress["restarts"] += 1

    def finish(self, status: str) -> Record:
        """Final evaluation in float32, weights, then the record; the checkpoint goes last."""
        params, place = self.params, self.progress
        started, result, recalibrated = time.perf_counter(), {}, None
        if status == "done":
            result = self.final or evaluate(self.model, self.test_set)
            if params.bn_recalibration:
                recalibrated = evaluate(recalibrate_batchnorm(self.model, self.loader), self.test_set)
            records.atomic_write(self.folder / WEIGHTS, save_tensors(stored_weights(self.model, params.half_weights)))
        seen = sum(1 for row in place["history"] if math.isfinite(row["loss"])) * len(self.train_set)
        record = Record(
            status=status, run_id=params.run_id, config=params.config, correct=result.pop("correct", None), metrics=result,
            snapshots=place["snapshots"], bn_recalibrated=recalibrated, history=[finite(row) for row in place["history"]],
            data={"checksum": self.train_set.checksum, "train_images": len(self.train_set), "test_images": len(self.test_set),
                  "classes": self.num_classes, "mean": self.channels[0], "std": self.channels[1]},
            seconds=place["seconds"] + time.perf_counter() - started,
            images_per_second=seen / place["train_seconds"] if place["train_seconds"] else 0.0,
            peak_memory_mib=peak_memory_mib(self.device), restarts=place["restarts"], **records.environment(self.device.type))
        for kind in records.KINDS:  # of an earlier network in this folder
            (self.folder / f"{kind}.json").unlink(missing_ok=True)
        records.write(record, self.folder)
        (self.folder / CHECKPOINT).unlink(missing_ok=True)
        return record


def train(params: TrainParams, log=print) -> Record:
    """Run one cell to the end of its schedule and return its record; go on from a checkpoint, or load a finished record.

    Args:
        params: of notebook 02_training; ``params.folder`` gets checkpoint, weights and record.
        log: called with one line per epoch.

    Raises:
        UserError: something to mend (no CUDA, missing data, full disk, damaged checkpoint).
        Stopped: ``max_minutes`` passed, SIGTERM or Ctrl-C arrived; the checkpoint is written.
    """
    if (params.folder / records.RECORD).exists():
        record = records.read(params.folder)
        if params.dataset not in sources.SIZES or params.allow_partial:
            images = sources.arrays(params.dataset, params.root, allow_partial=params.allow_partial)
            check_images(params, images["checksum"], record.data["checksum"])
        log(f"run {params.run_id} is finished already: its record is loaded, nothing is trained")
        return record
    with records.only_process(params.folder):
        return _train(params, log)


def _train(params, log):
    begun = time.perf_counter()
    run = Run(params)
    place = run.progress
    if place["restarts"]:
        log(f"run {params.run_id} goes on from epoch {place['epoch'] + 1}, step {place['step'] + 1}")
    earlier = place["seconds"]
    with noticing_signals() as signals:
        def check_stop():
            minutes = (time.perf_counter() - begun) / 60
            if signals or (params.max_minutes is not None and minutes >= params.max_minutes):
                reason = signals[0] if signals else f"max_minutes={params.max_minutes:g}"
                raise Stopped(f"stopped by {reason} in epoch {place['epoch'] + 1} of {params.epochs}; "
                              "the same command goes on from the checkpoint")

        while place["epoch"] < params.epochs:
            try:
                run.train_epoch(check_stop)
            except Stopped:
                place["seconds"] = earlier + time.perf_counter() - begun
                run.save()
                raise
            diverged = run.diverged()
            row = run.close_epoch()
            place["seconds"] = earlier + time.perf_counter() - begun
            log(epoch_line(row, params.epochs, place, len(run.train_set)))
            if diverged:
                log(f"run {params.run_id} diverged in epoch {row['epoch']}: the loss is no longer finite; try a smaller lr")
                return run.finish("diverged")
            if row["epoch"] % params.checkpoint_every == 0 or row["epoch"] == params.epochs:
                run.save()
    return run.finish("done")


def epoch_line(row: dict, epochs: int, place: dict, images: int) -> str:
    """One line of the log for one row of the history."""
    parts = [f"epoch {row['epoch']:>{len(str(epochs))}}/{epochs}", f"lr {row['lr']:.4f}", f"loss {row['loss']:.3f}"]
    names = {"clean_accuracy": "clean", "mixed_accuracy": "mixed", "test_accuracy": "test"}
    parts += [f"{label} {row[name]:.1f} %" for name, label in names.items() if name in row]
    left = place["seconds"] / row["epoch"] * (epochs - row["epoch"])
    return "  ".join([*parts, f"{images * row['epoch'] / max(place['train_seconds'], 1e-9):.0f} images/s", f"{left:.0f} s left"])


def recalibrate_batchnorm(model, loader: Loader):
    """A copy of the model whose BatchNorm statistics are those of one epoch of clean, augmented images."""
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
    """The state dict as it is written to a file; ``half`` rounds floating point values to float16."""
    return {name: (value.half() if half and value.is_floating_point() else value).contiguous() for name, value in model.state_dict().items()}


def pick_device(name: str) -> torch.device:
    """"auto" takes CUDA where there is one; asking for CUDA where there is none is an error."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device='cuda', but torch sees no CUDA device here: use device='auto' or 'cpu'")
    return torch.device("cuda" if name == "cuda" or (name == "auto" and torch.cuda.is_available()) else "cpu")


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
    """Whether somebody watches: a terminal, or a notebook opened in Jupyter (papermill and nbval do not set its variable)."""
    return sys.stdout.isatty() or "JPY_SESSION_NAME" in os.environ


@contextlib.contextmanager
def noticing_signals():
    """A list that SIGTERM and the first Ctrl-C (or "interrupt kernel") enter, so that the loop can end after a whole step
    with a checkpoint. A second Ctrl-C interrupts at once. Only the main thread can be told."""
    received = []

    def notice(number, _):
        if received:
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
