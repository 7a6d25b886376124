"""Made-up material on which the study's own machinery is measured: reports over many records."""

import base64
import itertools
from pathlib import Path

import numpy as np

from rmlib import records
from rmlib.params import MIXERS, TrainParams


def synthetic_records(folder: Path, count: int, seeds: int = 50, images: int = 100) -> None:
    """Write ``count`` records that fit together, each in its own folder: experiments, networks of one width each, of 8 methods with ``seeds`` runs, with three
    rows of history and verdicts on ``images`` test images. Nothing was trained; the files are not forced onto the disk one by one."""
    made, rng = records.environment("cpu"), np.random.default_rng(0)
    methods = list(itertools.product((1.0, 0.0), MIXERS))
    for number in range(count):
        (clean_weight, mixer), experiment = methods[number // seeds % len(methods)], number // (seeds * len(methods))
        params = TrainParams(mixer=mixer, clean_weight=clean_weight, seed=number % seeds, epochs=3, width=experiment + 1, test_images=images)
        right = rng.random(images) < 0.8
        record = records.Record(status="done", run_id=params.run_id, config=params.config, correct=base64.b64encode(np.packbits(right)).decode(),
                                metrics={"accuracy": 100 * right.mean(), "top5": 99.0, "nll": rng.random(), "ece": 5 * rng.random()},
                                history=[{"epoch": epoch, "lr": 0.1, "loss": 2 / epoch} for epoch in (1, 2, 3)],
                                data={"checksum": "synthetic", "train_images": 2000, "test_images": images, "classes": 10},
                                seconds=60.0, images_per_second=100.0, peak_memory_mib=500.0, restarts=0, **made)
        path = Path(folder) / record.run_id / records.RECORD
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(record.model_dump_json())
