"""Whether a map shows what the network looks at: change the image, or the network, and look again.

All measures take images (N, C, H, W), floating point in [0, 1] or uint8, maps (N, H, W) from 0 to 1
and the classes that the maps explain, (N,), on any device. They return values for each image on the
CPU. The network is asked for probabilities (softmax), in eval mode and in its own type, without
autocast or TF32.
"""

import copy
import math

import numpy as np
import torch
from pytorch_grad_cam.metrics.road import NoisyLinearImputer
from scipy.stats import rankdata
from torchvision.transforms.v2.functional import gaussian_blur

from rmlib import UserError
from rmlib.data import stream
from rmlib.evaluate import eval_mode, full_precision, logits_of
from rmlib.maps import cam
from rmlib.measuring import as_pixels, check_classes, image_keys

STEPS = 16  # of the deletion and insertion curves: a sixteenth of the pixels each
PERCENTILES = (20, 40, 60, 80)  # of ROAD: shares of the pixels that stay
NOISE = 0.01  # of ROAD's imputed pixels, grad-cam's


def probability(
    model, pixels: torch.Tensor, classes: torch.Tensor, batch_size: int = 500
) -> torch.Tensor:
    """Probability (N,) float64, on the CPU, of a class of each image (N, C, H, W) in [0, 1]."""
    parameter = next(model.parameters())
    as_it_is = torch.autocast(parameter.device.type, enabled=False)
    with eval_mode(model), torch.no_grad(), full_precision(), as_it_is:
        # copies, whatever the network does to its input
        copies = (part.to(parameter, copy=True) for part in pixels.split(batch_size))
        logits = torch.cat([logits_of(model, part).double() for part in copies]).cpu()
    check_classes(logits, classes, "explained")
    return logits.softmax(1).gather(1, classes[:, None].cpu())[:, 0]


def _on_cpu(model, pixels, grids, classes):
    """What the measures work on: checked, pixels floating point in [0, 1], all on the CPU."""
    kinds = torch.float32, torch.float64, torch.bfloat16
    pixels = as_pixels(model, pixels, classes, kinds).cpu()
    if grids.shape != pixels[:, 0].shape:
        got = f"maps {tuple(grids.shape)} do not fit images {tuple(pixels.shape)}"
        raise UserError(f"{got}: expected (N, H, W)")
    return pixels, grids.cpu(), classes.cpu()


def drop_and_increase(model, pixels, grids, classes) -> tuple[torch.Tensor, torch.Tensor]:
    """Average Drop % and Increase in Confidence %, where the image is multiplied by its map.

    Chattopadhay et al. 2018, "Grad-CAM++", section 4.1.1: drop = 100 max(0, Y - O) / Y, increase =
    100 where O > Y else 0. Y is the probability of the class on the image, O on the product. An
    empty map leaves nothing of the image. Black is the pixel value 0, before normalisation.
    grad-cam's ``DropInConfidence`` is the absolute drop, and takes logits with the usual target.

    Returns:
        Both (N,) float64, 0 to 100.

    Raises:
        UserError: images outside [0, 1], maps or classes that do not fit them; so do :func:`curves`
            and :func:`road`.
    """
    pixels, grids, classes = _on_cpu(model, pixels, grids, classes)
    whole = probability(model, pixels, classes)
    part = probability(model, pixels * grids[:, None], classes)
    return 100 * (whole - part).clamp(min=0) / whole, 100 * (part > whole).double()


def ranks(grids: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """The place (N, H, W) of every pixel in the order of its map, 0 for the least.

    Equal values are ordered at random, by the seed. A map has many, all the zeros of its ReLU among
    them. An order that takes them row by row would remove them from the top.
    """
    count, height, width = grids.shape
    shuffled = torch.randperm(height * width, generator=stream(seed, "ties of a map"))
    # pixels from the least to the most important
    order = shuffled[grids.flatten(1)[:, shuffled].argsort(dim=1, stable=True)]
    places = torch.arange(height * width).expand(count, -1)
    return torch.empty_like(order).scatter_(1, order, places).view(count, height, width)


def curves(model, pixels, grids, classes, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Deletion and insertion curves, (N, STEPS + 1) each.

    They are the probability of the class, in percent of that on the whole image, while the pixels
    are taken away, or put in, from the most important one on.

    Petsiuk et al. 2018, "RISE", https://arxiv.org/abs/1806.07421, section 4.1. What differs:
    deleted pixels get the image's mean colour; insertion starts from the image blurred by a
    Gaussian of an eighth of its width; and the probability is relative to that of the whole image,
    since methods that mix images make networks less confident.
    """
    pixels, grids, classes = _on_cpu(model, pixels, grids, classes)
    whole, total = probability(model, pixels, classes), grids[0].numel()
    places, sigma = ranks(grids, seed), pixels.shape[3] / 8
    width = 2 * math.ceil(2 * sigma) + 1
    sides = [min(width, 2 * size - 1) for size in pixels.shape[3:1:-1]]
    blurred = gaussian_blur(pixels, sides, [sigma, sigma])
    gone, deletion, insertion = pixels.mean((2, 3), keepdim=True), [], []
    for step in range(STEPS + 1):
        important = (places >= total - total * step // STEPS)[:, None]
        deletion.append(probability(model, torch.where(important, gone, pixels), classes))
        insertion.append(probability(model, torch.where(important, pixels, blurred), classes))
    whole = whole[:, None]
    return 100 * torch.stack(deletion, 1) / whole, 100 * torch.stack(insertion, 1) / whole


def area(curve: torch.Tensor) -> torch.Tensor:
    """Mean of each curve (N, points) by the trapezoidal rule: (N,)."""
    return torch.trapezoid(curve, dx=1 / (curve.shape[1] - 1))


def road(model, pixels, grids, classes, seed: int = 0) -> torch.Tensor:
    """ROAD combined, (N,) float64 from -100 to 100: the loss of probability, in points, where the
    most important pixels are imputed, minus the loss where the least important are.

    Rong et al. 2022, https://arxiv.org/abs/2202.00449, as grad-cam combines it: half the difference
    of the two, averaged over the shares of pixels that stay (PERCENTILES), imputed by grad-cam's
    noisy linear interpolation. What differs: pixels are ordered by :func:`ranks`. Where more pixels
    are equal than a percentile, as the zeros of a map, grad-cam's comparison with it removes all
    pixels or none. The noise is a function of the seed and the image, not of the global state. A
    map that knows nothing scores 0 on average.

    Cost: a sparse system for each image, direction and percentile, on one CPU core (timed in
    results/bench-maps-cpu.md).
    """
    pixels, grids, classes = _on_cpu(model, pixels, grids, classes)
    places, total = ranks(grids, seed), grids[0].numel()
    score = torch.zeros(len(pixels), dtype=torch.float64)
    keys = image_keys(pixels, seed, "noise of ROAD")
    seeds = [int.from_bytes(key[:8], "big") >> 1 for key in keys]
    for percentile in PERCENTILES:
        stay = total * percentile // 100
        # the most important go first; the least important
        for sign, kept in ((-1, places < stay), (1, places >= total - stay)):
            images = _imputed(pixels.float(), kept.float(), seeds)
            score += sign * probability(model, images, classes)
    return 100 * score / (2 * len(PERCENTILES))


def _imputed(pixels, kept, seeds):
    impute, images = NoisyLinearImputer(NOISE), []
    for image, keep, seed in zip(pixels, kept, seeds):
        # of the CPU alone; torch.manual_seed would seed a GPU too
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            images.append(impute(image, keep))
    return torch.stack(images)


def correlation(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Spearman's rank correlation (N,) of two stacks of maps (N, H, W); NaN where one is flat."""
    a, b = (rankdata(each.flatten(1).numpy(), axis=1) for each in (first, second))
    a, b = a - a.mean(1, keepdims=True), b - b.mean(1, keepdims=True)
    scale, unknown = np.sqrt((a**2).sum(1) * (b**2).sum(1)), np.full(len(a), np.nan)
    return torch.from_numpy(np.divide((a * b).sum(1), scale, out=unknown, where=scale > 0))


def randomised(model, seed: int = 0):
    """The network with more and more of its weights shuffled, from the head down to the stem.

    Adebayo et al. 2018, https://arxiv.org/abs/1810.03292, the cascading randomisation. What
    differs: every tensor of weights is shuffled instead of drawn anew, so that its values keep
    their distribution. Statistics of BatchNorm stay. The caller's network is left alone.

    Yields:
        Name of the part shuffled last, and the network.
    """
    model = copy.deepcopy(model)
    parts = [each for each in model.named_children() if any(True for _ in each[1].parameters())]
    for name, part in reversed(parts):
        for place, values in part.named_parameters():
            random = stream(seed, f"weights of a sanity check: {name}.{place}")
            order = torch.randperm(values.numel(), generator=random).to(values.device)
            with torch.no_grad():
                values.copy_(values.flatten()[order].view_as(values))
        yield name, model


def sanity(
    model, pixels, classes, layer: str, method: str = "gradcam++", seed: int = 0, *, reshape=None
) -> dict[str, torch.Tensor]:
    """Rank correlation (N,) of each map with that of the network with shuffled weights.

    The sanity check of Adebayo et al. 2018. A map that comes from what was learned falls to what
    the map of another image scores. One that stays shows the image, not the network.

    Returns:
        Name of the part shuffled last (those before it stay shuffled) -> correlations.
    """
    how: dict = {"method": method, "reshape": reshape}
    own = cam.maps(model, pixels, classes, layer, **how)
    return {
        name: correlation(own, cam.maps(shuffled, pixels, classes, layer, **how))
        for name, shuffled in randomised(model, seed)
    }
