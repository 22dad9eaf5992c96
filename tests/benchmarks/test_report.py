"""The README says what the result files say."""

from __future__ import annotations

import re

from benchmarks.report import README, TABLES, newest, render


def test_the_readme_is_up_to_date():
    text = README.read_text(encoding="utf-8")
    assert render(text) == text, "run `make report`"


def test_every_block_has_a_table_and_every_table_a_block():
    assert set(re.findall(r"<!-- results:(\w+) -->", README.read_text(encoding="utf-8"))) == set(TABLES)


def test_results_say_where_they_come_from():
    for name in TABLES:
        for _, record in newest(name):
            assert {"command", "date", "device", "threads", "torch", "jetvit"} <= set(record)


def test_a_missing_result_is_not_invented():
    assert "not measured yet" in render("<!-- results:calibrate -->\n<!-- end -->") or newest("calibrate")
