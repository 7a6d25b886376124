"""From a cell to its runs and back: the list gives the cell, the command the run."""

import itertools
import json
import re
import shlex
import statistics
from dataclasses import replace
from pathlib import Path

import pytest
from made import PAPERS, finished, make_record, save

from rmlib import UserError
from rmlib.params import TrainParams, complete
from rmlib.paths import project_root
from rmlib.study.cli import build_parser, main
from rmlib.study.report import explain, report
from rmlib.study.report.again import again, train_words
from rmlib.study.report.places import places
from rmlib.study.report.values import Value
from rmlib.study.runs import collection, records
from rmlib.study.settings import parse

QUICK = project_root() / "results" / "quick"
PHOTOS = QUICK.parent / "cifar10-small-width64"


def listed(text):
    """The values listed under each side of a cell, with their run ids."""
    return [
        (float(line.split()[0]), line.split()[-1])
        for line in text.splitlines()
        if line.startswith("    ") and "  run " in line
    ]


@pytest.fixture(scope="module")
def quick():
    """(collection, tables) of the committed records of the quick study."""
    found = collection.gather(QUICK)
    return found, report.tables(found)


def means(tables, kind):
    """The places of all means in the tables of a kind."""
    return [
        place
        for place in places(kind, tables[kind])
        if isinstance(place.entry, Value) and place.entry.how == "mean"
    ]


@pytest.mark.parametrize("kind", ["accuracy", "robustness"])
def test_the_values_listed_give_every_mean(kind, quick):
    """Every mean of the table is the mean of the values listed, which are in the files of the runs
    named.
    """
    found, tables = quick
    chosen = means(tables, kind)
    assert len(chosen) == {"accuracy": 5 * 3, "robustness": 4 * 6}[kind]
    for place in chosen:
        text, value = explain.place_text(found, place), place.entry
        numbers = listed(text)
        assert len(numbers) == 3 and {run for _, run in numbers} == set(value.runs)
        assert "as in the table" in text
        row = place.table.frame().iloc[place.row]
        assert statistics.fmean(x for x, _ in numbers) == pytest.approx(row[place.name], abs=1e-6)
        spread = statistics.stdev(x for x, _ in numbers)
        assert spread == pytest.approx(row[f"{place.name}_std"], abs=1e-6)
        for number, run in numbers:
            folder = QUICK / run
            if kind == "accuracy":
                stored = json.loads((folder / "record.json").read_text())
                assert stored["metrics"][place.name] == pytest.approx(number, rel=1e-7)
            elif place.name.startswith("FGSM"):
                stored = json.loads((folder / "attacks.json").read_text())["measurements"]
                assert number in [
                    each["result"]["accuracy_after"]
                    for each in stored
                    if each["settings"]["attack"] == "fgsm"
                    and f"FGSM {each['settings']['eps']}" == place.name
                ]
                assert f"{run}/attacks.json" in text


def test_a_table_that_contradicts_its_values_is_exposed(quick, monkeypatch):
    found, tables = quick
    place = means(tables, "accuracy")[0]
    wrong = replace(place.entry, mean=place.entry.mean + 0.01)
    monkeypatch.setitem(place.table.rows[place.row], place.name, wrong)
    assert "but the table has" in explain.place_text(found, place)


def test_every_value_of_every_table_is_explained(quick):
    """No number without its runs, in any table."""
    precision = collection.gather(project_root() / "results" / "precision")
    for found, tables in (quick, (precision, report.tables(precision))):
        for kind, several in tables.items():
            for place in places(kind, several):
                text = explain.place_text(found, place)
                assert "mistake" not in text, (kind, place.name, text)
                runs = {run_id for value in place.values.values() for run_id in value.runs}
                if isinstance(place.entry, Value) and place.text != "–":
                    assert runs and runs <= set(found.records), (kind, place.name)


def parsed(parser, line):
    """The parameters of a training that a command line gives."""
    options = vars(parser.parse_args(shlex.split(line)))
    names = [name for name in TrainParams.model_fields if options[name] is not None]
    return parse("02_training", {name: options[name] for name in names})


def test_the_command_gives_the_run():
    found = collection.gather(project_root() / "results")
    parser, _ = build_parser()
    assert len(found.records) > 60
    for record in found.records.values():
        words = train_words(record)
        params = parsed(parser, shlex.join(words))
        assert (
            params.run_id == record.run_id
            and params.config == complete(record.config)
            and set(words) & {"--seed"} == ({"--seed"} if record.config["seed"] else set())
        )


def test_commands_survive_every_kind_of_parameter():
    record = make_record(
        dataset="folder:my pictures",
        mixer="cutmix",
        cutmix_prob=0.5,
        train_images=None,
        milestones=[],
        snapshots=[2, 4],
        augment=False,
        average=True,
        weight_decay=1e-07,
    )
    line = shlex.join(train_words(record))
    assert (
        "'folder:my pictures'" in line and "--train-images all" in line and "--no-augment" in line
    )
    assert parsed(build_parser()[0], line).run_id == record.run_id


def test_the_command_of_a_run_on_own_images_works_as_printed(tiny_run, pictures, capsys):
    """The path is kept beside the record on this machine; without it, its place is named."""
    params, record = finished(tiny_run)
    runs = params.folder.parent
    (line,) = [each for each in again(collection.gather(runs), record.run_id) if "train" in each]
    options = parsed(build_parser()[0], line.removeprefix("rmlib "))
    assert options.run_id == record.run_id and options.dataset == f"folder:{pictures}"
    assert str(pictures) not in (params.folder / records.RECORD).read_text()
    plan = {
        "schema_version": 1,
        "file": "b.yaml",
        "options": ["--set", f"dataset=folder:{pictures.name}"],
    }
    plan |= {"cells": [{"run_id": record.run_id, "label": "x"}]}
    (runs / records.PLAN).write_text(json.dumps(plan))
    assert again(collection.gather(runs), record.run_id)[-1].endswith(f"=folder:{pictures}")
    (runs / records.PLAN).unlink()
    (params.folder / records.IMAGES).unlink()
    *_, line, remark = again(collection.gather(runs), record.run_id)
    assert f"--dataset folder:{pictures.name} " in line and "with the path of that folder" in remark
    (params.folder / records.IMAGES).write_text('{"dataset": "folder:/nowhere/pictures0"}')
    assert again(collection.gather(runs), record.run_id)[-1] == remark


def test_a_root_of_datasets_is_kept(tmp_path):
    params = TrainParams(root=str(tmp_path / "data"))
    records.note_images(tmp_path, params)
    assert records.noted_images(tmp_path) == {}, "nothing lies there"
    (tmp_path / "data").mkdir()
    words = train_words(make_record(), records.noted_images(tmp_path))
    assert words[words.index("--root") + 1] == str(tmp_path / "data")


def test_results_are_looked_for_where_runs_are_written_and_then_in_results(tmp_path, monkeypatch):
    runs, results = tmp_path / "runs", tmp_path / "results"
    monkeypatch.setenv("RMLIB_RUNS", str(runs))
    monkeypatch.setattr(explain.paths, "results_dir", lambda: results)
    other = make_record(90.0, mixer="cutmix")
    save(results, make_record(95.0), other)
    assert explain.explain(["95.00"]).startswith(f"{results}: table accuracy")
    save(runs, make_record(95.0))
    assert explain.explain(["95.00"]).startswith(f"{runs}: table accuracy")
    assert explain.explain([other.run_id]).startswith(f"run {other.run_id}")
    with pytest.raises(UserError, match=str(runs)):
        explain.explain(["95.01"])


def test_of_a_run_the_values_come_before_the_files():
    text = explain.explain([str(QUICK), "b10fafa1f592"])
    assert 0 < text.index("stands behind:") < text.index("  record ")


def test_three_ways_to_the_same_cell():
    found = collection.gather(QUICK)
    (table,) = report.tables(found, ("accuracy",))["accuracy"]
    names = [(row["method"], row["clean_weight"]) for row in table.rows]
    value = table.rows[names.index(("Region Mixup", 1))]["accuracy"]
    shown = f"{value.mean:.2f}"
    text = explain.explain([str(QUICK), shown])
    words = [str(QUICK), "accuracy", "region mixup", "clean_weight=1"]
    assert explain.explain(words, "accuracy (%)") == text
    assert explain.explain([str(QUICK), "accuracy", shown, "Region Mixup"], "accuracy") == text
    assert f"{shown} ± {value.std:.2f}" in text and "momentum" not in text
    assert text.count("record.json") == text.count("rmlib train") == 3
    run = listed(text)[0][1]
    text = explain.explain([str(QUICK), run], everything=True)
    for words in (f"run {run}", "momentum=0.9", "stands behind", "table robustness"):
        assert words in text


@pytest.mark.parametrize(
    "words, message",
    [
        (["94.61"], "shows 94.61: the nearest is 94.60"),
        (["acuracy"], "did you mean 'accuracy'"),
        (["accuracy", "Regionmixup"], "did you mean 'Region Mixup'"),
        (["accuracy", "Mixup", "--column", "acuracy (%)"], "did you mean 'accuracy (%)'"),
        (["123456789abc"], "nothing is called '123456789abc'"),
        ([], "accuracy, primary, differences"),
    ],
)
def test_unknown_words_get_one_line(words, message, capsys):
    assert main(["explain", str(QUICK), *words]) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_number_of_a_sentence_is_found_with_its_sign_turned(tmp_path):
    """'above the next by 1.30 points' is -1.30 where the table has it the other way round."""
    plain = {"mixer": "none", "clean_weight": 0}
    save(tmp_path, *(make_record(81.3 + seed, seed=seed, **plain) for seed in range(2)))
    save(tmp_path, *(make_record(80 + seed, seed=seed, mixer="mixup") for seed in range(2)))
    assert "above the next, Mixup, by 1.30 points" in report.markdown(tmp_path, "answer")
    text = explain.explain([str(tmp_path), "1.30"])
    assert "Mixup - plain training" in text and "-1.30" in text


def test_a_difference_names_the_runs_of_both_sides():
    text = explain.explain([str(QUICK), "differences", "Region Mixup - Mixup"])
    values = [value for value, _ in listed(text)]
    gap = statistics.fmean(values[:3]) - statistics.fmean(values[3:])
    assert len(values) == 6 and f"{gap:+.4f}, as in the table" in text
    text = explain.explain([str(QUICK), "looks", "extent", "Region Mixup - CutMix"])
    assert "Region Mixup: " in text


def test_of_many_runs_there_is_a_line_each_and_in_full_one_by_one(tmp_path):
    for mixer in ("mixup", "cutmix"):
        save(tmp_path, *(make_record(80 + seed, seed=seed, mixer=mixer) for seed in range(4)))
    words = [str(tmp_path), "differences", "CutMix - Mixup"]
    text = explain.explain(words)
    assert len(listed(text)) == 8 and len(text.splitlines()) < 20 and "  record " not in text
    (run,) = (line.split()[-1] for line in text.splitlines() if line.startswith("one of the runs"))
    assert "  record " in explain.explain([str(tmp_path), run])
    assert explain.explain(words, everything=True).count("  record ") == 8


def test_a_run_that_was_made_again_is_not_taken_for_the_original(tmp_path):
    """A copy made to check it finished later, and yet it is the first that counts."""
    for folder, accuracy in (("mine", 80.0), ("again", 81.0)):
        save(tmp_path / folder, make_record(accuracy))
    run = make_record().run_id
    assert f"{tmp_path}/mine/" in explain.explain([str(tmp_path), run])
    assert "81" in explain.explain([str(tmp_path / "again"), run])


def test_experiments_of_one_title_are_told_apart(tmp_path):
    """Width, epochs and images are the same, the learning rate is not: every row names the runs of
    its own table.
    """
    for lr, mixer in itertools.product((0.1, 0.05), ("mixup", "region_mixup")):
        made = (make_record(80 + seed, seed=seed, mixer=mixer, lr=lr) for seed in range(3))
        save(tmp_path, *made)
    found, rates = collection.gather(tmp_path), []
    for kind, several in report.tables(found, ("differences", "costs")).items():
        for place in (each for each in places(kind, several) if each.name in ("points", "sum")):
            rates.append({found.records[run_id].config["lr"] for run_id in place.entry.runs})
    assert sorted(map(len, rates)) == [1, 1, 1, 1, 2], "the last row of costs is of all"
    assert rates[0] != rates[1] and rates[2] != rates[3]


def test_what_was_not_run_says_what_would_make_it(tmp_path):
    words = [str(PHOTOS), "claims", "Region Mixup > CutMix", "Square", "CIFAR-100"]
    text = explain.explain(words)
    sides = "Region Mixup, clean_weight=1 and of CutMix, clean_weight=1"
    assert f"not run: needs at least 3 finished records of {sides}" in text
    assert "attacks.json with square" in text
    assert "rmlib batch notebooks/batches/cifar100.yaml --out results/cifar100" in text
    text = explain.explain([str(PHOTOS), "paper", "Tiny ImageNet", "Mixup"])
    assert "notebooks/batches/tiny-imagenet.yaml" in text
    for mixer in ("mixup", "region_mixup"):
        made = (make_record(96 + seed / 10, seed=seed, mixer=mixer, **PAPERS) for seed in range(6))
        save(tmp_path, *made)
    text = explain.explain([str(tmp_path), "paper", "Table 1", "CIFAR-10", "Mixup"])
    assert "as in the table" in text
    text = explain.explain([str(tmp_path), "claims", "> Mixup", "accuracy", "CIFAR-10"], "A - B")
    assert len(listed(text)) == 12 and "+0.0000, as in the table" in text


def test_code_of_another_time_and_the_batch_are_named(tmp_path):
    record = make_record(80)
    record.code["commit"] = "a" * 40
    save(tmp_path, record)
    plan = {"schema_version": 1, "file": "my batches/b.yaml", "options": ["--compile"]}
    plan |= {"cells": [{"run_id": record.run_id, "label": "x"}]}
    (tmp_path / records.PLAN).write_text(json.dumps(plan))
    first, _, last = again(collection.gather(tmp_path), record.run_id)
    assert first == f"git checkout {'a' * 40}"
    command = "rmlib batch 'my batches/b.yaml' --out runs/again --compile"
    assert last == f"or all of its batch: {command}"
    assert build_parser()[0].parse_args(shlex.split(command)[1:]).compiled
    record.compiled = True
    assert "--compiled" in train_words(record)
    (tmp_path / record.run_id / "02_training.ipynb").write_text("{}")
    assert f"{record.run_id}/02_training.ipynb" in explain.explain([str(tmp_path), record.run_id])


def test_the_example_of_the_ledger_is_real(monkeypatch):
    monkeypatch.chdir(project_root())
    after = Path("results/README.md").read_text().partition("$ rmlib explain results/quick 94.60\n")
    example = after[2].split("$ rmlib")[0].splitlines()
    text = explain.explain(["results/quick", "94.60"]).splitlines()
    assert len(example) > 10
    assert all(line in text or line.startswith("  ...") for line in example)


def test_what_is_left_out_is_not_hidden(tmp_path):
    save(tmp_path, make_record(80))
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "record.json").write_text("{")
    text = explain.explain([str(tmp_path), "accuracy", "Region Mixup"])
    assert "left out as damaged or foreign: 1 of the files" in text


def test_diverged_runs_are_told(tmp_path):
    save(tmp_path, *(make_record(80 + seed, seed=seed) for seed in range(2)))
    save(tmp_path, make_record(seed=2, status="diverged"))
    text = explain.explain([str(tmp_path), "accuracy", "Region Mixup"], "accuracy (%)")
    assert "not averaged: 1 diverged" in text
    assert [value for value, _ in listed(text)] == [80, 81]


def test_nothing_to_explain(tmp_path):
    with pytest.raises(UserError, match="there is no record"):
        explain.explain([str(tmp_path), "accuracy"])


def test_the_examples_of_the_help_work(monkeypatch, capsys, quick):
    from rmlib.study.report import report

    monkeypatch.chdir(project_root())
    monkeypatch.setattr(report, "tables", lambda *_: quick[1])
    with pytest.raises(SystemExit):
        main(["explain", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    examples = text.partition("examples: ")[2].split(" | ")
    assert len(examples) == 4
    for example in examples:
        assert main(shlex.split(example)[1:]) == 0
        assert re.search(r"run [0-9a-f]{12}", capsys.readouterr().out)
