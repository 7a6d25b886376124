"""Our runs beside the paper's tables, and its claims."""

from fractions import Fraction

from scipy.stats import ttest_ind_from_stats

from rmlib.study.names import LABELS
from rmlib.study.report import paper, stats
from rmlib.study.report.claims import (
    ASIDE,
    EPS,
    QUERIES,
    Claim,
    judged,
    lost,
    measured,
    numbers,
    side_name,
)
from rmlib.study.report.values import Table, average, by_run

NOTE = (
    f"percent; paper: mean ± spread of {paper.RUNS} runs; ours: of one precision, that of most"
    " runs of the dataset; verdict: Welch's t test of ours against"
    " the paper's mean and spread, at 5 %, uncorrected;"
    " not told apart: p at least 0.05, which proves no equality"
)
CAPTION = (
    "A verdict needs the claim's own dataset, width 64 and 400 epochs, and as many seeds of both"
    ' methods as stand after "of". A minus B in points of accuracy (speed, the paper\'s "minimal'
    " to no computational overhead\": training images/s in percent of Mixup's), with its 95 %"
    " interval by Welch's t (by pairs of equal seeds: in the CSV file); p of the primary claims"
    " corrected by Holm, the others judged by their interval, uncorrected; of one precision, as"
    " most runs of the dataset; seeds of a new study: of each method, for what is"
    " unresolved, if difference and spread are what was seen, in 80 % of cases, at 5 %, for a"
    " primary claim at 5 % over the number of primary claims; not to be added to these. That the"
    ' method needs "just a few lines of code" is counted in 01_method.'
    f" FGSM and Square: eps {EPS} (assumed; the paper gives"
    f" none), {QUERIES} queries, all test images"
)


def needs(metric: str, dataset: str, sides: str, count: int) -> str:
    """What would have to be run for a value that has no runs."""
    attacked = metric in ("fgsm", "square")
    beside = f", and beside each an attacks.json with {metric} on all test images"
    return (
        f"not run: needs at least {count} finished records of {sides} on the whole of {dataset}"
        " under the paper's protocol (width 64, 400 epochs; rmlib.study.report.paper.PROTOCOL)"
        f"{beside if attacked else ''}; rmlib batch notebooks/batches/{dataset}.yaml --out"
        f" results/{dataset} makes them"
    )


def tables(runs, attacks) -> list[Table]:
    """The paper's Tables 1 to 4 with our values beside its own."""
    runs = paper.under_protocol(runs)

    def row(metric, dataset, mixer, reported, weight=1.0, eps=EPS, loss=None):
        side = (mixer, weight)
        ours = average(
            by_run(numbers(runs, attacks, metric, dataset, side, eps)),
            measured=measured(metric, eps),
            missing=needs(metric, dataset, side_name(side), paper.RUNS),
        )
        return {
            "dataset": paper.DATASETS[dataset],
            **({"clean loss": loss} if loss else {}),
            "method": LABELS[mixer],
            "mixer": mixer,
            "paper": _told(reported),
            "ours": ours,
            "n": len(ours.runs),
            "verdict": _verdict(reported, ours),
        }

    def whole(metric, reported: dict, caption, eps=EPS):
        rows = [
            row(metric, dataset, mixer, reported[dataset][mixer], eps=eps)
            for dataset in paper.DATASETS
            for mixer in paper.METHODS
        ]
        return Table(rows, caption)

    ablation = [
        row("accuracy", "cifar100", mixer, reported[mixer], weight, loss=loss)
        for (weight, reported), loss in zip(paper.ABLATION.items(), ("without", "with"))
        for mixer in paper.METHODS
    ]
    first = f"Table 1, test accuracy after 400 epochs, with the clean loss, in {NOTE}"
    second = (
        "Table 2, the clean loss taken away (by its numbers the paper's table is about CIFAR-100),"
        f" in {NOTE}"
    )
    found = [whole("accuracy", paper.ACCURACY, first), Table(ablation, second)]
    words = "Table 3, accuracy after FGSM", f"Table 4, accuracy after Square with {QUERIES} queries"
    for (metric, reported), text in zip(paper.ATTACKS.items(), words):
        for eps in sizes_measured(runs, attacks, metric) or [EPS]:
            caption = (
                f"{text} with eps {eps} (the paper gives none; {EPS} is assumed for the"
                f" claims), in {NOTE}"
            )
            found.append(whole(metric, reported, caption, eps))
    return found


def _told(reported):
    if reported is paper.LOST:
        return "lost"
    mean, std = reported
    return f"{mean:g}" if std is paper.LOST else f"{mean:.2f} ± {std:.2f}"


def _verdict(reported, ours):
    count = len(ours.runs)
    if not count:
        return "not run"
    if count < paper.RUNS:
        return f"{count} of {paper.RUNS} runs"
    if reported is paper.LOST or reported[1] is paper.LOST:
        return "the paper's spread is lost"
    if not (ours.std > 1e-12 * abs(ours.mean) or reported[1]):
        return "no spread"
    test = ttest_ind_from_stats(ours.mean, ours.std, count, *reported, paper.RUNS, equal_var=False)
    if test.pvalue >= 0.05:
        return "not told apart"
    return "higher" if ours.mean > reported[0] else "lower"


def sizes_measured(runs, attacks, metric: str) -> list[str]:
    """The sizes of perturbation above 0 at which any of these runs was attacked on all its test
    images, ascending.
    """
    if not len(attacks):
        return []
    own = attacks[(attacks["attack"] == metric) & attacks["run_id"].isin(runs["run_id"])]
    whole = own["images"] == own["run_id"].map(runs.set_index("run_id")["data.test_images"])
    return sorted(set(own.loc[whole, "eps"]) - {"0"}, key=Fraction)


def claims(runs, attacks) -> Table:
    """The claims with what our records say: not run, too few runs, holds, fails or unresolved."""
    diverged, runs = paper.under_protocol(runs, "diverged"), paper.under_protocol(runs)
    found = []
    for claim in paper.CLAIMS:
        a, b = (
            numbers(runs, attacks, claim.metric, claim.dataset, side) for side in (claim.a, claim.b)
        )
        if claim.metric == "speed" and len(b):
            # in percent of B's mean
            percent = 100 / b["number"].mean()
            a, b = (each.assign(number=each["number"] * percent) for each in (a, b))
        found.append((claim, a, b, lost(diverged, claim)))

    def needed(claim):
        sides = " and of ".join(side_name(side) for side in (claim.a, claim.b))
        return needs(claim.metric, claim.dataset, sides, claim.runs)

    rows = judged(found, verdict, needed, paper.METRICS | paper.DATASETS)
    return Table(rows, CAPTION, ASIDE)


def verdict(claim: Claim, difference: stats.Difference, a, b, p: float) -> str:
    """What a difference of enough runs says; a primary claim needs its corrected p below 0.05."""
    if claim.primary and not p < 0.05:
        return "unresolved"
    if difference.low > -claim.margin:
        return "holds"
    return "fails" if difference.high < -claim.margin else "unresolved"
