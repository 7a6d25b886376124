"""What the runs took, by hand."""

from made import attack_of, make_record, save

from rmlib.study.report import costs, groups
from rmlib.study.runs import collection, environment, records, schema


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
        counted = {"images": 9, "clean_accuracy": 100.0, "accuracy_after": 0.0}
        where = environment.environment("cpu") | {"hardware": hardware}
        rows = []
        for eps in ("0", "1"):
            settings, result = attack_of({"attack": "fgsm", "eps": eps}, counted)
            attack = {"settings": settings, "result": result, "seconds": seconds / 2}
            rows.append(schema.Measurement(**attack, **where))
        (tmp_path / record.run_id / "attacks.json").write_text(
            records.Measurements(
                run_id=record.run_id, weights="0", measurements=rows
            ).model_dump_json()
        )
    found = costs.costs(
        groups.runs_below(tmp_path),
        {kind: collection.collect_measurements(tmp_path, kind) for kind in records.KINDS},
    ).frame()
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
