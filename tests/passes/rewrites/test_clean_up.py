"""No trace of a rewrite is left, and no value is changed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node

import jetvit
from jetvit.passes.frontends.capture import export_model
from jetvit.passes.graph.rewritable import ExportedGraph
from jetvit.passes.rewrites.clean_up import CleanUp
from tests.passes.models import LINEAR, WINDOW, assert_close, aten, count, exported, plan_of

OPERATORS = (torch.ops.jetvit.window_attention.default, torch.ops.jetvit.linear_attention.default)
MOVES = (aten.permute.default, aten.transpose.int, aten.contiguous.default, aten.clone.default)


# --- around an operator -----------------------------------------------------------------------------------------------


def around(program: torch.export.ExportedProgram) -> list[list[str]]:
    """For each operator, the moves between it and the next operators that compute something, before and after."""
    found = []
    for node in program.graph_module.graph.nodes:
        if node.target in OPERATORS:
            way: list[str] = []
            (user,) = node.users
            while user.target in (*MOVES, aten.view.default, aten.reshape.default):
                way.append(user.target._schema.name.removeprefix("aten::"))
                (user,) = user.users
            for operand in node.args[:3]:
                while operand.target in (*MOVES, aten.view.default, aten.reshape.default):
                    way.append(operand.target._schema.name.removeprefix("aten::"))
                    operand = operand.args[0]
            found.append(sorted(name for name in way if name not in ("view", "reshape")))
    return found


@pytest.mark.parametrize("choice", [WINDOW, LINEAR], ids=str)
@pytest.mark.parametrize("name", ["separate", "chunk", "split", "hf_vit_sdpa", "hf_vit_eager"])
def test_models_whose_tokens_come_first_need_no_move(name: str, choice: jetvit.Choice) -> None:
    """[batch, token, head, dim] is how linear layers leave q, k and v: every transposition to heads first cancels."""
    _, _, program = exported(name)
    optimized = jetvit.optimize(program, plan=plan_of(jetvit.find_attention(program), [choice]))
    assert around(optimized) == [[], []]


# --- single rules -----------------------------------------------------------------------------------------------------


class Function(nn.Module):
    def __init__(self, function: Any):
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


X = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))


def cleaned(function: Any, **shapes: Any) -> ExportedGraph:
    graph = ExportedGraph(export_model(Function(function), (X,), **shapes))
    CleanUp()(graph)
    assert CleanUp()(graph).fired == 0
    assert_close(graph.program().module()(X.clone()), function(X.clone()), 1e-7)
    return graph


@pytest.mark.parametrize(
    ("function", "left"),
    [
        (lambda x: x.transpose(1, 2).transpose(1, 2) + 1, 0),
        (lambda x: x.permute(0, 2, 3, 1).permute(0, 3, 1, 2) + 1, 0),
        (lambda x: x.permute(0, 2, 3, 1).transpose(1, -1) + 1, 1),
        (lambda x: x.swapaxes(0, 1).swapaxes(-4, -3) + 1, 0),
        (lambda x: x.reshape(2, 12, 5).reshape(2, 3, 4, 5) + 1, 0),
        (lambda x: x.view(2, 3, 4, 5) + 1, 0),
        (lambda x: x.reshape(6, 20).reshape(24, 5) + 1, 2),
        (lambda x: x.transpose(1, 2).reshape(2, 12, 5) + 1, 2),
    ],
)
def test_chains(function: Any, left: int) -> None:
    graph = cleaned(function)
    assert count(graph.module, *MOVES, aten.view.default, aten.reshape.default, aten.swapaxes.default) == left


def test_dead_code_goes_and_effects_stay() -> None:
    def function(x: Tensor) -> Tensor:
        x.sin().cos()
        y = x.clone()
        y.mul_(2)
        return y

    graph = cleaned(function)
    assert count(graph.module, aten.sin.default, aten.cos.default) == 0
    assert count(graph.module, aten.mul_.Tensor) == 1


def test_a_copy_that_is_written_to_is_kept() -> None:
    """`reshape` of a transposed tensor is a copy; without it the write would reach the input."""

    def function(x: Tensor) -> Tensor:
        x = x + 1
        y = x.transpose(1, 2).reshape(2, -1).reshape(2, 4, 3, 5)
        y.mul_(2)
        return x + y.transpose(1, 2)

    cleaned(function)


def test_a_view_of_a_copy_keeps_the_copy() -> None:
    def function(x: Tensor) -> Tensor:
        return x.transpose(1, 2).reshape(2, -1).reshape(2, 4, 3, 5).view(8, 15) + 1

    cleaned(function)


def test_open_sizes() -> None:
    dynamic = {"dynamic_shapes": ({0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC},)}
    graph = cleaned(lambda x: x.reshape(x.shape[0], -1, 5).reshape(x.shape[0], 3, x.shape[2], 5) + 1, **dynamic)
    assert count(graph.module, aten.view.default, aten.reshape.default) == 0
    graph = cleaned(lambda x: x.reshape(x.shape[2], -1).reshape(x.shape[0], -1) + 1, **dynamic)
    assert count(graph.module, aten.view.default, aten.reshape.default) == 2


# --- the law ----------------------------------------------------------------------------------------------------------


@st.composite
def chains(draw: st.DrawFn) -> tuple[GraphModule, Tensor]:
    """A graph of permutations, transpositions, reshapes and additions, some of them read twice."""
    graph = Graph()
    node = graph.placeholder("x")
    x = torch.arange(24.0).reshape(draw(st.permutations([2, 3, 4])))
    value, results = x, []

    def call(target: Any, *args: Any) -> Node:
        nonlocal value
        value = target(*(value if arg is node else arg for arg in args))
        made = graph.call_function(target, args)
        made.meta["val"] = value
        return made

    node.meta["val"] = x
    for _ in range(draw(st.integers(1, 8))):
        kind = draw(st.sampled_from(["permute", "transpose", "swapaxes", "reshape", "contiguous", "flatten", "result"]))
        dims = range(-value.dim(), value.dim())
        if kind == "permute":
            node = call(aten.permute.default, node, draw(st.permutations(range(value.dim()))))
        elif kind in ("transpose", "swapaxes"):
            target = aten.transpose.int if kind == "transpose" else aten.swapaxes.default
            node = call(target, node, draw(st.sampled_from(dims)), draw(st.sampled_from(dims)))
        elif kind == "reshape":
            node = call(aten.reshape.default, node, draw(st.permutations([2, 3, 4])))
        elif kind == "flatten":
            node = call(aten.reshape.default, node, draw(st.sampled_from([[24], [6, 4], [1, 24], [2, 12]])))
        elif kind == "contiguous":
            node = call(aten.contiguous.default, node)
        else:
            results.append(node)
    graph.output((*results, node))
    return GraphModule(nn.Module(), graph), x


class Bare(ExportedGraph):
    """A graph that was put together by hand."""

    def __init__(self, module: GraphModule):
        self.module, self.tensor_names, self.ambient_autocast = module, {}, {}


@given(chains())
def test_random_chains_keep_their_values(chain: tuple[GraphModule, Tensor]) -> None:
    module, x = chain
    expected = module(x)
    before = len(module.graph.nodes)
    graph = Bare(module)
    CleanUp()(graph)
    module.graph.lint()
    torch.testing.assert_close(module(x), expected, rtol=0, atol=0)
    assert len(module.graph.nodes) <= before
    assert CleanUp()(graph).fired == 0
    for node in module.graph.nodes:  # no two permutations in a row
        if node.target is aten.permute.default:
            assert node.args[0].target not in (aten.permute.default, aten.transpose.int, aten.swapaxes.default)
