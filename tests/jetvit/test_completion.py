"""`jetvit completion`: the script for bash completes commands, options, values and files."""

from __future__ import annotations

import builtins
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from jetvit.cli import main
from jetvit.commands import COMMANDS
from jetvit.commands.completion import SHELLS

# Bash sets these variables, then calls the function of the command that is completed.
COMPLETE = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}
[[ $(complete -p jetvit) =~ -F\\ ([^ ]+) ]] && "${BASH_REMATCH[1]}"
printf '%s\\n' "${COMPREPLY[@]}"
"""


def script(shell: str, capsys: pytest.CaptureFixture[str]) -> str:
    pytest.importorskip("shtab")
    assert main(["completion", shell]) == 0
    return capsys.readouterr().out


@pytest.mark.skipif(shutil.which("bash") is None, reason="runs the script in bash, and there is none")
def test_bash_completes_commands_options_values_and_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "jetvit.bash").write_text(script("bash", capsys))
    (tmp_path / "photos").mkdir()
    (tmp_path / "plan").mkdir()
    for name in ("page.html", "program.pt2"):
        (tmp_path / name).touch()

    def complete(*words: str) -> set[str]:
        command = ["bash", "-c", COMPLETE, "bash", "jetvit.bash", "jetvit", *words]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60)
        return set(done.stdout.split())

    assert complete("") >= set(COMMANDS)
    assert complete("ex") == {"explain", "export"}
    assert complete("explain", "--d") == {"--debug", "--device", "--dtype", "--dynamic"}
    assert complete("export", "model", "--target", "o") == {"onnx"}
    assert complete("explain", "p") == {"page.html", "photos", "plan", "program.pt2"}
    assert complete("explain", "model", "--html", "pa") == {"page.html"}
    assert complete("explain", "model", "--plan", "pl") == {"plan"}
    assert complete("calibrate", "model", "--images", "p") == {"photos", "plan"}
    assert complete("completion", "") >= set(SHELLS)


@pytest.mark.parametrize("shell", SHELLS)
def test_every_shell_has_a_script_with_every_command(shell: str, capsys: pytest.CaptureFixture[str]):
    text = script(shell, capsys)
    assert all(name in text for name in (*COMMANDS, "max-drift"))


def test_without_shtab_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    real = builtins.__import__

    def no_shtab(name: str, *args: Any, **options: Any) -> Any:
        if name == "shtab":
            raise ImportError("No module named 'shtab'")
        return real(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", no_shtab)
    assert main(["completion", "bash"]) == 1
    assert "do: pip install 'jetvit[completion]'" in capsys.readouterr().err
