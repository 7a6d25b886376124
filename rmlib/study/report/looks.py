"""Tables of where networks look, from the results of :mod:`rmlib.maps.battery`: for notebook 04 and
for reports.

``found`` is always a list of :class:`Looked`, a method each, on the same images.
"""

import itertools
import math
from dataclasses import dataclass, field, replace

import numpy as np

from rmlib.packed import unpack_values
from rmlib.study.names import MAPS, METHOD, method_name
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
# shares of a map or of a probability: their intervals end at 0 and 100
BOUNDED = ("energy_inside", "iou", "extent", "average_drop")
# of these, compared is what a map does beyond the map of another image: they depend on how
# confident a network is
BEYOND = ("deletion", "road")
# names of parts of the network in words
STAGES = {"linear": "head", "conv1": "stem"}


@dataclass(frozen=True)
class Looked:
    """What the networks of one method were found to look at, by one measure.

    Args:
        loss: weight of the clean loss, whether it is averaged, epochs.
        results: seed -> (run id, {kind of map: what was found}).
        settings: the other values of METHOD.
        measured: the settings by which the stored measurements are found.
        waiting: whether planned runs of the method are missing.
    """

    name: str
    mixer: str
    loss: tuple
    settings: dict
    results: dict
    measured: dict = field(default_factory=dict)
    waiting: bool = False

    @property
    def maps(self) -> dict:
        """What the first network was found to look at: kinds of maps, and their measures."""
        return next(iter(self.results.values()))[1]

    def parts(self, key: str, part: str) -> list:
        """One part of what was found of one kind of map, for every network."""
        return [found[key][part] for _, found in self.results.values()]

    def values(self, key: str, name: str, kind: str = "values") -> np.ndarray:
        """A measure of single images, (networks, images); kind="control_values": of its control."""
        return np.stack([unpack_values(each[name]) for each in self.parts(key, kind)])

    def beyond_control(self, key: str, name: str) -> np.ndarray:
        """The same minus that of the maps of other images."""
        return self.values(key, name) - self.values(key, name, "control_values")

    def by_run(self, numbers) -> dict:
        """run id -> number; ``numbers``: one for every network."""
        return dict(zip((run_id for run_id, _ in self.results.values()), numbers))


def by_method(results) -> list[Looked]:
    """``found`` of single networks. ``results``: (record, result of one measure) of each."""
    found: dict[str, Looked] = {}
    for record, result in results:
        config, name = record.config, method_name(record.config)
        loss = config["clean_weight"], config["average"], config["epochs"]
        settings = {key: config[key] for key in METHOD if key not in ("clean_weight", "average")}
        own = found.setdefault(name, Looked(name, config["mixer"], loss, settings, {}))
        own.results[config["seed"]] = record.run_id, result["found"]
    return list(found.values())


def of_group(group, cams) -> list[Looked]:
    """``found`` for the runs of an experiment; [] if nothing was measured.

    Args:
        cams: measurements of the kind "cam", of one measure.
    """
    cams = groups.one_sample(group, cams)
    if cams is None:
        return []
    results = dict(zip(cams["run_id"], cams["found"]))
    settings = {"cam": cams.iloc[0][["measure", "images"]].to_dict()}
    found = []
    for method in groups.finished(group):
        run_ids = method.runs["run_id"].items()
        own = {seed: (run_id, results[run_id]) for seed, run_id in run_ids if run_id in results}
        if own:
            told = method.name, method.mixer, method.loss, method.settings
            found.append(Looked(*told, own, settings, method.waiting))
    return found


def title(key: str) -> str:
    """'gradcam++ layer4' as a heading: 'Grad-CAM++ layer4'."""
    method, layer = key.split(" ", 1)
    return f"{MAPS[method]} {layer}"


def score(own: Looked, key: str, name: str) -> Value:
    """A measure of one map of a method: the mean over its networks and its spread, the 95 %
    interval over networks and images (see :func:`rmlib.study.report.stats.crossed`; of a share
    :func:`rmlib.study.report.stats.share`), and the control's mean, where there is one, with
    whether the maps beat it beyond such an interval.
    """
    several = own.values(key, name)
    spread = stats.crossed(several)
    low, high = stats.share(several) if name in SHARES else (spread.low, spread.high)
    if name in BOUNDED:
        low, high = np.clip((low, high), 0.0, 100.0).tolist()
    beside = {"low": low, "high": high, "measured": own.measured}
    controls = own.parts(key, "control")
    if name in controls[0]:
        gain = stats.crossed(own.beyond_control(key, name))
        beside["control"] = float(np.mean([control[name] for control in controls]))
        beside["better"] = gain.high < 0 if name in LOWER else gain.low > 0
    return average(own.by_run(mean[name] for mean in own.parts(key, "mean")), **beside)


def table(found: list[Looked]) -> Table | None:
    """A row for every map and measure, a column for every method (see :func:`score`); None if
    nothing was measured.
    """
    rows = []
    for key, entry in found[0].maps.items() if found else ():
        for name in entry["mean"]:
            images = found[0].values(key, name).shape[1]
            row = {"map": title(key), "measure": NAMES[name], "n": _counts(found), "images": images}
            rows.append(row | {own.name: score(own, key, name) for own in found})
    return Table(rows) if rows else None


def _counts(found):
    counts = sorted({len(own.results) for own in found})
    return str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"


def _drawn(found, make, name) -> dict:
    """(mixer, name of the method) -> what is drawn of its results."""
    return {(own.mixer, own.name): make(own, name) for own in found}


def panels(found: list[Looked], names) -> list:
    """For :func:`rmlib.study.figures.measures`: a panel for each of the measures that were made,
    for the first map, with every method's control.
    """
    key, entry = next(iter(found[0].maps.items()))

    def dots(own, name):
        value = score(own, key, name)
        control = math.nan if value.control is None else value.control
        return list(value.sides[""].values()), value.low, value.high, control

    return [(NAMES[name], _drawn(found, dots, name)) for name in names if name in entry["mean"]]


def stages(found: list[Looked]) -> tuple[list, list[str]]:
    """For :func:`rmlib.study.figures.lines`: a panel for each map of the sanity check, from the
    trained network (100) to one shuffled throughout; and the stages in words.
    """
    maps = found[0].maps
    names = next(iter(maps.values()))["stages"]

    def line(own, key):
        several = own.parts(key, "stages")
        return [100.0, *(_mean(each[stage] for each in several) for stage in maps[key]["stages"])]

    drawn = [(title(key), _control(found, key), _drawn(found, line, key)) for key in maps]
    return drawn, ["nothing", *(STAGES.get(stage, stage) for stage in names)]


def removal(found: list[Looked]) -> list:
    """For :func:`rmlib.study.figures.lines`: the deletion and the insertion curve of the first map,
    mean over images and networks.
    """
    key = next(iter(found[0].maps))

    def mean(own, name):
        return np.mean([curves[name] for curves in own.parts(key, "curves")], axis=0)

    return [(name, None, _drawn(found, mean, name)) for name in ("deletion", "insertion")]


def _mean(numbers):
    """Mean of the numbers that are known (not None)."""
    return stats.mean_std([number for number in numbers if number is not None])[0]


def _control(found, key):
    """Mean of the control of the sanity check over all networks."""
    return _mean(each for own in found for each in own.parts(key, "control"))


def sanity(found: list[Looked]) -> Table | None:
    """A row for every map and stage of the sanity check: mean rank correlation (hundredths) with
    the map of the trained network, and its standard deviation over networks. None if it was not
    made.
    """
    rows = []
    for key, entry in found[0].maps.items() if found else ():
        control = _control(found, key)
        for number, stage in enumerate(entry["stages"]):
            shuffled = ("and " if number else "") + STAGES.get(stage, stage)
            row = {"map": title(key), "shuffled": shuffled, "n": _counts(found)}
            left = []
            for own in found:
                numbers = own.by_run(each[stage] for each in own.parts(key, "stages"))
                known = {run: number for run, number in numbers.items() if number is not None}
                row[own.name] = average(known, measured=own.measured)
                left += [each[stage] for each in own.parts(key, "left_out")]
            rows.append(row | {CONTROL: control, "left out": round(float(np.mean(left)), 1)})
    return Table(rows) if rows else None


def differences(several: list[list[Looked]]) -> Table | None:
    """Region Mixup minus every other mixer under the same loss, all with default settings, in the
    measures COMPARED of the first map, paired by seed and image, with 95 % intervals over both.
    None if there is nothing to compare.

    Args:
        several: ``found`` of one or more measures (localization, faithfulness). "resolved": p below
            0.05 after Holm's correction for the rows; "interim": planned runs are missing. With one
            network each there is no p: the interval is about two networks, not about two methods.
    """
    rows, waiting = [], []
    for found in filter(None, several):
        key, entry = next(iter(found[0].maps.items()))
        usual = [own for own in found if groups.default(own.settings)]
        pairs = [
            (own, other)
            for own, other in itertools.product(usual, usual)
            if own.mixer == "region_mixup" != other.mixer and own.loss == other.loss
        ]
        names = [name for name in COMPARED if name in entry["mean"]]
        for name, (own, other) in itertools.product(names, pairs):
            if seeds := sorted(own.results.keys() & other.results.keys()):
                rows.append(_difference(own, other, key, name, seeds))
                waiting.append(own.waiting or other.waiting)
    corrected = stats.holm([row["p (Holm)"] for row in rows], waiting)
    for row, p, early in zip(rows, corrected, waiting):
        single = row["n"] == 1 and not early
        row["state"] = "one network each" if single else stats.state(p, row["p (Holm)"], early)
        row["p (Holm)"] = p
    return Table(rows) if rows else None


def _difference(a: Looked, b: Looked, key, name, seeds) -> dict:
    """The columns of one method minus another in one measure, over the seeds of both."""
    scores, sides = [], []
    for method in (a, b):
        own = replace(method, results={seed: method.results[seed] for seed in seeds})
        of_images = own.beyond_control(key, name) if name in BEYOND else own.values(key, name)
        scores.append(of_images)
        sides.append((own.name, own.by_run(of_images.mean(1).tolist())))
    d = stats.crossed(scores[0] - scores[1])
    return {
        "map": title(key),
        "measure": NAMES[name] + (f", beyond {CONTROL}" if name in BEYOND else ""),
        "difference": f"{a.name} - {b.name}",
        "points": difference(d, *sides, measured=a.measured),
        "low": d.low,
        "high": d.high,
        "95 % interval": span(d.low, d.high, 1),
        "n": len(seeds),
        "images": d.n[1],
        "p (Holm)": d.p if len(seeds) > 1 else math.nan,
    }
