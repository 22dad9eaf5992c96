"""Start the workers of a campaign, end them at time limits, and keep the report and the archive up to date."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from subprocess import Popen

from benchmarks.gpu.archive import write_archive
from benchmarks.gpu.journal import ENDS, Journal
from benchmarks.gpu.processes import end, start

LOST = 3
"""The exit status of a worker whose device takes no more work from its process."""
USAGE = 2
"""The exit status of a worker that does not understand its arguments."""
_GRACE_S = 15.0  # for the step that runs when the time is over, to end its row
_POLL_S = 0.2
_ARCHIVE_S = 20.0  # between two archives while a step runs


class Keeper:
    """Writes the report and the archive, after each step and at the end."""

    def __init__(self, folder: Path, dry: bool, archive: Path | None):
        self._folder, self._dry, self._archive = folder, dry, archive
        self._ended, self._written = 0, time.monotonic()

    def update(self, journal: Journal) -> None:
        """Write the archive if a step has ended since the last call, with a new report, or after some seconds.

        The rows of a step that runs for long are in the archive, too, when the whole campaign is killed.
        """
        if self._archive is None:
            return
        ended = sum(event["event"] in ENDS for event in journal.events())
        if ended != self._ended:
            self._ended = ended
            try:
                self._report(pictures=False)
            except Exception as error:  # the worker may be writing the same files: the next report has them whole
                print(f"  no report yet: {type(error).__name__}: {error}", flush=True)
        elif not self._folder.exists() or time.monotonic() - self._written < _ARCHIVE_S:
            return
        write_archive(self._folder, self._archive)
        self._written = time.monotonic()

    def finish(self) -> bool:
        """Write both, with pictures; return whether a step failed or a row is wrong."""
        wrong = self._report(pictures=True)
        if self._archive is not None:
            write_archive(self._folder, self._archive)
            print(f"wrote {self._archive}, {self._archive.stat().st_size / 1e6:.2f} MB", flush=True)
        return wrong

    def _report(self, pictures: bool) -> bool:
        self._folder.mkdir(parents=True, exist_ok=True)
        from benchmarks.gpu.report import write_report  # takes seconds to import, which the worker does not wait for

        return write_report(self._folder, self._dry, pictures)


class Supervisor:
    """Runs a command that works until nothing is left or the time is over, again where its process dies."""

    def __init__(self, command: Sequence[str], seconds: float):
        """Start the command at once. seconds: from now; told to the command as `--until`, seconds of the clock."""
        self.began = time.time()
        self._command = [*command, "--until", str(self.began + seconds)]
        self._deadline = time.monotonic() + seconds
        self._worker = start(self._command)

    def run(self, journal: Journal, keeper: Keeper) -> int:
        """Wait for the end; return 0, or the exit status of a worker that ended before it began a step."""
        began = self.began
        while True:
            try:
                status = watch(self._worker, journal, self._deadline, began, keeper)
            finally:
                end(self._worker)
            if status in (0, USAGE) or time.monotonic() > self._deadline - 1:
                return USAGE if status == USAGE else 0
            running = journal.running(began)
            if status != LOST and running is None:
                print(f"the worker ended with {status} before it began a step", flush=True)
                return 1
            if running is not None:
                journal.write(running, "died", reason=f"its process ended with {status}")
                print(f"  {running['step']}: its process ended with {status}", flush=True)
            began = time.time()
            self._worker = start(self._command)

    def stop(self) -> None:
        """End the worker."""
        end(self._worker)


def watch(worker: Popen[bytes], journal: Journal, deadline: float, began: float, keeper: Keeper) -> int | None:
    """Wait for a worker; return its exit status, `LOST` if a step exceeds its limit, None if the time is over.

    deadline: of `time.monotonic`. began: when the worker was started, in seconds of the clock.
    """
    while worker.poll() is None:
        time.sleep(_POLL_S)
        if time.monotonic() > deadline + _GRACE_S:
            print("the time is over: the next run resumes the step that ran", flush=True)
            return None
        running = journal.running(began)
        if running is not None and time.time() - running["at"] > running["limit_s"]:
            journal.write(running, "overran", reason=f"it took longer than {running['limit_s']:.0f} s")
            print(f"  {running['step']}: it took longer than {running['limit_s']:.0f} s", flush=True)
            return LOST
        keeper.update(journal)
    return worker.returncode
