"""A model that collects inputs by **kwargs is captured with open sizes."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from jetvit.passes.frontends.capture import export_model
from tests.zoo import CASES


class Collects(nn.Module):
    """Multiplies an image by a gain that it collects by name; positional inputs are collected too."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 4)

    def forward(self, image: Tensor, *more: Tensor, **named: Any) -> Tensor:
        return sum(more, self.linear(image)) * named.get("gain", 1) + named["shift"]


OPEN = {0: Dim.DYNAMIC}
SHAPES: list[Any] = [
    (OPEN, (OPEN,), {"gain": OPEN, "shift": None}),
    {"image": OPEN, "more": (OPEN,), "named": {"gain": OPEN, "shift": None}},
]


@pytest.mark.parametrize("shapes", SHAPES, ids=["tuple", "dict"])
def test_collected_inputs_have_open_sizes(shapes: Any) -> None:
    def inputs(batch: int) -> tuple[tuple[Tensor, ...], dict[str, Any]]:
        return (torch.randn(batch, 5, 3), torch.randn(batch, 5, 4)), {"gain": torch.randn(batch, 5, 1), "shift": 2}

    model = Collects().eval()
    args, kwargs = inputs(2)
    program = export_model(model, args, kwargs, shapes)
    assert "forward" not in model.__dict__
    args, kwargs = inputs(7)
    torch.testing.assert_close(program.module()(*args, **kwargs), model(*args, **kwargs))


def test_constants_that_are_collected_need_no_shapes() -> None:
    model = Collects().eval()
    program = export_model(model, (torch.randn(2, 5, 3),), {"shift": 2}, {"image": OPEN})
    image = torch.randn(3, 5, 3)
    torch.testing.assert_close(program.module()(image, shift=2), model(image, shift=2))


def test_a_forward_of_the_instance_is_put_back() -> None:
    model = Collects().eval()
    own = model.forward
    model.forward = own  # type: ignore[method-assign]
    export_model(model, (torch.randn(2, 5, 3),), {"shift": 2}, ({0: Dim.DYNAMIC}, {"shift": None}))
    assert model.__dict__["forward"] is own


def test_a_model_of_transformers_that_returns_all_attentions() -> None:
    case = CASES["hf_vit_output_attentions"]
    model, (args, kwargs) = case.build(), case.inputs()
    program = export_model(model, args, kwargs, case.dynamic_shapes(args, kwargs))
    args, _ = case.inputs(batch=3)
    ours, theirs = program.module()(*args, **kwargs), model(*args, **kwargs)
    torch.testing.assert_close(ours[0], theirs[0])
