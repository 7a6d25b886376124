"""What may stand beside the paper and what may not: verdicts from made-up records under the
protocol, and from all others.
"""

import re

import pandas as pd
import pytest
from made import PAPERS, add_attacks, make_record, save
from scipy import stats as scipy_stats

from rmlib.params import TrainParams
from rmlib.paths import project_root
from rmlib.study.report import groups, paper, report, reproduction, stats
from rmlib.study.runs import collection


def runs(root, values, **config):
    """Records under the paper's protocol, of one accuracy for each seed."""
    save(root, *(make_record(x, seed=seed, **PAPERS | config) for seed, x in enumerate(values)))


def below(root):
    """The runs and the attacks below a folder."""
    return groups.runs_below(root), collection.collect_measurements(root, "attacks")


def cells(root, table, eps=None, **where):
    (frame,) = [
        each.frame()
        for each in reproduction.tables(*below(root))
        if each.caption.startswith(f"Table {table},")
        and (eps is None or f"eps {eps} " in each.caption)
    ]
    for name, value in where.items():
        frame = frame[frame[name] == value]
    return frame


def claim(root, text, dataset="CIFAR-10", metric="accuracy"):
    frame = reproduction.claims(*below(root)).frame()
    (row,) = frame[
        frame["claim"].str.contains(text, regex=False)
        & (frame["dataset"] == dataset)
        & (frame["in"] == metric)
    ].to_dict("records")
    return row


def test_the_protocol_names_real_parameters_and_the_batches_follow_it():
    from rmlib.study.batch.plan import read_batch

    assert set(paper.PROTOCOL) <= set(TrainParams.model_fields)
    counts = []
    for name in paper.DATASETS:
        cells = read_batch(project_root() / "notebooks" / "batches" / f"{name}.yaml").runs
        off = {
            key
            for cell in cells
            for key, value in paper.PROTOCOL.items()
            if getattr(cell, key) != value
        }
        assert off == {"average"} and {cell.dataset for cell in cells} == {name}
        controls = [(cell.mixer, cell.clean_weight) for cell in cells]
        assert {
            ("none", 1.0),
            ("none", 0.0),
            ("region_mixup", 0.0),
            ("mixup", 0.0),
            ("cutmix", 0.0),
        } <= set(controls)
        needed = max(c.runs for c in paper.CLAIMS if c.dataset == name)
        assert controls.count(("region_mixup", 1.0)) - 3 >= needed, "beside the three averaged ones"
        counts.append(len(cells))
        assert controls.count(("mixup", 1.0)) >= needed and controls.count(("cutmix", 1.0)) >= 3
        assert (
            f"{len(cells)} networks of width 64"
            in (project_root() / "notebooks" / "batches" / f"{name}.yaml").read_text()
        )
    assert (
        "{}, {} and {} networks of 400 epochs".format(*counts)
        in (project_root() / "notebooks" / "batches" / "README.md").read_text()
    )


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"checksum": "of other images"},
        {"width": 32},
        {"epochs": 200},
        {"train_images": 5000},
        {"holdout": True},
        {"allow_partial": True},
        {"dataset": "shapes"},
        {"average": True},
        {"lr": 0.05},
        {"alpha": 0.2},
        {"k": 4},
    ],
)
def test_a_cell_says_not_run_until_its_own_experiment_is_run(tmp_path, change):
    others = {name: value for name, value in change.items() if name != "k"}
    runs(tmp_path, [96.0 + seed / 10 for seed in range(6)], **change)
    runs(tmp_path, [90.0 + seed / 10 for seed in range(6)], mixer="mixup", **others)
    verdicts = cells(tmp_path, 1, mixer="region_mixup")["verdict"].tolist()
    state = claim(tmp_path, "Region Mixup > Mixup")["state"]
    if change:
        assert set(verdicts) == {"not run"}
        assert state in ("not run", "too few runs (0 and 6 of 6)")
    else:
        assert verdicts[0] != "not run" and state == "holds"


def test_a_diverged_run_is_no_run(tmp_path):
    save(tmp_path, *(make_record(seed=seed, status="diverged", **PAPERS) for seed in range(6)))
    assert set(cells(tmp_path, 1)["verdict"]) == {"not run"}


def test_the_cell_is_the_mean_of_its_seeds_beside_the_papers(tmp_path):
    values = [96.0, 96.2, 96.3]
    runs(tmp_path, values)
    runs(tmp_path, [94.0, 94.1, 94.2], mixer="mixup")
    runs(tmp_path, [97.0, 97.1], mixer="cutmix")
    found = cells(tmp_path, 1, dataset="CIFAR-10").set_index("mixer")
    row = found.loc["region_mixup"]
    assert row["paper"] == "96.19 ± 0.05" and row["n"] == 3
    assert (row["ours"], row["ours_std"]) == stats.mean_std(values)
    assert found["verdict"].to_dict() == {
        "cutmix": "2 of 3 runs",
        "mixup": "lower",
        "region_mixup": "not told apart",
    }
    assert set(cells(tmp_path, 1, dataset="Tiny ImageNet")["verdict"]) == {"not run"}


def test_a_cell_and_a_claim_pool_one_precision(tmp_path):
    def stored(value, precision, seeds, **more):
        runs = (
            make_record(value, seed=s, **PAPERS | {"precision": precision} | more) for s in seeds
        )
        save(tmp_path, *runs)

    stored(96.0, "bf16", range(4))
    stored(90.0, "fp32", range(4, 7))
    stored(80.0, "fp32", range(3), mixer="mixup")
    row = cells(tmp_path, 1, dataset="CIFAR-10", mixer="region_mixup").iloc[0]
    assert (row["ours"], row["n"]) == (90.0, 3), "fp32 is what most runs of the dataset have"
    assert claim(tmp_path, "Region Mixup > Mixup")["n"] == "3, 3 of 6"
    stored(79.0, "bf16", range(3), mixer="mixup")
    assert claim(tmp_path, "Region Mixup > Mixup")["n"] == "4, 3 of 6"


def test_lost_cells_stay_lost(tmp_path):
    runs(tmp_path, [79.0, 79.1, 79.2], mixer="cutmix", dataset="cifar100")
    row = cells(tmp_path, 1, dataset="CIFAR-100", mixer="cutmix").iloc[0]
    told = (row["paper"], row["verdict"], row["n"])
    assert told == ("79.03", "the paper's spread is lost", 3)
    assert cells(tmp_path, 2, **{"clean loss": "without"})["paper"].tolist() == ["lost"] * 3


def test_states_of_a_claim(tmp_path):
    def state(region, mixup):
        root = tmp_path / str(len(list(tmp_path.iterdir())))
        runs(root, region)
        runs(root, mixup, mixer="mixup")
        return claim(root, "Region Mixup > Mixup")

    base = [95.8, 95.9, 96.0, 95.85, 95.95, 95.9]
    better, worse = (
        [v + shift + (0.01 if i % 2 else -0.01) for i, v in enumerate(base)]
        for shift in (0.3, -0.3)
    )
    row = state(better, base)
    d = scipy_stats.ttest_ind(better, base, equal_var=False).confidence_interval()
    assert row["state"] == "holds" and row["n"] == "6, 6 of 6"
    assert row["A - B"] == f"+0.30 [{d.low:+.2f}, {d.high:+.2f}]"
    assert row["paired"].startswith("+0.30") and row["r"] > 0.95
    assert pd.isna(row["seeds of a new study"]), "nothing is asked of what is resolved"
    assert state(worse, base)["state"] == "fails"
    close = [v + (0.1 if i % 2 else -0.08) for i, v in enumerate(base)]
    (a, std_a), (b, std_b) = stats.mean_std(close), stats.mean_std(base)
    needed = stats.seeds_needed(a - b, std_a, std_b, alpha=0.05 / 2)
    row = state(close, base)
    assert sum(c.primary for c in paper.CLAIMS) == 2
    assert row["state"] == "unresolved" and row["seeds of a new study"] == needed > 6
    for nothing in ((base, base), (base[:1], [])):
        assert pd.isna(state(*nothing)["seeds of a new study"]), "no difference, or no run: a dash"
    assert state(better[:5], base)["state"] == "too few runs (5 and 6 of 6)"
    assert state(better[:1], [])["state"] == "too few runs (1 and 0 of 6)"


def test_a_primary_claim_needs_its_corrected_p():
    primary = next(c for c in paper.CLAIMS if c.primary)
    difference = stats.Difference(0.2, 0.01, 0.39, 0.04, (6, 6))
    states = [reproduction.verdict(primary, difference, (), (), p) for p in (0.04, 0.08)]
    assert states == ["holds", "unresolved"]


def test_overhead_is_judged_by_its_margin(tmp_path):
    def speed(region):
        root = tmp_path / str(region)
        for seed in range(3):
            own, other = (
                make_record(96, seed, mixer=m, **PAPERS) for m in ("region_mixup", "mixup")
            )
            own.images_per_second = region + 1.5 * seed**2
            other.images_per_second = 1000.0 + seed
            save(root, own, other)
        row = claim(root, "at most 5 % slower", metric="speed")
        return row["state"], row["seeds of a new study"]

    assert [speed(x)[0] for x in (980.0, 900.0, 951.0)] == ["holds", "fails", "unresolved"]
    percent = 100 / 1001  # one image/s in percent of Mixup's
    needed = stats.seeds_needed(
        percent * (951.0 + 2.5 - 1001) + 5, percent * scipy_stats.tstd([0, 1.5, 6]), percent
    )
    assert speed(951.0)[1] == needed, "from the margin, not from zero; at 5 %: it is not primary"


def test_attacks_count_only_with_the_papers_settings_on_all_images(tmp_path):
    made = [make_record(96.0, seed=s, **PAPERS) for s in range(3)]
    save(tmp_path, *made)
    for number, record in enumerate(made):
        add_attacks(tmp_path, record, 58.0 + number)
    row = cells(tmp_path, 3, dataset="CIFAR-10", mixer="region_mixup").iloc[0]
    assert row["n"] == 3 and row["ours"] == 59 and row["verdict"] == "not told apart"
    assert set(cells(tmp_path, 4)["verdict"]) == {"not run"}, "FGSM is not Square"
    for change in ({"images": 500}, {"attack": "square"}):
        for record in made:
            add_attacks(tmp_path, record, 50.0, **change)
        assert set(cells(tmp_path, 3, "8/255")["verdict"]) == {"not run"}, change
    assert cells(tmp_path, 4, dataset="CIFAR-10", mixer="region_mixup")["n"].item() == 3
    for record in made:
        add_attacks(tmp_path, record, 50.0, attack="square", queries=200)
    assert set(cells(tmp_path, 4)["verdict"]) == {"not run"}, "another budget"


def test_tables_3_and_4_stand_for_every_size_that_was_measured(tmp_path):
    """By size; eps = 0 is the clean accuracy; 8/255 where nothing was measured."""
    made = [make_record(96.0, seed=s, **PAPERS) for s in range(3)]
    save(tmp_path, *made)
    sizes = {"0": 96.0, "2/255": 80.0, "16/255": 20.0, "8/255": 59.0}
    for record in made:
        add_attacks(tmp_path, record, 59.0, sizes=sizes)
    captions = [table.caption for table in reproduction.tables(*below(tmp_path))]
    found = [re.match(r"(Table \d),.* eps (\S+) \(", caption) for caption in captions]
    assert [each.groups() for each in found if each] == [
        ("Table 3", "2/255"),
        ("Table 3", "8/255"),
        ("Table 3", "16/255"),
        ("Table 4", "8/255"),
    ]
    row = cells(tmp_path, 3, "2/255", dataset="CIFAR-10", mixer="region_mixup")
    assert row["ours"].item() == 80
    found = claim(tmp_path, "Region Mixup > Mixup", metric="FGSM")
    assert found["n"] == "3, 0 of 3", "claims are about 8/255"


def test_every_number_of_the_paper_has_its_place():
    """Every claim of an order is the order of the paper's own values, as its bold face has it."""
    metrics = {"accuracy": paper.ACCURACY, "fgsm": paper.FGSM, "square": paper.SQUARE}
    for numbers in metrics.values():
        assert set(numbers) == set(paper.DATASETS)
        assert all(set(row) == set(paper.METHODS) for row in numbers.values())
    assert paper.ABLATION[1.0]["region_mixup"] == paper.ACCURACY["cifar100"]["region_mixup"], (
        "the parity that says which dataset Table 2 is about"
    )
    best = [max(row, key=lambda mixer: row[mixer][0]) for row in paper.ACCURACY.values()]
    assert best == ["region_mixup", "cutmix", "region_mixup"]
    for c in (c for c in paper.CLAIMS if c.metric in metrics and c.a[1] == c.b[1]):
        row = metrics[c.metric][c.dataset]
        assert row[c.a[0]][0] > row[c.b[0]][0], c


def test_the_committed_records_have_no_verdict_they_did_not_earn():
    root = project_root() / "results"
    tables = report.tables(root, ("paper",))
    verdicts = {verdict for table in tables["paper"] for verdict in table.frame()["verdict"]}
    eligible = paper.under_protocol(groups.runs_below(root))
    assert len(eligible) or verdicts == {"not run"}


def test_a_network_below_published_ones_is_pointed_out():
    """A point and more below the band, under the paper's protocol, where there is a band."""
    protocol = PAPERS | {"mixer": "mixup"}
    low, fine = (make_record(accuracy, **protocol) for accuracy in (94.2, 94.4))
    assert "more than 1 point below the 95.3 to 96.6 %" in paper.below_band(low)
    others = (make_record(10.0, **protocol | x) for x in ({"width": 8}, {"mixer": "region_mixup"}))
    assert [paper.below_band(each) for each in (fine, *others)] == [None] * 3
