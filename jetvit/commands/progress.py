"""A progress bar on stderr where that is a terminal, and now and then a line where it is not."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

Progress = Callable[[str, int, int], None]
QUIET_S = 30.0
"""Without a terminal, what takes less than this says nothing, and a line is written at most so often."""


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """Yield a function of (what is done, steps done, steps in all); each description has a bar of its own."""
    if not sys.stderr.isatty():
        yield _Lines().report
        return
    from rich import progress as bars_of_rich
    from rich.console import Console

    columns = (
        bars_of_rich.TextColumn("{task.description}"),
        bars_of_rich.BarColumn(),
        bars_of_rich.MofNCompleteColumn(),
        bars_of_rich.TimeElapsedColumn(),
        bars_of_rich.TextColumn("left:"),
        bars_of_rich.TimeRemainingColumn(),
    )
    # What is printed meanwhile goes above the bars on a terminal; a result that is piped stays on stdout.
    console, redirect = Console(stderr=True), sys.stdout.isatty()
    with bars_of_rich.Progress(*columns, console=console, transient=True, redirect_stdout=redirect) as bars:
        tasks = {}

        def report(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done, total=total)

        yield report


@dataclass
class _Pace:
    """The first and the last number of steps of one description, and the time of the first."""

    start_s: float
    first: int
    last: int

    def left_s(self, now_s: float, done: int, total: int) -> float | None:
        """The seconds that the remaining steps take at this pace; None after the first step."""
        if done <= self.first:
            return None
        return (now_s - self.start_s) / (done - self.first) * (total - done)


class _Lines:
    """Writes the progress to stderr, a line at most every `QUIET_S`."""

    def __init__(self) -> None:
        self._last_line_s = time.monotonic()
        self._paces: dict[str, _Pace] = {}

    def report(self, what: str, done: int, total: int) -> None:
        """Note the progress, and write it if it is time to."""
        now_s = time.monotonic()
        pace = self._paces.get(what)
        if pace is None or done < pace.last:  # the same work on something else
            pace = self._paces[what] = _Pace(now_s, done, done)
        pace.last = done
        if now_s - self._last_line_s < QUIET_S:
            return
        self._last_line_s = now_s
        left_s = pace.left_s(now_s, done, total)
        left = "" if left_s is None else f", about {duration(left_s)} left"
        print(f"{what}: {done} of {total} ({done / max(total, 1):.0%}{left})", file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """A time in one or two units: "45 s", "12 min", "3 h 20 min"."""
    minutes = round(seconds / 60)
    if round(seconds) < 60:
        return f"{round(seconds)} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
