"""What became of the steps of a campaign: one line an event, appended, safe against a run that is killed."""

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
"""What a step has to share with an earlier run of it for that to count."""
_ENDS = ("finished", "stopped", "failed", "died")


class Journal:
    """The events of all runs in a folder.

    An event has: step, event (started, finished, stopped, failed, died), run (of the step, a number that tells one from
    another), at (seconds of the clock), limit_s, reason, and the columns of `SAME`.
    """

    def __init__(self, path: Path):
        self.path = path

    def events(self) -> list[Event]:
        """All events; a line that was cut off is none."""
        found = []
        for line in self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else ():
            try:
                found.append(json.loads(line))
            except ValueError:
                continue
        return found

    def describe(self, known: Mapping[str, Any]) -> None:
        """Append what is known of a run, versions and clocks with it, to machine.jsonl beside this file."""
        with self.path.with_name(self.path.name.replace("steps", "machine")).open("a", encoding="utf-8") as file:
            file.write(json.dumps({**known, "at": time.time()}) + "\n")

    def start(self, step: str, limit_s: float, known: Mapping[str, Any]) -> Event:
        """Write that a step begins."""
        event = {"step": step, "event": "started", "run": time.time_ns(), "limit_s": limit_s}
        event |= {name: str(known[name]) for name in SAME}
        return self._append(event)

    def write(self, started: Event, event: str, reason: str = "") -> None:
        """Write how a step that was started has ended."""
        self._append({**started, "event": event, "reason": reason, "began": started["at"]})

    def running(self, since: float) -> Event | None:
        """The step that was started last, if that was after this moment and nothing says that it has ended.

        since: seconds of the clock. What began before was cut off together with all that could have said so.
        """
        events = self.events()
        started = next((each for each in reversed(events) if each["event"] == "started" and each["at"] >= since), None)
        ended = {each["run"] for each in events if each["event"] in _ENDS}
        return started if started is not None and started["run"] not in ended else None

    def is_finished(self, step: str, known: Mapping[str, Any]) -> bool:
        """Whether a step has ended with nothing left, on this device with these versions."""
        return any(each["event"] == "finished" for each in self._of(step, known))

    def failures(self, step: str, known: Mapping[str, Any]) -> int:
        """How often a step has failed or taken its process with it, since it was last forgotten."""
        return sum(each["event"] in ("failed", "died") for each in self._of(step, known))

    def forget_failures(self) -> None:
        """Take failures out of the file."""
        kept = [each for each in self.events() if each["event"] not in ("failed", "died")]
        beside = self.path.with_suffix(".new")
        beside.write_text("".join(json.dumps(each) + "\n" for each in kept), encoding="utf-8")
        beside.replace(self.path)

    @contextmanager
    def lock(self, seconds: float) -> Iterator[None]:
        """Within it no other process works in this folder. Raises TimeoutError if one does for so long."""
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
