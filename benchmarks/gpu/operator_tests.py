"""Run the operators' property-based tests on the device, as a step of a campaign: a row a test, none run twice.

As a plugin of pytest (`-p benchmarks.gpu.operator_tests`) it writes the row of each test as soon as the test has ended,
skips tests that have a row, and starts none when the time is over.
"""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu.campaign import Campaign, Cost, Step, TimeOver, time_slice_s
from benchmarks.gpu.processes import ROOT
from benchmarks.kernels.rows import Table, code_of_kernels

KEY = ("device", "torch", "triton", "code", "test")
COLUMNS = ("test", "status", "seconds", "reason", "device", "torch", "cuda", "triton", "code", "dry", "run", "time")
_SETTINGS = "JETVIT_OPERATOR_TESTS"  # hands the table, the seconds and the shared columns to the process of pytest
_DRY_TESTS = 2  # Triton's interpreter is slow
_SLICE_S = 150.0  # of one run at most


def steps(dry: bool) -> list[Step]:
    """Return the tests as one step, which several runs may share."""
    cost = Cost(30, 30, "half of the time that is left, 30 to 150 s", dry_s=90)
    return [Step("operator tests", 36, cost, 420, lambda campaign: False, _run)]


def _run(campaign: Campaign, seconds: float) -> None:
    known = {name: value for name, value in campaign.known.items() if name in COLUMNS} | {"code": code_of_kernels()}
    path = campaign.path("operator_tests.csv")
    settings = {"path": str(path), "seconds": time_slice_s(seconds, _SLICE_S), "known": known, "dry": campaign.dry}
    environment = {**os.environ, _SETTINGS: json.dumps(settings)}
    if campaign.dry:
        environment["TRITON_INTERPRET"] = "1"
    command = [sys.executable, "-m", "pytest", "-p", "benchmarks.gpu.operator_tests"]
    command += ["-p", "no:cacheprovider", "--tb=line"]
    marks = ["-m", "interpreter or gpu" if not campaign.dry else "interpreter", "tests/interpreter"]
    status = subprocess.run([*command, *marks], cwd=ROOT, env=environment, check=False).returncode
    if status not in (0, 1, 5):  # passed; some failed, or the time was over; none left
        raise RuntimeError(f"pytest ended with {status}")
    if _Session.left(path):
        raise TimeOver("tests are left")


class _Session:
    """The state of pytest's process."""

    def __init__(self, settings: dict[str, Any]):
        self.known, self.dry = settings["known"], settings["dry"]
        self.deadline = time.monotonic() + settings["seconds"]
        self.table = Table(Path(settings["path"]), COLUMNS, KEY)

    @staticmethod
    def note(path: Path) -> Path:
        """Return the file of the number of tests that are left."""
        return path.with_suffix(".left")

    @classmethod
    def left(cls, path: Path) -> int:
        """Return how many tests have no row."""
        return int(cls.note(path).read_text(encoding="utf-8"))

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        del items[_DRY_TESTS if self.dry else None :]
        todo = [item for item in items if not self.table.has(self.known | {"test": item.nodeid})]
        config.hook.pytest_deselected(items=[item for item in items if item not in todo])
        items[:] = todo
        self.todo = len(todo)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            row = self.known | {"test": report.nodeid, "status": report.outcome, "seconds": f"{report.duration:.2f}"}
            if report.outcome != "passed":
                row["reason"] = " ".join(str(report.longrepr).split())[-300:]
            row["time"] = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
            if not self.table.has(row):
                self.table.append([row])
                self.todo -= 1

    def pytest_runtest_protocol(self, item: pytest.Item) -> None:
        if time.monotonic() > self.deadline:
            item.session.shouldfail = "the time is over"  # exit status 1; `shouldstop` has that of broken collections

    def pytest_sessionfinish(self) -> None:
        self.note(self.table.path).write_text(str(self.todo), encoding="utf-8")


def pytest_configure(config: pytest.Config) -> None:
    """Register the plugin where a campaign has started pytest."""
    if _SETTINGS in os.environ:
        config.pluginmanager.register(_Session(json.loads(os.environ[_SETTINGS])), "jetvit-operator-tests")
