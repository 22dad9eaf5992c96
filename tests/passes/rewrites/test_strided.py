"""A view that is put off takes the entries that the operators take, by views alone, in as few calls as may be."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx import Graph, Node

from jetvit.passes.rewrites.strided import Strided
from tests.passes.models import aten

X = torch.arange(2 * 25 * 96.0).reshape(2, 25, 96)  # [batch, token, 3 · head · dim]


def placeholder(value: Tensor) -> Node:
    node = Graph().placeholder("x")
    node.meta["val"] = value
    return node


def made(node: Node, target: Any, *args: Any) -> Node:
    """A node behind another one, with its value."""
    new = node.graph.call_function(target, (node, *args))
    new.meta["val"] = target(node.meta["val"], *args)
    return new


def run(strided: Strided) -> Tensor:
    """The calls, made on the tensor's value."""
    value = strided.node.meta["val"]
    for call in strided.calls:
        value = call.target(value, *call.args, **call.kwargs)
    return value


def targets(strided: Strided) -> list[str]:
    return [call.target._schema.name.removeprefix("aten::") for call in strided.calls]


def heads(x: Node) -> tuple[Strided, Node]:
    """[3, batch, head, token, dim] as most models have it."""
    split = made(x, aten.reshape.default, [2, 25, 3, 2, 16])
    turned = made(split, aten.permute.default, [2, 0, 3, 1, 4])
    state = Strided.of(x).rearranged(split)
    assert state is not None
    state = state.rearranged(turned)
    assert state is not None
    return state, turned


def test_a_permutation_there_and_back_is_a_view() -> None:
    state, turned = heads(placeholder(X))
    assert state.calls == ()
    chosen = state.selected(0, 1)
    assert chosen is not None
    key = made(turned, aten.select.int, 0, 1)
    back = chosen.rearranged(made(key, aten.transpose.int, 1, 2))
    assert back is not None
    straight = back.finished((2, 25, 2, 16))
    assert targets(straight) == ["unflatten", "select"]
    assert straight.moves == 0
    torch.testing.assert_close(run(straight), key.meta["val"].transpose(1, 2), rtol=0, atol=0)
    assert run(straight).data_ptr() == X[..., 32:].data_ptr()
    assert straight.value.stride() == (25 * 96, 96, 16, 1)


def test_an_order_that_stays_is_one_permutation() -> None:
    state, turned = heads(placeholder(X))
    straight = state.finished((3, 2, 2, 25, 16))
    assert targets(straight) == ["unflatten", "permute"]
    assert straight.moves == 1
    torch.testing.assert_close(run(straight), turned.meta["val"], rtol=0, atol=0)


def test_slices_of_an_axis() -> None:
    x = placeholder(X)
    state = Strided.of(x).sliced(2, 32, 64)
    assert state is not None
    part = made(x, aten.slice.Tensor, 2, 32, 64)
    split = made(part, aten.unflatten.int, 2, [2, 16])
    state = state.rearranged(split)
    assert state is not None
    straight = state.finished((2, 25, 2, 16))
    assert targets(straight) == ["slice", "unflatten"]
    torch.testing.assert_close(run(straight), split.meta["val"], rtol=0, atol=0)
    state = Strided.of(x).sliced(1, 0, 25, 2)
    assert state is not None
    torch.testing.assert_close(run(state), X[:, ::2], rtol=0, atol=0)


def test_axes_that_are_merged_and_split_again() -> None:
    """[batch · head, token, dim], as `bmm` takes it, is a copy; [batch, token, head, dim] of it is none."""
    state, turned = heads(placeholder(X))
    chosen = state.selected(0, 0)
    assert chosen is not None
    query = made(turned, aten.select.int, 0, 0)
    merged = made(query, aten.reshape.default, [4, 25, 16])
    again = made(merged, aten.reshape.default, [2, 2, 25, 16])
    for node in (merged, again, made(again, aten.permute.default, [0, 2, 1, 3])):
        chosen = chosen.rearranged(node)
        assert chosen is not None
    straight = chosen.finished((2, 25, 2, 16))
    assert targets(straight) == ["unflatten", "select"]
    torch.testing.assert_close(run(straight), query.meta["val"].transpose(1, 2), rtol=0, atol=0)


def test_a_merge_that_no_strides_give_is_counted_as_a_copy() -> None:
    x = placeholder(X)
    turned = made(x, aten.transpose.int, 0, 1)
    flat = made(turned, aten.reshape.default, [50, 96])
    state = Strided.of(x).rearranged(turned)
    assert state is not None
    state = state.rearranged(flat)
    assert state is not None
    straight = state.finished((50, 96))
    assert straight.moves == 2
    torch.testing.assert_close(run(straight), flat.meta["val"], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("shape", "target", "args"),
    [
        ((1, 25, 96), aten.transpose.int, (0, 1)),
        ((25, 1, 96), aten.permute.default, ([1, 0, 2],)),
        ((1, 25, 96), aten.squeeze.dim, (0,)),
        ((2, 25, 96), aten.unsqueeze.default, (1,)),
        ((2, 25, 96), aten.reshape.default, ([2, 25, 1, 96],)),
        ((2, 1, 96), aten.permute.default, ([2, 1, 0],)),
        ((1, 25, 1, 8), aten.permute.default, ([2, 3, 0, 1],)),
        ((2, 3, 4, 5), aten.movedim.int, (1, -1)),
        ((6, 4), aten.reshape.default, ([4, 6],)),
        ((6, 4), aten.reshape.default, ([2, 3, 2, 2],)),
    ],
)
def test_axes_of_length_one_and_others(shape: tuple[int, ...], target: Any, args: tuple[Any, ...]) -> None:
    x = placeholder(torch.arange(float(torch.Size(shape).numel())).reshape(shape))
    node = made(x, target, *args)
    state = Strided.of(x).rearranged(node)
    if state is None:  # 6 · 4 as 4 · 6 is neither a merge nor a split
        assert shape == (6, 4)
        return
    straight = state.finished(node.meta["val"].shape)
    torch.testing.assert_close(run(straight), node.meta["val"], rtol=0, atol=0)
    assert straight.moves <= 1


def test_what_computes_row_by_row_may_run_before_a_permutation() -> None:
    x = placeholder(X)
    turned = made(x, aten.transpose.int, 0, 1)
    weight = x.graph.placeholder("weight")
    weight.meta["val"] = torch.randn(8, 96)
    product = x.graph.call_function(aten.linear.default, (turned, weight))
    product.meta["val"] = aten.linear.default(turned.meta["val"], weight.meta["val"])
    state = Strided.of(x).rearranged(turned)
    assert state is not None
    state = state.computed(product)
    assert state is not None
    assert targets(state) == ["linear"]
    call = state.calls[0]
    assert call.args == (weight,)
    assert call.row_wise is not None
    assert call.row_wise[0] is product
    back = state.rearranged(made(product, aten.transpose.int, 0, 1))
    assert back is not None
    assert targets(back.finished((2, 25, 8))) == ["linear"]


def test_not_where_the_rows_are_another_axis() -> None:
    """A norm over tokens is another norm."""
    x = placeholder(X)
    turned = made(x, aten.transpose.int, 1, 2)
    norm = made(turned, aten.layer_norm.default, [25])
    state = Strided.of(x).rearranged(turned)
    assert state is not None
    assert state.computed(norm) is None


def test_an_entry_of_a_merged_axis_is_no_view() -> None:
    x = placeholder(X)
    merged = made(made(x, aten.transpose.int, 0, 1), aten.reshape.default, [50, 96])
    state = Strided.of(x).rearranged(merged.args[0])
    assert state is not None
    state = state.rearranged(merged)
    assert state is not None
    assert state.selected(0, 7) is None
    assert state.sliced(0, 7, 9) is None
