"""The attacks and corruptions of notebook 03 and of the batches, as tasks on a network.

:mod:`rmlib.study.runs.measured` stores what they find.
"""

from collections.abc import Iterator
from functools import partial

from rmlib.data import ImageSet
from rmlib.measuring import Task, drawn
from rmlib.robustness import attacks, corruptions
from rmlib.robustness.masking import PURPOSE
from rmlib.robustness.params import RobustnessParams


def images_under(attack: str, settings: RobustnessParams) -> int | None:
    """How many images the attack gets, never more than the others; None: all."""
    own = {"pgd": settings.check_images, "autoattack": settings.autoattack_images}.get(attack)
    return min((count for count in (own, settings.images) if count is not None), default=None)


def battery(settings: RobustnessParams, classes: int) -> list[tuple[str, str]]:
    """Every (attack, eps) that the parameters ask for; AutoAttack's losses need four classes."""
    moved = [eps for eps in settings.eps if eps != "0"]
    last = settings.autoattack_eps if settings.autoattack_images and classes >= 4 else []
    return [
        *(("fgsm", eps) for eps in settings.eps),
        *((attack, eps) for attack in ("fgsm_margin", "pgd") for eps in moved),
        *(("square", eps) for eps in settings.square_eps),
        *(("autoattack", eps) for eps in last),
    ]


def attack(model, test_set: ImageSet, settings: RobustnessParams, name: str, eps: str) -> Task:
    """One attack on a network by images of its whole test set, see :func:`attacks.evaluate`."""
    data, images = drawn(test_set, images_under(name, settings), settings.seed, PURPOSE)
    given = {"queries": settings.queries, "seed": settings.seed}
    options = {"batch_size": settings.batch_size}
    options |= {key: given.get(key, value) for key, value in attacks.OPTIONS[name].items()}
    what = {"attack": name, "library": attacks.library(name), "eps": eps} | images | options
    compute = partial(attacks.evaluate, model, data.images, data.labels, name, eps, **options)
    return Task(model, "attacks", what, compute)


def corrupt(model, test_set: ImageSet, settings: RobustnessParams) -> Task:
    """A network under all corruptions, see :func:`rmlib.robustness.corruptions.evaluate`."""
    data, images = drawn(test_set, settings.images, settings.seed, PURPOSE)
    what = {"corruptions": list(corruptions.CORRUPTIONS)} | images | {"seed": settings.seed}
    options = {"batch_size": settings.batch_size, "seed": settings.seed}
    compute = partial(corruptions.evaluate, model, data.images, data.labels, **options)
    return Task(model, "corruptions", what, compute)


def tasks(model, test_set: ImageSet, settings: RobustnessParams) -> Iterator[Task]:
    """Everything that the parameters ask for, one by one."""
    for name, eps in battery(settings, len(test_set.classes)):
        yield attack(model, test_set, settings, name, eps)
    yield corrupt(model, test_set, settings)
