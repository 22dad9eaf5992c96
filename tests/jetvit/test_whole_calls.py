"""A planned attention that is in no graph of `torch.compile` is told of, and no other call is held up."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import jetvit
from jetvit.cost_model import Choice, Fingerprint, Plan, SitePlan
from jetvit.patterns.errors import PlanError
from tests.zoo.case import images, randomize
from tests.zoo.handwritten import DIM, Attention, TinyViT, sdpa

WARNED = "the plan changes blocks.0.attn and 1 more, and no graph of torch.compile had it in a whole call of the model"


def in_a_context(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """V-JEPA 2's: Dynamo cannot follow this `with`, and runs the function around it as it is."""
    with torch.backends.cuda.sdp_kernel():
        return F.scaled_dot_product_attention(q, k, v)


def twice(module: nn.Module, x: Tensor) -> Tensor:
    return module(module(x))


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(DIM, DIM)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.linear(x)


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
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore", FutureWarning)
        yield


def planned(model: nn.Module) -> Plan:
    sites = jetvit.find_attention(model, image())
    assert len(sites) == 2
    return Plan(tuple(SitePlan(s.name, Choice("window", window=(2, 2))) for s in sites), Fingerprint.of(sites))


def image() -> Tensor:
    return images(2, 3, 32, 48)


def compiled(model: nn.Module, plan: Any, **options: Any) -> Any:
    return torch.compile(model, backend="jetvit", options={"plan": plan, "inner": "eager", **options})


def test_the_second_call_is_refused() -> None:
    model = randomize(TinyViT(partial(Attention, in_a_context)))
    fast = compiled(model, planned(model))
    fast(image())
    for _ in range(2):
        with pytest.raises(PlanError, match=WARNED):
            fast(image())


def test_a_folder_is_one_plan_for_all_graphs(tmp_path: Path) -> None:
    model = randomize(TinyViT(partial(Attention, in_a_context)))
    planned(model).save(tmp_path / "plan")
    fast = compiled(model, tmp_path / "plan")
    fast(image())
    with pytest.raises(PlanError, match=WARNED):
        fast(image())


def test_a_warning_is_given_once(caplog: pytest.LogCaptureFixture) -> None:
    model = randomize(TinyViT(partial(Attention, in_a_context)))
    fast = compiled(model, planned(model), partial="warn")
    with caplog.at_level(logging.WARNING, "jetvit.whole_calls"):
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
