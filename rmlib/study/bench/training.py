"""Speed of training: the full step of every mixer next to the bare step of the network.

Images are random, in whole batches. A rate is that of whole epochs, with all that the host does.
"""

import itertools

import torch
from torch.nn import functional as F

from rmlib.data import ImageSet
from rmlib.params import MIXERS, TrainParams
from rmlib.recorded import WARMUP, fastest_kernels, recording_of
from rmlib.study.bench.timing import interleaved
from rmlib.study.names import LABELS
from rmlib.train import Run, make_run, training

CLASSES = 10
BATCH = 128
SIZES = {"cpu": (8, 8), "cuda": (64, 100)}  # width of the network, steps of an epoch
BARE = "bare step"


def random_set(count: int, size: int = 32) -> ImageSet:
    """``count`` random images in CLASSES classes."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)
    return ImageSet(pixels, torch.arange(count) % CLASSES, tuple(map(str, range(CLASSES))), "")


def full_epoch(run: Run):
    """A function that trains for one more epoch with every call."""
    turns = training(run, recording_of(run))

    def epoch():
        for _ in itertools.islice(turns, len(run.loader) + 1):  # a turn per step, and the epoch's
            pass

    return epoch


def bare_epoch(params: TrainParams, model, optimizer, images, steps: int):
    """The same of the network alone: forward, backward and optimiser on one ready batch.

    ``images``: (N, 3, H, W) float in [0, 1] on the device. ``steps``: of an epoch.
    """
    device = images.device
    targets = F.one_hot(torch.arange(len(images), device=device) % CLASSES, CLASSES).float()
    network = torch.compile(model, dynamic=False) if params.compiled else model
    bf16 = params.precision == "bf16"

    def step():
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            loss = F.cross_entropy(network(images), targets)
        loss.backward()
        optimizer.step()

    if device.type == "cuda":
        step = _recorded(step, optimizer)

    def epoch():
        for _ in range(steps):
            step()

    return epoch


def _recorded(step, optimizer):
    """A step in a CUDA graph, as a function that repeats it."""
    optimizer.param_groups[0]["fused"] = True
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARMUP):
            step()
        optimizer.zero_grad()  # the gradients of the recording are new ones
    with torch.cuda.graph(graph, stream=stream):
        step()

    def replay(_owner=step):  # a graph does not keep alive the memory and the code that it replays
        graph.replay()

    return replay


def rates(device: torch.device, data: ImageSet, rounds: int, **common) -> dict[str, float]:
    """Images per second of the bare step, and of every mixer with and without the clean loss.

    ``rounds``: epochs behind every median, after one more. ``common``: parameters of all runs.
    """
    common = {"batch_size": BATCH, "epochs": 10**6, "schedule": "multistep", "lr": 0.01} | common
    run = make_run(TrainParams(mixer="none", clean_weight=0, **common), data, device)
    images = torch.rand(BATCH, *data.images.shape[1:], device=device)
    images = images.to(memory_format=torch.channels_last)
    steps = len(data) // BATCH
    epochs = {BARE: bare_epoch(run.params, run.model, run.optimizer, images, steps)}
    for mixer in MIXERS:
        for weight, words in ((0, "mixed alone"), (1, "clean + mixed")):
            run = make_run(TrainParams(mixer=mixer, clean_weight=weight, **common), data, device)
            epochs[f"full step, {LABELS[mixer]}, {words}"] = full_epoch(run)
    seconds = interleaved(epochs, rounds, device, warmup=1)
    return {name: len(data) / value for name, value in seconds.items()}


def training_table(device, rounds: int, width: int | None, compiled: bool) -> list[str]:
    """Images per second, and the bare step's share; cuDNN takes its fastest kernels for all."""
    default, steps = SIZES[device.type]
    width = width or default
    precision = "bf16" if device.type == "cuda" else "fp32"
    how = f"{precision}, compiled" if compiled else precision
    data = random_set(steps * BATCH)
    common = {"width": width, "precision": precision, "compiled": compiled}
    with fastest_kernels():
        found = rates(device, data, rounds, **common)
    lines = [
        f"| step, width {width}, {how}, batch {BATCH}, {len(data)} random images of 32 x 32"
        f" per epoch, medians of {rounds} interleaved epochs | images/s | share of the bare step |",
        "|---|---:|---:|",
    ]
    for name, value in found.items():
        forwards = 2 if name.endswith("clean + mixed") else 1
        lines.append(f"| {name} | {value:.0f} | {100 * value * forwards / found[BARE]:.1f} % |")
    return [*lines, "", "A step with the clean loss has two forwards; its share counts both."]
