"""How long work shows that it goes on, where there is no terminal."""

from __future__ import annotations

import pytest

from jetvit.commands import progress
from jetvit.commands.progress import QUIET_S, duration, progress_bar


def test_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    now = 100.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    with progress_bar() as report:
        for step in range(10):
            report("searching", step, 10)
            now += QUIET_S / 4
    assert capsys.readouterr().err == (
        "searching: 4 of 10 (40%, about 45 s left)\nsearching: 8 of 10 (80%, about 15 s left)\n"
    )


def test_the_time_left_is_that_of_the_steps_of_this_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run that resumes at step 91 of 100 is not done in no time, and work that starts again has a pace of its own."""
    now = 100.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    with progress_bar() as report:
        for what, done, seconds in (("a", 91, 0), ("a", 92, 40), ("b", 1, 40), ("a", 1, 10), ("a", 2, 80)):
            now += seconds
            report(what, done, 100)
    assert capsys.readouterr().err == (
        "a: 92 of 100 (92%, about 5 min left)\nb: 1 of 100 (1%)\na: 2 of 100 (2%, about 2 h 11 min left)\n"
    )


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0 s"), (59, "59 s"), (59.7, "1 min"), (60, "1 min"), (3590, "1 h 0 min"), (12000, "3 h 20 min")],
)
def test_a_duration_in_words(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_what_is_quick_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar() as report:
        report("searching", 1, 2)
    assert capsys.readouterr().err == ""
