"""Captures models by both roads and runs what was captured, so that a site's claims can be held against real values."""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Interpreter, Node
from torch.utils import _pytree as pytree

from jetvit.passes.capture import capture, capture_dynamo, export_model
from jetvit.passes.graph import RewritableGraph
from jetvit.patterns import AttentionSite, Layout, Sites, find_sites
from jetvit.patterns.regions import REGION_OPERANDS, GraphView
from tests.zoo import CASES, Case

ROADS = ("export", "dynamo")
_higher_order = torch.ops.higher_order


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

    def error(self) -> float:
        """How far the result is from the reference, relative to the reference's norm."""
        reference = self.reference()
        return float((self.out.double() - reference).norm() / reference.norm())

    def assert_true(self) -> None:
        """The site's claim, executed: its result is full attention from its q, k and v."""
        narrow = self.site.autocast is not None or self.site.dtype in (torch.bfloat16, torch.float16)
        assert self.error() < (2e-2 if narrow else 1e-5), f"{self.site.name}: off by {self.error():.1e}"


@dataclass
class Captured:
    """What one road makes of a model: its graphs (several on the Dynamo road), their sites and near misses.

    `attentions` holds the values of each site, and `output` what the graphs computed, in the run that captured them.
    """

    graphs: list[RewritableGraph] = field(default_factory=list)
    sites: Sites = field(default_factory=Sites)
    attentions: list[Attention] = field(default_factory=list)
    output: Any = None
    run: Callable[..., list[Attention]] | None = None

    def add(self, graph: RewritableGraph) -> Sites:
        sites = find_sites(graph)
        self.graphs.append(graph)
        self.sites.extend(sites)
        self.sites.rejected.extend(sites.rejected)
        return sites


def by_export(
    model: nn.Module, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None, dynamic_shapes: Any = None
) -> Captured:
    """The export road; the graph is run once on the inputs. `run(args, kwargs)` runs it again on others."""
    program = export_model(model, args, kwargs, dynamic_shapes)
    graph = capture(program)
    captured = Captured()
    sites = captured.add(graph)

    def run(args: Sequence[Any], kwargs: Mapping[str, Any] | None = None) -> list[Attention]:
        given = iter(pytree.tree_leaves((tuple(args), dict(kwargs or {}))))
        inputs = [
            graph.tensor(node) if node in graph.tensor_names else next(given)
            for node in graph.module.graph.nodes
            if node.op == "placeholder"
        ]
        recorder = Recorder(graph, sites)
        captured.output = recorder.run(*inputs)
        return recorder.attentions

    captured.attentions, captured.run = run(args, kwargs), run
    return captured


def by_dynamo(
    model: Callable[..., Any],
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    dynamic_dims: Sequence[int] = (),
) -> Captured:
    """The Dynamo road, in inference; the compiled model is run once on the inputs.

    `dynamic_dims` are the axes of the four-dimensional inputs whose sizes stay open where the model allows it.
    """
    captured = Captured()

    def backend(gm: torch.fx.GraphModule, example_inputs: list[Any]) -> Callable[..., Any]:
        graph = capture_dynamo(gm, example_inputs)
        sites = captured.add(graph)

        def run(*inputs: Any) -> Any:
            recorder = Recorder(graph, sites)
            results = recorder.run(*inputs)
            captured.attentions += recorder.attentions
            return results

        return run

    torch._dynamo.reset()
    for leaf in pytree.tree_leaves((args, kwargs)):
        if isinstance(leaf, Tensor) and leaf.ndim == 4:
            for dim in dynamic_dims:
                torch._dynamo.maybe_mark_dynamic(leaf, dim)
    with torch.no_grad():
        captured.output = torch.compile(model, backend=backend)(*args, **(kwargs or {}))
    return captured


def by(road: str, model: nn.Module, *args: Any, **kwargs: Any) -> Captured:
    """One of `ROADS`."""
    return {"export": by_export, "dynamo": by_dynamo}[road](model, args, kwargs)


@cache
def of_case(name: str, road: str, dynamic: bool = False) -> Captured:
    """A model of the zoo, captured once for all tests; with `dynamic`, with every size open that it can leave open."""
    case = CASES[name]
    model, (args, kwargs) = case.build(), case.inputs()
    with no_fast_path():
        if road == "export":
            return by_export(model, args, kwargs, case.dynamic_shapes(args, kwargs) if dynamic else None)
        return by_dynamo(model, args, kwargs, dynamic_dims(case) if dynamic else ())


def dynamic_dims(case: Case) -> tuple[int, ...]:
    """The axes of a case's images that may be open."""
    return (0, 2, 3) if case.dynamic == "image" else (0,)


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
    """[batch, token, head, head_dim], as the layout says: a size that it does not tell is the batch's."""
    known = {"h": site.num_heads, "d": site.head_dim, "t": site.tokens if isinstance(site.tokens, int) else -1}
    letters = ""
    for dim, role in reversed(list(enumerate(layout.roles))):
        if len(role) != 1:  # a merged axis, or one of size 1 that plays no role
            tensor = tensor.unflatten(dim, [known.get(letter, -1) for letter in role]) if role else tensor.squeeze(dim)
        letters = "".join(role) + letters
    assert len(set(letters)) == len(letters) == tensor.ndim, f"{layout} does not fit {tuple(tensor.shape)}"
    for letter in "bthd":
        if letter not in letters:
            letters, tensor = letters + letter, tensor.unsqueeze(-1)
    return tensor.permute([letters.index(letter) for letter in "bthd"])


class Recorder(Interpreter):
    """Runs a graph, its regions too, and keeps what each site reads and gives at the moment of its result."""

    def __init__(self, graph: RewritableGraph, sites: Sites):
        super().__init__(graph.module)
        self.view = GraphView(graph.module)
        self.by_out = {site.out.node: site for site in sites}
        self.values: dict[Node, Any] = {}
        self.attentions: list[Attention] = []

    def run_node(self, node: Node) -> Any:
        value = super().run_node(node)
        self.values[node] = value
        if (site := self.by_out.get(node)) is not None:
            read = {
                role: canonical(self.values[self.view.resolve(operand.node)], operand.layout, site).clone()
                for role, operand in (("q", site.q), ("k", site.k), ("v", site.v), ("out", site.out))
            }
            self.attentions.append(Attention(site, **read))
        return value

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        if target not in REGION_OPERANDS:
            return super().call_function(target, args, kwargs)
        first = REGION_OPERANDS[target]
        options, module, operands = args[: first - 1], args[first - 1], args[first:]
        if target is _higher_order.wrap_with_autocast:
            device, dtype, enabled, caches = options
            region: Any = torch.autocast(device, dtype=dtype, enabled=enabled, cache_enabled=caches)
        else:
            region = torch.set_grad_enabled(options[0])
        with region:
            return self._inside(module).run(*operands)

    def _inside(self, module: torch.fx.GraphModule) -> Interpreter:
        inner = Recorder.__new__(Recorder)
        Interpreter.__init__(inner, module)
        inner.view, inner.by_out, inner.values, inner.attentions = (
            self.view, self.by_out, self.values, self.attentions,
        )  # fmt: skip
        return inner


__all__ = ["ROADS", "Attention", "Captured", "Recorder", "by", "by_dynamo", "by_export", "of_case", "operator"]
