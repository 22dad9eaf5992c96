"""An editable install is found from every folder, also from the one above a clone called jetvit."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BUILD = "import sys; sys.path.insert(0, 'tools'); from build_backend import build_editable; build_editable(sys.argv[1])"
SHOW = "import jetvit, jetvit.passes; print(jetvit.__file__, jetvit.passes.__file__, callable(jetvit.optimize))"


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone called jetvit, with its installation in the folder `site` beside it."""
    pytest.importorskip("setuptools", "77")
    above = tmp_path_factory.mktemp("above")
    clone = above / "jetvit"
    clone.mkdir()
    for name in ("jetvit", "kernels", "patterns", "cost_model", "passes", "search", "tools"):
        shutil.copytree(ROOT / name, clone / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, clone)
    subprocess.run([sys.executable, "-c", BUILD, str(above)], cwd=clone, check=True, capture_output=True, timeout=300)
    (wheel,) = above.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(above / "site")
    return clone


def python(clone: Path, cwd: Path, *words: str) -> str:
    """What a fresh Python prints to which the clone is installed."""
    found = subprocess.run(
        [sys.executable, *words],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(clone.parent / "site")},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert found.returncode == 0, found.stderr
    return found.stdout


@pytest.mark.parametrize("folder", [".", "..", "../site", "passes"])
def test_the_checkout_is_imported_from_every_folder(clone: Path, folder: str):
    expected = f"{clone / 'jetvit' / '__init__.py'} {clone / 'passes' / '__init__.py'} True"
    assert python(clone, clone / folder, "-c", SHOW).strip() == expected


def test_the_module_runs_from_the_folder_above(clone: Path):
    assert python(clone, clone.parent, "-m", "jetvit", "--version").startswith("jetvit ")


def test_the_record_lists_the_package_that_loads_the_checkout(clone: Path):
    (record,) = (clone.parent / "site").glob("*.dist-info/RECORD")
    assert "jetvit/__init__.py,sha256=" in record.read_text()
