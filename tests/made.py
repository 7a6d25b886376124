"""Records, measurements and small trained runs for the tests."""

import base64
import re

import numpy as np

from rmlib.params import TrainParams
from rmlib.study.report import completeness, pages, paper, report
from rmlib.study.runs import collection, environment, records, schema
from rmlib.study.runs.records import Record


def make_record(accuracy=80.0, seed=0, status="done", checksum=None, **config) -> Record:
    """A record that fits together, with 10 000 test images and, for the paper's datasets, its whole
    training set.
    """
    params = TrainParams(seed=seed, **config)
    metrics = (
        {} if status == "diverged" else {"accuracy": accuracy, "top5": 99.0, "nll": 0.5, "ece": 3.0}
    )
    correct = np.packbits(np.arange(10_000) < round(100 * accuracy))
    train_images = params.train_images or paper.IMAGES.get(params.dataset, (60_000,))[0]
    return Record(
        status=status,
        run_id=params.run_id,
        config=params.config,
        metrics=metrics,
        correct=base64.b64encode(correct).decode(),
        history=[{"epoch": epoch + 1, "lr": 0.1, "loss": 2.0} for epoch in range(params.epochs)],
        data={
            "checksum": checksum or paper.CHECKSUMS.get(params.dataset, "00"),
            "train_images": train_images,
            "test_images": 10_000,
            "classes": 10,
            "mean": [0.5] * 3,
            "std": [0.25] * 3,
        },
        seconds=60.0,
        images_per_second=100.0,
        peak_memory_mib=500.0,
        restarts=0,
        **environment.environment("cpu"),
    )


def save(root, *made):
    for record in made:
        records.write(record, root / record.run_id)


def index_of(root, folder):
    """The first page of a report before it becomes HTML; its sources come into ``folder``."""
    found = collection.gather(root)
    tables, missing = report.tables(found), completeness.missing(found)
    pages.write_sources(folder, found, "Report", tables, missing, False)
    # in what names hold, nothing is Markdown
    return re.sub(r"\\([^a-zA-Z0-9\s])", r"\1", (folder / "index.md").read_text())


def measured(root, record, kind, *rows):
    """Store measurements of a run, each a pair (settings, result)."""
    folder = root / record.run_id
    (folder / records.WEIGHTS).write_bytes(b"weights")
    for settings, result in rows:
        whole = attack_of(settings, result) if kind == "attacks" else (settings, result)
        store(folder, kind, whole[0], lambda result=whole[1]: result)


def attack_of(settings, result):
    """Settings and result of an attack, with what else belongs to one."""
    right = np.arange(result["images"]) < round(result["images"] * result["accuracy_after"] / 100)
    verdicts = base64.b64encode(np.packbits(right)).decode()
    sample = {"image_seed": 0, "checksum": "c"}
    return sample | settings, {"correct": verdicts, "zero_gradient": 0} | result


def store(folder, kind, settings, compute=dict, save=True):
    """What was measured on the network in a folder, through the function that notebooks use."""
    # torch, which stand-ins for a training do not need
    from torch.nn import Linear

    from rmlib.measuring import Task
    from rmlib.study.runs import measured

    return measured.result(folder, Task(Linear(1, 1), kind, settings, compute), save)


def add_attacks(
    root, record, accuracy, attack="fgsm", eps="8/255", images=None, queries=100, sizes=None
):
    """Store one attack beside a record, or one for each of ``sizes`` (eps -> accuracy)."""
    more = {"queries": queries} if attack == "square" else {}
    counted = {"images": images or record.data["test_images"], "clean_accuracy": 90.0}
    rows = [
        attack_of({"attack": attack, "eps": size} | more, counted | {"accuracy_after": value})
        for size, value in (sizes or {eps: accuracy}).items()
    ]
    found = records.Measurements(
        run_id=record.run_id,
        weights="0",
        measurements=[
            schema.Measurement(
                settings=settings, result=result, seconds=1.0, **environment.environment("cpu")
            )
            for settings, result in rows
        ],
    )
    (root / record.run_id / "attacks.json").write_text(found.model_dump_json())


def finished(tiny_run, **change):
    from rmlib.study.runs.run import train  # torch, which stand-ins for a training do not need

    params = TrainParams(**tiny_run | dict(epochs=1) | change)
    return params, train(params, log=lambda line: None)


PAPERS = dict(
    dataset="cifar10",
    width=64,
    epochs=400,
    batch_size=128,
    schedule="multistep",
    lr=0.1,
    train_images=None,
)
