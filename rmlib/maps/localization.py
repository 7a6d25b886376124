"""Where a map lies: measures for each image, against the object, and against Region Mixup's grid.

All take maps (N, H, W) that are not negative, in any scale, and return (N,) float64. An empty map,
0 everywhere, knows nothing and counts as a flat one, so that every image counts for every network;
its :func:`extent` alone is 0.
"""

import torch

from rmlib import UserError

HALF = 0.5  # of a map's maximum: what lies above it is the region that the map marks


def _checked(grids, masks=None):
    if grids.dim() != 3 or not bool((grids >= 0).all()):
        got = f"maps {tuple(grids.shape)} from {float(grids.min()):g}"
        raise UserError(f"{got}: expected (N, H, W), not negative")
    if masks is not None and masks.dtype != torch.bool:
        raise UserError(f"masks are {masks.dtype}: expected bool, True on the object")
    if masks is not None and grids.shape != masks.shape:
        got = f"maps {tuple(grids.shape)} and masks {tuple(masks.shape)}"
        raise UserError(f"{got} must have the same shape")
    grids = grids.double()
    return torch.where(grids.amax((1, 2), keepdim=True) > 0, grids, 1.0)


def _region(grids):
    return grids >= HALF * grids.amax((1, 2), keepdim=True)


def empty(grids: torch.Tensor) -> torch.Tensor:
    """Which maps are 0 everywhere: (N,) bool, no evidence at all for the class."""
    return grids.amax((1, 2)) == 0


def energy_inside(grids: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Share of each map's sum inside the object, in percent; flat: the object's share.

    Wang et al. 2020, "Score-CAM", https://arxiv.org/abs/1910.01279, section 4.3 ("energy-based
    pointing game").

    Args:
        masks: (N, H, W) bool, True on the object.

    Raises:
        UserError: different shapes, negative maps, masks that are not bool.
    """
    grids = _checked(grids, masks)
    return 100 * (grids * masks).sum((1, 2)) / grids.sum((1, 2))


def pointing_game(grids: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Whether the maximum of each map lies inside the object: 100 or 0.

    Zhang et al. 2016, https://arxiv.org/abs/1608.00507, section 4.1; without their tolerance of 15
    pixels, which is half of a small image. Enlarged maps reach their maximum on several pixels at
    the border. The share of these inside counts, so a flat map scores the object's share. Masks and
    errors as :func:`energy_inside`.
    """
    grids = _checked(grids, masks)
    highest = grids == grids.amax((1, 2), keepdim=True)
    return 100 * (highest & masks).sum((1, 2)).double() / highest.sum((1, 2))


def iou(grids: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Intersection over union, in percent, of the object and the region above half of each map's
    maximum; flat: the object's share.

    Weakly supervised localization (Zhou et al. 2016, https://arxiv.org/abs/1512.04150, section 3.2)
    has the box around the region, and a fifth of the maximum. Masks and errors as
    :func:`energy_inside`.
    """
    region = _region(_checked(grids, masks))
    return 100 * (region & masks).sum((1, 2)).double() / (region | masks).sum((1, 2))


def extent(grids: torch.Tensor) -> torch.Tensor:
    """Share of the image above half of each map's maximum, in percent.

    Small for a map that is focused, 100 for a flat one; 0 for an empty one, which marks nothing.
    """
    region = _region(_checked(grids)).double().mean((1, 2))
    return 100 * torch.where(empty(grids), 0.0, region)


def asymmetry(grids: torch.Tensor, k: int = 2) -> torch.Tensor:
    """How unequally each map is spread over the tiles of a k x k grid, in percent.

    Half the sum of |share - 1/k^2| over the tiles: 0 for a flat map, 100 (1 - 1/k^2) for one that
    lies in a single tile. Tiles as in Region Mixup.

    Raises:
        UserError: more tiles than pixels, negative maps.
    """
    grids = _checked(grids)
    _, height, width = grids.shape
    if not 1 <= k <= (most := min(height, width)):
        raise UserError(f"k={k}: expected 1 to {most} tiles per side of {height} x {width}")
    rows, columns = ([i * size // k for i in range(k + 1)] for size in (height, width))
    tiles = [
        grids[:, top:bottom, left:right].sum((1, 2))
        for top, bottom in zip(rows, rows[1:])
        for left, right in zip(columns, columns[1:])
    ]
    return 50 * (torch.stack(tiles) / grids.sum((1, 2)) - 1 / k**2).abs().sum(0)


def shows_grid(shape, k: int) -> bool:
    """Whether a layer of (h, w) can show the trace of a k x k grid: its tiles must have halves."""
    return all(size % (2 * k) == 0 for size in shape)


def grid_trace(points: torch.Tensor, k: int = 2) -> torch.Tensor:
    """How much more a map changes across the crossings of a k x k grid than inside its tiles.

    Windows of a tile's size, each cut into four quarters, and in each the :func:`asymmetry` between
    the quarters, in points: the mean over the windows around the crossings of the grid's borders
    minus the mean over the tiles themselves. A map that knows no borders scores 0 on average,
    focused or not, smooth or not; one that keeps to single tiles is above. An object that is always
    in the middle of the image is below, whatever the method: compare methods on the same images.

    Args:
        points: (N, h, w) of the layer itself (``cam.maps(..., enlarged=False)``), since enlarged
            maps are smoother inside than at the edge. h and w are multiples of 2 k.

    Raises:
        UserError: other sizes, negative maps.
    """
    points = _checked(points)
    count, height, width = points.shape
    if not shows_grid((height, width), k):
        raise UserError(f"k={k}, maps of {height} x {width}: expected multiples of {2 * k}")
    quarters = points.view(count, 2 * k, height // (2 * k), 2 * k, width // (2 * k)).sum((2, 4))
    # (N, 2k - 1, 2k - 1, 4): tiles at even places, crossings at odd ones
    windows = quarters.unfold(1, 2, 1).unfold(2, 2, 1).flatten(3)
    total = windows.sum(3, keepdim=True)
    uneven = 50 * (torch.where(total > 0, windows / total, 0.25) - 0.25).abs().sum(3)
    return uneven[:, 1::2, 1::2].mean((1, 2)) - uneven[:, ::2, ::2].mean((1, 2))


def object_masks(data) -> torch.Tensor | None:
    """Masks (N, H, W) bool of the objects of an ImageSet: its own, or the insides of its boxes;
    None if it has neither.
    """
    if data.masks is not None or data.boxes is None:
        return data.masks
    height, width = data.images.shape[2:]
    x1, y1, x2, y2 = (edge[:, None, None] for edge in data.boxes.unbind(1))
    ys, xs = torch.arange(height)[None, :, None], torch.arange(width)[None, None, :]
    return (x1 <= xs) & (xs < x2) & (y1 <= ys) & (ys < y2)
