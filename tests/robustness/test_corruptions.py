"""Corruptions against their definitions, recomputed independently, and against careless callers."""

import io

import numpy as np
import pytest
import torch
from matplotlib.colors import hsv_to_rgb, rgb_to_hsv
from PIL import Image
from torch import nn

from rmlib import UserError
from rmlib.robustness import corruptions
from rmlib.robustness.corruptions import CORRUPTIONS, STRENGTHS, corrupt


def pictures(count=6, size=32, seed=0):
    """Smooth colour images, (N, 3, size, size) uint8."""
    noise = torch.rand(count, 3, 6, 6, generator=torch.Generator().manual_seed(seed))
    return (
        nn.functional.interpolate(noise, size=(size, size), mode="bicubic").clamp(0, 1) * 255
    ).to(torch.uint8)


def distance(name, severity, images):
    return (corrupt(images, name, severity).float() - images.float()).abs().mean().item()


@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_images_stay_images_and_damage_grows(name, size):
    images = pictures(size=size)
    before = images.clone()
    damaged = [corrupt(images, name, severity) for severity in corruptions.SEVERITIES]
    assert all(
        each.dtype == torch.uint8 and each.shape == images.shape for each in damaged
    ) and torch.equal(images, before)
    amounts = [(each.float() - images.float()).abs().mean().item() for each in damaged]
    if name == "saturate":  # the first two severities take colour away, the others add it
        assert amounts[0] < amounts[1] and amounts[2] < amounts[3] < amounts[4]
    else:
        assert amounts == sorted(amounts) and amounts[0] > 0 and amounts[4] > 1.15 * amounts[0]
    assert torch.equal(damaged[2], corrupt(images, name, 3)), "the same again"


def test_strengths_are_those_of_the_image_size():
    assert all(
        len(sizes) == 2 and all(len(each) == 5 for each in sizes) for sizes in STRENGTHS.values()
    )
    small, large = pictures(size=32), pictures(size=64)
    assert (
        corrupt(small, "contrast", 1).float().std() / small.float().std()
        > 0.7
        > corrupt(large, "contrast", 1).float().std() / large.float().std()
    )


def test_noise_has_its_size():
    grey = torch.full((40, 3, 32, 32), 128, dtype=torch.uint8)
    grey[:, 0, 0, 0] = torch.arange(40)  # equal images would get equal noise

    def inner(name, severity):
        return corrupt(grey, name, severity)[:, :, 1:]

    values, shot, impulse = (
        inner("gaussian_noise", 3).double() / 255,
        inner("shot_noise", 5).double() / 255,
        inner("impulse_noise", 5),
    )
    assert (
        abs(values.std() - 0.08) < 0.001 and abs(values.mean() - 128 / 255 + 0.5 / 255) < 0.001
    )  # fractions are dropped
    assert (
        abs(shot.std() - np.sqrt(128 / 255 / 50)) < 0.002
        and abs(shot.mean() - 128 / 255 + 0.5 / 255) < 0.003
    )
    hit = impulse != 128
    assert (
        abs(hit.double().mean() - 0.07) < 0.003
        and set(impulse[hit].tolist()) == {0, 255}
        and abs((impulse[hit] == 255).double().mean() - 0.5) < 0.02
    )
    assert (hit[:, 0] & hit[:, 1]).double().mean() < 0.01, "each channel on its own"


def test_noise_belongs_to_the_image_and_not_to_its_place():
    images = pictures(8)
    order = torch.tensor([5, 2, 7])
    for name in ("gaussian_noise", "shot_noise", "impulse_noise"):
        assert torch.equal(corrupt(images, name, 3)[order], corrupt(images[order], name, 3))
        assert not torch.equal(corrupt(images, name, 3), corrupt(images, name, 3, seed=1))
    noises = [
        (corrupt(images, "gaussian_noise", severity).double() - images).flatten().numpy()
        for severity in (1, 2)
    ]
    assert abs(np.corrcoef(*noises)[0, 1]) < 0.1, "severities do not share their noise"


def test_contrast_brightness_and_saturation_are_their_formulas():
    images = pictures()
    x = images.double() / 255
    means = x.mean((2, 3), keepdim=True)
    assert torch.equal(
        corrupt(images, "contrast", 5),
        (((x - means) * 0.15 + means).clamp(0, 1) * 255).to(torch.uint8),
    )
    value = x.amax(1, keepdim=True)
    brighter = torch.where(
        value > 0, x * (value + 0.2).clamp(max=1) / value, torch.full_like(x, 0.2)
    )  # hue and saturation stay
    assert (corrupt(images, "brightness", 4).int() - (brighter * 255).int()).abs().max() <= 1
    hsv = rgb_to_hsv(x.permute(0, 2, 3, 1).numpy())
    hsv[..., 1] = np.clip(hsv[..., 1] * 2.5 + 0.2, 0, 1)
    assert np.array_equal(
        corrupt(images, "saturate", 5).permute(0, 2, 3, 1).numpy(),
        (hsv_to_rgb(hsv) * 255).astype(np.uint8),
    )


def test_blur_keeps_a_plane_and_spreads_a_point():
    plane = torch.full((1, 3, 32, 32), 200, dtype=torch.uint8)
    assert (corrupt(plane, "gaussian_blur", 5).int() - 200).abs().max() <= 1
    point = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    point[0, 1, 10, 20] = 255
    blurred = corrupt(point, "gaussian_blur", 5).double()
    assert abs(blurred[0, 1, 10, 20] - 255 / (2 * np.pi)) < 2
    assert blurred[0, 1, 10, 21] == blurred[0, 1, 9, 20] > 0 and not blurred[0, 0].any(), (
        "within the channel"
    )


def test_jpeg_and_pixelate_are_pillows():
    images = pictures(3)
    for image, jpeg, coarse in zip(
        images, corrupt(images, "jpeg_compression", 5), corrupt(images, "pixelate", 5)
    ):
        picture, stored = Image.fromarray(image.permute(1, 2, 0).numpy()), io.BytesIO()
        picture.save(stored, "JPEG", quality=40)
        assert (
            np.abs(np.asarray(Image.open(stored)).astype(int) - jpeg.permute(1, 2, 0).numpy()).max()
            <= 2
        )  # decoders round differently
        small = picture.resize((20, 20), Image.Resampling.BOX).resize(
            (32, 32), Image.Resampling.BOX
        )
        assert np.array_equal(np.asarray(small), coarse.permute(1, 2, 0).numpy())


class Redness(nn.Module):
    """Class 1 where red outweighs blue."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))

    def forward(self, images):
        means = images.mean((2, 3)) * self.scale
        return torch.stack([means[:, 2], means[:, 0]], 1)


def test_accuracies_are_of_the_corrupted_images():
    images = pictures(40)
    model = Redness().train()
    labels = model(images / 255).argmax(1)
    labels[:4] = 1 - labels[:4]
    result = corruptions.evaluate(model, images, labels, seed=3)
    assert (
        result["images"] == 40
        and result["clean_accuracy"] == 90
        and list(result["accuracy"]) == list(CORRUPTIONS)
    )
    for name in ("impulse_noise", "saturate"):
        for severity, accuracy in zip(corruptions.SEVERITIES, result["accuracy"][name]):
            expected = (
                (model(corrupt(images, name, severity, 3) / 255).argmax(1) == labels)
                .double()
                .mean()
            )
            assert accuracy == pytest.approx(100 * float(expected))
    assert result["accuracy"]["contrast"] == [90.0] * 5, "the order of the means stays"
    assert (
        result["mean_accuracy"] == pytest.approx(np.mean(list(result["accuracy"].values())))
        and model.training
    )


@pytest.mark.parametrize(
    "arguments, words",
    [
        ((pictures(1), "gausian_noise", 1), "did you mean 'gaussian_noise'"),
        ((pictures(1), "contrast", 6), "severity=6: expected 1, 2, 3, 4 or 5"),
        ((pictures(1), "contrast", 0), "severity=0"),
        ((pictures(1), "contrast", 2.0), "severity=2.0"),
        ((pictures(1) / 255, "contrast", 1), "float32: expected"),
        ((pictures(1)[:, :1], "contrast", 1), r"\(1, 1, 32, 32\)"),
    ],
)
def test_mistakes(arguments, words):
    with pytest.raises(UserError, match=words):
        corrupt(*arguments)


def test_networks_and_labels_that_do_not_fit():
    images, model = pictures(4), Redness()
    for labels, words in (
        (torch.full((4,), 2), "class 2 cannot be counted: the network has 2 classes"),
        (torch.zeros(3, dtype=torch.int64), "expected .N, C, H, W."),
        (torch.zeros(4), "float32"),
    ):
        with pytest.raises(UserError, match=words):
            corruptions.evaluate(model, images, labels)
    model.scale.data.fill_(torch.nan)
    with pytest.raises(UserError, match="logits that are not finite"):
        corruptions.evaluate(model, images, torch.zeros(4, dtype=torch.int64))
