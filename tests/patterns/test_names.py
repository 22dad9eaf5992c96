"""Names: one for a module, whichever tracer wrote the path."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.fx import Graph

from jetvit.patterns.names import clean_name, module_name, source_line, unique
from tests.patterns.roads import by_dynamo
from tests.zoo import CASES


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("", ""),
        ("L['self']", ""),
        ("L['self'].layer[0].attn", "layer.0.attn"),
        ("L['self']._modules['blocks']._modules['0']", "blocks.0"),
        ("L['self']._modules['blocks']._modules['0']._parameters['weight']", "blocks.0.weight"),
        ("L['self']._buffers['periods']", "periods"),
        ("L['self'].blocks.0.attn", "blocks.0.attn"),
        ("L['fn'].blocks.slice(None, None, None)[3].attn", "blocks.slice(None, None, None).3.attn"),
        ("L['args'][0].encoder.layers.encoder_layer_1", "encoder.layers.encoder_layer_1"),
        ("L['fn'].__self__.blocks[11]", "blocks.11"),
        ("G['model'].x", "x"),
        ("blocks.0.attn", "blocks.0.attn"),
        ("blocks.0.attn@1", "blocks.0.attn"),
        ("blocks.0@2.attn@1", "blocks.0.attn"),
        # A class with a `__getattr__`, and a block that was compiled by itself.
        ("L['self'].__dict__['_modules']['base']._modules['blocks']._modules['0']", "base.blocks.0"),
        ("L['self'].__dict__['_modules']['base']._buffers['periods']", "base.periods"),
        ("L['self']._modules['blocks']._modules['0']._orig_mod.attn", "blocks.0.attn"),
    ],
)
def test_clean_name(path: str, name: str) -> None:
    assert clean_name(path) == name


fqns = st.lists(st.from_regex(r"[a-z][a-z0-9_]{0,8}|[0-9]{1,2}", fullmatch=True), min_size=1, max_size=5)


@given(fqns)
def test_every_spelling_of_a_path_has_one_name(parts: list[str]) -> None:
    name = ".".join(parts)
    spellings = [
        name,
        "L['self']." + name,
        "L['self']" + "".join(f"._modules['{part}']" for part in parts),
        "L['args'][0]" + "".join(f"[{part}]" if part.isdigit() else f".{part}" for part in parts),
        name + "@1",
    ]
    assert {clean_name(each) for each in spellings} == {name}
    assert clean_name(clean_name(name)) == name


@given(st.lists(st.sampled_from(["a", "b", "blocks.0.attn"])))
def test_unique(names: list[str]) -> None:
    """Distinct, in order, and the first of each keeps its name."""
    result = unique(names)
    assert len(set(result)) == len(names)
    assert [each.partition("#")[0] for each in result] == names
    assert all(each in result for each in names)
    assert unique(["a", "b", "a", "a"]) == ["a", "b", "a#1", "a#2"]


def test_innermost_module() -> None:
    node = Graph().placeholder("x")
    assert module_name(node) == ""
    node.meta["nn_module_stack"] = {
        "1": ("", object),
        "2": ("L['self'].blocks[0]", object),
        "3": ("blocks.0.attn", object),
    }
    assert module_name(node) == "blocks.0.attn"


def test_source_line() -> None:
    node = Graph().placeholder("x")
    assert source_line(node) == ""
    node.meta["stack_trace"] = (
        'File "m.py", line 3, in outer\n    y = f(x)\n  File "n.py", line 12, in forward\n    return x + 1\n'
    )
    assert source_line(node) == "n.py:12 in forward: return x + 1"
    node.meta["stack_trace"] = 'File "n.py", line 12, in forward\n'
    assert source_line(node) == "n.py:12 in forward"


class Wrapped(torch.nn.Module):
    """A model inside another one, reached through an attribute."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.inner(image)


def test_names_of_a_wrapped_model_and_of_a_compiled_method() -> None:
    case = CASES["dinov2_repo"]
    model, inputs = case.build(), case.inputs()
    assert [site.name for site in by_dynamo(Wrapped(model), *inputs).sites] == [f"inner.{name}" for name in case.names]
    assert [site.name for site in by_dynamo(model.forward, *inputs).sites] == list(case.names)
    assert [site.name for site in by_dynamo(lambda image: model(image), *inputs).sites] == list(case.names)
