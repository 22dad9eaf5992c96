"""A planned attention that is in no graph of `torch.compile` is told of, and no other call is held up."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import jetvit
from jetvit.cost_model import Choice, Plan
from jetvit.patterns.errors import PlanError
from tests.passes.models import plan_of
from tests.zoo.case import images, randomize
from tests.zoo.handwritten import DIM, SCALE, Attention, TinyViT, sdpa

WARNED = "the plan changes blocks.0.attn and 1 more, and no graph of torch.compile had it in a whole call of the model"


def out_of_sight(model: TinyViT) -> TinyViT:
    """The model with attention that Dynamo runs as it is, as it does with V-JEPA 2's in `with sdp_kernel()`."""
    for block in model.blocks:
        block.attn.attend = torch._dynamo.disable(sdpa)
    return model


class Context:
    """Dynamo can enter it, and cannot break a graph inside of it: it leaves the whole function as it is."""

    def __enter__(self) -> None: ...

    def __exit__(self, *args: object) -> None: ...


def in_a_context(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    with Context():
        torch._dynamo.graph_break()
        scores = q @ k.transpose(-2, -1) * SCALE
        return scores.softmax(dim=-1) @ v


def twice(module: nn.Module, x: Tensor) -> Tensor:
    return module(module(x))


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(DIM, DIM)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.linear(x)


class OtherLayer(Layer):
    def forward(self, x: Tensor) -> Tensor:
        return x - self.linear(x)


class InPieces(TinyViT):
    """Breaks into several graphs, where `twice` is not compiled; one is run twice in a call, before any attention."""

    def __init__(self) -> None:
        super().__init__(partial(Attention, sdpa))
        self.first, self.twice = Layer(), twice

    def forward(self, image: Tensor) -> Tensor:
        x = self.twice(self.first, self.tokens(image))
        return self.blocks[1](self.blocks[0](x))


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch.compiler.reset()
    with torch.no_grad():
        yield


def planned(model: nn.Module) -> Plan:
    sites = jetvit.find_attention(model, image())
    assert len(sites) == 2
    return plan_of(sites, [Choice("window", window=(2, 2))])


def image() -> Tensor:
    return images(2, 3, 32, 48)


def compiled(model: nn.Module, plan: Any, **options: Any) -> Any:
    return torch.compile(model, backend="jetvit", options={"plan": plan, "inner": "eager", **options})


@pytest.mark.parametrize("skipped", [torch._dynamo.disable(sdpa), in_a_context], ids=["disabled", "context"])
@pytest.mark.parametrize("inner", ["eager", "inductor"])
def test_the_first_call_is_refused_at_its_end(skipped: Any, inner: str) -> None:
    model = randomize(TinyViT(partial(Attention, sdpa)))
    plan = planned(model)
    for block in model.blocks:
        block.attn.attend = skipped
    fast = compiled(model, plan, inner=inner)
    for _ in range(2):
        with pytest.raises(PlanError, match=WARNED):
            fast(image())


def test_a_call_of_the_model_inside_of_a_handler() -> None:
    """An error that is handled around the call is not one of the call."""
    model = randomize(TinyViT(partial(Attention, sdpa)))
    plan = planned(model)
    fast = compiled(out_of_sight(model), plan)
    try:
        raise KeyError
    except KeyError:
        with pytest.raises(PlanError, match=WARNED):
            fast(image())


def test_the_error_of_a_call_that_fails_is_not_hidden() -> None:
    model = randomize(TinyViT(partial(Attention, sdpa)))
    plan = planned(model)

    def fail(*args: Tensor) -> Tensor:
        raise KeyError("of the model")

    for block in model.blocks:
        block.attn.attend = torch._dynamo.disable(fail)
    fast = compiled(model, plan)
    with pytest.raises(KeyError, match="of the model"):
        fast(image())
    out_of_sight(model)
    with pytest.raises(PlanError, match=WARNED):
        fast(image())


def test_each_model_of_a_plan_is_watched() -> None:
    """A plan that was applied in one model is not taken for applied in the next."""
    model = randomize(TinyViT(partial(Attention, sdpa)))
    plan = planned(model)
    compiled(model, plan)(image())
    with pytest.raises(PlanError, match=WARNED):
        compiled(out_of_sight(model), plan)(image())


def test_instances_that_share_graphs() -> None:
    """The second compiles its own first layer alone and runs the blocks that were compiled for the first."""
    models = [randomize(InPieces()) for _ in range(2)]
    models[1].first = OtherLayer()
    plan = planned(models[0])
    for model in models:
        expected = jetvit.optimize(model, image(), plan=plan)(image())
        model.twice = torch._dynamo.disable(twice, recursive=False)
        fast = compiled(model, plan)
        for _ in range(2):
            torch.testing.assert_close(fast(image()), expected)


def test_a_folder_is_one_plan_for_all_graphs(tmp_path: Path) -> None:
    model = randomize(TinyViT(partial(Attention, sdpa)))
    planned(model).save(tmp_path / "plan")
    fast = compiled(out_of_sight(model), tmp_path / "plan")
    with pytest.raises(PlanError, match=WARNED):
        fast(image())


def test_a_warning_is_given_once(caplog: pytest.LogCaptureFixture) -> None:
    model = randomize(TinyViT(partial(Attention, sdpa)))
    plan = planned(model)
    fast = compiled(out_of_sight(model), plan, partial="warn")
    with caplog.at_level(logging.WARNING, "jetvit.dynamo.whole_calls"):
        results = [fast(image()) for _ in range(3)]
    assert [record.message.partition("\n")[0] for record in caplog.records if "whole_calls" in record.name] == [WARNED]
    assert all(torch.equal(result, model(image())) for result in results)


@pytest.mark.parametrize("kind", [InPieces, partial(TinyViT, partial(Attention, sdpa))], ids=["pieces", "whole"])
def test_what_is_complete_is_not_held_up(kind: Any) -> None:
    model = randomize(kind())
    plan = planned(model)
    expected = jetvit.optimize(model, image(), plan=plan)(image())
    model.twice = torch._dynamo.disable(twice, recursive=False)
    fast = compiled(model, plan)
    for _ in range(3):
        torch.testing.assert_close(fast(image()), expected)
