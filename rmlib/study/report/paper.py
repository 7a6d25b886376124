"""What the paper reports: its protocol, its tables and its claims.

Saha & Garain 2024, "Region Mixup", ICLR Tiny Papers, https://arxiv.org/abs/2409.15028. The numbers
were typed from the paper once, here; LOST marks cells that the copy of the paper used here does not
show. A cell or claim gets a verdict only from records of its own dataset under the paper's
protocol; else it says "not run".
"""

import pandas as pd

from rmlib.datasets.sources import SIZES
from rmlib.params import complete
from rmlib.study.names import LABELS
from rmlib.study.report.claims import Claim, fit_protocol

LOST = None
RUNS = 3  # "averaged over 3 runs"
METHODS = ("cutmix", "mixup", "region_mixup")
DATASETS = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "tiny-imagenet": "Tiny ImageNet"}

# what the parameters of a run must be to stand beside the paper; mixer, clean_weight, seed,
# precision and threads are free
PROTOCOL = {
    "width": 64,
    "stem_stride": 1,
    "final_norm": False,
    "epochs": 400,
    "batch_size": 128,
    "schedule": "multistep",
    "milestones": [0.25, 0.375],
    "lr": 0.1,
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "train_images": None,
    "test_images": None,
    "allow_partial": False,
    "augment": True,
    "holdout": False,
    "average": False,
    "k": 2,
    "alpha": 1.0,
    "regions": "grid",
    "per_sample": False,
    "shared_partner": False,
    "shared_weight": False,
    "cutmix_prob": 1.0,
}

# training and test images of the whole datasets; checksum of the decoded pixels where the whole
# dataset has been read
IMAGES = {name: (classes * train, classes * test) for name, (classes, train, test) in SIZES.items()}
CHECKSUMS = {"cifar10": "449998bd777e46bba2af7d60c88a70deecb13a8b17e0eaa9c86d474cab669c59"}

# dataset -> method -> (mean, sample standard deviation) in percent
ACCURACY = {
    "cifar10": {"cutmix": (95.82, 0.19), "mixup": (95.89, 0.12), "region_mixup": (96.19, 0.05)},
    "cifar100": {"cutmix": (79.03, LOST), "mixup": (78.1, LOST), "region_mixup": (78.75, 0.28)},
    "tiny-imagenet": {
        "cutmix": (65.76, LOST),
        "mixup": (65.45, 0.42),
        "region_mixup": (66.16, 0.50),
    },
}
ABLATION = {
    0.0: {"cutmix": LOST, "mixup": LOST, "region_mixup": LOST},
    1.0: {"cutmix": LOST, "mixup": (78.1, LOST), "region_mixup": (78.75, 0.28)},
}
FGSM = {
    "cifar10": {"cutmix": (36.15, 2.73), "mixup": (52.40, 6.60), "region_mixup": (58.96, 5.23)},
    "cifar100": {"cutmix": (13.08, 0.87), "mixup": (18.56, 1.22), "region_mixup": (22.77, 1.20)},
    "tiny-imagenet": {"cutmix": (2.69, 0.19), "mixup": (1.71, 0.18), "region_mixup": (2.20, 0.22)},
}
SQUARE = {
    "cifar10": {"cutmix": (31.76, 1.70), "mixup": (52.18, 1.18), "region_mixup": (51.35, 1.99)},
    "cifar100": {"cutmix": (10.54, 0.59), "mixup": (20.03, 0.46), "region_mixup": (18.70, 1.05)},
    "tiny-imagenet": {
        "cutmix": (17.03, 0.18),
        "mixup": (24.78, 0.19),
        "region_mixup": (25.02, 0.69),
    },
}

METRICS = {"accuracy": "accuracy", "fgsm": "FGSM", "square": "Square", "speed": "speed"}
ATTACKS = {"fgsm": FGSM, "square": SQUARE}

# what published runs of a similar network and length reached, in percent (OpenMixup's tables at 200
# to 400 epochs, Awesome-Mixup's of PreAct ResNet-18, mixup-cifar10's and kuangliu's READMEs); a
# network more than MARGIN points below the band points to a mistake
BANDS = {
    "cifar10": {"mixup": (95.3, 96.6), "cutmix": (95.5, 96.2)},
    "cifar100": {"mixup": (77.5, 79.4), "cutmix": (76.8, 79.6)},
    "tiny-imagenet": {"mixup": (63.5, 66.0), "cutmix": (64.5, 66.5)},
}
MARGIN = 1.0


def _claims():
    region, mixup, cutmix = ("region_mixup", 1.0), ("mixup", 1.0), ("cutmix", 1.0)
    yield from (
        Claim("Region Mixup > Mixup", "accuracy", name, region, mixup, 6, True)
        for name in ("cifar10", "cifar100")
    )
    yield Claim("Region Mixup > Mixup", "accuracy", "tiny-imagenet", region, mixup)
    yield from (
        Claim("Region Mixup > CutMix", "accuracy", name, region, cutmix)
        for name in ("cifar10", "tiny-imagenet")
    )
    yield Claim("CutMix > Region Mixup", "accuracy", "cifar100", cutmix, region)
    yield from (
        Claim(
            f"with the clean loss > without, {LABELS[mixer]}",
            "accuracy",
            "cifar100",
            (mixer, 1.0),
            (mixer, 0.0),
        )
        for mixer in ("mixup", "region_mixup")
    )
    yield from (Claim("Region Mixup > Mixup", "fgsm", name, region, mixup) for name in DATASETS)
    yield from (
        Claim("Region Mixup > CutMix", "fgsm", name, region, cutmix)
        for name in ("cifar10", "cifar100")
    )
    yield Claim("CutMix > Region Mixup", "fgsm", "tiny-imagenet", cutmix, region)
    yield from (Claim("Region Mixup > CutMix", "square", name, region, cutmix) for name in DATASETS)
    yield from (Claim("Mixup > CutMix", "square", name, mixup, cutmix) for name in DATASETS)
    yield Claim("Region Mixup at most 5 % slower", "speed", "cifar10", region, mixup, margin=5.0)


CLAIMS = tuple(_claims())


def under_protocol(runs):
    """The finished runs whose every parameter is the paper's, on the whole dataset."""
    fits = (runs["status"] == "done") & runs["config.dataset"].isin(list(DATASETS))
    runs = runs[fits & fit_protocol(runs, PROTOCOL)]
    whole = [
        (row["data.train_images"], row["data.test_images"]) == IMAGES.get(row["config.dataset"])
        and row["data.checksum"] == CHECKSUMS.get(row["config.dataset"], row["data.checksum"])
        for row in runs.to_dict("records")
    ]
    return runs[pd.Series(whole, index=runs.index, dtype=bool)]


def below_band(record) -> str | None:
    """One line if a run under the paper's protocol ended more than MARGIN points below what
    published runs reached, else None.
    """
    config = complete(record.config)
    band = BANDS.get(config["dataset"], {}).get(config["mixer"])
    if (
        record.status != "done"
        or band is None
        or any(config[name] != value for name, value in PROTOCOL.items())
    ):
        return None
    low, high = band
    if record.metrics["accuracy"] >= low - MARGIN:
        return None
    return (
        f"more than {MARGIN:g} point below the {low:g} to {high:g} % of published runs: look for a"
        " mistake before anything else"
    )
