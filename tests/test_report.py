import statistics
from pathlib import Path

import pytest
from test_records import make_record, save

from rmlib import UserError, records, report
from rmlib.params import project_root

ROOT = project_root()


def test_mean_spread_and_n(tmp_path):
    values = [80.0, 83.0, 84.5]
    save(tmp_path, *(make_record(v, seed=s) for s, v in enumerate(values)), make_record(70.0, mixer="mixup"),
         make_record(seed=1, mixer="mixup", status="diverged"))
    table, caption = report.summary(tmp_path)
    assert list(table["mixer"]) == ["mixup", "region_mixup"] and list(table["n"]) == [1, 3] and list(table["diverged"]) == [1, 0]
    assert table["accuracy"].iloc[1] == pytest.approx(statistics.mean(values))
    assert table["accuracy_std"].iloc[1] == pytest.approx(statistics.stdev(values))
    text = report.markdown(tmp_path)
    assert f"| Region Mixup | 3 | {statistics.mean(values):.2f} ± {statistics.stdev(values):.2f} |" in text
    assert "| Mixup | 1 (+ 1 diverged) | 70.00 |" in text, "one run has no spread"
    assert "seeds 0, 1, 2" in caption and "dataset shapes" in caption and "5 test images" in caption


def test_runs_that_differ_in_more_than_the_seed_are_never_averaged(tmp_path):
    save(tmp_path, make_record(80, seed=0), make_record(60, seed=0, epochs=3), make_record(70, clean_weight=0))
    table, _ = report.summary(tmp_path)
    assert sorted(table["accuracy"]) == [60, 70, 80] and set(table["n"]) == {1}
    assert {"epochs", "clean_weight"} <= set(table.columns)


def test_a_run_stored_twice_is_one_run(tmp_path):
    save(tmp_path / "a", make_record(80, seed=0), make_record(82, seed=1))
    save(tmp_path / "b", make_record(80, seed=0))
    table, _ = report.summary(tmp_path)
    assert list(table["n"]) == [2]


def test_no_records(tmp_path):
    with pytest.raises(UserError, match="there is no record under"):
        report.markdown(tmp_path)


def test_fill_replaces_blocks_and_nothing_else(tmp_path):
    save(tmp_path / "results", make_record(81.0))
    text = "before\n<!-- report results -->\nold\n<!-- end -->\nafter 81\n"
    filled = report.fill(text, tmp_path)
    assert filled.startswith("before\n<!-- report results -->\n|") and filled.endswith("<!-- end -->\nafter 81\n") and "old" not in filled
    assert report.fill(filled, tmp_path) == filled


@pytest.mark.parametrize("document", ["README.md", "results/README.md"])
def test_the_numbers_of_the_documents_come_from_the_committed_records(document):
    path = ROOT / document
    text = path.read_text()
    assert "<!-- report " in text
    assert report.fill(text, path.parent) == text, f"run: python -m rmlib report --into {document}"


def test_committed_records_are_valid():
    found = records.find(ROOT / "results")
    assert found
    for path in (ROOT / "results").rglob("record.json"):
        assert path.parent.name == records.read(path).run_id and path.stat().st_size < 100_000
    assert not [p for p in Path(ROOT / "results").rglob("*") if p.stat().st_size > 600_000 and p.suffix != ".ipynb" and p.suffix != ".safetensors"]
