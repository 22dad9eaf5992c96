"""How long work shows that it goes on, where there is no terminal."""

from __future__ import annotations

import pytest

from jetvit.commands import progress
from jetvit.commands.progress import QUIET_S, progress_bar


def test_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    now = 100.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    with progress_bar() as report:
        for step in range(10):
            report("searching", step, 10)
            now += QUIET_S / 4
    assert capsys.readouterr().err == "searching: 4 of 10\nsearching: 8 of 10\n"


def test_what_is_quick_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar() as report:
        report("searching", 1, 2)
    assert capsys.readouterr().err == ""
