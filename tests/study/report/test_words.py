"""The sentences of the pages are those of the committed records: a changed verdict or number fails."""

import itertools

import nbformat
from statsmodels.stats.weightstats import ttost_ind

from rmlib.paths import project_root
from rmlib.study.report import (
    accuracy,
    answer,
    completeness,
    groups,
    report,
    small,
    stats,
    why,
    widths,
)
from rmlib.study.report.claims import numbers
from rmlib.study.runs import collection


def test_the_readme_says_in_words_what_the_committed_records_decide():
    """Should a verdict or a number change, "What it shows" is to be written anew."""
    text = (project_root() / "README.md").read_text(encoding="utf-8")
    found = collection.gather(project_root() / "results" / "cifar10-small")
    attacks = collection.collect_measurements(found, "attacks")
    rows = [row for row in small.claims(found.runs, attacks).rows if row["dataset"] == "cifar10"]
    ours = "Region Mixup, clean_weight=1 minus "
    claims = {(row["in"], row["claim"].split(ours)[1]): row for row in rows if ours in row["claim"]}
    states = {what: row["state"] for what, row in claims.items()}
    mixup, cutmix = "Mixup, clean_weight=1", "CutMix, clean_weight=1"
    for metric, state in {"accuracy": "smaller", "nll": "larger", "ece": "larger"}.items():
        assert states[metric, mixup] == states[metric, cutmix] == f"resolved: {state}"
    below = [-claims["accuracy", other]["A - B"].mean for other in (mixup, cutmix)]
    assert "ends {:.1f} points below Mixup and {:.1f} below CutMix".format(*below) in text
    for other in ("plain training", "clean loss twice (control)"):
        assert states["accuracy", other] == "resolved: no difference larger than 1 point"
        assert states["nll", other] == states["ece", other] == "resolved: smaller"
    assert states["fgsm", mixup] == states["fgsm", cutmix] == "unresolved"
    assert states["square", cutmix] == "resolved: larger"
    assert states["square", mixup] == "unresolved"
    pgd = attacks[(attacks["attack"] == "pgd") & (attacks["eps"] == small.EPS)]
    assert len(pgd) == len(found.records) and pgd["accuracy_after"].max() < 1

    gains = {}
    for name in ("Region Mixup", "CutMix", "Mixup"):
        ablation = f"{name}, clean_weight=1 minus {name}, clean_weight=0"
        (row,) = [row for row in rows if row["claim"] == ablation]
        assert row["state"] == "resolved: larger"
        gains[name] = row["A - B"]
    told = "clean loss it ends {:.1f} points higher**, CutMix {:.1f} and Mixup {:.1f} (five seeds"
    assert told.format(*(gain.mean for gain in gains.values())) in text
    assert gains["Mixup"].low < 0.1, "uncertain"

    contrasts = {row["what differs"]: row for row in why.tables(found.runs)[1].rows}
    for row in contrasts.values():
        counts = [len(side) for side in row["accuracy (points)"].sides.values()]
        complete = {small.SEEDS["cifar10"], small.ABLATION_SEEDS}
        assert set(counts) <= complete, f"{row['what differs']} is interim"

    def signs(what):
        """Of accuracy, NLL and ECE: -1 or 1 where the interval excludes zero, else 0."""
        gaps = [contrasts[what][head] for head in why.HEADS]
        return [(gap.low > 0) - (gap.high < 0) for gap in gaps]

    for weights in ("one weight", "own weights"):
        assert signs(f"own partners, with {weights}") == [-1, 1, 1]
    assert signs("own weights, with one partner") == [0, -1, 0]
    assert signs("own weights, with own partners") == [0, -1, -1]
    assert signs("borders that move") == [1, 0, 1] and signs("a finer grid") == [-1, 1, 0]
    assert signs("average of the losses, not their sum") == [0, 0, 0]
    points = {what: abs(row["accuracy (points)"].mean) for what, row in contrasts.items()}
    for told in (
        f"costs {points['own partners, with one weight']:.1f} points with one weight for all",
        f"and {points['own partners, with own weights']:.1f} with own weights.",
        f"Borders that move add {points['borders that move']:.1f} points, and",
        f"A grid of 4 x 4 ends {points['a finer grid']:.1f} lower.",
    ):
        assert told in text
    (cifar10,) = groups.experiments(groups.runs_below(found))
    ends = {method.name: method.mean for method in groups.finished(cifar10)}
    assert ends["Region Mixup, average"] > ends["Region Mixup, clean_weight=0"] + 8, "far above"
    strict = accuracy.differences(cifar10).frame().set_index("difference")["state"]
    for other in ("shared_partner", "regions=random"):
        assert strict[f"Region Mixup, {other} - Region Mixup"] == "resolved"
    assert strict["Region Mixup, k=4 - Region Mixup"].startswith("unresolved")
    changed = [key for key in ("k", "regions", "shared_partner", "shared_weight", "average")]
    part_c = sum(found.runs[f"config.{key}"] != groups.DEFAULTS[key] for key in changed) > 0
    assert set(found.runs[part_c]["hardware.cpu"]) == {"Intel(R) Xeon(R) Processor"}

    (maps,) = report.tables(found, ("looks",))["looks"]
    resolved = [row for row in maps.frame().to_dict("records") if row["state"] == "resolved"]
    clean = [row for row in resolved if "clean_weight=0" not in row["difference"]]
    assert {(row["measure"], row["difference"]): row["points"] > 0 for row in clean} == {
        ("extent (%)", "Region Mixup - CutMix"): False,
        ("extent (%)", "Region Mixup - clean loss twice (control)"): False,
    }


def ends(gap, sign=1):
    """The two ends of an interval, of the difference or of its opposite."""
    return sorted((sign * gap.low, sign * gap.high))


def test_the_pages_say_in_words_what_the_networks_of_width_64_show():
    root = project_root()
    page = (root / "results/cifar10-small-width64/README.md").read_text(encoding="utf-8")
    readme = (root / "README.md").read_text(encoding="utf-8")
    found = collection.gather(root / "results" / "cifar10-small-width64")
    (wide,) = groups.experiments(groups.runs_below(found))
    assert not completeness.interim(found, wide)
    rows = accuracy.differences(wide).frame().set_index("difference")
    unresolved = {name for name, row in rows.iterrows() if row["state"] != "resolved"}
    assert len(rows) == 19 and unresolved == {
        "clean loss twice (control) - plain training",
        "CutMix - Mixup",
        "Region Mixup - Mixup",
        "CutMix, clean_weight=0 - Mixup, clean_weight=0",
        "Mixup - Mixup, clean_weight=0",
        "CutMix - CutMix, clean_weight=0",
    }
    accuracies = {each.name: each.accuracies for each in groups.finished(wide)}
    for words, a, b, sign in (
        ("above plain training by {} points {}", "Region Mixup", "plain training", 1),
        ("above the clean loss twice by {} {}", "Region Mixup", "clean loss twice (control)", 1),
        ("**Below CutMix** by {} {}", "Region Mixup", "CutMix", -1),
        ("**Below Mixup** by {} {}", "Region Mixup", "Mixup", -1),
        ("it ends {} {} below plain", "Region Mixup, clean_weight=0", "plain training", -1),
        ("ends {} points {} higher", "Region Mixup", "Region Mixup, clean_weight=0", 1),
        ("CutMix ends {} {} higher", "CutMix", "CutMix, clean_weight=0", 1),
        ("Mixup {} {}; neither", "Mixup", "Mixup, clean_weight=0", 1),
    ):
        gap = stats.welch(accuracies[a], accuracies[b])
        low, high = ends(gap, sign)
        assert words.format(f"{sign * gap.mean:.2f}", f"[{low:.2f}, {high:.2f}]") in page
    pairs = [(accuracies["Region Mixup"], accuracies[other]) for other in ("Mixup", "CutMix")]
    as_two = stats.holm([stats.welch(*pair).p for pair in pairs])
    assert as_two.max() < 0.05, "resolved, as two"
    gap = stats.paired(accuracies["Region Mixup"], accuracies["CutMix"])
    assert -0.1 < gap.high < 0, "by pairs it only just excludes zero"
    for name in ("Mixup", "CutMix"):
        gap = stats.welch(accuracies["Region Mixup"], accuracies[f"{name}, clean_weight=0"])
        assert gap.low < 0 < gap.high

    for metric, a, b, sign, words in (
        ("fgsm", small.REGION, small.MIXUP, -1, "{} points {} below Mixup"),
        ("fgsm", small.REGION, small.CUTMIX, -1, "{} {} below CutMix"),
        ("fgsm_margin", small.REGION, small.MIXUP, -1, "still leaves it {} {} below Mixup"),
        ("fgsm_margin", small.REGION, small.CUTMIX, -1, "and {} {} below CutMix"),
        ("fgsm_margin", small.REGION, small.PLAIN, 1, "then ends {} {} above plain"),
        ("square", small.REGION, small.MIXUP, 1, "{} {} above Mixup"),
        ("square", small.REGION, small.CUTMIX, 1, "{} {} above CutMix"),
        ("square", small.REGION, ("mixup", 0.0), 0, "not told apart from Mixup without the clean"),
        ("corruptions", small.REGION, small.MIXUP, -1, "{} {} below Mixup"),
        *(
            (metric, *both, 0, "of the three mixers with the clean loss are not told apart")
            for metric in ("nll", "ece")
            for both in itertools.combinations((small.REGION, small.MIXUP, small.CUTMIX), 2)
        ),
        ("fgsm", small.REGION, small.PLAIN, 0, "It is not told apart from plain training"),
        ("corruptions", small.REGION, small.CUTMIX, 0, "apart from CutMix and plain training"),
        ("corruptions", small.REGION, small.PLAIN, 0, "apart from CutMix and plain training"),
    ):
        gap = stats.welch(*(measured_on(found, metric, *side) for side in (a, b)))
        low, high = ends(gap, sign or 1)
        assert low < 0 < high if sign == 0 else low > 0, (metric, b)
        told = words.format(f"{sign * gap.mean:.1f}", f"[{low:.1f}, {high:.1f}]")
        assert told in page, told

    rows = on_cifar10(groups.runs_below(collection.gather(root / "results")))
    gains = [
        rows[f"{x} - plain training"][widths.CHANGE] for x in ("Region Mixup", "Mixup", "CutMix")
    ]
    assert all(each.low > 0 for each in gains) and gains[0].low > max(
        each.mean for each in gains[1:]
    )
    for other in ("Mixup", "CutMix"):
        row = rows[f"Region Mixup - {other}"]
        assert row[widths.CHANGE].low > 0 > row[widths.AT_64].high
    own = rows["Region Mixup - Region Mixup, clean_weight=0"]
    assert own[widths.CHANGE].high < 0
    gains = own[widths.AT_64].mean, own[widths.AT_8].mean
    assert (
        "adds {:.1f} points to Region Mixup at width 64, and {:.1f} at width 8".format(*gains)
        in page
    )
    for head, mean in zip((widths.AT_64, widths.AT_8), gains):
        others = (rows[f"{x} - {x}, clean_weight=0"][head].mean for x in ("Mixup", "CutMix"))
        assert mean > max(others)
    assert rows["Region Mixup, clean_weight=0 - plain training"][widths.CHANGE].low > 0

    points = {name: abs(row[widths.AT_64].mean) for name, row in rows.items()}
    for words, numbers_told in (
        (
            "ends {:.1f} points above plain training and {:.1f} below CutMix.",
            [points[f"Region Mixup - {other}"] for other in ("plain training", "CutMix")],
        ),
        (
            "Without the clean loss it still ends {:.1f} below plain training",
            [points["Region Mixup, clean_weight=0 - plain training"]],
        ),
    ):
        assert words.format(*numbers_told) in readme


def on_cifar10(runs):
    """Difference -> row of the table of both widths."""
    rows = widths.table(runs).rows
    return {row["difference"]: row for row in rows if row["dataset"] == "cifar10"}


def measured_on(found, what, mixer, clean_weight=1.0, **settings):
    """A number for each network of width 64: of its record, under an attack at EPS or corruptions."""
    side, attacks = (mixer, clean_weight), found.tables["attacks"]
    runs = small.under_protocol(found.runs, widths.WIDE | settings)
    if what in ("nll", "ece", "fgsm", "square"):
        own = numbers(runs, attacks, what, "cifar10", side, images=small.IMAGES)["number"]
        assert len(own) == widths.SEEDS["cifar10"]
        return own
    own = numbers(runs, attacks, "accuracy", "cifar10", side)["run_id"]
    rows, column = found.tables["corruptions"], "mean_accuracy"
    if what == "fgsm_margin":
        rows, column = attacks[attacks["attack"] == what], "accuracy_after"
    rows = rows[rows["run_id"].isin(own)]
    assert len(rows) == len(own) == widths.SEEDS["cifar10"] and set(rows["images"]) == {
        small.IMAGES
    }
    return rows[column]


def test_the_page_says_in_words_what_one_setting_changes_at_width_64():
    root = project_root()
    folder = root / "results" / "cifar10-small-width64-why"
    page = (folder / "README.md").read_text(encoding="utf-8")
    readme = (root / "README.md").read_text(encoding="utf-8")
    found = collection.gather(root / "results")
    runs = groups.runs_below(found)
    cells = collection.read_plan(folder / "plan.json").cells
    gone = [cell["label"] for cell in cells if cell["run_id"] not in found.records]
    assert len(cells) == 30 and gone == ["Region Mixup, k=4, seed 4"]
    assert "29 of 30 runs are done: the grid of 4 x 4 lacks seed 4." in page

    assert "not told apart from that of Region Mixup, their NLL and ECE are worse." in readme
    for metric, mixer in itertools.product(("nll", "ece"), ("mixup", "cutmix")):
        half = measured_on(found, metric, mixer, 0.0)
        assert stats.welch(half, measured_on(found, metric, "region_mixup")).low > 0

    table = widths.changes(runs)
    partners, compute, *_ = widths.named(runs).rows
    for row in (partners, compute):
        assert row["n"] == "5, 5" and row["state"] == "resolved: smaller"
    pairs, over_both = (numbers_in(compute[name]) for name in ("paired", "seeds and images"))
    assert -0.1 < pairs[1] < 0 < over_both[1], "only just, and not over images"
    sides = [
        widths.side(runs, each, widths.WIDE).accuracies for each in (why.REGION, widths.LONGER)
    ]
    assert ttost_ind(*sides, -small.MARGIN, small.MARGIN, usevar="unequal")[0] < 0.05
    assert f"it contains zero: [{-over_both[1]:.2f}, {-over_both[0]:.2f}]" in page
    assert numbers_in(partners["seeds and images"])[1] < 0

    rows = {row["what differs"]: row for row in table.rows}
    for what, sign, words in (
        ("equal compute, Region Mixup", -1, "ends below plain training**, by {} points {}: res"),
        ("own partners, with own weights", -1, "with this network, too: {} points {} with own"),
        ("own partners, with one weight", -1, "all tiles they cost {} {}."),
        ("own weights, with one partner", 1, "end {} {} above Mixup where"),
        ("borders that move", 1, "add {} {}, as"),
        ("a finer grid", -1, "A grid of 4 x 4 ends {} {} lower."),
        ("equal compute, Mixup", 0, "Mixup is not told apart from the longer"),
        ("equal compute, CutMix", 0, "and CutMix is not, either"),
        ("own weights, with own partners", 0, "own partners they are not told apart from one w"),
        ("average of the losses, not their sum", 0, "their average no difference is resolved"),
    ):
        gap = rows[what][widths.AT_64]
        told(page, gap, sign, words, decimals=2)
    assert rows["own weights, with one partner"][widths.AT_64].low < 0.05, "only just"
    gap = rows["own partners, with own weights"][widths.CHANGE]
    told(page, gap, 1, "With own weights they cost {} {} less than with", decimals=2)
    gap = rows["own partners, with one weight"][widths.CHANGE]
    told(page, gap, 0, "With one weight no change is resolved", decimals=2)
    assert rows["borders that move"][widths.AT_8].low > 0
    both = on_cifar10(runs)
    gap = both["Region Mixup - clean loss twice (control)"][widths.AT_64]
    assert gap.low > 0 and f"[{gap.mean:.2f} points above it]" in page
    gap = both["Region Mixup - plain training"][widths.AT_64]
    assert f"its lead of {gap.mean:.2f} over 60 epochs" in page

    longer = widths.LONGER
    for metric, a, b, sign, words in (
        ("nll", why.REGION, longer, -1, "longer plain training, by {} nats {}"),
        ("nll", why.MIXUP, longer, -1, "Mixup and CutMix are, too"),
        ("nll", why.CUTMIX, longer, -1, "Mixup and CutMix are, too"),
        ("ece", why.REGION, longer, -1, "and {} points {}.\n"),
        ("ece", why.MIXUP, longer, -1, "Mixup and CutMix are, too"),
        ("ece", why.CUTMIX, longer, -1, "Mixup and CutMix are, too"),
        (
            "corruptions",
            why.REGION,
            longer,
            -1,
            "Under corruptions Region Mixup ends {} points {} b",
        ),
        ("fgsm", why.REGION, longer, 0, "Under FGSM and Square they are not told apart"),
        ("square", why.REGION, longer, 0, "Under FGSM and Square they are not told apart"),
        ("fgsm", why.REGION, why.PARTNER, -1, "do so by {} points {} with own weights"),
        ("fgsm", why.WEIGHT, why.MIXUP, -1, "and by {} {} with one."),
        ("fgsm", why.PARTNER, why.MIXUP, -1, "Own weights lower it by {} {} with one partner"),
        ("fgsm", why.REGION, why.WEIGHT, -1, "and by {} {} with own partners"),
        ("fgsm", why.RANDOM, why.REGION, 1, "Borders that move raise it by {} {}."),
        ("fgsm_margin", why.PARTNER, why.MIXUP, -1, "Then own weights lower it by {} {} with one"),
        (
            "fgsm_margin",
            why.REGION,
            why.WEIGHT,
            -1,
            "and by {} {} with own partners.\n  Own partners with one weight",
        ),
        ("fgsm_margin", why.WEIGHT, why.MIXUP, -1, "with one weight do so by {} {}."),
        ("fgsm_margin", why.REGION, why.PARTNER, 0, "not told apart from one partner there"),
        ("square", why.REGION, why.PARTNER, 1, "own partners raise it by {} {} with own"),
        ("square", why.WEIGHT, why.MIXUP, 1, "and by {} {} with one. Own"),
        ("square", why.PARTNER, why.MIXUP, 0, "Own weights are not told apart from one weight"),
        ("square", why.REGION, why.WEIGHT, 0, "Own weights are not told apart from one weight"),
    ):
        gap = stats.welch(*(measured_on(found, metric, **settings) for settings in (a, b)))
        told(page, gap, sign, words, decimals=3 if metric == "nll" else 1)

    points = {what: abs(row[widths.AT_64].mean) for what, row in rows.items()}
    partners = [points[f"own partners, with {x}"] for x in ("one weight", "own weights")]
    longer = points["equal compute, Region Mixup"]
    for words in (
        "it is {:.1f} and {:.1f}; the second was named".format(*partners),
        f"and by [{longer:.1f}](results/cifar10-small-width64-why/README.md) at width 64. The second is only just",
        f"twice the epochs ends {longer:.1f} above Region Mixup. That was named",
        f"and {points['borders that move']:.1f} with the paper's.",
    ):
        assert words in readme, words


def test_the_page_says_in_words_what_twice_the_epochs_do_at_width_8():
    root = project_root()
    page = (root / "results/cifar10-small-longer/README.md").read_text(encoding="utf-8")
    other = (root / "results/cifar10-small-width64-why/README.md").read_text(encoding="utf-8")
    readme = (root / "README.md").read_text(encoding="utf-8")
    found = collection.gather(root / "results")
    runs = groups.runs_below(found)
    (named,) = [row for row in widths.named(runs).rows if row["width"] == 8]
    assert (named["n"], named["state"]) == ("10, 10", "resolved: smaller")
    for interval in "paired", "seeds and images":
        assert numbers_in(named[interval])[1] < 0
    rows = {row["what differs"]: row[widths.AT_8] for row in widths.changes(runs).rows}
    for method, sign, words in (
        ("Region Mixup", -1, "ends below plain training**, by {} points {}: resolved."),
        ("Mixup", -1, "Mixup ends {} {} below it."),
        ("CutMix", 0, "CutMix is not told apart from it."),
    ):
        told(page, rows[f"equal compute, {method}"], sign, words, decimals=2)
    points = -rows["equal compute, Region Mixup"].mean
    assert f"[{points:.2f} points](../cifar10-small-longer/README.md) below" in other
    assert f"by [{points:.1f} points](results/cifar10-small-longer/README.md) at width 8" in readme
    assert f"Plain training of twice the epochs ends {points:.1f} above it." in readme

    def numbers_of(metric, settings):
        own = small.under_protocol(found.runs, settings)
        side = settings["mixer"], settings.get("clean_weight", 1.0)
        own = numbers(own, None, metric, "cifar10", side)["number"]
        assert len(own) == 10
        return own

    longer, plain, lower = widths.LONGER, widths.PLAIN, {}
    for metric, a, b, sign, words in (
        ("accuracy", longer, plain, 1, "add {} points {} to plain training"),
        ("nll", longer, why.REGION, 1, "Beside Region Mixup it is so by {} nats {}"),
        ("ece", longer, why.REGION, 1, "and {} points {}."),
        ("nll", longer, why.MIXUP, 1, "is far worse than all three"),
        ("nll", longer, why.CUTMIX, 1, "is far worse than all three"),
        ("ece", longer, why.MIXUP, 1, "is far worse than all three"),
        ("ece", longer, why.CUTMIX, 1, "is far worse than all three"),
        ("nll", longer, plain, 1, "It is worse than plain training of 60 epochs, too."),
        ("ece", longer, plain, 1, "It is worse than plain training of 60 epochs, too."),
    ):
        gap = stats.welch(numbers_of(metric, a), numbers_of(metric, b))
        if b == plain and metric != "accuracy":
            wide = [measured_on(found, metric, **settings) for settings in (b, a)]
            less = stats.welch(*wide)
            assert less.low > 0, "with the paper's network"
            lower[metric] = less.mean
        decimals = {"accuracy": 2, "nll": 3}.get(metric, 1)
        told(page, gap, sign, words, decimals)
    assert f"NLL and ECE, by {lower['nll']:.3f} nats and {lower['ece']:.1f} points." in page


def test_the_pages_say_in_words_what_the_runs_on_cifar100_show():
    root = project_root()
    page = (root / "results/cifar100-small/README.md").read_text(encoding="utf-8")
    readme = (root / "README.md").read_text(encoding="utf-8")
    found = collection.gather(root / "results" / "cifar100-small")
    attacks = found.tables["attacks"]
    (group,) = groups.experiments(groups.runs_below(found))
    assert not completeness.interim(found, group) and len(found.records) == 20
    assert "All 20 runs are done" in page and found.runs["hardware.cpu"].nunique() == 1
    claims = small.claims(found.runs, attacks)
    assert [row["paper"] for row in claims.rows] == [
        "larger: opposite",
        "smaller: same direction",
        "–",
    ]
    table = accuracy.differences(group).frame().set_index("difference")
    assert len(table) == 6

    def side(what, mixer):
        runs = small.under_protocol(found.runs)
        if what in ("accuracy", "nll", "ece", "fgsm", "square"):
            images = small.IMAGES
            return numbers(runs, attacks, what, "cifar100", (mixer, 1.0), images=images)["number"]
        own = runs[runs["config.mixer"] == mixer]["run_id"]
        rows, column = found.tables["corruptions"], "mean_accuracy"
        if what == "pgd":
            rows = attacks[(attacks["attack"] == "pgd") & (attacks["eps"] == small.EPS)]
            column = "accuracy_after"
        return rows[rows["run_id"].isin(own)][column]

    for what, other, sign, words in (
        ("accuracy", "mixup", -1, "below Mixup** by {} points {}"),
        ("accuracy", "cutmix", -1, "below CutMix** by {} {}, both after Holm"),
        ("accuracy", "none", 0, "It is not told apart from the clean loss twice:"),
        ("nll", "none", -1, "of the clean loss twice, by {} nats {}"),
        ("ece", "none", -1, "and {} points {}."),
        ("nll", "mixup", 1, "NLL is worse than Mixup's by {} {}"),
        ("nll", "cutmix", 1, "and than CutMix's by {} {}."),
        ("ece", "mixup", -1, "ECE is better than Mixup's by {} {}."),
        ("fgsm", "mixup", 1, "Region Mixup ends {} points {} above Mixup"),
        ("fgsm", "cutmix", 1, "and {} {} above CutMix"),
        ("square", "mixup", 1, "it ends {} {} above Mixup, which only just"),
        ("square", "cutmix", 0, "It is not told apart from CutMix."),
        ("corruptions", "mixup", -1, "it ends {} points {} below Mixup"),
        ("corruptions", "cutmix", -1, "and {} {} below CutMix"),
        ("corruptions", "none", -1, "It ends {} {} below the clean loss twice"),
    ):
        sides = side(what, "region_mixup"), side(what, other)
        assert [len(each) for each in sides] == [5, 5]
        decimals = {"accuracy": 2, "nll": 3}.get(what, 1)
        told(page, stats.welch(*sides), sign, words, decimals)
    unresolved = {name for name, row in table.iterrows() if row["state"] != "resolved"}
    assert unresolved == {"Region Mixup - clean loss twice (control)", "CutMix - Mixup"}
    gap = stats.welch(side("accuracy", "region_mixup"), side("accuracy", "none"))
    assert f"{gap.mean:.2f} above [{gap.low:.2f}, {gap.high:.2f}]" in page
    assert max(side("fgsm", mixer).mean() for mixer in ("region_mixup", "mixup", "cutmix")) < 4
    assert (
        max(side("pgd", mixer).max() for mixer in ("region_mixup", "mixup", "cutmix", "none")) < 1
    )
    (maps,) = report.tables(found, ("looks",))["looks"]
    resolved = [row for row in maps.frame().to_dict("records") if row["state"] == "resolved"]
    assert {(row["measure"], row["difference"]): row["points"] > 0 for row in resolved} == {
        ("extent (%)", "Region Mixup - clean loss twice (control)"): True,
        ("trace of the grid (points)", "Region Mixup - CutMix"): False,
    }
    below = [-table.loc[f"Region Mixup - {other}", "points"] for other in ("Mixup", "CutMix")]
    assert "ends {:.1f} points below Mixup and {:.1f} below CutMix, too".format(*below) in readme


def test_what_is_told_of_cifar100_at_width_64_waits_for_its_runs():
    root = project_root()
    folder = root / "results" / "cifar100-small-width64"
    page = (folder / "README.md").read_text(encoding="utf-8")
    found = collection.gather(folder)
    cells = collection.read_plan(folder / "plan.json").cells
    done = f"{len(found.records)} of {len(cells)} runs"
    assert done == "10 of 16 runs"
    for name in ("README.md", "results/README.md", "notebooks/batches/README.md"):
        assert done in (root / name).read_text(encoding="utf-8"), name
    assert f"**{done} are done, so there is no verdict yet.**" in page
    named = widths.named(found.runs).rows
    assert len(named) == 3 and {row["state"] for row in named} == {"no verdict yet"}

    (group,) = groups.experiments(groups.runs_below(found))
    (best, *others) = answer.methods(group)
    accuracies = {
        each.name: each.runs.set_index("config.seed")["metrics.accuracy"] for each in others
    }
    own = best.runs.set_index("config.seed")["metrics.accuracy"]
    both = (own - accuracies["Mixup"]).dropna()
    assert best.name == "Region Mixup" and len(both) == 3 and both.min() > 0
    doubled = accuracies["clean loss twice (control)"].mean()
    for other in ("Mixup", "CutMix"):
        assert 1.5 < accuracies[other].mean() - doubled < 2.5, "two points"
    readme = (root / "README.md").read_text(encoding="utf-8")
    assert "its mean is above both so far: no verdict yet." in readme
    for metric, factor in ("metrics.nll", 1.4), ("metrics.ece", 4):
        values = {each.name: each.runs[metric] for each in (best, *others)}
        worst = values.pop("clean loss twice (control)").min()
        assert worst > factor * max(each.max() for each in values.values()), "far worse"
    rows = widths.table(groups.runs_below(root / "results")).rows
    rows = {(row["dataset"], row["difference"]): row for row in rows}
    for other, words in (
        ("Mixup", "move up in the mean, by {:.1f} and"),
        ("CutMix", "and {:.1f} po"),
    ):
        name = f"Region Mixup - {other}"
        assert words.format(rows["cifar100", name][widths.CHANGE].mean) in page
        assert rows["cifar100", name][widths.AT_8].high < 0
        assert rows["cifar10", name][widths.AT_64].high < 0


def test_what_quick_resolves_and_what_it_does_not():
    """Its methods spread little, and three seeds resolve what was named, and nothing else."""
    found = collection.gather(project_root() / "results" / "quick")
    (group,) = groups.experiments(groups.runs_below(found))
    methods = {each.name: each for each in answer.methods(group)}
    assert len(methods) == 5 and max(each.accuracies.std() for each in methods.values()) < 3
    (named,) = answer.primary(found, group).rows
    assert (named["in"], named["n"], named["state"]) == ("ECE (%)", "3, 3", "resolved")
    states = accuracy.differences(group).frame()["state"]
    assert not any(state == "resolved" for state in states)
    page = (project_root() / "results/quick/README.md").read_text(encoding="utf-8")
    assert "In accuracy three seeds resolve no difference, after correction" in page
    assert "Networks that saw mixed images have the higher ECE here." in page
    small_data = collection.gather(project_root() / "results" / "cifar10-small")
    (of_cifar10,) = groups.experiments(groups.runs_below(small_data))
    for each_of, sign in (group, 1), (of_cifar10, -1):
        found = [each for each in groups.finished(each_of) if each.plain or each.loss[0] == 1]
        errors = {each.name: sign * each.runs["metrics.ece"].mean() for each in found}
        mixed = [errors[each.name] for each in found if each.mixer != "none"]
        assert max(errors[each.name] for each in found if each.mixer == "none") < min(mixed)


def numbers_in(text):
    """The two ends of a printed interval."""
    return [float(end) for end in text.strip("[]").split(", ")]


def told(page, gap, sign, words, decimals):
    """That a page has words with a difference and its interval; with sign 0 that it contains zero."""
    low, high = ends(gap, sign or 1)
    assert low < 0 < high if sign == 0 else low > 0, words
    interval = f"[{low:.{decimals}f}, {high:.{decimals}f}]"
    words = words.format(f"{sign * gap.mean:.{decimals}f}", interval)
    assert words in page, words


def test_the_outputs_of_the_last_lesson_are_those_of_the_committed_records():
    """Should this fail: run ``make notebooks``, and read the sentences below the figures again."""
    path = project_root() / "notebooks" / "05_results.ipynb"
    cells = nbformat.read(path, as_version=4).cells
    outputs = [output for cell in cells for output in cell.get("outputs", ())]
    printed = "".join(output.get("text", "") for output in outputs)
    shown = "".join(output.get("data", {}).get("text/markdown", "") for output in outputs)

    found = collection.gather(project_root() / "results" / "cifar10-small")
    assert report.markdown(found, "answer").strip() in printed
    assert why.sentence(found.runs) in printed
    below = groups.runs_below(project_root() / "results")
    assert widths.named(below).markdown() in shown
    for row in widths.changes(below).rows:
        if row["what differs"].startswith(("equal", "own")):
            texts = row["n"], *(row[width].text() for width in (widths.AT_8, widths.AT_64))
            assert f"| {' | '.join(texts)} |" in shown
    for row in why.tables(found.runs)[1].rows:
        assert f"| {row['n']} | {row['accuracy (points)'].text()} |" in shown
    attacks = collection.collect_measurements(found, "attacks")
    for row in small.claims(found.runs, attacks).frame().to_dict("records"):
        if (row["in"], row["dataset"]) == ("accuracy", "cifar10"):
            assert f"| {row['claim']} | {row['n']} | {row['A - B']} | {row['state']} |" in shown
