"""Private names of torch stand in one file, are all there in this release, and are missed by name."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from jetvit import torch_private
from jetvit.torch_private import MissingFromTorch
from tests.test_architecture import in_rooms

# Private by name, and documented or as old as torch itself.
DOCUMENTED = {"torch.__version__", "torch._check"}


@pytest.mark.parametrize("name", sorted(set(torch_private.__all__) - {"MissingFromTorch", "SEEN", "pytree"}))
def test_this_torch_has_it(name: str) -> None:
    assert getattr(torch_private, name) is not None


def test_a_missing_name_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for place in ("torch._guards.NoSuchName", "torch._no_such_module.Name"):
        monkeypatch.setitem(torch_private._PLACES, "wanted", place)
        expected = f"torch {torch.__version__} has no {place}, which jetvit uses. It was there in torch 2.11.0"
        with pytest.raises(MissingFromTorch, match=re.escape(expected)):
            torch_private.wanted  # noqa: B018
        with pytest.raises(ImportError, match=re.escape(expected)):
            exec("from jetvit.torch_private import wanted")
    with pytest.raises(MissingFromTorch, match=r"has no Linear\._no_such_attribute"):
        torch_private.attribute_of(torch.nn.Linear(1, 1), "_no_such_attribute")
    with pytest.raises(AttributeError, match="has no attribute 'other'"):
        torch_private.other  # noqa: B018


def private_uses(path: Path) -> Iterator[str]:
    """Imports of private modules and names of torch, and chains of attributes that lead to one."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "torch":
            found = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            found = [alias.name for alias in node.names if alias.name.partition(".")[0] == "torch"]
        elif isinstance(node, ast.Attribute) and re.match(r"torch(\.\w+)+$", text := ast.unparse(node)):
            found = [] if text.startswith("torch.ops.") else [text]
        else:
            found = []
        for name in found:
            if re.search(r"\._", name) and not any(f"{name}.".startswith(f"{known}.") for known in DOCUMENTED):
                yield f"{path.name}:{node.lineno}: {name}"


def test_no_other_file_takes_one() -> None:
    others = [path for _, path in in_rooms() if path.name != "torch_private.py"]
    assert [use for path in others for use in private_uses(path)] == []


def test_such_a_use_would_be_seen(tmp_path: Path) -> None:
    path = tmp_path / "uses.py"
    for line in ("from torch._guards import tracing", "from torch.utils import _pytree", "import torch._dynamo"):
        path.write_text(line)
        assert len(list(private_uses(path))) == 1, line
    path.write_text("torch.ops.aten._unsafe_view, torch._check(True), torch.nn.Linear, tensor._version")
    assert list(private_uses(path)) == []
    path.write_text("isinstance(x, torch._subclasses.FakeTensor)")
    assert list(private_uses(path))
