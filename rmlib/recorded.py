"""The training step as a CUDA graph, which a GPU replays without waiting for the host.

The choices of an epoch go to the device at once. A recorded step looks up its row of them and does
what :func:`rmlib.train.training_step` does; one more recording serves the smaller last batch of an
epoch. During an epoch the host reads nothing back.
"""

import contextlib
import functools
import gc
import os
import shutil
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from rmlib import UserError
from rmlib.choices import Choices
from rmlib.evaluate import full_precision
from rmlib.paths import cache_dir
from rmlib.train import Run, training_step

WARMUP = 3  # steps before a recording: kernels are chosen and compiled in them

# shapes are those of whole batches, always the same
compile_whole = functools.partial(torch.compile, dynamic=False)


@contextlib.contextmanager
def fastest_kernels() -> Iterator[None]:
    """cuDNN tries its kernels on every new shape and takes the fastest; afterwards as before."""
    before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def recording_of(run: Run) -> "Recording | None":
    """What :func:`rmlib.train.training` replays: on CUDA a recording, else None.

    Network and batches are compiled first where the run asks for it. Nothing is recorded yet.

    Raises:
        UserError: ``compiled`` without a compiler.
    """
    if run.loader.device.type == "cuda":
        return Recording(run)
    if run.params.compiled:
        # boxes are Python numbers here, each of which would be compiled anew
        compile_steps(run, batches=False)
    return None


class Recording:
    """The steps of a run, recorded once and replayed; :meth:`begin` first in every epoch."""

    def __init__(self, run: Run):
        self.run, self.device = run, run.loader.device
        self.index = torch.zeros(1, dtype=torch.int64, device=self.device)  # of the next step
        self.tables: Any = None  # choices of the epoch, on the device
        # a step of every size of batch: partners of other rows lie outside a smaller one
        loader = run.loader
        self.rows = {loader.size_of(row): row for row in (0, len(loader) - 1)}
        self.graphs: dict[int, Any] = {}  # size of a batch -> its recording
        self.stream = torch.cuda.Stream() if self.device.type == "cuda" else None
        if run.params.compiled:
            compile_steps(run)

    def begin(self, choices: Choices, start: int = 0) -> None:
        """Take the choices of an epoch and stand before one of its steps.

        The first call records, which takes seconds, or a minute where something is compiled.
        """
        if self.stream is not None:
            self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            if self.tables is None:
                self.prepare(choices)
                self.record()
            for mine, new in zip(self.tables, choices):
                source = new.pin_memory() if self.device.type == "cuda" else new
                mine.copy_(source, non_blocking=True)
            self.index.fill_(start)

    def replay(self, step: int) -> None:
        """Do the next step, number ``step`` of the epoch; on CUDA it is only sent off."""
        with torch.cuda.stream(self.stream):
            self.graphs[self.run.loader.size_of(step)].replay()

    def wait(self) -> None:
        """Wait until everything sent off is done."""
        if self.stream is not None:
            self.stream.synchronize()

    def prepare(self, choices: Choices) -> None:
        """Give everything that a recorded step reads or changes its place on the device."""
        self.tables = Choices(*(values.to(self.device, copy=True) for values in choices))
        group = self.run.optimizer.param_groups[0]
        group["fused"] = True
        group["lr"] = torch.zeros((), device=self.device)  # a tensor, so that a table can set it
        if not self.run.params.momentum:
            return
        for parameter in self.run.model.parameters():
            # zeros: the first step then takes the gradient itself, as SGD does
            state = self.run.optimizer.state[parameter]
            state.setdefault("momentum_buffer", torch.zeros_like(parameter))

    def compute(self, size: int) -> None:
        """One step on ``size`` images, with the row of the tables at which the index stands."""
        row = (values.index_select(0, self.index).squeeze(0) for values in self.tables)
        training_step(self.run, Choices(*row).first(size))
        self.index += 1

    def record(self) -> None:
        """Record the step once for every size of batch, and leave everything as it was before."""
        run = self.run
        momentum = [buffer for state in run.optimizer.state.values() for buffer in state.values()]
        parts = (run.model.parameters(), run.model.buffers(), momentum, (run.sums, self.index))
        changing = [tensor for part in parts for tensor in part]
        before = [tensor.detach().clone() for tensor in changing]
        try:
            with fastest_kernels(), full_precision():
                for size, row in self.rows.items():
                    for _ in range(WARMUP):
                        self.index.fill_(row)
                        self.compute(size)
                    self.index.fill_(row)
                    # so that the recording has gradients of its own
                    run.optimizer.zero_grad()
                    self.graphs[size] = self.capture(size)
        finally:
            with torch.no_grad():
                for tensor, value in zip(changing, before):
                    tensor.copy_(value)

    def capture(self, size: int) -> Any:
        """A recording of :meth:`compute`, which its ``replay()`` repeats on the tensors of then."""
        gc.collect()  # graphs of steps that are gone must not go during a recording
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self.stream):
            self.compute(size)
        return graph


def compile_steps(run: Run, batches: bool = True) -> None:
    """Compile the network of a run, and with ``batches`` what makes a batch.

    Whole batches alone are compiled; the smaller last one of an epoch is not.

    Raises:
        UserError: there is no compiler.
    """
    need_compiler(run.loader.device.type)
    _share_compiled()
    whole, model, make_batch = run.loader.batch_size, run.model, run.crop_flip_mix
    network = compile_whole(model)
    run.network = lambda images: (network if len(images) == whole else model)(images)
    if batches:
        batch = compile_whole(make_batch)
        run.crop_flip_mix = lambda choices: (  # type: ignore[method-assign]
            batch if len(choices.order) == whole else make_batch
        )(choices)


def _share_compiled() -> None:
    """Keep what is compiled in the project's cache, in place of torch's own default."""
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    # torch sets its default as soon as an optimiser is made
    if os.environ.get("TORCHINDUCTOR_CACHE_DIR") in (None, default_cache_dir()):
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(cache_dir() / "compiled")


def need_compiler(device: str) -> None:
    """Refuse to compile for a device, cpu or cuda, without a compiler.

    Raises:
        UserError: there is none.
    """
    compilers = (os.environ.get("CXX", "c++"), "g++", "clang++")
    # Triton's launchers need them
    headers = device == "cpu" or Path(sysconfig.get_paths()["include"], "Python.h").exists()
    if not any(map(shutil.which, compilers)) or not headers:
        needed = "a C++ compiler and Python's headers (Debian: g++ and python3-dev)"
        raise UserError(f"compiled=True needs {needed}: install them, or leave it out")
