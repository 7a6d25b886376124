"""Tables of where networks look, from the results of :mod:`rmlib.maps.battery`: for notebook 04 and
for reports.

``found`` is always {name of the method: {seed: result}}, the results on the same images.
"""

import itertools
import math

import numpy as np

from rmlib.packed import unpack_values
from rmlib.study.names import LABELS, MAPS
from rmlib.study.report import origin, stats

NAMES = {
    "energy_inside": "energy inside the object (%)",
    "pointing_game": "pointing game (%)",
    "iou": "IoU with the object (%)",
    "extent": "extent (%)",
    "empty": "empty maps (%)",
    "asymmetry": "asymmetry between tiles (%)",
    "grid_trace": "trace of the grid (points)",
    "average_drop": "Average Drop (%)",
    "increase": "Increase in Confidence (%)",
    "deletion": "deletion (%)",
    "insertion": "insertion (%)",
    "road": "ROAD (points)",
}
LOWER = ("average_drop", "deletion")  # less is better
COMPARED = (
    "energy_inside",
    "pointing_game",
    "extent",
    "grid_trace",
    "deletion",
    "road",
)  # of :func:`differences`
BEYOND = (
    "deletion",
    "road",
    # of these, compared is what a map does beyond the map of another image: they depend on how
    # confident a network is
)
CONTROL = "another image's map"
STAGES = {"linear": "head", "conv1": "stem"}  # names of parts of the network in words


def _one(found):
    """What one of the networks was found to look at: what its maps are called, and which measures
    were made.
    """
    return next(iter(next(iter(found.values())).values()))["found"]


def title(key: str) -> str:
    """'gradcam++ layer4' as a heading: 'Grad-CAM++ layer4'."""
    method, layer = key.split(" ", 1)
    return f"{MAPS[method]} {layer}"


def values(results: dict, key: str, name: str, kind: str = "values") -> np.ndarray:
    """A measure of single images, (networks, images), from the results of a method's networks; of
    its control with kind="control_values".
    """
    return np.stack(
        [unpack_values(result["found"][key][kind][name]) for result in results.values()]
    )


def better(results: dict, key: str, name: str) -> bool:
    """Whether a method's maps score better than those of other images, paired by image and network,
    beyond the 95 % interval over both.
    """
    gain = stats.crossed(values(results, key, name) - values(results, key, name, "control_values"))
    return gain.high < 0 if name in LOWER else gain.low > 0


def table(found: dict):
    """A row for every map and measure, a column for every method: mean, sample standard deviation
    over its networks (X_std) and 95 % interval over networks and images (X_low, X_high; see
    :func:`rmlib.study.report.stats.crossed`), the mean of its own control (X_control) and X_better
    (see :func:`better`).
    """
    rows = []
    for key, entry in _one(found).items():
        for name in entry["mean"]:
            row = {
                "map": title(key),
                "measure": NAMES[name],
                "n": _counts(found),
                "images": len(values(next(iter(found.values())), key, name)[0]),
            }
            for label, results in found.items():
                origin.average(
                    row, label, of_runs(results, lambda result: result["found"][key]["mean"][name])
                )
                interval = stats.crossed(values(results, key, name))
                row[f"{label}_low"], row[f"{label}_high"] = interval.low, interval.high
                if name in entry["control"]:
                    row[f"{label}_control"] = float(
                        np.mean(
                            [result["found"][key]["control"][name] for result in results.values()]
                        )
                    )
                    row[f"{label}_better"] = better(results, key, name)
            rows.append(row)
    return origin.table(rows)


def of_runs(results: dict, value) -> dict:
    """run_id -> ``value`` of each result of a method's networks; by seed where the results do not
    come from records.
    """
    return {result.get("run_id", seed): value(result) for seed, result in results.items()}


def _counts(found):
    counts = sorted({len(results) for results in found.values()})
    return str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"


def panels(found: dict, names) -> list:
    """For :func:`rmlib.study.figures.measures`: a panel for each of the measures that were made,
    for the first map, with every method's control.
    """
    key = next(iter(_one(found)))
    drawn = []
    for name in [name for name in names if name in _one(found)[key]["mean"]]:
        methods = {}
        for label, results in found.items():
            interval = stats.crossed(values(results, key, name))
            control = np.mean(
                [result["found"][key]["control"].get(name, math.nan) for result in results.values()]
            )
            methods[mixer_of(label), label] = (
                [result["found"][key]["mean"][name] for result in results.values()],
                interval.low,
                interval.high,
                float(control),
            )
        drawn.append((NAMES[name], methods))
    return drawn


def stages(found: dict) -> tuple[list, list[str]]:
    """For :func:`rmlib.study.figures.lines`: a panel for each map of the sanity check, from the
    trained network (100) to one shuffled throughout; and the stages in words.
    """
    first, drawn = _one(found), []
    for key in first:
        methods = {
            (mixer_of(label), label): [
                100.0,
                *(
                    _known([result["found"][key]["stages"][stage] for result in results.values()])[
                        0
                    ]
                    for stage in first[key]["stages"]
                ),
            ]
            for label, results in found.items()
        }
        drawn.append(
            (
                title(key),
                _known(
                    [
                        result["found"][key]["control"]
                        for results in found.values()
                        for result in results.values()
                    ]
                )[0],
                methods,
            )
        )
    return drawn, [
        "nothing",
        *(STAGES.get(stage, stage) for stage in next(iter(first.values()))["stages"]),
    ]


def removal(found: dict) -> list:
    """For :func:`rmlib.study.figures.lines`: the deletion and the insertion curve of the first map,
    mean over images and networks.
    """
    key = next(iter(_one(found)))
    return [
        (
            name,
            None,
            {
                (mixer_of(label), label): np.mean(
                    [result["found"][key]["curves"][name] for result in results.values()], axis=0
                )
                for label, results in found.items()
            },
        )
        for name in ("deletion", "insertion")
    ]


def mixer_of(label: str) -> str:
    """The mixer behind the name of a method, such as 'Region Mixup, k=4': its colour in figures."""
    return next(mixer for mixer, name in LABELS.items() if label.split(",")[0] == name)


def _known(values):
    """Mean and sample standard deviation of the values that are known (not None)."""
    return stats.mean_std([value for value in values if value is not None])


def sanity(found: dict):
    """A row for every map and stage of the sanity check: mean rank correlation (hundredths) with
    the map of the trained network, and its standard deviation over networks.
    """
    rows = []
    for key, entry in _one(found).items():
        control = _known(
            [
                result["found"][key]["control"]
                for results in found.values()
                for result in results.values()
            ]
        )[0]
        for number, stage in enumerate(entry["stages"]):
            row = {
                "map": title(key),
                "shuffled": f"{'and ' if number else ''}{STAGES.get(stage, stage)}",
                "n": _counts(found),
            }
            for label, results in found.items():
                values = of_runs(results, lambda result: result["found"][key]["stages"][stage])
                origin.average(
                    row, label, {run: value for run, value in values.items() if value is not None}
                )
            left = [
                result["found"][key]["left_out"][stage]
                for results in found.values()
                for result in results.values()
            ]
            rows.append(row | {CONTROL: control, "left out": round(float(np.mean(left)), 1)})
    return origin.table(rows)


def differences(several: list[dict]):
    """Region Mixup minus every other method that treats the clean batch as it does, in the measures
    COMPARED of the first map, paired by seed and image, with 95 % intervals over both.

    Args:
        several: ``found`` of one or more measures (localization, faithfulness). "resolved": p below
            0.05 after Holm's correction for the rows. With one network each there is no p: the
            interval is about two networks, not about two methods.

    Returns:
        DataFrame, or None if there is nothing to compare.
    """
    rows = []
    for found in several:
        key, entry = next(iter(_one(found).items()))
        pairs = [
            (own, label)
            for own in found
            for label in found
            if mixer_of(own) == "region_mixup" != mixer_of(label) and _loss(own) == _loss(label)
        ]
        for name, (own, label) in itertools.product(
            [name for name in COMPARED if name in entry["mean"]], pairs
        ):
            seeds = sorted(set(found[own]) & set(found[label]))
            if not seeds:
                continue
            a, b = (
                values(results, key, name)
                - (values(results, key, name, "control_values") if name in BEYOND else 0)
                for results in (
                    {seed: found[each][seed] for seed in seeds} for each in (own, label)
                )
            )
            d = stats.crossed(a - b)
            rows.append(
                {
                    "map": title(key),
                    "measure": NAMES[name] + (f", beyond {CONTROL}" if name in BEYOND else ""),
                    "difference": f"{own} - {label}",
                    "points": d.mean,
                    "low": d.low,
                    "high": d.high,
                    "95 % interval": f"[{d.low:+.1f}, {d.high:+.1f}]",
                    "n": len(seeds),
                    "images": d.n[1],
                    "p (Holm)": d.p if len(seeds) > 1 else math.nan,
                }
            )
            origin.note(
                rows[-1],
                "points",
                {
                    each: dict(
                        zip(
                            (found[each][seed].get("run_id", seed) for seed in seeds),
                            side.mean(1).tolist(),
                        )
                    )
                    for each, side in ((own, a), (label, b))
                },
            )
    for row, p in zip(rows, stats.holm([row["p (Holm)"] for row in rows])):
        row |= {
            "p (Holm)": "–" if p != p else f"{p:.3f}",
            "state": (
                ("resolved" if p < 0.05 else "unresolved") if row["n"] > 1 else "one network each"
            ),
        }
    return origin.table(rows) if rows else None


def _loss(label):
    """The parts of a method's name that say how the clean batch counts."""
    return [part for part in label.split(", ")[1:] if part.startswith(("clean_weight", "average"))]


def eps_table(found: dict):
    """What the eps of Grad-CAM++ changes per method (see :func:`rmlib.maps.battery.guard`), None
    where no network has a closed form.
    """
    heads = {
        "correlation": "rank correlation of the maps (%)",
        "lowest": "lowest",
        "compared": "images compared",
        "moved": "maximum moves (% of images)",
        "negative": "negative activations (%)",
    }
    rows = []
    for label, results in found.items():
        own = {seed: result for seed, result in results.items() if "correlation" in result}
        if own:
            row = {"method": label, "n": len(own)}
            for name, head in heads.items():
                origin.average(row, head, of_runs(own, lambda result: result[name]))
            rows.append(row)
    return origin.table(rows) if rows else None
