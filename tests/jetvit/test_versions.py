"""A release that was never tested is warned of by name, once; a tested one and its patches are not."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from jetvit.versions import TESTED, installed, numbers, untested_releases

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("release", "tested"),
    [
        ("2.11.0", True),
        ("2.13.0+cpu", True),
        ("2.13.9", True),
        ("2.12.0a0+git123", True),
        ("2.10.1", False),
        ("2.99.0", False),
        ("3.0.0", False),
    ],
)
def test_which_releases_count_as_tested(release: str, tested: bool) -> None:
    expected = [] if tested else [f"torch {release} ({' to '.join(TESTED['torch'])} were)"]
    assert list(untested_releases({"torch": release})) == expected


def test_the_import_warns_once_and_names_all() -> None:
    code = (
        "import importlib.metadata as metadata, warnings\n"
        "real = metadata.version\n"
        "metadata.version = lambda name: {'torch': '2.99.0', 'timm': '0.9.1'}.get(name) or real(name)\n"
        "with warnings.catch_warnings(record=True) as seen:\n"
        "    warnings.simplefilter('always')\n"
        "    import jetvit, jetvit.api\n"
        "for each in seen:\n"
        "    if 'never tested' in str(each.message): print(each.filename, each.message)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    (line,) = result.stdout.splitlines()
    assert re.match(r"<string> jetvit was never tested with .*torch 2.99.0 \(2.11.0 to 2.\d+.\d were\)", line)
    assert "timm 0.9.1 (1.0." in line


def test_the_releases_at_hand_were_tested() -> None:
    """The suite runs on them now: `TESTED` is behind if this fails. Of other packages a new release may be out."""
    here = installed()
    assert list(untested_releases({name: here[name] for name in ("torch", "triton")})) == []


def test_floors_are_the_oldest_releases_that_the_tests_run_on() -> None:
    """Of every package that pyproject.toml asks for, but the tools, constraints-oldest.txt has the floor."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    asked = [
        *project["dependencies"],
        *(each for name in ("models", "onnx", "search", "test") for each in extras[name]),
    ]
    floors = dict(match.groups() for each in asked if (match := re.match(r"([\w-]+)>=([\d.]+)", each)))
    lines = (ROOT / "constraints-oldest.txt").read_text().splitlines()
    oldest = dict(line.split("==") for line in lines if "==" in line)
    for name, floor in floors.items():
        if name not in ("ruff", "mypy"):
            first, second = ([*each.split("."), "0", "0"][:3] for each in (floor, oldest[name]))
            assert first == second, f"{name}: {floor} is asked for, {oldest[name]} is tested"
    for name, (first, last) in TESTED.items():
        if name != "Python":
            assert numbers(oldest[name]) <= numbers(first) <= numbers(last)
