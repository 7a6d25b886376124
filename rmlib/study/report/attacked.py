"""Tables of accuracy under attack and under corruptions."""

from fractions import Fraction

import pandas as pd

from rmlib.robustness import masking
from rmlib.study.report import groups
from rmlib.study.report.values import Table, average

LABELS = {
    "fgsm": "FGSM",
    "fgsm_margin": "FGSM on the margin",
    "pgd": "PGD",
    "square": "Square",
    "square_torchattacks": "torchattacks' Square",
    "autoattack": "AutoAttack",
}


def name_of(attack) -> str:
    """'FGSM 8/255', 'Square 8/255 (100 queries)': an attack as a heading."""
    words = f"{LABELS[attack['attack']]} {attack['eps']}"
    if attack["attack"].startswith("square"):
        words += f" ({int(attack['queries'])} queries)"
    return words


def robustness(group, attacks, corruptions) -> Table | None:
    """Accuracy after FGSM and Square at each size, and under corruptions (percent of the images)
    per method; None if nothing was measured.
    """
    if len(attacks):
        attacks = attacks[attacks["attack"].isin(("fgsm", "square", "square_torchattacks"))]
    attacks = groups.one_sample(group, attacks)
    corruptions = groups.one_sample(group, corruptions)
    if attacks is None and corruptions is None:
        return None
    kinds = {}
    if attacks is not None:
        # eps = 0 is the clean accuracy
        sizes = attacks["eps"].map(Fraction)
        kinds = attacks[sizes > 0].assign(size=sizes).sort_values(["attack", "size"])
        kinds = {name_of(attack): attack for attack in kinds.to_dict("records")}
    rows = []
    for row, runs in groups.methods(group):
        own, changed = (
            None if rows_ is None else rows_[rows_["run_id"].isin(runs["run_id"])]
            for rows_ in (attacks, corruptions)
        )
        clean = pd.concat([each for each in (own, changed) if each is not None])
        if not len(clean):
            continue
        row |= _clean(clean, {"attacks": {}, "corruptions": {}})
        for name, attack in kinds.items():
            row[name] = _after(attack, own, row["images"])
        if changed is not None:
            row["corrupted (mean)"] = average(
                zip(changed["run_id"], changed["mean_accuracy"]), measured={"corruptions": {}}
            )
        rows.append(row)
    return Table(rows)


def _after(attack, own, images):
    """Accuracy after one attack, from the attacks on a method's networks."""
    settings = {name: attack[name] for name in ("attack", "eps")}
    if attack["attack"].startswith("square"):
        settings["queries"] = int(attack["queries"])
    same = own[(own[list(settings)] == pd.Series(settings)).all(axis=1)]
    measured = {"attacks": settings | {"images": images}}
    return average(zip(same["run_id"], same["accuracy_after"]), measured=measured)


def _clean(measured, sources) -> dict:
    """Columns: networks behind some measurements, images of each, and their accuracy before
    anything was done to the images.
    """
    networks = measured.drop_duplicates("run_id")
    clean = average(zip(networks["run_id"], networks["clean_accuracy"]), measured=sources)
    images = int(networks["images"].min())
    return {"n": len(networks), "images": images, "clean_accuracy": clean}


def checks(group, attacks) -> Table | None:
    """FGSM beside the attacks that it is checked against, per method and size, on the images that
    all of them saw, with what contradicts it (see :func:`rmlib.robustness.masking.check`); None if
    no stronger attack was made.
    """
    if not len(attacks) or not (attacks["attack"] == "pgd")[_of(attacks, group)].any():
        return None
    attacks = _beside_fgsm(group, attacks)
    total = group.set_index("run_id")["data.test_images"]
    rows = []
    for row, runs in groups.methods(group):
        networks = {
            run_id: {(each["attack"], each["eps"]): each for each in own.to_dict("records")}
            for run_id, own in attacks[_of(attacks, runs)].groupby("run_id")
        }
        sizes = {eps for own in networks.values() for name, eps in own if _both(own, eps)}
        for eps in sorted(sizes, key=Fraction):
            own = {run_id: found for run_id, found in networks.items() if _both(found, eps)}
            rows.append(row | _check(own, eps, total))
    return Table(rows) if rows else None


def _of(attacks, runs):
    return attacks["run_id"].isin(runs["run_id"])


def _both(results, eps):
    """Whether a network was attacked by FGSM and by PGD at a size."""
    return ("pgd", eps) in results and ("fgsm", eps) in results


def _beside_fgsm(group, attacks):
    """FGSM on its largest sample, and the other attacks on parts of the same sample: of each the
    one on most images, with most queries, the latest.
    """
    fgsm = groups.one_sample(group, attacks[attacks["attack"] == "fgsm"])
    others = attacks[attacks["attack"] != "fgsm"]
    for name in ("image_seed", "checksum"):
        others = others[others[name] == fgsm[name].iloc[0]]
    budget = others["queries"].fillna(0) if "queries" in others else 0
    others = others.assign(budget=budget).sort_values(["images", "budget", "finished"])
    return pd.concat([fgsm, others.drop_duplicates(["run_id", "attack", "eps"], keep="last")])


def _check(networks, eps, total) -> dict:
    """The columns of one method at one size. ``networks``: run_id -> (attack, eps) -> result."""
    found = {
        run_id: masking.check(own, eps, int(total[run_id]), int(own["fgsm", eps]["image_seed"]))
        for run_id, own in networks.items()
    }
    last = {
        run_id: own["autoattack", eps]
        for run_id, own in networks.items()
        if ("autoattack", eps) in own
    }
    measured = {"attacks": {"eps": eps}}
    told = [text for each in found.values() for text in each["warnings"]]
    warnings = [
        f"{text} ({told.count(text)} of {len(found)})" for text in masking.WARNINGS if text in told
    ]
    return {
        "eps": eps,
        "n": len(found),
        "images": min(each["images"] for each in found.values()),
        **{
            name: average({run_id: each[name] for run_id, each in found.items()}, measured=measured)
            for name in ("fgsm", "strongest", "zero_gradient")
        },
        "autoattack": average(
            {run_id: each["robust_accuracy"] for run_id, each in last.items()}, measured=measured
        ),
        "its images": min(each["images"] for each in last.values()) if last else None,
        "warning": "; ".join(warnings) or None,
    }


def corrupted(group, measured) -> Table | None:
    """Accuracy under each corruption (percent, mean over its five severities) per method; None if
    it was not measured.
    """
    measured = groups.one_sample(group, measured)
    if measured is None:
        return None
    sources = {"corruptions": {}}
    rows = []
    for row, runs in groups.methods(group):
        own = measured[_of(measured, runs)]
        if not len(own):
            continue
        row |= _clean(own, sources)
        for name in own["accuracy"].iloc[0]:
            means = [sum(each[name]) / len(each[name]) for each in own["accuracy"]]
            row[name.replace("_", " ")] = average(zip(own["run_id"], means), measured=sources)
        row["mean"] = average(zip(own["run_id"], own["mean_accuracy"]), measured=sources)
        rows.append(row)
    return Table(rows)
