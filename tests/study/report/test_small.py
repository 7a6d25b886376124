"""The small-data study's claims, from made-up records under its protocol."""

import itertools

import nbformat
import pytest
from made import make_record, measured, save

from rmlib.params import TrainParams
from rmlib.paths import project_root
from rmlib.study.batch.plan import read_batch
from rmlib.study.report import (
    accuracy,
    completeness,
    groups,
    report,
    small,
    stats,
    why,
    widths,
)
from rmlib.study.report.claims import fit_protocol, numbers
from rmlib.study.runs import collection

SMALL = {name: value for name, value in small.PROTOCOL.items() if name in TrainParams.model_fields}
SMALL |= {"dataset": "cifar10", "train_images": 5000}


def accuracies(root, count=10, **values):
    """Records of each method; ``values``: mixer -> function of the seed."""
    for mixer, value in values.items():
        save(root, *(make_record(value(s), seed=s, mixer=mixer, **SMALL) for s in range(count)))


def row(root, text, metric="accuracy"):
    attacks = collection.collect_measurements(root, "attacks")
    frame = small.claims(groups.runs_below(root), attacks).frame()
    fits = frame["claim"].str.endswith(text) & (frame["in"] == metric)
    (found,) = frame[fits & (frame["dataset"] == "cifar10")].to_dict("records")
    return found


REGION_MIXUP = "Region Mixup, clean_weight=1 minus Mixup, clean_weight=1"


def test_the_batches_follow_the_protocol():
    for name, seeds in small.SEEDS.items():
        path = project_root() / "notebooks" / "batches" / f"{name}-small.yaml"
        cells = read_batch(path).runs
        assert {cell.train_images for cell in cells} == {small.TRAIN_IMAGES[name]}
        wanted = {(mixer, 1.0) for mixer in ("none", "mixup", "cutmix", "region_mixup")}
        for method in wanted:
            own = [cell for cell in cells if (cell.mixer, cell.clean_weight) == method]
            alike = [
                cell
                for cell in own
                if all(getattr(cell, key) == value for key, value in small.PROTOCOL.items())
            ]
            assert {cell.seed for cell in alike} == set(range(seeds)), (name, method)


def test_nothing_run_has_no_table(tmp_path):
    save(tmp_path, make_record(50.0))
    assert report.tables(tmp_path)["small"] == []


def test_larger_smaller_equal_and_unresolved(tmp_path):
    def noise(seed):
        return 0.1 * (seed % 3)

    root = tmp_path / "a"
    accuracies(root, region_mixup=lambda s: 60 + noise(s), mixup=lambda s: 58 + noise(s))
    found = row(root, REGION_MIXUP)
    assert found["state"] == "resolved: larger" and found["n"] == "10, 10 of 10"
    assert found["A - B"].startswith("+2.000 [") and found["claim"].startswith("primary: ")
    root = tmp_path / "b"
    accuracies(root, region_mixup=lambda s: 57 + noise(s), mixup=lambda s: 58 + noise(s))
    assert row(root, REGION_MIXUP)["state"] == "resolved: smaller"
    root = tmp_path / "c"
    accuracies(root, region_mixup=lambda s: 58.01 + noise(s), mixup=lambda s: 58 + noise(s))
    assert row(root, REGION_MIXUP)["state"] == "resolved: no difference larger than 1 point"
    root = tmp_path / "d"
    accuracies(root, region_mixup=lambda s: 58.5 + 3 * (s % 3), mixup=lambda s: 58 + 3 * (s % 3))
    assert row(root, REGION_MIXUP)["state"] == "unresolved"


def test_a_primary_claim_is_corrected_for_both_even_if_one_was_not_run(tmp_path):
    """Ten seeds with p between 0.025 and 0.05: alone resolved, with two primary claims not."""
    accuracies(tmp_path, region_mixup=lambda s: 58 + s % 2 * 2, mixup=lambda s: 56.98 + s % 2 * 2)
    found = row(tmp_path, REGION_MIXUP)
    assert found["p"] < 0.05 < found["p (Holm)"] < 0.1 and found["state"] == "unresolved"


@pytest.mark.parametrize("change", [{"epochs": 61}, {"train_images": 4999}, {"width": 16}])
def test_another_protocol_does_not_count(tmp_path, change):
    save(tmp_path, make_record(50.0, **SMALL), make_record(50.0, **SMALL | change))
    runs = groups.runs_below(tmp_path)
    assert len(small.under_protocol(runs)) == 1 and len(runs) == 2


def test_seeds_beyond_the_fixed_ones_and_other_samples_do_not_count(tmp_path):
    made = [make_record(60.0 + s, seed=s, **SMALL) for s in range(12)]
    save(tmp_path, *made)
    for record, images in zip(made, [small.IMAGES] * 3 + [500] * 9):
        what = {"attack": "fgsm", "eps": small.EPS}
        after = {"images": images, "clean_accuracy": 60.0, "accuracy_after": 30.0}
        measured(tmp_path, record, "attacks", (what, after))
    assert row(tmp_path, REGION_MIXUP)["n"] == "10, 0 of 10"
    assert row(tmp_path, REGION_MIXUP, "fgsm")["n"] == "3, 0 of 10"
    assert row(tmp_path, REGION_MIXUP)["state"] == "too few runs (10 and 0 of 10)"


def test_a_parameter_of_none_is_found_as_nan(tmp_path):
    save(tmp_path, make_record(50.0, test_images=None), make_record(50.0, test_images=10, seed=1))
    fits = fit_protocol(
        groups.runs_below(tmp_path), {"test_images": None, "milestones": [0.25, 0.375]}
    )
    assert sorted(fits) == [False, True]


def caption(root):
    attacks = collection.collect_measurements(root, "attacks")
    return small.claims(groups.runs_below(root), attacks).caption


def test_the_papers_direction_stands_beside_ours(tmp_path):
    """The paper has Region Mixup above Mixup and CutMix, and nothing about the doubled loss."""

    def at(value):
        return lambda seed: value + 0.1 * (seed % 3)

    accuracies(tmp_path, region_mixup=at(56), mixup=at(58), cutmix=at(55), none=at(50))
    others = ("Mixup, clean_weight=1", "CutMix, clean_weight=1", "clean loss twice (control)")
    found = [row(tmp_path, f"minus {name}") for name in others]
    told = [each["paper"] for each in found]
    assert told == ["larger: opposite", "larger: same direction", "–"]
    assert "of 8 claims" in caption(tmp_path) and "another experiment" in caption(tmp_path)
    assert "1 same direction, 1 opposite, 0 not told apart, 6 no verdict" in caption(tmp_path)


@pytest.mark.parametrize(
    "state, words",
    [
        ("resolved: smaller", "same direction"),
        ("resolved: larger", "opposite"),
        ("unresolved", "not told apart"),
        ("resolved: no difference larger than 1 point", "not told apart"),
        ("too few runs (9 and 10 of 10)", "no verdict yet"),
        ("not run", "no verdict yet"),
    ],
)
def test_on_cifar100_the_paper_has_cutmix_above_region_mixup(state, words):
    (claim,) = (
        claim
        for claim in small.CLAIMS
        if claim.dataset == "cifar100" and claim.b == small.CUTMIX and claim.metric == "accuracy"
    )
    assert small.direction(claim) == "smaller" and small.beside("smaller", state) == words


def test_a_diverged_run_that_leaves_a_claim_is_told(tmp_path):
    accuracies(tmp_path, region_mixup=lambda s: 56, mixup=lambda s: 58)
    save(tmp_path, make_record(status="diverged", seed=3, mixer="mixup", **SMALL))
    found = row(tmp_path, REGION_MIXUP)
    assert found["n"] == "10, 9 of 10 (1 diverged)"
    assert found["state"] == "too few runs (10 and 9 of 10)"


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
        f"Borders that move add {points['borders that move']:.1f} points.",
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

    table = widths.table(groups.runs_below(collection.gather(root / "results")))
    rows = {row["difference"]: row for row in table.rows}
    gains = [
        rows[f"{x} - plain training"][widths.CHANGE] for x in ("Region Mixup", "Mixup", "CutMix")
    ]
    assert all(each.low > 0 for each in gains) and gains[0].low > max(
        each.mean for each in gains[1:]
    )
    for other in ("Mixup", "CutMix"):
        row = rows[f"Region Mixup - {other}"]
        assert row[widths.CHANGE].low > 0 > row[widths.PAPERS].high
    assert rows["Region Mixup - Region Mixup, clean_weight=0"][widths.CHANGE].high < 0
    assert rows["Region Mixup, clean_weight=0 - plain training"][widths.CHANGE].low > 0

    points = {name: abs(row[widths.PAPERS].mean) for name, row in rows.items()}
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


def measured_on(found, what, mixer, clean_weight):
    """A number for each network of a method: of its record, under an attack at EPS or corruptions."""
    side, attacks = (mixer, clean_weight), found.tables["attacks"]
    if what in ("nll", "ece", "fgsm", "square"):
        return numbers(found.runs, attacks, what, "cifar10", side, images=small.IMAGES)["number"]
    own = numbers(found.runs, attacks, "accuracy", "cifar10", side)["run_id"]
    rows, column = found.tables["corruptions"], "mean_accuracy"
    if what == "fgsm_margin":
        rows, column = attacks[attacks["attack"] == what], "accuracy_after"
    rows = rows[rows["run_id"].isin(own)]
    assert len(rows) == len(own) and set(rows["images"]) == {small.IMAGES}
    return rows[column]


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
    for row in why.tables(found.runs)[1].rows:
        assert f"| {row['n']} | {row['accuracy (points)'].text()} |" in shown
    attacks = collection.collect_measurements(found, "attacks")
    for row in small.claims(found.runs, attacks).frame().to_dict("records"):
        if (row["in"], row["dataset"]) == ("accuracy", "cifar10"):
            assert f"| {row['claim']} | {row['n']} | {row['A - B']} | {row['state']} |" in shown
