"""The page of releases says what the runs of the tests said, and no more."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from benchmarks import compatibility
from benchmarks.compatibility import PAGE, RECORDS, main, page, read_report

REPORT = """<?xml version="1.0" encoding="utf-8"?>
<testsuites><testsuite name="pytest" errors="0" failures="1" skipped="2" tests="5">
<testcase classname="tests.passes.test_graph" name="test_a" time="0.1" />
<testcase classname="tests.passes.test_graph" name="test_b" time="0.1"><failure message="no">x</failure></testcase>
<testcase classname="tests.passes.test_c" name="test_c"><skipped message="Skipped: needs   a&#10;GPU" /></testcase>
<testcase classname="tests.test_zoo" name="test_d" time="0.1"><error message="no">x</error></testcase>
<testcase classname="tests.search.test_e" name="test_e[1]"><skipped message="needs a GPU">x</skipped></testcase>
</testsuite></testsuites>
"""


@pytest.fixture
def report(tmp_path: Path) -> Path:
    path = tmp_path / "main.xml"
    path.write_text(REPORT)
    return path


def test_a_report_is_counted_by_room(report: Path) -> None:
    assert list(read_report(report).values()) == [
        ("passes", "passed", ""),
        ("passes", "failed", "test_b"),
        ("passes", "skipped", "needs a GPU"),
        ("top level", "failed", "test_d"),
        ("search", "skipped", "needs a GPU"),
    ]


def test_a_run_is_recorded_and_shown(report: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compatibility, "RECORDS", tmp_path)
    monkeypatch.setattr(compatibility, "PAGE", tmp_path / "docs" / "compatibility.md")
    again = tmp_path / "again.xml"
    again.write_text(re.sub(r"<failure.*</failure>", "", REPORT))
    assert main(["record", "some", str(report)]) == 1
    assert json.loads((tmp_path / "some.json").read_text())["failures"] == ["passes: test_b", "top level: test_d"]
    assert main(["record", "some", str(report), str(again)]) == 1  # a test still fails
    record = json.loads((tmp_path / "some.json").read_text())
    assert record["rooms"]["passes"] == {"passed": 2, "failed": 0, "skipped": 1}
    assert record["skips"] == {"needs a GPU": 2}
    assert (record["failures"], record["again"]) == (["top level: test_d"], 5)
    assert main(["--check"]) == 1
    assert main([]) == 0
    assert main(["--check"]) == 0
    text = compatibility.PAGE.read_text()
    assert "| **failed** | **1** |" in text
    assert "| run again after a change | 5 |" in text
    assert "| passes | 2 / 0 / 1 |" in text
    assert "* some: `top level: test_d`" in text
    assert f"| torch | {record['releases']['torch']} |" in text


def test_the_page_says_what_the_records_say() -> None:
    """`python -m benchmarks.compatibility` writes it again."""
    records = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(RECORDS.glob("*.json"))]
    if not records:
        pytest.skip("no run of the whole suite was recorded yet")
    assert PAGE.read_text(encoding="utf-8") == page(records)
    assert not [failure for record in records for failure in record["failures"]]
