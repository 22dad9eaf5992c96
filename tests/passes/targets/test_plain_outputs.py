"""Outputs without classes, of modules and of programs."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from jetvit.passes.targets.plain_outputs import plain_program, with_plain_outputs
from tests.passes.models import exported
from tests.zoo import CASES
from tests.zoo.handwritten import Features

IMAGE = torch.arange(6.0).view(2, 3)
Pair = namedtuple("Pair", "first second")


class Returns(nn.Module):
    """Adds to a buffer, and returns whatever a function makes of the image."""

    def __init__(self, function: Any):
        super().__init__()
        self.function = function
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, image: Tensor, *, scale: float = 2.0) -> Any:
        self.calls += 1
        return self.function(image * scale)


def features(x: Tensor) -> Any:
    return [Features(cls=x, patches=x + 1), (x + 2, None)]


CASES_OF_OUTPUTS = {
    "tensor": (lambda x: x, lambda x: x),
    "pair": (lambda x: Pair(x, x + 1), lambda x: {"first": x, "second": x + 1}),
    "nested": (features, lambda x: [{"cls": x, "patches": x + 1}, (x + 2, None)]),
    "ordered": (lambda x: OrderedDict(b=x, a=None, c=x + 1), lambda x: {"b": x, "c": x + 1}),
    "twice": (lambda x: {"a": x, "b": x, "c": [x]}, lambda x: {"a": x, "b": x, "c": [x]}),
}


@pytest.mark.parametrize("name", CASES_OF_OUTPUTS)
def test_a_module_and_its_program_return_the_same_plain_outputs(name: str) -> None:
    function, plain = CASES_OF_OUTPUTS[name]
    model = Returns(function)
    expected = plain(3 * IMAGE)
    found = with_plain_outputs(model)(IMAGE, scale=3.0)
    assert type(found) is type(expected)
    torch.testing.assert_close(found, expected)
    program = torch.export.export(model, (IMAGE,), {"scale": 3.0}, strict=False)
    result = plain_program(program)
    result.validate()
    module = result.module()
    before = module.calls.clone()
    torch.testing.assert_close(module(IMAGE, scale=3.0), expected)
    assert str(module(IMAGE, scale=3.0)) == str(expected)
    assert module.calls == before + 2
    assert plain_program(result) is result
    if name in ("tensor", "twice"):
        assert result is program


def test_the_program_given_is_not_touched() -> None:
    _, inputs, program = exported("dict_to_dataclass")
    text, spec = str(program.graph), program.call_spec.out_spec
    found = plain_program(program).module()(*inputs[0], **inputs[1])
    assert list(found) == ["cls", "patches"]
    assert str(program.graph) == text
    assert program.call_spec.out_spec == spec
    assert isinstance(program.module()(*inputs[0], **inputs[1]), Features)


def test_a_module_shares_its_weights() -> None:
    model = CASES["dict_to_dataclass"].build()
    plain = with_plain_outputs(model)
    assert all(ours is theirs for ours, theirs in zip(plain.parameters(), model.parameters(), strict=True))
    assert "forward" not in vars(model)
