"""Tables of accuracy under attack and under corruptions."""

from fractions import Fraction

import pandas as pd

from rmlib.robustness import masking
from rmlib.study.report import groups
from rmlib.study.report.values import Table, average, by_run

LABELS = {
    "fgsm": "FGSM",
    "fgsm_margin": "FGSM on the margin",
    "pgd": "PGD",
    "square": "Square",
    "autoattack": "AutoAttack",
}


def _settings(attack) -> dict:
    """What parts attacks on the same images: name, size, and the budget of Square."""
    settings = {name: attack[name] for name in ("attack", "eps")}
    return settings | ({"queries": int(attack["queries"])} if attack["attack"] == "square" else {})


def name_of(attack) -> str:
    """'FGSM 8/255', 'Square 8/255 (100 queries)': an attack as a heading."""
    words = f"{LABELS[attack['attack']]} {attack['eps']}"
    return words + (f" ({int(attack['queries'])} queries)" if attack["attack"] == "square" else "")


def robustness(group, attacks, corruptions) -> Table | None:
    """Accuracy after FGSM and Square at each size, and under corruptions (percent of the images)
    per method; None if nothing was measured.
    """
    if len(attacks):
        attacks = attacks[attacks["attack"].isin(("fgsm", "square"))]
    attacks = groups.one_sample(group, attacks)
    corruptions = groups.one_sample(group, corruptions)
    found = [each for each in (attacks, corruptions) if each is not None]
    if not found:
        return None
    kinds = {}
    if attacks is not None:
        # eps = 0 is the clean accuracy
        sizes = attacks["eps"].map(Fraction)
        sized = attacks[sizes > 0].assign(size=sizes).sort_values(["attack", "size"])
        kinds = {name_of(attack): _settings(attack) for attack in sized.to_dict("records")}
    rows = []
    for row, runs in groups.methods(group):
        own = pd.concat([groups.of_runs(each, runs) for each in found])
        if not len(own):
            continue
        networks = own.drop_duplicates("run_id")
        clean, images = by_run(networks, "clean_accuracy"), int(networks["images"].min())
        row |= {"n": len(networks), "images": images}
        row["clean_accuracy"] = average(clean, measured={"attacks": {}, "corruptions": {}})
        for name, settings in kinds.items():
            same = own[(own[list(settings)] == pd.Series(settings)).all(axis=1)]
            measured = {"attacks": settings | {"images": images}}
            row[name] = _mean_of_some(by_run(same, "accuracy_after"), row["n"], measured)
        if corruptions is not None:
            mean = by_run(groups.of_runs(corruptions, runs), "mean_accuracy")
            row["corrupted (mean)"] = _mean_of_some(mean, row["n"], {"corruptions": {}})
        rows.append(row)
    return Table(rows)


def _mean_of_some(numbers, n, measured):
    """A mean that says of how many networks it is, where that is fewer than n."""
    return average(numbers, measured=measured, fewer=len(numbers) < n)


def checks(group, attacks) -> Table | None:
    """FGSM beside the attacks that it is checked against, per method and size, on the images that
    all of them saw, with what contradicts it (see :func:`rmlib.robustness.masking.check`); None if
    no stronger attack was made.
    """
    if not len(attacks) or not (groups.of_runs(attacks, group)["attack"] == "pgd").any():
        return None
    attacks = _beside_fgsm(group, attacks)
    total = group.set_index("run_id")["data.test_images"]
    rows = []
    for row, runs in groups.methods(group):
        sizes: dict = {}
        for run_id, own in groups.of_runs(attacks, runs).groupby("run_id"):
            results = {(each["attack"], each["eps"]): each for each in own.to_dict("records")}
            for name, eps in results:
                if name == "pgd" and ("fgsm", eps) in results:
                    sizes.setdefault(eps, {})[run_id] = results
        for eps in sorted(sizes, key=Fraction):
            rows.append(row | _check(sizes[eps], eps, total))
    return Table(rows) if rows else None


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
    key = "autoattack", eps
    last = {run_id: own[key] for run_id, own in networks.items() if key in own}
    told = [text for each in found.values() for text in each["warnings"]]
    warnings = [
        f"{text} ({told.count(text)} of {len(found)})" for text in masking.WARNINGS if text in told
    ]

    def mean(results, name):
        numbers = {run_id: each[name] for run_id, each in results.items()}
        return _mean_of_some(numbers, len(found), {"attacks": {"eps": eps}})

    return {
        "eps": eps,
        "n": len(found),
        "images": min(each["images"] for each in found.values()),
        **{name: mean(found, name) for name in ("fgsm", "strongest", "zero_gradient")},
        "autoattack": mean(last, "robust_accuracy"),
        "its images": min(each["images"] for each in last.values()) if last else None,
        "warning": "; ".join(warnings) or None,
    }


def plain(rows: list[dict]) -> Table:
    """Plain numbers to one decimal, for a notebook."""
    return Table(
        [
            {name: round(x, 1) if isinstance(x, float) else x for name, x in row.items()}
            for row in rows
        ]
    )


def counts(results: dict) -> Table:
    """What one attack did to each network: (method, seed) -> result."""
    percents = ("clean_accuracy", "accuracy_after", "robust_accuracy")
    heads = {name: f"{name.replace('_', ' ')} (%)" for name in percents}
    heads |= {"fooled": "fooled", "turned_right": "turned right", "zero_gradient": "no gradient"}
    rows = []
    for (method, seed), result in results.items():
        numbers = {head: result[name] for name, head in heads.items() if name in result}
        rows.append({"method": method, "seed": seed} | numbers)
    return plain(rows)


def believed(results: dict, sizes, total: int, seed: int) -> Table:
    """What :func:`rmlib.robustness.masking.check` says of each network.

    Args:
        results: method -> {(attack, eps): result}; total, seed: see there.
    """
    rows = []
    for eps in sizes:
        for method, found in results.items():
            verdict = masking.check(found, eps, total, seed)
            row = {"method": method, "eps": eps, "images": verdict["images"]}
            row |= {"FGSM (%)": verdict["fgsm"], "strongest (%)": verdict["strongest"]}
            row["no gradient (%)"] = verdict["zero_gradient"]
            rows.append(row | {"warning": "; ".join(verdict["warnings"]) or "none"})
    return plain(rows)


def panels(group, attacks, corruptions, sizes) -> dict:
    """For :func:`rmlib.study.figures.intervals`: the networks of each method, by measurement.

    Args:
        sizes: (attack, eps) of each panel; the last panel is of the corruptions.
    """
    found: dict = {}
    for attack, eps in (*sizes, (None, None)):
        rows = groups.one_sample(group, attacks if attack else corruptions)
        if rows is None:
            continue
        if attack:
            rows = rows[(rows["attack"] == attack) & (rows["eps"] == eps)]
            rows = rows.drop_duplicates("run_id", keep="last")
        title = f"{LABELS[attack]} {eps}" if attack else "corrupted (mean)"
        for row, runs in groups.methods(group):
            own = groups.of_runs(rows, runs)["accuracy_after" if attack else "mean_accuracy"]
            if len(own):
                method = row["mixer"], groups.name_of(runs, group)
                found.setdefault(title, {})[method] = list(own)
    return found
