"""Tables of where networks look, from the results of :mod:`rmlib.maps.battery`: for notebook 04 and
for reports.

``found`` is always {name of the method: {seed: result}}, the results on the same images.
"""

import itertools
import math

import numpy as np

from rmlib.packed import unpack_values
from rmlib.study.names import LABELS, MAPS, PLAIN
from rmlib.study.report import groups, stats
from rmlib.study.report.values import CONTROL, Table, Value, average, difference, span

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
# less is better
LOWER = ("average_drop", "deletion")
# measures of :func:`differences`
COMPARED = ("energy_inside", "pointing_game", "extent", "grid_trace", "deletion", "road")
# shares of the images: each has a 0 or a 100
SHARES = ("pointing_game", "empty", "increase")
# of these, compared is what a map does beyond the map of another image: they depend on how
# confident a network is
BEYOND = ("deletion", "road")
# names of parts of the network in words
STAGES = {"linear": "head", "conv1": "stem"}


def results_of(group, cams, measure: str) -> dict | None:
    """``found`` for one measure of the maps of an experiment; None if it was not made.

    Args:
        cams: measurements of the kind "cam".
    """
    cams = groups.one_sample(group, cams[cams["measure"] == measure] if len(cams) else cams)
    if cams is None:
        return None
    results = {}
    for run in cams.to_dict("records"):
        results[run["run_id"]] = {name: entry for name, entry in run.items() if entry == entry}
    found = {}
    for _, runs in groups.methods(group):
        own = runs[runs["run_id"].isin(results)].sort_values("config.seed")
        if len(own):
            run_ids = own["run_id"].map(results.get)
            found[groups.name_of(own, group)] = dict(zip(own["config.seed"], run_ids))
    return found


def _in(results, key, part):
    """One part of what every network of a method was found to look at."""
    return [result["found"][key][part] for result in results.values()]


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
    return np.stack([unpack_values(each[name]) for each in _in(results, key, kind)])


def beyond_control(results: dict, key: str, name: str) -> np.ndarray:
    """A measure of single images minus the same measure of the maps of other images."""
    return values(results, key, name) - values(results, key, name, "control_values")


def score(results: dict, key: str, name: str) -> Value:
    """A measure of one map of a method: the mean over its networks and its spread, the 95 %
    interval over networks and images (see :func:`rmlib.study.report.stats.crossed`; of a share
    :func:`rmlib.study.report.stats.share`), and the control's mean, where there is one, with
    whether the maps beat it beyond such an interval.
    """
    several = values(results, key, name)
    spread = stats.crossed(several)
    low, high = stats.share(several) if name in SHARES else (spread.low, spread.high)
    beside = {"low": low, "high": high, "measured": _measured(results)}
    controls = _in(results, key, "control")
    if name in controls[0]:
        gain = stats.crossed(beyond_control(results, key, name))
        beside["control"] = float(np.mean([control[name] for control in controls]))
        beside["better"] = gain.high < 0 if name in LOWER else gain.low > 0
    return average(of_runs(results, lambda each: each["found"][key]["mean"][name]), **beside)


def _measured(results):
    """The settings by which the measurements behind a value are found."""
    first = next(iter(results.values()))
    return {"cam": {name: first[name] for name in ("measure", "images") if name in first}}


def table(found: dict) -> Table:
    """A row for every map and measure, a column for every method (see :func:`score`)."""
    rows = []
    for key, entry in _one(found).items():
        for name in entry["mean"]:
            images = len(values(next(iter(found.values())), key, name)[0])
            row = {"map": title(key), "measure": NAMES[name], "n": _counts(found), "images": images}
            rows.append(row | {label: score(own, key, name) for label, own in found.items()})
    return Table(rows)


def of_runs(results: dict, value) -> dict:
    """run_id -> ``value`` of each result of a method's networks; by seed where the results do not
    come from records.
    """
    return {result.get("run_id", seed): value(result) for seed, result in results.items()}


def _counts(found):
    counts = sorted({len(results) for results in found.values()})
    return str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"


def _drawn(found, make, name) -> dict:
    """(mixer, name of the method) -> what is drawn of its results."""
    return {(mixer_of(label), label): make(results, name) for label, results in found.items()}


def panels(found: dict, names) -> list:
    """For :func:`rmlib.study.figures.measures`: a panel for each of the measures that were made,
    for the first map, with every method's control.
    """
    key, entry = next(iter(_one(found).items()))

    def dots(results, name):
        own = score(results, key, name)
        control = math.nan if own.control is None else own.control
        return list(own.sides[""].values()), own.low, own.high, control

    return [(NAMES[name], _drawn(found, dots, name)) for name in names if name in entry["mean"]]


def stages(found: dict) -> tuple[list, list[str]]:
    """For :func:`rmlib.study.figures.lines`: a panel for each map of the sanity check, from the
    trained network (100) to one shuffled throughout; and the stages in words.
    """
    maps = _one(found)
    names = next(iter(maps.values()))["stages"]

    def line(results, key):
        own = _in(results, key, "stages")
        return [100.0, *(_mean(each[stage] for each in own) for stage in maps[key]["stages"])]

    drawn = [(title(key), _control(found, key), _drawn(found, line, key)) for key in maps]
    return drawn, ["nothing", *(STAGES.get(stage, stage) for stage in names)]


def removal(found: dict) -> list:
    """For :func:`rmlib.study.figures.lines`: the deletion and the insertion curve of the first map,
    mean over images and networks.
    """
    key = next(iter(_one(found)))

    def mean(results, name):
        return np.mean([curves[name] for curves in _in(results, key, "curves")], axis=0)

    return [(name, None, _drawn(found, mean, name)) for name in ("deletion", "insertion")]


def mixer_of(label: str) -> str:
    """The mixer behind the name of a method, such as 'Region Mixup, k=4': its colour in figures."""
    mixers = {name: mixer for mixer, name in LABELS.items()}
    return mixers.get(label.split(",")[0], "none")


def _mean(numbers):
    """Mean of the numbers that are known (not None)."""
    return stats.mean_std([number for number in numbers if number is not None])[0]


def _control(found, key):
    """Mean of the control of the sanity check over all networks."""
    return _mean(each for results in found.values() for each in _in(results, key, "control"))


def sanity(found: dict) -> Table:
    """A row for every map and stage of the sanity check: mean rank correlation (hundredths) with
    the map of the trained network, and its standard deviation over networks.
    """
    rows = []
    for key, entry in _one(found).items():
        control = _control(found, key)
        for number, stage in enumerate(entry["stages"]):
            shuffled = ("and " if number else "") + STAGES.get(stage, stage)
            row = {"map": title(key), "shuffled": shuffled, "n": _counts(found)}
            left = []
            for label, results in found.items():
                own = of_runs(results, lambda result: result["found"][key]["stages"][stage])
                known = {run: number for run, number in own.items() if number is not None}
                row[label] = average(known, measured=_measured(results))
                left += [each[stage] for each in _in(results, key, "left_out")]
            rows.append(row | {CONTROL: control, "left out": round(float(np.mean(left)), 1)})
    return Table(rows)


def differences(several: list[dict]) -> Table | None:
    """Region Mixup minus every other method that treats the clean batch as it does, in the measures
    COMPARED of the first map, paired by seed and image, with 95 % intervals over both. None if
    there is nothing to compare.

    Args:
        several: ``found`` of one or more measures (localization, faithfulness). "resolved": p below
            0.05 after Holm's correction for the rows. With one network each there is no p: the
            interval is about two networks, not about two methods.
    """
    rows = []
    for found in several:
        key, entry = next(iter(_one(found).items()))
        pairs = [
            (own, label)
            for own, label in itertools.product(found, found)
            if mixer_of(own) == "region_mixup" != mixer_of(label) and _loss(own) == _loss(label)
        ]
        names = [name for name in COMPARED if name in entry["mean"]]
        for name, pair in itertools.product(names, pairs):
            seeds = sorted(set(found[pair[0]]) & set(found[pair[1]]))
            if seeds:
                rows.append(_difference(found, key, name, pair, seeds))
    for row, p in zip(rows, stats.holm([row["p (Holm)"] for row in rows])):
        row["p (Holm)"] = f"{p:.3f}" if p == p else "–"
        row["state"] = stats.state(p) if row["n"] > 1 else "one network each"
    return Table(rows) if rows else None


def _difference(found, key, name, pair, seeds) -> dict:
    """The columns of one method minus another in one measure, over the seeds of both."""
    measure = beyond_control if name in BEYOND else values
    scores, sides = [], []
    for label in pair:
        own = {seed: found[label][seed] for seed in seeds}
        of_images = measure(own, key, name)
        scores.append(of_images)
        run_ids = (result.get("run_id", seed) for seed, result in own.items())
        sides.append((label, dict(zip(run_ids, of_images.mean(1).tolist()))))
    d = stats.crossed(scores[0] - scores[1])
    return {
        "map": title(key),
        "measure": NAMES[name] + (f", beyond {CONTROL}" if name in BEYOND else ""),
        "difference": " - ".join(pair),
        "points": difference(d, *sides, measured=_measured(own)),
        "low": d.low,
        "high": d.high,
        "95 % interval": span(d.low, d.high, 1),
        "n": len(seeds),
        "images": d.n[1],
        "p (Holm)": d.p if len(seeds) > 1 else math.nan,
    }


def _loss(label):
    """The parts of a method's name that say how the clean batch counts, and how long."""
    if label == PLAIN:
        return ["clean_weight=0"]
    told = ("clean_weight", "average", "epochs")
    return [part for part in label.split(", ")[1:] if any(word in part for word in told)]
