"""Windows that are made by hand: a mask over pairs of tokens, and a check of the rewrite against it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import jetvit
from jetvit.cost_model import Choice
from jetvit.patterns import Sites
from tests.passes.models import plan_of
from tests.zoo.sweep_oracle import Size, Tokens, window_mask

WINDOW = (2, 3)
FORBIDDEN = -1e9
"""Added to the score of a pair of tokens in different windows."""


def window_bias(grid: Size, before: int = 0) -> Tensor:
    """[tokens, tokens]: 0 where two tokens are in one window or one of them is an extra token, else `FORBIDDEN`."""
    sees = window_mask(Tokens(before, grid, 0), WINDOW)
    return torch.zeros(sees.shape).masked_fill(~sees, FORBIDDEN)


def assert_windows(model: nn.Module, oracle: nn.Module, x: Tensor, grid: Size, sites: int = 1) -> Sites:
    """The rewrite without a plan is the model, and with windows it is the oracle, on both frontends."""
    found = jetvit.find_attention(model, x)
    assert [site.grid for site in found] == [grid] * sites, found.rejected
    plan = plan_of(found, [Choice("window", window=WINDOW)])
    with torch.no_grad():
        before, windowed = model(x), oracle(x)
        assert (before - windowed).norm() > 0.01 * before.norm()
        torch.testing.assert_close(jetvit.optimize(model, x)(x), before, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(jetvit.optimize(model, x, plan=plan)(x), windowed, rtol=1e-5, atol=1e-5)
        torch._dynamo.reset()
        compiled = torch.compile(model, backend="jetvit", options={"plan": plan, "inner": "eager"})
        torch.testing.assert_close(compiled(x), windowed, rtol=1e-5, atol=1e-5)
    return found


def assert_windows_of_open_sizes(
    model: nn.Module, oracle: nn.Module, x: Tensor, other: Tensor, dims: tuple[int, ...]
) -> None:
    """The same for a graph of open sizes along some axes, which was captured for `x` and runs on `other` too."""
    shapes = (dict.fromkeys(dims, torch.export.Dim.DYNAMIC),)
    found = jetvit.find_attention(model, x, dynamic_shapes=shapes)
    plan = plan_of(found, [Choice("window", window=WINDOW)])
    assert plan.sites, found.rejected
    optimized = jetvit.optimize(model, x, plan=plan, dynamic_shapes=shapes)
    torch._dynamo.reset()
    compiled: Any = torch.compile(model, backend="jetvit", dynamic=True, options={"plan": plan, "inner": "eager"})
    with torch.no_grad():
        for each in (x, other):
            torch.testing.assert_close(optimized(each), oracle(each), rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(compiled(each), oracle(each), rtol=1e-5, atol=1e-5)


def reasons(model: nn.Module, x: Tensor) -> list[str]:
    """Why the attentions of a model are refused, of which none is found; what is left alone computes the same."""
    found = jetvit.find_attention(model, x)
    assert not found
    with torch.no_grad():
        torch.testing.assert_close(jetvit.optimize(model, x)(x), model(x))
    return [rejection.reason for rejection in found.rejected]
