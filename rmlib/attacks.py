"""Adversarial attacks through torchattacks, with the checks that its numbers need.

Everything is in pixels: images in [0, 1], ``eps`` on that scale, the normalisation inside the model.
"""

from fractions import Fraction
from importlib import metadata

import torch
import torchattacks

from rmlib import UserError
from rmlib.data import stream
from rmlib.evaluate import as_pixels, pack_bits, with_gradients
from rmlib.params import eps_text, nearest

ATTACKS = ("fgsm", "square")


def perturb(model, images: torch.Tensor, labels: torch.Tensor, attack: str = "fgsm", eps: str | float = "8/255", *,
            queries: int = 100, batch_size: int = 200, seed: int = 0) -> torch.Tensor:
    """Adversarial images by FGSM or Square (both Linf, untargeted).

    FGSM: Goodfellow et al. 2015, https://arxiv.org/abs/1412.6572: one step of ``eps`` along the sign of the gradient of the
    cross entropy, applied to every image, also to those misclassified before. Square: Andriushchenko et al. 2020,
    https://arxiv.org/abs/1912.00049, as in torchattacks: margin loss, p_init 0.8, schedule rescaled to ``queries``, one
    restart; vertical stripes, then ``queries`` squares. It leaves images alone that are misclassified or that it could not fool.
    Windows and signs of torchattacks' Square are shared by a batch, so its result depends on ``batch_size``. torchattacks
    seeds every batch alike; here each batch has its own seed, a function of ``seed`` and its number.

    Args:
        model: an nn.Module with parameters that returns logits (N, classes) for images in [0, 1]; float32 or float64. Its modes,
            gradients and torch's random state come back.
        images: (N, C, H, W) uint8, or floating point in [0, 1]. labels: (N,) int64, the true classes.
        attack: "fgsm" or "square". eps: largest change of a pixel in [0, 1], a number or text such as "8/255".
        queries: steps of Square. batch_size: images attacked together. seed: of Square's draws.

    Returns:
        (N, C, H, W) of the network's floating point type in [0, 1], on the CPU, within ``eps`` of the images.

    Raises:
        UserError: unknown attack, eps outside [0, 1], queries or batch_size below 1, images outside [0, 1], labels that the
            network does not know, a network in half precision, one that returns probabilities.
        RuntimeError: the library left the ball or the range.
    """
    if attack not in ATTACKS:
        raise UserError(f"attack={attack!r}: {nearest(attack, ATTACKS)}")
    try:
        size = float(Fraction(eps_text(eps)))
    except ValueError as error:
        raise UserError(f"eps={eps}: {error}") from None
    for name, value in (("queries", queries), ("batch_size", batch_size)):
        if value < 1:
            raise UserError(f"{name}={value}: expected a whole number of at least 1")
    pixels = as_pixels(model, images, labels)
    parameter = next(model.parameters())
    found = []
    with with_gradients(model):
        for number, (batch, true) in enumerate(zip(pixels.split(batch_size), labels.split(batch_size))):
            batch, true = batch.to(parameter), true.to(parameter.device)
            if number == 0:
                _check_logits(model, batch, labels)
            if attack == "fgsm":
                method = torchattacks.FGSM(model, eps=size)
            else:
                own_seed = stream(seed, "square attack", number).initial_seed()
                method = torchattacks.Square(model, norm="Linf", eps=size, n_queries=queries, seed=own_seed)
            adversarial = method(batch, true)
            if not ((adversarial - batch).abs().max() <= size + 1e-6 and adversarial.min() >= 0 and adversarial.max() <= 1):
                raise RuntimeError(f"{attack} left the ball of eps={eps} or the range [0, 1]: do not use its images")
            found.append(adversarial.detach().cpu())
    return torch.cat(found)


@torch.no_grad()
def _check_logits(model, batch, labels):
    output = model(batch)
    if int(labels.max()) >= output.shape[1]:
        raise UserError(f"class {int(labels.max())} cannot be attacked: the network has {output.shape[1]} classes")
    if output.min() >= 0 and torch.allclose(output.sum(1), torch.ones_like(output[:, 0]), atol=1e-4):
        raise UserError("the model returns probabilities: attacks need its logits, so take the softmax away")


def evaluate(model, images: torch.Tensor, labels: torch.Tensor, attack: str = "fgsm", eps: str | float = "8/255", *,
             queries: int = 100, batch_size: int = 200, seed: int = 0) -> dict:
    """Attack a network and count; arguments as for :func:`perturb`.

    Returns:
        Counts of images: ``images``, ``clean_correct`` before the attack, ``fooled`` (right before, wrong after),
        ``misclassified`` (wrong before), ``turned_right`` (wrong before, right after: FGSM moves those images too) and
        ``unchanged`` (not a single pixel moved: for FGSM a gradient of zero, which says nothing about robustness). In percent
        of all images: ``clean_accuracy``; ``accuracy_after``, right after the attack, as the paper counts; and
        ``robust_accuracy``, right before and after. ``correct``: packed verdict on every image after the attack.
    """
    adversarial = perturb(model, images, labels, attack, eps, queries=queries, batch_size=batch_size, seed=seed)
    pixels = as_pixels(model, images, labels).to(adversarial)
    before, after = (_verdicts(model, values, labels, batch_size) for values in (pixels, adversarial))
    count = len(labels)
    return {"images": count, "clean_correct": int(before.sum()), "fooled": int((before & ~after).sum()),
            "misclassified": int((~before).sum()), "turned_right": int((~before & after).sum()),
            "unchanged": int((adversarial == pixels).flatten(1).all(1).sum()),
            "clean_accuracy": 100 * int(before.sum()) / count, "accuracy_after": 100 * int(after.sum()) / count,
            "robust_accuracy": 100 * int((before & after).sum()) / count, "correct": pack_bits(after)}


def _verdicts(model, images, labels, batch_size):
    parameter = next(model.parameters())
    with with_gradients(model), torch.no_grad():
        guesses = torch.cat([model(batch.to(parameter)).argmax(1).cpu() for batch in images.split(batch_size)])
    return guesses == labels.cpu()


def settings(attack: str, eps: str, *, queries: int, batch_size: int, seed: int, images: int, checksum: str) -> dict:
    """What identifies an attack on a network in its record; settings without effect on the attack are left out."""
    common = {"attack": attack, "library": f"torchattacks {metadata.version('torchattacks')}", "eps": eps, "images": images,
              "image_seed": seed, "checksum": checksum, "batch_size": batch_size}
    return common | ({"queries": queries, "seed": seed} if attack == "square" else {})
