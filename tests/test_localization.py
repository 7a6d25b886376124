"""Measures on maps whose answers are known: perfect, flat, inverted, empty; and what must not matter."""

from dataclasses import replace

import pytest
import torch
from conftest import mutated

from rmlib import UserError, localization
from rmlib.data import load

INSIDE = [localization.energy_inside, localization.pointing_game, localization.iou]
ALONE = [localization.extent, localization.asymmetry, localization.grid_trace]


def known():
    """Maps of 8 x 8 pixels, perfect, flat, inverted and empty, for objects that cover a quarter: the upper left one, or the middle."""
    masks = torch.zeros(2, 8, 8, dtype=torch.bool)
    masks[0, :4, :4] = masks[1, 2:6, 2:6] = True
    grids = torch.stack([torch.stack([mask.float(), torch.ones(8, 8), 1 - mask.float(), torch.zeros(8, 8)]) for mask in masks]).flatten(0, 1)
    return grids, masks.repeat_interleave(4, 0)


@pytest.mark.parametrize("measure, inverted", [(localization.energy_inside, 0), (localization.pointing_game, 0), (localization.iou, 0)])
def test_perfect_flat_inverted_and_empty(measure, inverted):
    scores = measure(*known())
    assert scores.dtype == torch.float64 and scores.tolist() == [100, 25, inverted, 25] * 2, "a map that knows nothing scores the object's share"


def between():
    """A map with two pixels of the maximum, one inside, and weaker ones inside; 4 of 16 pixels are the object."""
    grid, mask = torch.zeros(1, 4, 4), torch.zeros(1, 4, 4, dtype=torch.bool)
    grid[0, 0, 0] = grid[0, 3, 3] = 1.0
    grid[0, 0, 1] = 0.5
    grid[0, 1, 1] = 0.3
    mask[0, :2, :2] = True
    return grid, mask


def test_answers_in_between():
    grid, mask = between()
    assert localization.energy_inside(grid, mask).item() == pytest.approx(100 * 1.8 / 2.8)
    assert localization.pointing_game(grid, mask).item() == 50 and localization.iou(grid, mask).item() == pytest.approx(100 * 2 / 5)
    assert localization.extent(grid).item() == pytest.approx(100 * 3 / 16), "the pixel at half of the maximum belongs to it"
    assert localization.extent(known()[0])[:4].tolist() == [25, 100, 75, 100]


@pytest.mark.parametrize("measure", INSIDE + ALONE, ids=lambda f: f.__name__)
def test_neither_scale_nor_neighbours_matter(measure):
    generator = torch.Generator().manual_seed(0)
    grids, masks = torch.rand(6, 9, 12, generator=generator), torch.rand(6, 9, 12, generator=generator) > 0.6
    score = (lambda g, m: measure(g, m)) if measure in INSIDE else (lambda g, m: measure(g))
    whole = score(grids, masks)
    assert torch.allclose(whole, score(grids * torch.rand(6, 1, 1, generator=generator) * 50, masks)), "maps of any strength"
    assert torch.equal(whole, torch.cat([score(grids[i:i + 1], masks[i:i + 1]) for i in range(6)]))
    assert whole.std() > 0.1


def test_asymmetry_counts_tiles():
    """A map in one tile of k x k is as unequal as can be; spread over half of them, half the sum of the deviations says so."""
    for k in (2, 3):
        one = torch.zeros(1, 12, 12)
        one[0, :12 // k, 12 - 12 // k:] = 1
        assert localization.asymmetry(one, k).item() == pytest.approx(100 * (1 - 1 / k**2))
    left = torch.zeros(1, 8, 8)
    left[:, :, :4] = 1
    assert localization.asymmetry(left).item() == pytest.approx(50)
    ragged = torch.zeros(1, 7, 5)  # tiles of unequal size, as Region Mixup cuts them: 3 and 4 rows, 2 and 3 columns
    ragged[0, :3, :2] = 1
    assert localization.asymmetry(ragged).item() == pytest.approx(75)


def test_the_trace_is_the_grid_s_own():
    """Within a tile: +75; the same thing half a tile further, across the borders: -75; flat or a random map: nothing."""
    tile = torch.zeros(1, 8, 8)
    tile[:, :4, :4] = 1
    assert localization.grid_trace(tile).item() == pytest.approx(75) and localization.grid_trace(tile.roll((2, 2), (1, 2))).item() == pytest.approx(-75)
    assert localization.grid_trace(torch.ones(1, 8, 8)).item() == 0
    noise = torch.rand(400, 8, 8, generator=torch.Generator().manual_seed(0))
    assert abs(localization.grid_trace(noise).mean().item()) < 0.3
    focused = torch.zeros(64, 8, 8)  # a spot everywhere once: focused, and no trace
    focused[torch.arange(64), torch.arange(64) // 8, torch.arange(64) % 8] = 1
    assert localization.asymmetry(focused).min() == 75 and abs(localization.grid_trace(focused.repeat_interleave(2, 1).repeat_interleave(2, 2)).mean().item()) < 1e-9


def test_a_planted_trace_is_found_among_maps_that_are_as_focused():
    """Two sets of maps that differ in nothing but whether blobs are cut at the grid's borders: the measure tells them apart, the extent does not."""
    generator = torch.Generator().manual_seed(1)
    centres = torch.rand(300, 2, 1, 1, generator=generator) * 32
    ys, xs = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    free = torch.exp(-((ys - centres[:, 0]) ** 2 + (xs - centres[:, 1]) ** 2) / 50)
    same_tile = ((ys >= 16) == (centres[:, 0] >= 16)) & ((xs >= 16) == (centres[:, 1] >= 16))
    cut, moved = free * same_tile, free * (((ys + 8) % 32 >= 16) == ((centres[:, 0] + 8) % 32 >= 16)) * (((xs + 8) % 32 >= 16) == ((centres[:, 1] + 8) % 32 >= 16))
    trace = [localization.grid_trace(grids) for grids in (cut, moved)]
    assert (trace[0] - trace[1]).mean() > 20 * (trace[0] - trace[1]).std() / 300**0.5


@pytest.mark.parametrize("function, old, new", [
    (localization.energy_inside, "(grids * masks)", "grids.where(masks, 0.5)"), (localization.pointing_game, "highest & masks", "highest"),
    (localization.iou, "(region | masks)", "region"), (localization.asymmetry, "-(width // (2 * k))", "0"),
    (localization.asymmetry, "row * height // k", "0"), (localization.extent, ">= HALF", "> HALF")])
def test_wrong_measures_are_caught(function, old, new):
    wrong, (grids, masks) = mutated(function, old, new), known()
    if function in INSIDE:
        assert wrong(grids, masks).tolist() != [100, 25, 0, 25] * 2 or wrong(*between()) != function(*between())
    elif function is localization.extent:
        assert wrong(between()[0]) != function(between()[0])
    else:
        assert not torch.equal(torch.stack([wrong(grids), wrong(grids, moved=True)]), torch.stack([function(grids), function(grids, moved=True)]))


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
