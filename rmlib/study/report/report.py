"""Tables of what was run, from records and from nothing else.

A table is a pandas DataFrame with unrounded numbers: a column X with its sample standard deviation
in X_std beside it. :func:`render` makes Markdown of it, :func:`write_tables` CSV.
"""

import functools
import gc
import json
import math
import re
import weakref
from fractions import Fraction
from pathlib import Path

import numpy as np
import pandas as pd

from rmlib import UserError
from rmlib.packed import unpack_bits
from rmlib.params import MIXERS, TrainParams, nearest
from rmlib.robustness import masking
from rmlib.study.names import LABELS, METHOD, experiment, method_name
from rmlib.study.report import looks, origin, paper, small
from rmlib.study.report.stats import crossed, holm, mcnemar, mean_std, paired, seeds_needed, welch
from rmlib.study.runs import collection, records

METRICS = ("accuracy", "nll", "ece")
DEFAULTS = TrainParams().config
HIDDEN = (
    "diverged",
    "of",
    "low",
    "high",
)  # columns for figures and CSV, not for the rendered table
# heading and decimals of a column; others keep their name, and one decimal if they have a spread
HEADS = {
    "mixer": ("method", None),
    "accuracy": ("accuracy (%)", 2),
    "nll": ("NLL (nats)", 3),
    "ece": ("ECE (%)", 1),
    "clean_accuracy": ("clean (%)", 1),
    "images_per_second": ("images/s", 0),
    "fgsm": ("FGSM", 1),
    "zero_gradient": ("no gradient (%)", 1),
    "autoattack": ("AutoAttack", 1),
}


def runs_below(root: Path):
    """All runs below a folder, or of a :class:`rmlib.study.runs.collection.Collection`, as a table
    (see :func:`rmlib.study.runs.collection.collect`).

    Raises:
        UserError: there is no record.
    """
    runs = collection.collect(root)
    if runs.empty:
        raise UserError(
            f"there is no record under {Path(getattr(root, 'folder', root)).resolve()}: run a batch"
            " first, e.g. rmlib batch notebooks/batches/quick.yaml"
        )
    return runs


def experiments(runs) -> list:
    """The runs in groups that one table may compare: equal in everything but method and seed;
    largest networks first.
    """
    config = [f"config.{name}" for name in experiment(DEFAULTS)]
    groups = [
        runs.loc[index]
        for index in runs[config].map(str).groupby(config, sort=False).groups.values()
    ]
    return sorted(
        groups,
        key=lambda group: (
            -group["config.width"].iloc[0],
            -group["config.epochs"].iloc[0],
            group["config.dataset"].iloc[0],
        ),
    )


def methods(group, repeated: bool = False):
    """(cells of the method's columns, its runs) for every method of an experiment, in the order of
    MIXERS. A network counts once: of runs that differ only in parameters without effect on it, such
    as when the test set was looked at, the latest; ``repeated`` gives all of them.
    """
    return [(dict(cells), runs if repeated else latest) for cells, runs, latest in _methods(group)]


def once(function):
    """Remember what a function makes of an experiment for as long as that exists: a dozen tables
    ask for the same.
    """
    known = {}

    @functools.wraps(function)
    def remembered(group):
        of, found = known.get(id(group), (lambda: None, None))
        if of() is not group:
            found = function(group)
            known[id(group)] = (
                weakref.ref(group, lambda _, key=id(group): known.pop(key, None)),
                found,
            )
        return found

    return remembered


@once
def _methods(group):
    config = [f"config.{name}" for name in METHOD]
    keys = group[config].map(str)
    varying = [name for name in METHOD[1:] if keys[f"config.{name}"].nunique() > 1]
    found = [group.loc[index] for index in keys.groupby(config, sort=False).groups.values()]

    def order(rows):
        average, clean_weight, mixer = (
            rows[f"config.{name}"].iloc[0] for name in ("average", "clean_weight", "mixer")
        )
        return bool(average), -clean_weight, MIXERS.index(mixer), keys.loc[rows.index[0]].tolist()

    return [
        (
            {name: rows[f"config.{name}"].iloc[0] for name in ("mixer", *varying)},
            rows,
            _latest(rows),
        )
        for rows in sorted(found, key=order)
    ]


def _latest(rows):
    """Of the runs of one method the latest of each seed and precision."""
    same = ["config.seed", "config.precision"]
    if len(set(zip(*(rows[name] for name in same)))) == len(rows):
        return rows
    return (
        rows.sort_values("finished", kind="stable").drop_duplicates(same, keep="last").sort_index()
    )


def summary(group):
    """Mean, sample standard deviation and n of every method of an experiment; diverged runs are
    counted, not averaged.
    """
    table = []
    for row, runs in methods(group):
        good = runs[runs["status"] == "done"]
        row |= {"n": len(good), "diverged": len(runs) - len(good)}
        for metric in METRICS:
            origin.average(
                row, metric, dict(zip(good["run_id"], good.get(f"metrics.{metric}", [])))
            )
        table.append(row)
    return origin.table(table)


COMPARED = (
    "run_id",
    "config.mixer",
    "config.clean_weight",
    "config.seed",
    "metrics.accuracy",
    "correct",
    "data.checksum",
    "data.test_images",
)  # what is needed of a run


@once
def compared(group):
    """The comparisons of an experiment, (label, mixer of the label's end, runs of A, runs of B,
    their :func:`verdicts`) each: Region Mixup with the clean loss minus each other method with it,
    and every method with the clean loss minus without. The runs are the finished ones, one for each
    seed, indexed by it.
    """
    found = {}
    for row, runs in methods(group):
        if all(
            runs[f"config.{name}"].iloc[0] == DEFAULTS[name]
            for name in METHOD
            if name not in ("mixer", "clean_weight")
        ):
            good = runs.loc[runs["status"] == "done", [name for name in COMPARED if name in runs]]
            if len(good):
                found[row["mixer"], runs["config.clean_weight"].iloc[0] > 0] = good.set_index(
                    "config.seed"
                ).sort_index()
    pairs = [("region_mixup", True, mixer, True) for mixer in MIXERS if mixer != "region_mixup"] + [
        (mixer, True, mixer, False) for mixer in MIXERS
    ]
    return [
        (
            (
                f"{LABELS[a]} - {LABELS[b]}"
                if a != b
                else f"{LABELS[a]}: with - without the clean loss"
            ),
            b,
            found[a, clean_a],
            found[b, clean_b],
            verdicts(found[a, clean_a], found[b, clean_b]),
        )
        for a, clean_a, b, clean_b in pairs
        if (a, clean_a) in found and (b, clean_b) in found
    ]


def sides(a, b) -> dict:
    """What :func:`rmlib.study.report.origin.note` remembers of a comparison: the accuracies of the
    runs of A and of B, see :func:`compared`.
    """
    found = {}
    for runs in (a, b):
        first = runs.iloc[0]
        side = f"{LABELS[first['config.mixer']]}, clean_weight={first['config.clean_weight']:g}"
        found[side] = dict(zip(runs["run_id"], runs["metrics.accuracy"]))
    return found


def verdicts(a, b):
    """The verdicts of the networks of equal seeds of A and of B on the same test images, two bool
    arrays (seeds, images); None if no two saw the same.

    Args:
        a, b: runs indexed by their seed, see :func:`compared`.
    """
    both = a.index.intersection(b.index)
    a, b = a.loc[both], b.loc[both]
    same = (
        (a["data.checksum"] == b["data.checksum"])
        & (a["data.test_images"] == b["data.test_images"])
        & a["correct"].notna()
        & b["correct"].notna()
    )
    a, b = a[same], b[same]
    if not len(a) or a["data.test_images"].nunique() > 1:
        return None
    return tuple(
        np.stack(
            [
                unpack_bits(text, int(count))
                for text, count in zip(runs["correct"], runs["data.test_images"])
            ]
        )
        for runs in (a, b)
    )


def span(difference) -> str:
    """'[-0.12, +0.48]': a 95 % interval; a dash where there is none."""
    return (
        f"[{difference.low:+.2f}, {difference.high:+.2f}]"
        if difference.low == difference.low
        else "–"
    )


DIFFERENCES = (
    "accuracy in points; 95 % interval: Welch's t over seeds; paired: over equal seeds, r their"
    " correlation; seeds and images: over both, from the verdicts of equal seeds on single images"
    " (over images alone where there is one seed); p of Welch's t corrected by Holm for the"
    " comparisons of this table, the intervals are not; seeds to resolve: of each method, if"
    " difference and spread are what was seen, in 80 % of cases, at 5 % over the number of"
    " comparisons"
)


def differences(group):
    """Differences in accuracy within an experiment, see :func:`compared`, by Welch's t, paired by
    seed, and over seeds and images. "resolved": p below 0.05 after Holm's correction for the number
    of comparisons. None if there is nothing to compare.
    """
    table, spreads = [], []
    for label, of, a, b, seen in compared(group):
        accuracy = [runs["metrics.accuracy"] for runs in (a, b)]
        both = a.index.intersection(b.index)
        d, pairs = welch(*accuracy), paired(*(each.reindex(both) for each in accuracy))
        images = None if seen is None else crossed(100.0 * seen[0] - 100.0 * seen[1])
        spreads.append([mean_std(each)[1] for each in accuracy])
        table.append(
            {
                "difference": label,
                "of": of,
                "points": d.mean,
                "low": d.low,
                "high": d.high,
                "95 % interval": span(d),
                "n": f"{d.n[0]}, {d.n[1]}",
                "paired": span(pairs),
                "paired_low": pairs.low,
                "paired_high": pairs.high,
                "r": round(pairs.correlation, 2),
                "seeds and images": "–" if images is None else span(images),
                "p (Holm)": d.p,
            }
        )
        origin.note(table[-1], "points", sides(a, b))
    corrected = holm([row["p (Holm)"] for row in table])
    for row, spread, p in zip(table, spreads, corrected):
        needed = (
            math.nan
            if p < 0.05 or p != p
            else seeds_needed(row["points"], *spread, alpha=0.05 / np.isfinite(corrected).sum())
        )
        row |= {
            "p (Holm)": round(p, 3),
            "state": "resolved" if p < 0.05 else "unresolved",
            "seeds to resolve": needed if math.isfinite(needed) else math.nan,
        }
    return origin.table(table) if table else None


NETWORKS = (
    "McNemar's exact test of two networks at a time, those of equal seeds, on all test images;"
    " better, worse: pairs in which p is below 0.05, uncorrected. It is about these networks: of"
    " two methods it says nothing, which is why pairs of the same methods may contradict each other"
)


def networks(group):
    """Two networks of equal seed at a time, for the comparisons of :func:`compared`: how often the
    first is better, worse, or not told apart by McNemar's test on single images. None if there are
    no such pairs.
    """
    table = []
    for label, _, a, b, seen in compared(group):
        found = [mcnemar(*pair) for pair in zip(*seen)] if seen else []
        told = [each.points for each in found if each.p < 0.05]
        if found:
            table.append(
                {
                    "two networks": label,
                    "pairs": len(found),
                    "better": sum(each > 0 for each in told),
                    "worse": sum(each < 0 for each in told),
                    "not told apart": len(found) - len(told),
                    "points of each pair": ", ".join(f"{each.points:+.2f}" for each in found),
                    "p of each pair": ", ".join(
                        f"{each.p:.3f}" if each.p >= 0.001 else "<0.001" for each in found
                    ),
                }
            )
            origin.note(table[-1], "points of each pair", sides(a, b))
    return origin.table(table) if table else None


def accuracy_curves(root: Path) -> dict[str, list[tuple[int, float]]]:
    """Test accuracy in percent on the way of every run below a folder: run_id -> [(epoch,
    accuracy)], empty where the test set was not looked at.
    """
    found = sorted(collection.find(root), key=lambda record: record.finished)
    return {
        record.run_id: [
            (row["epoch"], row["test_accuracy"])
            for row in record.history
            if row.get("test_accuracy") is not None
        ]
        for record in found
    }


def told_twice(group, curves: dict):
    """The same runs told at their last epoch, and at their best epoch on the test set, which nobody
    may do: Welch's t, uncorrected, as a table with two rows for each comparison of
    :func:`compared`, or None if no two methods have curves of two points or more.

    Args:
        curves: of :func:`accuracy_curves`.
    """
    table = []
    for label, of, a, b, _ in compared(group):
        seen = [
            [
                [accuracy for _, accuracy in curves[run_id]]
                for run_id in runs["run_id"]
                if len(curves.get(run_id, ())) > 1
            ]
            for runs in (a, b)
        ]
        if all(seen):
            for when, pick in (("last epoch", lambda curve: curve[-1]), ("best epoch", max)):
                table.append(
                    difference_row(
                        f"{label}, {when}", of, *([pick(curve) for curve in each] for each in seen)
                    )
                )
    return pd.DataFrame(table) if table else None


def difference_row(label: str, of: str, a, b) -> dict:
    """One row for :func:`rmlib.study.figures.forest`: Welch's difference of two lists of accuracies
    in percent, and whether its p, uncorrected, is below 0.05.
    """
    d = welch(a, b)
    return {
        "difference": label,
        "of": of,
        "points": d.mean,
        "low": d.low,
        "high": d.high,
        "p": d.p,
        "state": "resolved" if d.p < 0.05 else "unresolved",
    }


def precisions(runs):
    """Training in bfloat16 beside float32: accuracy of runs that are equal in everything else,
    paired by seed, as [(caption, table)].

    "equal within the spread": the 95 % interval of the paired difference lies within one sample
    standard deviation of the float32 seeds either way. "differs": it excludes 0, and is not within
    that.
    """
    if runs["config.precision"].nunique() < 2:
        return []
    names = [f"config.{name}" for name in experiment(DEFAULTS) if name != "precision"]
    good, found = runs[runs["status"] == "done"], []
    for index in good[names].map(str).groupby(names, sort=False).groups.values():
        group, table = good.loc[index], []
        for row, own in methods(group):
            by = {
                name: part.set_index("config.seed")["metrics.accuracy"]
                for name, part in own.groupby("config.precision")
            }
            seeds = (
                sorted(set.intersection(*(set(part.index) for part in by.values())))
                if len(by) == 2
                else []
            )
            if len(seeds) > 1:
                full, half = (by[name].loc[seeds].to_numpy() for name in ("fp32", "bf16"))
                d = paired(half, full)
                spread, run_ids = (
                    mean_std(full)[1],
                    {
                        name: (
                            own[own["config.precision"] == name]
                            .set_index("config.seed")
                            .loc[seeds, "run_id"]
                        )
                        for name in by
                    },
                )
                full, half = (
                    dict(zip(run_ids[name], values))
                    for name, values in (("fp32", full), ("bf16", half))
                )
                row |= {"n": len(seeds)}
                origin.average(row, "float32 (%)", full)
                origin.average(row, "bfloat16 (%)", half)
                origin.note(row, "difference", {"bfloat16": half, "float32": full})
                state = (
                    "equal within the spread"
                    if -spread <= d.low and d.high <= spread
                    else "differs"
                    if d.low > 0 or d.high < 0
                    else "unresolved"
                )
                table.append(
                    row
                    | {
                        "difference": f"{d.mean:+.2f}",
                        "95 % interval": f"[{d.low:+.2f}, {d.high:+.2f}]",
                        "state": state,
                    }
                )
        if table:
            found.append(
                (
                    (
                        f"{title(group).removesuffix(', bfloat16')}; accuracy after training in"
                        " each precision, evaluated in float32; mean ± sample standard deviation"
                        " over n seeds; bfloat16 - float32 in points, paired by seed; equal within"
                        " the spread: its interval lies within one standard deviation of the"
                        f" float32 seeds; on {_hardware(group)}"
                    ),
                    origin.table(table),
                )
            )
    return found


ATTACK_LABELS = {
    "fgsm": "FGSM",
    "fgsm_margin": "FGSM on the margin",
    "pgd": "PGD",
    "square": "Square",
    "square_torchattacks": "torchattacks' Square",
    "autoattack": "AutoAttack",
}


def attack_name(row) -> str:
    """'FGSM 8/255', 'Square 8/255 (100 queries)': an attack as a heading."""
    return f"{ATTACK_LABELS[row['attack']]} {row['eps']}" + (
        f" ({int(row['queries'])} queries)" if row["attack"].startswith("square") else ""
    )


def one_sample(group, measured):
    """The measurements of a group's runs on one sample of images, the same for all: the largest, of
    equal ones the latest; so a network counts once. For attacks one sample for each of them. None
    if there is none.
    """
    own = (
        measured[measured["run_id"].isin(group["run_id"])].sort_values(["images", "finished"])
        if len(measured)
        else measured
    )
    if not len(own):
        return None
    identity = [
        name
        for name in ("images", "image_seed", "checksum", "batch_size", "maps", "k")
        if name in own
    ]
    samples = [
        rows[(rows[identity].map(str) == rows[identity].map(str).iloc[-1]).all(axis=1)]
        for _, rows in (own.groupby("attack", sort=False) if "attack" in own else [("", own)])
    ]
    return pd.concat(samples)


def robustness(group, attacks, corruptions):
    """Accuracy after FGSM and Square at each size, and under corruptions (percent of the images)
    per method; None if nothing was measured.
    """
    attacks = one_sample(
        group,
        (
            attacks[attacks["attack"].isin(("fgsm", "square", "square_torchattacks"))]
            if len(attacks)
            else attacks
        ),
    )
    corruptions = one_sample(group, corruptions)
    if attacks is None and corruptions is None:
        return None
    names = []
    if attacks is not None:
        attacks = attacks.assign(
            name=attacks.apply(attack_name, axis=1),
            size=attacks["eps"].map(lambda text: float(Fraction(text))),
        )
        names = (
            attacks[attacks["size"] > 0].sort_values(["attack", "size"])["name"].drop_duplicates()
        )  # eps = 0 is the clean accuracy
    table = []
    for row, runs in methods(group):
        own, changed = (
            None if measured is None else measured[measured["run_id"].isin(runs["run_id"])]
            for measured in (attacks, corruptions)
        )
        clean = pd.concat([rows for rows in (own, changed) if rows is not None])
        if len(clean):
            _clean(row, clean)
            for name in names:
                same = own[own["name"] == name]
                origin.average(row, name, dict(zip(same["run_id"], same["accuracy_after"])))
            if changed is not None:
                origin.average(
                    row, "corrupted (mean)", dict(zip(changed["run_id"], changed["mean_accuracy"]))
                )
            table.append(row)
    return origin.table(table)


def _clean(row, measured):
    """Put into a row: networks behind some measurements, images of each, and their accuracy before
    anything was done to the images.
    """
    networks = measured.drop_duplicates("run_id")
    row |= {"n": len(networks), "images": int(networks["images"].min())}
    origin.average(row, "clean_accuracy", dict(zip(networks["run_id"], networks["clean_accuracy"])))


def checks(group, attacks):
    """FGSM beside the attacks that it is checked against, per method and size, on the images that
    all of them saw, with what contradicts it (see :func:`rmlib.robustness.masking.check`); None if
    no stronger attack was made.
    """
    if (
        not len(attacks)
        or not (attacks["run_id"].isin(group["run_id"]) & (attacks["attack"] == "pgd")).any()
    ):
        return None
    fgsm = one_sample(group, attacks[attacks["attack"] == "fgsm"])
    drawn = (attacks["image_seed"] == fgsm["image_seed"].iloc[0]) & (
        attacks["checksum"] == fgsm["checksum"].iloc[0]
    )  # parts of one sample
    beside = attacks[drawn & (attacks["attack"] != "fgsm")]
    budget = beside["queries"].fillna(0) if "queries" in beside else 0
    beside = (
        beside.assign(budget=budget)
        .sort_values(["images", "budget", "finished"])
        .drop_duplicates(["run_id", "attack", "eps"], keep="last")
    )
    attacks = pd.concat([fgsm, beside])
    total, table = group.set_index("run_id")["data.test_images"], []
    for row, runs in methods(group):
        own = attacks[attacks["run_id"].isin(runs["run_id"])]
        known = {
            run_id: {(each["attack"], each["eps"]): each for each in rows.to_dict("records")}
            for run_id, rows in own.groupby("run_id")
        }
        sizes = {
            eps
            for results in known.values()
            for name, eps in results
            if name == "pgd" and ("fgsm", eps) in results
        }
        for eps in sorted(sizes, key=Fraction):
            networks = {
                run_id: results
                for run_id, results in known.items()
                if ("pgd", eps) in results and ("fgsm", eps) in results
            }
            found = {
                run_id: masking.check(
                    results, eps, int(total[run_id]), int(results["fgsm", eps]["image_seed"])
                )
                for run_id, results in networks.items()
            }
            line = row | {
                "eps": eps,
                "n": len(found),
                "images": min(each["images"] for each in found.values()),
            }
            for name in ("fgsm", "strongest", "zero_gradient"):
                origin.average(line, name, {run_id: each[name] for run_id, each in found.items()})
            last = {
                run_id: results["autoattack", eps]
                for run_id, results in networks.items()
                if ("autoattack", eps) in results
            }
            origin.average(
                line,
                "autoattack",
                {run_id: each["robust_accuracy"] for run_id, each in last.items()},
            )
            line["its images"] = min(each["images"] for each in last.values()) if last else None
            told = [text for each in found.values() for text in each["warnings"]]
            line["warning"] = (
                "; ".join(
                    f"{text} ({told.count(text)} of {len(found)})"
                    for text in masking.WARNINGS
                    if text in told
                )
                or None
            )
            table.append(line)
    return origin.table(table) if table else None


def corrupted(group, measured):
    """Accuracy under each corruption (percent, mean over its five severities) per method; None if
    it was not measured.
    """
    measured = one_sample(group, measured)
    if measured is None:
        return None
    table = []
    for row, runs in methods(group):
        own = measured[measured["run_id"].isin(runs["run_id"])]
        if len(own):
            _clean(row, own)
            for name in own["accuracy"].iloc[0]:
                origin.average(
                    row,
                    name.replace("_", " "),
                    {
                        run_id: sum(each[name]) / len(each[name])
                        for run_id, each in zip(own["run_id"], own["accuracy"])
                    },
                )
            origin.average(row, "mean", dict(zip(own["run_id"], own["mean_accuracy"])))
            table.append(row)
    return origin.table(table)


def looks_of(group, cams, measure: str) -> dict | None:
    """The results of one measure of the maps, {name of the method: {seed: result}}, for
    :mod:`rmlib.study.report.looks`; None if it was not made.
    """
    cams = one_sample(group, cams[cams["measure"] == measure] if len(cams) else cams)
    if cams is None:
        return None
    results = {
        run["run_id"]: {name: run[name] for name in run if run[name] == run[name]}
        for run in cams.to_dict("records")
    }
    found = {}
    for _, runs in methods(group):
        own = runs[runs["run_id"].isin(results)].sort_values("config.seed")
        if len(own):
            label = method_name({name: own[f"config.{name}"].iloc[0] for name in METHOD})
            found[label] = {
                run["config.seed"]: results[run["run_id"]] for run in own.to_dict("records")
            }
    return found


def of_maps(measure: str, make):
    """The function (group, cams) behind a table of :mod:`rmlib.study.report.looks`, made from the
    results of one measure; it gives None if that was not made.
    """

    def table(group, cams):
        found = looks_of(group, cams, measure)
        return found and make(found)

    return table


def looks_differences(group, cams):
    """Region Mixup minus the other methods in the measures of the maps, see
    :func:`rmlib.study.report.looks.differences`; None if there is nothing to compare.
    """
    return looks.differences(
        [found for found in (looks_of(group, cams, measure) for measure in LOOKS["looks"]) if found]
    )


COSTS = (
    "hours of a GPU where the work was done on one, else hours of a process on a CPU, whatever its"
    " threads; the two are never added. Training: from the first step to the last evaluation, all"
    " attempts together, seconds that several runs shared divided among them; measurements:"
    " attacks, corruptions and maps on the trained networks; images/s: training images, each seen"
    " clean and mixed where there is a clean loss"
)


def costs(runs, measured: dict):
    """What every experiment took, in hours of each kind of device: training, measurements on the
    networks afterwards, their sum; speed, hardware; and the total.

    Args:
        measured: kind of :data:`rmlib.study.runs.records.KINDS` -> its measurements, see
            :func:`rmlib.study.runs.collection.collect_measurements`.
    """
    after = pd.concat([rows for rows in measured.values() if len(rows)] or [runs.iloc[:0]])
    work = pd.concat(
        [
            runs.assign(
                training=runs["seconds"] / runs["together"] / 3600,
                images_per_second=runs["images_per_second"] * runs["together"],
            ),
            after.assign(measurements=after["seconds"] / 3600).drop(
                columns="images_per_second", errors="ignore"
            ),
        ]
    )
    work["unit"] = work["hardware.device"].map(
        lambda device: "GPU-hours" if device == "cuda" else "CPU-hours"
    )
    table = []
    for name, group in [*((title(group), group) for group in experiments(runs)), ("all", runs)]:
        for unit, rows in work[work["run_id"].isin(group["run_id"])].groupby("unit", sort=True):
            speed, spread = (
                mean_std(rows["images_per_second"].dropna())
                if name != "all"
                else (math.nan, math.nan)
            )
            hours = [
                rows[kind].sum() if kind in rows else 0.0 for kind in ("training", "measurements")
            ]
            table.append(
                {
                    "experiment": name,
                    "runs": int(rows["training"].notna().sum()),
                    "training": round(hours[0], 2),
                    "measurements": round(hours[1], 2),
                    "sum": round(sum(hours), 2),
                    "unit": unit,
                    "images_per_second": speed,
                    "images_per_second_std": spread,
                    "hardware": _hardware(rows),
                }
            )
            origin.note(
                table[-1],
                "sum",
                {
                    kind: rows.groupby("run_id", sort=False)[kind].sum().to_dict()
                    for kind in ("training", "measurements")
                    if kind in rows
                },
            )
            if name != "all":
                origin.note(
                    table[-1],
                    "images_per_second",
                    {
                        "": (
                            rows.dropna(subset="images_per_second")
                            .set_index("run_id")["images_per_second"]
                            .to_dict()
                        )
                    },
                )
    return origin.table(table)


def title(group) -> str:
    """'cifar10, width 8, 10 epochs, 5000 training images, bfloat16': an experiment in a few words;
    trained in float32 if it says nothing.
    """
    first = group.iloc[0]
    return (
        f"{first['config.dataset']}, width {first['config.width']}, {first['config.epochs']}"
        f" epochs, {first['data.train_images']} training images"
        + (", bfloat16" if first["config.precision"] == "bf16" else "")
    )


def caption(group) -> str:
    """What all runs of an experiment share: configuration, images, seeds, time, hardware."""
    config = {
        name.removeprefix("config."): group[name].iloc[0]
        for name in group.columns
        if name.startswith("config.") and group[name].map(str).nunique() == 1
    }
    first = [
        f"{name} {config.pop(name)}"
        for name in ("dataset", "width", "epochs", "batch_size", "schedule", "lr")
        if name in config
    ]
    told = (
        "mixer",
        "seed",
        "train_images",
        "test_images",
        "eval_every",
    )  # in the rows, told by the numbers of images, or of no effect
    first += [
        f"{name} {value}"
        for name, value in config.items()
        if name not in told
        and value != DEFAULTS.get(name)
        and not (isinstance(value, float) and value != value)
        and value is not None
    ]
    images = (
        f"{_all(group, 'data.train_images')} training and {_all(group, 'data.test_images')} test"
        " images"
    )
    return (
        f"{', '.join(first)}; {images}; seeds {_all(group, 'config.seed')}; mean ± sample standard"
        f" deviation over n seeds; {(group['seconds'] / group['together']).sum() / 60:.1f} minutes"
        f" summed over the runs, on {_hardware(group)}, torch {_all(group, 'versions.torch')}"
    )


def _all(group, name):
    return ", ".join(map(str, sorted(set(group[name].dropna()))))


def _hardware(group):
    """Every device of some runs or measurements, a GPU by its name, a CPU with its cores."""
    gpus = (
        group["hardware.gpu"]
        if "hardware.gpu" in group
        else pd.Series(index=group.index, dtype=object)
    )
    names = {
        gpu if isinstance(gpu, str) else f"{cpu} ({int(cores)} cores)"
        for gpu, cpu, cores in zip(gpus, group["hardware.cpu"], group["hardware.cores"])
    }
    return ", ".join(sorted(names))


def cells(table) -> tuple[list[str], list[str], list[str], list[list[str]]]:
    """A table as it is printed: names, headings and alignment of the columns that are shown, and
    the rows of text; X and X_std become '82.31 ± 0.40', nothing known a dash.
    """
    columns = [
        name
        for name in table.columns
        if not name.endswith(("_std", "_low", "_high", "_better", "_control"))
        and name not in HIDDEN
    ]
    spread = [f"{name}_std" in table.columns for name in columns]
    heads = [HEADS.get(name, (name, None))[0] for name in columns]
    rules = [
        (
            "---:"
            if wide or pd.api.types.is_numeric_dtype(table[name]) and name not in METHOD
            else "---"
        )
        for name, wide in zip(columns, spread)
    ]
    lines = []
    for row in table.to_dict("records"):
        texts = []
        for name, wide in zip(columns, spread):
            decimals = HEADS.get(name, (name, None))[1]
            low, high = row.get(f"{name}_low", math.nan), row.get(f"{name}_high", math.nan)
            texts.append(
                cell(row[name], row[f"{name}_std"], 1 if decimals is None else decimals)
                + (f" [{low:.1f}, {high:.1f}]" if low == low else "")
                + _beside(row.get(f"{name}_control"), row.get(f"{name}_better"))
                if wide
                else _plain(name, row[name])
            )
            if name == "n" and row.get("diverged"):
                texts[-1] += f" (+ {row['diverged']} diverged)"
        lines.append(texts)
    return columns, heads, rules, lines


def render(table) -> str:
    """A table in Markdown, see :func:`cells`."""
    _, heads, rules, lines = cells(table)
    return "\n".join(f"| {' | '.join(line)} |" for line in (heads, rules, *lines)) + "\n"


def _beside(control, better):
    """' (20.8)*': the control of a measure, with a star where the measure beats it."""
    return (
        ""
        if control is None or control != control
        else f" ({control:.1f})" + ("*" if better is True else "")
    )


def cell(mean, std, decimals: int) -> str:
    """'82.31 ± 0.40'; without a spread the mean alone, without a mean a dash."""
    if mean is None or mean != mean:
        return "–"
    return f"{mean:.{decimals}f}" + (
        f" ± {std:.{decimals}f}" if std is not None and std == std else ""
    )


def _plain(name, value):
    if name == "mixer":
        return LABELS[value]
    if value is None or value != value:
        return "–"
    if name == "points":
        return f"{value:+.2f}"
    if name == looks.CONTROL:
        return f"{value:.1f}"
    return f"{value:g}" if isinstance(value, float) else str(value)


def tables(root: Path) -> dict[str, list[tuple[str, object]]]:
    """Every table below a folder of records, or of a
    :class:`rmlib.study.runs.collection.Collection`: kind -> list of (caption, DataFrame), with the
    runs behind each cell in its ``attrs`` (see :mod:`rmlib.study.report.origin`).

    Kinds: ``accuracy``, ``differences``, ``networks``, ``robustness``, ``checks``, ``corrupted``,
    ``localization``, ``faithfulness``, ``sanity``, ``guard`` and ``looks`` with one table per
    experiment, ``precision``, ``paper`` with the paper's Tables 1 to 4 beside ours, ``eps``,
    ``claims``, ``small`` with the claims of the small-data study where some of it was run, and
    ``costs``.
    """
    root = collection.opened(root)
    runs = runs_below(root)
    # statsmodels' Holm collects all garbage at every call, which need not go through all records
    gc.freeze()
    measured = {kind: collection.collect_measurements(root, kind) for kind in records.KINDS}
    groups = experiments(runs)
    found = {
        "accuracy": [(caption(group), summary(group)) for group in groups],
        "differences": [],
        "networks": [],
        **{kind: [] for kind in MEASURED},
    }
    for group in groups:
        for kind, note, make in (
            ("differences", DIFFERENCES, differences),
            ("networks", NETWORKS, networks),
        ):
            table = make(group)
            if table is not None:
                found[kind].append((f"{title(group)}; {note}", table))
        for kind, (note, make, sources) in MEASURED.items():
            table = make(group, *(measured[source] for source in sources))
            if table is not None:
                behind = [measured[source] for source in sources]
                if kind in LOOKS:
                    behind = [each[each["measure"].isin(LOOKS[kind])] for each in behind]
                devices = pd.concat(
                    [
                        rows
                        for rows in (one_sample(group, each) for each in behind)
                        if rows is not None
                    ]
                )
                spread = "" if kind == "looks" else "n networks, mean ± sample standard deviation; "
                found[kind].append(
                    (f"{title(group)}; {note}; {spread}on {_hardware(devices)}", table)
                )
    found["precision"] = precisions(runs)
    attacks = measured["attacks"]
    found["paper"] = paper.tables(runs, attacks)
    found["eps"] = [
        (
            (
                "The paper gives no eps. Size of perturbation, in 255ths of the pixel range, at"
                " which our networks under its protocol give its numbers: for each method alone,"
                " and the one that comes closest to all three, with its 95 % interval and the p of"
                " what does not fit (0.05 or less: no one eps fits; more: not rejected, which is"
                " less than shown)"
            ),
            paper.fitting_eps(runs, attacks),
        )
    ]
    found["claims"] = [(paper.CAPTION, paper.claims(runs, attacks))]
    claimed = small.claims(runs, attacks)
    found["small"] = [] if claimed is None else [(small.CAPTION, claimed)]
    found["costs"] = [(COSTS, costs(runs, measured))]
    return found


LOOKS = {
    "localization": ("localization",),
    "faithfulness": ("faithfulness",),
    "sanity": ("sanity",),
    "guard": ("guard",),
    "looks": ("localization", "faithfulness"),
}  # measures in cam.json
BETTER = (
    "in brackets the 95 % interval over networks and images (over images alone where n is 1), in"
    f" parentheses the same measure with {looks.CONTROL}, explained for another class, and a star"
    " where the map does better than that, paired by image and network, beyond such an interval"
)
# kind -> (what its numbers are, the function that makes it, the measurements it is made from)
MEASURED = {
    "robustness": (
        (
            "accuracy in percent of `images` test images per network; corrupted: mean over nine"
            " corruptions at five severities"
        ),
        robustness,
        ("attacks", "corruptions"),
    ),
    "checks": (
        (
            "accuracy in percent of the `images` that all attacks saw; strongest: the worst case"
            " for each image over FGSM, the same step on the margin, PGD with 20 steps, and Square"
            " where it was run at this eps; AutoAttack on fewer images; a warning names what"
            " contradicts FGSM, or what cannot be told, with the number of networks"
        ),
        checks,
        ("attacks",),
    ),
    "corrupted": (
        "accuracy in percent of `images` test images per network, mean over five severities",
        corrupted,
        ("corruptions",),
    ),
    "localization": (
        (
            f"maps of the true class; {BETTER}; extent: the image's share above half of the map's"
            " maximum; trace of the grid: asymmetry between the quarters of a window around the"
            " middle (k = 2) minus that within the tiles, on the cells of the layer; an empty map"
            " (no evidence for the class) has no extent, and elsewhere counts as a flat one"
        ),
        of_maps("localization", looks.table),
        ("cam",),
    ),
    "faithfulness": (
        (
            f"maps of the predicted class; {BETTER}; Average Drop and deletion: less is more"
            " faithful; the others: more is; deletion and insertion: area under the curve of the"
            " probability in percent of that on the whole image; ROAD combined, in points of"
            " probability, over 20, 40, 60 and 80 % of the pixels"
        ),
        of_maps("faithfulness", looks.table),
        ("cam",),
    ),
    "sanity": (
        (
            "rank correlation in hundredths of the maps of the true class with those of the"
            " network with shuffled weights, from the head down; a map that comes from what was"
            f" learned falls to that with {looks.CONTROL} or below; left out: pairs per network in"
            " which a map is empty"
        ),
        of_maps("sanity", looks.sanity),
        ("cam",),
    ),
    "guard": (
        (
            "Grad-CAM++ with eps = 1e-6 in the denominator of its weights, as grad-cam has it,"
            " beside eps = 0, as its paper has it, where a closed form gives both; images compared:"
            " those whose map is not empty; maximum moves: by more than a pixel"
        ),
        of_maps("guard", looks.eps_table),
        ("cam",),
    ),
    "looks": (
        (
            "differences of n pairs of networks, paired by seed and image, with 95 % intervals over"
            " both (over images alone where n is 1); p corrected by Holm for the rows of this"
            " table, the intervals are not; resolved: p below 0.05"
        ),
        looks_differences,
        ("cam",),
    ),
}


def markdown(root: Path, kind: str = "accuracy", made: dict | None = None) -> str:
    """The tables of one kind as Markdown, each with its caption below. ``made``: all
    :func:`tables`, if they were made already.

    Raises:
        UserError: unknown kind, no record, or nothing of this kind was measured.
    """
    return _markdown(tables(root) if made is None else made, root, kind)


def _markdown(found, root, kind):
    if kind not in found:
        raise UserError(f"report {kind!r}: {nearest(kind, found)}")
    if not found[kind]:
        raise UserError(
            f"nothing was measured for the table {kind!r} under {getattr(root, 'folder', root)}"
        )
    return "\n".join(f"{render(table)}\n{text}.\n" for text, table in found[kind])


def write_tables(found: dict, root: Path, folder: Path) -> list[Path]:
    """Write the tables ``found`` below ``root`` (a folder or a collection, see :func:`tables`) into
    ``folder``: tables.md, and a CSV file for each with unrounded numbers, beside runs, attacks,
    corruptions and cam with one row per run and measurement, as CSV and as Parquet. Returns the
    files.
    """
    files, text = {}, []
    for kind, several in found.items():
        for number, (words, table) in enumerate(several, 1):
            files[f"{kind}-{number}.csv" if len(several) > 1 else f"{kind}.csv"] = table
            text.append(
                f"## {kind} {number if len(several) > 1 else ''}".rstrip()
                + f"\n\n{render(table)}\n{words}.\n"
            )
    raw = collection.gather(root)
    rows = {name: table for name, table in {"runs": raw.runs, **raw.tables}.items() if len(table)}
    files |= {f"{name}.csv": table for name, table in rows.items()}
    contents = {
        name: table.to_csv(index=False).encode() for name, table in files.items() if len(table)
    } | {"tables.md": "\n".join(text).encode()}
    contents |= {
        f"{name}.parquet": table.apply(_plain_column).to_parquet(index=False)
        for name, table in rows.items()
    }
    for name, content in contents.items():
        records.atomic_write(folder / name, content)
    return [folder / name for name in contents]


def _plain_column(column):
    """A column that every reader of Parquet knows: lists, dictionaries and values of several types
    become JSON text.
    """
    types = {type(value) for value in column.dropna()} if column.dtype == object else set()
    return (
        column.map(json.dumps, na_action="ignore")
        if len(types) > 1 or types & {list, dict}
        else column
    )


def fill(document: str, base: Path) -> str:
    """A document with every ``<!-- report FOLDER [KIND] -->`` ... ``<!-- end -->`` block made anew
    (FOLDER relative to base).
    """
    found = {}

    def block(match):
        root = base / match[2]
        if root not in found:
            found[root] = tables(root)
        return f"{match[1]}\n{_markdown(found[root], root, match[3] or 'accuracy')}{match[4]}"

    return re.sub(
        r"(<!-- report (\S+?)(?: (\w+))? -->)\n.*?(<!-- end -->)", block, document, flags=re.DOTALL
    )
