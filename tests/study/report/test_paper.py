"""What may stand beside the paper and what may not: verdicts from made-up records under the
protocol, and from all others.
"""

import pandas as pd
import pytest
from made import PAPERS, add_attacks, make_record, save
from scipy import stats as scipy_stats

from rmlib.params import TrainParams
from rmlib.paths import project_root
from rmlib.study.report import groups, paper, report, reproduction, stats
from rmlib.study.runs import collection


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
    save(
        tmp_path,
        *(make_record(96.0 + seed / 10, seed=seed, **PAPERS | change) for seed in range(6)),
        *(
            make_record(
                90.0 + seed / 10,
                seed=seed,
                mixer="mixup",
                **PAPERS | {k: v for k, v in change.items() if k != "k"},
            )
            for seed in range(6)
        ),
    )
    verdict = cells(tmp_path, 1, dataset="CIFAR-10", mixer="region_mixup")["verdict"].item()
    state = claim(tmp_path, "Region Mixup > Mixup")["state"]
    assert (verdict != "not run") == (state == "holds") == (change == {})
    if change:
        assert set(cells(tmp_path, 1, mixer="region_mixup")["verdict"]) == {
            "not run"
        } and state in ("not run", "too few runs (0 and 6 of 6)")


def test_a_diverged_run_is_no_run(tmp_path):
    save(tmp_path, *(make_record(seed=seed, status="diverged", **PAPERS) for seed in range(6)))
    assert set(cells(tmp_path, 1)["verdict"]) == {"not run"}


def test_the_cell_is_the_mean_of_its_seeds_beside_the_papers(tmp_path):
    values = [96.0, 96.2, 96.3]
    save(tmp_path, *(make_record(v, seed=s, **PAPERS) for s, v in enumerate(values)))
    row = cells(tmp_path, 1, dataset="CIFAR-10", mixer="region_mixup").iloc[0]
    assert (
        row["paper"] == "96.19 ± 0.05"
        and row["n"] == 3
        and (row["ours"], row["ours_std"]) == stats.mean_std(values)
    )
    assert row["verdict"] == "not told apart"
    save(tmp_path, *(make_record(94.0 + s / 10, seed=s, mixer="mixup", **PAPERS) for s in range(3)))
    assert cells(tmp_path, 1, dataset="CIFAR-10", mixer="mixup")["verdict"].item() == "lower"
    save(
        tmp_path, *(make_record(97.0 + s / 10, seed=s, mixer="cutmix", **PAPERS) for s in range(2))
    )
    assert cells(tmp_path, 1, dataset="CIFAR-10", mixer="cutmix")["verdict"].item() == "2 of 3 runs"
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
    save(
        tmp_path,
        *(
            make_record(79.0 + s / 10, seed=s, mixer="cutmix", **PAPERS | {"dataset": "cifar100"})
            for s in range(3)
        ),
    )
    row = cells(tmp_path, 1, dataset="CIFAR-100", mixer="cutmix").iloc[0]
    assert (
        row["paper"] == "79.03" and row["verdict"] == "the paper's spread is lost" and row["n"] == 3
    )
    assert cells(tmp_path, 2, **{"clean loss": "without"})["paper"].tolist() == ["lost"] * 3


def test_states_of_a_claim(tmp_path):
    def state(region, mixup):
        root = tmp_path / str(len(list(tmp_path.iterdir())))
        save(
            root,
            *(make_record(v, seed=s, **PAPERS) for s, v in enumerate(region)),
            *(make_record(v, seed=s, mixer="mixup", **PAPERS) for s, v in enumerate(mixup)),
        )
        return claim(root, "Region Mixup > Mixup")

    base = [95.8, 95.9, 96.0, 95.85, 95.95, 95.9]
    better, worse = (
        [v + shift + (0.01 if i % 2 else -0.01) for i, v in enumerate(base)]
        for shift in (0.3, -0.3)
    )
    row = state(better, base)
    d = scipy_stats.ttest_ind(better, base, equal_var=False).confidence_interval()
    assert (
        row["state"] == "holds"
        and row["A - B"] == f"+0.30 [{d.low:+.2f}, {d.high:+.2f}]"
        and row["n"] == "6, 6 of 6"
    )
    assert row["paired"].startswith("+0.30") and row["r"] > 0.95
    assert state(worse, base)["state"] == "fails"
    assert pd.isna(row["seeds to resolve"]), "nothing is asked of what is resolved"
    close = [v + (0.1 if i % 2 else -0.08) for i, v in enumerate(base)]
    row, primaries = state(close, base), sum(c.primary for c in paper.CLAIMS)
    needed = stats.seeds_needed(
        sum(close) / 6 - sum(base) / 6,
        stats.mean_std(close)[1],
        stats.mean_std(base)[1],
        alpha=0.05 / primaries,
    )
    assert row["state"] == "unresolved" and row["seeds to resolve"] == needed > 6 and primaries == 2
    assert pd.isna(state(base, base)["seeds to resolve"]) and pd.isna(
        state(base[:1], [])["seeds to resolve"]
    ), "no difference, or no run: a dash"
    assert state(better[:5], base)["state"] == "too few runs (5 and 6 of 6)"
    assert state(better[:1], [])["state"] == "too few runs (1 and 0 of 6)"


def test_a_primary_claim_needs_its_corrected_p():
    primary = next(c for c in paper.CLAIMS if c.primary)
    difference = stats.Difference(0.2, 0.01, 0.39, 0.04, (6, 6))
    assert (
        reproduction.verdict(primary, difference, (), (), 0.04) == "holds"
        and reproduction.verdict(primary, difference, (), (), 0.08) == "unresolved"
    )


def test_overhead_is_judged_by_its_margin(tmp_path):
    def speed(region):
        root = tmp_path / str(region)
        save(
            root,
            *(
                make_record(96, seed=s, **PAPERS).model_copy(
                    update={"images_per_second": region + 1.5 * s * s}
                )
                for s in range(3)
            ),
            *(
                make_record(96, seed=s, mixer="mixup", **PAPERS).model_copy(
                    update={"images_per_second": 1000.0 + s}
                )
                for s in range(3)
            ),
        )
        row = claim(root, "at most 5 % slower", metric="speed")
        return row["state"], row["seeds to resolve"]

    assert (
        speed(980.0)[0] == "holds"
        and speed(900.0)[0] == "fails"
        and speed(951.0)[0] == "unresolved"
    )
    percent = 100 / 1001  # one image/s in percent of Mixup's
    needed = stats.seeds_needed(
        percent * (951.0 + 2.5 - 1001) + 5, percent * scipy_stats.tstd([0, 1.5, 6]), percent
    )
    assert speed(951.0)[1] == needed, (
        "from the margin, not from zero; at 5 %, since it is no primary claim"
    )


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
    made = [make_record(96.0, seed=s, **PAPERS) for s in range(3)]
    save(tmp_path, *made)
    for record in made:
        add_attacks(
            tmp_path, record, 59.0, sizes={"0": 96.0, "2/255": 80.0, "16/255": 20.0, "8/255": 59.0}
        )
    captions = [
        each.caption.split(",")[0] + each.caption.split("with eps")[1][:8].rstrip(" (")
        for each in reproduction.tables(*below(tmp_path))
        if "with eps" in each.caption
    ]
    assert captions == ["Table 3 2/255", "Table 3 8/255", "Table 3 16/255", "Table 4 8/255"], (
        "by size; eps = 0 is the clean accuracy; 8/255 where nothing was measured"
    )
    assert (
        cells(tmp_path, 3, "2/255", dataset="CIFAR-10", mixer="region_mixup")["ours"].item() == 80
    )
    assert claim(tmp_path, "Region Mixup > Mixup", metric="FGSM")["n"] == "3, 0 of 3", (
        "claims are about 8/255"
    )


def test_every_number_of_the_paper_has_its_place():
    for numbers in (paper.ACCURACY, paper.FGSM, paper.SQUARE):
        assert set(numbers) == set(paper.DATASETS) and all(
            set(row) == {"cutmix", "mixup", "region_mixup"} for row in numbers.values()
        )
    assert paper.ABLATION[1.0]["region_mixup"] == paper.ACCURACY["cifar100"]["region_mixup"], (
        "the parity that says which dataset Table 2 is about"
    )
    best = {name: max(row, key=lambda mixer: row[mixer][0]) for name, row in paper.ACCURACY.items()}
    assert best == {
        "cifar10": "region_mixup",
        "cifar100": "cutmix",
        "tiny-imagenet": "region_mixup",
    }, "as the paper's bold face"
    orders = {"accuracy": paper.ACCURACY, "fgsm": paper.FGSM, "square": paper.SQUARE}
    for c in paper.CLAIMS:  # every claim of an order is the order of the paper's own cells
        if c.metric in orders and c.a[1] == c.b[1]:
            row = orders[c.metric][c.dataset]
            assert row[c.a[0]][0] > row[c.b[0]][0], c


def test_the_committed_records_have_no_verdict_they_did_not_earn():
    root = project_root() / "results"
    tables = report.tables(root, ("paper",))
    verdicts = {verdict for table in tables["paper"] for verdict in table.frame()["verdict"]}
    eligible = paper.under_protocol(groups.runs_below(root))
    assert len(eligible) or verdicts == {"not run"}


def test_a_network_below_published_ones_is_pointed_out():
    """A point and more below the band, under the paper's protocol only."""
    from made import make_record

    protocol = {
        "dataset": "cifar10",
        "mixer": "mixup",
        "width": 64,
        "epochs": 400,
        "batch_size": 128,
        "schedule": "multistep",
        "lr": 0.1,
        "train_images": None,
    }
    low, fine = (make_record(accuracy, **protocol) for accuracy in (94.2, 94.4))
    assert (
        "more than 1 point below the 95.3 to 96.6 %" in paper.below_band(low)
        and paper.below_band(fine) is None
    )
    assert paper.below_band(make_record(10.0, **protocol | {"width": 8})) is None
    assert paper.below_band(make_record(10.0, **protocol | {"mixer": "region_mixup"})) is None, (
        "there is no band for the new method"
    )
