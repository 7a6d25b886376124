"""Mixup, CutMix and Region Mixup as one formula on tiles.

A plan is a list of disjoint tiles. In tile t the original image keeps the weight ``lam[t]`` and the
image ``partners[t]`` gets the rest; outside every tile the original stays as it is:

    mixed   = W * images + (1 - W) * partners         W(pixel) = lam of the pixel's tile, 1 outside
    targets = w * one_hot(labels) + sum_t w_t * one_hot(labels[partners[t]])
    w_t     = (share of the image covered by tile t) * (1 - lam[t]),   w = 1 - sum_t w_t

    no mixing     no tile Mixup         one tile, the whole image, lam ~ Beta(alpha, alpha)
    Zhang et al. 2018 CutMix        one tile, a box, lam = 0 inside
    Yun et al. 2019 Region Mixup  k x k tiles, each with its own lam and its own partners
    Saha & Garain 2024, equation 1

The label weights follow the pixels actually mixed, so they hold for clipped boxes and for tiles of
unequal size. This file needs torch alone.
"""

import math
from dataclasses import dataclass

import torch

from rmlib import UserError


@dataclass(frozen=True)
class Plan:
    """Every random choice of one mixed batch: print it, plot it, replay it.

    ``boxes`` (T, 4) int64: x1, y1, x2, y2 of the tiles, half open, disjoint, inside ``height`` x
    ``width``. ``lam`` (T, 1) or (T, N) float32 in [0, 1]: weight of the original, one for the batch
    or one per image. ``partners`` (T, N) int64: which image of the batch is mixed in.
    """

    boxes: torch.Tensor
    lam: torch.Tensor
    partners: torch.Tensor
    height: int
    width: int

    def weight_map(self) -> torch.Tensor:
        """W of the formula: weight of the original per pixel, (1 or N, height, width) float32."""
        weights = torch.ones(self.lam.shape[1], self.height, self.width)
        for (x1, y1, x2, y2), lam in zip(self.boxes.tolist(), self.lam.cpu()):
            weights[:, y1:y2, x1:x2] = lam[:, None, None]
        return weights

    def label_weights(self) -> torch.Tensor:
        """Weights of the original label (row 0) and of each tile's partner label: (T + 1, 1 or N)
        float32, columns sum to 1.
        """
        pixels = self.height * self.width
        x1, y1, x2, y2 = self.boxes.double().unbind(1)
        shares = ((x2 - x1) * (y2 - y1) / pixels).float().to(self.lam.device)
        given = shares[:, None] * (1 - self.lam)
        return torch.cat([1 - given.sum(0, keepdim=True), given])


class Mixer:
    """Base of the four methods: ``draw`` makes all random choices, ``apply`` is deterministic,
    calling does both.

    Use it where ``torchvision.transforms.v2.MixUp`` fits: on ``(images, labels)``, on a
    ``collate_fn``'s ``*default_collate(batch)``, inside ``v2.Compose``, or on a pair or a mapping
    with one batch of images and its labels. It has no modes and no state: call it in the training
    loop alone.

    Args:
        num_classes: length C of a target row.
    """

    def __init__(self, num_classes: int):
        if num_classes < 2:
            raise UserError(f"num_classes={num_classes}: at least 2 classes are needed")
        self.num_classes = int(num_classes)

    def draw(self, shape, generator: torch.Generator | None = None) -> Plan:
        """Draw the plan for one batch.

        Args:
            shape: (N, C, H, W) of the images.
            generator: the only source of randomness (default: torch's global one). The plan lies on
                its device; one on the CPU serves images on any device without stalling it.
        """
        if len(shape) != 4 or min(shape) < 1:
            raise UserError(
                f"expected the shape (N, C, H, W) of a non-empty batch, got {tuple(shape)}; did you"
                " batch?"
            )
        count, _, height, width = shape
        device = generator.device if generator is not None else torch.device("cpu")
        boxes, lam, partners = self._draw(count, height, width, generator, device)
        return Plan(boxes, lam, partners, height, width)

    def _draw(self, count, height, width, generator, device):
        raise TypeError("Mixer is the base class: use NoMix, Mixup, CutMix or RegionMixup")

    def apply(
        self, images: torch.Tensor, labels: torch.Tensor, plan: Plan
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mix a batch as the plan says; the inputs stay untouched.

        Args:
            images: (N, C, H, W) floating point, any N >= 1, contiguous or channels_last (kept).
            labels: (N,) int64 in [0, num_classes); the values are checked on CPU only (on CUDA that
                would stall the step).
            plan: its tensors may lie on the CPU, whatever the device of the images. With all of
                them on CUDA nothing waits for the host and no shape depends on a value, so that the
                call can be recorded in a CUDA graph.

        Returns:
            mixed images like ``images`` in new memory, and targets (N, num_classes) float32 whose
            rows sum to 1.

        Raises:
            UserError (a ValueError): wrong shape, dtype, labels, or a plan drawn for another batch.
        """
        self._check(images, labels, plan)
        lam, partners, weights = (
            tensor.to(images.device) for tensor in (plan.lam, plan.partners, plan.label_weights())
        )
        sources = torch.cat([labels[None], labels[partners]])  # whose label: (T + 1, N)
        targets = torch.zeros(len(labels), self.num_classes, device=images.device)
        targets.scatter_add_(1, sources.T, weights.expand(sources.shape).T)
        boxes = plan.boxes.tolist() if _on_host(plan.boxes) else plan.boxes
        return blend(images, boxes, lam, partners), targets

    def __repr__(self):
        settings = ", ".join(f"{name}={value!r}" for name, value in vars(self).items())
        return f"{type(self).__name__}({settings})"

    def __call__(self, *inputs, generator: torch.Generator | None = None):
        """``(images, labels)``, one such pair, or a mapping with one 4-d tensor and a key with
        "label"; same structure out.
        """
        sample = inputs[0] if len(inputs) == 1 else inputs
        if isinstance(sample, dict):
            label_keys = [key for key in sample if "label" in str(key).lower()]
            image_keys = [
                key for key, value in sample.items() if torch.is_tensor(value) and value.ndim == 4
            ]
            if len(label_keys) != 1 or len(image_keys) != 1:
                raise UserError(
                    "expected a mapping with one 4-d tensor of images and one key with 'label',"
                    f" got the keys {list(sample)}: pass (images, labels) instead"
                )
            labels_key, images_key = label_keys[0], image_keys[0]
            mixed, targets = self(sample[images_key], sample[labels_key], generator=generator)
            return {**sample, images_key: mixed, labels_key: targets}
        if not isinstance(sample, (tuple, list)) or len(sample) < 2:
            raise UserError(
                f"expected (images, labels), got {type(sample).__name__}; mixing works on a batch"
                " with its labels"
            )
        images, labels, *rest = sample
        _check_images(images)
        mixed, targets = self.apply(images, labels, self.draw(images.shape, generator))
        return (mixed, targets, *rest)

    def _check(self, images, labels, plan):
        _check_images(images)
        if (
            not torch.is_tensor(labels)
            or labels.ndim != 1
            or len(labels) != len(images)
            or labels.dtype != torch.int64
        ):
            got = (
                f"{tuple(labels.shape)} {labels.dtype}"
                if torch.is_tensor(labels)
                else type(labels).__name__
            )
            raise UserError(
                f"expected labels of shape ({len(images)},) int64, got {got}; pass class indices,"
                " converted by labels.long() where needed"
            )
        if labels.device.type == "cpu":
            least, most = (int(value) for value in labels.aminmax())
            if least < 0 or most >= self.num_classes:
                raise UserError(
                    f"labels lie in [{least}, {most}], but num_classes={self.num_classes}: "
                    "give the mixer the number of classes of the dataset"
                )
        drawn = (plan.partners.shape[1], plan.height, plan.width)
        if drawn != (len(images), *images.shape[2:]):
            raise UserError(
                f"the plan was drawn for (N, H, W) = {drawn}, the images are {tuple(images.shape)}:"
                " draw a new one"
            )


def _check_images(images):
    if not torch.is_tensor(images) or images.ndim != 4 or min(images.shape) < 1:
        got = tuple(images.shape) if torch.is_tensor(images) else type(images).__name__
        raise UserError(f"expected images (N, C, H, W), got {got}; did you batch?")
    if not images.is_floating_point():
        raise UserError(
            f"expected floating point images, got {images.dtype}: convert them first, e.g."
            " images.float() / 255"
        )


def blend(images: torch.Tensor, boxes, lam: torch.Tensor, partners: torch.Tensor) -> torch.Tensor:
    """W * images + (1 - W) * partners, tile by tile, in new memory of the same format.

    With ``boxes`` as Python numbers each tile is cut out before it is gathered, so that a pixel is
    read twice and written once whatever the number of tiles. With ``boxes`` as a tensor their
    values are never read by the host: one gather from a map of partners, the same number of kernels
    for any number of tiles. Both give the same bits. ``torch.compile(blend)`` works; a grid of
    equal tiles, or any boxes in a tensor, then become one fused kernel.

    Args:
        images: (N, C, H, W) floating point.
        boxes: T tuples (x1, y1, x2, y2), disjoint, or a (T, 4) int64 tensor of them on the device
            of the images.
        lam: (T, 1) or (T, N), partners: (T, N) int64, both on the device of the images.
    """
    if torch.is_tensor(boxes):
        return _blend_map(images, boxes, lam, partners)
    if torch.compiler.is_compiling() and _is_equal_grid(boxes, *images.shape[2:]):
        return _blend_grid(images, lam, partners)
    channels_last = not images.is_contiguous() and images.is_contiguous(
        memory_format=torch.channels_last
    )
    source, rows = (images.permute(0, 2, 3, 1), 1) if channels_last else (images, 2)
    lam = lam.to(images.dtype).view(*lam.shape, 1, 1, 1)
    height, width = images.shape[2:]
    if len(boxes) == 1 and tuple(boxes[0]) == (
        0,
        0,
        width,
        height,
    ):  # Mixup: no memory beside the result
        mixed = source.index_select(0, partners[0]).lerp_(source, lam[0])
    else:
        covered = sum((x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in boxes) == height * width
        mixed = torch.empty_like(source) if covered else source.clone()
        for t, (x1, y1, x2, y2) in enumerate(boxes):
            tile, target = (
                x.narrow(rows, y1, y2 - y1).narrow(rows + 1, x1, x2 - x1) for x in (source, mixed)
            )
            if torch.compiler.is_compiling() or (
                images.requires_grad and torch.is_grad_enabled()
            ):  # both refuse `out`
                target.copy_(torch.lerp(tile.index_select(0, partners[t]), tile, lam[t]))
            else:
                torch.lerp(tile.index_select(0, partners[t]), tile, lam[t], out=target)
    return mixed.permute(0, 3, 1, 2) if channels_last else mixed


def _grid_boxes(xs, ys):
    return [(x1, y1, x2, y2) for y1, y2 in zip(ys, ys[1:]) for x1, x2 in zip(xs, xs[1:])]


def _is_equal_grid(boxes, height, width):
    k = math.isqrt(len(boxes))
    if k == 0 or height % k or width % k:
        return False
    xs, ys = range(0, width + 1, width // k), range(0, height + 1, height // k)
    return [tuple(box) for box in boxes] == _grid_boxes(xs, ys)


def _blend_grid(images, lam, partners):
    """The same for k x k equal tiles as one gather and one lerp: slower than the loop when eager,
    one kernel when compiled.
    """
    k, count = math.isqrt(len(partners)), len(images)
    tiles = images.unflatten(3, (k, -1)).unflatten(2, (k, -1))  # (N, C, k, H / k, k, W / k)
    own = torch.arange(k, device=images.device)
    partner = tiles.permute(0, 2, 4, 1, 3, 5)[
        partners.view(k, k, count).permute(2, 0, 1), own[:, None], own
    ]
    weights = lam.to(images.dtype).T.reshape(-1, 1, k, 1, k, 1)
    return torch.lerp(partner.permute(0, 3, 1, 4, 2, 5), tiles, weights).reshape(images.shape)


def _blend_map(images, boxes, lam, partners):
    """The same for boxes in a tensor: for every pixel the tile it lies in, from it partner and
    weight.
    """
    if not len(boxes):
        return images.clone()
    count, _, height, width = images.shape
    ys, xs = (
        torch.arange(height, device=images.device)[:, None],
        torch.arange(width, device=images.device),
    )
    x1, y1, x2, y2 = boxes[:, :, None, None].unbind(1)
    inside = (x1 <= xs) & (xs < x2) & (y1 <= ys) & (ys < y2)  # (T, H, W)
    tile = inside.byte().argmax(0)
    own = torch.arange(count, device=images.device)[
        :, None, None
    ]  # outside every tile an image is its own partner
    source = images.permute(0, 2, 3, 1)
    partner = source[torch.where(inside.any(0), partners.T[:, tile], own), ys, xs]
    mixed = torch.lerp(partner, source, lam.to(images.dtype).T[:, tile, None]).permute(0, 3, 1, 2)
    return mixed.contiguous(
        memory_format=torch.contiguous_format if images.is_contiguous() else torch.channels_last
    )


def _on_host(boxes):
    """Whether the host can read the boxes of a plan without waiting for a device."""
    return boxes.device.type == "cpu"


def _beta(alpha: float, shape, generator, device) -> torch.Tensor:
    """Beta(alpha, alpha) draws, float32; for other alphas than 1 from gamma draws in logarithms, so
    that none ends in 0 / 0.
    """
    if alpha == 1:
        return torch.rand(shape, generator=generator, device=device)
    concentration = torch.full((2, *shape), alpha + 1.0, dtype=torch.float64, device=device)
    log_gamma = torch._standard_gamma(
        concentration, generator=generator
    ).log()  # Gamma(a) = Gamma(a + 1) * U ** (1 / a)
    uniform = torch.rand(
        concentration.shape, dtype=torch.float64, device=device, generator=generator
    )
    log_gamma = log_gamma + uniform.clamp_min(torch.finfo(torch.float64).tiny).log() / alpha
    return torch.sigmoid(log_gamma[0] - log_gamma[1]).float()


def _permutation(count, generator, device):
    return torch.randperm(count, generator=generator, device=device)


def _check_alpha(alpha):
    if not 0 < alpha < float("inf"):
        raise UserError(
            f"alpha={alpha}: Beta(alpha, alpha) needs alpha > 0; to train without mixing use NoMix"
            " (mixer 'none')"
        )
    return float(alpha)


class NoMix(Mixer):
    """The batch as it is, with one-hot targets: the baseline, in the same loop.

    Example: ``mixed, targets = NoMix(num_classes=10)(images, labels)``
    """

    def _draw(self, count, height, width, generator, device):
        return (
            torch.empty(0, 4, dtype=torch.int64, device=device),
            torch.empty(0, 1, device=device),
            torch.empty(0, count, dtype=torch.int64, device=device),
        )


class CutMix(Mixer):
    """A box of a partner image is pasted in, one box and one permutation per batch.

    Paper: Yun et al. 2019, "CutMix", https://arxiv.org/abs/1905.04899. The box has sides sqrt(1 -
    lam) of the image with lam ~ Beta(alpha, alpha), its centre is uniform over the pixels, and it
    is clipped at the border; as in the authors' code and in torchvision, a side that comes out odd
    loses one pixel. The label weight is the area pasted, not the number drawn. The Region Mixup
    paper gives no probability for its CutMix column; ``prob=1`` is used in every table.

    Args:
        num_classes: length of a target row.
        alpha: of Beta(alpha, alpha), > 0.
        prob: share of the batches that are mixed, in [0, 1].

    Example: ``mixed, targets = CutMix(num_classes=10)(images, labels)``
    """

    def __init__(self, num_classes: int, alpha: float = 1.0, prob: float = 1.0):
        super().__init__(num_classes)
        if not 0 <= prob <= 1:
            raise UserError(f"prob={prob}: a probability lies in [0, 1]")
        self.alpha, self.prob = _check_alpha(alpha), float(prob)

    def _draw(self, count, height, width, generator, device):
        lam = _beta(self.alpha, (), generator, device).item()
        u, v, gate = torch.rand(3, dtype=torch.float64, device=device, generator=generator).tolist()
        half = 0.5 * math.sqrt(1 - lam)
        half_width, half_height, x, y = (
            int(half * width),
            int(half * height),
            int(u * width),
            int(v * height),
        )
        box = (
            max(x - half_width, 0),
            max(y - half_height, 0),
            min(x + half_width, width),
            min(y + half_height, height),
        )
        if gate >= self.prob:
            box = (0, 0, 0, 0)  # an empty box: this batch stays as it is
        return (
            torch.tensor([box], device=device),
            torch.zeros(1, 1, device=device),
            _permutation(count, generator, device)[None],
        )


class RegionMixup(Mixer):
    """Every tile of a k x k grid is mixed with the same tile of a different partner, each with its
    own weight.

    Paper: Saha & Garain 2024, "Region Mixup", https://arxiv.org/abs/2409.15028, equation 1. The
    paper leaves open whether weights are drawn per batch or per image and whether a tile may meet
    its own image; here: one weight and one permutation per tile and batch, own image allowed, as in
    the authors' reference for Mixup. ``k=1`` is Mixup. When k does not divide the size, tiles
    differ by at most one pixel and the label weights follow the pixels.

    Args:
        num_classes: length of a target row.
        k: tiles per side, 1 <= k <= min(H, W).
        alpha: of Beta(alpha, alpha), > 0.
        regions: "grid" for equal tiles, "random" for k x k tiles with random borders, drawn once
            per batch (the paper's future work).
        per_sample: every image has its own weights (random borders stay common to the batch).
        shared_partner: one permutation for all tiles, so that an image meets a single partner.
        shared_weight: one weight for all tiles.

    Example: ``mixed, targets = RegionMixup(num_classes=10, k=2)(images, labels)``
    """

    def __init__(
        self,
        num_classes: int,
        k: int = 2,
        alpha: float = 1.0,
        *,
        regions: str = "grid",
        per_sample: bool = False,
        shared_partner: bool = False,
        shared_weight: bool = False,
    ):
        super().__init__(num_classes)
        if k != int(k) or k < 1:
            raise UserError(f"k={k}: the grid needs a whole number of tiles per side, at least 1")
        if regions not in ("grid", "random"):
            raise UserError(f"regions={regions!r}: expected 'grid' or 'random'")
        self.k, self.alpha, self.regions = int(k), _check_alpha(alpha), regions
        self.per_sample, self.shared_partner, self.shared_weight = (
            per_sample,
            shared_partner,
            shared_weight,
        )

    def _borders(self, size, generator, device):
        """k + 1 increasing borders from 0 to size."""
        if self.regions == "grid":
            return [i * size // self.k for i in range(self.k + 1)]
        return [
            0,
            *sorted((1 + _permutation(size - 1, generator, device)[: self.k - 1]).tolist()),
            size,
        ]

    def _draw(self, count, height, width, generator, device):
        if self.k > min(height, width):
            raise UserError(
                f"k={self.k} tiles do not fit into {height} x {width} pixels: use k <="
                f" {min(height, width)}"
            )
        tiles = self.k * self.k
        ys, xs = self._borders(height, generator, device), self._borders(width, generator, device)
        boxes = torch.tensor(_grid_boxes(xs, ys), device=device)
        lam = _beta(
            self.alpha,
            (1 if self.shared_weight else tiles, count if self.per_sample else 1),
            generator,
            device,
        )
        partners = [
            _permutation(count, generator, device)
            for _ in range(1 if self.shared_partner else tiles)
        ]
        partners = partners[0][None] if len(partners) == 1 else torch.stack(partners)
        return boxes, lam.expand(tiles, -1), partners.expand(tiles, -1)


class Mixup(RegionMixup):
    """The whole image is mixed with one partner: Region Mixup on a 1 x 1 grid.

    Paper: Zhang et al. 2018, "mixup", https://arxiv.org/abs/1710.09412; one weight and one
    permutation per batch, as in the authors' code.

    Args:
        num_classes: length of a target row.
        alpha: of Beta(alpha, alpha), > 0.

    Example: ``mixed, targets = Mixup(num_classes=10)(images, labels)``
    """

    def __init__(self, num_classes: int, alpha: float = 1.0):
        super().__init__(num_classes, k=1, alpha=alpha)
