"""After a change only what depends on it is run again, and every value is what a whole run gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import Node

import jetvit
from jetvit.cost_model import Choice
from jetvit.passes.frontends.capture import capture_dynamo, export_model
from jetvit.passes.graph import propagation
from jetvit.passes.graph.propagation import Propagation
from jetvit.passes.graph.rewritable import ExportedGraph, RewritableGraph
from jetvit.passes.graph.verify import Verification
from jetvit.passes.pipeline import passes
from jetvit.patterns.sizes import same, same_sizes
from tests.passes.models import aten, exported, nodes_of, plan_of
from tests.zoo import CASES
from tests.zoo.quick import sweep


def recorded(graph: RewritableGraph) -> dict[Node, Any]:
    return {node: node.meta["val"] for node in graph.module.graph.nodes if "val" in node.meta}


def assert_alike(before: Any, after: Any) -> None:
    assert type(before) is type(after)
    if isinstance(before, list | tuple):
        assert len(before) == len(after)
        for one, other in zip(before, after, strict=True):
            assert_alike(one, other)
    elif isinstance(before, Tensor):
        assert (before.dtype, before.device) == (after.dtype, after.device)
        assert same_sizes(before.shape, after.shape)
        assert same_sizes(before.stride(), after.stride())
        assert same(before.storage_offset(), after.storage_offset())
    else:
        assert same(before, after) if isinstance(before, torch.SymInt) else before == after


class Counted:
    """Counts the operators that are run on fake tensors."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.targets: list[Any] = []
        run = propagation._Interpreter.call_function

        def counting(interpreter: Any, target: Any, args: Any, kwargs: Any) -> Any:
            self.targets.append(target)
            return run(interpreter, target, args, kwargs)

        monkeypatch.setattr(propagation._Interpreter, "call_function", counting)

    def take(self) -> list[Any]:
        taken, self.targets = self.targets, []
        return taken


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("name", sweep(CASES, quick=["sdpa", "hf_dinov3_sdpa", "autocast_attention"]))
def test_every_value_is_that_of_a_whole_run(name: str, dynamic: bool) -> None:
    case = CASES[name]
    args, kwargs = case.inputs()
    shapes = case.dynamic_shapes(args, kwargs) if dynamic else None
    program = export_model(case.build(), args, kwargs, shapes)
    graph = ExportedGraph(program)
    plan = plan_of(jetvit.find_attention(program), [Choice("window", window=(2, 3)), Choice("full")])
    verification = Verification(graph)
    for each in passes(plan):
        each(graph)
        verification.check(each.name)
        after = recorded(graph)
        Propagation(graph).run()
        for node, value in recorded(graph).items():
            assert_alike(after[node], value)


def test_only_what_depends_on_a_change_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = ExportedGraph(exported("sdpa")[2])
    counted = Counted(monkeypatch)
    changing = Propagation(graph)
    changing.run()
    whole = counted.take()
    changing.run()
    assert counted.take() == []
    linears = [node for node in nodes_of(graph.module) if node.target is aten.linear.default]
    with graph.module.graph.inserting_after(linears[-1]):
        doubled = graph.module.graph.call_function(aten.mul.Tensor, (linears[-1], 2))
    linears[-1].replace_all_uses_with(doubled, delete_user_cb=lambda user: user is not doubled)
    changing.run()
    again = counted.take()
    assert again[0] is aten.mul.Tensor
    assert len(again) <= 2 < len(whole)  # what reads it for the first time; its result is as before
    with graph.module.graph.inserting_after(doubled):
        wide = graph.module.graph.call_function(aten.to.dtype, (doubled, torch.float64))
    doubled.replace_all_uses_with(wide, delete_user_cb=lambda user: user is not wide)
    results = changing.run()
    assert {each.dtype for each in results if isinstance(each, Tensor)} == {torch.float64}


class Adds(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = torch.add(x, 1)
        return y + y


def test_a_number_of_another_type_is_a_change() -> None:
    """1 == 1.0, but the sum of integers and 1.0 is none."""
    graph = ExportedGraph(torch.export.export(Adds(), (torch.arange(3),)))
    changing = Propagation(graph)
    assert changing.run()[0].dtype == torch.int64
    add = next(node for node in nodes_of(graph.module) if 1 in node.args)
    add.args = (add.args[0], 1.0)
    assert changing.run()[0].dtype == torch.float32


class Region(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            y = x @ x
        return y * 2


def test_a_flat_region_is_opened_again(monkeypatch: pytest.MonkeyPatch) -> None:
    counted, ran = Counted(monkeypatch), []

    def backend(gm: torch.fx.GraphModule, inputs: list[Tensor]) -> torch.fx.GraphModule:
        graph = capture_dynamo(gm, inputs)
        changing = Propagation(graph)
        changing.run()
        product = next(node for node in nodes_of(graph.module) if node.target is aten.matmul.default)
        with graph.module.graph.inserting_after(product):
            second = graph.module.graph.call_function(aten.matmul.default, (product, product))
        product.replace_all_uses_with(second, delete_user_cb=lambda user: user is not second)
        counted.take()
        assert changing.run()[0].dtype == torch.bfloat16
        ran.extend(counted.take())
        return gm

    torch.compile(Region(), backend=backend)(torch.ones(3, 3))
    assert [str(each) for each in ran if "autocast" not in str(each)] == ["aten.matmul.default", "aten.mul.Tensor"]
    assert len(ran) == 4


@pytest.mark.parametrize("road", ["export", "dynamo"])
def test_a_change_inside_of_a_region_is_seen(road: str) -> None:
    """On one road the region is a graph of its own, on the other two calls around flat code."""
    seen = []

    def change(graph: RewritableGraph) -> None:
        changing = Propagation(graph)
        assert changing.run()[0].dtype == torch.bfloat16
        modules = [each for each in graph.module.modules() if isinstance(each, torch.fx.GraphModule)]
        nodes = [node for module in modules for node in module.graph.nodes]
        product = next(node for node in nodes if node.target is aten.matmul.default)
        if road == "export":
            with product.graph.inserting_after(product):
                wide = product.graph.call_function(aten.to.dtype, (product, torch.float32))
            product.replace_all_uses_with(wide, delete_user_cb=lambda user: user is not wide)
            for module in modules:
                module.recompile()
        else:
            opening = next(node for node in nodes if "enter_autocast" in str(node.target))
            opening.prepend(product)
        seen.append(changing.run()[0].dtype)

    x = torch.ones(3, 3)
    if road == "export":
        change(ExportedGraph(torch.export.export(Region(), (x,), strict=False)))
    else:

        def backend(gm: torch.fx.GraphModule, inputs: list[Tensor]) -> torch.fx.GraphModule:
            change(capture_dynamo(gm, inputs))
            return gm

        torch.compile(Region(), backend=backend)(x)
    assert seen == [torch.float32]


class TurnsInPlace(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = x * 2
        z = y.sum(0)
        y.t_()
        return y + z.unsqueeze(1)


def test_shapes_that_change_in_place_are_run_in_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = ExportedGraph(torch.export.export(TurnsInPlace(), (torch.ones(3, 4),), strict=False))
    if not any("t_" in str(node.target) for node in nodes_of(graph.module)):
        pytest.fail("the capture has no operator that changes a shape in place")
    counted = Counted(monkeypatch)
    changing = Propagation(graph)
    changing.run()
    whole = counted.take()
    total = next(node for node in nodes_of(graph.module) if node.target is aten.sum.dim_IntList)
    total.args = (total.args[0], [0], True)
    with pytest.raises(RuntimeError):
        changing.run()
    total.args = (total.args[0], [0])
    changing.run()
    assert len(counted.take()) > len(whole)


def test_an_error_is_that_of_a_whole_run() -> None:
    graph = ExportedGraph(exported("sdpa")[2])
    changing = Propagation(graph)
    changing.run()
    linear = next(node for node in nodes_of(graph.module) if node.target is aten.linear.default)
    right = linear.args
    linear.args = (right[1], right[0], right[2])
    with pytest.raises(RuntimeError):
        changing.run()
    linear.args = right
    changing.run()
