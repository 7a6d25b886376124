import json
import os
import subprocess

import pytest
from made import make_record, save

from rmlib import UserError
from rmlib.paths import walk
from rmlib.study.runs import collection, environment, records


def test_a_record_comes_back_as_it_was(tmp_path):
    record = make_record()
    path = records.write(record, tmp_path / "run")
    assert records.read(path) == record == records.read(tmp_path / "run")
    assert json.loads(path.read_text())["history"] == record.history
    assert (
        set(record.versions) == {"python", "torch", "torchvision", "numpy"}
        and record.hardware["cpu"]
    )


@pytest.mark.parametrize(
    "damage, words",
    [
        (lambda text: "", "is damaged"),
        (lambda text: text[: len(text) // 2], "is damaged"),
        (
            lambda text: text.replace('"schema_version": 1', '"schema_version": 99'),
            "is of schema 99, and this rmlib knows 1: update rmlib",
        ),
        (
            lambda text: text.replace('"seed": 0', '"seed": 1'),
            "does not belong to its configuration",
        ),
        (lambda text: text.replace('"seconds"', '"secs"'), "not of schema 1"),
        (
            lambda text: text.replace('"accuracy": 80.0', '"accuracy": 96.0'),
            "96.00 % does not fit the verdicts on single images .80.00 %",
        ),
        (
            lambda text: text.replace('"test_images": 10000', '"test_images": 9000'),
            "do not belong to 9000 images",
        ),
        (
            lambda text: text.replace('    {"epoch": 1, "lr": 0.1, "loss": 2.0},\n', ""),
            "history of 5 epochs does not belong to a schedule of 6",
        ),
    ],
)
def test_a_bad_record_is_named(tmp_path, damage, words):
    path = records.write(make_record(), tmp_path)
    path.write_text(damage(path.read_text()))
    with pytest.raises(UserError, match=words) as error:
        records.read(path)
    assert "\n" not in str(error.value) and "record.json" in str(error.value)


COUNTS = {"ant": {"ant": 4000, "bee $1 | x": 1000}, "bee $1 | x": {"bee $1 | x": 5000}}


def with_confusion(counts, classes=2):
    record = make_record(90.0)
    data = record.data | {"classes": classes}
    return record.model_copy(update={"confusion": counts, "data": data})


def test_a_class_of_the_confusion_stands_on_a_line_and_comes_back(tmp_path):
    record = with_confusion(COUNTS)
    path = records.write(record, tmp_path)
    assert records.read(path) == record and list(records.read(path).confusion) == list(COUNTS)
    assert '    "ant": {"ant": 4000, "bee $1 | x": 1000},\n' in path.read_text()


@pytest.mark.parametrize(
    "counts, classes, words",
    [
        (COUNTS, 3, "not of the 3 classes"),
        (COUNTS | {"ant": {"ant": 4000, "cat": 1000}}, 2, "not of the 2 classes"),
        (COUNTS | {"ant": {"ant": 4000}}, 2, "counts 9000 of 10000"),
        (COUNTS | {"ant": {"ant": 4900, "bee $1 | x": 100}}, 2, r"does not fit the confusion .99"),
        (COUNTS | {"ant": {"ant": 5000, "bee $1 | x": 0}}, 2, "confusion.ant.bee"),
    ],
)
def test_a_confusion_that_contradicts_its_record_is_refused(tmp_path, counts, classes, words):
    path = records.write(with_confusion(counts, classes), tmp_path)
    with pytest.raises(UserError, match=words):
        records.read(path)


def test_a_missing_record(tmp_path):
    with pytest.raises(UserError, match="has not finished"):
        records.read(tmp_path)


def test_writing_is_all_or_nothing(tmp_path, monkeypatch):
    path = tmp_path / "file"
    records.atomic_write(path, b"old")
    monkeypatch.setattr(
        records.os,
        "replace",
        lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")),
    )
    with pytest.raises(UserError, match="No space left"):
        records.atomic_write(path, b"new")
    assert path.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["file"]


def test_what_a_killed_process_left_is_cleared_by_the_next_write(tmp_path):
    process = subprocess.Popen(["true"])
    process.wait()
    gone, others = f".plan.json.{process.pid}", {f".plan.json.{os.getppid()}", ".plan.json.old"}
    others |= {f".record.json.{process.pid}", "plan.json"}
    for name in (gone, *others):
        (tmp_path / name).write_bytes(b"half of one")
    records.atomic_write(tmp_path / "plan.json", b"whole")
    assert set(os.listdir(tmp_path)) == others, "those of living processes stay"


def test_a_lock_that_was_deleted_is_noticed(tmp_path):
    lock = tmp_path / "out" / ".lock"
    with records.holding(lock, "") as still:
        still()
        lock.unlink()
        for _ in range(2):
            with pytest.raises(UserError, match="out was deleted while.*begins again"):
                still()
            lock.touch()  # another process's


def test_a_folder_that_was_made_for_a_lock_alone_goes_with_it(tmp_path):
    there = tmp_path / "there"
    there.mkdir()
    for folder, kept in ((tmp_path / "new", False), (there, True), (tmp_path / "used", True)):
        with records.holding(folder / ".lock", ""):
            if folder.name == "used":
                (folder / "log.txt").touch()
        assert folder.exists() == kept


def test_links_are_followed_once_and_loops_end(tmp_path):
    (record,) = made = [make_record(80)]
    save(tmp_path / "far", *made)
    root = tmp_path / "results"
    (root / "deep" / ".hidden").mkdir(parents=True)
    (root / "deep" / "loop").symlink_to(root)
    (root / "a link").symlink_to(tmp_path / "far")
    (root / "another link").symlink_to(tmp_path / "far" / record.run_id)
    (root / "dangling").symlink_to(tmp_path / "nothing")
    found = collection.gather(root)
    assert found.folders == {record.run_id: root / "a link" / record.run_id}
    assert not found.problems
    read = [folder for folder, _, problem in walk(root) if not problem]
    folders = [folder.relative_to(root).as_posix() for folder in read]
    assert folders == [".", "deep", "a link", f"a link/{record.run_id}"]


def test_collect_makes_one_table(tmp_path):
    save(
        tmp_path,
        make_record(80, seed=0),
        make_record(82, seed=1),
        make_record(seed=2, status="diverged"),
    )
    table = collection.gather(tmp_path).runs
    assert sorted(table["metrics.accuracy"].dropna()) == [80, 82] and set(table["status"]) == {
        "done",
        "diverged",
    }
    assert (
        set(table["config.seed"]) == {0, 1, 2} and (table["config.mixer"] == "region_mixup").all()
    )
    assert collection.gather(tmp_path / "nothing").runs.empty


def test_asking_for_the_commit_leaves_the_repository_alone(tmp_path, monkeypatch):
    """A process may be killed while it asks: there must be no lock of git's to be left behind."""
    for words in (
        ["init", "-q"],
        ["add", "."],
        ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "one"],
    ):
        (tmp_path / "file").write_text("text")
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    os.utime(
        tmp_path / "file", (1e9, 1e9)
    )  # `git status` would write this into its index, under a lock
    index = tmp_path / ".git" / "index"
    before = index.read_bytes()
    monkeypatch.setattr(environment, "project_root", lambda: tmp_path)
    code = environment.environment("cpu")["code"]
    assert code["dirty"] is False and len(code["commit"]) == 40 and index.read_bytes() == before
    subprocess.run(["git", "status"], cwd=tmp_path, check=True, capture_output=True)
    assert index.read_bytes() != before, "it was tempted"
