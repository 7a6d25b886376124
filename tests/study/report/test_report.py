"""The report as a whole: files, blocks of documents, what is committed."""

import pandas as pd
import pytest
from made import make_record, save

from rmlib import UserError
from rmlib.paths import project_root
from rmlib.study.report import report
from rmlib.study.runs import collection, records

ROOT = project_root()


def test_no_records_and_no_measurements(tmp_path):
    with pytest.raises(UserError, match="there is no record under"):
        report.markdown(tmp_path)
    save(tmp_path, make_record())
    with pytest.raises(UserError, match="nothing was measured for the table 'robustness'"):
        report.markdown(tmp_path, "robustness")
    with pytest.raises(UserError, match="did you mean 'claims'"):
        report.markdown(tmp_path, "claim")


def test_fill_replaces_blocks_and_nothing_else(tmp_path):
    save(tmp_path / "results", make_record(81.0))
    text = (
        "before\n<!-- report results -->\nold\n<!-- end -->\nafter 81\n<!-- report results costs"
        " -->\n<!-- end -->\n"
    )
    filled = report.fill(text, tmp_path)
    assert (
        filled.startswith("before\n<!-- report results -->\n| method |")
        and "<!-- end -->\nafter 81\n" in filled
        and "old" not in filled
    )
    assert (
        "<!-- report results costs -->\n| experiment |" in filled
        and report.fill(filled, tmp_path) == filled
    )


def test_tables_as_files(tmp_path):
    save(tmp_path, *(make_record(80 + s / 3, seed=s, dataset="cifar10") for s in range(3)))
    files = {
        path.name: path
        for path in report.write_tables(report.tables(tmp_path), tmp_path, tmp_path / "out")
    }
    assert {
        "tables.md",
        "accuracy.csv",
        "paper-1.csv",
        "paper-4.csv",
        "claims.csv",
        "costs.csv",
        "runs.csv",
    } <= set(files)
    assert "attacks.csv" not in files, "nothing was attacked"
    stored = pd.read_csv(files["accuracy.csv"])
    assert stored["accuracy"].item() == pytest.approx(80 + 1 / 3, abs=1e-12), "unrounded"
    assert (
        len(pd.read_csv(files["runs.csv"])) == 3
        and "Table 3, accuracy after FGSM" in files["tables.md"].read_text()
    )


def test_committed_records_are_valid_and_small():
    found = collection.gather(ROOT / "results")
    assert len(found.records) > 50 and found.problems == []
    for folder in found.folders.values():
        names = (records.RECORD, "attacks.json", "cam.json")
        files = [folder / name for name in names if (folder / name).exists()]
        assert max(file.stat().st_size for file in files) < 100_000
    # a report that somebody made there is not committed
    kept = [path for path in (ROOT / "results").rglob("*") if "report" not in path.parts]
    assert not [p for p in kept if p.stat().st_size > 500_000 and p.suffix != ".ipynb"]
