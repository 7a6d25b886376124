"""How robust a trained network is: the attacks and corruptions of 03_robustness, stored beside its record, and whether FGSM can be believed.

FGSM says little on its own: where a network is sure of itself the gradient of its cross entropy vanishes, and the attack stands
still. So stronger attacks stand beside it, on the same images, and :func:`check` says what they contradict (after the advice of
Carlini et al. 2019, https://arxiv.org/abs/1902.06705).
"""

import functools
from pathlib import Path

import numpy as np
from scipy.stats import binomtest

from rmlib import attacks, corruptions, networks, records
from rmlib.data import ImageSet
from rmlib.evaluate import sample, unpack_bits
from rmlib.params import FULL_ROBUSTNESS, RobustnessParams, TrainParams
from rmlib.train import pick_device

PURPOSE = "attacked images"  # of the stream that draws them: a smaller sample is part of a larger one
LEVEL = 0.01  # of the one-sided sign test over images behind a warning
NO_GRADIENT = 0.01  # share of images without a gradient that is worth a warning
WARNINGS = ("images without gradient", "the same step on the margin fools more", "20 steps fool fewer than one",
            "Square, without gradients, fools more", "overstated")
STRONGER = ("fgsm_margin", "pgd", "square", "autoattack")  # attacks that FGSM is checked against


def images_under(attack: str, settings: RobustnessParams) -> int | None:
    """How many images the attack gets, never more than the others; None: all."""
    own = {"pgd": settings.check_images, "autoattack": settings.autoattack_images}.get(attack)
    return min((count for count in (own, settings.images) if count is not None), default=None)


def battery(settings: RobustnessParams, classes: int) -> list[tuple[str, str]]:
    """Every (attack, eps) that the parameters ask for; AutoAttack's losses need four classes."""
    moved = [eps for eps in settings.eps if eps != "0"]
    return [*(("fgsm", eps) for eps in settings.eps), *((attack, eps) for attack in ("fgsm_margin", "pgd") for eps in moved),
            *(("square", eps) for eps in settings.square_eps),
            *(("autoattack", eps) for eps in settings.autoattack_eps if settings.autoattack_images and classes >= 4)]


def attack(folder: Path, model, test_set: ImageSet, settings: RobustnessParams, name: str, eps: str) -> dict:
    """The result of one attack on the network of a run, see :func:`rmlib.attacks.evaluate`.

    With ``settings.save`` it is stored in the run's folder, and loaded if it is there. ``test_set``: all images the run was evaluated on.
    """
    data = test_set[sample(len(test_set), images_under(name, settings), settings.seed, PURPOSE)]
    options = {option: value for option, value in (("queries", settings.queries), ("seed", settings.seed)) if option in attacks.OPTIONS[name]}
    what = attacks.settings(name, eps, images=len(data), image_seed=settings.seed, checksum=data.checksum, batch_size=settings.batch_size, **options)

    def compute():
        return attacks.evaluate(model, data.images, data.labels, name, eps, batch_size=settings.batch_size, **options)

    return records.measure(folder, "attacks", what, compute, _device(model), settings.save)


def corrupt(folder: Path, model, test_set: ImageSet, settings: RobustnessParams) -> dict:
    """The accuracy of a run's network under corruptions, see :func:`rmlib.corruptions.evaluate`; stored and loaded as attacks are."""
    data = test_set[sample(len(test_set), settings.images, settings.seed, PURPOSE)]
    what = corruptions.settings(images=len(data), image_seed=settings.seed, checksum=data.checksum, seed=settings.seed)

    def compute():
        return corruptions.evaluate(model, data.images, data.labels, batch_size=settings.batch_size, seed=settings.seed)

    return records.measure(folder, "corruptions", what, compute, _device(model), settings.save)


def measure(folder: Path, model, test_set: ImageSet, settings: RobustnessParams, log=print) -> None:
    """Everything that the parameters ask for, stored in the run's folder one by one: what is there already is not computed again."""
    for name, eps in battery(settings, len(test_set.classes)):
        result = attack(folder, model, test_set, settings, name, eps)
        log(f"{name} {eps}: {result['accuracy_after']:.2f} % of {result['images']} images")
    log(f"corruptions: {corrupt(folder, model, test_set, settings)['mean_accuracy']:.2f} %")


def after_training(params: TrainParams, log=print) -> None:
    """Measure the network of a finished run as the paper's networks are measured (FULL_ROBUSTNESS), on its own device."""
    settings = RobustnessParams(**FULL_ROBUSTNESS, root=params.root, device=params.device, threads=params.threads, save=True)
    record = records.read(params.folder)
    root = params.dataset.removeprefix("folder:") if params.dataset.startswith("folder:") else params.root
    model = networks.load(params.folder).to(pick_device(params.device))
    measure(params.folder, model, networks.images_of(record, root), settings, log)


def _device(model):
    return next(model.parameters()).device.type


def check(results: dict, eps: str, total: int, seed: int) -> dict:
    """Whether the FGSM number of a network at one size of perturbation can be believed.

    Args:
        results: (attack, eps) -> result of :func:`rmlib.attacks.evaluate`, "fgsm" and at least one stronger attack at ``eps`` among them.
        total: images of the test set. seed: that drew the attacked ones.

    Returns:
        ``zero_gradient``: percent of the images; ``fgsm`` and ``strongest``: percent right after FGSM, and after every attack at this
        eps, on the images that all but AutoAttack saw; ``warnings``: those of WARNINGS that apply, none where nothing contradicts FGSM.
    """
    fgsm = results["fgsm", eps]
    seen = {name: results[name, eps] for name in STRONGER if (name, eps) in results}
    places = {name: sample(total, result["images"], seed, PURPOSE).numpy() for name, result in {"fgsm": fgsm, **seen}.items()}
    right = {name: unpack_bits(result["correct"], result["images"]) for name, result in {"fgsm": fgsm, **seen}.items()}

    def pair(first, second):
        """Verdicts of two attacks on the images that both saw."""
        _, one, two = np.intersect1d(places[first], places[second], assume_unique=True, return_indices=True)
        return right[first][one], right[second][two]

    def leaves_more(first, second):
        """Whether more images survive the first attack than the second, beyond chance (sign test)."""
        a, b = pair(first, second)
        only = int((a & ~b).sum()), int((~a & b).sum())
        return sum(only) > 0 and binomtest(only[0], sum(only), alternative="greater").pvalue < LEVEL

    many = [name for name in right if name != "autoattack"]
    common = functools.reduce(np.intersect1d, [places[name] for name in many])
    after = {name: right[name][np.isin(places[name], common)] for name in many}
    survivors = np.logical_and.reduce(list(after.values()))
    zero = fgsm["zero_gradient"] / fgsm["images"]
    signs = (zero >= NO_GRADIENT, "fgsm_margin" in seen and leaves_more("fgsm", "fgsm_margin"), "pgd" in seen and leaves_more("pgd", "fgsm"),
             "square" in seen and leaves_more("fgsm", "square"), any(leaves_more("fgsm", name) for name in seen))
    warnings = [text for text, found in zip(WARNINGS, signs) if found]
    return {"zero_gradient": 100 * zero, "fgsm": 100 * after["fgsm"].mean(), "strongest": 100 * survivors.mean(), "images": len(common),
            "warnings": warnings}
