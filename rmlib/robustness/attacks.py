"""Adversarial attacks, through torchattacks where it does what is needed, with the checks that
their numbers need.

Everything is in pixels: images in [0, 1], ``eps`` on that scale, the normalisation inside the
model. All attacks are Linf and untargeted:

- ``fgsm``: one step of eps along the sign of the gradient of the cross entropy (torchattacks;
Goodfellow et al. 2015,
  https://arxiv.org/abs/1412.6572). ``fgsm_margin``: the same step on the margin between the true
  logit and the largest other one, which does not vanish where a network is sure of itself (ours).
- ``pgd``: 20 steps of eps / 8 on the cross entropy from the image itself (torchattacks; Madry et
al. 2018,
  https://arxiv.org/abs/1706.06083, there with a random start).
- ``square``: :mod:`rmlib.robustness.square` (ours). ``square_torchattacks``: the library's, whose
squares are shared by a batch. - ``autoattack``: the standard set of Croce & Hein 2020,
https://arxiv.org/abs/2003.01690: APGD-CE, targeted APGD-DLR and targeted FAB
  with 100 steps each, Square with 5000 queries, each on what is left by the one before. The parts
  are torchattacks', the set is put together here, because torchattacks' own takes 10 steps instead
  of 100, and one target per class instead of nine.
"""

import contextlib
from dataclasses import dataclass
from fractions import Fraction
from importlib import metadata

import torch
import torchattacks

from rmlib import UserError, __version__
from rmlib.data import stream
from rmlib.measuring import as_pixels, margins, with_gradients
from rmlib.packed import pack_bits
from rmlib.params import eps_text, nearest
from rmlib.robustness.square import square

OPTIONS = {
    "fgsm": {},
    "fgsm_margin": {},
    "pgd": {"steps": 20},
    "square": {"queries": 100, "seed": 0},
    "square_torchattacks": {"queries": 100, "seed": 0},
    "autoattack": {"seed": 0},
}  # of each attack, with defaults
ATTACKS = tuple(OPTIONS)
BY_GRADIENT = ("fgsm", "fgsm_margin", "pgd")
OURS = ("fgsm_margin", "square")  # the others are torchattacks'


@dataclass(frozen=True)
class Outcome:
    """What an attack did to N images, all on the CPU."""

    images: torch.Tensor  # (N, C, H, W) after the attack
    before: torch.Tensor  # (N,) bool: right before the attack
    after: torch.Tensor  # (N,) bool: right after it
    queries: torch.Tensor | None = None  # square: (N,) int64 evaluations of perturbed images
    zero_gradient: torch.Tensor | None = (
        None  # attacks by gradient: (N,) bool, no pixel of the image has one
    )
    left: dict | None = None  # autoattack: number of images still right after each of its parts


def perturb(
    model,
    images: torch.Tensor,
    labels: torch.Tensor,
    attack: str = "fgsm",
    eps: str | float = "8/255",
    *,
    batch_size: int = 200,
    **options,
) -> torch.Tensor:
    """Adversarial images; arguments and errors as for :func:`run`.

    Returns:
        (N, C, H, W) of the network's floating point type in [0, 1], on the CPU, within ``eps`` of
        the images.
    """
    with _prepared(model, images, labels, attack, eps, batch_size, options) as given:
        return _adversarial(model, *given)[0].cpu()


def run(
    model,
    images: torch.Tensor,
    labels: torch.Tensor,
    attack: str = "fgsm",
    eps: str | float = "8/255",
    *,
    batch_size: int = 200,
    **options,
) -> Outcome:
    """Attack a network in full precision, and leave its modes, its gradients and torch's random
    state as they were.

    The attacks by gradient move every image, also those that are wrong already; the others leave
    those alone.

    Args:
        model: an nn.Module with parameters that returns logits (N, classes) for images in [0, 1];
            float32 or float64.
        images: (N, C, H, W) uint8, or floating point in [0, 1].
        labels: (N,) int64, the true classes.
        attack: one of ATTACKS.
        eps: largest change of a pixel in [0, 1], a number or text such as "8/255".
        batch_size: images attacked together; beyond rounding (which decides where the gradients of
            an over-confident network, a mean over the batch, are about to vanish) only
            ``square_torchattacks`` and ``autoattack`` depend on it.
        options: those of the attack in OPTIONS: ``queries`` (evaluations per image; in torchattacks
            one more), ``steps``, ``seed``.

    Returns:
        An :class:`Outcome`: the images after the attack and the verdicts, in the order of the
        images.

    Raises:
        UserError: unknown attack, or an option that is not this attack's; eps outside [0, 1]; a
            count below 1; images outside [0, 1], labels that the network does not know; a network
            in half precision, one that returns probabilities or no numbers, that answers
            differently each time, or through which no gradient reaches the pixels.
        RuntimeError: the attack left the ball or the range.
    """
    with _prepared(model, images, labels, attack, eps, batch_size, options) as given:
        found, told = _adversarial(model, *given)
        pixels, true = given[:2]
        verdicts = {
            name: told.pop(name) if name in told else right(model, seen, true, batch_size)
            for name, seen in (("before", pixels), ("after", found))
        }
    told = {
        name: value.cpu() if isinstance(value, torch.Tensor) else value
        for name, value in told.items()
    }
    return Outcome(found.cpu(), verdicts["before"].cpu(), verdicts["after"].cpu(), **told)


@contextlib.contextmanager
def _prepared(model, images, labels, attack, eps, batch_size, options):
    """Everything checked, the network in the state to be attacked; yields the arguments of
    :func:`_adversarial`.
    """
    size, options = _size(eps), checked_options(attack, options)
    _whole("batch_size", batch_size)
    pixels = as_pixels(model, images, labels)
    parameter = next(model.parameters())
    with with_gradients(model):
        pixels, true = (
            pixels.detach().to(parameter).clone(),
            labels.to(parameter.device),
        )  # whatever the network does to its input
        yield pixels, true, attack, size, batch_size, options


def _adversarial(model, images, labels, attack, size, batch_size, options):
    """The attacked images, and what the attack can tell beside them: names and values of an
    Outcome.
    """
    if attack not in BY_GRADIENT:  # these look at their own first logits
        with torch.no_grad():
            classes = _checked(model(images[:8]), model(images[:8]), labels)
    if attack == "square":
        found, after, queries = square(
            model, images, labels, size, batch_size=batch_size, **options
        )
        told = {"before": queries > 0, "after": after, "queries": queries}
    elif attack == "autoattack":
        found, told = _autoattack(model, images, labels, size, batch_size, classes, **options)
    elif attack == "square_torchattacks":
        found, told = _square_torchattacks(model, images, labels, size, batch_size, **options), {}
    else:
        found, told = _by_gradient(model, images, labels, size, attack, batch_size, **options)
    if not ((found - images).abs().max() <= size + 1e-6 and found.min() >= 0 and found.max() <= 1):
        raise RuntimeError(
            f"{attack} left the ball of eps={size:g} or the range [0, 1]: do not use its images"
        )
    return found.detach(), told


def evaluate(
    model,
    images: torch.Tensor,
    labels: torch.Tensor,
    attack: str = "fgsm",
    eps: str | float = "8/255",
    *,
    batch_size: int = 200,
    **options,
) -> dict:
    """Attack a network and count; arguments and errors as for :func:`run`.

    Returns:
        Counts of images: ``images``, ``clean_correct`` before the attack, ``fooled`` (right before,
        wrong after), ``misclassified`` (wrong before), ``turned_right`` (wrong before, right after:
        the attacks by gradient move those images too). In percent of all images:
        ``clean_accuracy``; ``accuracy_after``, right after the attack, as the paper counts; and
        ``robust_accuracy``, right before and after. ``correct``: packed verdict on every image
        after the attack. Attacks by gradient: ``zero_gradient``, images of which no pixel has a
        gradient, so that the attack says nothing about them. Square: ``fooled_at``, query -> images
        that it felled. Autoattack: ``left``, images still right after each of its parts.
    """
    outcome = run(model, images, labels, attack, eps, batch_size=batch_size, **options)
    before, after, count = outcome.before, outcome.after, len(labels)
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
        felled, images_each = outcome.queries[before & ~after].unique(return_counts=True)
        result["fooled_at"] = {
            str(query): number for query, number in zip(felled.tolist(), images_each.tolist())
        }
    if outcome.left is not None:
        result["left"] = outcome.left
    return result


def query_curve(result: dict, queries: int) -> list[float]:
    """Accuracy in percent of all images after 0, 1, ... ``queries`` evaluations, from a result of
    ``square``.
    """
    left, curve = result["clean_correct"], []
    for query in range(queries + 1):
        left -= result["fooled_at"].get(str(query), 0)
        curve.append(100 * left / result["images"])
    return curve


def settings(
    attack: str,
    eps: str,
    *,
    images: int,
    image_seed: int,
    checksum: str,
    batch_size: int,
    **options,
) -> dict:
    """What identifies an attack on a network in its record: attack, version, size, images, and the
    attack's options.
    """
    version = (
        f"rmlib {__version__}"
        if attack in OURS
        else f"torchattacks {metadata.version('torchattacks')}"
    )
    return {
        "attack": attack,
        "library": version,
        "eps": eps,
        "images": images,
        "image_seed": image_seed,
        "checksum": checksum,
        "batch_size": batch_size,
        **checked_options(attack, options),
    }


def checked_options(attack: str, options: dict) -> dict:
    """The options of an attack, defaults filled in.

    Raises:
        UserError: unknown attack, an option that it does not have, a count below 1.
    """
    if attack not in OPTIONS:
        raise UserError(f"attack={attack!r}: {nearest(attack, ATTACKS)}")
    for name, value in options.items():
        if name not in OPTIONS[attack]:
            owners = [other for other in ATTACKS if name in OPTIONS[other]]
            raise UserError(
                f"{name}={value} does nothing for attack '{attack}'"
                + (f" (it belongs to {', '.join(owners)})" if owners else "")
            )
        _whole(name, value, 0 if name == "seed" else 1)
    return OPTIONS[attack] | options


def _whole(name, value, least=1):
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise UserError(f"{name}={value!r}: expected a whole number of at least {least}")


@torch.no_grad()
def right(model, images, labels, batch_size: int) -> torch.Tensor:
    """Whether the network has each image right, (N,) bool: the true logit above every other one;
    for a model in eval mode.
    """
    return torch.cat(
        [
            margins(model(batch), true) > 0
            for batch, true in zip(images.split(batch_size), labels.split(batch_size))
        ]
    )


def _size(eps):
    try:
        return float(Fraction(eps_text(eps)))
    except ValueError as error:
        raise UserError(f"eps={eps}: {error}") from None


def _checked(logits, again, labels):
    """The number of classes of a network that can be attacked, from its logits for some images, and
    for the first of them once more.
    """
    if not isinstance(logits, torch.Tensor) or logits.dim() != 2:
        raise UserError(
            f"the network returns {getattr(logits, 'shape', type(logits).__name__)}: expected"
            " logits (N, classes)"
        )
    if not logits.isfinite().all():
        raise UserError("the network returns logits that are not finite: its training diverged")
    if int(labels.max()) >= logits.shape[1]:
        raise UserError(
            f"class {int(labels.max())} cannot be attacked: the network has {logits.shape[1]}"
            " classes"
        )
    if logits.min() >= 0 and torch.allclose(
        logits.sum(1), torch.ones_like(logits[:, 0]), atol=1e-4
    ):
        raise UserError(
            "the model returns probabilities: attacks need its logits, so take the softmax away"
        )
    if (again - logits[: len(again)]).abs().max() > 1e-3 * logits.abs().max():
        raise UserError(
            "the network answers differently when it is asked again (noise, or dropout that stays"
            " on): every attack would count its luck; attack the mean of several answers, or switch"
            " the randomness off"
        )
    return logits.shape[1]


class _Watched(torch.nn.Module):
    """A network that notes, at the first forward of every batch, its logits and which images have
    no gradient at all.
    """

    def __init__(self, model, labels):
        super().__init__()
        self.model, self.labels, self.fresh, self.logits, self.zero = model, labels, False, [], []
        self.eval()  # else torchattacks would "restore" train mode between two batches

    def forward(self, images):
        logits = self.model(images)
        if self.fresh:
            self.fresh = False
            if not self.logits:
                with torch.no_grad():
                    _checked(logits.detach(), self.model(images[:2]), self.labels)
            self.logits.append(logits.detach())
            images.register_hook(
                lambda gradient: self.zero.append(~(gradient.abs() > 0).flatten(1).any(1))
            )  # zero or no number
        return logits


def _by_gradient(model, images, labels, size, attack, batch_size, **options):
    watched = _Watched(model, labels)
    if attack == "fgsm":
        method = torchattacks.FGSM(watched, eps=size)
    elif attack == "pgd":
        method = torchattacks.PGD(watched, eps=size, alpha=size / 8, random_start=False, **options)
    else:
        method = lambda batch, true: _fgsm_on_margin(watched, batch, true, size)  # noqa: E731
    found = []
    for batch, true in zip(images.split(batch_size), labels.split(batch_size)):
        watched.fresh = True
        try:
            found.append(method(batch, true))
        except RuntimeError as error:
            if "not have been used in the graph" in str(error) or "does not require grad" in str(
                error
            ):
                raise UserError(
                    "no gradient reaches the pixels through this network (a step, .detach() or"
                    f" numpy inside?), so {attack} cannot be run on it: only 'square' can"
                ) from error
            raise
    logits = torch.cat(watched.logits)
    if not logits.isfinite().all():
        raise UserError("the network returns logits that are not finite for some of the images")
    return torch.cat(found), {
        "before": margins(logits, labels) > 0,
        "zero_gradient": torch.cat(watched.zero),
    }


def _fgsm_on_margin(model, images, labels, size):
    images = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(margins(model(images), labels).sum(), images)
    return (images - size * gradient.sign()).clamp(0, 1).detach()


def _square_torchattacks(model, images, labels, size, batch_size, queries, seed):
    """The library seeds every batch alike; here each batch has its own seed, a function of ``seed``
    and its number.
    """
    found = []
    for number, (batch, true) in enumerate(zip(images.split(batch_size), labels.split(batch_size))):
        own_seed = stream(seed, "square attack", number).initial_seed()
        found.append(
            torchattacks.Square(model, norm="Linf", eps=size, n_queries=queries, seed=own_seed)(
                batch, true
            )
        )
    return torch.cat(found)


def _autoattack(model, images, labels, size, batch_size, classes, seed):
    if classes < 4 or images.dtype != torch.float32:
        raise UserError(
            f"autoattack needs a float32 network of at least 4 classes, this one is {images.dtype}"
            f" with {classes} classes"
        )
    images = images.contiguous()  # FAB makes views that channels_last does not allow
    targets, common = (
        min(classes, 10),
        {"norm": "Linf", "eps": size, "seed": seed},
    )  # nine targets, as in the paper
    parts = {
        "apgd-ce": torchattacks.APGD(model, steps=100, loss="ce", **common),
        "apgd-t": torchattacks.APGDT(model, steps=100, n_classes=targets, **common),
        "fab-t": torchattacks.FAB(
            model, steps=100, multi_targeted=True, n_classes=targets, **common
        ),
        "square": torchattacks.Square(model, n_queries=5000, **common),
    }
    before = right(model, images, labels, batch_size)
    found, left, told = images.clone(), before.nonzero().flatten(), {}
    for name, part in parts.items():
        for batch in left.split(batch_size) if len(left) else ():
            found[batch] = part(images[batch], labels[batch])
        left = left[right(model, found[left], labels[left], batch_size)] if len(left) else left
        told[name] = len(left)
    return found, {"before": before, "left": told}
