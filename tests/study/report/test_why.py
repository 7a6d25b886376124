"""Partners or weights: the softness against the real mixers, the rest from made-up records."""

import matplotlib
import numpy as np
import pytest
from made import make_record, save

from rmlib.data import stream
from rmlib.params import TrainParams
from rmlib.paths import project_root
from rmlib.study import figures
from rmlib.study.batch.plan import read_batch
from rmlib.study.report import groups, report, small, why
from rmlib.train import make_mixer

SMALL = {name: small.PROTOCOL[name] for name in small.PROTOCOL if name in TrainParams.model_fields}
SMALL |= {"dataset": "cifar10", "train_images": 5000}


def trained(root, settings, mean, count=None):
    """Records of a method, one for each planned seed."""
    seeds = range(why.planned(settings) if count is None else count)
    save(root, *(make_record(mean + s % 2, seed=s, **SMALL | settings) for s in seeds))


def gaps(root):
    """The differences by what differs."""
    rows = why.tables(groups.runs_below(root))[1].rows
    return {row["what differs"]: row for row in rows}


@pytest.mark.parametrize("settings", why.METHODS, ids=why.name_of)
def test_the_softness_is_that_of_the_mixer(settings):
    mixer, generator = make_mixer(TrainParams(**settings), 10), stream(0, "softness")
    plans = [mixer.draw((2, 3, 32, 32), generator) for _ in range(4000)]
    drawn = np.array([float(plan.label_weights()[0, 0]) for plan in plans])
    # four times the standard error of a mean, and more of a deviation's, of 4000 draws
    enough = 4 * drawn.std() / 4000**0.5
    assert why.weight(settings) == pytest.approx((drawn.mean(), drawn.std()), abs=enough)


@pytest.mark.parametrize("settings", why.METHODS, ids=why.name_of)
def test_the_partners_are_those_of_the_mixer(settings):
    plan = make_mixer(TrainParams(**settings), 10).draw((50, 3, 32, 32), stream(0, "partners"))
    assert len({tuple(row.tolist()) for row in plan.partners}) == why.partners(settings)


def test_with_one_partner_and_one_weight_region_mixup_is_mixup():
    """The corner of the table of two by two: every tile as the first."""
    settings = TrainParams(**why.REGION, shared_partner=True, shared_weight=True)
    plan = make_mixer(settings, 10).draw((8, 3, 32, 32), stream(0, "corner"))
    assert (plan.partners == plan.partners[0]).all() and (plan.lam == plan.lam[0]).all()


def test_the_batch_has_every_planned_run():
    cells = read_batch(project_root() / "notebooks" / "batches" / "cifar10-small.yaml").runs
    there = {cell.run_id for cell in cells}
    for settings in [*why.METHODS, *(side for _, *sides in why.CONTRASTS for side in sides)]:
        for seed in range(why.planned(settings)):
            wanted = TrainParams(seed=seed, **SMALL | settings, eval_every=0, clean_weight=1.0)
            assert wanted.run_id in there, (settings, seed)


def test_partners_are_judged_where_the_weights_are_equal(tmp_path):
    trained(tmp_path, why.MIXUP, 75.0)
    trained(tmp_path, why.REGION, 70.0)
    trained(tmp_path, why.FINER, 60.0)
    runs = groups.runs_below(tmp_path)
    assert "Not known yet" in why.sentence(runs) and "0 of 5 seeds" in why.sentence(runs)
    assert "-5.00 [" in why.sentence(runs), "what is known is said"
    found = gaps(tmp_path)
    assert found["a finer grid"]["accuracy (points)"].mean == pytest.approx(-10.1)
    missing = found["own partners, with own weights"]
    assert missing["n"] == "10 of 10; not run yet"
    assert "cifar10-small.yaml" in missing["NLL (nats)"].missing
    trained(tmp_path, why.PARTNER, 76.0)
    told = why.sentence(groups.runs_below(tmp_path))
    assert (
        "compared with one: -5.90 [" in told and "(n = 10, 5): own partners cost accuracy" in told
    )


def test_four_methods_separate_partners_from_weights(tmp_path):
    """The rows take the right methods: both ways from Mixup to Region Mixup add up."""
    means = {"mixup": 75.0, "weight": 72.0, "partner": 76.0, "region": 70.0}
    for settings, mean in zip((why.MIXUP, why.WEIGHT, why.PARTNER, why.REGION), means.values()):
        trained(tmp_path, settings, mean, count=4)
    found = {what: row["accuracy (points)"].mean for what, row in gaps(tmp_path).items()}
    assert found["own partners, with one weight"] == means["weight"] - means["mixup"]
    assert found["own weights, with one partner"] == means["partner"] - means["mixup"]
    for first, then in (("partners", "weights"), ("weights", "partners")):
        one = {"partners": "weight", "weights": "partner"}[first]
        steps = found[f"own {first}, with one {one}"], found[f"own {then}, with own {first}"]
        assert sum(steps) == found["both"] == means["region"] - means["mixup"]


@pytest.mark.parametrize(
    "mean, count, words",
    [(74.0, 5, "could not show"), (71.0, 5, "own partners add to"), (71.0, 4, "interim")],
)
def test_the_sentence_says_no_more_than_the_interval(tmp_path, mean, count, words):
    trained(tmp_path, why.REGION, 74.0)
    trained(tmp_path, why.PARTNER, mean, count)
    assert words in why.sentence(groups.runs_below(tmp_path))


def test_other_losses_widths_and_seeds_do_not_count(tmp_path):
    trained(tmp_path, why.MIXUP, 75.0, count=12)
    trained(tmp_path, why.MIXUP | {"clean_weight": 0.0}, 50.0)
    trained(tmp_path, why.WEIGHT | {"width": 16}, 50.0)
    table, _ = why.tables(groups.runs_below(tmp_path))
    by_name = {row["method"]: row for row in table.rows}
    assert by_name["Mixup"]["accuracy"].mean == 75.5 and by_name["Mixup"]["n"] == "10 of 10"
    assert by_name["Region Mixup, shared_weight"]["n"] == "not run yet"


def test_without_such_runs_there_is_no_table(tmp_path):
    save(tmp_path, make_record(50.0))
    assert report.tables(tmp_path)["why"] == []


def test_the_figure_shows_every_run_where_its_targets_are(tmp_path):
    matplotlib.use("agg")
    trained(tmp_path, why.MIXUP, 75.0)
    trained(tmp_path, why.WEIGHT, 72.0)
    figure = figures.against_softness(why.points(groups.runs_below(tmp_path)))
    lines = [line for line in figure.axes[0].lines if len(line.get_xdata())]
    seeds = {len(line.get_xdata()): line for line in lines if len(line.get_xdata()) > 2}
    assert sorted(seeds) == [5, 10] and set(seeds[10].get_ydata()) == {75.0, 76.0}
    assert seeds[10].get_xdata()[0] == pytest.approx(12**-0.5)
    assert seeds[5].get_xdata()[0] > seeds[10].get_xdata()[0], "of equal spread, so beside it"
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert "Mixup (n = 10)" in names and "Region Mixup, k=4 (not run yet)" in names
