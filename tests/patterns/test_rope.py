"""Rotary embeddings: recognised in two styles, and what is recognised really is that rotation."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from jetvit.patterns.regions import GraphView
from tests.patterns.roads import ROADS, Captured, by_dynamo, by_export, of_case
from tests.zoo import CASES, found
from tests.zoo.case import randomize
from tests.zoo.handwritten import RopeAttention, RopeViT, rotate_half, rotate_interleaved

STYLES = {"half": rotate_half, "interleaved": rotate_interleaved}
ROAD = pytest.mark.parametrize("road", ROADS)


def assert_true(captured: Captured) -> None:
    """x · cos + rotate(x) · sin of what a site names, on the last tokens, gives the q and k of its attention."""
    view = GraphView(captured.graphs[0].module)
    for site in captured.sites:
        assert site.rope is not None
        nodes = (site.rope.cos, site.rope.sin, site.rope.q, site.rope.k, site.q.node, site.k.node)
        cos, sin, q, k, *after = (captured.values[view.resolve(node)].detach() for node in nodes)
        for x, expected in zip((q, k), after, strict=True):
            kept, turned = x.split([x.shape[-2] - cos.shape[-2], cos.shape[-2]], dim=-2)
            turned = turned * cos + STYLES[site.rope.style](turned) * sin
            torch.testing.assert_close(torch.cat([kept, turned], dim=-2), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", [case.name for case in found() if case.rope])
def test_recognised(name: str) -> None:
    assert_true(of_case(name, "export"))


@pytest.mark.parametrize("name", ["rope_half", "rope_interleaved"])
def test_recognised_by_dynamo(name: str) -> None:
    assert_true(of_case(name, "dynamo"))


@ROAD
def test_none(road: str) -> None:
    assert {site.rope for site in of_case("sdpa", road).sites} == {None}


def rotate_backwards(x: Tensor) -> Tensor:
    a, b = x.chunk(2, dim=-1)
    return torch.cat([b, -a], dim=-1)


def swap_halves(x: Tensor) -> Tensor:
    a, b = x.chunk(2, dim=-1)
    return torch.cat([-a, b], dim=-1)


def rotate_thirds(x: Tensor) -> Tensor:
    a, b = x.split([4, x.shape[-1] - 4], dim=-1)
    return torch.cat([-b, a], dim=-1)


def odd_first(x: Tensor) -> Tensor:
    return torch.stack([-x[..., ::2], x[..., 1::2]], dim=-1).reshape(x.shape)


class TwiceTheSine(RopeAttention):
    """Adds the turned half with a factor."""

    def rope(self, x: Tensor, sin: Tensor, cos: Tensor) -> Tensor:
        kept, turned = x.split([x.shape[2] - sin.shape[0], sin.shape[0]], dim=2)
        return torch.cat([kept, torch.add(turned * cos, self.rotate(turned) * sin, alpha=2)], dim=2)


class ForeignPrefix(RopeAttention):
    """Keeps the prefix of another tensor than the one that is rotated."""

    def rope(self, x: Tensor, sin: Tensor, cos: Tensor) -> Tensor:
        return torch.cat([2 * x[:, :, :3], super().rope(x, sin, cos)[:, :, 3:]], dim=2)


class OnlyKeys(RopeAttention):
    """Rotates k and not q."""

    def forward(self, x: Tensor, sin: Tensor, cos: Tensor) -> Tensor:
        q, k, v = self.split(x)
        return self.proj(self.attend(q, self.rope(k, sin, cos), v).transpose(1, 2).reshape(x.shape))


class TwoTables(RopeAttention):
    """Turns k twice as far as q."""

    def forward(self, x: Tensor, sin: Tensor, cos: Tensor) -> Tensor:
        q, k, v = self.split(x)
        double_sin, double_cos = 2 * sin * cos, cos * cos - sin * sin
        out = self.attend(self.rope(q, sin, cos), self.rope(k, double_sin, double_cos), v)
        return self.proj(out.transpose(1, 2).reshape(x.shape))


@pytest.mark.parametrize(
    "attention",
    [partial(RopeAttention, each) for each in (rotate_backwards, swap_halves, rotate_thirds, odd_first)]
    + [partial(each, rotate_half) for each in (OnlyKeys, TwoTables, ForeignPrefix, TwiceTheSine)],
    ids=["backwards", "swapped", "uneven", "odd_first", "only_keys", "two_tables", "foreign_prefix", "twice_the_sine"],
)
def test_near_misses_stay_outside(attention: Callable[[], Any]) -> None:
    """Another rotation is no obstacle to a site; it is just not claimed."""

    class Model(RopeViT):
        def __init__(self) -> None:
            super().__init__(interleaved=False)
            for block in self.blocks:
                block.attn = attention()

    captured = by_export(randomize(Model()), *CASES["rope_half"].inputs())
    assert [site.rope for site in captured.sites] == [None, None]
    for each in captured.attentions:
        each.assert_true()


def test_open_sizes() -> None:
    case = CASES["rope_half"]
    model, (args, kwargs) = case.build(), case.inputs()
    for captured in (
        by_export(model, args, kwargs, case.dynamic_shapes(args, kwargs)),
        by_dynamo(model, args, kwargs, (0, 2, 3)),
    ):
        assert {site.rope and site.rope.style for site in captured.sites} == {"half"}
        assert_true(captured)
