"""Mixup, CutMix and Region Mixup as one formula on tiles.

A plan is a list of disjoint tiles. In tile t the original image keeps the weight ``lam[t]``, and
the image ``partners[t]`` gets the rest. Outside every tile the original stays as it is:

    mixed   = W * images + (1 - W) * partners         W(pixel) = lam of the pixel's tile, 1 outside
    targets = w * one_hot(labels) + sum_t w_t * one_hot(labels[partners[t]])
    w_t     = (share of the image covered by tile t) * (1 - lam[t]),   w = 1 - sum_t w_t

    no mixing       no tile
    Mixup           one tile, the whole image, lam ~ Beta(alpha, alpha)       Zhang et al. 2018
    CutMix          one tile, a box, lam = 0 inside                           Yun et al. 2019
    Region Mixup    k x k tiles, each with its own lam and partners           Saha & Garain 2024

The label weights follow the pixels mixed: they hold for clipped boxes and tiles of unequal size.
This file needs inputs.py and torch alone: copy both into a package of yours.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from . import inputs
from .inputs import ALPHAS, UserError, checked

Parts = tuple[Tensor, Tensor, Tensor]  # boxes, lam and partners of a plan
Count = int | None  # of classes; None where all labels are soft
DEFAULT = "default"  # of labels_getter, as in torchvision
Boxes = Sequence[Sequence[int]]  # x1, y1, x2, y2 of every box


@dataclass(frozen=True, eq=False)
class Plan:
    """Every random choice of one mixed batch: print it, plot it, replay it.

    ``boxes`` (T, 4) int64: x1, y1, x2, y2 of the tiles, half open, disjoint, inside ``height`` x
    ``width``. ``lam`` (T, 1) or (T, N) float32 in [0, 1]: weight of the original, one for the batch
    or one per image. ``partners`` (T, N) int64: which image of the batch is mixed in.
    """

    boxes: Tensor
    lam: Tensor
    partners: Tensor
    height: int
    width: int

    def __eq__(self, other: object) -> bool:
        """Whether all choices are the same, on whatever device."""
        if not isinstance(other, Plan):
            return NotImplemented
        mine, theirs = ((p.boxes.cpu(), p.lam.cpu(), p.partners.cpu()) for p in (self, other))
        same = (self.height, self.width) == (other.height, other.width)
        return same and all(map(torch.equal, mine, theirs))

    def weight_map(self) -> Tensor:
        """W of the formula: weight of the original per pixel, (1 or N, height, width) float32."""
        weights = self.lam.float().cpu().new_ones(self.lam.shape[1], self.height, self.width)
        for (x1, y1, x2, y2), lam in zip(self.boxes.tolist(), self.lam.cpu()):
            weights[:, y1:y2, x1:x2] = lam[:, None, None]
        return weights

    def label_weights(self) -> Tensor:
        """Weights of the original label, then of each tile's partner: (T + 1, 1 or N) float32."""
        pixels = (self.boxes[:, 2:] - self.boxes[:, :2]).prod(1, keepdim=True).double()
        shares = (pixels / (self.height * self.width)).float().to(self.lam.device)
        given = shares * (1 - self.lam.float())
        return torch.cat([1 - given.sum(0, keepdim=True), given])


class Mixer:
    """Base of the four methods: ``draw`` makes all random choices, ``apply`` is deterministic.

    Calling does both, wherever ``torchvision.transforms.v2.MixUp`` fits: in a loop, a
    ``collate_fn`` or ``v2.Compose``. ``num_classes`` is the length of a target row; soft labels
    need none. ``labels_getter``: where a batch has its labels, a key or a function of the batch.
    """

    def __init__(self, num_classes: Count = None, labels_getter: Any = DEFAULT):
        soft = num_classes is None
        self.num_classes = None if soft else checked("num_classes", num_classes, 2, 1e9, int)
        self._labels_getter = labels_getter

    def draw(self, shape: Sequence[int], generator: Generator | None = None) -> Plan:
        """Draw the plan for one batch.

        Args:
            shape: (N, C, H, W) of the images, or (N, T, C, H, W) of videos.
            generator: of all randomness (default: torch's global one); the plan lies on its device.
                In a DataLoader's worker it is a copy, and refused unless seeded there.
        """
        if not isinstance(shape, (tuple, list)) or len(shape) not in (4, 5):
            raise UserError(f"expected a shape (N, C, H, W), got {shape}; did you batch?")
        sizes = [checked("shape", size, 1, 1e9, int, "; did you batch?") for size in shape]
        inputs.check_generator(generator)
        height, width = sizes[-2:]
        return Plan(*self._draw(sizes[0], height, width, generator), height, width)

    def _draw(self, count: int, height: int, width: int, generator: Generator | None) -> Parts:
        raise TypeError("Mixer is the base class: use NoMix, Mixup, CutMix or RegionMixup")

    def apply(self, images: Tensor, labels: Tensor, plan: Plan) -> tuple[Tensor, Tensor]:
        """Mix a batch as the plan says; the inputs stay untouched.

        Args:
            images: (N, C, H, W) floating point, any N >= 1, contiguous or channels_last (kept).
                Of videos (N, T, C, H, W) all frames are mixed alike.
            labels: (N,) int64 in [0, num_classes); on CUDA not checked, as that stalls the step.
                Or (N, num_classes), one-hot or soft.
            plan: may lie on the CPU; on CUDA nothing waits for the host: a graph can record it.

        Returns mixed images like ``images`` in new memory, and targets (N, num_classes) float32,
        the weighted sums of label rows. Raises UserError, a ValueError.
        """
        inputs.check_batch(images, labels, plan, self.num_classes)
        device, weights = images.device, plan.label_weights().to(images.device)
        lam, partners = plan.lam.to(device), plan.partners.to(device)
        if labels.ndim == 1:
            sources = torch.cat([labels[None], labels[partners]])  # whose label: (T + 1, N)
            targets = labels.new_zeros(len(labels), self.num_classes or 0, dtype=torch.float32)
            targets.scatter_add_(1, sources.T, weights.expand(sources.shape).T)
        elif len(partners):
            sources = torch.cat([torch.arange(len(labels), device=device)[None], partners])
            sums: Any = {"mode": "sum", "per_sample_weights": weights.expand(sources.shape).T}
            targets = torch.nn.functional.embedding_bag(sources.T, labels.float(), **sums)
        else:
            targets = labels.to(torch.float32, copy=True)
        boxes = plan.boxes.tolist() if _on_host(plan.boxes) else plan.boxes.to(device)
        # the frames of a video are mixed as more channels
        mixed = blend(images.flatten(1, -3), boxes, lam, partners).view_as(images)
        # operations on a tv_tensor return plain tensors
        lost = type(mixed) is Tensor and type(images) not in (Tensor, torch.nn.Parameter)
        return mixed.as_subclass(type(images)) if lost else mixed, targets

    def __repr__(self) -> str:
        settings = ", ".join(f"{k}={value!r}" for k, value in vars(self).items() if k[0] != "_")
        return f"{type(self).__name__}({settings})"

    def __call__(self, *batch: Any, generator: Generator | None = None) -> Any:
        """Mix a batch, given as ``(images, labels, ...)`` or a mapping, which stays what it was."""
        sample = batch[0] if len(batch) == 1 else batch
        images, labels = inputs.images_and_labels(sample, self._labels_getter)
        plan = self.draw(getattr(images, "shape", ()), generator)
        mixed, targets = self.apply(images, labels, plan)
        return inputs.replaced(sample, (images, mixed), (labels, targets))


def blend(images: Tensor, boxes: Tensor | Boxes, lam: Tensor, partners: Tensor) -> Tensor:
    """W * images + (1 - W) * partners, tile by tile, in new memory of the same format.

    With ``boxes`` as Python numbers each tile is cut out before it is gathered: a pixel is read
    twice and written once. With ``boxes`` as a tensor the host never reads their values: one gather
    from a map of partners, which ``torch.compile`` makes one kernel. Both give the same bits.
    The rest is as in :class:`Plan`, on the device of the images (N, C, H, W).
    """
    height, width = images.shape[2:]
    if torch.compiler.is_compiling() and not torch.is_tensor(boxes):
        boxes = torch.tensor(boxes, dtype=torch.int64, device=images.device)
    if torch.is_tensor(boxes):
        return _blend_map(images, boxes, lam, partners)
    lam = lam.to(images.dtype).view(*lam.shape, 1, 1, 1)
    last = torch.channels_last
    channels_last = not images.is_contiguous() and images.is_contiguous(memory_format=last)
    source, rows = (images.permute(0, 2, 3, 1), 1) if channels_last else (images, 2)
    if [tuple(box) for box in boxes] == [(0, 0, width, height)]:
        # Mixup: no memory besides the result
        mixed = source.index_select(0, partners[0]).lerp_(source, lam[0])
    else:
        mixed = _blend_tiles(source, boxes, lam, partners, rows)
    return mixed.permute(0, 3, 1, 2) if channels_last else mixed


def _blend_tiles(source: Tensor, boxes: Boxes, lam: Tensor, partners: Tensor, rows: int) -> Tensor:
    """The same tile by tile; ``rows`` is the axis of the rows, before that of the columns."""
    pixels = source.shape[rows : rows + 2].numel()
    covered = sum((x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in boxes) == pixels
    mixed = torch.empty_like(source) if covered else source.clone()
    for (x1, y1, x2, y2), weight, order in zip(boxes, lam, partners):
        place = (slice(None),) * rows + (slice(y1, y2), slice(x1, x2))
        tile, target = source[place], mixed[place]
        try:
            torch.lerp(tile.index_select(0, order), tile, weight, out=target)
        except RuntimeError:  # autograd, jvp and vmap take no "out"
            target.copy_(torch.lerp(tile.index_select(0, order), tile, weight))
    return mixed


def _blend_map(images: Tensor, boxes: Tensor, lam: Tensor, partners: Tensor) -> Tensor:
    """The same for boxes in a tensor: a map of the tile, and so partner and weight, of a pixel."""
    if not len(boxes):
        return images.clone()
    count, _, height, width = images.shape
    xs = torch.arange(width, device=images.device)
    ys = torch.arange(height, device=images.device)[:, None]
    x1, y1, x2, y2 = boxes[:, :, None, None].unbind(1)
    inside = (x1 <= xs) & (xs < x2) & (y1 <= ys) & (ys < y2)  # (T, H, W)
    tile = inside.byte().argmax(0)
    # outside every tile an image is its own partner
    own = torch.arange(count, device=images.device)[:, None, None]
    source = images.permute(0, 2, 3, 1)
    partner = source[torch.where(inside.any(0), partners.T[:, tile], own), ys, xs]
    mixed = torch.lerp(partner, source, lam.to(images.dtype).T[:, tile, None]).permute(0, 3, 1, 2)
    kept = torch.contiguous_format if images.is_contiguous() else torch.channels_last
    return mixed.contiguous(memory_format=kept)


def _on_host(boxes: Tensor) -> bool:
    """Whether the host can read the boxes without waiting for a device, or for a compiler."""
    return boxes.is_cpu and not torch.compiler.is_compiling()


def _home(generator: Generator | None) -> Any:
    """The device of all that is drawn; torch's global generator, None, lies on the CPU."""
    return "cpu" if generator is None else generator.device


def beta(alpha: float, shape: Sequence[int], generator: Generator | None = None) -> Tensor:
    """Beta(alpha, alpha) draws, float32, in logarithms so that none ends in 0 / 0."""
    source: Any = {"device": _home(generator)} | ({"generator": generator} if generator else {})
    if alpha == 1:
        return torch.rand(shape, dtype=torch.float32, **source)
    # Gamma(a) = Gamma(a + 1) * U ** (1 / a)
    above = torch.full((2, *shape), alpha + 1.0, dtype=torch.float64, device=source["device"])
    log_gamma = torch._standard_gamma(above, generator=generator).log()
    uniform = torch.rand((2, *shape), dtype=torch.float64, **source)
    log_gamma = log_gamma + uniform.clamp_min(torch.finfo(torch.float64).tiny).log() / alpha
    return torch.sigmoid(log_gamma[0] - log_gamma[1]).float()


def checked_alpha(alpha: float) -> float:
    """alpha of Beta(alpha, alpha), refused where its draws would overflow."""
    return checked("alpha", alpha, *ALPHAS, float, "; to train without mixing use NoMix")


class NoMix(Mixer):
    """The batch as it is, with one-hot targets: the baseline, in the same loop."""

    def _draw(self, count: int, height: int, width: int, generator: Generator | None) -> Parts:
        none = torch.empty(0, 1, dtype=torch.float32, device=_home(generator))
        return none.long().expand(0, 4), none, none.long().expand(0, count)


class CutMix(Mixer):
    """A box of a partner image is pasted in, one box and one permutation per batch.

    Paper: Yun et al. 2019, "CutMix", https://arxiv.org/abs/1905.04899. The sides of the box are
    sqrt(1 - lam) of the image's, lam ~ Beta(alpha, alpha). Its centre is uniform over the pixels,
    and it is clipped at the border. As in the authors' code and in torchvision, an odd side loses
    one pixel. ``prob`` is the share of batches mixed: 1 in every table, the paper gives none.
    """

    def __init__(
        self,
        num_classes: Count = None,
        alpha: float = 1.0,
        prob: float = 1.0,
        labels_getter: Any = DEFAULT,
    ):
        super().__init__(num_classes, labels_getter)
        self.alpha, self.prob = checked_alpha(alpha), checked("prob", prob, 0, 1, float)

    def _draw(self, count: int, height: int, width: int, generator: Generator | None) -> Parts:
        device, weight = _home(generator), beta(self.alpha, (1,), generator)
        uniform = torch.rand(3, dtype=torch.float64, device=device, generator=generator)
        drawn: Any = torch.cat([weight, uniform])
        # a graph that is compiled has no numbers: it calculates with tensors
        graph = torch.compiler.is_compiling()
        lam, u, v, gate = drawn.unbind() if graph else drawn.tolist()
        half = 0.5 * (torch.sqrt if graph else math.sqrt)(1 - lam)
        half_width, half_height = half * width // 1, half * height // 1
        x, y = u * width // 1, v * height // 1
        x1, x2 = max(x - half_width, 0), min(x + half_width, width)
        y1, y2 = max(y - half_height, 0), min(y + half_height, height)
        # else an empty box: this batch stays as it is
        box = [[(gate < self.prob) * side for side in (x1, y1, x2, y2)]]
        partners = torch.randperm(count, generator=generator, device=device)[None]
        return torch.tensor(box, dtype=torch.int64, device=device), weight.new_zeros(1, 1), partners


class RegionMixup(Mixer):
    """Every tile of a k x k grid is mixed with that of another partner, by a weight of its own.

    Paper: Saha & Garain 2024, "Region Mixup", https://arxiv.org/abs/2409.15028, equation 1. It
    leaves open whether weights belong to a batch or an image, and whether a tile may meet its own
    image. Here: one weight and one permutation per tile and batch, own image allowed, as in the
    authors' reference for Mixup. When k does not divide the size, tiles differ by a pixel at most.

    Args:
        k: tiles per side, 1 <= k <= min(H, W).
        alpha: of Beta(alpha, alpha), > 0.
        regions: "grid" (equal tiles) or "random" (borders once per batch, the paper's future work).
        per_sample: every image has its own weights (random borders stay common to the batch).
        shared_partner: one permutation for all tiles, so that an image meets a single partner.
        shared_weight: one weight for all tiles.
    """

    def __init__(
        self,
        num_classes: Count = None,
        k: int = 2,
        alpha: float = 1.0,
        *,
        regions: str = "grid",
        per_sample: bool = False,
        shared_partner: bool = False,
        shared_weight: bool = False,
        labels_getter: Any = DEFAULT,
    ):
        super().__init__(num_classes, labels_getter)
        if regions not in ("grid", "random"):
            raise UserError(f"regions={regions!r}: expected 'grid' or 'random'")
        self.k, self.alpha = checked("k", k, 1, 1e9, int), checked_alpha(alpha)
        self.regions, self.per_sample = regions, per_sample
        self.shared_partner, self.shared_weight = shared_partner, shared_weight
        for name in ("per_sample", "shared_partner", "shared_weight"):
            if not isinstance(value := getattr(self, name), bool):
                raise UserError(f"{name}={value!r}: expected True or False")

    def _borders(self, size: int, generator: Generator | None) -> list[int]:
        """k + 1 increasing borders from 0 to size."""
        if self.regions == "grid":
            return [i * size // self.k for i in range(self.k + 1)]
        places = torch.randperm(size - 1, generator=generator, device=_home(generator))
        return [0, *(1 + places[: self.k - 1].sort().values).tolist(), size]

    def _draw(self, count: int, height: int, width: int, generator: Generator | None) -> Parts:
        device, tiles, most = _home(generator), self.k**2, min(height, width)
        if self.k > most:
            raise UserError(f"k={self.k} tiles do not fit into {height} x {width}: use k <= {most}")
        ys, xs = self._borders(height, generator), self._borders(width, generator)
        shape = 1 if self.shared_weight else tiles, count if self.per_sample else 1
        lam, drawn = beta(self.alpha, shape, generator), 1 if self.shared_partner else tiles
        orders = [torch.randperm(count, generator=generator, device=device) for _ in range(drawn)]
        places = [(x1, y1, x2, y2) for y1, y2 in zip(ys, ys[1:]) for x1, x2 in zip(xs, xs[1:])]
        boxes = torch.tensor(places, device=device)
        return boxes, lam.expand(tiles, -1), torch.stack(orders).expand(tiles, -1)


class Mixup(RegionMixup):
    """The whole image is mixed with one partner: Region Mixup on a 1 x 1 grid.

    Paper: Zhang et al. 2018, "mixup", https://arxiv.org/abs/1710.09412; one weight and one
    permutation per batch, as in the authors' code.
    """

    def __init__(self, num_classes: Count = None, alpha: float = 1.0, labels_getter: Any = DEFAULT):
        super().__init__(num_classes, k=1, alpha=alpha, labels_getter=labels_getter)
