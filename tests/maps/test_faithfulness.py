"""Measures that ask a network again, on networks whose answers are known, beside grad-cam's own
where it has them.
"""

import math

import numpy as np
import pytest
import torch
from pytorch_grad_cam.metrics.cam_mult_image import DropInConfidence, IncreaseInConfidence
from pytorch_grad_cam.metrics.road import ROADCombined
from pytorch_grad_cam.utils.model_targets import ClassifierOutputSoftmaxTarget
from scipy.stats import spearmanr
from torch import nn

from rmlib import UserError
from rmlib.maps import cam, faithfulness
from rmlib.models import preact_resnet18

ranks = faithfulness.ranks


class Red(nn.Module):
    """Sees the mean of the red channel in the upper left quarter, and nothing else: the logit of
    class 0 is four times that, of class 1 zero.
    """

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(4.0))

    def forward(self, images):
        half = images.shape[2] // 2
        red = self.scale * images[:, 0, :half, :half].mean((1, 2))
        return torch.stack((red, torch.zeros_like(red)), 1)


def scenes(count=5, size=8, seed=0):
    """Images whose upper left quarter decides, its map, the inverse, and class 0."""
    pixels = 0.4 * torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed))
    pixels[:, 0, : size // 2, : size // 2] += 0.4
    right = torch.zeros(count, size, size)
    right[:, : size // 2, : size // 2] = 1
    return pixels, right, 1 - right, torch.zeros(count, dtype=torch.int64)


def test_drop_and_increase_by_hand():
    pixels, right, wrong, classes = scenes()
    Y = faithfulness.probability(Red(), pixels, classes)
    assert torch.allclose(
        Y, torch.sigmoid(4 * pixels[:, 0, :4, :4].double().mean((1, 2))), atol=1e-6
    )
    drop, increase = faithfulness.drop_and_increase(Red(), pixels, right, classes)
    assert drop.eq(0).all() and increase.eq(0).all(), "what the network sees is left as it was"
    drop, increase = faithfulness.drop_and_increase(Red(), pixels, wrong, classes)
    assert torch.allclose(drop, 100 * (Y - 0.5) / Y, atol=1e-4) and increase.eq(0).all()
    drop, increase = faithfulness.drop_and_increase(Red(), pixels, wrong, classes + 1)
    assert drop.eq(0).all() and increase.eq(100).all(), "without red the other class gains"


def test_drop_is_relative_and_grad_cams_is_absolute():
    torch.manual_seed(0)
    model = preact_resnet18(3, 4).eval()
    pixels, _, _, _ = scenes(6, 16)
    grids, classes = torch.rand(6, 16, 16), torch.arange(6) % 3
    targets = [ClassifierOutputSoftmaxTarget(int(c)) for c in classes]
    drop, increase = faithfulness.drop_and_increase(model, pixels, grids, classes)
    absolute = DropInConfidence()(pixels, grids.numpy(), targets, model)
    assert (
        np.allclose(
            drop * faithfulness.probability(model, pixels, classes) / 100, absolute, atol=1e-6
        )
        and absolute.max() > 1e-4
    )
    assert np.array_equal(
        increase / 100, IncreaseInConfidence()(pixels, grids.numpy(), targets, model)
    )


def test_ranks_break_ties_at_random_and_keep_the_order():
    grids = torch.rand(3, 6, 5, generator=torch.Generator().manual_seed(0)).clamp(min=0.5)
    places = faithfulness.ranks(grids)
    assert torch.equal(places.flatten(1).sort(1).values, torch.arange(30).expand(3, -1))
    for grid, place in zip(grids.flatten(1), places.flatten(1)):
        assert (grid[place.argsort()].diff() >= 0).all()
    flat = faithfulness.ranks(torch.zeros(1, 20, 20))[0].flatten()
    assert (
        abs(torch.corrcoef(torch.stack((flat.double(), torch.arange(400.0).double())))[0, 1]) < 0.15
    ), "not row by row"
    assert torch.equal(places, faithfulness.ranks(grids)) and not torch.equal(
        faithfulness.ranks(grids * 0), faithfulness.ranks(grids * 0, seed=1)
    )


def test_curves_of_a_network_that_sees_one_quarter():
    pixels, right, wrong, classes = scenes()
    (deleted, inserted), (late, _) = (
        faithfulness.curves(Red(), pixels, grids, classes) for grids in (right, wrong)
    )
    assert (
        deleted.shape == (5, faithfulness.STEPS + 1)
        and torch.allclose(deleted[:, 0], torch.tensor(100.0).double())
        and torch.allclose(inserted[:, -1], torch.tensor(100.0).double(), atol=1e-6)
    )
    quarter = faithfulness.STEPS // 4
    gone = pixels[:, 0].mean((1, 2)).double()  # the mean colour, everywhere in the quarter
    expected = 100 * torch.sigmoid(4 * gone) / faithfulness.probability(Red(), pixels, classes)
    assert torch.allclose(deleted[:, quarter], expected, atol=1e-3) and torch.allclose(
        deleted[:, -1], expected, atol=1e-3
    )
    assert torch.allclose(late[:, -quarter - 1], torch.tensor(100.0).double(), atol=1e-5), (
        "the wrong map takes the quarter last"
    )
    assert (
        torch.allclose(inserted[:, quarter], torch.tensor(100.0).double(), atol=1e-3)
        and (inserted[:, 0] < 99).all()
    )
    assert (faithfulness.area(deleted) < faithfulness.area(late)).all()
    assert faithfulness.area(torch.tensor([[100.0, 0.0], [100, 100]])).tolist() == [50, 100]


def test_road_finds_what_the_network_sees():
    pixels, right, wrong, classes = scenes(8, 12)
    scores = {
        name: faithfulness.road(Red(), pixels, grids, classes)
        for name, grids in (("right", right), ("wrong", wrong), ("flat", 0 * right))
    }
    assert (
        (scores["right"] > 1).all()
        and (scores["wrong"] < -1).all()
        and abs(scores["flat"].mean()) < scores["right"].mean() / 3
    )


def test_road_is_grad_cams_where_no_two_pixels_are_equal():
    torch.manual_seed(0)
    model = preact_resnet18(3, 4).eval()
    pixels, grids, classes = (
        torch.rand(4, 3, 16, 16),
        torch.stack([torch.randperm(256).view(16, 16) / 255 for _ in range(4)]),
        torch.arange(4) % 3,
    )
    with torch.no_grad():
        model.linear.weight.mul_(20)  # decided enough for differences
    library = ROADCombined(list(faithfulness.PERCENTILES))(
        pixels, grids.numpy(), [ClassifierOutputSoftmaxTarget(int(c)) for c in classes], model
    )
    ours = faithfulness.road(model, pixels, grids, classes)
    assert np.allclose(ours, 100 * library, atol=0.3) and np.abs(library).max() > 0.02, (
        "up to the noise of the imputation"
    )


def test_a_percentile_of_many_zeros_removes_everything():
    """The trap that :func:`ranks` avoids: of a map that is 0 on more than a fifth of the image,
    grad-cam's comparison keeps nothing.
    """
    grid = np.maximum(np.linspace(-1, 1, 256).reshape(16, 16), 0)
    assert not (grid < np.percentile(grid, 20)).any()
    places = faithfulness.ranks(torch.from_numpy(grid)[None])
    assert (places < 256 * 20 // 100).sum() == 51


def test_an_image_of_its_own():
    """In any batch, whatever the caller has drawn: the scores of an image are a function of the
    image, its map and the seed; and nothing is left behind.
    """
    torch.manual_seed(0)
    model = preact_resnet18(3, 2).train()
    pixels, classes = torch.rand(5, 3, 16, 16), torch.arange(5) % 3
    grids = cam.maps(model, pixels, classes)

    def scores(rows):
        arguments = pixels[rows], grids[rows], classes[rows]
        drop, _ = faithfulness.drop_and_increase(model, *arguments)
        return torch.stack(
            [
                drop,
                faithfulness.road(model, *arguments),
                *map(faithfulness.area, faithfulness.curves(model, *arguments)),
            ]
        )

    whole, state = scores(slice(None)), torch.get_rng_state()
    torch.rand(3)
    before = torch.get_rng_state()
    single = torch.cat([scores(slice(i, i + 1)) for i in range(5)], 1)
    assert (
        torch.allclose(whole, single, atol=1e-3)
        and torch.equal(torch.get_rng_state(), before)
        and not torch.equal(before, state)
    )
    assert model.training and not any(module._forward_hooks for module in model.modules())


def test_types_and_devices_of_the_caller():
    """uint8 images are images, autocast around changes nothing, and a GPU's random state would not
    be touched.
    """
    pixels, right, wrong, classes = scenes()
    grey = (pixels * 255).round().byte()
    for measure in (
        lambda images: faithfulness.drop_and_increase(Red(), images, wrong, classes)[0],
        lambda images: faithfulness.road(Red(), images, right, classes),
        lambda images: faithfulness.area(faithfulness.curves(Red(), images, right, classes)[0]),
    ):
        assert torch.allclose(measure(grey), measure(grey / 255), atol=1e-6)
    torch.manual_seed(0)
    model, images = preact_resnet18(3, 2).eval(), torch.rand(4, 3, 16, 16)
    plain = faithfulness.probability(model, images, torch.arange(4) % 3)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(faithfulness.probability(model, images, torch.arange(4) % 3), plain)
    with pytest.raises(UserError, match="do not fit"):
        faithfulness.road(Red(), pixels, right[:2], classes)


def test_the_noise_seeds_no_gpu(monkeypatch):
    monkeypatch.setattr(
        torch,
        "manual_seed",
        lambda seed: pytest.fail("seeds every device, and only the CPU is restored"),
    )
    pixels, right, _, classes = scenes(2)
    faithfulness.road(Red(), pixels, right, classes)


def test_correlation_is_spearmans():
    generator = torch.Generator().manual_seed(0)
    a, b = (
        torch.rand(4, 5, 6, generator=generator).clamp(min=0.3),
        torch.rand(4, 5, 6, generator=generator),
    )
    assert np.allclose(
        faithfulness.correlation(a, b),
        [spearmanr(x.flatten(), y.flatten()).statistic for x, y in zip(a, b)],
    )
    assert (
        torch.allclose(faithfulness.correlation(a, a**3), torch.ones(4).double())
        and faithfulness.correlation(a, 0 * b).isnan().all()
    )


def test_shuffled_weights_destroy_the_map_of_a_network_that_learned():
    """A planted detector of red: shuffled, it is none; and the stages go from the head down, on a
    copy.
    """
    model = nn.Sequential()
    model.features = nn.Conv2d(3, 8, 3, padding=1, bias=False)
    model.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2, bias=False))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        model.features.weight.zero_()
        model.features.weight[:, 0, 1, 1] = 1.0
        model.features.weight[:, 1:, 1, 1] = -1.0
        model.head[2].weight[:] = torch.stack((torch.ones(8), -torch.ones(8)))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    pixels = torch.rand(10, 3, 12, 12, generator=generator)
    stages = faithfulness.sanity(model, pixels, torch.zeros(10, dtype=torch.int64), "features")
    assert list(stages) == ["head", "features"] and stages["features"].abs().mean() < 0.5
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items()), (
        "the caller's network is left alone"
    )
    keeps = {
        name: sorted(value.flatten().tolist())
        for name, value in [*faithfulness.randomised(model)][-1][1].state_dict().items()
    }
    assert keeps == {name: sorted(value.flatten().tolist()) for name, value in before.items()}, (
        "shuffled, not drawn anew"
    )


def test_a_map_that_ignores_the_network_fails_the_sanity_check(monkeypatch):
    """As edge detectors do: the check must be able to say so."""
    monkeypatch.setattr(cam, "maps", lambda model, pixels, *_, **__: pixels.mean(1))
    stages = faithfulness.sanity(
        preact_resnet18(3, 2), torch.rand(4, 3, 8, 8), torch.zeros(4, dtype=torch.int64), "layer4"
    )
    assert list(stages) == ["linear", "layer4", "layer3", "layer2", "layer1", "conv1"] and all(
        math.isclose(each.min(), 1) for each in stages.values()
    )
