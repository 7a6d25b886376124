import statistics
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from made import make_record, measured, save
from scipy import stats

from rmlib import UserError
from rmlib.packed import pack_bits, pack_values
from rmlib.paths import project_root
from rmlib.study import figures
from rmlib.study.report import pages, report
from rmlib.study.report.stats import crossed, seeds_needed
from rmlib.study.runs import collection, environment, records

ROOT = project_root()


def test_mean_spread_and_n(tmp_path):
    values = [80.0, 83.0, 84.5]
    save(
        tmp_path,
        *(make_record(v, seed=s) for s, v in enumerate(values)),
        make_record(70.0, mixer="mixup"),
        make_record(seed=1, mixer="mixup", status="diverged"),
    )
    (group,) = report.experiments(report.runs_below(tmp_path))
    table, caption = report.summary(group), report.caption(group)
    assert (
        list(table["mixer"]) == ["mixup", "region_mixup"]
        and list(table["n"]) == [1, 3]
        and list(table["diverged"]) == [1, 0]
    )
    assert table["accuracy"].iloc[1] == pytest.approx(statistics.mean(values))
    assert table["accuracy_std"].iloc[1] == pytest.approx(statistics.stdev(values))
    text = report.markdown(tmp_path)
    assert (
        f"| Region Mixup | 3 | {statistics.mean(values):.2f} ± {statistics.stdev(values):.2f} |"
        in text
    )
    assert "| Mixup | 1 (+ 1 diverged) | 70.00 |" in text, "one run has no spread"
    assert (
        "seeds 0, 1, 2" in caption
        and "dataset shapes" in caption
        and "10000 test images" in caption
    )


def test_experiments_are_never_averaged_or_compared(tmp_path):
    """Runs of different length stand in different tables; methods in rows of one."""
    save(
        tmp_path,
        make_record(80, seed=0),
        make_record(60, seed=0, epochs=3),
        make_record(70, clean_weight=0),
    )
    groups = report.experiments(report.runs_below(tmp_path))
    assert [len(group) for group in groups] == [2, 1]
    table = report.summary(groups[0])
    assert (
        sorted(table["accuracy"]) == [70, 80]
        and set(table["n"]) == {1}
        and list(table["clean_weight"]) == [1, 0]
    )
    assert report.markdown(tmp_path).count("| method |") == 2


def test_what_leaves_the_network_alone_does_not_part_its_runs(tmp_path):
    save(
        tmp_path,
        make_record(80, seed=0, eval_every=0),
        make_record(82, seed=1, bn_recalibration=True),
    )
    (group,) = report.experiments(report.runs_below(tmp_path))
    assert list(report.summary(group)["n"]) == [2]


def test_a_network_counts_once_however_often_it_was_trained(tmp_path):
    """Runs that differ in what has no effect on the network are the same network: n, mean,
    differences and measurements count it once, and the list of runs shows both.
    """
    made = [
        make_record(80 + seed + 10 * (mixer == "mixup"), seed=seed, mixer=mixer)
        for seed in range(3)
        for mixer in ("mixup", "region_mixup")
    ]
    save(tmp_path, *made)
    before = report.tables(tmp_path)
    again = [
        make_record(record.metrics["accuracy"], **(record.config | {"eval_every": 3}))
        for record in made
    ]
    assert not {record.run_id for record in again} & {record.run_id for record in made}
    save(tmp_path, *again)
    after = report.tables(tmp_path)
    for kind in ("accuracy", "differences"):
        pd.testing.assert_frame_equal(before[kind][0][1], after[kind][0][1])
    assert list(after["accuracy"][0][1]["n"]) == [3, 3] and after["costs"][0][1][
        "runs"
    ].tolist() == [12, 12]
    assert len(pages._cells(report.runs_below(tmp_path), {})[1]) == 12


def test_a_run_stored_twice_is_one_run(tmp_path):
    save(tmp_path / "a", make_record(80, seed=0), make_record(82, seed=1))
    save(tmp_path / "b", make_record(80, seed=0))
    (group,) = report.experiments(report.runs_below(tmp_path))
    assert list(report.summary(group)["n"]) == [2]


def test_attacks_stand_beside_their_method(tmp_path):
    made = [make_record(80, seed=s) for s in range(3)]
    save(tmp_path, *made, make_record(75, mixer="mixup"))
    for accuracy, record in zip((40.0, 44.0, 48.0), made):
        measured(
            tmp_path,
            record,
            "attacks",
            *[
                (
                    {"attack": "fgsm", "eps": eps},
                    {"images": 50, "clean_accuracy": 80.0, "accuracy_after": value},
                )
                for eps, value in (("16/255", accuracy - 30), ("8/255", accuracy), ("0", 80.0))
            ],
            (
                {"attack": "square", "eps": "8/255", "queries": 100},
                {"images": 50, "clean_accuracy": 80.0, "accuracy_after": 50.0},
            ),
        )
        measured(
            tmp_path,
            record,
            "corruptions",
            (
                {"images": 50},
                {
                    "images": 50,
                    "clean_accuracy": 80.0,
                    "mean_accuracy": accuracy + 20,
                    "accuracy": {
                        "shot_noise": [60.0, 50.0, 40.0, 30.0, 20.0],
                        "contrast": [accuracy] * 5,
                    },
                },
            ),
        )
    text = report.markdown(tmp_path, "robustness")
    for sample in (
        {"image_seed": 1, "images": 20},
        {"image_seed": 0, "images": 20},
        {"batch_size": 7, "images": 20},
    ):
        measured(
            tmp_path,
            made[0],
            "attacks",
            (
                {"attack": "fgsm", "eps": "8/255", **sample},
                {"images": 20, "clean_accuracy": 0.0, "accuracy_after": 0.0},
            ),
        )
    assert report.markdown(tmp_path, "robustness") == text, (
        "a second, smaller sample is no second network"
    )
    assert "| FGSM 8/255 | FGSM 16/255 | Square 8/255 (100 queries) | corrupted (mean) |" in text, (
        "sizes in the order of their value"
    )
    assert (
        "| Region Mixup | 3 | 50 | 80.0 ± 0.0 | 44.0 ± 4.0 | 14.0 ± 4.0 | 50.0 ± 0.0 | 64.0 ± 4.0 |"
        in text
        and "| Mixup" not in text
    )
    assert "| shot noise | contrast | mean |" in report.markdown(tmp_path, "corrupted")
    assert (
        "| Region Mixup | 3 | 50 | 80.0 ± 0.0 | 40.0 ± 0.0 | 44.0 ± 4.0 | 64.0 ± 4.0 |"
        in report.markdown(tmp_path, "corrupted")
    )
    assert "| 4 | 0.07 |" in report.markdown(tmp_path, "costs")


def looked(key="gradcam++ layer4", **values):
    """A stored measure of maps: name -> values of single images."""
    values = {name: torch.tensor(each, dtype=torch.float64) for name, each in values.items()}
    entry = {
        "mean": {name: each.mean().item() for name, each in values.items()},
        "control": {name: 20.0 for name in values if name != "extent"},
        "values": {name: pack_values(each) for name, each in values.items()},
        "control_values": {
            name: pack_values(0 * each + 20) for name, each in values.items() if name != "extent"
        },
    }
    return {"found": {key: entry}}


def test_maps_stand_beside_their_method(tmp_path):
    """Numbers by hand: three networks and one of another method, four images; and what is no
    measure, or another sample, does not count.
    """
    made, other = (
        [make_record(80, seed=s) for s in range(3)],
        make_record(75, mixer="mixup", seed=1),
    )
    save(tmp_path, *made, other)
    base = [10.0, 20.0, 30.0, 40.0]
    what = {
        "measure": "localization",
        "maps": ["gradcam++ layer4"],
        "images": 4,
        "image_seed": 0,
        "checksum": "c",
    }
    for shift, record in ((0.0, made[0]), (1.0, made[1]), (2.0, made[2]), (5.0, other)):
        measured(
            tmp_path,
            record,
            "cam",
            (what, looked(energy_inside=[v + shift for v in base], extent=[50.0] * 4)),
            (
                what | {"measure": "sanity"},
                {
                    "found": {
                        "gradcam++ layer4": {
                            "stages": {"linear": 30.0, "conv1": -2.0 if shift else None},
                            "left_out": {"linear": 0, "conv1": 3},
                            "control": 20.0,
                        }
                    }
                },
            ),
            (
                what | {"measure": "guard"},
                (
                    {
                        "correlation": 98.0 + shift,
                        "lowest": 5.0,
                        "compared": 4,
                        "moved": 1.0,
                        "negative": 50.0,
                    }
                    if shift != 1
                    else {}
                ),
            ),
        )
        measured(
            tmp_path,
            record,
            "cam",
            (
                what | {"measure": "maps", "images": 99},
                {"shape": [99, 32, 32], "layers": {}},
            ),  # pictures, not a measure
            (what | {"images": 2}, looked(energy_inside=[0.0, 0.0], extent=[0.0, 0.0])),
        )
    text, (caption, table) = (
        report.markdown(tmp_path, "localization"),
        report.tables(tmp_path)["localization"][0],
    )
    low, high = stats.ttest_1samp(base, 0).confidence_interval(0.95)
    assert (
        f"| Grad-CAM++ layer4 | energy inside the object (%) | 1 to 3 | 4 | 30.0 [{low + 5:.1f},"
        f" {high + 5:.1f}] (20.0) | 26.0 ± 1.0 [" in text
    ), "one network: over images alone"
    seeds, pictures = (
        stats.sem([0, 1, 2]) * stats.t.ppf(0.975, 2),
        stats.sem(base) * stats.t.ppf(0.975, 3),
    )
    assert (
        table["Region Mixup_low"].iloc[0] == pytest.approx(26 - (seeds**2 + pictures**2) ** 0.5)
        and list(table["Mixup_control"])[0] == 20
    )
    assert (
        "| Grad-CAM++ layer4 | extent (%) | 1 to 3 | 4 | 50.0 | 50.0 ± 0.0 |" in text
        and "interval over networks and images" in caption
    )
    ((_, gaps),) = report.tables(tmp_path)["looks"]
    assert (
        list(gaps["difference"]) == ["Region Mixup - Mixup"] * 2
        and list(gaps["points"]) == [-4, 0]
        and set(gaps["n"]) == {1}
    ), "seed 1 alone has both"
    assert set(gaps["state"]) == {"one network each"}
    assert (
        "| Grad-CAM++ layer4 | and stem | 1 to 3 | -2.0 | -2.0 ± 0.0 | 20.0 | 3 |"
        in report.markdown(tmp_path, "sanity")
    )
    assert (
        "| Region Mixup | 2 | 99.0 ± 1.4 | 5.0 ± 0.0 | 4.0 ± 0.0 | 1.0 ± 0.0 | 50.0 ± 0.0 |"
        in report.markdown(tmp_path, "guard")
    ), "one has no closed form"


def test_differences_of_maps_are_paired_by_seed_and_image(tmp_path):
    """Networks and images that differ much, and a method that is better by one point on each:
    resolved; by chance: unresolved.
    """
    rng, what = (
        torch.Generator().manual_seed(0),
        {
            "measure": "faithfulness",
            "maps": ["gradcam++ layer4"],
            "images": 40,
            "image_seed": 0,
            "checksum": "c",
        },
    )
    for mixer, gain in (("region_mixup", 1.0), ("cutmix", 0.0)):
        images = 30 * torch.rand(40, generator=torch.Generator().manual_seed(7)).double()
        for seed in range(4):
            record = make_record(80, seed=seed, mixer=mixer)
            save(tmp_path, record)
            noise = [torch.rand(40, generator=rng).double() for _ in range(2)]
            measured(
                tmp_path,
                record,
                "cam",
                (
                    what,
                    looked(
                        deletion=(images + 9 * seed + 5 * gain + noise[0]).tolist(),
                        road=(images + 9 * seed + noise[1]).tolist(),
                    ),
                ),
            )
    ((caption, gaps),) = report.tables(tmp_path)["looks"]
    assert (
        list(gaps["state"]) == ["resolved", "unresolved"]
        and gaps["points"].iloc[0] == pytest.approx(5, abs=0.3)
        and set(gaps["n"]) == {4}
    )
    assert (
        gaps["low"].iloc[0] > 4
        and gaps["low"].iloc[1] < 0 < gaps["high"].iloc[1]
        and "corrected by Holm" in caption
    )


def test_checks_count_the_networks_behind_a_warning(tmp_path):
    """Three networks on 200 of 10000 images: one without gradients, one overstated, one honest."""
    made = [make_record(80, seed=s) for s in range(3)]
    save(tmp_path, *made)

    def verdicts(left, zero=None, count=200):
        bits = torch.arange(count) < left
        return {
            "images": count,
            "correct": pack_bits(bits),
            "accuracy_after": 100 * left / count,
            "robust_accuracy": 100 * left / count,
            "clean_accuracy": 80.0,
        } | ({} if zero is None else {"zero_gradient": zero})

    for record, pgd, zero in zip(made, (100, 60, 100), (50, 0, 0)):
        common = {"image_seed": 4, "checksum": "c", "batch_size": 9}
        measured(
            tmp_path,
            record,
            "attacks",
            *[
                (
                    {"attack": name, "eps": eps, "images": 200, **common},
                    verdicts(left, zero if name == "fgsm" else None),
                )
                for eps in ("8/255", "2/255")
                for name, left in (("fgsm", 100), ("pgd", pgd))
            ],
            (
                {"attack": "autoattack", "eps": "8/255", "images": 20, **common},
                verdicts(5, count=20),
            ),
        )
    ((caption, table),) = report.tables(tmp_path)["checks"]
    assert "PGD" not in report.markdown(tmp_path, "robustness"), "it has a table of its own"
    assert (
        list(table["eps"]) == ["2/255", "8/255"]
        and set(table["n"]) == {3}
        and set(table["images"]) == {200}
    )
    row = table.iloc[1]
    assert (
        row["fgsm"] == 50
        and row["strongest"] == pytest.approx((50 + 30 + 50) / 3)
        and row["zero_gradient"] == pytest.approx(25 / 3)
    )
    assert (
        row["warning"]
        == "images without gradient (1 of 3); overstated (1 of 3); too few images to tell (1 of 3);"
        " no attack without gradients (3 of 3)"
    )
    assert row["autoattack"] == 25 and row["its images"] == 20 and table.iloc[0]["its images"] != 20
    before = report.render(table)
    other = {
        "image_seed": 5,
        "checksum": "c",
        "batch_size": 9,
        "images": 200,
    }  # other images, measured later, by PGD alone
    measured(
        tmp_path,
        made[0],
        "attacks",
        ({"attack": "pgd", "eps": "8/255", **other}, verdicts(0)),
        (
            {"attack": "pgd", "eps": "8/255", **other, "image_seed": 4, "images": 50},
            verdicts(0, count=50),
        ),
    )
    assert report.render(report.tables(tmp_path)["checks"][0][1]) == before, (
        "only images of one sample are compared, and the larger part of it"
    )


def test_differences_are_welchs_and_named(tmp_path):
    a, b, c = [80.0, 83.0, 84.5], [79.0, 79.5, 79.2], [60.0, 61.0, 60.5]
    save(
        tmp_path,
        *(make_record(v, seed=s) for s, v in enumerate(a)),
        *(make_record(v, seed=s, mixer="mixup") for s, v in enumerate(b)),
        *(make_record(v, seed=s, clean_weight=0) for s, v in enumerate(c)),
        make_record(90.0, k=4),
        make_record(seed=3, status="diverged"),
    )
    (group,) = report.experiments(report.runs_below(tmp_path))
    table = report.differences(group).set_index("difference")
    assert list(table.index) == [
        "Region Mixup - Mixup",
        "Region Mixup: with - without the clean loss",
    ], "k = 4 is another method"
    test = stats.ttest_ind(a, b, equal_var=False).confidence_interval()
    row = table.loc["Region Mixup - Mixup"]
    assert (row["low"], row["high"]) == (pytest.approx(test.low), pytest.approx(test.high)) and row[
        "n"
    ] == "3, 3"
    assert list(table["state"]) == ["unresolved", "resolved"]
    p = [stats.ttest_ind(x, y, equal_var=False).pvalue for x, y in ((a, b), (a, c))]
    assert list(table["p (Holm)"]) == [
        round(p[0], 3),
        round(2 * min(p), 3),
    ], "the smaller p counts twice among two comparisons"
    assert "low" not in report.markdown(tmp_path, "differences").splitlines()[
        0
    ] and "**" not in report.markdown(tmp_path, "differences")
    x, y, z = (np.array(values) for values in (a, b, c))
    pairs = stats.ttest_1samp(x - y, 0).confidence_interval()
    assert (
        row["paired"] == f"[{pairs.low:+.2f}, {pairs.high:+.2f}]"
        and row["r"] == round(np.corrcoef(x, y)[0, 1], 2)
        and row["paired_low"] == pytest.approx(pairs.low)
    )
    needed = row["seeds to resolve"]
    assert (
        needed
        == seeds_needed((x - y).mean(), x.std(ddof=1), y.std(ddof=1), alpha=0.025)
        > seeds_needed((x - y).mean(), x.std(ddof=1), y.std(ddof=1))
    )
    assert list(table["seeds to resolve"].isna()) == [
        False,
        True,
    ] and f"| unresolved | {needed:g} |" in report.markdown(tmp_path, "differences"), (
        "nothing is asked of what is resolved"
    )


def with_verdicts(correct, seed, checksum="00", **config):
    """A record whose verdicts on single images are these, (images,) bool; the images are called by
    ``checksum``.
    """
    record = make_record(50.0, seed=seed, **config)
    return record.model_copy(
        update={
            "correct": pack_bits(torch.as_tensor(correct)),
            "metrics": record.metrics | {"accuracy": 100 * float(np.mean(correct))},
            "data": record.data | {"test_images": len(correct), "checksum": checksum},
            "finished": f"2026-01-01T00:00:0{seed}",
        }
    )


def test_differences_over_seeds_and_images_come_from_the_verdicts_of_equal_seeds(tmp_path):
    """Recomputed from the bits; seeds without a partner, and runs that saw other images, or kept no
    verdicts, do not count; one seed: images alone.
    """
    rng = np.random.default_rng(0)
    a, b = rng.random((3, 203)) < 0.8, rng.random((4, 203)) < 0.5  # 203: not a multiple of 8
    save(
        tmp_path,
        *(with_verdicts(a[s], s) for s in range(3)),
        *(with_verdicts(b[s], s, mixer="mixup") for s in (3, 1, 2, 0)),
        with_verdicts(a[0], 4).model_copy(update={"correct": None}),
        with_verdicts(a[0], 4, mixer="mixup"),
        with_verdicts(rng.random(203) < 0.9, 0, "others", mixer="cutmix"),
        with_verdicts(a[1], 1, mixer="none"),
    )
    (group,) = report.experiments(report.runs_below(tmp_path))
    table = report.differences(group).set_index("difference")
    d = crossed(100 * (a.astype(float) - b[:3]))
    assert (
        table.loc["Region Mixup - Mixup", "seeds and images"] == f"[{d.low:+.2f}, {d.high:+.2f}]"
        and table.loc["Region Mixup - Mixup", "n"] == "4, 5"
    )
    assert (
        table.loc["Region Mixup - CutMix", "seeds and images"] == "–"
        and table.loc["Region Mixup - CutMix", "state"] == "unresolved"
    )
    assert table.loc["Region Mixup - No mixing", "seeds and images"] == "–", (
        "the same verdicts: no spread"
    )
    assert table["seeds to resolve"].isna().tolist() == [True] * 3, "one seed has no spread"
    networks = report.networks(group).set_index("two networks")
    assert list(networks.index) == ["Region Mixup - No mixing", "Region Mixup - Mixup"]
    p = [stats.binomtest(int((x & ~y).sum()), int((x ^ y).sum())).pvalue for x, y in zip(a, b)]
    row = networks.loc["Region Mixup - Mixup"]
    assert (
        row["p of each pair"]
        == ", ".join(f"{each:.3f}" if each >= 0.001 else "<0.001" for each in p)
        and row["better"] == sum(each < 0.05 for each in p) == row["pairs"] == 3
    )
    assert networks.loc[
        "Region Mixup - No mixing", "not told apart"
    ] == 1 and "It is about these networks: of two methods it says nothing" in report.markdown(
        tmp_path, "networks"
    )


def test_networks_of_one_method_may_contradict_each_other(tmp_path):
    good, bad = np.arange(400) < 300, np.arange(400) < 200
    save(
        tmp_path,
        with_verdicts(good, 0),
        with_verdicts(bad, 0, mixer="mixup"),
        with_verdicts(bad, 1),
        with_verdicts(good, 1, mixer="mixup"),
    )
    assert (
        "| Region Mixup - Mixup | 2 | 1 | 1 | 0 | +25.00, -25.00 | <0.001, <0.001 |"
        in report.markdown(tmp_path, "networks")
    )
    assert "| Region Mixup - Mixup | +0.00 |" in report.markdown(tmp_path, "differences"), (
        "the methods do not differ, and no number of seeds would show it"
    )
    assert report.markdown(tmp_path, "differences").splitlines()[2].endswith("| unresolved | – |")


def test_a_seed_counts_once(tmp_path):
    """The same network stored with another parameter that leaves it alone is no further seed."""
    save(
        tmp_path,
        *(make_record(80.0 + s, seed=s, eval_every=every) for s in range(2) for every in (0, 1)),
        *(make_record(70.0 + s, seed=s, mixer="mixup") for s in range(2)),
    )
    (group,) = report.experiments(report.runs_below(tmp_path))
    assert report.differences(group)["n"].tolist() == ["2, 2"]


def test_costs_by_hand(tmp_path):
    """Device hours: a GPU's and a CPU's apart, shared seconds divided, what was measured afterwards
    counted where it was measured, and a total of each.
    """
    gpu = {"device": "cuda", "gpu": "Card", "cpu": "Chip", "cores": 4}
    made = [
        make_record(80.0, seed=s).model_copy(
            update={"seconds": 7200.0, "together": 2, "hardware": gpu}
        )
        for s in range(2)
    ]
    other = make_record(70.0, epochs=3).model_copy(
        update={"seconds": 1800.0, "hardware": {"device": "cpu", "cpu": "Chip", "cores": 4}}
    )
    save(tmp_path, *made, other)
    for record, hardware, seconds in (
        (made[0], gpu, 3600.0),
        (made[1], other.hardware, 900.0),
        (other, other.hardware, 450.0),
    ):
        rows = [
            records.Measurement(
                settings={"attack": "fgsm", "eps": str(number)},
                result={"images": 9},
                seconds=seconds / 2,
                **environment.environment("cpu") | {"hardware": hardware},
            )
            for number in range(2)
        ]
        (tmp_path / record.run_id / "attacks.json").write_text(
            records.Measurements(
                run_id=record.run_id, weights="0", measurements=rows
            ).model_dump_json()
        )
    found = report.costs(
        report.runs_below(tmp_path),
        {kind: collection.collect_measurements(tmp_path, kind) for kind in records.KINDS},
    )
    told = (
        found[["runs", "training", "measurements", "sum", "unit", "hardware"]].to_numpy().tolist()
    )
    cpu = "Chip (4 cores)"
    assert told == [
        [0, 0.0, 0.25, 0.25, "CPU-hours", cpu],
        [2, 2.0, 1.0, 3.0, "GPU-hours", "Card"],
        [1, 0.5, 0.12, 0.62, "CPU-hours", cpu],
        [1, 0.5, 0.38, 0.88, "CPU-hours", cpu],
        [2, 2.0, 1.0, 3.0, "GPU-hours", "Card"],
    ] and found["experiment"].tolist()[-2:] == ["all", "all"]
    assert found.iloc[1]["images_per_second"] == 200, (
        "two runs that share a card make its speed together"
    )


def with_curve(curve, seed, **config):
    """A record with a test accuracy after every second epoch, the last one included."""
    record = make_record(curve[-1], seed=seed, epochs=2 * len(curve), **config)
    history = [
        row | {"test_accuracy": curve[row["epoch"] // 2 - 1] if row["epoch"] % 2 == 0 else None}
        for row in record.history
    ]
    return record.model_copy(update={"history": history})


def test_the_best_epoch_is_told_beside_the_last(tmp_path):
    """The same runs: the last epochs agree, the best ones differ, for the method whose curve is
    noisier; runs without a curve have no best epoch.
    """
    lasts, peaks = [70.0, 71.0, 72.0], [79.0, 80.2, 81.0]
    save(
        tmp_path,
        *(with_curve([60.0, peak, last], s) for s, (last, peak) in enumerate(zip(lasts, peaks))),
        *(with_curve([60.0, 65.0, last], s, mixer="mixup") for s, last in enumerate(lasts)),
        make_record(50.0, mixer="cutmix"),
    )
    (group,), curves = (
        report.experiments(report.runs_below(tmp_path)),
        report.accuracy_curves(tmp_path),
    )
    assert sorted(curves.values()) == sorted(
        [
            [],
            *(
                [(2, 60.0), (4, x), (6, y)]
                for x, y in [*zip(peaks, lasts), *((65.0, y) for y in lasts)]
            ),
        ]
    )
    table = report.told_twice(group, curves)
    assert table["difference"].tolist() == [
        "Region Mixup - Mixup, last epoch",
        "Region Mixup - Mixup, best epoch",
    ] and table["state"].tolist() == ["unresolved", "resolved"]
    assert table["points"].tolist() == pytest.approx([0.0, np.mean(peaks) - 71]) and table[
        "p"
    ].tolist() == pytest.approx([1.0, stats.ttest_ind(peaks, lasts, equal_var=False).pvalue])
    assert (
        report.told_twice(group, {run_id: curve[:1] for run_id, curve in curves.items()}) is None
    ), "one point: nothing to choose from"


def drawn(figure):
    """Every line of a figure's axes as (x, y, its colour, the colour within its marker)."""
    from matplotlib.colors import to_hex

    return [
        [
            (
                list(map(float, line.get_xdata())),
                list(map(float, line.get_ydata())),
                to_hex(line.get_color()),
                to_hex(line.get_markerfacecolor()),
            )
            for line in axis.lines
        ]
        for axis in figure.axes
    ]


def test_the_forest_shows_what_the_table_says(tmp_path):
    import matplotlib

    matplotlib.use("agg")
    row = {
        "difference": "a",
        "of": "mixup",
        "points": 1.0,
        "low": 0.5,
        "high": 1.5,
        "state": "resolved",
        "paired_low": 0.75,
        "paired_high": 1.25,
    }
    other = row | {
        "difference": "b",
        "of": "cutmix",
        "points": -3.0,
        "low": float("nan"),
        "high": float("nan"),
        "state": "unresolved",
    }
    (lines,) = drawn(figures.forest([("one", pd.DataFrame([row, other]))]))
    orange, blue = figures.COLOURS["mixup"], figures.COLOURS["cutmix"]
    points = {(*x, *y): (colour, face) for x, y, colour, face in lines if len(x) == 1}
    assert points == {
        (1.0, 1.0): (orange, orange),
        (-3.0, 0.0): (blue, "#ffffff"),
    }, "the first row on top; filled is resolved"
    assert [x for x, y, colour, _ in lines if len(x) == 2 and colour == orange] == [
        [0.5, 1.5],
        [0.75, 1.25],
    ] and lines[-1][0] == [0, 0], "zero is a line"
    assert all(
        x != x
        for line, _, colour, _ in lines
        if colour == blue and len(line) == 2 and line != [0.75, 1.25]
        for x in line
    ), "no interval, no line"
    figure = figures.forest([("one", pd.DataFrame([other]))])
    assert figure.axes[0].get_title(loc="left") == "one (one run each)"


@pytest.mark.parametrize(
    "change, note, shown",
    [
        ({}, True, True),
        (
            dict(
                width=64,
                epochs=400,
                batch_size=128,
                schedule="multistep",
                lr=0.1,
                train_images=None,
            ),
            False,
            True,
        ),
        ({"dataset": "shapes"}, False, False),
        ({"far": True}, False, False),
    ],
)
def test_curves_of_all_runs_and_the_papers_numbers_where_they_belong(tmp_path, change, note, shown):
    import matplotlib

    matplotlib.use("agg")
    values = [10.0, 20.0] if change.pop("far", False) else [30.0, 80.0]
    made = [
        make_record(values[1], seed=seed, mixer=mixer, **{"dataset": "cifar10"} | change)
        for seed in range(2)
        for mixer in ("mixup", "region_mixup")
    ]
    save(tmp_path, *made)
    group = report.runs_below(tmp_path)
    figure = figures.curves_of_runs(
        [("one", group)], {record.run_id: [(1, values[0]), (2, values[1])] for record in made}
    )
    (lines,), text = drawn(figure), " ".join(each.get_text() for each in figure.axes[0].texts)
    assert sum(y == values for _, y, *_ in lines) == 4, "every run has its line"
    assert [y[0] for _, y, *_ in lines if y[0] == y[1]] == ([95.82, 95.89, 96.19] if shown else [])
    assert ("paper: CutMix 95.82, Mixup 95.89, Region Mixup 96.19" in text) == shown and (
        "another experiment" in text
    ) == note


def test_no_records_and_no_measurements(tmp_path):
    with pytest.raises(UserError, match="there is no record under"):
        report.markdown(tmp_path)
    save(tmp_path, make_record())
    with pytest.raises(UserError, match="nothing was measured for the table 'robustness'"):
        report.markdown(tmp_path, "robustness")
    with pytest.raises(UserError, match="did you mean 'claims'"):
        report.markdown(tmp_path, "claim")


def test_fill_replaces_blocks_and_nothing_else(tmp_path):
    save(tmp_path / "results", make_record(81.0))
    text = (
        "before\n<!-- report results -->\nold\n<!-- end -->\nafter 81\n<!-- report results costs"
        " -->\n<!-- end -->\n"
    )
    filled = report.fill(text, tmp_path)
    assert (
        filled.startswith("before\n<!-- report results -->\n| method |")
        and "<!-- end -->\nafter 81\n" in filled
        and "old" not in filled
    )
    assert (
        "<!-- report results costs -->\n| experiment |" in filled
        and report.fill(filled, tmp_path) == filled
    )


def test_tables_as_files(tmp_path):
    save(tmp_path, *(make_record(80 + s / 3, seed=s) for s in range(3)))
    files = {
        path.name: path
        for path in report.write_tables(report.tables(tmp_path), tmp_path, tmp_path / "out")
    }
    assert {
        "tables.md",
        "accuracy.csv",
        "paper-1.csv",
        "paper-4.csv",
        "claims.csv",
        "costs.csv",
        "runs.csv",
    } <= set(files)
    assert "attacks.csv" not in files, "nothing was attacked"
    stored = pd.read_csv(files["accuracy.csv"])
    assert stored["accuracy"].item() == pytest.approx(80 + 1 / 3, abs=1e-12), "unrounded"
    assert (
        len(pd.read_csv(files["runs.csv"])) == 3
        and "Table 3, accuracy after FGSM" in files["tables.md"].read_text()
    )


class Links(HTMLParser):
    """Targets of all links, and everything that a page would load from elsewhere."""

    def __init__(self, text):
        super().__init__()
        self.links, self.loaded, self.headings = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if tag == "a":
            self.links.append(attributes.get("href", ""))
        if tag in ("script", "link", "iframe") or (
            tag == "img" and not attributes["src"].startswith("data:")
        ):
            self.loaded.append(str(attributes))


def test_the_site_is_whole(tmp_path):
    """Every page is linked from the index, every link leads somewhere, nothing is loaded from
    elsewhere, formulas are MathML.
    """
    root = tmp_path / "quick"
    record = make_record(81.25)
    save(root, record)
    lesson = (
        "# 1. The method: a lesson\n\n**Question.** What is $x^2 < 3$?\n\n$$\\sum_{j=1}^{k^2}"
        " \\lambda_j$$\n\n`$HOME` and [next](02_training.ipynb)"
    )
    for path, text in (
        (root / "01_method.ipynb", lesson),
        (root / record.run_id / "02_training.ipynb", "# 2. Training\n\n[back](01_method.ipynb)"),
    ):
        cells = [
            nbformat.v4.new_markdown_cell(text),
            nbformat.v4.new_code_cell(
                "print(6 * 7)",
                outputs=[
                    nbformat.v4.new_output("stream", text="42 <b>\n"),
                    nbformat.v4.new_output(
                        "display_data", {"text/markdown": "| a | b |\n|---|---|\n| 1 | 2 |"}
                    ),
                ],
            ),
        ]
        nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    index = pages.build(root, root / "report")
    found = {path.name: Links(path.read_text()) for path in (root / "report").glob("*.html")}
    assert set(found) == {"index.html", "01_method.html", f"{record.run_id}-02_training.html"}
    for page in found.values():
        assert not page.loaded
        for link in page.links:
            assert (
                link.startswith(("https://", "#"))
                or (root / "report" / link.split("#")[0]).exists()
            ), link
    assert {"01_method.html", f"{record.run_id}-02_training.html", "tables/tables.md"} <= set(
        found["index.html"].links
    )
    text, method = index.read_text(), (root / "report" / "01_method.html").read_text()
    assert "81.25" in text and "not run" in text and "What is $x^2 &lt; 3$?" in text
    assert (
        method.count("<math") == 2
        and "$$" not in method
        and "$HOME" in method
        and "42 &lt;b&gt;" in method
        and "<td>2</td>" in method
    )
    assert "01_method.html" in found[f"{record.run_id}-02_training.html"].links, (
        "links between notebooks lead to their pages"
    )
    assert (
        pages.build(root, root / "report") == index
        and len(list((root / "report").glob("*.html"))) == 3
    ), "made again, nothing piles up"
    whole = next(root.rglob("02_training.ipynb"))
    whole.write_text(whole.read_text()[:500])  # its process was killed while it was written
    assert (
        "02_training.ipynb is damaged: it has no page"
        in pages.build(root, root / "report").read_text()
    )


def test_committed_records_are_valid():
    found = collection.gather(ROOT / "results")
    assert found.records and found.problems == []
    for path in (ROOT / "results").rglob("record.json"):
        assert path.parent.name == records.read(path).run_id and path.stat().st_size < 100_000
        for kind in ("attacks", "cam"):
            assert (
                records.measurements(path.parent, kind) is None
                or (path.parent / f"{kind}.json").stat().st_size < 100_000
            )
    assert not [
        p
        for p in Path(ROOT / "results").rglob("*")
        if p.stat().st_size > 500_000 and p.suffix not in (".ipynb", ".html")
    ]


def test_every_table_has_its_place_in_the_site(tmp_path):
    from rmlib.study.report import pages

    save(tmp_path, make_record())
    assert set(report.tables(tmp_path)) == set(pages.HEADINGS)


def test_precisions_are_compared_by_pairs(tmp_path):
    """Seeds differ much and pairs little: equal. Pairs shifted by more than the spread: differs.
    Seeds without a partner do not count.
    """
    spread = [60.0, 70.0, 80.0, 90.0]
    for shift, mixer in ((0.1, "mixup"), (-40.0, "cutmix")):
        save(
            tmp_path,
            *(make_record(value, seed=seed, mixer=mixer) for seed, value in enumerate(spread)),
        )
        save(
            tmp_path,
            *(
                make_record(
                    value + shift + 0.1 * (seed % 2), seed=seed, mixer=mixer, precision="bf16"
                )
                for seed, value in enumerate(spread)
            ),
        )
    save(
        tmp_path,
        make_record(5.0, seed=9, mixer="mixup", precision="bf16"),
        make_record(50.0, mixer="none"),
        make_record(50.0, mixer="none", precision="bf16"),
    )
    text = report.markdown(tmp_path, "precision")
    assert (
        "| Mixup | 4 | 75.0 ± 12.9 | 75.1 ± 12.9 | +0.15 | [+0.06, +0.24] | equal within the"
        " spread |" in text
    )
    assert (
        "| CutMix | 4 | 75.0 ± 12.9 |" in text
        and "| -39.95 | [-40.04, -39.86] | differs |" in text
        and "No mixing" not in text
    )
