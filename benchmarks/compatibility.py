"""What the test suite says on each set of releases, and the page that shows it.

    python -m benchmarks.compatibility record NAME REPORT.xml…   after a run: releases, counts and reasons of skips
    python -m benchmarks.compatibility [--check]                 write docs/compatibility.md from all records

The reports are those of `pytest --junitxml`. A test that is in several counts as it ended in the last, and the page
says how many were run again. `record` exits with 1 if a test failed.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from benchmarks.results import RESULTS, environment, write, write_page
from jetvit.versions import numbers

RECORDS = RESULTS / "versions"
PAGE = Path(__file__).parent.parent / "docs" / "compatibility.md"
PACKAGES = (
    "torch", "triton", "torchvision", "numpy", "transformers", "timm", "onnx", "onnxscript", "onnxruntime", "networkx",
    "scipy", "scikit-learn", "safetensors", "jsonschema", "pillow", "rich", "matplotlib", "accelerate", "hypothesis",
    "pytest",
)  # fmt: skip
OUTCOMES = ("passed", "failed", "skipped")


def read_report(path: Path) -> dict[tuple[str, str], tuple[str, str, str]]:
    """(room, outcome, reason) of every test of a report, by its file and name.

    A test that expectedly fails counts as skipped.
    """
    found = {}
    for case in ElementTree.parse(path).getroot().iter("testcase"):
        file, name = case.get("classname", ""), case.get("name", "")
        parts = file.split(".")
        room = parts[1] if len(parts) > 2 else "top level"
        if (skip := case.find("skipped")) is not None:
            found[file, name] = room, "skipped", _reason(skip.get("message", ""))
        elif case.find("failure") is not None or case.find("error") is not None:
            # One whose end fails too stands twice in a report.
            found[file, name] = room, "failed", name
        else:
            found.setdefault((file, name), (room, "passed", ""))
    return found


def _reason(message: str) -> str:
    """The reason of a skip, without what differs between tests that are skipped for one reason."""
    return re.sub(r"\s+", " ", message.removeprefix("Skipped: ")).strip()


def record(name: str, reports: Sequence[Path]) -> dict[str, Any]:
    """What a session ran on and what came out, for `RECORDS`."""
    found: dict[tuple[str, str], tuple[str, str, str]] = {}
    again = 0
    for report in reports:
        read = read_report(report)
        again += len(found.keys() & read.keys())
        found |= read
    tests = list(found.values())
    rooms = sorted({room for room, _, _ in tests})
    count = Counter((room, outcome) for room, outcome, _ in tests)
    return {
        "session": name,
        **environment(),
        "releases": {"Python": platform.python_version(), **dict(_releases())},
        "again": again,
        "rooms": {room: {outcome: count[room, outcome] for outcome in OUTCOMES} for room in rooms},
        "skips": dict(Counter(reason for _, outcome, reason in tests if outcome == "skipped").most_common()),
        "failures": [f"{room}: {reason}" for room, outcome, reason in tests if outcome == "failed"],
    }


def _releases() -> Iterator[tuple[str, str]]:
    for package in PACKAGES:
        try:
            yield package, version(package)
        except PackageNotFoundError:
            yield package, "–"


def page(records: Sequence[dict[str, Any]]) -> str:
    """docs/compatibility.md, from the records of all sessions, the oldest releases first."""
    records = sorted(records, key=lambda each: [numbers(each["releases"][name]) for name in ("torch", "transformers")])
    names = [each["session"] for each in records]
    rooms = sorted({room for each in records for room in each["rooms"]})
    reasons = sorted({reason for each in records for reason in each["skips"]})
    totals = {
        outcome: [sum(counts[outcome] for counts in each["rooms"].values()) for each in records] for outcome in OUTCOMES
    }
    releases = {package: [each["releases"].get(package, "–") for each in records] for package in ("Python", *PACKAGES)}
    by_room = {room: [each["rooms"].get(room, dict.fromkeys(OUTCOMES, 0)) for each in records] for room in rooms}
    last = {f"**{outcome}**": [f"**{each}**" for each in totals[outcome]] for outcome in OUTCOMES}
    last["run again after a change"] = [each["again"] for each in records]
    lines = [
        "# Compatibility",
        "",
        "The whole test suite, on the oldest releases that jetvit takes, on those that it is developed with, and on",
        "the newest. `make test-versions` runs it; this page is made from the records of these runs.",
        "",
        *_table(names, releases | last),
        "",
        "Passed, failed and skipped in each folder of `tests/`:",
        "",
        *_table(
            names, {room: [" / ".join(str(one[key]) for key in OUTCOMES) for one in by_room[room]] for room in rooms}
        ),
        "",
        "Why tests were skipped, and how many:",
        "",
        *_table(names, {reason: [each["skips"].get(reason, "") for each in records] for reason in reasons}),
    ]
    if failures := [(each["session"], failure) for each in records for failure in each["failures"]]:
        lines += ["", "Failed:", "", *(f"* {session}: `{failure}`" for session, failure in failures)]
    lines += ["", "Run on:", "", *(f"* {each['session']}: {each['device']}, {each['date'][:10]}" for each in records)]
    return "\n".join(lines) + "\n"


def _table(names: Sequence[str], rows: Mapping[str, Sequence[object]]) -> Iterator[str]:
    """The lines of a table with a column a session."""
    yield "| | " + " | ".join(names) + " |"
    yield "|---|" + "---|" * len(names)
    for title, cells in rows.items():
        yield f"| {title.replace('|', chr(92) + '|')} | " + " | ".join(map(str, cells)) + " |"


def main(arguments: Sequence[str] | None = None) -> int:
    """Record a run, or write or check the page; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if the page is behind")
    commands = parser.add_subparsers(dest="command")
    recording = commands.add_parser("record", help="keep what a run of the tests said")
    recording.add_argument("name", help="of the session")
    recording.add_argument("reports", type=Path, nargs="+", help="files of pytest --junitxml")
    args = parser.parse_args(arguments)
    if args.command == "record":
        found = record(args.name, args.reports)
        write(RECORDS / f"{args.name}.json", found)
        for failure in found["failures"]:
            print(f"failed: {failure}", file=sys.stderr)
        return 1 if found["failures"] else 0
    return write_page(
        PAGE,
        page([json.loads(file.read_text(encoding="utf-8")) for file in sorted(RECORDS.glob("*.json"))]),
        args.check,
    )


if __name__ == "__main__":
    sys.exit(main())
