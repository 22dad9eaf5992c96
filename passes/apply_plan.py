"""Approximate, and done only because a plan says so: full attention becomes window or linear attention.

What a plan asks for is either done at every site that it names, or refused before the first: a graph is never left half
rewritten. The softmax scale goes into window attention and plays no part in linear attention. A rotary embedding goes
into the operator where that is provably the same.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.fx import Node

import jetvit.kernels  # noqa: F401  registers the operators
from jetvit.cost_model import Choice, NameMatch, Plan, base_warning, check_base, match_names, renamed_matches
from jetvit.passes.base import PassResult
from jetvit.passes.graph import RewritableGraph
from jetvit.passes.rope import OperatorOperands
from jetvit.patterns.errors import PlanError
from jetvit.patterns.find import UNNAMED, find_sites
from jetvit.patterns.regions import GraphView
from jetvit.patterns.site import AttentionSite, Rejection, Rewritten, Sites
from jetvit.patterns.sizes import is_static

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
        sites = find_sites(graph)
        if sites.rewritten:
            _check_same_plan(self.plan, sites, graph)
            return PassResult(notes=("the plan was applied before",))
        refused = list(_refused(self.plan, sites, self.partial))
        if refused and not (self.partial and self.skip_refused):
            raise _refusal(refused, self.partial)
        match = self.plan.match(sites, partial=self.partial, tensors=graph.values())
        if match.absent:
            _check_part(self.plan, match, sites, graph)
        notes = _notes(self.plan, match, sites, graph, refused)
        weights = {match.rename(name): tensor for name, tensor in self.plan.weights.items()}
        chosen = {site: self.plan.choice_for(name) for site, name in match.planned.items()}
        work = [(site, chosen[site.name]) for site in sites if _changes(site, chosen.get(site.name))]
        owners = {site.name: match.calls.get(site.name, site.name) for site, _ in work}
        generators = {site.name: _generator(site, owners[site.name], choice, weights) for site, choice in work}
        replaced = 0
        if weights and not match.absent:
            notes += _check_base(self.plan, match, graph)
            new = {name for owner in owners.values() for name in generator_names(owner)}
            replaced = _replace_base(graph, weights, new)
        added: dict[str, Node] = {}
        for site, choice in work:
            _rewrite(graph, site, choice, generators[site.name], weights, added)
        return PassResult(len(work) + replaced, tuple(notes))


def _refused(plan: Plan, sites: Sites, partial: bool) -> Iterator[tuple[str, Rejection]]:
    """The sites that a plan changes and that the graph has as attentions which cannot be rewritten, by the plan's name.

    In a part of a graph an attention may have lost its name: one that needs what lies before the part may be any site.
    """
    rejected = {rejection.name: rejection for rejection in sites.rejected}
    try:
        names = (entry.name for entry in plan.sites)
        match = match_names(names, [*(site.name for site in sites), *rejected], partial=True)
    except PlanError:
        return  # of several parts of a model: that is the first thing to tell
    changed = [entry.name for entry in plan.sites if entry.choice.kind != "full"]
    for name in changed:
        if (rejection := rejected.get(match.mapping.get(name, ""))) is not None:
            yield name, rejection
    if partial and changed and not match.mapping:
        for rejection in sites.rejected:
            if rejection.name.partition("#")[0] == UNNAMED and rejection.from_inputs:
                yield f"an attention whose name is lost, maybe {changed[0]}", rejection


def _refusal(refused: Sequence[tuple[str, Rejection]], partial: bool) -> PlanError:
    (name, rejection), others = refused[0], len(refused) - 1
    if rejection.from_inputs:
        do = "compile with fullgraph=True to see where the graph breaks, or use jetvit.optimize"
    else:
        do = "see jetvit.explain for all attentions of the model, and make a plan without this one"
    return PlanError(
        f"the plan changes {name}{f' and {others} more' if others else ''}, which cannot be rewritten here",
        why=rejection.reason,
        where=rejection.source,
        do=do + (', or allow full attention there with options={"partial": "warn"}' if partial else ""),
    )


def _changes(site: AttentionSite, choice: Choice | None) -> bool:
    """False for full attention, and for a window that covers the grid, which is full attention."""
    return choice is not None and choice.kind != "full" and not covers(site, choice)


def covers(site: AttentionSite, choice: Choice) -> bool:
    """True for a window that holds the whole grid of a fixed size: full attention under another name."""
    height, width = site.grid
    return is_static(height) and is_static(width) and choice.covers((int(height), int(width)))


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
    tensors, place, insertion = operands.tensors, operands.place, operands.insertion
    if choice.window is not None:
        target = torch.ops.jetvit.window_attention.default
        result = insertion.call(target, *tensors, *place, *choice.window, site.scale)
    else:
        target = torch.ops.jetvit.linear_attention.default
        for name in generator.values():
            if name not in added:
                added[name] = graph.add_tensor(name, _like(weights[name], operands.v))
        nodes = {part: insertion.bring(added[name]) for part, name in generator.items()}
        parts = [nodes.get(part) or operands.absent for part in GENERATOR]
        result = insertion.call(target, *tensors, *parts, *place, choice.conv_size, choice.eps, choice.feature_map)
    operands.replace(result)
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


def _check_part(plan: Plan, match: NameMatch, sites: Sites, graph: RewritableGraph) -> None:
    """Refuse a graph that holds a part of the plan's sites where a part is no use.

    The weights of a plan were trained together. One block out of many, which Dynamo sees without the image, is no site.
    """
    if not match.mapping:
        refused = [rejection.name for rejection in sites.rejected]
        match_names((entry.name for entry in plan.sites), refused, partial=True)
    names = {*plan.weights, *plan.base_samples}
    for name in graph.tensor_names.values() if plan.weights else ():
        if any(name == other or name.endswith(f".{other}") or other.endswith(f".{name}") for other in names):
            raise PlanError(
                "a plan with weights needs the whole model in one graph",
                why=f"{name} is in this graph, and {len(match.absent)} sites of the plan are not",
                where=f"site {match.absent[0]} of the plan",
                do="compile with fullgraph=True to see where the graph breaks, or use jetvit.optimize",
            )


def _check_same_plan(plan: Plan, sites: Sites, graph: RewritableGraph) -> None:
    """A plan on a graph that was rewritten already: the same one changes nothing, another one is refused."""
    present = {entry.name: rewritten_choice(entry) for entry in sites.rewritten}
    full = {site.name: site for site in sites}
    match = match_names((entry.name for entry in plan.sites), [*present, *full], partial=True)
    if not match.mapping:
        renamed = list(renamed_matches((entry.name for entry in plan.sites), [*present, *full]))
        match = renamed[0] if len(renamed) == 1 else match
    asked = {
        match.mapping.get(entry.name, entry.name): entry.choice for entry in plan.sites if entry.choice.kind != "full"
    }
    if not any("#" in name for name in plan.fingerprint.names):  # later calls of a module are treated as the first
        asked |= {name: asked[name.partition("#")[0]] for name in (*present, *full) if name.partition("#")[0] in asked}
    for name in sorted({*present, *asked}):
        same = present.get(name) == asked.get(name)
        if not same and not (name in full and name in asked and covers(full[name], asked[name])):
            raise PlanError(
                "the graph was rewritten before, by another plan",
                why=f"{name} is {present.get(name, 'full')} in the graph and {asked.get(name, 'full')} in the plan",
                do="apply the plan to the original model",
            )
    values = graph.values()
    for name, tensor in ((match.rename(name), tensor) for name, tensor in plan.weights.items()):
        found = values.get(name)  # a projection that was merged since is not there
        if found is not None and not torch.equal(found.detach(), tensor.to(found.device, found.dtype)):
            raise PlanError(
                "the graph was rewritten before, by another plan",
                why=f"{name} has other values in the graph than in the plan",
                do="apply the plan to the original model",
            )


def rewritten_choice(entry: Rewritten) -> Choice:
    """The choice that a rewritten site was made from."""
    node = entry.node
    if node.target is torch.ops.jetvit.window_attention.default:
        return Choice("window", window=(node.args[8], node.args[9]))
    conv_size, eps, feature_map = node.args[12:15]
    return Choice("linear", conv_size=conv_size, eps=eps, feature_map=feature_map)


def _check_base(plan: Plan, match: NameMatch, graph: RewritableGraph) -> list[str]:
    """Refuse a model with other weights than the plan was made on; what could not be compared is a note."""
    absent = check_base({match.rename(name): sample for name, sample in plan.base_samples.items()}, graph.values())
    if not absent:
        return []
    others = f" and {len(absent) - 1} more" if len(absent) > 1 else ""
    note = f"the plan's samples of {absent[0]}{others} could not be compared: the model has none of that name"
    log.warning("%s", note)
    return [note]


def _notes(
    plan: Plan, match: NameMatch, sites: Sites, graph: RewritableGraph, refused: Sequence[tuple[str, Rejection]]
) -> list[str]:
    """What the user should be told, and is, as warnings of the log."""
    notes = [f"{name} keeps full attention, against the plan: {rejection.reason}" for name, rejection in refused]
    if absent := [name for name in match.absent if name not in dict(refused)]:
        notes.append(f"{len(absent)} sites of the plan are not in this graph, first {absent[0]}")
    if match.added or match.removed:
        prefix = f"with {match.added!r} added" if match.added else f"without {match.removed!r}"
        log.info("the plan's names are taken %s in front", prefix)
    if match.renamed or match.moved:
        renamed = {old: new for old, new in {**match.mapping, **match.moved}.items() if old != new}
        log.info("names of the plan have changed: %s", ", ".join(f"{old} is {new}" for old, new in renamed.items()))
    base, values = match.here(plan.base), graph.values()
    if match.absent:  # their weights may be in the part that is not here
        base = {name: statistics for name, statistics in base.items() if name in values}
    if not plan.weights and match.mapping and (warning := base_warning(base, values)):
        notes.append(warning)
    if (far := far_from_plan(plan, sites)) is not None:
        notes.append(far)
    for note in notes:
        log.warning("%s", note)
    return notes


def far_from_plan(plan: Plan, sites: Sites) -> str | None:
    """A warning where the token grid differs by more than a factor of two from the one that the plan was made for."""
    made_for = plan.provenance.get("grid")
    if not sites or not isinstance(made_for, list) or not all(is_static(size) for size in sites[0].grid):
        return None
    here = [int(size) for size in sites[0].grid]
    ratio = (here[0] * here[1]) / (made_for[0] * made_for[1])
    if 0.5 <= ratio <= 2:
        return None
    return f"the plan was made for {made_for[0]}×{made_for[1]} tokens, and there are {here[0]}×{here[1]}: measure again"
