"""Speed against public implementations, as ratios of medians of interleaved calls in one run.

Machines differ and are noisy; a ratio of two things measured in turn in one process is what can be compared.
"""

import platform
import random
import statistics
import time

import torch

from rmlib import mixers, records
from rmlib.data import ImageSet, Loader
from rmlib.train import pick_device

SHAPES = ((128, 3, 32, 32), (128, 3, 64, 64))


def interleaved(candidates: dict, rounds: int, device: torch.device, warmup: int = 5) -> dict[str, float]:
    """Median seconds per call of every candidate (name -> function without arguments).

    Every round calls all of them in another order, since what ran before decides what is still in the caches.
    """
    times, order, shuffle = {name: [] for name in candidates}, list(candidates), random.Random(0).shuffle
    for turn in range(warmup + rounds):
        shuffle(order)
        for name in order:
            call = candidates[name]
            if device.type == "cuda":
                torch.cuda.synchronize()
            begun = time.perf_counter()
            call()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if turn >= warmup:
                times[name].append(time.perf_counter() - begun)
    return {name: statistics.median(values) for name, values in times.items()}


def naive_region_mixup(images, labels, k, num_classes):
    """The textbook loop that most code would start with: gather the whole batch for every tile. Yardstick and test oracle."""
    count, _, height, width = images.shape
    mixed, targets = images.clone(), torch.zeros(count, num_classes, device=images.device)
    one_hot = torch.nn.functional.one_hot(labels, num_classes).float()
    for row in range(k):
        for column in range(k):
            lam, partners = torch.rand(()).item(), torch.randperm(count, device=images.device)
            ys, xs = slice(row * height // k, (row + 1) * height // k), slice(column * width // k, (column + 1) * width // k)
            mixed[:, :, ys, xs] = lam * images[:, :, ys, xs] + (1 - lam) * images[partners][:, :, ys, xs]
            targets += (lam * one_hot + (1 - lam) * one_hot[partners]) / k**2
    return mixed, targets


def mixer_rows(device, rounds, compiled=False, num_classes=100):
    """Rows (shape, name, multiple of a clone, compared with, times as fast)."""
    from torchvision.transforms import v2

    rows = []
    for shape in SHAPES:
        images, labels = torch.rand(shape, device=device), torch.arange(shape[0], device=device) % num_classes
        ours = {"Mixup": mixers.Mixup(num_classes), "CutMix": mixers.CutMix(num_classes),
                "Region Mixup k=2": mixers.RegionMixup(num_classes, 2), "Region Mixup k=4": mixers.RegionMixup(num_classes, 4)}
        peers = {"torchvision v2.MixUp": v2.MixUp(alpha=1.0, num_classes=num_classes),
                 "torchvision v2.CutMix": v2.CutMix(alpha=1.0, num_classes=num_classes)}
        calls = {"clone": images.clone}
        calls |= {name: (lambda mix=mix: mix(images, labels)) for name, mix in {**ours, **peers}.items()}
        calls |= {f"naive loop k={k}": (lambda k=k: naive_region_mixup(images, labels, k, num_classes)) for k in (2, 4)}
        against = {"Mixup": "torchvision v2.MixUp", "CutMix": "torchvision v2.CutMix",
                   "Region Mixup k=2": "naive loop k=2", "Region Mixup k=4": "naive loop k=4"}
        if compiled:
            blend = torch.compile(mixers.blend, dynamic=False)
            for k in (2, 4):
                plan = ours[f"Region Mixup k={k}"].draw(shape)
                parts = (plan.boxes.tolist(), plan.lam.to(device), plan.partners.to(device))
                calls[f"compiled blend k={k}"] = lambda parts=parts: blend(images, *parts)
        seconds = interleaved(calls, rounds, device)
        for name in calls:
            peer = against.get(name)
            rows.append(("x".join(map(str, shape)), name, seconds[name] / seconds["clone"], peer,
                         seconds[peer] / seconds[name] if peer else None))
    return rows


def loader_rows(device, rounds):
    """Images per second of our loader and of a DataLoader with torchvision's transforms on PIL images, no worker processes."""
    from PIL import Image
    from torchvision import transforms

    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (2560, 3, 32, 32), dtype=torch.uint8, generator=generator)
    labels = torch.arange(len(pixels)) % 10
    ours = Loader(ImageSet(pixels, labels, tuple("0123456789"), ""), 128, seed=0, device=device)
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in pixels]
    transform = transforms.Compose([transforms.RandomCrop(32, padding=2), transforms.RandomHorizontalFlip(), transforms.ToTensor()])
    pil = torch.utils.data.DataLoader([(picture, int(label)) for picture, label in zip(pictures, labels)], 128, shuffle=True,
                                      collate_fn=lambda batch: (torch.stack([transform(picture) for picture, _ in batch]),
                                                                torch.tensor([label for _, label in batch])))

    def consume(batches):
        for images, _ in batches:
            images.to(device)

    calls = {"PIL + DataLoader": lambda: consume(pil), "on-device loader": lambda: consume(ours.epoch(0))}
    seconds = interleaved(calls, max(3, rounds // 10), device, warmup=1)
    return [(name, len(pixels) / value, seconds["PIL + DataLoader"] / value) for name, value in seconds.items()]


def bench(device: str = "cpu", rounds: int = 60, compiled: bool = False) -> str:
    """Measure and return the Markdown tables; one CPU thread."""
    device, threads = pick_device(device), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        mixing, loading = mixer_rows(device, rounds, compiled), loader_rows(device, rounds)
    finally:
        torch.set_num_threads(threads)
    where = records.environment(device.type)["hardware"]
    lines = [f"float32, one thread, medians of {rounds} interleaved calls; {where.get('gpu', where['cpu'])}, torch {torch.__version__}, "
             f"Python {platform.python_version()}", "", "| batch | mixing | times a clone | times as fast as | |", "|---|---|---:|---:|---|"]
    for shape, name, clones, peer, faster in mixing:
        lines.append(f"| {shape} | {name} | {clones:.2f} | {f'{faster:.2f}' if faster else ''} | {peer or ''} |")
    lines += ["", "| loader, 2560 images of 32 x 32, batch 128 | images/s | times the PIL loader |", "|---|---:|---:|"]
    lines += [f"| {name} | {rate:.0f} | {ratio:.2f} |" for name, rate, ratio in loading]
    return "\n".join(lines) + "\n"
