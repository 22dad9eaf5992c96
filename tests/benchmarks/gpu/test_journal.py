"""The journal of a campaign: what became of its steps, whatever stopped it."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.gpu.journal import Journal

KNOWN = {"device": "NVIDIA H200", "torch": "2.11", "triton": "3.6", "code": "abc", "run": "now"}


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "steps.jsonl")


def test_a_step_runs_until_something_says_that_it_has_ended(journal: Journal) -> None:
    assert journal.running(0) is None
    started = journal.start("one", 60, KNOWN)
    assert journal.running(0) == started
    assert journal.running(started["at"] + 1) is None  # of an earlier run, which was cut off
    journal.write(started, "finished")
    assert journal.running(0) is None
    assert journal.is_finished("one", KNOWN)
    assert not journal.is_finished("two", KNOWN)


@pytest.mark.parametrize("name", ["device", "torch", "triton", "code"])
def test_what_ran_elsewhere_or_before_a_change_does_not_count(journal: Journal, name: str) -> None:
    journal.write(journal.start("one", 60, KNOWN), "finished")
    journal.write(journal.start("two", 60, KNOWN), "died")
    assert not journal.is_finished("one", KNOWN | {name: "other"})
    assert journal.failures("two", KNOWN | {name: "other"}) == 0
    assert journal.failures("two", KNOWN | {"run": "later"}) == 1


def test_failures_are_counted_and_forgotten(journal: Journal) -> None:
    for event in ("failed", "died", "stopped", "skipped", "finished"):
        journal.write(journal.start("one", 60, KNOWN), event, reason="so")
    journal.start("one", 60, KNOWN)  # cut off with the whole campaign: nothing that it has done
    assert journal.failures("one", KNOWN) == 2
    journal.forget_failures()
    assert journal.failures("one", KNOWN) == 0
    assert journal.is_finished("one", KNOWN)


def test_a_step_that_was_postponed_has_neither_run_nor_failed(journal: Journal) -> None:
    journal.postpone("one", KNOWN, expected_s=70, left_s=30.4)
    assert journal.running(0) is None
    assert not journal.is_finished("one", KNOWN)
    assert journal.failures("one", KNOWN) == 0
    assert journal.events()[0]["reason"] == "expected 70 s, 30 s were left"


def test_a_step_that_exceeds_its_limit_has_failed_and_is_known_for_this_run(journal: Journal) -> None:
    started = journal.start("one", 60, KNOWN, expected_s=20)
    journal.write(started, "overran", "it took longer than 60 s")
    assert journal.failures("one", KNOWN) == 1
    assert journal.has_overrun("one", KNOWN, since=started["at"])
    assert not journal.has_overrun("one", KNOWN, since=started["at"] + 60)
    assert not journal.has_overrun("two", KNOWN, since=0)


def test_a_line_that_was_cut_off_is_none(journal: Journal) -> None:
    started = journal.start("one", 60, KNOWN)
    with journal.path.open("a") as file:
        file.write('{"step": "one", "event": "fini')
    assert journal.running(0) == started
    with journal.lock(1):
        journal.write(started, "finished")
    assert [each["event"] for each in journal.events()] == ["started", "finished"]


def test_one_process_works_in_a_folder(journal: Journal) -> None:
    with journal.lock(1), pytest.raises(TimeoutError, match="another process"), Journal(journal.path).lock(0.2):
        pass
