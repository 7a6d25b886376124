"""The small-data study: its protocol, and its claims, which were named before its first run.

Real images, few of them, a narrow network, 60 epochs: an experiment that two cores finish in a
night. It is another experiment than the paper's. Its verdicts say nothing about a
value of the paper's tables.
"""

from statsmodels.stats.weightstats import ttost_ind

from rmlib.study.report import claims as named
from rmlib.study.report import paper, stats
from rmlib.study.report.claims import EPS, QUERIES, Claim, fit_protocol, numbers, side_name
from rmlib.study.report.values import Table

# what the parameters of a run must be to count here
PROTOCOL = named.COMMON | {
    "width": 8,
    "epochs": 60,
    "batch_size": 50,
    "schedule": "onecycle",
    "lr": 0.05,
    "precision": "fp32",
}
TRAIN_IMAGES = {"cifar10": 5000, "cifar100": 10_000}
SEEDS = {"cifar10": 10, "cifar100": 5}  # of the methods with the clean term, fixed before the runs
ABLATION_SEEDS = 5  # of the mixing methods without it
MARGIN = 1.0  # points of accuracy: what counts as no larger difference, fixed before the runs
IMAGES = 1000  # test images under attack

REGION, MIXUP, CUTMIX = ("region_mixup", 1.0), ("mixup", 1.0), ("cutmix", 1.0)
DOUBLED, PLAIN = ("none", 1.0), ("none", 0.0)


def _claim(metric, a, b, runs=SEEDS["cifar10"], primary=False, dataset="cifar10"):
    return Claim(f"{side_name(a)} minus {side_name(b)}", metric, dataset, a, b, runs, primary)


def _claims():
    for other in (MIXUP, CUTMIX):
        yield _claim("accuracy", REGION, other, primary=True)
    for other in (DOUBLED, PLAIN):
        yield _claim("accuracy", REGION, other)
    for metric in ("nll", "ece"):
        for other in (MIXUP, CUTMIX, DOUBLED, PLAIN):
            yield _claim(metric, REGION, other)
    for mixer in ("mixup", "cutmix", "region_mixup"):
        yield _claim("accuracy", (mixer, 1.0), (mixer, 0.0), ABLATION_SEEDS)
    for metric in ("fgsm", "square"):
        for other in (MIXUP, CUTMIX, DOUBLED):
            yield _claim(metric, REGION, other)
    # as the paper's Table 4 has it
    yield _claim("square", MIXUP, CUTMIX)
    for other in (MIXUP, CUTMIX, DOUBLED):
        yield _claim("accuracy", REGION, other, SEEDS["cifar100"], dataset="cifar100")


CLAIMS = tuple(_claims())
CAPTION = (
    "small data: 5 000 images of CIFAR-10 or 10 000 of CIFAR-100, width 8, 60 epochs; not the"
    " paper's experiment. A minus B with its 95 % interval by Welch's t (by pairs of equal seeds:"
    " in the CSV file), in percent points (NLL in nats). Number of seeds and margin were fixed"
    " before the runs. p of the two primary claims corrected by Holm; the others are resolved by"
    " their interval, uncorrected. No larger difference: two one-sided tests at 5 % against a"
    f" margin of {MARGIN:g} point of accuracy. FGSM and Square: eps {EPS}, {QUERIES} queries,"
    f" the same {IMAGES} test images"
)


def under_protocol(runs, settings: dict | None = None, status: str = "done"):
    """The finished runs of the small-data study; ``settings``: where they differ from PROTOCOL."""
    fits = runs["config.train_images"] == runs["config.dataset"].map(TRAIN_IMAGES)
    fits &= fit_protocol(runs, PROTOCOL | (settings or {}))
    return runs[(runs["status"] == status) & fits]


def command(dataset: str) -> str:
    """The command that runs the study on a dataset."""
    return f"rmlib batch notebooks/batches/{dataset}-small.yaml"


def claims(runs, attacks) -> Table | None:
    """The claims on the datasets that have a run under the protocol, with what the records say;
    None if there is no such run.
    """
    diverged, runs = under_protocol(runs, status="diverged"), under_protocol(runs)
    if not len(runs):
        return None

    ours = [claim for claim in CLAIMS if claim.dataset in set(runs["config.dataset"])]
    found = []
    for claim in ours:
        # the seeds that the claim fixes
        own, gone = (each[each["config.seed"] < claim.runs] for each in (runs, diverged))
        a, b = (
            numbers(own, attacks, claim.metric, claim.dataset, side, images=IMAGES)
            for side in (claim.a, claim.b)
        )
        found.append((claim, a, b, named.lost(gone, claim)))

    def needs(claim):
        seeds = f"seeds 0 to {claim.runs - 1} of both methods"
        return f"not run: needs {seeds}; {command(claim.dataset)} makes them"

    rows = named.judged(found, verdict, needs, {}, decimals=3)
    for row, claim in zip(rows, ours):
        says = direction(claim)
        row["paper"] = says if says == "–" else f"{says}: {beside(says, row['state'])}"
    return Table(rows, f"{CAPTION}. {beside_paper(rows)}", named.ASIDE)


def direction(claim: Claim) -> str:
    """What the paper claims of A beside B in the same metric on the same dataset: 'larger',
    'smaller', or a dash for nothing.
    """
    for other in paper.CLAIMS:
        if (other.metric, other.dataset) == (claim.metric, claim.dataset):
            if (other.a, other.b) == (claim.a, claim.b):
                return "larger"
            if (other.a, other.b) == (claim.b, claim.a):
                return "smaller"
    return "–"


def beside(paper_says: str, state: str) -> str:
    """A claim's state beside the paper's direction, 'larger' or 'smaller'."""
    if state.startswith(("not run", "too few")):
        return "no verdict yet"
    if state in ("resolved: larger", "resolved: smaller"):
        return "same direction" if state.endswith(paper_says) else "opposite"
    return "not told apart"


def beside_paper(rows) -> str:
    """How many claims go the paper's way, in a sentence."""
    found = [row["paper"].split(": ")[1] for row in rows if row["paper"] != "–"]
    words = ("same direction", "opposite", "not told apart", "no verdict yet")
    told = ", ".join(f"{found.count(word)} {word}" for word in words)
    return (
        "Paper: its direction, which comes from another experiment, and ours beside it: of"
        f" {len(found)} claims that have one, {told}"
    )


def verdict(claim: Claim, difference: stats.Difference, a, b, p: float) -> str:
    """What two samples of enough runs say: A larger, A smaller, no difference larger than MARGIN
    (accuracy), or unresolved.
    """
    if claim.metric == "accuracy":
        return accuracy_verdict(difference, a, b, p)
    return _resolved(difference, p) or "unresolved"


def accuracy_verdict(difference: stats.Difference, a, b, p: float) -> str:
    """The same of two samples of accuracies; ``p``: of their difference, perhaps corrected."""
    if state := _resolved(difference, p):
        return state
    # two one-sided tests
    if ttost_ind(a, b, -MARGIN, MARGIN, "unequal")[0] < 0.05:
        return f"resolved: no difference larger than {MARGIN:g} point"
    return "unresolved"


def _resolved(difference, p):
    """Which of the two is larger, or '' where that is not known."""
    if p < 0.05:
        return "resolved: larger" if difference.mean > 0 else "resolved: smaller"
    return ""
