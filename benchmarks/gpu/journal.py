"""Record what became of the steps of a campaign: one line an event, appended, safe against a run that is killed."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Event = dict[str, Any]
SAME = ("device", "torch", "triton", "code")
"""Columns in which an earlier run of a step has to agree with this one for its result to count."""
FAILURES = ("failed", "died", "overran")
"""Events of a step that failed: by an exception, by the end of its process, by its time limit."""
ENDS = ("finished", "stopped", "skipped", *FAILURES)
"""Events that end a step; "postponed" is the event of a step that was not started for lack of time."""


class Journal:
    """The events of all runs in a folder.

    An event has: step, event ("started", "postponed" or one of `ENDS`), run (of the step, a unique number), at (seconds
    of the clock), limit_s, expected_s, reason, and the columns of `SAME`.
    """

    def __init__(self, path: Path):
        self.path = path

    def events(self) -> list[Event]:
        """Return all events, without a line that was cut off."""
        events = []
        for line in self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else ():
            try:
                events.append(json.loads(line))
            except ValueError:
                continue
        return events

    def describe(self, known: Mapping[str, Any]) -> None:
        """Append what is known of a run, versions and clocks with it, to machine.jsonl beside this file."""
        with self.path.with_name(self.path.name.replace("steps", "machine")).open("a", encoding="utf-8") as file:
            file.write(json.dumps({**known, "at": time.time()}) + "\n")

    def start(self, step: str, limit_s: float, known: Mapping[str, Any], expected_s: float = 0.0) -> Event:
        """Write that a step starts."""
        return self._append(_event(step, "started", known) | {"limit_s": limit_s, "expected_s": expected_s})

    def postpone(self, step: str, known: Mapping[str, Any], expected_s: float, left_s: float) -> None:
        """Write that a step was not started, because it would not have ended in time."""
        reason = f"expected {expected_s:.0f} s, {left_s:.0f} s were left"
        self._append(_event(step, "postponed", known) | {"expected_s": expected_s, "reason": reason})

    def write(self, started: Event, event: str, reason: str = "") -> None:
        """Write how a step that was started has ended."""
        self._append({**started, "event": event, "reason": reason, "began": started["at"]})

    def running(self, since: float) -> Event | None:
        """Return the step that was started last, unless it has ended or was started before this moment.

        since: seconds of the clock. What was started before was cut off together with whatever could have ended it.
        """
        events = self.events()
        started = next((each for each in reversed(events) if each["event"] == "started" and each["at"] >= since), None)
        ended = {each["run"] for each in events if each["event"] in ENDS}
        return started if started is not None and started["run"] not in ended else None

    def is_finished(self, step: str, known: Mapping[str, Any]) -> bool:
        """Return whether a step has ended with nothing left, on this device with these versions."""
        return any(each["event"] == "finished" for each in self._of(step, known))

    def failures(self, step: str, known: Mapping[str, Any]) -> int:
        """Return how often a step has failed, since failures were last forgotten."""
        return sum(each["event"] in FAILURES for each in self._of(step, known))

    def has_overrun(self, step: str, known: Mapping[str, Any], since: float) -> bool:
        """Return whether a step was killed at its time limit after this moment."""
        return any(each["event"] == "overran" and each["at"] >= since for each in self._of(step, known))

    def forget_failures(self) -> None:
        """Remove failures from the file."""
        kept = [each for each in self.events() if each["event"] not in FAILURES]
        beside = self.path.with_suffix(".new")
        beside.write_text("".join(json.dumps(each) + "\n" for each in kept), encoding="utf-8")
        beside.replace(self.path)

    @contextmanager
    def lock(self, seconds: float) -> Iterator[None]:
        """Keep other processes out of this folder. Raises TimeoutError if one stays in it for so long."""
        deadline = time.monotonic() + seconds
        with self.path.with_suffix(".lock").open("w") as file:
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise TimeoutError(f"another process works in {self.path.parent}") from None
                    time.sleep(0.1)
            self._cut_unfinished_line()
            yield

    def _of(self, step: str, known: Mapping[str, Any]) -> list[Event]:
        return [
            each
            for each in self.events()
            if each["step"] == step and all(each[name] == str(known[name]) for name in SAME)
        ]

    def _append(self, event: Event) -> Event:
        event = {**event, "at": time.time()}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(event) + "\n")
            file.flush()
            os.fsync(file.fileno())
        return event

    def _cut_unfinished_line(self) -> None:
        content = self.path.read_bytes() if self.path.exists() else b""
        whole = content[: content.rfind(b"\n") + 1]
        if whole != content:
            self.path.write_bytes(whole)


def _event(step: str, event: str, known: Mapping[str, Any]) -> Event:
    return {"step": step, "event": event, "run": time.time_ns(), **{name: str(known[name]) for name in SAME}}
