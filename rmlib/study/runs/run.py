"""One run from its images to its record: it can be stopped anywhere and goes on as if it had not.

On a CPU that holds bit for bit. On CUDA a resumed run is as close as two runs of one seed are,
since some kernels there add in no fixed order. The last epoch counts; the test set chooses nothing.
"""

import collections
import contextlib
import copy
import dataclasses
import math
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from safetensors.torch import save as save_tensors
from tqdm import tqdm

from rmlib import Stopped, UserError
from rmlib.choices import learning_rate
from rmlib.data import ImageSet, Loader, load
from rmlib.datasets import sources
from rmlib.evaluate import evaluate
from rmlib.extras import needs
from rmlib.packed import pack_bits
from rmlib.params import TrainParams
from rmlib.recorded import need_compiler, recording_of
from rmlib.study.runs import environment, records
from rmlib.study.runs.checkpoint import Checkpoints, interactive, noticing_signals
from rmlib.study.runs.records import WEIGHTS, Record, check_images
from rmlib.train import make_run, training


def training_set(params: TrainParams, load=load) -> ImageSet:
    """The images a run is trained on; ``load``: :func:`rmlib.data.load`, or one that remembers."""
    options = {"holdout": params.holdout, "allow_partial": params.allow_partial}
    return load(params.dataset, params.root, "train", **options).subset(params.train_images)


def evaluation_set(params: TrainParams, load=load) -> ImageSet:
    """The images a run is evaluated on: the test set, or ``val`` in a run that holds it out."""
    split = "val" if params.holdout else "test"
    images = load(params.dataset, params.root, split, allow_partial=params.allow_partial)
    images = images.subset(params.test_images)
    if params.measured_images is not None and params.measured_images > len(images):
        remedy = f"there are only {len(images)} test images; leave it out for all"
        raise UserError(f"measured_images={params.measured_images}: {remedy}")
    return images


def check_device(params: TrainParams) -> None:
    """Refuse a run whose device, or compiler for it, is not on this machine."""
    device = pick_device(params.device)
    if params.compiled:
        need_compiler(device.type)


class StoredRun:
    """A run with its folder, from its checkpoint, if there is one, to its record.

    ``core``: see :class:`rmlib.train.Run`. ``progress``: what else the checkpoint keeps.
    """

    def __init__(self, params: TrainParams, log=print):
        self.begun = time.perf_counter()
        self.params, self.folder = params, params.folder
        self.still_held: Callable[[], None] = lambda: None  # see rmlib.study.runs.records.holding
        self.device = pick_device(params.device)
        torch.set_num_threads(params.threads)
        self.train_set = training_set(params)
        test_set = evaluation_set(params)
        self.test_set = dataclasses.replace(test_set, images=test_set.images.to(self.device))
        self.core = make_run(params, self.train_set, self.device)
        self.progress: dict[str, Any] = {"history": [], "snapshots": {}, "restarts": 0}
        self.progress |= {"seconds": 0.0, "checkpoint_seconds": 0.0}
        self.final: dict | None = None  # evaluation after the last epoch
        self.checkpoints = Checkpoints(self)
        self.checkpoints.restore(log)
        self.earlier = self.progress["seconds"]  # of earlier attempts

    def note_seconds(self) -> None:
        """Bring the seconds of all attempts up to date."""
        self.progress["seconds"] = self.earlier + time.perf_counter() - self.begun

    def images_per_second(self) -> float:
        """Training images per second of training, over the epochs that went well."""
        epochs = sum(math.isfinite(row["loss"]) for row in self.progress["history"])
        seconds = self.core.seconds
        return epochs * len(self.train_set) / seconds if seconds else 0.0

    def diverged(self) -> bool:
        """Whether the loss of this epoch is no longer a finite number, beyond repair."""
        return not bool(torch.isfinite(self.core.sums[1]))

    def close_epoch(self, epoch: int) -> dict:
        """Evaluate after epoch number ``epoch``, where due; returns its row of the history."""
        params, steps = self.params, len(self.core.loader)
        count, *sums = self.core.sums.tolist()
        loss, clean_loss, clean_hits, mixed_loss, mixed_hits = (value / count for value in sums)
        rate = learning_rate(params, epoch * steps - 1, params.epochs * steps)
        row = {"epoch": epoch, "lr": rate, "loss": loss}
        row |= {"mixed_loss": mixed_loss, "mixed_accuracy": 100 * mixed_hits}
        if params.clean_weight:
            row |= {"clean_loss": clean_loss, "clean_accuracy": 100 * clean_hits}
        on_curve = params.eval_every and epoch % params.eval_every == 0
        due = on_curve or epoch in params.snapshots or epoch == params.epochs
        if math.isfinite(loss) and due:
            row["test_accuracy"] = self._evaluate(epoch)["accuracy"]
        self.progress["history"].append(row)
        return row

    def _evaluate(self, epoch):
        """In the precision of training for the curve, in float32 for what is reported."""
        params, snapshot = self.params, epoch in self.params.snapshots
        curve_only = not snapshot and epoch <= params.epochs - 10
        bf16 = curve_only and params.precision == "bf16"
        result = evaluated(self.core.model, self.test_set, bf16)
        if snapshot:
            self.progress["snapshots"][str(epoch)] = known(result)
        if epoch == params.epochs:
            self.final = dict(result)
        return result

    def finish(self, status: str) -> Record:
        """Final evaluation in float32, weights, then the record; the checkpoint goes last."""
        self.still_held()
        params, progress, core = self.params, self.progress, self.core
        started, recalibrated = time.perf_counter(), None
        result: dict = {}
        if status == "done":
            result = self.final or evaluated(core.model, self.test_set)
            if not math.isfinite(result["nll"]):  # the last loss was finite, the logits are not
                status, result = "diverged", {}
        if status == "done":
            if params.bn_recalibration:
                model = recalibrate_batchnorm(core.model, core.loader)
                recalibrated = known(evaluated(model, self.test_set))
            weights = {name: value.contiguous() for name, value in core.model.state_dict().items()}
            records.atomic_write(self.folder / WEIGHTS, save_tensors(weights))
        else:  # of an earlier attempt
            (self.folder / WEIGHTS).unlink(missing_ok=True)
        images, (mean, std) = self.train_set, self.train_set.channel_stats()
        data = {"checksum": images.checksum, "train_images": len(images)}
        data |= {"test_images": len(self.test_set), "classes": len(images.classes)}
        data |= {"size": list(images.images.shape[2:]), "mean": mean, "std": std}
        record = Record(
            status=status,
            run_id=params.run_id,
            config=params.config,
            correct=result.pop("correct", None),
            confusion=result.pop("confusion", None),
            metrics=result,
            snapshots=progress["snapshots"],
            bn_recalibrated=recalibrated,
            weights=records.weights_hash(self.folder),
            history=[finite(row) for row in progress["history"]],
            data=data,
            seconds=progress["seconds"] + time.perf_counter() - started,
            images_per_second=self.images_per_second(),
            peak_memory_mib=peak_memory_mib(self.device),
            checkpoint_seconds=progress["checkpoint_seconds"],
            compiled=params.compiled,
            restarts=progress["restarts"],
            **environment.environment(self.device.type),
        )
        records.forget_others(self.folder, record)
        records.note_images(self.folder, params)
        records.write(record, self.folder)
        self.checkpoints.delete()
        return record


def train(params: TrainParams, log=print) -> Record:
    """Train a run to the end of its schedule and return its record.

    It goes on from a checkpoint, and a run that has a record already is not repeated.

    ``params.folder`` gets checkpoint, weights and record, and ``log`` a line for every epoch.

    Raises:
        UserError: something to mend (no CUDA, missing data, full disk, damaged checkpoint).
        Stopped: ``max_minutes`` passed, SIGTERM or Ctrl-C arrived; the checkpoint is written.
    """
    if params.robustness:
        needs("robustness", "maps")
    if (params.folder / records.RECORD).exists():
        return _finished(params, log)
    with records.only_process(params.folder) as still_held, noticing_signals() as signals:
        run = StoredRun(params, log)
        run.still_held = still_held
        core = run.core
        if run.progress["restarts"]:
            log(f"run {params.run_id} goes on from epoch {core.epoch + 1}, step {core.step + 1}")
        try:
            with contextlib.closing(training(core, recording_of(core))) as steps:
                status = _course(run, steps, signals, log)
        except Stopped:
            run.note_seconds()
            run.checkpoints.save()
            raise
        return run.finish(status)


def _finished(params, log):
    """The record of a run that has ended, if it was made from the images that are there now."""
    record = records.read(params.folder)
    if params.dataset not in sources.SIZES or params.allow_partial:
        images = sources.arrays(params.dataset, params.root, allow_partial=params.allow_partial)
        check_images(params, images["checksum"], record.data["checksum"])
    log(f"run {params.run_id} is finished already: its record is loaded, nothing is trained")
    return record


def _course(run, steps, signals, log):
    """Do the steps of a training, with what belongs between them; returns the record's status."""
    params, core, progress = run.params, run.core, run.progress
    for _ in _with_bars(core, steps) if interactive() else steps:
        if core.step and not (run.device.type == "cpu" and run.diverged()):
            _stop_if_asked(run, signals)
            continue
        diverged = run.diverged()
        row = run.close_epoch(core.epoch + 1 if core.step else core.epoch)
        run.note_seconds()
        log(epoch_line(row, params, progress["seconds"], run.images_per_second()))
        if diverged:
            problem = f"run {params.run_id} diverged in epoch {row['epoch']}"
            log(f"{problem}: the loss is no longer finite; try a smaller lr")
            return "diverged"
        if row["epoch"] == params.epochs or run.checkpoints.are_cheap():
            run.checkpoints.save()
    return "done"


def _stop_if_asked(run, signals):
    params = run.params
    minutes = (time.perf_counter() - run.begun) / 60
    late = params.max_minutes is not None and minutes >= params.max_minutes
    if signals or late:
        reason = signals[0] if signals else f"max_minutes={params.max_minutes:g}"
        place = f"epoch {run.core.epoch + 1} of {params.epochs}"
        remedy = "the same command goes on from the checkpoint"
        raise Stopped(f"stopped by {reason} in {place}; {remedy}")


def _with_bars(core, steps):
    """The same steps, with a bar of progress that begins again with every epoch."""
    with tqdm(total=len(core.loader), leave=False) as bar:
        for _ in steps:
            bar.set_description(f"epoch {core.epoch + 1}", refresh=False)
            bar.update(core.step - bar.n)
            if not core.step:
                bar.clear()  # a line of the log follows
            yield


def epoch_line(row: dict, params: TrainParams, seconds: float, speed: float) -> str:
    """One line of the log for one row of the history, ``seconds`` after the start."""
    epochs, names = params.epochs, {"test": "val"} if params.holdout else {}
    left = seconds / row["epoch"] * (epochs - row["epoch"])
    place = f"epoch {row['epoch']:>{len(str(epochs))}}/{epochs}"
    parts = [place, f"lr {row['lr']:.4f}", f"loss {row['loss']:.3f}"]
    for name in ("clean", "mixed", "test"):
        if f"{name}_accuracy" in row:
            parts.append(f"{names.get(name, name)} {row[f'{name}_accuracy']:.1f} %")
    return "  ".join([*parts, f"{speed:.0f} images/s", f"{left:.0f} s left"])


def recalibrate_batchnorm(model, loader: Loader):
    """A copy of the model with BatchNorm statistics of one epoch of clean, augmented images."""
    model = copy.deepcopy(model)
    torch.optim.swa_utils.update_bn(loader.epoch(0), model)
    return model


def pick_device(name: str) -> torch.device:
    """ "auto" takes CUDA where there is one; asking for CUDA where there is none is an error."""
    there = torch.cuda.is_available()
    if name == "cuda" and not there:
        raise UserError("device='cuda', but torch sees no CUDA device: use device='auto' or 'cpu'")
    return torch.device("cuda" if there and name != "cpu" else "cpu")


def peak_memory_mib(device: torch.device) -> float:
    """Largest memory so far, MiB: of the process on CPU, of torch's allocator on CUDA."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    unit = 2**20 if sys.platform == "darwin" else 2**10  # bytes on macOS, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def evaluated(model, data: ImageSet, bf16: bool = False) -> dict:
    """Metrics of a model, ``correct``, the packed verdicts in the set's order, and ``confusion``.

    The last is class -> predicted class -> number of images; pairs that never occur are left out.
    """
    result, names = evaluate(model, data, bf16=bf16), data.classes
    predicted = result.pop("predicted")
    confusion: dict[str, dict[str, int]] = {name: {} for name in names}
    for pair, count in collections.Counter(zip(data.labels.tolist(), predicted.tolist())).items():
        confusion[names[pair[0]]][names[pair[1]]] = count
    correct = pack_bits(predicted == data.labels)
    return result | {"correct": correct, "confusion": confusion}


def known(result: dict) -> dict:
    """What a row on the way keeps: the verdicts, and the metrics that are finite numbers."""
    rest = {name: x for name, x in result.items() if name != "confusion"}
    return {name: x for name, x in rest.items() if isinstance(x, str) or math.isfinite(x)}


def finite(row: dict) -> dict:
    """A history row for JSON, which has no NaN: they become None."""
    return {name: value if math.isfinite(value) else None for name, value in row.items()}
