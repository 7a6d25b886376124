"""Speed of training: the bare step of the network, the full step of every mixer, what each part
costs, and a plain loop beside them.

Images are random; the set is as large as the bench asks, whole batches and one smaller one as in
the real sets. A rate is that of whole epochs, with everything the host does in them. Rows that are
compared are measured in turn, round after round.
"""

import gc
import io
import multiprocessing
import os
import statistics
import time
from concurrent.futures import ProcessPoolExecutor

import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from rmlib.data import ImageSet, Loader
from rmlib.evaluate import evaluate
from rmlib.models import preact_resnet18
from rmlib.params import MIXERS, TrainParams
from rmlib.recorded import Step, fastest_kernels, make_optimizer
from rmlib.study.names import LABELS
from rmlib.study.runs.run import make_mixer, make_model

CLASSES, BATCH = 10, 128
SEVERAL = (2, 3)  # runs side by side
SIZES = {"cpu": (8, 8), "cuda": (64, 391)}  # width of the network, steps of an epoch


def random_set(count: int, size: int = 32) -> ImageSet:
    """``count`` random images in CLASSES classes."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)
    return ImageSet(pixels, torch.arange(count) % CLASSES, tuple(map(str, range(CLASSES))), "")


class Bare(Step):
    """The model step alone: forward, backward and optimiser on one batch that never changes."""

    def batch(self, size, *_):
        return self.fixed[size]

    def count(self, *_):
        pass

    def prepare(self, tables):
        super().prepare(tables)
        self.hold()

    def hold(self):
        """Make the batches, one for every size."""
        self.fixed = {}
        for size in {self.loader.size_of(0), self.loader.size_of(len(self.loader) - 1)}:
            images = torch.rand(size, *self.loader.image_shape, device=self.device).to(
                memory_format=torch.channels_last
            )
            labels = torch.arange(size, device=self.device) % CLASSES
            self.fixed[size] = images, labels, images, F.one_hot(labels, CLASSES).float()


class UnrecordedBare(Bare):
    """The same on CUDA without graphs, sent off operation by operation as a plain loop does."""

    def _record(self):
        pass


def make_step(data: ImageSet, device: torch.device, kind=Step, **changes) -> Step:
    """A step on its own network, ready to run."""
    params = TrainParams(
        **{"batch_size": BATCH, "epochs": 10**6, "schedule": "multistep", "lr": 0.01} | changes
    )
    model = make_model(params, CLASSES, *data.channel_stats()).to(device).train()
    mixer = make_mixer(params, CLASSES)
    step = kind(
        params, model, make_optimizer(params, model), mixer, Loader(data, BATCH, 0, device=device)
    )
    if kind is Bare and not step.recorded:
        step.hold()
    return step


class Clock:
    """Epochs of steps, timed by turns."""

    def __init__(self, steps: dict):
        self.steps, self.epoch, self.times = steps, 0, {name: [] for name in steps}

    def turn(self, count=True):
        """One epoch of each."""
        for name, step in self.steps.items():
            begun = time.perf_counter()
            for _ in step.steps(self.epoch):
                pass
            if count:
                self.times[name].append(time.perf_counter() - begun)
        self.epoch += 1

    def rates(self, rounds: int) -> dict[str, float]:
        """Images per second of each: the median of ``rounds`` epochs after a warm-up epoch."""
        self.turn(count=False)
        for _ in range(rounds):
            self.turn()
        return {
            name: len(step.loader.labels) / statistics.median(self.times[name])
            for name, step in self.steps.items()
        }


def flops_per_image(width: int, size: int = 32) -> float:
    """Floating point operations (2 per multiply-add) of one forward and backward of one image,
    counted by torch.
    """
    model = preact_resnet18(CLASSES, width)
    with FlopCounterMode(display=False) as counter:
        model(torch.rand(2, 3, size, size)).sum().backward()
    return counter.get_total_flops() / 2


def matrix_rate(device: torch.device, dtype: torch.dtype, repeats: int = 5) -> float:
    """FLOP/s of a large matrix product of random numbers, median of some."""
    n = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    times = []
    for _ in range(2 + repeats):
        begun = time.perf_counter()
        a @ b
        _wait(device)
        times.append(time.perf_counter() - begun)
    return 2 * n**3 / statistics.median(times[2:])


def _wait(device):
    if device.type == "cuda":
        torch.cuda.synchronize()


def seconds_of(function, device: torch.device, repeats: int) -> float:
    """Seconds per call of a function without arguments, in CUDA graphs where there is CUDA, as it
    runs within a step.
    """
    call, inner = function, 1
    if device.type == "cuda":
        stream, graph, inner = torch.cuda.Stream(), torch.cuda.CUDAGraph(), 20
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                function()
            with torch.cuda.graph(graph, stream=stream):
                for _ in range(inner):
                    function()
        call = graph.replay
    times = []
    for _ in range(1 + repeats):
        _wait(device)
        begun = time.perf_counter()
        call()
        _wait(device)
        times.append((time.perf_counter() - begun) / inner)
    return statistics.median(times[1:])


def parts(step: Step, repeats: int) -> dict[str, float]:
    """Seconds per step of what is not the network: making the batch (loader, augmentation, mixing)
    and the totals, on the device; and the draw of a row of the tables, on the host, which on CUDA
    goes on while the device is busy.
    """
    tables = step.draw(0)
    if step.tables is None:
        step.begin(tables)
    row = [tensor[0].to(step.device) for tensor in tables.tensors()][:-1]
    make = step.of_whole_batches[0]
    images, labels, mixed, targets = make(BATCH, *row)
    logits, loss = (
        torch.randn(BATCH, CLASSES, device=step.device),
        torch.ones((), device=step.device),
    )
    begun = time.perf_counter()
    step.draw(1)
    return {
        "drawing": (time.perf_counter() - begun) / len(step.loader),
        "batch": seconds_of(lambda: make(BATCH, *row), step.device, repeats),
        "totals": seconds_of(
            lambda: step.count(labels, targets, loss, logits, loss, logits, loss),
            step.device,
            repeats,
        ),
    }


def plain_loop(
    data: ImageSet, width: int, device: torch.device, precision: str, workers: int, epochs: int = 2
) -> float:
    """Images per second of the loop that one would write first: a DataLoader with torchvision's v2
    transforms, v2.MixUp when it collates, one forward, ``loss.item()`` once per step; the same
    network, batch and precision. The first epoch does not count.
    """
    from torchvision.transforms import v2

    transform = v2.Compose(
        [
            v2.RandomCrop(32, padding=2),
            v2.RandomHorizontalFlip(),
            v2.ToDtype(torch.float32, scale=True),
        ]
    )
    mixup = v2.MixUp(alpha=1.0, num_classes=CLASSES)
    samples = _Transformed(data.images, data.labels, transform)
    loader = torch.utils.data.DataLoader(
        samples,
        BATCH,
        shuffle=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=device.type == "cuda",
        collate_fn=_Collate(mixup),
    )
    model = preact_resnet18(CLASSES, width, 1, *data.channel_stats()).to(device).train()
    optimizer = torch.optim.SGD(model.parameters(), 0.01, 0.9, weight_decay=5e-4)
    for epoch in range(epochs):
        begun = time.perf_counter()
        for images, targets in loader:
            images, targets = (
                images.to(device, non_blocking=True),
                targets.to(device, non_blocking=True),
            )
            with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
                loss = F.cross_entropy(model(images), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss.item()
        _wait(device)
    return len(data) / (time.perf_counter() - begun)


class _Transformed(torch.utils.data.Dataset):
    def __init__(self, images, labels, transform):
        self.images, self.labels, self.transform = images, labels, transform

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return self.transform(self.images[index]), self.labels[index]


class _Collate:
    def __init__(self, mixup):
        self.mixup = mixup

    def __call__(self, samples):
        return self.mixup(*torch.utils.data.default_collate(samples))


def together(data: ImageSet, device: torch.device, count: int, rounds: int, **changes) -> float:
    """Images per second of ``count`` runs in one process, a step of each in turn, all of them
    summed.
    """
    runs = [make_step(data, device, seed=seed, **changes) for seed in range(count)]
    for run in runs:
        run.ready(0)
    times = []
    for epoch in range(rounds + 1):
        begun = time.perf_counter()
        for _ in zip(*(run.steps(epoch) for run in runs), strict=True):
            pass
        times.append(time.perf_counter() - begun)
    del runs
    gc.collect()  # they go in circles, and so would stay with their memory
    return count * len(data) / statistics.median(times[1:])


def apart(count: int, images: int, device: torch.device, rounds: int, **changes) -> float:
    """The same with a process for every run, started together once all are ready."""
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, ProcessPoolExecutor(count, context) as pool:
        ready = manager.Barrier(count)
        jobs = [
            pool.submit(_apart, ready, images, device.type, rounds, changes | {"seed": seed})
            for seed in range(count)
        ]
        return count * images * rounds / max(job.result() for job in jobs)


def _apart(ready, images, device, rounds, changes):
    torch.set_num_threads(1)
    step = make_step(random_set(images), torch.device(device), **changes)
    for _ in step.steps(0):
        pass
    ready.wait(timeout=300)
    begun = time.perf_counter()
    for epoch in range(1, rounds + 1):
        for _ in step.steps(epoch):
            pass
    return time.perf_counter() - begun


def checkpoint_seconds(step: Step, repeats: int = 3) -> float:
    """Seconds to put network and optimiser into the bytes of a checkpoint (the disk is not
    counted).
    """
    times = []
    for _ in range(repeats):
        begun = time.perf_counter()
        torch.save(
            {"model": step.model.state_dict(), "optimizer": step.optimizer.state_dict()},
            io.BytesIO(),
        )
        times.append(time.perf_counter() - begun)
    return statistics.median(times)


def ladder(device: torch.device, data: ImageSet, common: dict, compiled: bool) -> dict[str, Step]:
    """The steps that are timed by turns: the bare step in every way it can run here, the best last,
    then the full step of every mixer in that way.
    """
    bare = {"mixer": "none", "clean_weight": 0, **common}
    if device.type == "cuda":
        steps = {
            "bare step, operation by operation": make_step(data, device, UnrecordedBare, **bare),
            "bare step, in CUDA graphs": make_step(data, device, Bare, **bare),
        }
    else:
        steps = {"bare step, operation by operation": make_step(data, device, Bare, **bare)}
    if compiled:
        steps["bare step, compiled"] = make_step(data, device, Bare, **bare, compiled=True)
    best = common | {"compiled": compiled}
    for mixer in MIXERS:
        for weight, words in ((0, "mixed alone"), (1, "clean + mixed")):
            steps[f"full step, {LABELS[mixer]}, {words}"] = make_step(
                data, device, mixer=mixer, clean_weight=weight, **best
            )
    return steps | {
        "full step, Region Mixup k=4, mixed alone": make_step(
            data, device, mixer="region_mixup", k=4, clean_weight=0, **best
        )
    }


def part_lines(steps: dict[str, Step], bare_seconds: float, repeats: int) -> list[str]:
    """The cost of what is not the network; mixing is what a batch of a mixer costs more than one
    without mixing.
    """
    cost = {
        mixer: parts(steps[f"full step, {LABELS[mixer]}, mixed alone"], repeats) for mixer in MIXERS
    }
    shown = {
        "loader, augmentation and targets": cost["none"]["batch"],
        "running totals": cost["none"]["totals"],
    }
    shown |= {
        f"mixing, {LABELS[mixer]}": cost[mixer]["batch"] - cost["none"]["batch"]
        for mixer in MIXERS
        if mixer != "none"
    }
    shown |= {f"drawing (host), {LABELS[mixer]}": cost[mixer]["drawing"] for mixer in MIXERS}
    lines = [
        f"| {name} | {1e6 * value:.0f} | {100 * value / bare_seconds:.1f} % |"
        for name, value in shown.items()
    ]
    return ["| part of a step | µs | of the bare step |", "|---|---:|---:|", *lines]


def beside_lines(step: Step) -> list[str]:
    """What a run does between its epochs."""
    lines, test = (
        ["| between epochs | s |", "|---|---:|"],
        random_set(10_000 if step.device.type == "cuda" else 1000),
    )
    for bf16 in (False, True) if step.device.type == "cuda" else (False,):
        evaluate(step.model, test, bf16)  # the first one loads kernels
        begun = time.perf_counter()
        evaluate(step.model, test, bf16)
        lines.append(
            f"| evaluation of {len(test)} images, {'bf16' if bf16 else 'fp32'} |"
            f" {time.perf_counter() - begun:.3f} |"
        )
    return [*lines, f"| bytes of a checkpoint | {checkpoint_seconds(step):.3f} |"]


def several_lines(data: ImageSet, device: torch.device, rounds: int, **changes) -> list[str]:
    """Several runs at once, in one process and in as many."""
    alone = together(data, device, 1, rounds, **changes)
    found = {"one": alone} | {
        f"{count} in one process": together(data, device, count, rounds, **changes)
        for count in SEVERAL
    }
    found |= {
        f"{count} processes": apart(count, len(data), device, rounds, **changes)
        for count in SEVERAL
    }
    return [
        "| several runs, Region Mixup, clean + mixed, all summed | images/s | times one alone |",
        "|---|---:|---:|",
        *(f"| {name} | {value:.0f} | {value / alone:.2f} |" for name, value in found.items()),
    ]


def report(
    device: torch.device, rounds: int, width: int | None = None, compiled: bool = False
) -> str:
    """Measure and return the Markdown tables; cuDNN chooses the fastest kernels for everybody.

    Args:
        rounds: epochs behind every median.
        width: of the network, default 64 on CUDA and 8 on the CPU.
        compiled: also measure the compiled step, and use it in what follows.
    """
    with fastest_kernels():
        return _report(device, rounds, width, compiled)


def _report(device, rounds, width, compiled):
    default, steps_of_epoch = SIZES[device.type]
    data, width = random_set((steps_of_epoch - 1) * BATCH + 80), width or default
    precision, matrix = (
        ("bf16", torch.bfloat16) if device.type == "cuda" else ("fp32", torch.float32)
    )
    common = {"width": width, "precision": precision}
    rate, work = matrix_rate(device, matrix), flops_per_image(width)
    steps = ladder(device, data, common, compiled)
    rates = Clock(steps).rates(rounds)
    bare = [name for name in steps if name.startswith("bare")][-1]
    lines = []
    for name, value in rates.items():
        forwards = 2 if name.endswith("clean + mixed") else 1
        lines.append(
            f"| {name} | {value:.0f} | {50_000 / value:.2f} |"
            f" {100 * value * forwards * work / rate:.1f} % |"
            f" {100 * value * forwards / rates[bare]:.1f} % |"
        )
    mine, workers = (
        rates["full step, Mixup, mixed alone"],
        min(16, os.cpu_count() or 1) if device.type == "cuda" else 0,
    )
    plain = plain_loop(data, width, device, precision, workers)
    return "\n".join(
        [
            (
                f"Training: PreAct ResNet-18 of width {width}, {precision}, batch {BATCH},"
                f" {len(data)} random images of 32 x 32 per epoch, medians of {rounds} epochs in"
                f" turn; matrix product of random numbers in the same run: {rate / 1e12:.3g}"
                " TFLOP/s; with the clean loss a step has two forwards, and its shares count both"
            ),
            "",
            (
                "| step | images/s | s per 50 000 images | share of the matrix rate | share of the"
                " bare step |"
            ),
            "|---|---:|---:|---:|---:|",
            *lines,
            "",
            *part_lines(steps, BATCH / rates[bare], 3 * rounds),
            "",
            *beside_lines(steps[bare]),
            "",
            *several_lines(
                data,
                device,
                rounds,
                mixer="region_mixup",
                clean_weight=1,
                compiled=compiled,
                **common,
            ),
            "",
            "| one forward on Mixup's batches, end to end | images/s | times |",
            "|---|---:|---:|",
            (
                f"| DataLoader with {workers} workers, torchvision v2, plain loop | {plain:.0f} |"
                " 1.00 |"
            ),
            f"| ours | {mine:.0f} | {mine / plain:.2f} |",
            "",
        ]
    )
