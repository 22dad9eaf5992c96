"""Between an attention and the products around it views alone are left, and what is not the same stays as it is."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Node

import jetvit
from jetvit.passes.frontends.capture import capture_dynamo, export_model
from jetvit.passes.graph.rewritable import ExportedGraph
from jetvit.passes.graph.verify import Verification
from jetvit.passes.rewrites.clean_up import CleanUp
from jetvit.passes.rewrites.fuse_attention import FuseAttention
from jetvit.passes.rewrites.normalize import Normalize
from jetvit.passes.rewrites.straighten_views import StraightenViews
from jetvit.patterns.aten_sets import SDPA
from tests.passes.models import assert_close, aten, count, exported, nodes_of
from tests.zoo.case import images, randomize
from tests.zoo.handwritten import DIM, HEAD_DIM, HEADS, SIZE, SelfMHA, TinyViT

GRID = (4, 6)
TOKENS = GRID[0] * GRID[1]
TURNS = (aten.permute.default, aten.transpose.int, aten.movedim.int)
MOVES = (*TURNS, aten.contiguous.default, aten.clone.default)
X = images(2, TOKENS, DIM)


def window(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The operator, on [batch, token, head, dim]."""
    absent = q.new_empty(0)
    return torch.ops.jetvit.window_attention(q, k, v, absent, absent, *GRID, 0, 2, 3, 0.25)


class Model(nn.Module):
    """Tokens [batch, token, DIM], one product of 3·DIM features, and a function of the two."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function, self.qkv, self.out = function, nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM)
        self.norm = nn.LayerNorm(HEAD_DIM)
        randomize(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def straightened(function: Callable[..., Tensor], fires: bool = True, **shapes: Any) -> ExportedGraph:
    """The graph after the pass and the clean-up; it gives what the model gives, and a second run changes nothing."""
    model = Model(function)
    graph = ExportedGraph(export_model(model, (X,), **shapes))
    Normalize()(graph)
    before, verification = moves(graph), Verification(graph)
    assert (StraightenViews()(graph).fired > 0) is fires
    verification.check("straighten-views")
    assert StraightenViews()(graph).fired == 0
    CleanUp()(graph)
    assert (moves(graph) < before) is fires
    assert_close(graph.program().module()(X), model(X), 1e-6)
    return graph


def moves(graph: ExportedGraph) -> int:
    return count(graph.module, *MOVES)


def targets(graph: ExportedGraph) -> Counter[str]:
    """How often each operator of ATen or jetvit is called."""
    named = (node.target for node in nodes_of(graph.module) if isinstance(node.target, torch._ops.OpOverload))
    return Counter(target._schema.name.split("::")[1] for target in named)


# --- what is straightened ---------------------------------------------------------------------------------------------


def packed(self: Model, x: Tensor) -> Tensor:
    q, k, v = self.qkv(x).reshape(*x.shape[:2], 3, HEADS, HEAD_DIM).permute(2, 0, 3, 1, 4).unbind(0)
    out = window(*(side.transpose(1, 2) for side in (q, k, v))).transpose(1, 2)
    return self.out(out.transpose(1, 2).contiguous().reshape(x.shape))


def head_major(self: Model, x: Tensor) -> Tensor:
    q, k, v = self.qkv(x).view(*x.shape[:2], HEADS, 3, HEAD_DIM).permute(3, 0, 2, 1, 4)
    return self.out(window(*(side.transpose(1, 2).contiguous() for side in (q, k, v))).flatten(2))


def chunks(self: Model, x: Tensor) -> Tensor:
    q, k, v = (side.unflatten(-1, (HEADS, -1)).transpose(1, 2) for side in self.qkv(x).chunk(3, dim=-1))
    return self.out(window(*(side.transpose(1, 2) for side in (q, k, v))).flatten(2))


def merged_heads(self: Model, x: Tensor) -> Tensor:
    """[batch · head, token, dim] on the way in and out, as `bmm` takes it."""
    q, k, v = self.qkv(x).unflatten(-1, (3, HEADS, HEAD_DIM)).permute(2, 0, 3, 1, 4)
    q, k, v = (side.reshape(-1, TOKENS, HEAD_DIM).unflatten(0, (-1, HEADS)).transpose(1, 2) for side in (q, k, v))
    out = window(q, k, v).transpose(1, 2).reshape(-1, TOKENS, HEAD_DIM)
    return self.out(out.unflatten(0, (-1, HEADS)).transpose(1, 2).flatten(2))


def rows_and_columns(self: Model, x: Tensor) -> Tensor:
    """The projection runs on the map, [batch, row, column, DIM]."""
    qkv = self.qkv(x.unflatten(1, GRID)).reshape(-1, *GRID, 3, HEADS, HEAD_DIM).permute(3, 0, 4, 1, 2, 5)
    q, k, v = (side.flatten(2, 3).transpose(1, 2) for side in qkv)
    out = window(q, k, v).transpose(1, 2).unflatten(2, GRID)
    return self.out(out.permute(0, 2, 3, 1, 4).flatten(3)).flatten(1, 2)


@pytest.mark.parametrize("function", [packed, head_major, chunks, merged_heads, rows_and_columns])
def test_views_alone(function: Callable[..., Tensor]) -> None:
    graph = straightened(function)
    assert moves(graph) == 0
    assert targets(graph)["linear"] == 2


def test_they_share_the_view_that_was_there() -> None:
    assert targets(straightened(packed)) == Counter(
        {"linear": 2, "reshape": 1, "select": 3, "new_empty": 1, "window_attention": 1, "flatten": 1}
    )


def normed(self: Model, x: Tensor) -> Tensor:
    q, k, v = self.qkv(x).unflatten(-1, (3, HEADS, HEAD_DIM)).permute(2, 0, 3, 1, 4)
    q, k = self.norm(q).to(torch.float64), self.norm(k).to(torch.float64)
    out = window(*(side.transpose(1, 2) for side in (q, k, v.double())))
    return self.out(out.transpose(1, 2).to(x.dtype).transpose(1, 2).flatten(2))


def test_through_norms_and_casts() -> None:
    """They compute row by row: each runs as often as before, on the tensor before the permutation."""
    graph = straightened(normed)
    assert moves(graph) == 0
    assert targets(graph)["layer_norm"] == 2
    assert targets(graph)["to"] == 4


def token_first(self: Model, x: Tensor) -> Tensor:
    """What `nn.MultiheadAttention(batch_first=True)` does around its products."""
    qkv = self.qkv(x.transpose(0, 1)).unflatten(-1, (3, DIM)).unsqueeze(0).transpose(0, -2).squeeze(-2).contiguous()
    q, k, v = (side.view(TOKENS, -1, HEAD_DIM).transpose(0, 1) for side in qkv)
    q, k, v = (side.unflatten(0, (-1, HEADS)).transpose(1, 2) for side in (q, k, v))
    out = window(q, k, v).permute(1, 0, 2, 3).reshape(-1, DIM)
    return x + self.out(out).view(TOKENS, -1, DIM).transpose(0, 1)


def test_through_the_products_themselves() -> None:
    graph = straightened(token_first)
    assert moves(graph) == 0
    assert targets(graph) == Counter(
        {"linear": 2, "unflatten": 4, "select": 3, "new_empty": 1, "window_attention": 1, "flatten": 1, "add": 1}
    )


def read_twice(self: Model, x: Tensor) -> Tensor:
    """The product is read by something else as well, which goes on to read the same numbers."""
    qkv = self.qkv(x.transpose(0, 1))
    q, k, v = (side.unflatten(-1, (HEADS, -1)).transpose(0, 1) for side in qkv.chunk(3, dim=-1))
    return self.out(window(q, k, v).flatten(2)) + self.out(qkv[..., :DIM]).transpose(0, 1)


def test_a_product_is_not_made_twice() -> None:
    assert targets(straightened(read_twice))["linear"] == 3


def test_a_norm_over_tokens_is_no_norm_of_rows() -> None:
    def function(self: Model, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, HEADS, HEAD_DIM)).permute(2, 0, 3, 1, 4)
        q = F.layer_norm(q, (TOKENS, HEAD_DIM))
        return self.out(window(*(side.transpose(1, 2) for side in (q, k, v))).flatten(2))

    assert moves(straightened(function)) == 2  # before and after it


@pytest.mark.parametrize("doubled", [False, True])
def test_a_caller_gets_the_strides_of_the_model(doubled: bool) -> None:
    """It may go on by a view that needs them."""

    def function(self: Model, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, HEADS, HEAD_DIM)).unbind(2)
        out = window(q, k, v).transpose(0, 1).contiguous().view(TOKENS, -1, DIM).transpose(0, 1)
        return out * 2 if doubled else out

    program = straightened(function, fires=False).program()
    result = program.module()(X)
    assert result.stride() == Model(function)(X).stride() != (TOKENS * DIM, DIM, 1)
    result.transpose(0, 1).view(TOKENS, -1)


@pytest.mark.parametrize("function", [packed, chunks, merged_heads, token_first])
def test_open_sizes(function: Callable[..., Tensor]) -> None:
    """The batch stays open and no guard is added; sizes come from the inputs."""
    shapes = ({0: torch.export.Dim("batch", min=1, max=64)},)
    graph = straightened(function, dynamic_shapes=shapes)
    assert moves(graph) == 0
    program = graph.program()
    (bounds,) = program.range_constraints.values()
    assert (bounds.lower, bounds.upper) == (1, 64)
    x = images(5, TOKENS, DIM)
    assert_close(program.module()(x), Model(function)(x), 1e-6)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("heads", [1, 2])
def test_axes_of_length_one(batch: int, heads: int) -> None:
    def function(self: Model, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).reshape(batch, TOKENS, 3, heads, DIM // heads).permute(2, 0, 3, 1, 4).unbind(0)
        out = window(*(side.transpose(1, 2) for side in (q, k, v))).transpose(1, 2)
        return self.out(out.transpose(1, 2).reshape(x.shape))

    model, x = Model(function), images(batch, TOKENS, DIM)
    graph = ExportedGraph(export_model(model, (x,)))
    assert StraightenViews()(graph).fired == 4
    CleanUp()(graph)
    assert moves(graph) == 0
    assert_close(graph.program().module()(x), model(x), 1e-6)


@pytest.mark.parametrize("region", [torch.no_grad, lambda: torch.autocast("cpu", torch.bfloat16)])
def test_into_a_region(region: Callable[[], Any]) -> None:
    """The product stands outside and its parts come in permuted: the region gets the product, and selects there."""

    def function(self: Model, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, HEADS, HEAD_DIM)).permute(2, 0, 3, 1, 4)
        with region():
            out = window(*(side.transpose(1, 2) for side in (q, k, v)))
        return self.out(out.flatten(2).to(x.dtype))

    model = Model(function)
    with torch.enable_grad():
        graph = ExportedGraph(torch.export.export(model, (X,), strict=False))
    verification = Verification(graph)
    assert StraightenViews()(graph).fired == 3
    verification.check("straighten-views")
    (attention,) = (node for node in nodes_of(graph.module) if str(node.target).startswith("jetvit."))
    assert [operand.target for operand in attention.args[:3]] == [aten.select.int] * 3
    assert attention.graph is not graph.module.graph
    assert_close(graph.program().module()(X), model(X), 1e-6)


def test_on_the_dynamo_road() -> None:
    graphs = []

    def backend(gm: torch.fx.GraphModule, inputs: list[Tensor]) -> torch.fx.GraphModule:
        graph = capture_dynamo(gm, inputs)
        assert StraightenViews()(graph).fired
        CleanUp()(graph)
        graphs.append(graph)
        return graph.module

    model = Model(packed)
    assert_close(torch.compile(model, backend=backend)(X), model(X), 1e-6)
    assert moves(graphs[0]) == 0


# --- what stays -------------------------------------------------------------------------------------------------------


def test_another_order_in_memory_is_one_permutation() -> None:
    """Tokens first from the input on: three permutations and a copy an operand are one permutation of strides."""

    def function(self: Model, x: Tensor) -> Tensor:
        x = x.reshape(TOKENS, -1, DIM).relu()
        q, k, v = (side.contiguous().view(TOKENS, -1, HEAD_DIM).transpose(0, 1) for side in self.qkv(x).chunk(3, -1))
        q, k, v = (side.unflatten(0, (-1, HEADS)).transpose(1, 2) for side in (q, k, v))
        return self.out(window(q, k, v).transpose(0, 1).flatten(2))

    graph = straightened(function)
    assert targets(graph)["permute"] == 3
    assert targets(graph)["transpose"] == 1
    assert targets(graph)["contiguous"] == 0


def test_interleaved_features_are_copied() -> None:
    """[3, dim, head]: the operators ask for stride 1 along dim."""

    def function(self: Model, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, HEAD_DIM, HEADS)).permute(2, 0, 1, 4, 3)
        return self.out(window(*(side.contiguous() for side in (q, k, v))).flatten(2))

    assert targets(straightened(function, fires=False))["contiguous"] == 3


@pytest.mark.parametrize("write", [lambda q: q.mul_(2), lambda q: q.transpose(0, 1)[0].zero_()])
def test_what_is_written_to_is_left_alone(write: Callable[[Tensor], Tensor]) -> None:
    def function(self: Model, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, HEADS, HEAD_DIM)).permute(2, 0, 3, 1, 4)
        q, k, v = (side.transpose(1, 2).clone(memory_format=torch.contiguous_format) for side in (q, k, v))
        write(q)
        return self.out(window(q, k, v).flatten(2))

    graph = straightened(function)  # k and v alone
    assert targets(graph)["clone"] == 1


def test_a_result_that_is_written_to_is_left_alone() -> None:
    """A copy of the result is written to, the result itself is read afterwards."""

    def function(self: Model, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, HEADS, HEAD_DIM)).unbind(2)
        out = window(q, k, v)
        copy = out.transpose(1, 2).clone(memory_format=torch.contiguous_format).transpose(1, 2)
        copy.mul_(3)
        return self.out(copy.flatten(2)) + self.out(out.flatten(2))

    straightened(function, fires=False)


def test_a_caller_gets_the_strides_that_he_asked_for() -> None:
    def function(self: Model, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, HEADS, HEAD_DIM)).unbind(2)
        return window(q, k, v).transpose(1, 2).contiguous()

    graph = straightened(function, fires=False)
    assert graph.program().module()(X).is_contiguous()


def test_a_view_behind_elementwise_operators_needs_the_strides() -> None:
    """They hand the strides of what they read on to it."""

    def function(self: Model, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, HEADS, HEAD_DIM)).unbind(2)
        out = window(q, k, v).transpose(1, 2).contiguous()
        return out.relu().view(-1, TOKENS, HEAD_DIM)

    straightened(function, fires=False)


@pytest.mark.parametrize("merge", [True, False])
def test_other_operators_may_need_the_strides(merge: bool) -> None:
    """`as_strided` sees memory. Without a permutation that is left, a copy has the strides of what it is a copy of."""

    def function(self: Model, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, HEADS, HEAD_DIM)).unbind(2)
        out = window(q, k, v)
        out = out.clone() if merge else out.transpose(1, 2).contiguous()
        return out.as_strided((2, 8), (8, 1)) + 1

    straightened(function, fires=merge)


def test_an_attention_that_is_no_site_is_left_alone() -> None:
    _, _, program = exported("sdpa_mask")
    graph = ExportedGraph(program)
    assert StraightenViews()(graph).fired == 0


# --- the operator of ATen ---------------------------------------------------------------------------------------------


def turns_to(node: Node) -> list[Node]:
    """The permutations and copies that lead to an operand, up to the product."""
    found = []
    while node.target is not aten.linear.default:
        found += [node] if node.target in MOVES else []
        node = node.args[0]
    return found


def test_sdpa_reads_views_of_the_product() -> None:
    """`nn.MultiheadAttention` copies q, k and v in one; SDPA takes strides, and one permutation to heads first."""
    model = randomize(TinyViT(lambda: SelfMHA(need_weights=False)))
    image = images(2, 3, *SIZE)
    program = jetvit.optimize(export_model(model, (image,)))
    fused = [node for node in nodes_of(program.graph_module) if node.target is SDPA]
    assert [len(turns_to(operand)) for node in fused for operand in node.args[:3]] == [1] * 6
    assert_close(program.module()(image), model(image))


@pytest.mark.parametrize("name", ["sdpa", "separate", "timm_vit_fused", "hf_vit_sdpa", "scale_on_product"])
def test_sdpa_keeps_what_is_straight(name: str) -> None:
    """One permutation that q, k and v share is not made three."""
    _, _, program = exported(name)
    graph = ExportedGraph(program)
    FuseAttention()(graph)
    graph.module.graph.eliminate_dead_code()
    before = str(graph.module.graph)
    assert StraightenViews()(graph).fired == 0
    assert str(graph.module.graph) == before


def test_sdpa_takes_the_node_that_is_there() -> None:
    """`bmm` wants [batch · head, token, dim], a copy; SDPA takes what it is a copy of."""
    _, _, program = exported("bmm")
    graph = ExportedGraph(program)
    FuseAttention()(graph)
    assert StraightenViews()(graph).fired == 6
    for node in nodes_of(graph.module):
        if node.target is SDPA:
            assert [operand.target for operand in node.args[:3]] == [operator.getitem] * 3
