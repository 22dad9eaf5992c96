"""Operators between the projections of q and k and their product."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import jetvit
from tests.passes.models import ROADS, assert_close, by_road, plan_of, planned
from tests.zoo.case import images, randomize
from tests.zoo.handwritten import SIZE, Attention, TinyViT, sdpa


@torch.library.custom_op("jetvit_tests::half", mutates_args=(), schema="(Tensor x) -> Tensor")
def half(x: Tensor) -> Tensor:
    """An operator that nobody knows."""
    return x * 0.5


@half.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


def turn(x: Tensor) -> Tensor:
    """A rotary embedding by complex numbers, each token by another angle."""
    angles = torch.outer(torch.arange(x.shape[-2]), torch.arange(x.shape[-1] // 2) / 10)
    pairs = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)).flatten(-2).type_as(x)


def on_both(change: Callable[[Tensor], Tensor], q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return sdpa(change(q), change(k), v)


KNOWN = [
    turn,
    lambda x: torch.fake_quantize_per_tensor_affine(x, 0.05, 0, -128, 127),
    lambda x: F.normalize(x, dim=-1),
    lambda x: F.elu(x) + 1,
    lambda x: torch.einsum("bhnd,de->bhne", x, torch.eye(x.shape[-1])),
]


@pytest.mark.parametrize("change", KNOWN, ids=["complex", "fake_quantize", "normalize", "elu", "einsum"])
@pytest.mark.parametrize("road", ROADS)
def test_what_keeps_the_tokens_in_place_keeps_the_site(change: Callable[[Tensor], Tensor], road: str) -> None:
    model, image = randomize(TinyViT(partial(Attention, partial(on_both, change)))), images(2, 3, *SIZE)
    sites = jetvit.find_attention(model, image)
    assert [site.grid for site in sites] == [(4, 6)] * 2
    plan = plan_of(sites)
    assert_close(by_road(road, model, ((image,), {}), plan)(image), planned(model, ((image,), {}), plan))


@pytest.mark.parametrize(
    ("change", "operator"), [(lambda x: torch.ops.jetvit_tests.half(x), "half"), (lambda x: x.sort(-1).values, "sort")]
)
def test_an_operator_that_is_not_known_is_named(change: Callable[[Tensor], Tensor], operator: str) -> None:
    model = randomize(TinyViT(partial(Attention, partial(on_both, change))))
    sites = jetvit.find_attention(model, images(2, 3, *SIZE))
    assert len(sites.rejected) == 2
    assert re.search(rf"the tokens of q or k were lost at \w+\.{operator}\.default", sites.rejected[0].reason)
