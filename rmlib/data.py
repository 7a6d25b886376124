"""Datasets as uint8 tensors, the random streams of a run, and the loader on its device."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from rmlib import UserError, checked

TENSORS = ("images", "labels", "boxes", "masks")  # of a set, one entry for each image


@dataclass(frozen=True)
class ImageSet:
    """One split of a dataset, in memory, sorted by class, then by a hash of the pixels.

    ``images`` (N, 3, H, W) uint8, ``labels`` (N,) int64, ``classes`` their names, ``checksum`` the
    sha256 over pixels and labels of both splits. Where the dataset has them, of the object:
    ``boxes`` (N, 4) int64 x1, y1, x2, y2 half open, ``masks`` (N, H, W) bool.
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    checksum: str
    boxes: Tensor | None = None
    masks: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Tensor) -> "ImageSet":
        """The images of an index tensor or mask, as another set."""
        parts = {name: getattr(self, name) for name in TENSORS}
        known = {name: values[index] for name, values in parts.items() if values is not None}
        return replace(self, **known)

    def subset(self, count: int | None) -> "ImageSet":
        """The first ``count`` images, the same number of every class; None keeps all."""
        if count is None:
            return self
        per_class, rest = divmod(checked("count", count, 0, 1e9, int), len(self.classes))
        smallest = int(torch.bincount(self.labels, minlength=len(self.classes)).min())
        if rest or not 0 < per_class <= smallest:
            classes, most = len(self.classes), smallest * len(self.classes)
            remedy = f"take a multiple of {classes} classes, at most {most}, or all"
            raise UserError(f"{count} images are no class-balanced subset: {remedy}")
        return self[rank_in_class(self.labels) < per_class]

    def channel_stats(self) -> tuple[list[float], list[float]]:
        """Mean and standard deviation of each colour channel, over pixels in [0, 1]."""
        pixels = self.images.double().div_(255).transpose(0, 1).flatten(1)
        return pixels.mean(1).tolist(), pixels.std(1, correction=0).tolist()


def rank_in_class(labels: Tensor) -> Tensor:
    """For labels sorted by class: the position of every image within its class, (N,) int64."""
    counts = torch.bincount(labels)
    return torch.arange(len(labels)) - (counts.cumsum(0) - counts)[labels]


def load(
    name: str,
    root: str | Path | None = None,
    split: str = "train",
    *,
    holdout: bool = False,
    offline: bool = False,
    allow_partial: bool = False,
) -> ImageSet:
    """One split of a dataset, from the cache where possible.

    ``val`` is a fixed tenth of the training images, class-balanced; ``holdout=True`` leaves it out
    of ``train``. For Tiny ImageNet ``test`` is the official validation set.

    Args:
        name: "shapes", "cifar10", "cifar100", "tiny-imagenet" or "folder:PATH" (train/CLASS/* and
            test/CLASS/*, also a zip).
        root: folder of the datasets; default $RMLIB_DATA, then data/.
        split: "train", "val" or "test".
        offline: never download.
        allow_partial: accept a part of a named dataset.
    """
    # the one door from the core to the datasets
    from rmlib.datasets import sources

    if split not in ("train", "val", "test"):
        raise UserError(f"split={split!r}: expected 'train', 'val' or 'test'")
    data = sources.arrays(name, root, offline=offline, allow_partial=allow_partial)
    stored = "test" if split == "test" else "train"
    known = [name for name in TENSORS if f"{stored}_{name}" in data]
    parts = {name: torch.from_numpy(data[f"{stored}_{name}"]) for name in known}
    classes = tuple(map(str, data["classes"]))
    images = ImageSet(classes=classes, checksum=str(data["checksum"]), **parts)
    if split == "val" or (split == "train" and holdout):
        counts = torch.bincount(images.labels, minlength=len(classes))
        if int(counts.min()) < 10:
            few = f"class {classes[int(counts.argmin())]!r} has {int(counts.min())} training images"
            raise UserError(f"{name}: val is a tenth of them, and {few}: at least 10 are needed")
        tenths = counts // 10
        held_out = rank_in_class(images.labels) < tenths[images.labels]
        images = images[held_out if split == "val" else ~held_out]
    return images


def stream(seed: int, purpose: str, epoch: int = 0) -> torch.Generator:
    """The random stream of one purpose in one epoch, a function of its arguments alone.

    So order, augmentation, mixing and initialisation share none. A resumed epoch draws what it
    would have drawn, and CPU and CUDA runs draw the same.
    """
    digest = hashlib.sha256(f"{seed}/{purpose}/{epoch}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


class Loader:
    """Batches of a training set that lies on the device as one uint8 tensor.

    Args:
        data: the training set.
        batch_size: images per step; the last batch of an epoch is smaller, none is dropped.
        seed: of order and augmentation, the same on every device and for every mixer.
        augment: pad 2 black pixels, crop back at a random place, flip with probability 1/2.
        device: where the images lie and the batches appear.
    """

    def __init__(
        self,
        data: ImageSet,
        batch_size: int,
        seed: int,
        *,
        augment: bool = True,
        device: str | torch.device = "cpu",
    ):
        # once, for every later step
        low, high, classes = int(data.labels.min()), int(data.labels.max()), len(data.classes)
        if low < 0 or high >= classes:
            raise UserError(f"labels lie in [{low}, {high}], but there are {classes} classes")
        self.batch_size = checked("batch_size", batch_size, 1, 1e9, int)
        self.seed, self.augment = seed, augment
        self.pad = 2 if augment else 0
        self.device = torch.device(device)
        self.labels = data.labels.to(self.device)
        self.image_shape = _, height, width = tuple(data.images.shape[1:])
        padded = F.pad(data.images, [self.pad] * 4).to(self.device)
        # (N, 3, 2 pad + 1, 2 pad + 1, H, W), a view
        self._windows = padded.unfold(2, height, 1).unfold(3, width, 1)

    def __len__(self) -> int:
        """Steps per epoch."""
        return -(-len(self.labels) // self.batch_size)

    def size_of(self, step: int) -> int:
        """Images in the batch of a step, counted from 0: fewer in the last one."""
        return min(self.batch_size, len(self.labels) - step * self.batch_size)

    def draw(self, epoch: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Order, dy, dx and flip of an epoch, each (N,) on the CPU; dy and dx in [0, 2 pad]."""
        count, random = len(self.labels), stream(self.seed, "augmentation", epoch)
        order = torch.randperm(count, generator=stream(self.seed, "order", epoch))
        dy, dx = torch.randint(0, 2 * self.pad + 1, (2, count), generator=random)
        flip = torch.rand(count, generator=random) < (0.5 if self.augment else 0)
        return order, dy, dx, flip

    def batch(self, order: Tensor, dy: Tensor, dx: Tensor, flip: Tensor) -> tuple[Tensor, Tensor]:
        """The images and labels of one step from its share (B,) of the choices, on the device.

        Images are (B, 3, H, W) float32 in [0, 1], channels_last. Nothing waits for the host.
        """
        images = self._windows[order, :, dy, dx]
        images = torch.where(flip[:, None, None, None], images.flip(3), images)
        return to_float(images), self.labels[order]

    def epoch(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (images, labels) of all steps of an epoch, see :meth:`batch`."""
        choices = [values.to(self.device) for values in self.draw(epoch)]
        for step in zip(*(values.split(self.batch_size) for values in choices)):
            yield self.batch(*step)


def to_float(images: Tensor) -> Tensor:
    """uint8 images as float32 in [0, 1], channels_last, which convolutions like best."""
    return images.to(torch.float32, memory_format=torch.channels_last).div_(255)
