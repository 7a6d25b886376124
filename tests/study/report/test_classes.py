"""Accuracy per class, and confusions: from records alone."""

import pytest
from made import index_of, make_record, save

from rmlib.study.cli import main
from rmlib.study.report import classes, groups, report
from rmlib.study.runs import collection

NAMES = ["ant", "b|$e$", "<i>cat"]


def counting(accuracy, seed, rows, **config):
    """A record of 10 000 test images whose confusion has these rows."""
    record = make_record(accuracy, seed=seed, **config)
    counts = {
        name: {other: n for other, n in zip(NAMES, row) if n} for name, row in zip(NAMES, rows)
    }
    return record.model_copy(
        update={"confusion": counts, "data": record.data | {"classes": len(NAMES)}}
    )


@pytest.fixture
def some(tmp_path):
    """Two seeds of CutMix and one of plain training; an older record; another test set."""
    save(
        tmp_path,
        counting(80.0, 0, [[4000, 1000, 0], [1000, 3000, 0], [0, 0, 1000]], mixer="cutmix"),
        counting(90.0, 1, [[5000, 0, 0], [1000, 3000, 0], [0, 0, 1000]], mixer="cutmix"),
        counting(
            70.0, 0, [[5000, 0, 0], [0, 2000, 2000], [1000, 0, 0]], mixer="none", clean_weight=0
        ),
        make_record(75.0, seed=2, mixer="cutmix"),
        counting(60.0, 3, [[5000, 0, 0], [0, 1000, 3000], [0, 1000, 0]], mixer="mixup"),
        counting(90.0, 4, [[6000, 0, 0], [1000, 3000, 0], [0, 0, 0]], mixer="cutmix"),
    )
    return tmp_path


def test_accuracy_per_class_and_method_hardest_first(some):
    found = collection.gather(some)
    (group,) = groups.experiments(found.runs)
    table = classes.table(found, group)
    assert [row["class"] for row in table.rows] == ["<i>cat", "b|$e$", "ant"]
    assert [row["images"] for row in table.rows] == [1000, 4000, 5000]
    assert [table.text(2, name) for name in ("CutMix", "plain training", "Mixup")] == [
        "90.0 ± 14.1",
        "100.0",
        "100.0",
    ]
    assert len(table.rows[2]["CutMix"].runs) == 2, "neither the older nor the other images"
    assert "| b\\|$e$ | 4000 | 75.0 ± 0.0 |" in report.markdown(found, "classes")


def test_confusions_are_summed_over_the_seeds(some):
    found = collection.gather(some)
    (group,) = groups.experiments(found.runs)
    (best, runs), *_ = classes.counted(found, group)
    names, counts = classes.matrix(list(runs.values()))
    assert best == "CutMix" and names == NAMES
    assert counts.tolist() == [[9000, 1000, 0], [2000, 6000, 0], [0, 0, 2000]]


def test_the_largest_confusions_come_first_with_every_method(some):
    found = collection.gather(some)
    (group,) = groups.experiments(found.runs)
    table = classes.table(found, group, confused=True)
    pairs = [(row["class"], row["taken for"]) for row in table.rows]
    # the sums over methods: 125, 100, 100, 25 and 10 percent of the images of a class
    ant, moon, cat = NAMES
    assert pairs == [(moon, cat), (cat, ant), (cat, moon), (moon, ant), (ant, moon)]
    shares = [table.text(0, name) for name in ("CutMix", "plain training", "Mixup")]
    assert shares == ["0.0 ± 0.0", "50.0", "75.0"]
    assert table.text(4, "CutMix") == "10.0 ± 14.1"


def test_the_page_has_table_and_confusion_and_the_names_are_text(some):
    index_of(some, some / "pages")
    page = (some / "pages" / "tables" / "confusions.md").read_text()
    assert "# What is taken for what" in page and "b\\|&#36;e&#36;" in page
    assert "&#60;i&#62;cat" in page and "<i>" not in page and "$e" not in page
    assert page.count("![confusions") == 1 and r"CutMix\, n \= 2" in page
    report.write_tables(report.tables(some), some, some / "written")
    for kind in ("classes", "confusions"):
        assert (some / "written" / f"{kind}.csv").exists()


def test_a_class_is_explained(some, capsys):
    assert main(["explain", str(some), "classes", "ant", "--column", "CutMix"]) == 0
    text = capsys.readouterr().out
    assert "table classes" in text and "| ant | CutMix" in text and "as in the table" in text
    assert "  80 " in text and "  100 " in text


def test_without_counts_there_is_no_table(tmp_path):
    save(tmp_path, make_record(80.0))
    assert report.tables(tmp_path)["classes"] == []
    assert "confusions" not in index_of(tmp_path, tmp_path / "pages")
