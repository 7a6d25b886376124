"""What the paper reports: its protocol, its tables and its claims; and our runs beside them.

Saha & Garain 2024, "Region Mixup", ICLR Tiny Papers, https://arxiv.org/abs/2409.15028. The numbers
were typed from the paper once, here; LOST marks cells that the copy of the paper used here does not
show. A cell or claim gets a verdict only from records of its own dataset under the paper's
protocol; else it says "not run".
"""

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import pandas as pd
from scipy.stats import ttest_ind_from_stats

from rmlib.datasets.sources import SIZES
from rmlib.params import complete
from rmlib.study.names import LABELS
from rmlib.study.report import origin, stats

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
EPS, QUERIES = (
    "8/255",
    100,
    # the paper names the queries but no eps: 8/255 is the default of torchattacks today, older
    # versions had 0.007
)
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


@dataclass(frozen=True)
class Claim:
    """A > B in one metric on one dataset; A and B are (mixer, clean_weight)."""

    text: str
    metric: str  # accuracy, fgsm, square or speed
    dataset: str
    a: tuple[str, float]
    b: tuple[str, float]
    runs: int = 3  # least number of seeds for a verdict
    primary: bool = False
    margin: float = 0.0  # A may lie this much below B


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
CAPTION = (
    "A verdict needs the claim's own dataset, width 64 and 400 epochs, and as many seeds of both"
    ' methods as stand after "of". A minus B in points of accuracy (speed, the paper\'s "minimal'
    " to no computational overhead\": training images/s in percent of Mixup's), with its 95 %"
    ' interval by Welch\'s t; "paired": the interval over equal seeds, r their correlation; p of'
    " the primary claims corrected by Holm; seeds to resolve: of each method, for what is"
    " unresolved, if difference and spread are what was seen, in 80 % of cases, at 5 %, for a"
    ' primary claim at 5 % over the number of primary claims. That the method needs "just a few'
    f' lines of code" is counted in 01_method. FGSM and Square: eps {EPS} (assumed; the paper gives'
    f" none), {QUERIES} queries, all test images"
)


def under_protocol(runs):
    """The finished runs whose every parameter is the paper's, on the whole dataset."""
    fits = (runs["status"] == "done") & runs["config.dataset"].isin(list(DATASETS))
    for name, value in PROTOCOL.items():
        fits &= runs[f"config.{name}"].map(
            lambda found, value=value: (None if found != found else found) == value
        )
    runs = runs[fits]
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
    return (
        None
        if record.metrics["accuracy"] >= low - MARGIN
        else (
            f"more than {MARGIN:g} point below the {low:g} to {high:g} % of published runs: look"
            " for a mistake before anything else"
        )
    )


def values(
    runs, attacks, metric: str, dataset: str, mixer: str, clean_weight: float, eps: str = EPS
):
    """The numbers of one cell as a Series over seeds; ``runs`` are those under the paper's
    protocol, attacks those on all test images.
    """
    runs = runs[
        (runs["config.dataset"] == dataset)
        & (runs["config.mixer"] == mixer)
        & (runs["config.clean_weight"] == clean_weight)
    ]
    runs = (
        runs.sort_values("finished").drop_duplicates("config.seed", keep="last").set_index("run_id")
    )
    if metric == "accuracy":
        found = runs["metrics.accuracy"] if len(runs) else pd.Series(dtype=float)
    elif (
        metric == "speed"
    ):  # of runs that had a device to themselves, of one kind, the most common one
        runs = runs[runs["together"] == 1]
        device = runs["hardware.gpu"] if "hardware.gpu" in runs else runs["hardware.cpu"]
        found = (
            runs.loc[device == device.mode().iloc[0], "images_per_second"]
            if device.notna().any()
            else pd.Series(dtype=float)
        )
    elif not len(attacks):
        found = pd.Series(dtype=float)
    else:
        fits = (
            (attacks["attack"] == metric)
            & (attacks["eps"] == eps)
            & attacks["run_id"].isin(runs.index)
        )
        if metric == "square":
            fits &= attacks.get("queries") == QUERIES  # no such column: no Square at all
        own = (
            attacks[fits]
            .sort_values("finished")
            .drop_duplicates("run_id", keep="last")
            .set_index("run_id")
        )
        own = own[own["images"] == runs.loc[own.index, "data.test_images"]]
        found = own["accuracy_after"]
    values = pd.Series(
        found.to_numpy(dtype=float),
        index=runs.loc[found.index, "config.seed"].to_numpy(),
        dtype=float,
    )
    values.attrs["runs"] = dict(zip(values.index.tolist(), found.index))  # seed -> run_id
    return values.sort_index()


def tables(runs, attacks) -> list[tuple[str, pd.DataFrame]]:
    """The paper's Tables 1 to 4 with our cells beside its own, as (caption, table)."""
    runs = under_protocol(runs)

    def rows(metric, dataset, reported, clean_weight, extra, eps=EPS):
        table = []
        for mixer in METHODS:
            found = values(runs, attacks, metric, dataset, mixer, clean_weight, eps)
            row = {
                "dataset": DATASETS[dataset],
                **extra,
                "mixer": mixer,
                "paper": _told(reported[mixer]),
            }
            origin.average(row, "ours", by_run(found))
            table.append(
                row
                | {
                    "n": len(found),
                    "verdict": _verdict(reported[mixer], row["ours"], row["ours_std"], len(found)),
                }
            )
        return table

    def whole(metric, numbers, eps=EPS):
        return origin.table(
            [
                row
                for dataset in DATASETS
                for row in rows(metric, dataset, numbers[dataset], 1.0, {}, eps)
            ]
        )

    ablation = [
        row
        for weight in (0.0, 1.0)
        for row in rows(
            "accuracy",
            "cifar100",
            ABLATION[weight],
            weight,
            {"clean loss": "with" if weight else "without"},
        )
    ]
    note = (
        f"percent; paper: mean ± spread of {RUNS} runs; verdict: Welch's t test of ours against the"
        " paper's mean and spread, at 5 %"
    )
    return [
        (
            f"Table 1, test accuracy after 400 epochs, with the clean loss, in {note}",
            whole("accuracy", ACCURACY),
        ),
        (
            (
                "Table 2, the clean loss taken away (by its numbers the paper's table is about"
                f" CIFAR-100), in {note}"
            ),
            origin.table(ablation),
        ),
        *(
            (
                (
                    f"Table {number}, accuracy after {METRICS[metric]}{told} with eps {eps} (the"
                    f" paper gives none; {EPS} is assumed for the claims), in {note}"
                ),
                whole(metric, numbers, eps),
            )
            for number, told, (metric, numbers) in zip(
                (3, 4), ("", f" with {QUERIES} queries"), ATTACKS.items()
            )
            for eps in sizes_measured(runs, attacks, metric) or [EPS]
        ),
    ]


def by_run(found) -> dict:
    """run_id -> number, of what :func:`values` found."""
    return {found.attrs["runs"][seed]: value for seed, value in found.items()}


def sizes_measured(runs, attacks, metric: str) -> list[str]:
    """The sizes of perturbation above 0 at which any of these runs was attacked on all its test
    images, ascending.
    """
    if not len(attacks):
        return []
    own = attacks[(attacks["attack"] == metric) & attacks["run_id"].isin(runs["run_id"])]
    whole = own["images"] == own["run_id"].map(runs.set_index("run_id")["data.test_images"])
    return sorted(set(own.loc[whole, "eps"]) - {"0"}, key=Fraction)


def fitting_eps(runs, attacks) -> pd.DataFrame:
    """The size of perturbation, which the paper does not give, at which our networks give its
    numbers: for each method alone (in 255ths of the pixel range; a dash: its curve does not fall to
    the number), and one for all three, with its 95 % interval and the p of its misfit (see
    :func:`rmlib.study.report.stats.fit_size`).
    """
    runs, table = under_protocol(runs), []
    for metric, datasets in ATTACKS.items():
        sizes = sizes_measured(runs, attacks, metric)
        steps = [
            0.0,
            *(255 * float(Fraction(eps)) for eps in sizes),
        ]  # without perturbation: the clean accuracy
        for dataset, reported in datasets.items():
            curves = {
                mixer: (
                    pd.concat(
                        [
                            values(runs, attacks, "accuracy", dataset, mixer, 1.0),
                            *(
                                values(runs, attacks, metric, dataset, mixer, 1.0, eps)
                                for eps in sizes
                            ),
                        ],
                        axis=1,
                    )
                    .dropna()
                    .to_numpy()
                )
                for mixer in METHODS
            }
            alone = {
                mixer: (
                    stats.crossing(steps, curve.mean(0), reported[mixer][0])
                    if len(curve) and sizes
                    else np.nan
                )
                for mixer, curve in curves.items()
            }
            best = low = high = p = np.nan
            if not sizes or not any(map(len, curves.values())):
                state = "not run"
            elif min(map(len, curves.values())) < 2:
                state = "too few runs"
            else:
                best, low, high, p = stats.fit_size(
                    steps, list(curves.values()), [(*reported[mixer], RUNS) for mixer in METHODS]
                )
                state = (
                    "outside the sizes measured"
                    if np.isclose(best, (steps[0], steps[-1])).any()
                    else "no one eps fits"
                    if p <= 0.05
                    else "not rejected"
                )
            table.append(
                {
                    "attack": METRICS[metric],
                    "dataset": DATASETS[dataset],
                    **{LABELS[mixer]: alone[mixer] for mixer in METHODS},
                    "one eps for all": best,
                    "95 % interval": f"[{low:.2f}, {high:.2f}]" if best == best else "–",
                    "p": p,
                    "state": state,
                }
            )
    return pd.DataFrame(table)


def _told(reported):
    return (
        "lost"
        if reported is LOST
        else f"{reported[0]:g}"
        if reported[1] is LOST
        else "{:.2f} ± {:.2f}".format(*reported)
    )


def _verdict(reported, mean, std, count):
    if not count:
        return "not run"
    if count < RUNS:
        return f"{count} of {RUNS} runs"
    if reported is LOST or reported[1] is LOST:
        return "the paper's spread is lost"
    if not (std > 1e-12 * abs(mean) or reported[1]):
        return "no spread"
    p = ttest_ind_from_stats(mean, std, count, *reported, RUNS, equal_var=False).pvalue
    return "agrees" if p >= 0.05 else "higher" if mean > reported[0] else "lower"


def claims(runs, attacks) -> pd.DataFrame:
    """The claims with what our records say: not run, too few runs, holds, fails or unresolved."""
    runs, table, primary = under_protocol(runs), [], []
    for claim in CLAIMS:
        a, b = (
            values(runs, attacks, claim.metric, claim.dataset, *side) for side in (claim.a, claim.b)
        )
        if claim.metric == "speed" and len(b):
            a, b = 100 * a / b.mean(), 100 * b / b.mean()
        both = a.index.intersection(b.index)
        welch, paired = stats.welch(a, b), stats.paired(a[both], b[both])
        primary.append(welch.p if claim.primary and min(welch.n) >= claim.runs else np.nan)
        table.append(
            {
                "claim": ("primary: " if claim.primary else "") + claim.text,
                "in": METRICS[claim.metric],
                "dataset": DATASETS[claim.dataset],
                "state": (claim, welch),
                "n": f"{len(a)}, {len(b)} of {claim.runs}",
                "A - B": _interval(welch),
                "paired": _interval(paired),
                "r": round(paired.correlation, 2),
                "p (Holm)": None,
                "seeds to resolve": (stats.mean_std(a)[1], stats.mean_std(b)[1]),
            }
        )
    for row, p in zip(table, stats.holm(primary)):
        (claim, welch), spreads = row["state"], row["seeds to resolve"]
        state = verdict(claim, welch, p)
        row |= {
            "p (Holm)": round(p, 4),
            "state": state,
            "seeds to resolve": _seeds(claim, welch, spreads) if state == "unresolved" else np.nan,
        }
    return pd.DataFrame(table)


def _seeds(claim, difference, spreads):
    """How many seeds of each method would settle an unresolved claim (at Holm's first level if it
    is a primary one); NaN if no number would.
    """
    alpha = 0.05 / sum(each.primary for each in CLAIMS) if claim.primary else 0.05
    needed = stats.seeds_needed(difference.mean + claim.margin, *spreads, alpha)
    return needed if np.isfinite(needed) else np.nan


def _interval(difference):
    if difference.mean != difference.mean:
        return "–"
    return f"{difference.mean:+.2f}" + (
        f" [{difference.low:+.2f}, {difference.high:+.2f}]"
        if difference.low == difference.low
        else ""
    )


def verdict(claim: Claim, difference: stats.Difference, holm_p: float) -> str:
    """What a difference says about a claim; a primary claim also needs its Holm-corrected p below
    0.05.
    """
    if not max(difference.n):
        return "not run"
    if min(difference.n) < claim.runs:
        return f"too few runs ({difference.n[0]} and {difference.n[1]} of {claim.runs})"
    if claim.primary and not holm_p < 0.05:
        return "unresolved"
    return (
        "holds"
        if difference.low > -claim.margin
        else "fails"
        if difference.high < -claim.margin
        else "unresolved"
    )
