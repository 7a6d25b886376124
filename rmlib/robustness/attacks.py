"""Adversarial attacks, and the checks that their numbers need.

Everything is in pixels: images in [0, 1], ``eps`` on that scale, the normalisation inside the
model. All attacks are Linf and untargeted.

- ``fgsm``: one step of eps along the sign of the gradient of the cross entropy (torchattacks).
  Goodfellow et al. 2015, https://arxiv.org/abs/1412.6572.
- ``fgsm_margin``: the same step on the true logit minus the largest other one (ours).
  This margin does not vanish where a network is sure of itself.
- ``pgd``: 20 steps of eps / 8 on the cross entropy, from the image itself (torchattacks).
  Madry et al. 2018, https://arxiv.org/abs/1706.06083, there with a random start.
- ``square``: :mod:`rmlib.robustness.square` (ours).
- ``autoattack``: the standard set of Croce & Hein 2020, https://arxiv.org/abs/2003.01690.
  APGD-CE, targeted APGD-DLR and targeted FAB take 100 steps each, Square 5000 queries.
  Each attacks what the one before has left. The parts are torchattacks', the set is ours:
  theirs takes 10 steps, and one target per class instead of nine.
"""

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from importlib import metadata
from typing import Any

import torch
import torchattacks

from rmlib import UserError, checked
from rmlib.evaluate import logits_of
from rmlib.measuring import as_pixels, check_classes, first_logits, margins, with_gradients
from rmlib.packed import pack_bits
from rmlib.params import eps_text, nearest
from rmlib.robustness.square import margins_of, square

# attack -> its options with their defaults
OPTIONS = {
    "fgsm": {},
    "fgsm_margin": {},
    "pgd": {"steps": 20},
    "square": {"queries": 100, "seed": 0},
    "autoattack": {"seed": 0},
}
ATTACKS = tuple(OPTIONS)

# of our own attacks, in stored settings: it changes only where their results change
ATTACKS_VERSION = "0.1.0"


@dataclass(frozen=True)
class Outcome:
    """What an attack did to N images, all on the CPU.

    ``images`` (N, C, H, W) after the attack; ``before`` and ``after`` (N,) bool, which images are
    right then. ``queries`` (N,) int64 of Square: evaluations of perturbed images.
    ``zero_gradient`` (N,) bool of attacks by gradient: no pixel of the image has one. ``left`` of
    AutoAttack: part -> images still right after it.
    """

    images: torch.Tensor
    before: torch.Tensor | None = None
    after: torch.Tensor | None = None
    queries: torch.Tensor | None = None
    zero_gradient: torch.Tensor | None = None
    left: dict | None = None


def library(attack: str) -> str:
    """The package that an attack comes from, with its version."""
    if attack in ("fgsm_margin", "square"):
        return f"rmlib {ATTACKS_VERSION}"
    return f"torchattacks {metadata.version('torchattacks')}"


def perturb(model, images, labels, attack="fgsm", eps="8/255", **options) -> torch.Tensor:
    """Adversarial images (N, C, H, W) on the CPU; arguments and errors as for :func:`run`."""
    return run(model, images, labels, attack, eps, verdicts=False, **options).images


def run(
    model,
    images: torch.Tensor,
    labels: torch.Tensor,
    attack: str = "fgsm",
    eps: str | float = "8/255",
    *,
    batch_size: int = 200,
    verdicts: bool = True,
    **options,
) -> Outcome:
    """Attack a network in full precision; its modes, gradients and torch's random state stay.

    The attacks by gradient move every image. The others leave those alone that are wrong already.

    Args:
        model: an nn.Module with parameters, float32 or float64, that returns logits (N, classes)
            for images in [0, 1].
        images: (N, C, H, W) uint8, or floating point in [0, 1].
        labels: (N,) int64, the true classes.
        attack: one of ATTACKS.
        eps: largest change of a pixel in [0, 1], a number or text such as "8/255".
        batch_size: images attacked together; only ``autoattack`` depends on it beyond rounding.
        verdicts: judge the images before and after the attack.
        options: those of the attack in OPTIONS: ``queries`` (evaluations per image), ``steps``,
            ``seed``.

    Raises:
        UserError: unknown attack or option, eps outside [0, 1], images or labels that do not fit,
            or a network that cannot be attacked.
        RuntimeError: the attack left the ball or the range.
    """
    try:
        size = float(Fraction(eps_text(eps)))
    except ValueError as error:
        raise UserError(f"eps={eps}: {error}") from None
    options = checked_options(attack, options)
    batch_size = checked("batch_size", batch_size, 1, 1e9, int)
    pixels = as_pixels(model, images, labels)
    parameter = next(model.parameters())
    with with_gradients(model):
        # a copy, whatever the network does to its input
        pixels = pixels.detach().to(parameter).clone()
        true = labels.to(parameter.device)
        _check_network(model, pixels[:8], true)
        method = _WITHOUT_GRADIENTS.get(attack) or partial(_by_gradient, attack)
        found = method(model, pixels, true, size, batch_size, **options)
        after = found["images"] = found["images"].detach()
        moved = (after - pixels).abs().max()
        if not (moved <= size + 1e-6 and after.min() >= 0 and after.max() <= 1):
            raise RuntimeError(f"{attack} left the ball of eps={size:g} or the range [0, 1]")
        for name, seen in (("before", pixels), ("after", after)) if verdicts else ():
            if name not in found:
                found[name] = right(model, seen, true, batch_size)
    on_cpu = {name: value.cpu() for name, value in found.items() if name != "left"}
    return Outcome(**found | on_cpu)


def evaluate(model, images, labels, attack="fgsm", eps="8/255", **options) -> dict:
    """Attack a network and count; arguments and errors as for :func:`run`.

    Returns:
        Numbers of images: ``images``, ``clean_correct`` before the attack, ``fooled`` (right
        before, wrong after), ``misclassified`` (wrong before), ``turned_right`` (wrong before,
        right after). In percent of all images: ``clean_accuracy``; ``accuracy_after``, right after
        the attack, as the paper counts; ``robust_accuracy``, right before and after. ``correct``:
        packed verdicts after the attack. Attacks by gradient: ``zero_gradient``, images about which
        the attack says nothing, because no pixel has a gradient. Square: ``fooled_at``, query ->
        images that it felled. AutoAttack: ``left``, images still right after each of its parts.
    """
    outcome = run(model, images, labels, attack, eps, **options)
    before, after, count = outcome.before, outcome.after, len(labels)
    assert before is not None and after is not None
    result = {
        "images": count,
        "clean_correct": int(before.sum()),
        "fooled": int((before & ~after).sum()),
        "misclassified": int((~before).sum()),
        "turned_right": int((~before & after).sum()),
        "clean_accuracy": 100 * int(before.sum()) / count,
        "accuracy_after": 100 * int(after.sum()) / count,
        "robust_accuracy": 100 * int((before & after).sum()) / count,
        "correct": pack_bits(after),
    }
    if outcome.zero_gradient is not None:
        result["zero_gradient"] = int(outcome.zero_gradient.sum())
    if outcome.queries is not None:
        queries, numbers = outcome.queries[before & ~after].unique(return_counts=True)
        result["fooled_at"] = dict(zip(map(str, queries.tolist()), numbers.tolist()))
    if outcome.left is not None:
        result["left"] = outcome.left
    return result


def query_curve(result: dict, queries: int) -> list[float]:
    """Accuracy in percent after 0, 1, ... ``queries`` evaluations, from a result of ``square``."""
    left, curve = result["clean_correct"], []
    for query in range(queries + 1):
        left -= result["fooled_at"].get(str(query), 0)
        curve.append(100 * left / result["images"])
    return curve


def checked_options(attack: str, options: dict) -> dict:
    """The options of an attack, checked, defaults filled in.

    Raises:
        UserError: unknown attack, an option that it does not have, a count below 1.
    """
    if attack not in ATTACKS:
        raise UserError(f"attack={attack!r}: {nearest(attack, ATTACKS)}")
    for name, value in options.items():
        if name not in OPTIONS[attack]:
            owners = [other for other in ATTACKS if name in OPTIONS[other]]
            belongs = f" (it belongs to {', '.join(owners)})" if owners else ""
            raise UserError(f"{name}={value} does nothing for attack '{attack}'{belongs}")
        options[name] = checked(name, value, 0 if name == "seed" else 1, 2**63 - 1, int)
    return OPTIONS[attack] | options


def right(model, images, labels, batch_size: int) -> torch.Tensor:
    """Which images a network in eval mode has right, (N,) bool; see :func:`margins`."""
    return margins_of(model, images, labels, batch_size) > 0


@torch.no_grad()
def _check_network(model, images, labels):
    """Refuse a network that cannot be attacked, by its answers for some of the images."""
    logits, again = first_logits(model, images), logits_of(model, images)
    if not logits.isfinite().all():
        raise UserError("the network returns logits that are not finite: its training diverged")
    check_classes(logits, labels, "attacked")
    total = logits.sum(1)
    if logits.min() >= 0 and torch.allclose(total, torch.ones_like(total), atol=1e-4):
        raise UserError("the model returns probabilities: take the softmax away, logits are needed")
    if (again - logits).abs().max() > 1e-3 * logits.abs().max():
        reason = "dropout, or a step that changes its input in place?"
        remedy = "switch the randomness off, or attack the mean of several answers"
        raise UserError(f"the network answers differently when asked again ({reason}): {remedy}")


class _Still(torch.nn.Module):
    """A network whose mode torchattacks does not switch, which an exported one refuses."""

    def __init__(self, model):
        super().__init__()
        self.model, self.training = model, False

    def train(self, mode=True):
        return self

    def forward(self, images):
        return self.model(images)


class _Watched(_Still):
    """It notes, of one batch, its first logits and which images have no gradient."""

    logits: Any = None
    zero: Any = None

    def forward(self, images):
        logits = self.model(images)
        if self.logits is None:
            self.logits = logits.detach()
            images.register_hook(self._note)
        return logits

    def _note(self, gradient):
        if self.zero is None:
            # zero, or no number
            self.zero = ~(gradient.abs() > 0).flatten(1).any(1)


def _by_gradient(attack, model, images, labels, size, batch_size, **options):
    """The fields of an :class:`Outcome` that the attack knows, as from the two below."""
    found, seen = [], []
    for batch, true in zip(images.split(batch_size), labels.split(batch_size)):
        watched = _Watched(model)
        methods = {
            "fgsm": torchattacks.FGSM(watched, eps=size),
            "fgsm_margin": partial(_fgsm_on_margin, watched, size=size),
            "pgd": torchattacks.PGD(watched, size, alpha=size / 8, random_start=False, **options),
        }
        try:
            found.append(methods[attack](batch, true))
        except RuntimeError as error:
            cut = ("not have been used in the graph", "does not require grad")
            if not any(words in str(error) for words in cut):
                raise
            reason = "no gradient reaches the pixels (a step, .detach() or numpy inside?)"
            raise UserError(f"{reason}: {attack} cannot run, only 'square' can") from error
        seen.append(watched)
    logits = torch.cat([watched.logits for watched in seen])
    zero = torch.cat([watched.zero for watched in seen])
    if not logits.isfinite().all():
        raise UserError("the network returns logits that are not finite for some of the images")
    before = margins(logits, labels) > 0
    return {"images": torch.cat(found), "before": before, "zero_gradient": zero}


def _fgsm_on_margin(model, images, labels, size):
    images = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(margins(model(images), labels).sum(), images)
    return (images - size * gradient.sign()).clamp(0, 1).detach()


def _square(model, images, labels, size, batch_size, **options):
    found, after, queries = square(model, images, labels, size, batch_size=batch_size, **options)
    return {"images": found, "before": queries > 0, "after": after, "queries": queries}


def _autoattack(model, images, labels, size, batch_size, seed):
    with torch.no_grad():
        classes = logits_of(model, images[:1]).shape[1]
    if classes < 4 or images.dtype != torch.float32:
        needed = "a float32 network of at least 4 classes"
        raise UserError(f"autoattack needs {needed}, not {images.dtype} with {classes}")
    model = _Still(model)
    images = images.contiguous()  # FAB makes views that channels_last does not allow
    common = {"norm": "Linf", "eps": size, "seed": seed}
    # nine targets, as in the paper
    targeted = common | {"steps": 100, "n_classes": min(classes, 10)}
    parts = {
        "apgd-ce": torchattacks.APGD(model, steps=100, loss="ce", **common),
        "apgd-t": torchattacks.APGDT(model, **targeted),
        "fab-t": torchattacks.FAB(model, multi_targeted=True, **targeted),
        "square": torchattacks.Square(model, n_queries=5000, **common),
    }
    before = right(model, images, labels, batch_size)
    found, left, still_right = images.clone(), before.nonzero().flatten(), {}
    for name, part in parts.items():
        if len(left):
            for batch in left.split(batch_size):
                found[batch] = part(images[batch], labels[batch])
            left = left[right(model, found[left], labels[left], batch_size)]
        still_right[name] = len(left)
    return {"images": found, "before": before, "left": still_right}


_WITHOUT_GRADIENTS: dict[str, Callable] = {"square": _square, "autoattack": _autoattack}
