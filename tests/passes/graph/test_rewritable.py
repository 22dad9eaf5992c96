"""Edits of a captured graph: on a copy, under free names, over shared tensors."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import jetvit
from jetvit.passes.frontends.capture import capture_dynamo, export_model
from jetvit.passes.graph import rewritable
from jetvit.passes.graph.rewritable import DynamoGraph, ExportedGraph
from jetvit.patterns import find_sites
from tests.passes.models import assert_close, aten, exported, nodes_of, plan_of, rewrite
from tests.zoo import CASES
from tests.zoo.case import images
from tests.zoo.handwritten import SIZE

IMAGE = images(2, 3, *SIZE)


def test_the_program_is_not_changed() -> None:
    """Not its graph, its signature, its tensors, its metadata."""
    program = export_model(CASES["separate_unfused"].build(), (IMAGE,))
    text, signature = str(program.graph), str(program.graph_signature)
    tensors = dict(program.state_dict)
    values = {node: node.meta.get("val") for node in program.graph.nodes}
    rewrite(program, plan_of(jetvit.find_attention(program)))[0].program()
    assert str(program.graph) == text
    assert str(program.graph_signature) == signature
    assert all(program.state_dict[name] is tensor for name, tensor in tensors.items())
    assert tensors.keys() == program.state_dict.keys()
    assert all(node.meta.get("val") is value for node, value in values.items())


def test_tensors_are_shared() -> None:
    model = CASES["separate"].build()
    program = export_model(model, (IMAGE,))
    optimized = jetvit.optimize(program)
    own = dict(model.named_parameters())
    kept = set(own) & set(optimized.state_dict)
    assert {"patch_embed.proj.weight", "blocks.0.attn.o.weight", "norm.bias"} <= kept
    assert all(optimized.state_dict[name].data_ptr() == own[name].data_ptr() for name in kept)


def test_what_was_never_read_stays() -> None:
    """Only what the rewrites made idle is left out."""

    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.idle = CASES["separate"].build(), nn.Parameter(torch.ones(3))

        def forward(self, image: Tensor) -> Tensor:
            return self.model(image)

    optimized = jetvit.optimize(export_model(Idle(), (IMAGE,)))
    assert "idle" in optimized.state_dict
    assert "model.blocks.0.attn.q.weight" not in optimized.state_dict


def test_names_are_numbered_where_they_are_taken() -> None:
    graph = ExportedGraph(exported("sdpa")[2])
    first, second = (graph.add_tensor("a.b", torch.ones(2)) for _ in range(2))
    third = graph.add_tensor("norm.weight", nn.Parameter(torch.ones(2)))
    fourth = graph.add_tensor("a_b", torch.ones(2))
    names = [graph.tensor_names[node] for node in (first, second, third, fourth)]
    assert names == ["a.b", "a.b_1", "norm.weight_1", "a_b"]
    assert len({node.target for node in graph._specs}) == len(graph._specs)
    add = next(node for node in nodes_of(graph.module) if node.target is aten.add.Tensor)
    for node in (first, second, third, fourth):
        with graph.module.graph.inserting_before(add):
            graph.module.graph.call_function(aten.add_.Tensor, (node, 1)).meta["val"] = node.meta["val"]
    program = graph.program()
    program.module()(IMAGE)
    assert isinstance(program.state_dict["norm.weight_1"], nn.Parameter)


@pytest.mark.parametrize("name", ["a#1.b", "a-b", "über.b"])
def test_any_name_can_be_an_input(name: str) -> None:
    """A module that runs twice has a site "attn#1"."""
    graph = ExportedGraph(exported("sdpa")[2])
    node = graph.add_tensor(name, torch.full((1,), 0.5))
    output = graph.module.graph.output_node()
    with graph.module.graph.inserting_before(output):
        output.args = ((graph.module.graph.call_function(aten.mul.Tensor, (output.args[0][0], node)),),)
        output.args[0][0].meta["val"] = output.all_input_nodes[0].args[0].meta["val"]
    program = graph.program()
    assert name in program.state_dict
    assert_close(program.module()(IMAGE), CASES["sdpa"].build()(IMAGE) * 0.5)


class NamedInput(nn.Module):
    """A model whose argument has the name of a function of Python's, as that of `nn.Sequential` has."""

    def __init__(self) -> None:
        super().__init__()
        self.model = CASES["sdpa"].build()

    def forward(self, input: Tensor) -> Tensor:
        return self.model(input)


def test_an_input_may_be_called_input() -> None:
    model = NamedInput().eval()
    for args, kwargs in (((IMAGE,), {}), ((), {"input": IMAGE})):
        program = ExportedGraph(export_model(model, args, kwargs)).program()
        assert_close(program.module()(*args, **kwargs), model(IMAGE))
        fast = jetvit.optimize(model, *args, kwargs=kwargs)
        assert_close(fast(*args, **kwargs), model(IMAGE))


def dynamo_graph(model: nn.Module, freeze: bool = False) -> DynamoGraph:
    graphs = []

    def backend(gm: torch.fx.GraphModule, inputs: list[Tensor]) -> torch.fx.GraphModule:
        graphs.append(capture_dynamo(gm, inputs, freeze))
        return gm

    torch.compile(model, backend=backend)(IMAGE)
    return graphs[0]


def test_tensors_of_a_dynamo_graph() -> None:
    model = CASES["sdpa"].build()
    graph = dynamo_graph(model)
    assert set(graph.values()) == set(dict(model.named_parameters()))
    node = graph.node_of("norm.weight")
    assert graph.tensor(node) is None
    assert dynamo_graph(model, freeze=True).tensor(node) is None  # another graph's node
    frozen = dynamo_graph(model, freeze=True)
    assert frozen.tensor(frozen.node_of("norm.weight")) is model.norm.weight
    first, second, third = (graph.add_tensor(name, torch.full((2,), i)) for i, name in enumerate(("a.b", "a_b", "a.b")))
    assert [graph.tensor(each)[0].item() for each in (first, second, third)] == [0, 1, 2]


def test_a_replaced_tensor_is_the_programs_alone() -> None:
    model = CASES["sdpa"].build()
    graph = ExportedGraph(export_model(model, (IMAGE,)))
    before = copy.deepcopy(model.state_dict())
    node = graph.node_of("norm.bias")
    graph.replace_tensor(node, nn.Parameter(model.norm.bias.detach() + 1))
    assert_close(graph.program().module()(IMAGE), model(IMAGE) + 1)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


def test_sites_are_searched_again_after_an_edit_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    searches: list[object] = []
    monkeypatch.setattr(rewritable, "find_sites", lambda graph: searches.append(graph) or find_sites(graph))
    graph = ExportedGraph(exported("sdpa")[2])
    sites = graph.sites()
    assert graph.sites() is sites
    assert len(searches) == 1
    first = sites[0].out.node
    first.replace_all_uses_with(first.args[0])
    assert [site.name for site in graph.sites()] == [site.name for site in sites[1:]]
    assert len(searches) == 2


def test_sites_in_a_region_are_searched_again_after_an_edit_there() -> None:
    graph = ExportedGraph(exported("autocast_attention")[2])
    before = graph.sites()
    node = before[0].out.node
    assert node.graph is not graph.module.graph
    node.replace_all_uses_with(node.args[0])
    assert len(graph.sites()) == len(before) - 1
