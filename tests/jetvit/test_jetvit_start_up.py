"""What `import jetvit` and the command line import, counted in modules: their number does not vary as seconds do."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import jetvit
from jetvit.cli import COMMANDS

ROOT = Path(__file__).parents[2]


def modules_after(code: str, *argv: str) -> set[str]:
    """The modules of a fresh process after `code`."""
    code = f"import sys\n{code}\nimport json; print('\\n' + json.dumps(list(sys.modules)))"
    command = [sys.executable, "-c", code, *argv]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=120)
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_import_adds_little_to_the_import_of_torch() -> None:
    added = modules_after("import torch, jetvit") - modules_after("import torch")
    assert {".".join(name.split(".")[:2]) for name in added} == {
        "jetvit",
        "jetvit.kernels",
        "jetvit.torch_private",
        "jetvit.versions",
    }


@pytest.mark.parametrize("option", ["--version", "--help", "no-such-command"])
def test_help_and_version_import_no_torch(option: str) -> None:
    command = f"sys.argv = ['jetvit', {option!r}]\nfrom jetvit.cli import main\nmain()"
    loaded = modules_after(command)
    assert "jetvit.cli" in loaded
    assert not {"torch", "numpy"} & loaded


def test_python_m_jetvit_imports_no_torch_for_its_version() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "jetvit", "--version"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout == f"jetvit {jetvit.__version__}\n"
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "jetvit.cli" in imported
    assert "torch" not in imported


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_each_summary_is_that_of_the_commands_file(name: str) -> None:
    module = __import__(f"jetvit.commands.{name}", fromlist=["__doc__"])
    assert (module.__doc__ or "").partition("\n")[0] == f"{COMMANDS[name]}."


def test_a_public_name_is_no_module_of_the_same_name() -> None:
    code = (
        "import jetvit.search.calibration.best_plan, jetvit.explain, jetvit.search as room\n"
        "assert all(callable(getattr(jetvit, name)) or name[0].isupper() for name in jetvit.__all__)\n"
        "from jetvit import search\n"
        "assert search is jetvit.search and search.__name__ == 'search'\n"
        "import jetvit.patterns.find\n"
        "assert jetvit.patterns.find_sites and jetvit.cost_model.Plan is jetvit.Plan"
    )
    modules_after(code)


def test_every_public_name_is_there_and_listed() -> None:
    assert set(jetvit.__all__) == set(jetvit._MODULES)
    assert set(jetvit.__all__) <= set(dir(jetvit))
    with pytest.raises(AttributeError, match="module 'jetvit' has no attribute 'serach'"):
        jetvit.serach  # type: ignore[attr-defined]  # noqa: B018


def test_the_import_alone_registers_the_operators() -> None:
    names = ("full_attention", "linear_attention", "window_attention")
    modules_after(f"import jetvit, torch\nassert all(hasattr(torch.ops.jetvit, name) for name in {names})")
