"""docs/bad-inputs.md says what the command line says, and every refusal names what to do."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks import bad_inputs
from jetvit.models.torchvision_shim import ensure_torchvision

ensure_torchvision()
pytest.importorskip("timm")
pytest.importorskip("transformers")
pytest.importorskip("onnx")

# The words of other libraries differ from release to release; those of timm's models too.
FOREIGN = r"(?<=why: )(\w*Error: |it is no JSON: |the nearest names are ).*"


def test_the_page_says_what_the_code_says():
    page = bad_inputs.PAGE.read_text(encoding="utf-8")
    assert re.sub(FOREIGN, r"\1…", bad_inputs.page()) == re.sub(FOREIGN, r"\1…", page), (
        "write it again: python -m benchmarks.bad_inputs"
    )


def test_every_refusal_says_what_is_wrong_and_what_to_do():
    page = bad_inputs.PAGE.read_text(encoding="utf-8")
    messages = re.findall(r"```console\n\$ jetvit.*\n((?:.*\n)+?)```", page)
    assert len(messages) == sum(map(len, bad_inputs.SECTIONS.values())) >= 40
    for message in messages[1:]:  # `jetvit` alone prints its help
        assert re.search(r"^error: .+$", message, re.MULTILINE)
        assert re.search(r"^  do: .+$", message, re.MULTILINE)
    assert not re.search(r"/(tmp|home|work|usr|root)\b", page)


def test_a_command_that_is_not_refused_is_noticed():
    with bad_inputs.bad_files(), pytest.raises(AssertionError, match="is not refused"):
        bad_inputs.run(bad_inputs.explain("a good model", *bad_inputs.SIZE))


def test_check(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(bad_inputs, "page", lambda: "new\n")
    monkeypatch.setattr(bad_inputs, "PAGE", tmp_path / "page.md")
    assert bad_inputs.main(["--check"]) == 1
    assert bad_inputs.main([]) == 0
    assert bad_inputs.main(["--check"]) == 0
