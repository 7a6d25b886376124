"""Claims that were named before the runs, and what records say about them."""

import math
from dataclasses import dataclass

import pandas as pd

from rmlib.study.names import label
from rmlib.study.report import stats
from rmlib.study.report.values import by_run, difference

# the paper names the queries but no eps: 8/255 is the default of torchattacks today, older versions
# had 0.007
EPS, QUERIES = "8/255", 100

# what the protocol of the paper and that of the small-data study both ask of a run's parameters;
# mixer, clean_weight, seed and threads are free; so is precision, which the paper does not name
COMMON = {
    "stem_stride": 1,
    "final_norm": False,
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "test_images": None,
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


@dataclass(frozen=True)
class Claim:
    """A > B in one metric on one dataset; A and B are (mixer, clean_weight)."""

    text: str
    metric: str  # accuracy, nll, ece, fgsm, square or speed
    dataset: str
    a: tuple[str, float]
    b: tuple[str, float]
    runs: int = 3  # least number of seeds for a verdict
    primary: bool = False
    margin: float = 0.0  # A may lie this much below B


def side_name(side: tuple[str, float]) -> str:
    """'Mixup, clean_weight=1', 'plain training': one side of a claim."""
    mixer, clean_weight = side
    name = label({"mixer": mixer, "clean_weight": clean_weight, "average": False})
    return name if mixer == "none" else f"{name}, clean_weight={clean_weight:g}"


def fit_protocol(runs, protocol: dict):
    """Whether the parameters of each run are those of a protocol: a bool Series."""
    fits = pd.Series(True, index=runs.index)
    for name, wanted in protocol.items():
        # NaN is a parameter of None
        found = [x if isinstance(x, list) or x == x else None for x in runs[f"config.{name}"]]
        fits &= pd.Series([x == wanted for x in found], index=runs.index, dtype=bool)
    return fits


def of_side(runs, dataset: str, side: tuple[str, float]):
    """The runs of one method on a dataset."""
    mixer, clean_weight = side
    return runs[
        (runs["config.dataset"] == dataset)
        & (runs["config.mixer"] == mixer)
        & (runs["config.clean_weight"] == clean_weight)
    ]


def lost(diverged, claim: Claim) -> int:
    """How many diverged runs leave the two sides of a claim."""
    return sum(len(of_side(diverged, claim.dataset, side)) for side in (claim.a, claim.b))


def numbers(runs, attacks, metric: str, dataset: str, side, eps: str = EPS, images=None):
    """The numbers of one method, the latest run of each seed: a DataFrame with columns run_id and
    number, indexed by the seed.

    Args:
        runs: those under a protocol.
        attacks: measurements of the kind "attacks".
        side: (mixer, clean_weight).
        eps, images: of the attack; by default on all test images.
    """
    own = of_side(runs, dataset, side)
    own = own.sort_values("finished").drop_duplicates("config.seed", keep="last")
    if metric == "speed":
        own = _alone_on_one_device(own)
        own = own.assign(number=own["images_per_second"])
    elif metric in ("fgsm", "square"):
        own = own.merge(_attacked(attacks, metric, eps), on="run_id")
        own = own[own["images"] == (own["data.test_images"] if images is None else images)]
        own = own.sort_values("attacked").drop_duplicates("run_id", keep="last")
    else:
        own = own.assign(number=own.get(f"metrics.{metric}", math.nan))
    return own.set_index("config.seed")[["run_id", "number"]].astype({"number": float}).sort_index()


def _alone_on_one_device(runs):
    """The runs that had a device to themselves, of the most common kind of device."""
    runs = runs[runs["together"] == 1]
    device = runs["hardware.gpu"] if "hardware.gpu" in runs else runs["hardware.cpu"]
    return runs[device == device.mode().iloc[0]] if device.notna().any() else runs.iloc[:0]


def _attacked(attacks, metric, eps):
    """run_id, images, number and time of every attack of one kind and size."""
    if not len(attacks):
        return pd.DataFrame(columns=["run_id", "images", "number", "attacked"])
    fits = (attacks["attack"] == metric) & (attacks["eps"] == eps)
    if metric == "square":
        # no such column: no Square at all
        fits &= attacks.get("queries") == QUERIES
    names = {"accuracy_after": "number", "finished": "attacked"}
    return attacks[fits].rename(columns=names)[["run_id", "images", "number", "attacked"]]


def measured(metric: str, eps: str = EPS) -> dict:
    """The settings by which the measurements behind a metric are found."""
    return {"attacks": {"attack": metric, "eps": eps}} if metric in ("fgsm", "square") else {}


# columns of the claims that stand in CSV alone
ASIDE = ("paired", "r", "p")


def judged(found: list[tuple], verdict, needs, words: dict, decimals=2) -> list[dict]:
    """A row for every claim: A minus B by Welch's t and paired by seed, p of the primary claims
    corrected by Holm, what the records say, and the seeds that a new study would need for what is
    unresolved.

    Args:
        found: (claim, what :func:`numbers` found for A and for B, how many runs diverged).
        verdict: (claim, Welch's difference, A, B, p) -> words, where there are enough runs; p is
            corrected for primary claims.
        needs: claim -> what would have to be run.
        words: metric or dataset -> how the table calls it, where not so.
    """
    tests = [stats.welch(a["number"], b["number"]) for _, a, b, _ in found]
    primaries = sum(claim.primary for claim, *_ in found)
    rows = []
    for (claim, a, b, gone), welch, p in zip(found, tests, _holm(found, tests)):
        own, other = a["number"], b["number"]
        gap = difference(
            welch,
            (side_name(claim.a), by_run(a)),
            (side_name(claim.b), by_run(b)),
            low=welch.low,
            high=welch.high,
            decimals=decimals,
            as_text=True,
            measured=measured(claim.metric),
            missing=needs(claim),
        )
        pairs = stats.paired(own, other)
        state = _lacking(claim, welch.n)
        if not state:
            state = verdict(claim, welch, own, other, p if claim.primary else welch.p)
        needed = math.nan
        if state == "unresolved":
            level = 0.05 / primaries if claim.primary else 0.05
            needed = stats.seeds_to_resolve(own, other, level, claim.margin)
        row = {
            "claim": ("primary: " if claim.primary else "") + claim.text,
            "in": words.get(claim.metric, claim.metric),
            "dataset": words.get(claim.dataset, claim.dataset),
            "state": state,
            "n": f"{len(a)}, {len(b)} of {claim.runs}" + (f" ({gone} diverged)" if gone else ""),
            "A - B": gap,
            "paired": difference(pairs, low=pairs.low, high=pairs.high, decimals=decimals).text(),
            "r": pairs.correlation,
            "p": welch.p,
            "p (Holm)": p,
            stats.NEEDED: needed,
        }
        rows.append(row)
    return rows


def _lacking(claim, counts) -> str:
    """What is to be said of a claim with too few runs, '' if there are enough."""
    if not max(counts):
        return "not run"
    few = f"too few runs ({counts[0]} and {counts[1]} of {claim.runs})"
    return few if min(counts) < claim.runs else ""


def _holm(found, tests) -> list[float]:
    """p of the primary claims, corrected for their number; one without enough runs counts as p = 1
    and has none itself. NaN for the others.
    """
    primary = [claim.primary for claim, *_ in found]
    few = [
        not (min(test.n) >= claim.runs and test.p == test.p)
        for (claim, *_), test in zip(found, tests)
    ]
    p_values = [test.p if own else math.nan for own, test in zip(primary, tests)]
    return list(stats.holm(p_values, [a and b for a, b in zip(primary, few)]))
