"""Common corruptions at five severities, made here from the images themselves.

Hendrycks & Dietterich 2019, https://arxiv.org/abs/1903.12261: nine of the nineteen corruptions of
CIFAR-10-C and Tiny-ImageNet-C, those that numpy, scipy, matplotlib and Pillow do in a line or two.
Operations and sizes are those of the authors' scripts, https://github.com/hendrycks/robustness:
8-bit images in and out, fractions dropped. The random numbers are our own, so the noise equals that
of the published files in distribution only, and a mean over these nine is not a published "mCE".
"""

import io
import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import product

import numpy as np
import torch
from matplotlib.colors import hsv_to_rgb, rgb_to_hsv
from PIL import Image
from scipy.ndimage import gaussian_filter

from rmlib import UserError
from rmlib.evaluate import predict
from rmlib.measuring import as_pixels, check_classes, image_keys, margins
from rmlib.params import nearest

SEVERITIES = (1, 2, 3, 4, 5)
# corruption -> its strengths at the five severities, for images of 32 pixels (CIFAR-10-C) and of 64
# (Tiny-ImageNet-C)
STRENGTHS = {
    # standard deviation
    "gaussian_noise": ((0.04, 0.06, 0.08, 0.09, 0.10), (0.04, 0.08, 0.12, 0.15, 0.18)),
    # photons of a white pixel
    "shot_noise": ((500, 250, 100, 75, 50), (250, 100, 50, 30, 15)),
    # share of the values set to 0 or 1
    "impulse_noise": ((0.01, 0.02, 0.03, 0.05, 0.07), (0.01, 0.02, 0.05, 0.08, 0.14)),
    # standard deviation in pixels
    "gaussian_blur": ((0.4, 0.6, 0.7, 0.8, 1.0), (0.5, 0.75, 1.0, 1.25, 1.5)),
    # added to the value in HSV
    "brightness": ((0.05, 0.1, 0.15, 0.2, 0.3), (0.1, 0.2, 0.3, 0.4, 0.5)),
    # factor of the distance from each channel's mean
    "contrast": ((0.75, 0.5, 0.4, 0.3, 0.15), (0.4, 0.3, 0.2, 0.1, 0.05)),
    # factor of the saturation, and what is added then
    "saturate": (
        ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)),
        ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (30, 0.2)),
    ),
    # size of the small image
    "pixelate": ((0.95, 0.9, 0.85, 0.75, 0.65), (0.9, 0.8, 0.7, 0.6, 0.5)),
    # quality
    "jpeg_compression": ((80, 65, 58, 50, 40), (65, 58, 50, 40, 25)),
}
CORRUPTIONS = tuple(STRENGTHS)


def corrupt(images: torch.Tensor, name: str, severity: int, seed: int = 0) -> torch.Tensor:
    """Images under one corruption, (N, 3, H, W) uint8.

    Below 48 pixels the strengths are those of CIFAR-10-C, from there on of Tiny-ImageNet-C.

    Args:
        images: (N, 3, H, W) uint8.
        name: one of CORRUPTIONS.
        severity: 1 (mild) to 5.
        seed: of the noise, a function of seed, corruption, severity and each image's own pixels.

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
        made = (THROUGH_PILLOW[name](Image.fromarray(image), strength) for image in pixels)
        changed = np.stack([np.asarray(picture) for picture in made])
    elif name in NOISES:
        keys = image_keys(images, seed, f"{name} {severity}")
        drawn = (np.random.default_rng(list(key)) for key in keys)
        noisy = [NOISES[name](*each, strength) for each in zip(pixels / 255, drawn)]
        changed = _as_bytes(np.stack(noisy))
    else:
        changed = _as_bytes(WHOLE[name](pixels / 255, strength))
    return torch.from_numpy(changed).permute(0, 3, 1, 2).contiguous()


def _as_bytes(values):
    return (values.clip(0, 1) * 255).astype(np.uint8)


def _impulse_noise(image, generator, share):
    hit, white = generator.random(image.shape) <= share, generator.random(image.shape) <= 0.5
    return np.where(hit, white, image)


# an image (H, W, 3) in [0, 1], a generator and the strength
NOISES = {
    "gaussian_noise": lambda image, drawn, std: image + drawn.normal(scale=std, size=image.shape),
    "shot_noise": lambda image, drawn, photons: drawn.poisson(image * photons) / photons,
    "impulse_noise": _impulse_noise,
}


def _contrast(values, factor):
    means = values.mean((1, 2), keepdims=True)
    return (values - means) * factor + means


def _in_hsv(values, channel, factor, added):
    hsv = rgb_to_hsv(values)
    hsv[..., channel] = (hsv[..., channel] * factor + added).clip(0, 1)
    return hsv_to_rgb(hsv)


# all images (N, H, W, 3) in [0, 1], and the strength
WHOLE = {
    "gaussian_blur": lambda values, std: gaussian_filter(values, (0, std, std, 0), mode="nearest"),
    "contrast": _contrast,
    "brightness": lambda values, added: _in_hsv(values, 2, 1, added),
    "saturate": lambda values, strength: _in_hsv(values, 1, *strength),
}


def _pixelate(picture, share):
    size = max(1, int(picture.width * share)), max(1, int(picture.height * share))
    return picture.resize(size, Image.Resampling.BOX).resize(picture.size, Image.Resampling.BOX)


def _jpeg(picture, quality):
    stored = io.BytesIO()
    picture.save(stored, "JPEG", quality=quality)
    return Image.open(stored)


THROUGH_PILLOW = {"pixelate": _pixelate, "jpeg_compression": _jpeg}


def evaluate(
    model, images: torch.Tensor, labels: torch.Tensor, *, batch_size: int = 500, seed: int = 0
) -> dict:
    """Accuracy of a network on uint8 images under every corruption at every severity.

    An image is right where its true logit is above every other one. ``seed``: of the noise.

    Returns:
        ``images``, their number; in percent ``clean_accuracy``, ``accuracy`` (corruption -> one
        number for each severity), and ``mean_accuracy`` over all of them.

    Raises:
        UserError: see :func:`rmlib.measuring.as_pixels`; labels that the network does not know;
            logits that are not finite.
    """

    def accuracy(logits):
        return 100 * int((margins(logits, labels) > 0).sum()) / len(labels)

    as_pixels(model, images, labels)
    logits = predict(model, images, batch_size)
    check_classes(logits, labels, "counted")
    if not logits.isfinite().all():
        raise UserError("the network returns logits that are not finite for some of the images")
    names, severities = zip(*product(CORRUPTIONS, SEVERITIES))
    # images are made while the network looks at those before
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        made = pool.map(partial(corrupt, images, seed=seed), names, severities)
        accuracies = [accuracy(predict(model, pixels, batch_size)) for pixels in made]
    rows = np.reshape(accuracies, (-1, len(SEVERITIES))).tolist()
    return {
        "images": len(labels),
        "clean_accuracy": accuracy(logits),
        "accuracy": dict(zip(CORRUPTIONS, rows)),
        "mean_accuracy": sum(accuracies) / len(accuracies),
    }
