"""Where a map lies: measures of class activation maps for each image, against the object, and against the grid of Region Mixup.

All take maps (N, H, W) that are not negative, in any scale, and return (N,) float64. An empty map, 0 everywhere, knows nothing and counts as a
flat one, so that every image counts for every network.
"""

import torch

from rmlib import UserError

HALF = 0.5  # of a map's maximum: what lies above it is the region that the map marks


def _checked(grids, masks=None):
    if grids.dim() != 3 or not bool((grids >= 0).all()):
        raise UserError(f"maps {tuple(grids.shape)} from {float(grids.min()):g}: expected (N, H, W), not negative")
    if masks is not None and masks.dtype != torch.bool:
        raise UserError(f"masks are {masks.dtype}: expected bool, True on the object")
    if masks is not None and grids.shape != masks.shape:
        raise UserError(f"maps {tuple(grids.shape)} and masks {tuple(masks.shape)} must have the same shape")
    grids = grids.double()
    return torch.where(grids.amax((1, 2), keepdim=True) > 0, grids, 1.0)


def empty(grids: torch.Tensor) -> torch.Tensor:
    """Which maps are 0 everywhere: (N,) bool."""
    return grids.amax((1, 2)) == 0


def energy_inside(grids: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Share of each map's sum that lies inside the object, in percent; a flat map scores the object's share of the image.

    Wang et al. 2020, "Score-CAM", https://arxiv.org/abs/1910.01279, section 4.3 ("energy-based pointing game").

    Args:
        masks: (N, H, W) bool, True on the object.

    Raises:
        UserError: different shapes, negative maps, masks that are not bool.
    """
    grids = _checked(grids, masks)
    return 100 * (grids * masks).sum((1, 2)) / grids.sum((1, 2))


def pointing_game(grids: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Whether the maximum of each map lies inside the object, in percent: 100 or 0, and between them where several pixels share the maximum.

    Zhang et al. 2016, https://arxiv.org/abs/1608.00507, section 4.1; without their tolerance of 15 pixels, which is half of a small
    image. Enlarged maps reach their maximum on several pixels at the border; their share inside counts, so a flat map scores the object's share.
    """
    grids = _checked(grids, masks)
    highest = grids == grids.amax((1, 2), keepdim=True)
    return 100 * (highest & masks).sum((1, 2)).double() / highest.sum((1, 2))


def iou(grids: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Overlap of the region above half of each map's maximum with the object: intersection over union in percent; flat: the object's share."""
    grids = _checked(grids, masks)
    region = grids >= HALF * grids.amax((1, 2), keepdim=True)
    return 100 * (region & masks).sum((1, 2)).double() / (region | masks).sum((1, 2))


def extent(grids: torch.Tensor) -> torch.Tensor:
    """Share of the image above half of each map's maximum, in percent: small for a map that is focused, 100 for a flat one."""
    grids = _checked(grids)
    return 100 * (grids >= HALF * grids.amax((1, 2), keepdim=True)).double().mean((1, 2))


def asymmetry(grids: torch.Tensor, k: int = 2, moved: bool = False) -> torch.Tensor:
    """How unequally each map is spread over the tiles of a k x k grid, in percent: half the sum of |share - 1/k^2| over the tiles.

    0 for a flat map, 100 (1 - 1/k^2) for one that lies in a single tile. Tiles as in Region Mixup. ``moved``: the grid half a tile further
    down and to the right, on the image closed to a ring.

    Raises:
        UserError: more tiles than pixels, negative maps.
    """
    grids = _checked(grids)
    count, height, width = grids.shape
    if not 1 <= k <= min(height, width):
        raise UserError(f"k={k}: expected 1 to {min(height, width)} tiles per side for maps of {height} x {width}")
    if moved:
        grids = grids.roll((-(height // (2 * k)), -(width // (2 * k))), (1, 2))
    shares = []
    for row in range(k):
        for column in range(k):
            tile = grids[:, row * height // k:(row + 1) * height // k, column * width // k:(column + 1) * width // k]
            shares.append(tile.sum((1, 2)) / grids.sum((1, 2)))
    return 50 * (torch.stack(shares) - 1 / k**2).abs().sum(0)


def grid_trace(grids: torch.Tensor, k: int = 2) -> torch.Tensor:
    """What is special about the borders of the k x k grid: :func:`asymmetry` on it minus that on the grid moved by half a tile, in points.

    A map that keeps to single tiles, as a network might learn from tiles with different labels, is above 0; one in the middle of the image, where
    photographers put things, lies across the borders and is below. So the number of one network says little: it is the difference
    between methods on the same images that would show a trace.
    """
    return asymmetry(grids, k) - asymmetry(grids, k, moved=True)


def object_masks(data) -> torch.Tensor | None:
    """Masks (N, H, W) bool of the objects of an ImageSet: its own, or the insides of its boxes; None if it has neither."""
    if data.masks is not None or data.boxes is None:
        return data.masks
    height, width = data.images.shape[2:]
    x1, y1, x2, y2 = (edge[:, None, None] for edge in data.boxes.unbind(1))
    ys, xs = torch.arange(height)[None, :, None], torch.arange(width)[None, None, :]
    return (x1 <= xs) & (xs < x2) & (y1 <= ys) & (ys < y2)
