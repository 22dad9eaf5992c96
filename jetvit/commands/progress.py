"""A progress bar on stderr where that is a terminal, and now and then a line where it is not."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Progress = Callable[[str, int, int], None]
QUIET_S = 30.0
"""Without a terminal, what takes less than this says nothing, and a line is written at most so often."""


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """Yield a function of (what is done, steps done, steps in all); each description has a bar of its own."""
    if not sys.stderr.isatty():
        last = time.monotonic()

        def tell(what: str, done: int, total: int) -> None:
            nonlocal last
            if time.monotonic() - last >= QUIET_S:
                last = time.monotonic()
                print(f"{what}: {done} of {total}", file=sys.stderr, flush=True)

        yield tell
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    # What is printed meanwhile goes above the bars on a terminal; a result that is piped stays on stdout.
    console, redirect = Console(stderr=True), sys.stdout.isatty()
    with Progress(*columns, console=console, transient=True, redirect_stdout=redirect) as bars:
        tasks = {}

        def report(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done, total=total)

        yield report
