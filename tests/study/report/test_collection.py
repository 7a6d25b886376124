"""A folder of records is read once: what is good is counted once, what is not is named, and what is
missing, too.
"""

import json
import shutil

import pandas as pd
import pytest
from made import index_of, make_record, measured, save

from rmlib import UserError
from rmlib.packed import pack_values
from rmlib.params import config_id
from rmlib.paths import project_root
from rmlib.study.cli import main
from rmlib.study.report import completeness, report
from rmlib.study.runs import collection, records

# settings and result of an attack, a measure of maps, and of corruptions
FGSM = (
    {"attack": "fgsm", "eps": "8/255"},
    {"images": 10, "clean_accuracy": 80.0, "accuracy_after": 50.0},
)
OPEN = {"measure": "another", "images": 10}, {}
# values of images that are not packed, or of fewer images
LOOKED = '{"mean": {"a": 1.0}, "control": {}, "values": {"a": "VALUES"}, "control_values": {}}'
LOCALIZED = (
    '"localization", "images": 10, "maps": ["m"]}, "result": {"found": {"m": ' + LOOKED + "}}"
)
UNPACKED = [
    LOCALIZED.replace("VALUES", each) for each in ("", "?", "9" * 400, pack_values([1.0] * 9))
]
CORRUPTED = {}, FGSM[1] | {"mean_accuracy": 5.0, "accuracy": {}}


def test_a_broken_record_is_not_read():
    record = make_record().model_dump(mode="json")
    data, hardware = record["data"], record["hardware"]
    row, metrics = record["history"][0], record["metrics"]
    for change in (
        {"seconds": "long"},
        {"seconds": -1.0},
        {"seconds": float("inf")},
        {"metrics": metrics | {"accuracy": 200.0}, "correct": None},
        {"metrics": metrics | {"accuracy": float("nan")}},
        {"metrics": metrics | {"accuracy": "80.0"}},
        {"metrics": metrics | {"nll": float("nan")}},
        {"data": data | {"test_images": "10000"}},
        {"data": data | {"test_images": 10**30}, "correct": None},
        {"data": data | {"test_images": 0}, "correct": None},
        {"data": data | {"mean": "grey"}},
        {"hardware": hardware | {"cores": -2}},
        {"hardware": hardware | {"gpu": ["Card"]}},
        {"history": [row | {"test_accuracy": 101.0}] * 6},
        {"history": [row | {"loss": "low"}] * 6},
        {"snapshots": {"3": {"accuracy": 10.0, "correct": record["correct"]}}},
        {"restarts": True},
        {"finished": "yesterday"},
        {"status": "gone"},
        {"schema_version": 2},
        {"extra": 1},
        {"config": {}},
        {"hardware": {"device": "cpu"}},
    ):
        with pytest.raises(ValueError):
            records.Record(**record | change)
    del record["run_id"]
    with pytest.raises(ValueError):
        records.Record(**record)


def test_linked_runs_are_read_once_and_loops_end(tmp_path):
    root, others = tmp_path / "runs", tmp_path / "others"
    here, there = make_record(80), make_record(70, seed=1)
    save(root, here)
    save(others / "deep", there)
    (root / "linked").symlink_to(others)
    (root / "again").symlink_to(root / here.run_id)
    (others / "loop").symlink_to(tmp_path)
    found = collection.gather(root)
    assert found.records.keys() == {here.run_id, there.run_id} and not found.problems
    assert found.folders[here.run_id] == root / here.run_id


def test_a_file_of_anything_costs_itself_and_nothing_else(tmp_path, capsys):
    """Measurements without what belongs to them, numbers of any length, notebooks that are JSON but
    no notebooks.
    """
    good = make_record(80)
    save(tmp_path, good)
    folder = tmp_path / good.run_id
    (folder / records.WEIGHTS).write_bytes(b"weights")
    measured(
        tmp_path,
        good,
        "attacks",
        (
            {"attack": "fgsm", "eps": "8/255"},
            {"images": 8, "clean_accuracy": 100.0, "accuracy_after": 100.0, "correct": "/w=="},
        ),
    )
    whole = (folder / "attacks.json").read_text()
    assert not collection.gather(tmp_path).problems
    for text in (
        whole.replace('"images": 8, ', ""),
        whole.replace('"images": 8', f'"images": {"8" * 5000}'),
        whole.replace('"/w=="', '"?"'),
        whole.replace('"/w=="', "[]"),
        "null",
        "3",
    ):
        (folder / "attacks.json").write_text(text)
        assert text != whole and len(collection.gather(tmp_path).problems) == 1, text[:100]
    for number, text in enumerate(
        (
            "{}",
            "null",
            '{"nbformat": 4}',
            '{"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": []}',
            '{"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": [1]}',
            "[" * 100_000,
        )
    ):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "02_training.ipynb").write_text(text)
    assert main(["report", str(tmp_path)]) == 1
    assert "| Region Mixup | 1 | 80.00 |" in capsys.readouterr().out
    # the fourth is whole, and empty
    assert (tmp_path / "report" / "index.html").read_text().count("it has no page") == 5


def test_a_configuration_has_values_of_its_parameters():
    """Also where the id fits: it is a hash, which anybody can make."""
    record = make_record().model_dump(mode="json")
    for change in ({"mixer": "<b>"}, {"epochs": "6"}, {"lr": -1.0}, {"width": None}):
        config = record["config"] | change
        with pytest.raises(ValueError, match=next(iter(change))):
            records.Record(**record | {"config": config, "run_id": config_id(config)})


def test_measurements_that_no_table_could_show_are_left_out(tmp_path):
    """One file at a time; the record and the other files count."""
    record = make_record(80)
    save(tmp_path, record)
    folder = tmp_path / record.run_id
    for kind, row in zip(records.KINDS, (FGSM, OPEN, CORRUPTED)):
        measured(tmp_path, record, kind, row)
    assert not collection.gather(tmp_path).problems
    for kind, old, new in (
        ("attacks", '"accuracy_after": 50.0', '"accuracy_after": 500.0'),
        ("attacks", '"accuracy_after": 50.0', '"accuracy_after": "50.0"'),
        ("attacks", '"accuracy_after": 50.0', '"accuracy_after": 70.0'),
        ("attacks", '"clean_accuracy": 80.0', '"clean_accuracy": NaN'),
        ("attacks", '"clean_accuracy": 80.0', '"clean_accuracy": 1e999'),
        ("attacks", '"eps": "8/255"', '"eps": "large"'),
        ("attacks", '"attack": "fgsm"', '"attack": ["fgsm"]'),
        ("attacks", '"attack": "fgsm"', '"attack": "square"'),
        ("attacks", '"checksum": "c", ', ""),
        ("corruptions", '"images": 10', '"images": 10001'),
        ("corruptions", '"mean_accuracy": 5.0', '"mean_accuracy": -5.0'),
        ("corruptions", '"accuracy": {}', '"accuracy": {"fog": []}'),
        ("corruptions", '"accuracy": {}', '"accuracy": {"fog": [true]}'),
        ("cam", '"measure": "another"', '"measure": "sanity"'),
        *(("cam", '"another", "images": 10}, "result": {}', text) for text in UNPACKED),
    ):
        path = folder / f"{kind}.json"
        whole = path.read_text()
        path.write_text(whole.replace(old, new))
        assert path.read_text() != whole, old
        found = collection.gather(tmp_path)
        (problem,) = found.problems
        assert str(path) in problem and "measure again" in problem and "\n" not in problem
        assert [name for name in records.KINDS if found.measured[name]] == [
            name for name in records.KINDS if name != kind
        ]
        assert "| Region Mixup | 1 | 80.00 |" in report.markdown(found)
        path.write_text(whole)


def test_a_newer_record_asks_for_an_update_and_is_left_as_it_is(tmp_path):
    record = make_record(80)
    save(tmp_path, record)
    measured(tmp_path, record, "attacks", FGSM)
    folder = tmp_path / record.run_id
    for name in ("attacks.json", records.RECORD):
        path = folder / name
        newer = path.read_text().replace('"schema_version": 1', '"schema_version": 2')
        path.write_text(newer.replace('"settings"', '"choices"'))
        (problem,) = collection.gather(tmp_path).problems
        assert problem.startswith(str(path)) and problem.endswith("knows 1: update rmlib")
    records.forget_others(folder, record)
    assert (folder / "attacks.json").exists()


def spoilt(root, record, **changes):
    """A record with other contents than its own."""
    folder = root / record.run_id
    folder.mkdir(parents=True)
    (folder / "record.json").write_text(json.dumps(record.model_dump(mode="json") | changes))


def test_bad_files_stop_nothing_and_are_named(tmp_path, capsys):
    """Six kinds of damage among three good records; tables, site and Parquet are written from the
    three, each bad file has one line, the exit code is 1.
    """
    good = [make_record(80 + seed, seed=seed) for seed in range(3)]
    save(tmp_path, *good)
    # a measurement of another run, and half a file
    for record, file in zip(good, ("attacks", "cam")):
        measured(tmp_path, record, file, FGSM if file == "attacks" else OPEN)
    path = tmp_path / good[0].run_id / "attacks.json"
    path.write_text(path.read_text().replace(good[0].run_id, "0" * 12))
    half = tmp_path / good[1].run_id / "cam.json"
    half.write_text(half.read_text()[:200])
    shutil.copytree(tmp_path / good[2].run_id, tmp_path / "of-somebody-else")
    spoilt(tmp_path, make_record(seed=3), metrics={"accuracy": 96.0})
    spoilt(tmp_path, make_record(seed=4), config={"epochs": 6})
    for seed, text in ((5, ""), (6, "[" * 100_000), (7, "[1]"), (8, "\x00\xff")):
        folder = tmp_path / make_record(seed=seed).run_id
        folder.mkdir()
        (folder / "record.json").write_bytes(text.encode("latin-1"))
    found = collection.gather(tmp_path)
    assert (
        set(found.records) == {record.run_id for record in good}
        and len(found.problems) == 9
        and len(found.measured["attacks"]) == 0
    )
    for words, count in (
        ("belongs to another run", 1),
        ("not to the folder of-somebody-else: move it", 1),
        ("do not fit|does not fit the verdicts", 1),
        ("missing", 1),
        ("is damaged", 5),
    ):
        assert (
            sum(any(word in line for word in words.split("|")) for line in found.problems) == count
        ), (words, found.problems)
    with pytest.warns(UserWarning, match="left out: .*record.json"):
        assert len(collection.opened(tmp_path).records) == 3
    assert main(["report", str(tmp_path)]) == 1
    output = capsys.readouterr()
    assert (
        output.err.count("left out: ") == 9 == output.err.count("\n")
        and "| Region Mixup | 3 |" in output.out
    )
    index = (tmp_path / "report" / "index.html").read_text()
    assert (
        "Left out" in index
        and "of-somebody-else/record.json belongs to run" in index
        and str(tmp_path) not in index
    )
    assert len(pd.read_csv(tmp_path / "report" / "tables" / "runs.csv")) == 3
    save(tmp_path / "good", make_record(80))
    assert "Left out" not in index_of(tmp_path / "good", tmp_path / "out")


def test_nothing_but_bad_files(tmp_path):
    spoilt(tmp_path, make_record(), metrics={"accuracy": 96.0})
    with pytest.raises(UserError, match="there is no record"):
        report.tables(collection.gather(tmp_path))


def test_a_run_stored_twice_counts_once_and_always_the_same(tmp_path):
    """The later one; of equal times the last path, whichever was written last. Clocks that go
    backwards change nothing about that.
    """
    days = "2026-01-01T00:00:00+00:00", "2026-01-02T00:00:00+00:00"
    for times, last in ((days, "b"), (days[::-1], "a"), ((days[0],) * 2, "b")):
        for order in ("ab", "ba"):
            root = tmp_path / f"{times} {order}"
            for name in order:
                record = make_record(80 if name == "a" else 82)
                record.finished = times["ab".index(name)]
                save(root / name, record)
            found = collection.gather(root)
            assert found.runs["metrics.accuracy"].tolist() == [80 if last == "a" else 82]
            assert len(found.records) == 1 and not found.problems
            assert [folder.parent.name for folder in found.folders.values()] == [last]


def test_every_file_is_read_once(tmp_path, monkeypatch):
    save(tmp_path, *(make_record(80, seed=seed) for seed in range(3)))
    measured(tmp_path, make_record(80), "attacks", FGSM)
    opened, original = [], records.Path.read_text
    monkeypatch.setattr(
        records.Path,
        "read_text",
        lambda path, *rest, **more: opened.append(path.name) or original(path, *rest, **more),
    )
    assert main(["report", str(tmp_path)]) == 0
    assert opened.count("record.json") == 3 and opened.count("attacks.json") == 1


def test_what_other_methods_have_is_missed(tmp_path):
    """Seeds: one never begun, one failed, one diverged, one left out. Measurements: only among runs
    with the same weight of the clean loss.
    """
    runs = [
        make_record(80, seed=seed, mixer=mixer)
        for mixer in ("mixup", "region_mixup")
        for seed in range(4)
    ]
    there, _, failed, left_out, *others = runs
    alone = {"mixer": "cutmix", "clean_weight": 0}
    save(tmp_path, there, *others, make_record(seed=1, status="diverged", **alone))
    save(tmp_path, *(make_record(seed=seed, **alone) for seed in (0, 2, 3)))
    assert completeness.missing(collection.gather(tmp_path)) == [
        "Mixup: seed 1 is missing (not run)",
        "Mixup: seed 2 is missing (not run)",
        "Mixup: seed 3 is missing (not run)",
        "CutMix, clean_weight=0: seed 1 diverged",
    ]
    (tmp_path / failed.run_id).mkdir()
    (tmp_path / failed.run_id / "error.txt").write_text("OutOfMemoryError: 8 GiB\n\nmuch more")
    spoilt(tmp_path, left_out, metrics={"accuracy": 1.0})
    for record in runs[4:6]:
        measured(tmp_path, record, "attacks", FGSM)
    assert completeness.missing(collection.gather(tmp_path))[1:] == [
        "Mixup: seed 2 is missing (status failed: OutOfMemoryError: 8 GiB)",
        "Mixup: seed 3 is missing (its record is left out)",
        "CutMix, clean_weight=0: seed 1 diverged",
        (
            "attacks: missing for 3 of 5 runs: Mixup, seed 0; Region Mixup, seed 2;"
            " Region Mixup, seed 3"
        ),
    ]


def test_what_the_plan_of_a_batch_names_is_missed(tmp_path, capsys):
    """With a plan other runs say nothing about what is missing: three runs, of which one is there
    and not measured, one failed, one was never begun.
    """
    there, failed, new = (make_record(80, seed=seed, mixer="mixup") for seed in range(3))
    save(tmp_path, there)
    cells = [
        {"run_id": record.run_id, "label": f"mixup seed={seed}", "robustness": True}
        for seed, record in enumerate((there, failed, new))
    ]
    plan = {"schema_version": 1, "name": "small", "cells": cells}
    (tmp_path / records.PLAN).write_text(json.dumps(plan))
    (tmp_path / failed.run_id).mkdir()
    (tmp_path / failed.run_id / "error.txt").write_text("ValueError: no\n")
    assert completeness.missing(collection.gather(tmp_path)) == [
        "small: mixup seed=1 is missing (status failed: ValueError: no)",
        "small: not run for 1 of 3 runs: mixup seed=2",
        *(f"small: {kind}: missing for 1 of 1 runs: mixup seed=0" for kind in records.KINDS),
    ]
    for kind, row in zip(records.KINDS, (FGSM, OPEN, CORRUPTED)):
        measured(tmp_path, there, kind, row)
    assert completeness.missing(collection.gather(tmp_path))[2:] == [
        "small: cam: missing for 1 of 1 runs: mixup seed=0"
    ], "the maps are not measured to the end"
    measured(tmp_path, there, "cam", ({"measure": records.KEPT}, {"shape": [32, 32], "layers": {}}))
    assert len(completeness.missing(collection.gather(tmp_path))) == 2
    save(tmp_path, failed, new)
    plan["cells"][1]["robustness"] = plan["cells"][2]["robustness"] = False
    (tmp_path / records.PLAN).write_text(json.dumps(plan))
    assert main(["report", str(tmp_path)]) == 0
    assert "complete\n" in capsys.readouterr().out
    assert "Nothing: what was planned" in (tmp_path / "report" / "index.html").read_text()
    bad = [plan | {"schema_version": 2}, plan | {"options": [1]}, plan | {"name": None}, [], None]
    bad += [plan | {"cells": [cells[0] | {"run_id": "../secret"}]}]
    bad += [plan | {"cells": [cells[0] | {"label": 3}]}]
    for text in ("{", *map(json.dumps, bad)):
        (tmp_path / records.PLAN).write_text(text)
        assert "plan.json is damaged" in completeness.missing(collection.gather(tmp_path))[0]


def test_the_committed_tables_are_complete():
    assert completeness.missing(collection.gather(project_root() / "results" / "quick")) == []
