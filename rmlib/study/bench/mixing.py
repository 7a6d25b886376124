"""Speed of mixing and of the loader, next to torchvision and the textbook loop."""

from functools import partial
from typing import Any

import torch

from rmlib import mixers
from rmlib.data import ImageSet, Loader
from rmlib.study.bench.timing import interleaved

SHAPES = ((128, 3, 32, 32), (128, 3, 64, 64))
CLASSES = 100
IMAGES = 2560  # of the loader
# what each of ours is compared with
PEERS = {
    "Mixup": "torchvision v2.MixUp",
    "CutMix": "torchvision v2.CutMix",
    "Region Mixup k=2": "naive loop k=2",
    "Region Mixup k=4": "naive loop k=4",
}
SOFT = {f"{name}, soft labels": name for name in PEERS}


def naive_region_mixup(images, labels, k, num_classes):
    """The textbook loop, which gathers the whole batch for every tile."""
    count, _, height, width = images.shape
    mixed = images.clone()
    targets = torch.zeros(count, num_classes, device=images.device)
    one_hot = torch.nn.functional.one_hot(labels, num_classes).float()
    for row in range(k):
        for column in range(k):
            lam = torch.rand(()).item()
            partners = torch.randperm(count, device=images.device)
            ys = slice(row * height // k, (row + 1) * height // k)
            xs = slice(column * width // k, (column + 1) * width // k)
            own, others = images[:, :, ys, xs], images[partners][:, :, ys, xs]
            mixed[:, :, ys, xs] = lam * own + (1 - lam) * others
            targets += (lam * one_hot + (1 - lam) * one_hot[partners]) / k**2
    return mixed, targets


def mixer_table(device, rounds, compiled) -> list[str]:
    """Mixing as multiples of a copy of the batch."""
    lines = ["| batch | mixing | times a clone | times as fast as | |", "|---|---|---:|---:|---|"]
    for shape in SHAPES:
        seconds = interleaved(_calls(shape, device, compiled), rounds, device)
        for name, value in seconds.items():
            peer = (PEERS | SOFT).get(name, "")
            faster = f"{seconds[peer] / value:.2f}" if peer else ""
            what = f"{'x'.join(map(str, shape))} | {name}"
            lines.append(f"| {what} | {value / seconds['clone']:.2f} | {faster} | {peer} |")
    return lines


def _calls(shape, device, compiled):
    """name -> function that mixes one batch."""
    from torchvision.transforms import v2

    images = torch.rand(shape, device=device)
    labels = torch.arange(shape[0], device=device) % CLASSES
    named = {
        "Mixup": mixers.Mixup(CLASSES),
        "CutMix": mixers.CutMix(CLASSES),
        "Region Mixup k=2": mixers.RegionMixup(CLASSES, 2),
        "Region Mixup k=4": mixers.RegionMixup(CLASSES, 4),
        "torchvision v2.MixUp": v2.MixUp(alpha=1.0, num_classes=CLASSES),
        "torchvision v2.CutMix": v2.CutMix(alpha=1.0, num_classes=CLASSES),
    }
    calls = {"clone": images.clone}
    calls |= {name: partial(mix, images, labels) for name, mix in named.items()}
    soft = torch.nn.functional.one_hot(labels, CLASSES).float()
    calls |= {name: partial(named[hard], images, soft) for name, hard in SOFT.items()}
    for k in (2, 4):
        calls[f"naive loop k={k}"] = partial(naive_region_mixup, images, labels, k, CLASSES)
    if compiled:
        blend = torch.compile(mixers.blend, dynamic=False)
        for k in (2, 4):
            plan = named[f"Region Mixup k={k}"].draw(shape)
            parts = (plan.boxes.tolist(), plan.lam.to(device), plan.partners.to(device))
            calls[f"compiled blend k={k}"] = partial(blend, images, *parts)
    return calls


def loader_table(device, rounds) -> list[str]:
    """The loader next to a DataLoader with torchvision's transforms on PIL images, no workers."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (IMAGES, 3, 32, 32), dtype=torch.uint8, generator=generator)
    labels = torch.arange(len(pixels)) % 10
    ours = Loader(ImageSet(pixels, labels, tuple("0123456789"), ""), 128, seed=0, device=device)
    theirs = _pil_loader(pixels, labels)

    def consume(batches):
        for images, _ in batches:
            images.to(device)

    peer = "PIL + DataLoader"
    calls = {peer: lambda: consume(theirs), "on-device loader": lambda: consume(ours.epoch(0))}
    seconds = interleaved(calls, max(3, rounds // 10), device, warmup=1)
    return [
        f"| loader, {IMAGES} images of 32 x 32, batch 128 | images/s | times the PIL loader |",
        "|---|---:|---:|",
        *(f"| {k} | {len(pixels) / v:.0f} | {seconds[peer] / v:.2f} |" for k, v in seconds.items()),
    ]


def _pil_loader(pixels, labels):
    from PIL import Image
    from torchvision import transforms

    crop, flip = transforms.RandomCrop(32, padding=2), transforms.RandomHorizontalFlip()
    transform = transforms.Compose((crop, flip, transforms.ToTensor()))
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in pixels]

    def collate(batch):
        pictures, labels = zip(*batch)
        return torch.stack([transform(picture) for picture in pictures]), torch.tensor(labels)

    samples: Any = list(zip(pictures, labels.tolist()))
    return torch.utils.data.DataLoader(samples, 128, shuffle=True, collate_fn=collate)
