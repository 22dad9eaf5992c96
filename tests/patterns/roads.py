"""Capture models by both frontends and run the graphs, to check a site's claims against real values."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter, Node
from torch.utils import _pytree as pytree

from jetvit.passes.frontends.capture import capture, capture_dynamo
from jetvit.passes.graph.rewritable import RewritableGraph
from jetvit.patterns import AttentionSite, Layout, Operand, Sites, find_sites
from jetvit.patterns.regions import REGION_OPERANDS, GraphView
from jetvit.patterns.sizes import Size
from tests.zoo import CASES, Case
from tests.zoo.case import Inputs

ROADS = ("export", "dynamo")


@dataclass(frozen=True)
class Attention:
    """The values that a site read and gave in one run, each [batch, token, head, head_dim]."""

    site: AttentionSite
    q: Tensor
    k: Tensor
    v: Tensor
    out: Tensor

    def reference(self) -> Tensor:
        """Full attention from q, k, v and the site's scale, in double precision."""
        q, k, v = (each.double() for each in (self.q, self.k, self.v))
        weights = (torch.einsum("bqhd,bkhd->bhqk", q, k) * self.site.scale).softmax(dim=-1)
        return torch.einsum("bhqk,bkhd->bqhd", weights, v)

    def assert_true(self, tokens: Size | None = None) -> None:
        """The site's claim, executed: its result is full attention over its q, k and v, and over all its tokens."""
        assert self.out.shape[1] == (self.site.tokens if tokens is None else tokens)
        reference = self.reference()
        error = ((self.out - reference).norm() / reference.norm()).item()
        narrow = self.site.autocast is not None or self.site.dtype != torch.float32
        assert error < (2e-2 if narrow else 1e-5), f"{self.site.name} is off by {error:.1e}"


@dataclass(repr=False)
class Captured:
    """The capture of a model by one frontend: its graphs (several from Dynamo), their sites and near misses.

    `attentions` holds the values of each site, `values` those of every node and `output` the result of the latest run,
    at first the one that captured them. `run(args, kwargs)` is another run.
    """

    run: Callable[..., list[Attention]]
    graphs: list[RewritableGraph] = field(default_factory=list)
    sites: Sites = field(default_factory=Sites)
    attentions: list[Attention] = field(default_factory=list)
    values: dict[Node, Any] = field(default_factory=dict)
    output: Any = None

    def add(self, graph: RewritableGraph) -> Sites:
        """Find the sites of one more graph."""
        sites = find_sites(graph)
        self.graphs.append(graph)
        self.sites.extend(sites)
        self.sites.rejected.extend(sites.rejected)
        return sites


def by_export(
    model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any] | None = None, dynamic_shapes: Any = None
) -> Captured:
    """Capture by torch.export."""
    graph = capture(model, args, kwargs, dynamic_shapes)

    def run(args: Sequence[Any], kwargs: Mapping[str, Any] | None = None) -> list[Attention]:
        given = iter(pytree.tree_leaves((tuple(args), dict(kwargs or {}))))
        placeholders = [node for node in graph.module.graph.nodes if node.op == "placeholder"]
        inputs = [graph.tensor(node) if node in graph.tensor_names else next(given) for node in placeholders]
        recorder = Recorder(graph.module, sites)
        captured.output = recorder.run(*inputs)
        captured.attentions, captured.values = recorder.attentions, recorder.values
        return recorder.attentions

    captured = Captured(run)
    sites = captured.add(graph)
    run(args, kwargs)
    return captured


def by_dynamo(
    model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any] | None = None, dynamic_dims: Sequence[int] = ()
) -> Captured:
    """Capture by Dynamo.

    `dynamic_dims` are the axes of the four-dimensional inputs whose sizes stay open where the model allows it.
    """

    def backend(gm: GraphModule, example_inputs: list[Any]) -> Callable[..., Any]:
        graph = capture_dynamo(gm, example_inputs)
        sites = captured.add(graph)

        def call(*inputs: Any) -> Any:
            recorder = Recorder(graph.module, sites)
            results = recorder.run(*inputs)
            captured.attentions += recorder.attentions
            captured.values |= recorder.values
            return results

        return call

    def run(args: Sequence[Any], kwargs: Mapping[str, Any] | None = None) -> list[Attention]:
        captured.attentions = []
        captured.output = compiled(*args, **(kwargs or {}))
        return captured.attentions

    torch._dynamo.reset()
    captured = Captured(run)
    compiled = torch.compile(model, backend=backend)
    for leaf in pytree.tree_leaves((args, kwargs)):
        if isinstance(leaf, Tensor) and leaf.ndim == 4:
            for dim in dynamic_dims:
                torch._dynamo.maybe_mark_dynamic(leaf, dim)
    run(args, kwargs)
    return captured


@cache
def of_case(name: str, road: str) -> Captured:
    """A model of the zoo, captured once for all tests."""
    model, inputs = CASES[name].build(), CASES[name].inputs()
    with no_fast_path():
        return (by_export if road == "export" else by_dynamo)(model, *inputs)


def open_dims(case: Case) -> tuple[int, ...]:
    """The axes of a case's images that may be open."""
    return (0, 2, 3) if case.dynamic == "image" else (0,)


def assert_row_major(captured: Captured, inputs: Inputs, size: tuple[int, int]) -> None:
    """The first site's claim of its grid, executed: a change to the patch at (row, column) of the last image changes
    token extra_before + row · columns + column of the last q, k and v, and nothing else of them."""
    site = captured.sites[0]
    rows, columns = map(int, site.grid)
    before = captured.run(*inputs)[0]
    for row, column in ((0, columns - 1), (rows // 2, columns // 2)):

        def change(leaf: Any, row: int = row, column: int = column) -> Any:
            if isinstance(leaf, Tensor) and leaf.shape[-2:] == size:
                leaf = leaf.clone()
                patch = leaf.unflatten(-1, (columns, -1)).unflatten(-3, (rows, -1))[-1, :, row, :, column]
                patch += torch.rand_like(patch) + 1
            return leaf

        after = captured.run(*pytree.tree_map(change, inputs))[0]
        for old, new in ((before.q, after.q), (before.k, after.k), (before.v, after.v)):
            changed = (old != new).flatten(2).any(dim=2).nonzero().tolist()
            assert changed == [[len(old) - 1, site.extra_before + row * columns + column]]


@contextlib.contextmanager
def no_fast_path() -> Iterator[None]:
    """Keeps `nn.TransformerEncoderLayer` from running as one operator, which it does without gradients."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def canonical(tensor: Tensor, layout: Layout, site: AttentionSite) -> Tensor:
    """[batch, token, head, head_dim], as the layout says: of merged axes, the batch is what the others leave."""
    sizes = {"h": site.num_heads, "d": site.head_dim}
    parts: list[str] = []
    for dim, role in reversed(list(enumerate(layout.roles))):
        if not role:
            tensor = tensor.squeeze(dim)
        elif len(role) > 1:
            tensor = tensor.unflatten(dim, [sizes.get(part, -1) for part in role])
        parts = [*role, *parts]
    assert len(set(parts)) == len(parts) == tensor.ndim, f"{layout} does not fit {tuple(tensor.shape)}"
    for letter in {"b", "h"} - {part[0] for part in parts}:
        parts, tensor = [*parts, letter], tensor.unsqueeze(-1)
    order = sorted(parts, key=lambda part: ("bthd".index(part[0]), part))
    tensor = tensor.permute([parts.index(part) for part in order])
    for letter in "hb":  # the rightmost first: places left of it stay
        numbered = [dim for dim, part in enumerate(order) if part[0] == letter]
        tensor = tensor.flatten(numbered[0], numbered[-1])
    if tensor.shape[2] == site.kv_heads:
        tensor = tensor.repeat_interleave(site.num_heads // site.kv_heads, 2)
    assert tensor.shape[2:] == (site.num_heads, site.head_dim)
    return tensor


class Recorder(Interpreter):
    """Runs a graph, its regions too, and keeps what each site reads and gives at the moment of its result."""

    def __init__(self, module: GraphModule, sites: Sites, outer: Recorder | None = None):
        super().__init__(module)
        self.sites = sites
        self.view: GraphView = outer.view if outer else GraphView(module)
        self.values: dict[Node, Any] = outer.values if outer else {}
        self.attentions: list[Attention] = outer.attentions if outer else []

    def run_node(self, node: Node) -> Any:
        self.values[node] = value = super().run_node(node)
        for site in self.sites:
            if site.out.node is node:
                operands = (self.read(site, each) for each in (site.q, site.k, site.v, site.out))
                self.attentions.append(Attention(site, *operands))
        return value

    def read(self, site: AttentionSite, operand: Operand) -> Tensor:
        """A copy of an operand's present value, in canonical form."""
        value = self.values[self.view.resolve(operand.node)]
        return canonical(value, operand.layout, site).detach().clone()

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        if target not in REGION_OPERANDS:
            return super().call_function(target, args, kwargs)
        count = REGION_OPERANDS[target]
        options, module, operands = args[: count - 1], args[count - 1], args[count:]
        if target is torch.ops.higher_order.wrap_with_autocast:
            device, dtype, enabled, caches = options
            region: Any = torch.autocast(device, dtype=dtype, enabled=enabled, cache_enabled=caches)
        else:
            region = torch.set_grad_enabled(options[0])
        with region:
            return Recorder(module, self.sites, outer=self).run(*operands)
