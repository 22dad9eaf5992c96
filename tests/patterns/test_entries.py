"""What entries are computed from, held against the entries that come out when the graph is run."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx

from jetvit.patterns.entries import TIME, Entries, Place, deal, shift
from jetvit.patterns.lengths import Lengths
from jetvit.patterns.regions import GraphView
from jetvit.patterns.storage import written

aten = torch.ops.aten


def entries_of(function: Callable[..., Tensor], *args: Tensor) -> tuple[Entries, Node, GraphModule]:
    """The entries of a traced function's graph and the node of its result."""
    graph = make_fx(function, pre_dispatch=True, tracing_mode="fake")(*args)
    view = GraphView(graph)
    return Entries(view, Lengths(view.nodes), written(view)), graph.graph.output_node().args[0], graph


def number(place: tuple[int, ...], shape: torch.Size) -> Place:
    """A place of numbers alone."""
    return tuple(() if size == 1 else ((index, size),) for index, size in zip(place, shape, strict=True))


def named(shape: torch.Size) -> Place:
    """The place that every axis has its own name for."""
    return tuple(() if size == 1 else ((f"axis {dim}", size),) for dim, size in enumerate(shape))


def assert_true(function: Callable[..., Tensor], *args: Tensor) -> None:
    """Entries of one value are equal, and along an axis that the value does not name nothing changes."""
    entries, node, graph = entries_of(function, *args)
    out = graph(*args)
    seen: dict[int, Any] = {}
    for place in itertools.product(*map(range, out.shape)):
        value = entries.value(node, number(place, out.shape))
        assert torch.equal(seen.setdefault(value, out[place]), out[place])
    coordinates = entries.coordinates(entries.value(node, named(out.shape)))
    for dim, size in enumerate(out.shape):
        if f"axis {dim}" not in coordinates and size:
            assert torch.equal(out, out.narrow(dim, 0, 1).expand_as(out))


# --- laws -------------------------------------------------------------------------------------------------------------


@st.composite
def steps(draw: st.DrawFn) -> list[Callable[[Tensor], Tensor]]:
    """A few operators that can follow one another whatever the shape is."""

    def dim(x: Tensor) -> int:
        return pick % x.dim()

    chosen: list[Callable[[Tensor], Tensor]] = []
    for _ in range(draw(st.integers(1, 5))):
        pick = draw(st.integers(0, 5))
        kinds: list[Callable[..., Tensor]] = [
            lambda x, d: x.unsqueeze(d),
            lambda x, d: x.flatten(0, d),
            lambda x, d: x.transpose(0, d),
            lambda x, d: x.movedim(0, d).permute(list(range(x.dim()))[::-1]),
            lambda x, d: torch.cat([x, x], d),
            lambda x, d: torch.cat([x, 2 * x, x.cos()], d),
            lambda x, d: torch.stack([x, x.sin()], d),
            lambda x, d: x.chunk(2, d)[-1],
            lambda x, d: x.unbind(d)[-1] if x.dim() > 1 else x,
            lambda x, d: x.select(d, -1) if x.dim() > 1 else x,
            lambda x, d: x.narrow(d, 0, max(x.shape[d] // 2, 1)),
            lambda x, d: x[..., -(x.shape[-1] // 2) :] if x.shape[-1] > 1 else x,
            lambda x, d: x.unflatten(d, (2, -1)) if x.shape[d] % 2 == 0 else x,
            lambda x, d: x.tile(2),
            lambda x, d: x.repeat([1 + (i == d) for i in range(x.dim())]),
            lambda x, d: x.unsqueeze(0).expand(2, *x.shape),
            lambda x, d: x.to(torch.bfloat16).float(),
            lambda x, d: x + torch.arange(x.shape[d]).view([-1 if i == d else 1 for i in range(x.dim())]),
            lambda x, d: x * x.sum(d, keepdim=True),
            lambda x, d: x.flip(d),
            lambda x, d: torch.meshgrid(x.flatten()[:4], x.flatten()[:3], indexing="ij")[d % 2],
            lambda x, d: torch.meshgrid(x.flatten()[:4], x.flatten()[:3], indexing="xy")[d % 2],
        ]
        kind = kinds[draw(st.integers(0, len(kinds) - 1))]
        chosen.append(lambda x, kind=kind, pick=pick: kind(x, pick % x.dim()))
    return chosen


@settings(max_examples=150, deadline=None)
@given(steps=steps(), shape=st.sampled_from([(6,), (2, 3), (4, 1, 2), (2, 2, 2)]))
def test_what_is_said_of_entries_is_true(steps: list[Callable[[Tensor], Tensor]], shape: tuple[int, ...]) -> None:
    def function(x: Tensor) -> Tensor:
        for step in steps:
            x = step(x)
            if x.numel() > 400:
                break
        return x

    torch.manual_seed(0)
    assert_true(function, torch.randn(shape))


# --- what is understood -----------------------------------------------------------------------------------------------

H, W = 3, 4


def meshed(y: Tensor, x: Tensor) -> Tensor:
    return torch.stack(torch.meshgrid(y, x, indexing="ij"), dim=-1).flatten(0, 1)


UNDERSTOOD = {
    "meshgrid": meshed,
    "meshgrid xy": lambda y, x: torch.stack(torch.meshgrid(x, y, indexing="xy")[::-1], dim=-1).flatten(0, 1),
    "expand": lambda y, x: torch.stack([y[:, None].expand(H, W), x.expand(H, W)], -1).reshape(H * W, 2),
    "expand_as": lambda y, x: torch.stack(
        [aten.expand_as(y[:, None], torch.zeros(H, W)), aten.expand_as(x, torch.zeros(H, W))], -1
    ).view(-1, 2),
    "repeat": lambda y, x: torch.stack([y[:, None].repeat(1, W).flatten(), x.repeat(H)], 1),
    "tile": lambda y, x: torch.cat([y[:, None].tile(W).reshape(-1, 1), x.tile(H)[:, None]], 1),
    "broadcast": lambda y, x: torch.stack([y[:, None] + 0 * x, 0 * y[:, None] + x], -1).flatten(0, 1),
    "turned": lambda y, x: torch.stack([y.expand(W, H).t().flatten(), x.expand(H, W).flatten()]).transpose(0, 1),
    "elementwise": lambda y, x: 2 * meshed((y + 0.5) / H, (x + 0.5) / W) - 1,
    "rounded": lambda y, x: meshed(y, x).to(torch.bfloat16).float(),
    "what is not followed": lambda y, x: meshed((y[:, None] @ y[None]).sum(1), x.cumsum(0)),
}


@pytest.mark.parametrize("name", UNDERSTOOD)
def test_rows_and_columns(name: str) -> None:
    """Entry (row · W + column, part) of every way to lay out coordinates depends on the row or on the column alone."""
    lines = torch.randn(H), torch.randn(W)
    entries, node, graph = entries_of(UNDERSTOOD[name], *lines)
    assert graph(*lines).shape == (H * W, 2)
    token = (("row", H), ("column", W))
    for part, along in enumerate(("row", "column")):
        value = entries.value(node, (token, ((part, 2),)))
        # 0 · x is x's: what is computed counts, not what comes out
        assert entries.coordinates(value) == ({"row", "column"} if name == "broadcast" else {along})
    assert_true(UNDERSTOOD[name], *lines)


def test_the_same_computation_twice_is_one_value() -> None:
    entries, node, _ = entries_of(lambda x: torch.cat([(2 * x).cos(), (2 * x).cos(), (3 * x).cos()]), torch.randn(4))
    first, second, third = (entries.value(node, (((part, 3), ("i", 4)),)) for part in range(3))
    assert first == second != third
    assert entries.coordinates(first) == entries.coordinates(third) == {"i"}


def test_rounding_makes_another_value() -> None:
    entries, node, _ = entries_of(lambda x: torch.cat([x, x.to(torch.bfloat16).float()]), torch.randn(4))
    assert entries.value(node, (((0, 2), ("i", 4)),)) != entries.value(node, (((1, 2), ("i", 4)),))


def test_random_numbers_are_not_the_same_twice() -> None:
    entries, node, _ = entries_of(lambda x: torch.cat([torch.rand_like(x), torch.rand_like(x)]), torch.randn(4))
    assert entries.value(node, (((0, 2), ("i", 4)),)) != entries.value(node, (((1, 2), ("i", 4)),))


def test_written_memory_has_a_time() -> None:
    def function(x: Tensor) -> Tensor:
        y = x.cos()
        z = y.view(2, 2) * 1
        y.mul_(2)
        return z

    entries, node, _ = entries_of(function, torch.randn(4))
    assert TIME in entries.coordinates(entries.value(node, named(torch.Size([2, 2]))))


def test_a_long_chain_ends() -> None:
    def function(x: Tensor) -> Tensor:
        for _ in range(3000):
            x = x + x
        return x

    entries, node, _ = entries_of(function, torch.randn(4))
    assert entries.coordinates(entries.value(node, ((("i", 4),),))) == {"i"}


# --- indices ----------------------------------------------------------------------------------------------------------


def test_deal() -> None:
    row, column, part = ("row", H), ("column", W), (1, 6)
    assert deal([row, column], (H * W,)) == ((row, column),)
    assert deal([row, column], (H, 1, W)) == ((row,), (), (column,))
    assert deal([part], (2, 3)) == (((0, 2),), ((1, 3),))
    assert deal([(5, 6)], (2, 3)) == (((1, 2),), ((2, 3),))
    assert deal([row, part], (2 * H, 3)) == ((row, (0, 2)), ((1, 3),))
    assert deal([("i", 6)], (2, 3)) is None  # inside of a coordinate
    assert deal([row, column], (H,)) is None
    assert deal([row], (H, W)) is None


def test_shift() -> None:
    i = ("i", 4)
    assert shift((i,), 0, 4) == (i,)
    assert shift((i,), 4, 12) == ((1, 3), i)
    assert shift(((1, 3), i), -4, 4) == (i,)
    assert shift(((2, 3), i), -4, 8) == ((1, 2), i)
    assert shift(((1, 2),), 3, 8) == ((4, 8),)
    assert shift((i,), 2, 12) is None  # no digits for it
    assert shift((i,), 0, 6) is None
    assert shift(((1, 3), i), -8, 4) is None  # before the first
    assert shift(((1, 3), i), 0, 4) is None  # behind the last
