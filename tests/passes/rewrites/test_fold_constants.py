"""What no input has a part in is computed once; nothing else is, and nothing that can still change."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import jetvit
from jetvit.passes.frontends.capture import capture_dynamo, export_model
from jetvit.passes.graph.rewritable import DynamoGraph, ExportedGraph
from jetvit.passes.rewrites.fold_constants import FoldConstants
from tests.passes.models import assert_close, aten, compiled, count, exported, nodes_of, rewrite
from tests.zoo import CASES
from tests.zoo.case import images, randomize
from tests.zoo.handwritten import DIM, SIZE, Attention, TinyViT, sdpa
from tests.zoo.quick import sweep

IMAGE = images(2, 3, *SIZE)
X = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
TABLES = (aten.sin.default, aten.cos.default)


def resizes(module: nn.Module) -> int:
    return sum("upsample" in str(node.target) for node in nodes_of(module))


class Model(nn.Module):
    """`function(x, model)` with one parameter and one buffer."""

    def __init__(self, function: Callable[[Tensor, Any], Tensor]):
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(torch.linspace(-1, 1, 24).view(4, 6))
        self.register_buffer("table", torch.linspace(1, 2, 6))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self)


def folded(function: Callable[[Tensor, Any], Tensor], **options: Any) -> tuple[ExportedGraph, int]:
    model = Model(function)
    graph = ExportedGraph(export_model(model, (X,)))
    fired = FoldConstants(**options)(graph).fired
    graph.module.graph.eliminate_dead_code()
    assert FoldConstants(**options)(graph).fired == 0
    assert_close(graph.program().module()(X), model(X), 1e-6)
    return graph, fired


# --- folded -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sdpa", "hf_dinov2_sdpa", "timm_vit_fused"])
def test_position_embeddings_at_a_fixed_size(name: str) -> None:
    _, _, program = exported(name)
    assert resizes(program.graph_module) == 1
    assert resizes(jetvit.optimize(program).graph_module) == 0


@pytest.mark.parametrize("name", ["rope_half", "rope_interleaved", "hf_dinov3_sdpa", "timm_eva02_fused"])
def test_rotary_tables_at_a_fixed_size(name: str) -> None:
    _, _, program = exported(name)
    optimized = jetvit.optimize(program).graph_module
    assert count(program.graph_module, *TABLES) > 0
    assert count(optimized, *TABLES, aten.arange.default, aten.meshgrid.indexing) == 0


@pytest.mark.parametrize("name", sweep(["sdpa", "rope_half"], quick=["rope_half"]))
def test_nothing_that_an_open_size_has_a_part_in(name: str) -> None:
    case = CASES[name]
    args, kwargs = case.inputs()
    program = export_model(case.build(), args, kwargs, case.dynamic_shapes(args, kwargs))
    before, after = program.graph_module, jetvit.optimize(program).graph_module
    assert resizes(after) == resizes(before) == 1
    assert count(after, *TABLES) == count(before, *TABLES)


def test_only_the_largest_constant_is_kept() -> None:
    graph, fired = folded(lambda x, m: x + ((m.weight * 2).sin() + m.table.exp()).relu())
    assert fired == 1
    assert [name for name in graph.program().state_dict if name.startswith("folded.")] == ["folded.value_relu"]
    assert count(graph.module, aten.sin.default, aten.exp.default) == 0


def test_views_are_not_stored() -> None:
    """A token that is expanded over the batch is stored once."""
    graph, fired = folded(lambda x, m: x + (m.table * 2).expand(4, 6))
    assert fired == 1
    assert graph.program().state_dict["folded.value_mul"].shape == (6,)
    graph, fired = folded(lambda x, m: x + m.table.expand(4, 6))
    assert fired == 0


# --- not folded -------------------------------------------------------------------------------------------------------


def test_the_bound_on_the_size() -> None:
    assert folded(lambda x, m: x + m.weight.sin(), max_elements=24)[1] == 1
    assert folded(lambda x, m: x + m.weight.sin(), max_elements=23)[1] == 0


@pytest.mark.parametrize(
    "function",
    [lambda x, m: x + torch.rand(4, 6) * 0, lambda x, m: x + torch.rand_like(m.table) * 0],
    ids=["rand", "rand_like"],
)
def test_chance_stays_chance(function: Callable[[Tensor, Any], Tensor]) -> None:
    _, fired = folded(function)
    assert fired == 0


def test_uninitialised_memory_is_not_stored() -> None:
    graph = ExportedGraph(export_model(Model(lambda x, m: torch.cat([x, torch.empty(4, 6)])), (X,)))
    assert FoldConstants()(graph).fired == 0


def in_region(x: Tensor, m: Any) -> Tensor:
    """DINOv3 of transformers 4.57 computes its rotary tables so."""
    with torch.autocast("cpu", torch.bfloat16):
        table = m.weight @ m.table
    return x + table[:, None]


def random_in_region(x: Tensor, m: Any) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        noise = torch.rand(6) * m.table
    return 0 * noise + x


def test_a_region_of_constants_is_folded_whole_in_its_own_dtype() -> None:
    graph, fired = folded(in_region)
    assert fired == 1
    assert count(graph.module, torch.ops.higher_order.wrap_with_autocast) == 0
    (value,) = [tensor for name, tensor in graph.values().items() if name.startswith("folded")]
    assert value.dtype == torch.bfloat16


def test_chance_stays_chance_in_a_region() -> None:
    graph, _ = folded(random_in_region)
    assert count(graph.module, torch.ops.higher_order.wrap_with_autocast) == 1


def test_under_autocast_the_dtype_is_the_regions() -> None:
    """A product of constants is narrower there than outside, where it would be computed."""

    def function(x: Tensor, m: Any) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return x + (m.weight.mT @ m.weight)[:4]

    assert folded(function)[1] == 0
    ((_, fired),) = dynamo_graphs(Model(function), X, freeze=True)
    assert fired == 0


class Row(TinyViT):
    """Fills a table through one of its views before another one is read."""

    def tokens(self, image: Tensor) -> Tensor:
        table = torch.zeros(2, DIM)
        row = table[0]
        table.add_(torch.arange(DIM) * 0.1)
        return super().tokens(image) + row


class Counter(TinyViT):
    """Counts its calls in a buffer, written to through a view, and uses the count."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.register_buffer("calls", torch.zeros(1))

    def tokens(self, image: Tensor) -> Tensor:
        self.calls.view(-1).add_(1)
        return super().tokens(image) * (self.calls * 2)


class CounterInRegion(Counter):
    def tokens(self, image: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            self.calls.add_(1)
        return super(Counter, self).tokens(image) * (self.calls * 2)


class Kept(TinyViT):
    """Keeps the mean of the last image, as running statistics do."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.register_buffer("mean", torch.zeros(DIM))

    def tokens(self, image: Tensor) -> Tensor:
        x = super().tokens(image)
        shifted = x + self.mean.exp()
        self.mean.copy_(x.mean(dim=(0, 1)))
        return shifted


@pytest.mark.parametrize(
    ("model_class", "road"),
    sweep(
        product([Row, Counter, CounterInRegion, Kept], ["export", "dynamo", "frozen"]),
        quick=[(Row, "frozen"), (Counter, "dynamo"), (CounterInRegion, "export"), (Kept, "dynamo"), (Kept, "frozen")],
    ),
)
def test_what_the_graph_writes_to(model_class: type[TinyViT], road: str) -> None:
    """Run by run the same as the model: what is written to is no constant."""
    reference, model = (randomize(model_class(partial(Attention, sdpa))) for _ in range(2))
    if road == "export":
        function: Any = jetvit.optimize(model, IMAGE)
    else:
        function = compiled(model, freeze=road == "frozen")
    for run in range(3):
        if road == "frozen" and run and model_class is not Row:
            with pytest.raises(jetvit.JetvitError, match="edited since"):
                function(IMAGE)  # its own edit: refused, not wrong
            return
        assert_close(function(IMAGE), reference(IMAGE), 1e-6)
    buffers, expected = dict(function.named_buffers()), dict(reference.named_buffers())
    if road == "export":
        for name, buffer in expected.items():
            torch.testing.assert_close(buffers[name], buffer)


def test_running_statistics_are_read_in_eval() -> None:
    class Normed(TinyViT):
        def __init__(self) -> None:
            super().__init__(partial(Attention, sdpa))
            self.bn = nn.BatchNorm2d(3)

        def forward(self, image: Tensor) -> Tensor:
            return super().forward(self.bn(image))

    model = randomize(Normed())
    model.bn.running_mean.fill_(0.3)
    model.bn.running_var.fill_(2.0)
    for function in (jetvit.optimize(model, IMAGE), compiled(model)):
        assert_close(function(IMAGE), model(IMAGE))


# --- whose weights they are -------------------------------------------------------------------------------------------


def dynamo_graphs(model: nn.Module, *inputs: Tensor, freeze: bool) -> list[tuple[DynamoGraph, int]]:
    graphs = []

    def backend(gm: torch.fx.GraphModule, examples: list[Tensor]) -> torch.fx.GraphModule:
        graph = capture_dynamo(gm, examples, freeze)
        graphs.append((graph, FoldConstants()(graph).fired))
        graph.module.recompile()
        return graph.module

    assert_close(torch.compile(model, backend=backend)(*inputs), model(*inputs))
    return graphs


@pytest.mark.parametrize("freeze", [False, True])
def test_on_the_dynamo_road_parameters_belong_to_the_caller(freeze: bool) -> None:
    model = Model(lambda x, m: x + m.weight.sin() + m.table.exp() + torch.arange(6).cos())
    ((graph, fired),) = dynamo_graphs(model, X, freeze=freeze)
    graph.module.graph.eliminate_dead_code()
    assert fired == (3 if freeze else 1)
    assert count(graph.module, aten.cos.default) == 0
    assert count(graph.module, aten.sin.default, aten.exp.default) == (0 if freeze else 2)


def test_rotary_tables_without_weights_are_folded_on_the_dynamo_road() -> None:
    model, (args, _), _ = exported("rope_half")
    ((graph, fired),) = dynamo_graphs(model, *args, freeze=False)
    graph.module.graph.eliminate_dead_code()
    assert fired > 0
    assert count(graph.module, aten.arange.default, aten.meshgrid.indexing) == 0
    assert resizes(graph.module) == 1  # the position embedding is a parameter


def test_folding_is_reported() -> None:
    assert rewrite(exported("sdpa")[2])[1]["fold-constants"] == 1
