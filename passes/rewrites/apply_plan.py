"""Approximate, and done only because a plan says so: full attention becomes window or linear attention.

What a plan asks for is either done at every site that it names, or refused before the first: a graph is never left half
rewritten. The softmax scale goes into window attention and plays no part in linear attention. A rotary embedding goes
into the operator where that is provably the same.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.fx import Node

from jetvit.cost_model import Choice, Plan
from jetvit.kernels.arguments import OperatorArgs
from jetvit.kernels.linear_attention.arguments import LinearAttentionArgs
from jetvit.kernels.window_attention.arguments import WindowAttentionArgs
from jetvit.passes.graph.base import PassResult
from jetvit.passes.graph.rewritable import RewritableGraph
from jetvit.passes.rewrites.plan_checks import (
    check_base_weights,
    check_part,
    check_same_plan,
    covers,
    notes_on,
    refusal,
    refused_sites,
)
from jetvit.passes.rewrites.rope import OperatorOperands
from jetvit.patterns.errors import PlanError
from jetvit.patterns.regions import GraphView
from jetvit.patterns.site import AttentionSite

log = logging.getLogger(__name__)

GENERATOR = ("w1", "b1", "w2", "b2")


@dataclass(frozen=True)
class ApplyPlan:
    """Rewrite the sites that a plan names.

    Args:
        plan: the plan.
        partial: the graph may hold only some of the plan's sites (Dynamo, after a graph break).
        skip_refused: attentions that the plan changes and that cannot be rewritten stay as they are, with a warning.
    """

    plan: Plan
    partial: bool = False
    skip_refused: bool = False
    name: ClassVar[str] = "apply-plan"

    def __call__(self, graph: RewritableGraph) -> PassResult:
        sites = graph.sites()
        if sites.rewritten:
            check_same_plan(self.plan, sites, graph)
            return PassResult(notes=("the plan was applied before",), planned=self.plan.fingerprint.names)
        refused = list(refused_sites(self.plan, sites, self.partial))
        if refused and not (self.partial and self.skip_refused):
            raise refusal(refused, self.partial)
        match = self.plan.match(sites, partial=self.partial, tensors=graph.values())
        if match.absent:
            check_part(self.plan, match, sites, graph)
        notes = notes_on(self.plan, match, sites, graph, refused)
        weights = {match.rename(name): tensor for name, tensor in self.plan.weights.items()}
        chosen = {site: self.plan.choice_for(name) for site, name in match.planned.items()}
        work = [(site, chosen[site.name]) for site in sites if _changes(site, chosen.get(site.name))]
        owners = {site.name: match.calls.get(site.name, site.name) for site, _ in work}
        generators = {site.name: _generator(site, owners[site.name], choice, weights) for site, choice in work}
        replaced = 0
        if weights and not match.absent:
            notes += check_base_weights(self.plan, match, graph)
            new = {name for owner in owners.values() for name in generator_names(owner)}
            replaced = _replace_base(graph, weights, new)
        added: dict[str, Node] = {}
        for site, choice in work:
            _rewrite(graph, site, choice, generators[site.name], weights, added)
        planned = (*match.mapping, *(name for name, _ in refused))
        return PassResult(len(work) + replaced, tuple(notes), planned)


def _changes(site: AttentionSite, choice: Choice | None) -> bool:
    """False for full attention, and for a window that covers the grid, which is full attention."""
    return choice is not None and choice.kind != "full" and not covers(site, choice)


def _rewrite(
    graph: RewritableGraph,
    site: AttentionSite,
    choice: Choice,
    generator: Mapping[str, str],
    weights: Mapping[str, torch.Tensor],
    added: dict[str, Node],
) -> None:
    """Put an operator in the place of a site.

    generator: part of the kernel generator → its FQN in `weights`.
    added: the weights of generators that the graph has got so far: several calls of a module share them.
    """
    view = GraphView(graph.module, graph.ambient_autocast)
    operands = OperatorOperands(graph, site, view)
    common, insertion = operands.common, operands.insertion
    if choice.window is not None:
        target = torch.ops.jetvit.window_attention.default
        window_h, window_w = choice.window
        arguments: OperatorArgs = WindowAttentionArgs(**common, window_h=window_h, window_w=window_w, scale=site.scale)
    else:
        target = torch.ops.jetvit.linear_attention.default
        for name in generator.values():
            if name not in added:
                added[name] = graph.add_tensor(name, _like(weights[name], operands.v))
        nodes = {part: insertion.bring(added[name]) for part, name in generator.items()}
        parts = {part: nodes.get(part) or operands.absent for part in GENERATOR}
        options = {"conv_size": choice.conv_size, "eps": choice.eps, "feature_map": choice.feature_map}
        arguments = LinearAttentionArgs(**common, **parts, **options)
    operands.replace(insertion.call(target, *arguments))
    log.info("%s: full -> %s", site.name, choice.label)


def generator_names(site: str) -> tuple[str, ...]:
    """FQNs of the kernel generator's weights at a site, in the order of `GENERATOR`."""
    return tuple(f"{site}.linear_attention.{part}" for part in GENERATOR)


def _generator(site: AttentionSite, owner: str, choice: Choice, weights: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """The names of the kernel generator's weights for a site, by their part; `owner` is the site that they belong to.

    Raises:
        PlanError: the choice has a convolution and the plan has no kernel for it, or one of another shape.
    """
    if choice.kind != "linear" or not choice.conv_size:
        return {}
    names = generator_names(owner)
    found = {part: name for part, name in zip(GENERATOR, names, strict=True) if name in weights}
    channels, taps = site.num_heads * site.head_dim, choice.conv_size**2
    if set(found) not in ({"b2"}, set(GENERATOR)):
        raise PlanError(
            f"the plan has no weights for the convolution of {site.name}",
            why=f"it holds {', '.join(found) or 'none'} of {', '.join(names)}",
            do="use a plan from a trained search, or linear attention with conv_size 0",
        )
    hidden = weights[found["b1"]].numel() if "b1" in found else 0
    shapes = {"w1": (hidden, channels), "b1": (hidden,), "w2": (channels * taps, hidden), "b2": (channels * taps,)}
    for part, name in found.items():
        if tuple(weights[name].shape) != shapes[part]:
            raise PlanError(
                f"a weight of the plan has the wrong shape at {site.name}",
                why=f"{part} is {list(weights[name].shape)}, and {choice.label} needs {list(shapes[part])}",
                do="make the plan again",
            )
    return found


def _replace_base(graph: RewritableGraph, weights: Mapping[str, torch.Tensor], new: set[str]) -> int:
    """Put the plan's values in the place of the model's, where it changes a weight of the model; returns how many."""
    changed = {name: tensor for name, tensor in weights.items() if name not in new}
    for name, tensor in changed.items():
        node = graph.node_of(name)
        if node is None or tuple(node.meta["val"].shape) != tuple(tensor.shape):
            found = "not there" if node is None else f"{list(node.meta['val'].shape)}"
            raise PlanError(
                f"the plan changes {name}, which does not fit the model",
                why=f"it is {found} in the model and {list(tensor.shape)} in the plan",
                do="apply the plan to the model that it was made on",
            )
        graph.replace_tensor(node, _like(tensor, node))
    return len(changed)


def _like(tensor: torch.Tensor, node: Node) -> torch.Tensor:
    """A plan's tensor in the dtype and on the device of the tensors around it."""
    value = node.meta["val"]
    moved = tensor.detach().to(device=value.device, dtype=value.dtype)
    return torch.nn.Parameter(moved, requires_grad=moved.is_floating_point() and not moved.is_inference())
