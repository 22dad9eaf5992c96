"""The operators' property-based tests on the device at hand, as a part of a campaign: a row a test, none run twice.

As a plugin of pytest (`-p benchmarks.suite`) it writes the row of each test as soon as it has ended, passes over those
that have one, and begins none after the time is over.
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

from benchmarks.campaign import Campaign, Step, TimeOver
from benchmarks.kernel_rows import Table, code_of_kernels

KEY = ("device", "torch", "triton", "code", "test")
COLUMNS = ("test", "status", "seconds", "reason", "device", "torch", "cuda", "triton", "code", "dry", "run", "time")
ROOT = Path(__file__).parent.parent
_SETTINGS = "JETVIT_SUITE"  # what the process of pytest is told: table, seconds, the shared columns
_DRY_TESTS = 4  # Triton's interpreter is slow
_SLICE_S = 150.0  # of one run of a campaign, which has more to do


def steps(dry: bool) -> list[Step]:
    """The tests as one step, which several runs may share."""
    return [Step("operator tests", 35, 420, lambda campaign: False, _run)]


def _run(campaign: Campaign, seconds: float) -> None:
    known = {name: value for name, value in campaign.known.items() if name in COLUMNS} | {"code": code_of_kernels()}
    path = campaign.path("operator_tests.csv")
    told = {"path": str(path), "seconds": min(seconds, _SLICE_S), "known": known, "dry": campaign.dry}
    environment = {**os.environ, _SETTINGS: json.dumps(told)}
    if campaign.dry:
        environment["TRITON_INTERPRET"] = "1"
    command = [sys.executable, "-m", "pytest", "-p", "benchmarks.suite", "-p", "no:cacheprovider", "--tb=line"]
    marks = ["-m", "interpreter or gpu" if not campaign.dry else "interpreter", "tests/interpreter"]
    found = subprocess.run([*command, *marks], cwd=ROOT, env=environment, check=False)
    if found.returncode not in (0, 1, 5):  # passed, some failed, none left
        raise RuntimeError(f"pytest ended with {found.returncode}")
    if _Session.left(path):
        raise TimeOver("tests are left")


class _Session:
    """What pytest's process keeps in mind."""

    def __init__(self, told: dict[str, Any]):
        self.known, self.dry = told["known"], told["dry"]
        self.deadline = time.monotonic() + told["seconds"]
        self.table = Table(Path(told["path"]), COLUMNS, KEY)

    @staticmethod
    def note(path: Path) -> Path:
        """Where the number of tests that are left is written."""
        return path.with_suffix(".left")

    @classmethod
    def left(cls, path: Path) -> int:
        """How many tests have no row."""
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
            item.session.shouldstop = "the time is over"

    def pytest_sessionfinish(self) -> None:
        self.note(self.table.path).write_text(str(self.todo), encoding="utf-8")


def pytest_configure(config: pytest.Config) -> None:
    """Register the plugin where a campaign has started pytest."""
    if _SETTINGS in os.environ:
        config.pluginmanager.register(_Session(json.loads(os.environ[_SETTINGS])), "jetvit-suite")
