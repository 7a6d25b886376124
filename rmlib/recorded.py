"""One training step on tensors alone, so that a GPU can replay it without the host.

All that is random or scheduled in an epoch is drawn on the CPU, from the streams of the seed, as
tables with one row for every step, and goes to the device at once. A step looks up its row, cuts
and mixes its batch, and does the forwards, the backward, the optimiser and the running totals. On
CUDA that is recorded in a CUDA graph, with one more for the smaller last batch of an epoch, and an
epoch is a row of replays during which the host reads nothing back. On the CPU the same function
simply runs.
"""

import contextlib
import functools
import gc
import math
import os
import shutil
import sysconfig
import time
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from torch.nn import functional as F

from rmlib import UserError
from rmlib.data import Loader, stream
from rmlib.datasets.sources import cache_dir
from rmlib.evaluate import full_precision
from rmlib.mixers import Mixer, Plan
from rmlib.params import TrainParams

os.environ.setdefault(
    "TORCHINDUCTOR_CACHE_DIR", str(cache_dir() / "compiled")
)  # shared by all runs; torch's optimisers would set another
WARMUP = 3  # steps before a recording: kernels are chosen and compiled in them


compile_whole = functools.partial(
    torch.compile, dynamic=False
)  # shapes are those of whole batches, always the same


@contextlib.contextmanager
def fastest_kernels():
    """cuDNN tries its kernels on every new shape and takes the fastest; afterwards as before."""
    before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def make_optimizer(params: TrainParams, model) -> torch.optim.SGD:
    """SGD with momentum, without Nesterov, weight decay on all parameters."""
    return torch.optim.SGD(
        model.parameters(), params.lr, params.momentum, weight_decay=params.weight_decay
    )


def learning_rate(params: TrainParams, step: int, steps: int) -> float:
    """Learning rate of one of ``steps`` steps of the whole schedule, counted from 0.

    "multistep" divides by 10 at every milestone, a share of the schedule rounded up to a step: 0.25
    and 0.375 of 400 epochs are the paper's 100 and 150, and a short or broken schedule still
    reaches both. "onecycle" rises linearly from 4 % of the peak over the first fifth and falls
    linearly to zero: for lessons of a few epochs.
    """
    if params.schedule == "multistep":
        return params.lr * 0.1 ** sum(
            step >= math.ceil(milestone * steps) for milestone in params.milestones
        )
    warm = max(1, steps // 5)
    return params.lr * (
        0.04 + 0.96 * step / warm if step < warm else (steps - step) / (steps - warm)
    )


def losses(params: TrainParams, model, images, labels, mixed, targets):
    """The loss of one step and its parts.

    Args:
        images, mixed: (N, 3, H, W) float in [0, 1];
        labels: (N,) int64;
        targets: (N, C) float, rows sum to 1.

    Returns:
        (loss, clean logits (N, C) or None, clean loss, mixed logits (N, C), mixed loss); losses are
        scalars in nats. Without a clean term there is no clean forward, and the clean loss is None.

    Paper: Saha & Garain 2024, Algorithm 1 (the clean term in magenta). Its weight is not given
    there; 1 is assumed.
    """
    clean_logits = clean_loss = None
    if params.clean_weight:
        clean_logits = model(images)
        clean_loss = F.cross_entropy(clean_logits, labels)
    mixed_logits = model(mixed)
    loss = mixed_loss = F.cross_entropy(mixed_logits, targets)
    if params.clean_weight:
        loss = params.clean_weight * clean_loss + mixed_loss
    if params.average:
        loss = loss / (1 + params.clean_weight)
    return loss, clean_logits, clean_loss, mixed_logits, mixed_loss


@dataclass(frozen=True)
class Tables:
    """What is random or scheduled in the S steps of an epoch with batches of B: one row for every
    step.

    ``order``, ``dy``, ``dx``, ``flip`` (S, B): see :meth:`rmlib.data.Loader.draw`. ``boxes`` (S, T,
    4), ``lam`` (S, T, 1) or (S, T, B), ``partners`` (S, T, B): see :class:`rmlib.mixers.Plan`.
    ``lr`` (S,) float64. The last row is filled up with zeros where the last batch is smaller.
    """

    order: torch.Tensor
    dy: torch.Tensor
    dx: torch.Tensor
    flip: torch.Tensor
    boxes: torch.Tensor
    lam: torch.Tensor
    partners: torch.Tensor
    lr: torch.Tensor

    def tensors(self) -> list[torch.Tensor]:
        """All of them, in the order above."""
        return [getattr(self, field.name) for field in fields(self)]


def draw_tables(params: TrainParams, loader: Loader, mixer: Mixer, epoch: int) -> Tables:
    """The tables of one epoch of a run, on the CPU, a function of the run's seed and the epoch
    alone.
    """
    size, steps = loader.batch_size, len(loader)
    choices = loader.draw(epoch)
    missing = steps * size - len(choices[0])
    mixing = stream(params.seed, "mixing", epoch)
    plans = [
        mixer.draw((loader.size_of(step), *loader.image_shape), mixing) for step in range(steps)
    ]

    def filled(tensors):  # those of the last, smaller batch get the width of the others
        width = tensors[0].shape[-1]
        return torch.stack([F.pad(tensor, (0, width - tensor.shape[-1])) for tensor in tensors])

    rates = [
        learning_rate(params, epoch * steps + step, params.epochs * steps) for step in range(steps)
    ]
    return Tables(
        *(F.pad(values, (0, missing)).view(steps, size) for values in choices),
        torch.stack([plan.boxes for plan in plans]),
        filled([plan.lam for plan in plans]),
        filled([plan.partners for plan in plans]),
        torch.tensor(rates, dtype=torch.float64),
    )


class Step:
    """The steps of one run.

    Args:
        params, model, optimizer, mixer, loader: of the run; model and loader on one device.
        recorded: record the step in CUDA graphs (default: on CUDA).

    ``sums`` (6,) float64 on the device are the totals since the caller last set them to 0: images,
    loss, clean loss, clean hits, mixed loss, mixed hits, each but the first weighted with its
    number of images. ``busy``: seconds spent in steps. ``of_whole_batches``: what makes a batch,
    and the network, both compiled where that is asked for.

    Raises:
        UserError: ``compiled`` without a compiler.
    """

    def __init__(
        self,
        params: TrainParams,
        model,
        optimizer,
        mixer: Mixer,
        loader: Loader,
        recorded: bool | None = None,
    ):
        self.params, self.model, self.optimizer, self.mixer, self.loader = (
            params,
            model,
            optimizer,
            mixer,
            loader,
        )
        self.device = loader.device
        self.recorded = self.device.type == "cuda" if recorded is None else recorded
        self.sums = torch.zeros(6, dtype=torch.float64, device=self.device)
        self.index = torch.zeros(1, dtype=torch.int64, device=self.device)  # of the next step
        self.tables, self.graphs, self.busy = None, {}, 0.0
        self._ahead = None  # (epoch, its tables), drawn while the device was busy
        self.of_whole_batches = self._functions()
        self.stream = torch.cuda.Stream() if self.device.type == "cuda" else None

    def steps(self, epoch: int, start: int = 0):
        """Train for the steps of an epoch from ``start``: a generator of their numbers, which may
        be closed after any of them.

        On CUDA the tables of the next epoch are drawn while the device is still busy with this one.
        Without :meth:`ready` the very first call there records, which takes seconds, or a minute
        where something must be compiled first; ``busy`` counts the rest.
        """
        drawn, self._ahead = self._ahead, None
        self.begin(drawn[1] if drawn and drawn[0] == epoch else self.draw(epoch), start)
        begun = time.perf_counter()
        try:
            for number in range(start, len(self.loader)):
                self.launch(number)
                if (
                    self.graphs
                    and number + 1 == len(self.loader)
                    and epoch + 1 < self.params.epochs
                ):
                    self._ahead = (
                        epoch + 1,
                        self.draw(epoch + 1),
                    )  # all is sent off, and nobody waits yet, also among several runs
                yield number
        finally:
            self.wait()
            self.busy += time.perf_counter() - begun

    def ready(self, epoch: int, start: int = 0) -> None:
        """Get everything ready for an epoch, the recording too: ``steps`` then begins at once."""
        self._ahead = epoch, self.draw(epoch)
        self.begin(self._ahead[1], start)

    def draw(self, epoch: int) -> Tables:
        """The tables of an epoch, see :func:`draw_tables`."""
        return draw_tables(self.params, self.loader, self.mixer, epoch)

    def begin(self, tables: Tables, start: int = 0) -> None:
        """Take the tables of an epoch and stand before one of its steps; records first if that has
        not been done.
        """
        if not self.recorded:
            self.tables = tables
            self.index.fill_(start)
            return
        if self.stream is not None:
            self.stream.wait_stream(torch.cuda.current_stream())
        with self._on_stream():
            if self.tables is None:
                self.prepare(tables)
                self._record()
            for mine, new in zip(self.tables.tensors(), tables.tensors()):
                mine.copy_(
                    new.pin_memory() if self.device.type == "cuda" else new, non_blocking=True
                )
            self.index.fill_(start)

    def launch(self, number: int) -> None:
        """Do the next step, ``number`` of the epoch; on CUDA it is only sent off."""
        size = self.loader.size_of(number)
        with self._on_stream():
            if self.graphs:
                self.graphs[size].replay()
            else:
                self.compute(size)

    def wait(self) -> None:
        """Until everything sent off is done."""
        if self.stream is not None:
            self.stream.synchronize()

    def prepare(self, tables: Tables) -> None:
        """Give everything that a recorded step reads or changes its place on the device, once and
        for all.
        """
        self.tables = Tables(*(tensor.to(self.device, copy=True) for tensor in tables.tensors()))
        group = self.optimizer.param_groups[0]
        group["fused"], group["lr"] = (
            True,
            torch.zeros((), device=self.device),
        )  # a tensor, so that a table can set it
        if self.params.momentum:
            for parameter in (
                self.model.parameters()
            ):  # zeros: the first step then takes the gradient itself, as SGD does
                self.optimizer.state[parameter].setdefault(
                    "momentum_buffer", torch.zeros_like(parameter)
                )

    def compute(self, size: int) -> None:
        """One step on a batch of ``size`` images: reads its row of the tables, changes model,
        optimiser, sums and index in place.
        """
        batch, network = (
            self.of_whole_batches if size == self.loader.batch_size else (self.batch, self.model)
        )
        *choices, rate = (
            tensor.index_select(0, self.index).squeeze(0) for tensor in self.tables.tensors()
        )
        images, labels, mixed, targets = batch(size, *choices)
        with torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.params.precision == "bf16"
        ):
            loss, *parts = losses(self.params, network, images, labels, mixed, targets)
        group = self.optimizer.param_groups[0]
        if self.recorded:
            group["lr"].copy_(rate)
        else:
            group["lr"] = rate.item()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.count(labels, targets, loss, *parts)
        self.index += 1

    def batch(self, size, order, dy, dx, flip, boxes, lam, partners):
        """The (images, labels, mixed images, targets) of one row of the tables, of which the first
        ``size`` images count.
        """
        images, labels = self.loader.batch(*(values[:size] for values in (order, dy, dx, flip)))
        plan = Plan(boxes, lam[:, :size], partners[:, :size], *self.loader.image_shape[1:])
        return images, labels, *self.mixer.apply(images, labels, plan)

    def _functions(self):
        """Making a batch, and the network: compiled where that is asked for, for whole batches. On
        the CPU boxes are Python numbers, each of which would be compiled anew, so there the batch
        is not.
        """
        if not self.params.compiled:
            return self.batch, self.model
        headers = Path(
            sysconfig.get_paths()["include"], "Python.h"
        ).exists()  # for Triton's launchers
        if not any(map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++"))) or (
            self.device.type == "cuda" and not headers
        ):
            raise UserError(
                "compiled=True needs a C++ compiler and Python's headers, and one of them is"
                " missing: install them (on Debian and Ubuntu the packages g++ and python3-dev), or"
                " leave it out"
            )
        return compile_whole(self.batch) if self.recorded else self.batch, compile_whole(self.model)

    @torch.no_grad()
    def count(self, labels, targets, loss, clean_logits, clean_loss, mixed_logits, mixed_loss):
        """Add one step to ``sums``: labels (N,), targets (N, C), and the parts of the loss."""
        mixed_hits = (
            targets.gather(1, mixed_logits.argmax(1, keepdim=True)).double().mean()
        )  # target's weight on the guess
        nothing = mixed_hits.new_zeros(())
        clean = (
            (nothing, nothing)
            if clean_logits is None
            else (clean_loss, (clean_logits.argmax(1) == labels).double().mean())
        )
        means = [nothing + 1, loss, *clean, mixed_loss, mixed_hits]
        self.sums += torch.stack([value.double() for value in means]) * len(labels)

    def _record(self):
        """Record the step once for every size of batch, and leave everything as it was before."""
        changing = [
            *self.model.parameters(),
            *self.model.buffers(),
            *(buffer for state in self.optimizer.state.values() for buffer in state.values()),
            self.sums,
            self.index,
        ]
        before = [tensor.detach().clone() for tensor in changing]
        try:
            with fastest_kernels(), full_precision():
                for size, row in {
                    self.loader.size_of(row): row for row in (0, len(self.loader) - 1)
                }.items():
                    for _ in range(WARMUP):
                        self.index.fill_(
                            row
                        )  # a row for that many images: partners of others lie outside the batch
                        self.compute(size)
                    self.index.fill_(row)
                    self.optimizer.zero_grad()  # so that the gradients of the recording are its own
                    self.graphs[size] = self.capture(size)
        finally:
            with torch.no_grad():
                for tensor, value in zip(changing, before):
                    tensor.copy_(value)

    def capture(self, size: int):
        """A recording of :meth:`compute`, which its ``replay()`` repeats on whatever the tensors
        then hold.
        """
        gc.collect()  # graphs of steps that are gone must not go during a recording
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self.stream):
            self.compute(size)
        return graph

    def _on_stream(self):
        return contextlib.nullcontext() if self.stream is None else torch.cuda.stream(self.stream)
