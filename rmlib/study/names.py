"""The names of methods in tables and figures, and what makes a method and an experiment."""

from rmlib.params import TrainParams, complete

LABELS = {"none": "No mixing", "mixup": "Mixup", "cutmix": "CutMix", "region_mixup": "Region Mixup"}
# methods of explanation
MAPS = {"gradcam++": "Grad-CAM++", "hirescam": "HiResCAM"}
_OF_A_GRID = ("regions", "per_sample", "shared_partner", "shared_weight")
# parameters of 02_training that make a method; runs that differ in these and the seed alone form
# one experiment
METHOD = ("mixer", "k", "alpha", *_OF_A_GRID, "cutmix_prob", "clean_weight", "average")
# parameters that leave the trained network as it is
WITHOUT_EFFECT = ("eval_every", "snapshots", "bn_recalibration")


def experiment(config: dict) -> dict:
    """What runs must share to be compared: all but method, seed, and what changes no network."""
    others = {*METHOD, "seed", *WITHOUT_EFFECT}
    return {name: value for name, value in complete(config).items() if name not in others}


def method_name(config: dict) -> str:
    """A method with its settings that are no defaults, such as 'Region Mixup, k=4, average'."""
    config = complete(config)
    words = [LABELS[config["mixer"]]]
    for name in METHOD[1:]:
        value = config[name]
        if value != TrainParams.model_fields[name].default:
            text = f"{value:g}" if isinstance(value, float) else str(value)
            words.append(name if value is True else f"{name}={text}")
    return ", ".join(words)
