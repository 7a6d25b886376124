"""Measures of maps beside their method, and their differences, by hand."""

import itertools

import pytest
import torch
from made import make_record, measured, save
from scipy import stats

from rmlib.packed import pack_values
from rmlib.study.report import looks, report


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


BASE = [10.0, 20.0, 30.0, 40.0]
WHAT = {"maps": ["gradcam++ layer4"], "image_seed": 0, "checksum": "c"}
STAGES = {"linear": 30.0, "conv1": -2.0}


def store_maps(root, record, shift):
    """All measures of a network's maps, on images that score BASE + shift; network 0 has an empty
    map.
    """
    what = WHAT | {"measure": "localization", "images": 4}
    stages = STAGES if shift else STAGES | {"conv1": None}
    sanity = {"stages": stages, "left_out": {"linear": 0, "conv1": 3}, "control": 20.0}
    energy = [v + shift for v in BASE]
    measured(
        root,
        record,
        "cam",
        (what, looked(energy_inside=energy, extent=[50.0] * 4)),
        (what | {"measure": "sanity"}, {"found": {"gradcam++ layer4": sanity}}),
        # pictures, not a measure
        (what | {"measure": "maps", "images": 99}, {"shape": [32, 32], "layers": {}}),
        # a smaller sample
        (what | {"images": 2}, looked(energy_inside=[0.0, 0.0], extent=[0.0, 0.0])),
    )


def test_maps_stand_beside_their_method(tmp_path):
    """Numbers by hand: three networks and one of another method, four images; and what is no
    measure, or another sample, does not count.
    """
    made = [make_record(80, seed=s) for s in range(3)]
    other = make_record(75, mixer="mixup", seed=1)
    save(tmp_path, *made, other)
    for shift, record in zip((0.0, 1.0, 2.0, 5.0), (*made, other)):
        store_maps(tmp_path, record, shift)
    text = report.markdown(tmp_path, "localization")
    (localization,) = report.tables(tmp_path)["localization"]
    caption, table = localization.caption, localization.frame()
    low, high = stats.ttest_1samp(BASE, 0).confidence_interval(0.95)
    assert (
        f"| Grad-CAM++ layer4 | energy inside the object (%) | 1 to 3 | 4 | 30.0 [{low + 5:.1f},"
        f" {high + 5:.1f}] (20.0) | 26.0 ± 1.0 [" in text
    ), "one network: over images alone"
    seeds, pictures = (
        stats.sem([0, 1, 2]) * stats.t.ppf(0.975, 2),
        stats.sem(BASE) * stats.t.ppf(0.975, 3),
    )
    assert (
        table["Region Mixup_low"].iloc[0] == pytest.approx(26 - (seeds**2 + pictures**2) ** 0.5)
        and list(table["Mixup_control"])[0] == 20
    )
    assert (
        "| Grad-CAM++ layer4 | extent (%) | 1 to 3 | 4 | 50.0 | 50.0 ± 0.0 |" in text
        and "interval over networks and images" in caption
    )
    gaps = report.tables(tmp_path)["looks"][0].frame()
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


def test_differences_of_maps_are_paired_by_seed_and_image(tmp_path):
    """Networks and images that differ much, and a method that is better by one point on each:
    resolved; by chance: unresolved.
    """
    rng = torch.Generator().manual_seed(0)
    what = WHAT | {"measure": "faithfulness", "images": 40}
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
    (differences,) = report.tables(tmp_path)["looks"]
    caption, gaps = differences.caption, differences.frame()
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


def test_region_mixup_is_compared_with_methods_of_its_own_loss():
    """By the parameters of the runs, whatever the methods are called."""
    results = []
    for weight, mixer, seed in itertools.product((0.0, 1.0), ("none", "region_mixup"), (0, 1)):
        record = make_record(80, seed=seed, mixer=mixer, clean_weight=weight)
        results.append((record, looked(extent=[10.0, 20.0 + seed])))
    table = looks.differences([looks.by_method(results)])
    assert [row["difference"] for row in table.rows] == [
        "Region Mixup, clean_weight=0 - plain training",
        "Region Mixup - clean loss twice (control)",
    ]


def test_a_difference_says_where_only_the_correction_leaves_it_unresolved():
    """Three rows; the first, with p between 0.05 / 3 and 0.05, and two without a difference."""
    ours, plain, flat = [13.0, 15.0, 15.0], [10.0, 11.0, 9.0], [14.0, 14.0, 15.1]
    several = []
    for mixer, of_seeds in (
        ("region_mixup", ours),
        ("none", plain),
        ("mixup", flat),
        ("cutmix", flat),
    ):
        for seed, extent in enumerate(of_seeds):
            record = make_record(80, seed=seed, mixer=mixer)
            several.append((record, looked(extent=[extent, extent])))
    rows = looks.differences([looks.by_method(several)]).rows
    gaps = [a - b for a, b in zip(ours, plain)]
    alone = stats.ttest_1samp(gaps, 0).pvalue
    assert 0.05 / 3 < alone < 0.05 and rows[0]["p (Holm)"] == pytest.approx(3 * alone)
    assert [row["state"] for row in rows] == [
        "unresolved after Holm's correction",
        "unresolved",
        "unresolved",
    ]
