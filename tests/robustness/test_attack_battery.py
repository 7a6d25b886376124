"""The battery of attacks: which ones, on how many images, and how they are known again."""

import json

import pytest
from toys import network, pixels

from rmlib.data import ImageSet
from rmlib.evaluate import sample
from rmlib.paths import project_root
from rmlib.robustness import attacks, corruptions
from rmlib.robustness import battery as robustness
from rmlib.robustness.params import FULL_ROBUSTNESS, RobustnessParams
from rmlib.study.batch.plan import read_batch
from rmlib.study.report import claims


@pytest.mark.parametrize(
    "images, check, autoattack, expected",
    [
        (64, None, 8, (64, 64, 8)),
        (None, 1000, 200, (None, 1000, 200)),
        (10, 50, 20, (10, 10, 10)),
        (None, None, 5, (None, None, 5)),
    ],
)
def test_no_attack_gets_more_images_than_there_are(images, check, autoattack, expected):
    settings = RobustnessParams(images=images, check_images=check, autoattack_images=autoattack)
    assert (
        tuple(robustness.images_under(name, settings) for name in ("fgsm", "pgd", "autoattack"))
        == expected
    )


def test_autoattack_runs_only_when_asked_and_where_it_can():
    assert ("autoattack", "32/255") in robustness.battery(RobustnessParams(), 4)
    for settings, classes in ((RobustnessParams(autoattack_images=0), 10), (RobustnessParams(), 3)):
        assert not [
            name for name, _ in robustness.battery(settings, classes) if name == "autoattack"
        ]


def some_images(count=30, checksum="c"):
    images, labels = pixels(count)
    images = (255 * images).byte()
    return ImageSet(images, labels, ("a", "b", "c", "d"), checksum)


def test_a_task_is_the_attack_on_its_images():
    model, data = network(), some_images()
    settings = RobustnessParams(images=20, queries=7, seed=3)
    task = robustness.attack(model, data, settings, "square", "8/255")
    some = data[sample(30, 20, 3, robustness.PURPOSE)]
    options = {"queries": 7, "seed": 3, "batch_size": 200}
    assert task.compute() == attacks.evaluate(
        model, some.images, some.labels, "square", "8/255", **options
    )
    assert task.settings == options | {
        "attack": "square",
        "library": "rmlib 0.1.0",
        "eps": "8/255",
        "images": 20,
        "image_seed": 3,
        "checksum": "c",
    }
    fgsm = robustness.attack(model, data, settings, "fgsm", "8/255")
    assert fgsm.settings["library"] == "torchattacks 3.3.0" and "queries" not in fgsm.settings
    damaged = robustness.corrupt(model, data, settings)
    assert damaged.compute() == corruptions.evaluate(model, some.images, some.labels, seed=3)


def test_committed_measurements_are_known_again():
    """The settings of today's tasks are those in the records, so that nothing is measured again."""
    root = project_root() / "results" / "cifar10-small"
    batch = read_batch(project_root() / "notebooks/batches/cifar10-small.yaml", root)
    stored = [
        json.loads(path.read_text())["measurements"] for path in sorted(root.glob("*/attacks.json"))
    ]
    data = some_images(10_000, stored[0][0]["settings"]["checksum"])
    tasks = list(robustness.tasks(network(), data, batch.notebooks["03_robustness"]))
    wanted = [task.settings for task in tasks if task.kind == "attacks"]
    assert len(stored) > 5
    for rows in stored:
        assert [row["settings"] for row in rows] == wanted


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "tiny-imagenet"])
def test_the_papers_batches_measure_what_a_training_would(name, tmp_path):
    """So that what was measured right after a training is loaded by notebook 03 and not computed
    again.
    """
    lesson = read_batch(project_root() / f"notebooks/batches/{name}.yaml", tmp_path).notebooks[
        "03_robustness"
    ]
    right_after = RobustnessParams(**FULL_ROBUSTNESS)
    places = ("runs", "root", "device", "threads", "save", "clean_weight")
    assert (
        lesson.model_dump(exclude=set(places)) == right_after.model_dump(exclude=set(places))
        and lesson.save
    )
    assert (
        right_after.queries == claims.QUERIES
        and claims.EPS in right_after.eps
        and claims.EPS in right_after.square_eps
        and right_after.images is None
    )
