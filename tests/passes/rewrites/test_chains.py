"""A chain of nodes is read as it computes, and the straight way in its place gives the same with fewer moves."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx

from jetvit.passes.rewrites.chains import chain_to, follow
from jetvit.passes.rewrites.strided import Strided
from jetvit.patterns.regions import GraphView
from tests.passes.models import aten

SELECTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "select": lambda x: x.select(2, 1),
    "select from behind": lambda x: x.select(-2, -1),
    "slice": lambda x: x[:, :, 1:3],
    "slice to the end": lambda x: x[:, :, -2:],
    "every second": lambda x: x[:, :, ::2],
    "unbind": lambda x: x.unbind(2)[1],
    "chunk": lambda x: x.chunk(2, dim=-1)[1],
    "split": lambda x: x.split(3, dim=-1)[1],
    "split with sizes": lambda x: x.split([1, 2, 5], dim=-1)[2],
    "expand that does nothing": lambda x: x.expand(2, 3, 4, 8),
    "movedim": lambda x: x.movedim(1, 2),
    "mT": lambda x: x.mT,
    "squeeze": lambda x: x[:, :1].squeeze(1),
    "unsqueeze": lambda x: x.unsqueeze(0).squeeze(0),
}


def traced(function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[GraphView, Node]:
    """The graph of a function and the node that it yields, with values."""
    module = make_fx(function, pre_dispatch=True)(x)
    values: dict[Node, Any] = {}
    for node in module.graph.nodes:
        if node.op == "placeholder":
            values[node] = x
        elif node.op == "get_attr":
            values[node] = getattr(module, node.target)
        elif node.op == "call_function":
            args = torch.fx.node.map_arg(node.args, values.__getitem__)
            values[node] = node.target(*args, **node.kwargs)
        node.meta["val"] = values.get(node)
    result = module.graph.output_node().args[0]
    return GraphView(module), result


def run(straight: Strided) -> Tensor:
    value = straight.node.meta["val"]
    for call in straight.calls:
        args = torch.fx.node.map_arg(call.args, lambda node: node.meta["val"])
        value = call.target(value, *args, **call.kwargs)
    return value


@pytest.mark.parametrize("name", SELECTIONS)
def test_each_step(name: str) -> None:
    """Behind a permutation, so that it acts on another axis than in the straight way."""
    x = torch.arange(2.0 * 3 * 4 * 8).reshape(2, 4, 3, 8)
    view, node = traced(lambda x: SELECTIONS[name](x.transpose(1, 2)), x)
    links = chain_to(node, view)
    state = Strided.of(links[0].before)
    assert state.node.op == "placeholder"
    for link in links:
        following = link.applied(state)
        assert following is not None
        state = following
    straight = state.finished(node.meta["val"].shape)
    torch.testing.assert_close(run(straight), node.meta["val"], rtol=0, atol=0)
    assert straight.value.stride() == run(straight).stride()
    assert straight.moves <= 1
    assert all(call.target in (aten.permute.default, aten.select.int, aten.slice.Tensor, aten.flatten.using_ints)
               for call in straight.calls)  # fmt: skip


@pytest.mark.parametrize(
    ("function", "saved", "calls"),
    [
        (lambda x: x.transpose(0, 1).transpose(0, 1), 2, []),
        (lambda x: x.transpose(0, 1).contiguous().transpose(0, 1), 3, []),
        (lambda x: x.clone(), 1, []),
        (lambda x: x.reshape(6, 8).reshape(2, 3, 8)[1], 0, []),
        (lambda x: x.unflatten(2, (2, 4)).permute(2, 0, 1, 3)[1].clone(), 2, ["select"]),
        (lambda x: x.transpose(0, 1).reshape(6, 8).reshape(3, 2, 8).transpose(0, 1), 3, []),
        (lambda x: x.transpose(0, 1).clone().permute(2, 0, 1), 2, ["permute"]),
        # what is needed stands there already
        (lambda x: x.transpose(0, 1), 0, []),
        (lambda x: x.transpose(0, 1).contiguous(), 1, []),
        (lambda x: x.transpose(0, 1).reshape(6, 8), 0, []),
        (lambda x: x.transpose(0, 1).reshape(6, 8).reshape(3, 2, 8), 1, []),
        # a number and an axis of one
        (lambda x: x.transpose(0, 1).unsqueeze(0)[:, 1, 0, 2], 1, ["select", "select", "select", "reshape"]),
    ],
)
def test_what_is_saved(function: Callable[[Tensor], Tensor], saved: int, calls: list[str]) -> None:
    view, node = traced(function, torch.randn(2, 3, 8))
    straight, found = follow(chain_to(node, view))
    assert found == saved
    assert [call.target._schema.name.removeprefix("aten::") for call in straight.calls] == calls
    torch.testing.assert_close(run(straight), node.meta["val"], rtol=0, atol=0)


def test_where_a_chain_begins() -> None:
    """Arithmetic of two tensors, an axis that is repeated, and entries that depend on a value are no views."""
    x = torch.randn(2, 3, 8)
    for function in (
        lambda x: (x * x).transpose(0, 1),
        lambda x: x[:, :, :1].expand(2, 3, 8).transpose(0, 1),
        lambda x: x.index_select(0, torch.tensor([1, 0])).transpose(0, 1),
        lambda x: x.transpose(0, 1).softmax(0).transpose(0, 1),
    ):
        view, node = traced(function, x)
        straight, saved = follow(chain_to(node, view))
        assert saved == 0
        assert straight.node.op == "call_function"
        torch.testing.assert_close(run(straight), node.meta["val"], rtol=0, atol=0)
    view, node = traced(lambda x: x + 1, x)
    assert chain_to(node, view) == []


def test_row_wise_operators_are_passed() -> None:
    weight, bias = torch.randn(5, 8), torch.randn(5)

    def function(x: Tensor) -> Tensor:
        x = x.transpose(0, 1)
        x = torch.nn.functional.linear(x.to(torch.float64), weight.double(), bias.double())
        return torch.nn.functional.layer_norm(x, (5,)).transpose(0, 1)

    x = torch.randn(2, 3, 8)
    view, node = traced(function, x)
    straight, saved = follow(chain_to(node, view))
    assert saved == 2
    assert straight.node.op == "placeholder"
    assert [call.target._schema.name for call in straight.calls] == ["aten::to", "aten::linear", "aten::layer_norm"]
    assert all(call.row_wise is not None for call in straight.calls)
    torch.testing.assert_close(run(straight), node.meta["val"])


# --- the law ----------------------------------------------------------------------------------------------------------


@st.composite
def chains(draw: st.DrawFn) -> tuple[GraphModule, Node]:
    """A chain of views, selections, permutations and copies of one tensor, of any strides."""
    graph = Graph()
    node = graph.placeholder("x")
    x = torch.arange(144.0).reshape(draw(st.permutations([2, 3, 4, 6])))
    value = x.permute(draw(st.permutations(range(4))))
    node.meta["val"] = value

    def call(target: Any, *args: Any) -> Any:
        made = graph.call_function(target, args)
        made.meta["val"] = target(*(arg.meta["val"] if isinstance(arg, Node) else arg for arg in args))
        return made

    for _ in range(draw(st.integers(1, 8))):
        shape = node.meta["val"].shape
        dim = draw(st.integers(0, len(shape) - 1))
        kinds = ["permute", "transpose", "split", "merge", "contiguous", "clone", "unsqueeze", "slice", "parts"]
        kind = draw(st.sampled_from([*kinds, *(["select", "unbind"] if len(shape) > 1 else [])]))
        if kind == "permute":
            node = call(aten.permute.default, node, draw(st.permutations(range(len(shape)))))
        elif kind == "transpose":
            node = call(aten.transpose.int, node, dim, draw(st.integers(-len(shape), len(shape) - 1)))
        elif kind == "split":
            factor = draw(st.sampled_from([each for each in (1, 2, 3) if shape[dim] % each == 0]))
            sizes = [*shape[:dim], factor, shape[dim] // factor, *shape[dim + 1 :]]
            node = call(aten.reshape.default, node, sizes)
        elif kind == "merge":
            last = draw(st.integers(dim, len(shape) - 1))
            node = call(aten.flatten.using_ints, node, dim, last)
        elif kind in ("contiguous", "clone"):
            node = call(aten.contiguous.default if kind == "contiguous" else aten.clone.default, node)
        elif kind == "unsqueeze":
            node = call(aten.unsqueeze.default, node, dim)
        elif kind == "slice":
            start = draw(st.integers(0, shape[dim] - 1))
            node = call(aten.slice.Tensor, node, dim, start, draw(st.integers(start + 1, shape[dim])))
        elif kind == "parts":
            parts = call(aten.split.Tensor, node, draw(st.integers(1, shape[dim])), dim)
            node = call(operator.getitem, parts, draw(st.integers(0, len(parts.meta["val"]) - 1)))
        elif kind == "select":
            node = call(aten.select.int, node, dim, draw(st.integers(-shape[dim], shape[dim] - 1)))
        else:
            parts = call(aten.unbind.int, node, dim)
            node = call(operator.getitem, parts, draw(st.integers(0, shape[dim] - 1)))
    graph.output(node)
    return GraphModule(nn.Module(), graph), node


@given(chains())
def test_the_straight_way_is_the_same_tensor(chain: tuple[GraphModule, Node]) -> None:
    module, node = chain
    links = chain_to(node, GraphView(module))
    straight, saved = follow(links)
    assert saved >= 0
    assert saved <= sum(link.moves for link in links)
    torch.testing.assert_close(run(straight), node.meta["val"], rtol=0, atol=0)
    assert straight.value.stride() == run(straight).stride()
    copies = sum(call.moves and call.target is not aten.permute.default for call in straight.calls)
    permutations = sum(call.target is aten.permute.default for call in straight.calls)
    assert permutations <= 1
    if not copies and straight.node.op == "placeholder":
        assert run(straight).untyped_storage().data_ptr() == straight.node.meta["val"].untyped_storage().data_ptr()
