"""Claims that were named before the runs, and what records say about them."""

import math
from dataclasses import dataclass

import pandas as pd

from rmlib.study.names import LABELS
from rmlib.study.report import stats
from rmlib.study.report.values import Table, Value, difference

# the paper names the queries but no eps: 8/255 is the default of torchattacks today, older versions
# had 0.007
EPS, QUERIES = "8/255", 100


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
    """'Mixup, clean_weight=1': one side of a claim."""
    mixer, clean_weight = side
    return f"{LABELS[mixer]}, clean_weight={clean_weight:g}"


def fit_protocol(runs, protocol: dict):
    """Whether the parameters of each run are those of a protocol: a bool Series."""
    fits = pd.Series(True, index=runs.index)
    for name, wanted in protocol.items():
        # NaN is a parameter of None
        found = [x if isinstance(x, list) or x == x else None for x in runs[f"config.{name}"]]
        fits &= pd.Series([x == wanted for x in found], index=runs.index, dtype=bool)
    return fits


def numbers(runs, attacks, metric: str, dataset: str, side, eps: str = EPS, images=None):
    """The numbers of one method, the latest run of each seed: a DataFrame with columns run_id and
    number, indexed by the seed.

    Args:
        runs: those under a protocol.
        attacks: measurements of the kind "attacks".
        side: (mixer, clean_weight).
        eps, images: of the attack; by default on all test images.
    """
    mixer, clean_weight = side
    own = runs[
        (runs["config.dataset"] == dataset)
        & (runs["config.mixer"] == mixer)
        & (runs["config.clean_weight"] == clean_weight)
    ]
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


def by_run(found) -> dict:
    """run_id -> number, of what :func:`numbers` found."""
    return dict(zip(found["run_id"], found["number"]))


def measured(metric: str, eps: str = EPS) -> dict:
    """The settings by which the measurements behind a metric are found."""
    return {"attacks": {"attack": metric, "eps": eps}} if metric in ("fgsm", "square") else {}


def judged(claims, sides_of, verdict, needs, heads, decimals: int = 2) -> Table:
    """A row for every claim: A minus B by Welch's t and paired by seed, p of the primary claims
    corrected by Holm, what the records say, and the seeds that would settle what is unresolved.

    Args:
        claims: of :class:`Claim`.
        sides_of: claim -> what :func:`numbers` found for A and for B.
        verdict: (claim, Welch's difference, A, B, p) -> words; p is corrected for primary claims.
        needs: claim -> what would have to be run.
        heads: (metric -> words, dataset -> words).
    """
    rows, found = [], []
    for claim in claims:
        sides = sides_of(claim)
        a, b = (each["number"] for each in sides)
        both = a.index.intersection(b.index)
        welch, paired = stats.welch(a, b), stats.paired(a[both], b[both])
        names = [side_name(side) for side in (claim.a, claim.b)]
        gap = difference(
            welch,
            *zip(names, map(by_run, sides)),
            low=welch.low,
            high=welch.high,
            decimals=decimals,
            as_text=True,
            measured=measured(claim.metric),
            missing=needs(claim),
        )
        pairs = Value(
            paired.mean,
            {},
            "difference",
            low=paired.low,
            high=paired.high,
            decimals=decimals,
        )
        found.append((claim, welch, a, b))
        rows.append(
            {
                "claim": ("primary: " if claim.primary else "") + claim.text,
                "in": heads[0][claim.metric],
                "dataset": heads[1][claim.dataset],
                "state": None,
                "n": f"{len(a)}, {len(b)} of {claim.runs}",
                "A - B": gap,
                "paired": pairs.text(),
                "r": round(paired.correlation, 2),
            }
        )
    for row, each, p in zip(rows, found, _holm(found)):
        claim, welch, a, b = each
        row["state"] = verdict(*each, p if claim.primary else welch.p)
        row["p (Holm)"] = round(p, 4)
        row["seeds to resolve"] = math.nan
        if row["state"] == "unresolved":
            level = 0.05 / sum(other.primary for other in claims) if claim.primary else 0.05
            row["seeds to resolve"] = stats.seeds_to_resolve(a, b, level, claim.margin)
    return Table(rows)


def _holm(found) -> list[float]:
    """p of the primary claims, corrected for their number; one without enough runs counts as p = 1
    and has none itself. NaN for the others.
    """
    enough = [
        claim.primary and min(welch.n) >= claim.runs and welch.p == welch.p
        for claim, welch, _, _ in found
    ]
    p_values = [
        (welch.p if whole else 1.0) if claim.primary else math.nan
        for whole, (claim, welch, _, _) in zip(enough, found)
    ]
    return [p if whole else math.nan for whole, p in zip(enough, stats.holm(p_values))]
