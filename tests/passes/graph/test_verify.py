"""A pass that breaks a graph is caught, named, and leaves nothing behind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import Tensor
from torch.fx import Node

import jetvit
from jetvit.passes.frontends.capture import capture_dynamo, export_model
from jetvit.passes.graph.base import PassResult
from jetvit.passes.graph.rewritable import ExportedGraph, RewritableGraph
from jetvit.passes.graph.verify import Verification
from jetvit.passes.pipeline import passes, run_pipeline
from jetvit.patterns import RewriteError
from tests.passes.models import aten, exported, nodes_of
from tests.zoo import CASES


@dataclass(frozen=True)
class Broken:
    """Does something wrong to the graph."""

    harm: Callable[[RewritableGraph], None]
    name: ClassVar[str] = "broken"

    def __call__(self, graph: RewritableGraph) -> PassResult:
        self.harm(graph)
        return PassResult(1)


def last(graph: RewritableGraph) -> tuple[Node, Node]:
    output = graph.module.graph.output_node()
    return output, output.args[0][0]


def wrap(target: object, *args: object) -> Callable[[RewritableGraph], None]:
    """Put one more call between the last node and the output."""

    def harm(graph: RewritableGraph) -> None:
        output, result = last(graph)
        with graph.module.graph.inserting_before(output):
            output.args = ((graph.module.graph.call_function(target, (result, *args)),),)

    return harm


def not_a_tensor(graph: RewritableGraph) -> None:
    output, _ = last(graph)
    output.args = ((1,),)


def use_before_def(graph: RewritableGraph) -> None:
    linears = [node for node in nodes_of(graph.module) if node.target is aten.linear.default]
    linears[0].args = (linears[1], *linears[0].args[1:])


def wrong_arguments(graph: RewritableGraph) -> None:
    linear = next(node for node in nodes_of(graph.module) if node.target is aten.linear.default)
    linear.args = (linear.args[1], linear.args[0], linear.args[2])


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (wrap(aten.to.dtype, torch.float64), r"changed result 0.*\n.*was float32\[2, 25, 32\] on cpu and is float64"),
        (wrap(aten.transpose.int, 1, 2), r"changed result 0.*\n.*and is float32\[2, 32, 25\]"),
        (wrap(aten.unsqueeze.default, 0), r"changed result 0.*\n.*and is float32\[1, 2, 25, 32\]"),
        (not_a_tensor, r"changed result 0.*\n.*and is int"),
        (use_before_def, "left a graph that does not run.*\n.*used before it has been defined"),
        (wrong_arguments, "left a graph that does not run"),
    ],
    ids=["dtype", "shape", "rank", "type", "order", "arguments"],
)
def test_a_broken_pass_is_named(harm: Callable[[RewritableGraph], None], message: str) -> None:
    graph = ExportedGraph(exported("sdpa")[2])
    with pytest.raises(RewriteError, match="the pass broken " + message):
        run_pipeline(graph, [Broken(harm)])


def test_without_the_check_it_is_not_caught() -> None:
    graph = ExportedGraph(exported("sdpa")[2])
    run_pipeline(graph, [Broken(wrap(aten.to.dtype, torch.float64))], check=False)


def test_open_sizes_are_compared_as_symbols() -> None:
    case = CASES["sdpa"]
    args, kwargs = case.inputs()
    program = export_model(case.build(), args, kwargs, case.dynamic_shapes(args, kwargs))
    run_pipeline(ExportedGraph(program), [Broken(wrap(aten.mul.Tensor, 2))])
    with pytest.raises(RewriteError, match="changed result 0"):
        run_pipeline(ExportedGraph(program), [Broken(wrap(aten.slice.Tensor, 1, 0, 7))])


def test_the_program_survives_a_broken_pass() -> None:
    _, (args, _), program = exported("sdpa")
    before, expected = str(program.graph), program.module()(*args)
    with pytest.raises(RewriteError):
        run_pipeline(ExportedGraph(program), [*passes(), Broken(wrong_arguments)])
    assert str(program.graph) == before
    torch.testing.assert_close(program.module()(*args), expected, rtol=0, atol=0)


def test_values_are_brought_up_to_date() -> None:
    graph = ExportedGraph(exported("sdpa")[2])
    verification = Verification(graph)
    wrap(aten.mul.Tensor, 2)(graph)
    verification.check("mul")
    assert last(graph)[1].meta["val"].shape == verification.expected[0].shape


def test_no_autocast_region_is_left_open() -> None:
    """A graph that breaks inside of a flat region must not leave the region open for the rest of the process."""
    seen = []

    def backend(gm: torch.fx.GraphModule, inputs: list[Tensor]) -> torch.fx.GraphModule:
        graph = capture_dynamo(gm, inputs)
        verification = Verification(graph)
        wrong_arguments(graph)
        with pytest.raises(RewriteError):
            verification.check("broken")
        seen.append(torch.is_autocast_enabled("cpu"))
        return gm

    model, (args, _), _ = exported("autocast_model")
    torch.compile(model, backend=backend)(*args)
    assert seen == [False]


def test_what_a_refusal_says() -> None:
    with pytest.raises(jetvit.JetvitError) as refusal:
        run_pipeline(ExportedGraph(exported("sdpa")[2]), [Broken(wrong_arguments)])
    assert "the model itself is unchanged" in str(refusal.value)
