"""Measures on maps whose answers are known: perfect, flat, inverted, empty; and what must not
matter.
"""

from dataclasses import replace

import pytest
import torch

from rmlib import UserError
from rmlib.data import load
from rmlib.maps import localization

INSIDE = [localization.energy_inside, localization.pointing_game, localization.iou]
ALONE = [localization.extent, localization.asymmetry, localization.grid_trace]


def known():
    """Maps of 8 x 8 pixels, perfect, flat, inverted and empty, for objects that cover a quarter:
    the upper left one, or the middle.
    """
    masks = torch.zeros(2, 8, 8, dtype=torch.bool)
    masks[0, :4, :4] = masks[1, 2:6, 2:6] = True
    grids = torch.stack(
        [
            torch.stack([mask.float(), torch.ones(8, 8), 1 - mask.float(), torch.zeros(8, 8)])
            for mask in masks
        ]
    ).flatten(0, 1)
    return grids, masks.repeat_interleave(4, 0)


@pytest.mark.parametrize(
    "measure, inverted",
    [(localization.energy_inside, 0), (localization.pointing_game, 0), (localization.iou, 0)],
)
def test_perfect_flat_inverted_and_empty(measure, inverted):
    scores = measure(*known())
    assert scores.dtype == torch.float64 and scores.tolist() == [100, 25, inverted, 25] * 2, (
        "a map that knows nothing scores the object's share"
    )


def between():
    """A map with two pixels of the maximum, one inside, and weaker ones inside; 4 of 16 pixels are
    the object.
    """
    grid, mask = torch.zeros(1, 4, 4), torch.zeros(1, 4, 4, dtype=torch.bool)
    grid[0, 0, 0] = grid[0, 3, 3] = 1.0
    grid[0, 0, 1] = 0.5
    grid[0, 1, 1] = 0.3
    mask[0, :2, :2] = True
    return grid, mask


def test_answers_in_between():
    grid, mask = between()
    assert localization.energy_inside(grid, mask).item() == pytest.approx(100 * 1.8 / 2.8)
    assert localization.pointing_game(grid, mask).item() == 50 and localization.iou(
        grid, mask
    ).item() == pytest.approx(100 * 2 / 5)
    assert localization.extent(grid).item() == pytest.approx(100 * 3 / 16), (
        "the pixel at half of the maximum belongs to it"
    )
    assert localization.extent(known()[0])[:4].tolist() == [
        25,
        100,
        75,
        0,
    ], "an empty map marks nothing"


@pytest.mark.parametrize("measure", INSIDE + ALONE, ids=lambda f: f.__name__)
def test_neither_scale_nor_neighbours_matter(measure):
    generator = torch.Generator().manual_seed(0)
    grids, masks = (
        torch.rand(6, 8, 12, generator=generator),
        torch.rand(6, 8, 12, generator=generator) > 0.6,
    )
    score = (lambda g, m: measure(g, m)) if measure in INSIDE else (lambda g, m: measure(g))
    whole = score(grids, masks)
    assert torch.allclose(
        whole, score(grids * torch.rand(6, 1, 1, generator=generator) * 50, masks)
    ), "maps of any strength"
    assert torch.equal(
        whole, torch.cat([score(grids[i : i + 1], masks[i : i + 1]) for i in range(6)])
    )
    assert whole.std() > 0.1


def test_asymmetry_counts_tiles():
    """A map in one tile of k x k is as unequal as can be; spread over half of them, half the sum of
    the deviations says so.
    """
    for k in (2, 3):
        one = torch.zeros(1, 12, 12)
        one[0, : 12 // k, 12 - 12 // k :] = 1
        assert localization.asymmetry(one, k).item() == pytest.approx(100 * (1 - 1 / k**2))
    left = torch.zeros(1, 8, 8)
    left[:, :, :4] = 1
    assert localization.asymmetry(left).item() == pytest.approx(50)
    ragged = torch.zeros(
        1, 7, 5
    )  # tiles of unequal size, as Region Mixup cuts them: 3 and 4 rows, 2 and 3 columns
    ragged[0, :3, :2] = 1
    assert localization.asymmetry(ragged).item() == pytest.approx(75)


def smooth(count, size, passes, seed=0):
    """Random maps without borders or places: noise averaged with its neighbours on a ring,
    the more often the smoother.
    """
    points = torch.rand(count, size, size, generator=torch.Generator().manual_seed(seed)) ** 4
    for _ in range(passes):
        points = sum(points.roll((dy, dx), (1, 2)) for dy in (-1, 0, 1) for dx in (-1, 0, 1)) / 9
    return points


def test_the_trace_is_the_grid_s_own():
    """Single tiles: +75; the same thing across the crossing: -75; flat or empty: nothing."""
    tile = torch.zeros(1, 8, 8)
    tile[:, :4, :4] = 1
    assert localization.grid_trace(tile).item() == pytest.approx(75), (
        "the middle window has one quarter, the tiles are even or empty"
    )
    assert localization.grid_trace(tile.roll((2, 2), (1, 2))).item() == pytest.approx(-75), (
        "the middle is even, every tile has one quarter"
    )
    assert (
        localization.grid_trace(torch.ones(1, 8, 8)).item()
        == localization.grid_trace(torch.zeros(1, 8, 8)).item()
        == 0
    )
    diagonal = torch.kron(torch.eye(3), torch.ones(2, 2))[
        None
    ]  # 3 x 3 tiles of 2 x 2 grid points, each tile even
    assert localization.grid_trace(diagonal, 3).item() == pytest.approx((50 + 50 + 75 + 75) / 4), (
        "four crossings: two have two of four quarters, two have one"
    )
    with pytest.raises(UserError, match="multiples of 4"):
        localization.grid_trace(torch.ones(1, 6, 8))
    assert (
        localization.shows_grid((4, 8), 2)
        and not localization.shows_grid((4, 4), 4)
        and not localization.shows_grid((6, 4), 2)
    )


@pytest.mark.parametrize("size, k, passes", [(4, 2, 0), (4, 2, 1), (8, 2, 0), (8, 2, 3), (8, 4, 1)])
def test_maps_that_know_no_grid_leave_no_trace(size, k, passes):
    """Rough or smooth, focused or not: on average 0, to 3.3 standard errors; so methods whose maps
    differ in smoothness alone do not differ in trace.
    """
    trace = localization.grid_trace(smooth(4000, size, passes), k)
    assert abs(trace.mean()) < 3.3 * trace.std() / 4000**0.5 < 1


def test_a_planted_trace_is_found():
    """The same smooth maps, each cut at the borders of its strongest tile: found; cut at borders
    half a tile further: the other way.
    """
    points = smooth(500, 8, 1)
    for shift, sign in ((0, 1), (2, -1)):
        moved = points.roll((-shift, -shift), (1, 2))
        tiles = moved.view(500, 2, 4, 2, 4).sum((2, 4)).flatten(1)
        keep = (
            torch.nn.functional.one_hot(tiles.argmax(1), 4)
            .view(500, 2, 2)
            .float()
            .repeat_interleave(4, 1)
            .repeat_interleave(4, 2)
        )
        cut = (moved * (0.3 + 0.7 * keep)).roll((shift, shift), (1, 2))
        gain = localization.grid_trace(cut) - localization.grid_trace(points)
        assert sign * gain.mean() > 10 * gain.std() / 500**0.5


def test_mistakes():
    grids, masks = known()
    with pytest.raises(UserError, match="expected bool"):
        localization.energy_inside(grids, 255 * masks.byte())
    with pytest.raises(UserError, match="same shape"):
        localization.iou(grids, masks[:2])
    with pytest.raises(UserError, match="not negative"):
        localization.extent(grids - 0.5)
    with pytest.raises(UserError, match="expected 1 to 8 tiles"):
        localization.asymmetry(grids, 9)


def test_objects_are_masks_or_the_insides_of_boxes():
    data = load("shapes", split="test")[torch.arange(0, 2000, 400)]
    assert localization.object_masks(data) is data.masks
    boxed = localization.object_masks(replace(data, masks=None))
    x1, y1, x2, y2 = data.boxes[2].tolist()
    assert boxed[2].sum() == (x2 - x1) * (y2 - y1) and boxed[2, y1:y2, x1:x2].all()
    assert (boxed | ~data.masks).all(), "every mask lies in its box"
    assert localization.object_masks(replace(data, masks=None, boxes=None)) is None
