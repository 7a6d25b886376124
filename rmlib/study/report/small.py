"""The small-data study: its protocol, and its claims, which were named before its first run.

Real images, few of them, a narrow network, 60 epochs: an experiment that two cores finish in a
night. It is another experiment than the paper's. Its verdicts say nothing about a cell of the
paper's tables.
"""

from dataclasses import dataclass

import numpy as np
from scipy.stats import ttest_ind

from rmlib.study.names import LABELS
from rmlib.study.report import origin, stats

# what the parameters of a run must be to count here; method, seed, precision and threads are free
PROTOCOL = {
    "width": 8,
    "stem_stride": 1,
    "final_norm": False,
    "epochs": 60,
    "batch_size": 50,
    "schedule": "onecycle",
    "lr": 0.05,
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "test_images": None,
    "augment": True,
    "holdout": False,
    "alpha": 1.0,
    "average": False,
    "k": 2,
    "regions": "grid",
    "per_sample": False,
    "shared_partner": False,
    "shared_weight": False,
    "cutmix_prob": 1.0,
}
TRAIN_IMAGES = {"cifar10": 5000, "cifar100": 10_000}
SEEDS = {"cifar10": 10, "cifar100": 5}  # of the methods with the clean term, fixed before the runs
ABLATION_SEEDS = 5  # of the mixing methods without it
MARGIN = 1.0  # points of accuracy: what counts as no larger difference, fixed before the runs
IMAGES = 1000  # test images under attack
EPS, QUERIES = "8/255", 100


@dataclass(frozen=True)
class Claim:
    """A against B in one metric on one dataset; A and B are (mixer, clean_weight)."""

    metric: str  # accuracy, nll, ece, fgsm or square
    dataset: str
    a: tuple[str, float]
    b: tuple[str, float]
    runs: int  # of A and of B, fixed before
    primary: bool = False


def _claims():
    region, mixup, cutmix, doubled, plain = (
        ("region_mixup", 1.0),
        ("mixup", 1.0),
        ("cutmix", 1.0),
        ("none", 1.0),
        ("none", 0.0),
    )
    yield from (
        Claim("accuracy", "cifar10", region, other, SEEDS["cifar10"], True)
        for other in (mixup, cutmix)
    )
    yield from (
        Claim("accuracy", "cifar10", region, other, SEEDS["cifar10"]) for other in (doubled, plain)
    )
    yield from (
        Claim(metric, "cifar10", region, other, SEEDS["cifar10"])
        for metric in ("nll", "ece")
        for other in (mixup, cutmix, doubled, plain)
    )
    yield from (
        Claim("accuracy", "cifar10", (mixer, 1.0), (mixer, 0.0), ABLATION_SEEDS)
        for mixer in ("mixup", "cutmix", "region_mixup")
    )
    yield from (
        Claim(metric, "cifar10", region, other, SEEDS["cifar10"])
        for metric in ("fgsm", "square")
        for other in (mixup, cutmix, doubled)
    )
    yield Claim(
        "square", "cifar10", mixup, cutmix, SEEDS["cifar10"]
    )  # as the paper's Table 4 has it
    yield from (
        Claim("accuracy", "cifar100", region, other, SEEDS["cifar100"])
        for other in (mixup, cutmix, doubled)
    )


CLAIMS = tuple(_claims())
CAPTION = (
    "small data: 5 000 images of CIFAR-10 or 10 000 of CIFAR-100, width 8, 60 epochs; not the"
    " paper's experiment. A minus B with its 95 % interval by Welch's t, in percent points (NLL in"
    " nats). Number of seeds and margin were fixed before the runs. p of the two primary claims"
    " corrected by Holm, the others uncorrected. No larger difference: two one-sided tests at 5 %"
    f" against a margin of {MARGIN:g} point of accuracy. FGSM and Square: eps {EPS}, {QUERIES}"
    f" queries, {IMAGES} test images"
)


def under_protocol(runs):
    """The finished runs of the small-data study."""
    fits = (runs["status"] == "done") & (
        runs["config.train_images"] == runs["config.dataset"].map(TRAIN_IMAGES)
    )
    for name, value in PROTOCOL.items():
        fits &= runs[f"config.{name}"].map(
            lambda found, value=value: (None if found != found else found) == value
        )
    return runs[fits]


def values(runs, attacks, claim: Claim, side: tuple[str, float]) -> dict:
    """run_id -> value of one side of a claim, for the seeds that the claim fixes; ``runs`` are
    those under the protocol.
    """
    mixer, clean_weight = side
    fits = (
        (runs["config.dataset"] == claim.dataset)
        & (runs["config.mixer"] == mixer)
        & (runs["config.clean_weight"] == clean_weight)
        & (runs["config.seed"] < claim.runs)
    )
    own = runs[fits].sort_values("finished").drop_duplicates("config.seed", keep="last")
    if claim.metric not in ("fgsm", "square"):
        return dict(zip(own["run_id"], own[f"metrics.{claim.metric}"])) if len(own) else {}
    if not len(attacks):
        return {}
    fits = (
        (attacks["attack"] == claim.metric)
        & (attacks["eps"] == EPS)
        & (attacks["images"] == IMAGES)
        & attacks["run_id"].isin(own["run_id"])
    )
    if claim.metric == "square":
        fits &= attacks.get("queries") == QUERIES
    return dict(zip(attacks.loc[fits, "run_id"], attacks.loc[fits, "accuracy_after"]))


def claims(runs, attacks):
    """The claims with what the records say; None if no run is under the protocol."""
    runs, table, primary = under_protocol(runs), [], []
    if not len(runs):
        return None
    for claim in CLAIMS:
        sides = {
            f"{LABELS[mixer]}, clean_weight={weight:g}": values(
                runs, attacks, claim, (mixer, weight)
            )
            for mixer, weight in (claim.a, claim.b)
        }
        a, b = (np.array(list(each.values()), dtype=float) for each in sides.values())
        difference = stats.welch(a, b)
        whole = min(len(a), len(b)) >= claim.runs
        primary += (
            [difference.p if whole else 1.0] if claim.primary else []
        )  # one that is missing counts as p = 1
        row = {
            "claim": ("primary: " if claim.primary else "") + " minus ".join(sides),
            "in": claim.metric,
            "dataset": claim.dataset,
            "state": (claim, difference, a, b),
            "n": f"{len(a)}, {len(b)} of {claim.runs}",
            "A - B": _interval(difference),
            "p": difference.p,
        }
        origin.note(row, "A - B", sides)
        table.append(row)
    corrected = iter(stats.holm(primary))
    for row in table:
        claim, difference, a, b = row["state"]
        row["p"] = next(corrected) if claim.primary else row["p"]
        row["state"] = verdict(claim, difference, a, b, row["p"])
        row["p"] = round(row["p"], 4)
    return origin.table(table)


def _interval(difference):
    if difference.mean != difference.mean:
        return "–"
    return f"{difference.mean:+.3f}" + (
        f" [{difference.low:+.3f}, {difference.high:+.3f}]"
        if difference.low == difference.low
        else ""
    )


def verdict(claim: Claim, difference: stats.Difference, a, b, p: float) -> str:
    """What two samples say about a claim: A larger, A smaller, no larger difference than MARGIN
    (accuracy), or unresolved.
    """
    if not max(len(a), len(b)):
        return "not run"
    if min(len(a), len(b)) < claim.runs:
        return f"too few runs ({len(a)} and {len(b)} of {claim.runs})"
    if p < 0.05:
        return "resolved: larger" if difference.mean > 0 else "resolved: smaller"
    if claim.metric == "accuracy" and equivalent(a, b):
        return f"resolved: no difference larger than {MARGIN:g} point"
    return "unresolved"


def equivalent(a, b, margin: float = MARGIN) -> bool:
    """Whether two one-sided Welch tests at 5 % put the difference of means within ``margin``, a
    number named before the runs.
    """
    above = ttest_ind(a + margin, b, equal_var=False, alternative="greater").pvalue
    below = ttest_ind(a - margin, b, equal_var=False, alternative="less").pvalue
    return bool(max(above, below) < 0.05)
