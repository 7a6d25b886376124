"""The names of methods in tables and figures, and what makes a method and an experiment."""

from rmlib.params import TrainParams, complete, config_id

# of a mixer alone; a method without mixing is called PLAIN or DOUBLED
LABELS = {"none": "No mixing", "mixup": "Mixup", "cutmix": "CutMix", "region_mixup": "Region Mixup"}
PLAIN, DOUBLED = "plain training", "clean loss twice (control)"
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


def method_id(config: dict) -> str:
    """Equal for runs that differ in nothing but their seed and what changes no network."""
    others = {"seed", *WITHOUT_EFFECT}
    return config_id({name: x for name, x in complete(config).items() if name not in others})


def longer(config: dict) -> list[dict]:
    """Plain training with the compute of a run that mixes beside the clean loss: twice the epochs;
    [] for another run.
    """
    if config["mixer"] == "none" or not config["clean_weight"]:
        return []
    plain = {name: TrainParams.model_fields[name].default for name in METHOD}
    plain |= {"mixer": "none", "clean_weight": 0.0, "epochs": 2 * config["epochs"]}
    return [config | plain]


def label(config: dict) -> str:
    """A mixer's name; without mixing that of the loss."""
    if config["mixer"] == "none" and not config["average"]:
        return {0: PLAIN, 1: DOUBLED}.get(config["clean_weight"], LABELS["none"])
    return LABELS[config["mixer"]]


def method_name(config: dict) -> str:
    """A method with its settings that are no defaults, such as 'Region Mixup, k=4, average'."""
    config = complete(config)
    words = [label(config)]
    if words[0] in (PLAIN, DOUBLED):
        return words[0]
    for name in METHOD[1:]:
        value = config[name]
        if value != TrainParams.model_fields[name].default:
            text = f"{value:g}" if isinstance(value, float) else str(value)
            words.append(name if value is True else f"{name}={text}")
    return ", ".join(words)
