"""What the paper reports: its protocol, its tables and its claims.

Saha & Garain 2024, "Region Mixup", ICLR Tiny Papers, https://arxiv.org/abs/2409.15028. The numbers
were typed from the paper once, here; LOST marks values that the copy used here does not show. A
value or claim gets a verdict only from records of its own dataset under the paper's protocol; else
it says "not run".
"""

from dataclasses import replace

import pandas as pd

from rmlib.datasets.sources import SIZES
from rmlib.params import complete
from rmlib.study.names import LABELS
from rmlib.study.report.claims import COMMON, Claim, fit_protocol

LOST = None
RUNS = 3  # "averaged over 3 runs"
METHODS = ("cutmix", "mixup", "region_mixup")
DATASETS = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "tiny-imagenet": "Tiny ImageNet"}

# what the parameters of a run must be to stand beside the paper
PROTOCOL = COMMON | {
    "width": 64,
    "epochs": 400,
    "batch_size": 128,
    "schedule": "multistep",
    "milestones": [0.25, 0.375],
    "lr": 0.1,
    "train_images": None,
    "allow_partial": False,
}

# training and test images of the whole datasets; checksum of the decoded pixels where the whole
# dataset has been read
IMAGES = {name: (classes * train, classes * test) for name, (classes, train, test) in SIZES.items()}
CHECKSUMS = {"cifar10": "449998bd777e46bba2af7d60c88a70deecb13a8b17e0eaa9c86d474cab669c59"}

# dataset -> method -> (mean, sample standard deviation) in percent
ACCURACY = {
    "cifar10": dict(cutmix=(95.82, 0.19), mixup=(95.89, 0.12), region_mixup=(96.19, 0.05)),
    "cifar100": dict(cutmix=(79.03, LOST), mixup=(78.1, LOST), region_mixup=(78.75, 0.28)),
    "tiny-imagenet": dict(cutmix=(65.76, LOST), mixup=(65.45, 0.42), region_mixup=(66.16, 0.50)),
}
ABLATION: dict[float, dict] = {
    0.0: dict(cutmix=LOST, mixup=LOST, region_mixup=LOST),
    1.0: dict(cutmix=LOST, mixup=(78.1, LOST), region_mixup=(78.75, 0.28)),
}
FGSM = {
    "cifar10": dict(cutmix=(36.15, 2.73), mixup=(52.40, 6.60), region_mixup=(58.96, 5.23)),
    "cifar100": dict(cutmix=(13.08, 0.87), mixup=(18.56, 1.22), region_mixup=(22.77, 1.20)),
    "tiny-imagenet": dict(cutmix=(2.69, 0.19), mixup=(1.71, 0.18), region_mixup=(2.20, 0.22)),
}
SQUARE = {
    "cifar10": dict(cutmix=(31.76, 1.70), mixup=(52.18, 1.18), region_mixup=(51.35, 1.99)),
    "cifar100": dict(cutmix=(10.54, 0.59), mixup=(20.03, 0.46), region_mixup=(18.70, 1.05)),
    "tiny-imagenet": dict(cutmix=(17.03, 0.18), mixup=(24.78, 0.19), region_mixup=(25.02, 0.69)),
}

METRICS = {"accuracy": "accuracy", "fgsm": "FGSM", "square": "Square", "speed": "speed"}
ATTACKS: dict[str, dict] = {"fgsm": FGSM, "square": SQUARE}

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

    def claim(metric, names, a, b):
        text = f"{LABELS[a[0]]} > {LABELS[b[0]]}"
        return [Claim(text, metric, name, a, b) for name in names]

    for primary in claim("accuracy", ("cifar10", "cifar100"), region, mixup):
        yield replace(primary, runs=6, primary=True)
    yield from claim("accuracy", ("tiny-imagenet",), region, mixup)
    yield from claim("accuracy", ("cifar10", "tiny-imagenet"), region, cutmix)
    yield from claim("accuracy", ("cifar100",), cutmix, region)
    for mixer in ("mixup", "region_mixup"):
        text = f"with the clean loss > without, {LABELS[mixer]}"
        yield Claim(text, "accuracy", "cifar100", (mixer, 1.0), (mixer, 0.0))
    yield from claim("fgsm", DATASETS, region, mixup)
    yield from claim("fgsm", ("cifar10", "cifar100"), region, cutmix)
    yield from claim("fgsm", ("tiny-imagenet",), cutmix, region)
    yield from claim("square", DATASETS, region, cutmix)
    yield from claim("square", DATASETS, mixup, cutmix)
    yield Claim("Region Mixup at most 5 % slower", "speed", "cifar10", region, mixup, margin=5.0)


CLAIMS = tuple(_claims())


def under_protocol(runs, status: str = "done"):
    """The finished runs whose every parameter is the paper's, on the whole dataset, of one
    precision for each dataset.
    """
    fits = (runs["status"] == status) & runs["config.dataset"].isin(list(DATASETS))
    runs = runs[fits & fit_protocol(runs, PROTOCOL)]
    whole = [
        (row["data.train_images"], row["data.test_images"]) == IMAGES.get(row["config.dataset"])
        and row["data.checksum"] == CHECKSUMS.get(row["config.dataset"], row["data.checksum"])
        for row in runs.to_dict("records")
    ]
    return of_one_precision(runs[pd.Series(whole, index=runs.index, dtype=bool)])


def of_one_precision(runs):
    """The runs of each dataset in the precision that most of them have, of equal numbers in fp32:
    no value pools two.
    """

    def most(precisions):
        return max(("fp32", "bf16"), key=list(precisions).count)

    chosen = runs.groupby("config.dataset")["config.precision"].transform(most)
    return runs[runs["config.precision"] == chosen]


def below_band(record) -> str | None:
    """One line if a run under the paper's protocol ended more than MARGIN points below what
    published runs reached, else None.
    """
    config = complete(record.config)
    band = BANDS.get(config["dataset"], {}).get(config["mixer"])
    fits = all(config[name] == value for name, value in PROTOCOL.items())
    if record.status != "done" or band is None or not fits:
        return None
    low, high = band
    if record.metrics["accuracy"] >= low - MARGIN:
        return None
    return (
        f"more than {MARGIN:g} point below the {low:g} to {high:g} % of published runs: look for a"
        " mistake before anything else"
    )
