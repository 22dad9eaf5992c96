"""Plans, both roads, and an oracle: the captured graph run node by node, the attention of each site computed by hand.

The oracle knows where a site's q, k, v and result are (`tests/patterns` holds that against real values), and nothing of
the passes: no layout, no cast, no operand of a region is inserted.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import Interpreter, Node
from torch.utils import _pytree as pytree

import jetvit
from jetvit.cost_model import Choice, Fingerprint, Plan, SitePlan
from jetvit.kernels import linear_attention, window_attention
from jetvit.passes import pipeline
from jetvit.passes.frontends.capture import export_model
from jetvit.passes.graph.rewritable import ExportedGraph
from jetvit.patterns import AttentionSite, Sites, find_sites
from jetvit.patterns.regions import REGION_OPERANDS, GraphView
from tests.patterns.roads import canonical
from tests.zoo import CASES

aten = torch.ops.aten
ROADS = ("export", "dynamo")
WINDOW, LINEAR, FULL = Choice("window", window=(2, 3)), Choice("linear"), Choice("full")
ALTERNATING = (WINDOW, LINEAR)
Inputs = tuple[tuple[Any, ...], dict[str, Any]]


# --- plans and rewrites -----------------------------------------------------------------------------------------------


def plan_of(sites: Sequence[AttentionSite], choices: Sequence[Choice] = ALTERNATING, **fields: Any) -> Plan:
    """A plan that gives the sites the choices in turn."""
    turns = zip(sites, itertools.cycle(choices), strict=False)
    return Plan(tuple(SitePlan(site.name, choice) for site, choice in turns), Fingerprint.of(sites), **fields)


def sites_of(model: nn.Module | ExportedProgram, *args: Any, **kwargs: Any) -> Sites:
    return jetvit.find_attention(model, *args, kwargs=kwargs)


def by_road(
    road: str, model: nn.Module, inputs: Inputs, plan: Plan | None = None, **options: Any
) -> Callable[..., Any]:
    """The model rewritten on a road, as a function that takes its inputs."""
    if road == "export":
        return jetvit.optimize(model, *inputs[0], kwargs=inputs[1], plan=plan)
    return compiled(model, plan=plan, **options)


def compiled(model: Any, inner: str = "eager", **options: Any) -> Callable[..., Any]:
    return torch.compile(model, backend="jetvit", options={"inner": inner, **options})


def rewrite(program: ExportedProgram, plan: Plan | None = None) -> tuple[ExportedGraph, dict[str, int]]:
    """The graph after the pipeline, and how often each pass fired."""
    rewritten = pipeline.rewrite(ExportedGraph(program), plan)
    return rewritten.graph, {record.name: record.fired for record in rewritten.records}


@cache
def exported(name: str) -> tuple[nn.Module, Inputs, ExportedProgram]:
    """A model of the zoo, its inputs and its program, captured once for all tests."""
    model, inputs = CASES[name].build(), CASES[name].inputs()
    return model, inputs, export_model(model, *inputs)


# --- what is in a graph -----------------------------------------------------------------------------------------------


def nodes_of(module: nn.Module) -> list[Node]:
    """The calls of a graph and of its regions."""
    graphs = [each.graph for each in module.modules() if isinstance(each, torch.fx.GraphModule)]
    return [node for graph in graphs for node in graph.nodes if node.op == "call_function"]


def count(module: nn.Module, *targets: Any) -> int:
    """How often operators are called, in regions too."""
    return sum(node.target in targets for node in nodes_of(module))


# --- comparison -------------------------------------------------------------------------------------------------------


def error(actual: Any, expected: Any) -> float:
    """The largest relative error, in norm, of any tensor; the structures and dtypes must be equal."""
    ours, our_spec = pytree.tree_flatten(actual)
    theirs, their_spec = pytree.tree_flatten(expected)
    assert our_spec == their_spec
    assert type(actual) is type(expected)
    worst = 0.0
    for a, b in zip(ours, theirs, strict=True):
        if not isinstance(b, Tensor):
            assert a == b
            continue
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert a.isfinite().all()
        worst = max(worst, ((a.double() - b.double()).norm() / b.double().norm().clamp(min=1e-12)).item())
    return worst


def assert_close(actual: Any, expected: Any, tolerance: float = 1e-5) -> None:
    found = error(actual, expected)
    assert found < tolerance, f"off by {found:.1e}"


# --- the oracle -------------------------------------------------------------------------------------------------------


def planned(
    model: nn.Module | ExportedProgram, inputs: Inputs, plan: Plan, weights: Mapping[str, Tensor] | None = None
) -> Any:
    """What a model must give with a plan; `weights` take the place of those of the same name."""
    program = export_model(model, *inputs)
    graph = ExportedGraph(program)
    state = {**program.constants, **program.state_dict, **(weights or {})}
    given = iter(pytree.tree_leaves(inputs))
    placeholders = [node for node in graph.module.graph.nodes if node.op == "placeholder"]
    values = [state[graph.tensor_names[node]] if node in graph.tensor_names else next(given) for node in placeholders]
    outputs = _Oracle(graph.module, find_sites(graph), plan).run(*values)
    return pytree.tree_unflatten(outputs, program.call_spec.out_spec)


class _Oracle(Interpreter):
    def __init__(self, module: torch.fx.GraphModule, sites: Sites, plan: Plan, outer: _Oracle | None = None):
        super().__init__(module)
        self.sites, self.plan = sites, plan
        self.view: GraphView = outer.view if outer else GraphView(module)
        self.values: dict[Node, Any] = outer.values if outer else {}

    def run_node(self, n: Node) -> Any:
        self.values[n] = value = super().run_node(n)
        for site in self.sites:
            choice = self.plan.choice_for(site.name)
            if site.out.node is n and choice.kind != "full":
                # In the strides of the original's: what reads it may be a `view`.
                self.values[n] = value = value.clone().copy_(self._attend(site, choice, value))
        return value

    def _attend(self, site: AttentionSite, choice: Choice, value: Tensor) -> Tensor:
        sides = [
            canonical(self.values[self.view.resolve(side.node)], side.layout, site) for side in (site.q, site.k, site.v)
        ]
        q, k, v = (side.to(site.autocast or side.dtype).contiguous() for side in sides)
        return _placed(attend(q, k, v, site, choice, self.plan.weights), value, site)

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        if target not in REGION_OPERANDS:
            return super().call_function(target, args, kwargs)
        operands = REGION_OPERANDS[target]
        options, module, inner = args[: operands - 1], args[operands - 1], args[operands:]
        if target is torch.ops.higher_order.wrap_with_autocast:
            device, dtype, enabled, caches = options
            region: Any = torch.autocast(device, dtype=dtype, enabled=enabled, cache_enabled=caches)
        else:
            region = torch.set_grad_enabled(options[0])
        with region:
            return _Oracle(module, self.sites, self.plan, outer=self).run(*inner)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    site: AttentionSite,
    choice: Choice,
    weights: Mapping[str, Tensor] = {},
) -> Tensor:
    """The attention of a choice on [batch, token, head, head_dim], by the operators' own references."""
    absent = q.new_empty(0)
    before, grid = int(site.extra_before), tuple(map(int, site.grid))
    if choice.window is not None:
        return window_attention(q, k, v, absent, absent, *grid, before, *choice.window, site.scale)
    parts = [weights.get(f"{site.name}.linear_attention.{part}", absent) for part in ("w1", "b1", "w2", "b2")]
    return linear_attention(
        q, k, v, absent, absent, *parts, *grid, before, choice.conv_size, choice.eps, choice.feature_map
    )


def _placed(tensor: Tensor, out: Tensor, site: AttentionSite) -> Tensor:
    """[batch, token, head, head_dim] in a site's own layout, that of its result `out`."""
    parts = site.out.layout.parts
    sizes = dict(zip("bthd", tensor.shape, strict=True))
    for role, size in zip(site.out.layout.roles, out.shape, strict=True):
        if len(role) == 1:
            sizes[role[0]] = size
    merged = [part for role in site.out.layout.roles if len(role) > 1 for part in role]
    for part in merged:
        whole = sizes[part[0]]
        others = (sizes[each] for each in parts if each[0] == part[0] and each != part)
        sizes[part] = whole // math.prod(others)
    parts = [*parts, *(letter for letter in "bthd" if letter not in {part[0] for part in parts})]
    counted = sorted(parts, key=lambda part: ("bthd".index(part[0]), part))
    apart = tensor.reshape([sizes[part] for part in counted])
    return apart.permute([counted.index(part) for part in parts]).reshape(out.shape)
