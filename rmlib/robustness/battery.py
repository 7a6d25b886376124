"""The battery of attacks and corruptions on a trained network, as notebook 03 and the batches run
it, stored beside its record.
"""

from pathlib import Path

from rmlib.data import ImageSet
from rmlib.evaluate import sample
from rmlib.maps import battery as explanations
from rmlib.params import TrainParams
from rmlib.robustness import attacks, corruptions
from rmlib.robustness.masking import PURPOSE
from rmlib.robustness.params import FULL_ROBUSTNESS, RobustnessParams
from rmlib.study.runs import networks, records
from rmlib.study.runs.run import pick_device


def images_under(attack: str, settings: RobustnessParams) -> int | None:
    """How many images the attack gets, never more than the others; None: all."""
    own = {"pgd": settings.check_images, "autoattack": settings.autoattack_images}.get(attack)
    return min((count for count in (own, settings.images) if count is not None), default=None)


def battery(settings: RobustnessParams, classes: int) -> list[tuple[str, str]]:
    """Every (attack, eps) that the parameters ask for; AutoAttack's losses need four classes."""
    moved = [eps for eps in settings.eps if eps != "0"]
    return [
        *(("fgsm", eps) for eps in settings.eps),
        *((attack, eps) for attack in ("fgsm_margin", "pgd") for eps in moved),
        *(("square", eps) for eps in settings.square_eps),
        *(
            ("autoattack", eps)
            for eps in settings.autoattack_eps
            if settings.autoattack_images and classes >= 4
        ),
    ]


def attack(
    folder: Path, model, test_set: ImageSet, settings: RobustnessParams, name: str, eps: str
) -> dict:
    """The result of one attack on the network of a run, see
    :func:`rmlib.robustness.attacks.evaluate`.

    With ``settings.save`` it is stored in the run's folder, and loaded if it is there.
    ``test_set``: all images the run was evaluated on.
    """
    data = test_set[sample(len(test_set), images_under(name, settings), settings.seed, PURPOSE)]
    options = {
        option: value
        for option, value in (("queries", settings.queries), ("seed", settings.seed))
        if option in attacks.OPTIONS[name]
    }
    what = attacks.settings(
        name,
        eps,
        images=len(data),
        image_seed=settings.seed,
        checksum=data.checksum,
        batch_size=settings.batch_size,
        **options,
    )

    def compute():
        return attacks.evaluate(
            model, data.images, data.labels, name, eps, batch_size=settings.batch_size, **options
        )

    return records.measure(folder, "attacks", what, compute, _device(model), settings.save)


def corrupt(folder: Path, model, test_set: ImageSet, settings: RobustnessParams) -> dict:
    """The accuracy of a run's network under corruptions, see
    :func:`rmlib.robustness.corruptions.evaluate`; stored and loaded as attacks are.
    """
    data = test_set[sample(len(test_set), settings.images, settings.seed, PURPOSE)]
    what = corruptions.settings(
        images=len(data), image_seed=settings.seed, checksum=data.checksum, seed=settings.seed
    )

    def compute():
        return corruptions.evaluate(
            model, data.images, data.labels, batch_size=settings.batch_size, seed=settings.seed
        )

    return records.measure(folder, "corruptions", what, compute, _device(model), settings.save)


def measure(folder: Path, model, test_set: ImageSet, settings: RobustnessParams, log=print) -> None:
    """Everything that the parameters ask for, stored in the run's folder one by one: what is there
    already is not computed again.
    """
    for name, eps in battery(settings, len(test_set.classes)):
        if name == "autoattack":
            log(
                f"{name} {eps}: {images_under(name, settings)} images, seconds to minutes for each"
                " that survives"
            )
        result = attack(folder, model, test_set, settings, name, eps)
        log(f"{name} {eps}: {result['accuracy_after']:.2f} % of {result['images']} images")
    log(f"corruptions: {corrupt(folder, model, test_set, settings)['mean_accuracy']:.2f} %")


def after_training(params: TrainParams, log=print) -> None:
    """Measure the network of a finished run as the paper's networks are measured, on its own
    device: attacks and corruptions (FULL_ROBUSTNESS), then its maps
    (:func:`rmlib.maps.battery.after_training`).
    """
    count = params.measured_images
    fewer = (
        {}
        if count is None
        else {
            "images": count,
            "autoattack_images": min(FULL_ROBUSTNESS["autoattack_images"], count // 20),
        }
    )
    settings = RobustnessParams(
        **FULL_ROBUSTNESS | fewer,
        root=params.root,
        device=params.device,
        threads=params.threads,
        save=True,
    )
    record = records.read(params.folder)
    root = (
        params.dataset.removeprefix("folder:")
        if params.dataset.startswith("folder:")
        else params.root
    )
    model = networks.load(params.folder).to(pick_device(params.device))
    test_set = networks.images_of(record, root)
    measure(params.folder, model, test_set, settings, log)
    explanations.after_training(params, model, test_set, log)


def _device(model):
    return next(model.parameters()).device.type
