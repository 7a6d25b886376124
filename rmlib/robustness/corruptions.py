"""Common corruptions at five severities, made here from the images themselves.

Hendrycks & Dietterich 2019, https://arxiv.org/abs/1903.12261: nine of the nineteen corruptions of
CIFAR-10-C and Tiny-ImageNet-C, those that numpy, scipy, matplotlib and Pillow do in a line or two,
with the operations and the sizes of the authors' scripts (https://github.com/hendrycks/robustness):
8-bit images in and out, fractions dropped. (The packages made for it are not kept up.) The random
numbers are our own, so the noise is equal in distribution to that of the published files, and a
mean over these nine is not a published "mCE".
"""

import io
import os
from concurrent.futures import ThreadPoolExecutor
from itertools import product

import numpy as np
import torch
from matplotlib.colors import hsv_to_rgb, rgb_to_hsv
from PIL import Image
from scipy.ndimage import gaussian_filter

from rmlib import UserError
from rmlib.evaluate import predict
from rmlib.measuring import as_pixels, image_keys, margins
from rmlib.params import nearest

SEVERITIES = (1, 2, 3, 4, 5)
# corruption -> its strengths at the five severities for images of 32 pixels (CIFAR-10-C) and of 64
# (Tiny-ImageNet-C)
STRENGTHS = {
    "gaussian_noise": (
        (0.04, 0.06, 0.08, 0.09, 0.10),
        (0.04, 0.08, 0.12, 0.15, 0.18),
    ),  # standard deviation
    "shot_noise": ((500, 250, 100, 75, 50), (250, 100, 50, 30, 15)),  # photons of a white pixel
    "impulse_noise": (
        (0.01, 0.02, 0.03, 0.05, 0.07),
        (0.01, 0.02, 0.05, 0.08, 0.14),
    ),  # share of the values set to 0 or 1
    "gaussian_blur": (
        (0.4, 0.6, 0.7, 0.8, 1.0),
        (0.5, 0.75, 1.0, 1.25, 1.5),
    ),  # standard deviation in pixels
    "brightness": (
        (0.05, 0.1, 0.15, 0.2, 0.3),
        (0.1, 0.2, 0.3, 0.4, 0.5),
    ),  # added to the value in HSV
    "contrast": (
        (0.75, 0.5, 0.4, 0.3, 0.15),
        (0.4, 0.3, 0.2, 0.1, 0.05),
    ),  # factor of the distance from each channel's mean
    "saturate": (
        ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)),
        ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (30, 0.2)),
    ),  # saturation x a + b
    "pixelate": (
        (0.95, 0.9, 0.85, 0.75, 0.65),
        (0.9, 0.8, 0.7, 0.6, 0.5),
    ),  # size of the small image
    "jpeg_compression": ((80, 65, 58, 50, 40), (65, 58, 50, 40, 25)),  # quality
}
CORRUPTIONS = tuple(STRENGTHS)


def corrupt(images: torch.Tensor, name: str, severity: int, seed: int = 0) -> torch.Tensor:
    """Images under one corruption.

    Args:
        images: (N, 3, H, W) uint8.
        name: one of CORRUPTIONS.
        severity: 1 (mild) to 5.
        seed: of the noise, which for every image is a function of seed, corruption, severity and
            its own pixels.

    Returns:
        (N, 3, H, W) uint8. Below 48 pixels the strengths are those of CIFAR-10-C, from there on
        those of Tiny-ImageNet-C.

    Raises:
        UserError: unknown corruption or severity, or images that are not 8-bit colour images.
    """
    if name not in STRENGTHS:
        raise UserError(f"corruption={name!r}: {nearest(name, CORRUPTIONS)}")
    if severity not in SEVERITIES or not isinstance(severity, int):
        raise UserError(f"severity={severity}: expected 1, 2, 3, 4 or 5")
    if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1] != 3:
        raise UserError(f"images {tuple(images.shape)} {images.dtype}: expected (N, 3, H, W) uint8")
    strength = STRENGTHS[name][images.shape[2] >= 48][severity - 1]
    pixels = images.permute(0, 2, 3, 1).contiguous().numpy()  # (N, H, W, 3)
    if name in THROUGH_PILLOW:
        changed = np.stack(
            [np.asarray(THROUGH_PILLOW[name](Image.fromarray(image), strength)) for image in pixels]
        )
    else:
        values = pixels / 255
        if name.endswith("noise"):
            drawn = (
                np.random.default_rng(list(key))
                for key in image_keys(images, seed, f"{name} {severity}")
            )
            values = np.stack(
                [
                    NOISES[name](image, strength, generator)
                    for image, generator in zip(values, drawn)
                ]
            )
        elif name == "gaussian_blur":
            values = gaussian_filter(values, (0, strength, strength, 0), mode="nearest")
        elif name == "contrast":
            means = values.mean((1, 2), keepdims=True)
            values = (values - means) * strength + means
        else:
            hsv = rgb_to_hsv(values)
            channel, (factor, added) = (2, (1, strength)) if name == "brightness" else (1, strength)
            hsv[..., channel] = (hsv[..., channel] * factor + added).clip(0, 1)
            values = hsv_to_rgb(hsv)
        changed = (values.clip(0, 1) * 255).astype(np.uint8)
    return torch.from_numpy(changed).permute(0, 3, 1, 2).contiguous()


def _impulse_noise(image, share, generator):
    hit, white = generator.random(image.shape) <= share, generator.random(image.shape) <= 0.5
    return np.where(hit, white, image)


NOISES = {
    "gaussian_noise": lambda image, std, generator: (
        image + generator.normal(scale=std, size=image.shape)
    ),
    "shot_noise": lambda image, photons, generator: generator.poisson(image * photons) / photons,
    "impulse_noise": _impulse_noise,
}


def _pixelate(picture, share):
    small = picture.resize(
        (max(1, int(picture.width * share)), max(1, int(picture.height * share))),
        Image.Resampling.BOX,
    )
    return small.resize(picture.size, Image.Resampling.BOX)


def _jpeg(picture, quality):
    stored = io.BytesIO()
    picture.save(stored, "JPEG", quality=quality)
    return Image.open(stored)


THROUGH_PILLOW = {"pixelate": _pixelate, "jpeg_compression": _jpeg}


def evaluate(
    model, images: torch.Tensor, labels: torch.Tensor, *, batch_size: int = 500, seed: int = 0
) -> dict:
    """Accuracy of a network under every corruption at every severity.

    Args:
        model: a network that returns logits for images in [0, 1].
        images: (N, 3, H, W) uint8.
        labels: (N,) int64.
        batch_size: images in a forward pass.
        seed: of the noise. An image is right where its true logit is above every other one.

    Raises:
        UserError: see :func:`rmlib.evaluate.as_pixels`; labels that the network does not know;
            logits that are not finite.

    Returns:
        ``images``, their number; in percent ``clean_accuracy``, ``accuracy`` (corruption -> one
        number for each severity), and ``mean_accuracy`` over all of them.
    """

    def accuracy(pixels):
        return (
            100 * int((margins(predict(model, pixels, batch_size), labels) > 0).sum()) / len(labels)
        )

    as_pixels(model, images, labels)
    logits = predict(model, images, batch_size)
    if int(labels.max()) >= logits.shape[1] or not logits.isfinite().all():
        raise UserError(
            f"labels up to {int(labels.max())}, logits of {logits.shape[1]} classes, finite:"
            f" {bool(logits.isfinite().all())}; expected finite logits for every class"
        )
    cases = list(product(CORRUPTIONS, SEVERITIES))
    with ThreadPoolExecutor(
        min(8, os.cpu_count() or 1)
    ) as pool:  # the images are made while the network looks at those before
        accuracies = [
            accuracy(pixels)
            for pixels in pool.map(lambda case: corrupt(images, *case, seed), cases)
        ]
    table = {
        name: [value for (other, _), value in zip(cases, accuracies) if other == name]
        for name in CORRUPTIONS
    }
    return {
        "images": len(labels),
        "clean_accuracy": accuracy(images),
        "accuracy": table,
        "mean_accuracy": sum(accuracies) / len(accuracies),
    }


def settings(*, images: int, image_seed: int, checksum: str, seed: int) -> dict:
    """What identifies the corruptions of a network in its record."""
    return {
        "corruptions": list(CORRUPTIONS),
        "images": images,
        "image_seed": image_seed,
        "checksum": checksum,
        "seed": seed,
    }
