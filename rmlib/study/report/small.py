"""The small-data study: its protocol, and its claims, which were named before its first run.

Real images, few of them, a narrow network, 60 epochs: an experiment that two cores finish in a
night. It is another experiment than the paper's. Its verdicts say nothing about a cell of the
paper's tables.
"""

from scipy.stats import ttest_ind

from rmlib.study.report import stats
from rmlib.study.report.claims import (
    EPS,
    QUERIES,
    Claim,
    fit_protocol,
    judged,
    numbers,
    side_name,
)
from rmlib.study.report.values import Table

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


def _claim(metric, dataset, a, b, runs, primary=False):
    return Claim(f"{side_name(a)} minus {side_name(b)}", metric, dataset, a, b, runs, primary)


def _claims():
    region, mixup, cutmix, doubled, plain = (
        ("region_mixup", 1.0),
        ("mixup", 1.0),
        ("cutmix", 1.0),
        ("none", 1.0),
        ("none", 0.0),
    )
    yield from (
        _claim("accuracy", "cifar10", region, other, SEEDS["cifar10"], True)
        for other in (mixup, cutmix)
    )
    yield from (
        _claim("accuracy", "cifar10", region, other, SEEDS["cifar10"]) for other in (doubled, plain)
    )
    yield from (
        _claim(metric, "cifar10", region, other, SEEDS["cifar10"])
        for metric in ("nll", "ece")
        for other in (mixup, cutmix, doubled, plain)
    )
    yield from (
        _claim("accuracy", "cifar10", (mixer, 1.0), (mixer, 0.0), ABLATION_SEEDS)
        for mixer in ("mixup", "cutmix", "region_mixup")
    )
    yield from (
        _claim(metric, "cifar10", region, other, SEEDS["cifar10"])
        for metric in ("fgsm", "square")
        for other in (mixup, cutmix, doubled)
    )
    yield _claim(
        "square", "cifar10", mixup, cutmix, SEEDS["cifar10"]
    )  # as the paper's Table 4 has it
    yield from (
        _claim("accuracy", "cifar100", region, other, SEEDS["cifar100"])
        for other in (mixup, cutmix, doubled)
    )


CLAIMS = tuple(_claims())
CAPTION = (
    "small data: 5 000 images of CIFAR-10 or 10 000 of CIFAR-100, width 8, 60 epochs; not the"
    " paper's experiment. A minus B with its 95 % interval by Welch's t, in percent points (NLL in"
    " nats). Number of seeds and margin were fixed before the runs. p of the two primary claims"
    " corrected by Holm; the others are resolved by their own p, uncorrected. No larger"
    f" difference: two one-sided tests at 5 % against a margin of {MARGIN:g} point of"
    f" accuracy. FGSM and Square: eps {EPS}, {QUERIES}"
    f" queries, {IMAGES} test images"
)


def under_protocol(runs):
    """The finished runs of the small-data study."""
    fits = runs["config.train_images"] == runs["config.dataset"].map(TRAIN_IMAGES)
    return runs[(runs["status"] == "done") & fits & fit_protocol(runs, PROTOCOL)]


def claims(runs, attacks) -> Table | None:
    """The claims with what the records say; None if no run is under the protocol."""
    runs = under_protocol(runs)
    if not len(runs):
        return None

    def sides_of(claim):
        # the seeds that the claim fixes
        own = runs[runs["config.seed"] < claim.runs]
        return [
            numbers(own, attacks, claim.metric, claim.dataset, side, images=IMAGES)
            for side in (claim.a, claim.b)
        ]

    def needs(claim):
        return (
            f"not run: needs seeds 0 to {claim.runs - 1} of both methods; rmlib batch"
            f" notebooks/batches/{claim.dataset}-small.yaml makes them"
        )

    heads = {claim.metric: claim.metric for claim in CLAIMS}, {name: name for name in SEEDS}
    return judged(CLAIMS, sides_of, verdict, needs, heads, decimals=3).captioned(CAPTION)


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
