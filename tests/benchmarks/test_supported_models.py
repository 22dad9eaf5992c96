"""The page of supported models says what the result file says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks import supported_models
from benchmarks.report import newest
from benchmarks.supported_models import NAME, PAGE, main, page, unexpected
from tests.zoo.sweep import Row, complaints
from tests.zoo.sweep_tables import ENTRIES

ROW = {
    "name": "a_model",
    "library": "timm",
    "found": "2 of 1+4×6",
    "refused": {"cross attention: 1 learned query | many": 1},
    "exact": {"export": 0.0, "compile": 2e-7},
    "windows": {"export": 3.4e-7},
    "change": 0.1,
    "errors": {},
    "complaints": {"compile with windows": "PlanError: no *site*"},
}
RECORD: dict[str, Any] = {
    "device": "A CPU",
    "date": "2026-01-02T00:00:00",
    "torch": "2",
    "timm": "1",
    "transformers": "5",
    "rows": [ROW],
}


def test_a_row_is_shown_with_its_failure() -> None:
    text = page(RECORD)
    assert "| `a_model` | 2 of 1+4×6 | 1 × cross attention: 1 learned query \\| many | 0 / 2e-07 | 3e-07 / – |" in text
    assert "* `a_model`: compile with windows: PlanError: no \\*site\\*" in text
    assert "jetvit finds 2 attentions in 1 of them" in text


def test_the_page_is_written_and_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supported_models, "PAGE", tmp_path / "docs" / "page.md")
    monkeypatch.setattr(supported_models, "newest", lambda name: [(tmp_path, RECORD)])
    assert main(["--check"]) == 1
    assert main([]) == 0
    assert main(["--check"]) == 0


def test_the_page_says_what_the_results_say() -> None:
    """`python -m benchmarks.supported_models` writes it again."""
    ((_, record),) = newest(NAME)
    assert PAGE.read_text(encoding="utf-8") == page(record)


def test_the_results_are_those_of_the_sweep() -> None:
    """Every entry was run, and failed only where that is expected."""
    ((_, record),) = newest(NAME)
    rows = {row.pop("name"): row for row in record["rows"]}
    assert list(rows) == list(ENTRIES)
    for name, entry in ENTRIES.items():
        said = rows[name].pop("complaints")
        assert said == complaints(entry, Row(name, **rows[name]))
        assert not unexpected(entry.fails, said), name


def test_a_row_names_no_folder_of_the_machine() -> None:
    row = supported_models._without_folders(
        {"name": "é", "errors": {"find": "where: /a/b/site-packages/timm/vit.py:1"}}
    )
    assert row == {"name": "é", "errors": {"find": "where: timm/vit.py:1"}}
