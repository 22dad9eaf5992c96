"""Check that a plan fits a graph, and report the differences. Nothing here changes the graph."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

import torch

from jetvit.cost_model import Choice, NameMatch, Plan, base_warning, check_base, match_names, renamed_matches
from jetvit.kernels.linear_attention.arguments import LinearAttentionArgs
from jetvit.kernels.window_attention.arguments import WindowAttentionArgs
from jetvit.passes.graph.rewritable import RewritableGraph
from jetvit.patterns.errors import MEND_THE_BREAK, NAME_THE_GRID, PlanError
from jetvit.patterns.find import UNNAMED
from jetvit.patterns.operator_args import arguments_of
from jetvit.patterns.site import AttentionSite, Rejection, Rewritten, Sites, lacks_grid
from jetvit.patterns.sizes import is_static
from jetvit.patterns.wording import counted

log = logging.getLogger(__name__)


def covers(site: AttentionSite, choice: Choice) -> bool:
    """True for a window that holds the whole grid of a fixed size: full attention under another name."""
    height, width = site.grid
    return is_static(height) and is_static(width) and choice.covers((int(height), int(width)))


def rewritten_choice(entry: Rewritten) -> Choice:
    """The choice that a rewritten site was made from."""
    arguments = arguments_of(entry.node)
    if isinstance(arguments, WindowAttentionArgs):
        return Choice("window", window=(arguments.window_h, arguments.window_w))
    assert isinstance(arguments, LinearAttentionArgs)
    return Choice("linear", conv_size=arguments.conv_size, eps=arguments.eps, feature_map=arguments.feature_map)


def refused_sites(plan: Plan, sites: Sites, partial: bool) -> Iterator[tuple[str, Rejection]]:
    """The sites that a plan changes and that the graph has as attentions which cannot be rewritten, by the plan's name.

    In a part of a model an attention may have lost its name: a site, or what crosses the edge of the part, may be any
    of the plan's.
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
        reason = "behind a graph break the module that it belongs to is not known"
        nameless = [Rejection(site.name, reason, site.out.node, site.source, crosses_edge=True) for site in sites]
        for rejection in (*nameless, *sites.rejected):
            if rejection.name.partition("#")[0] == UNNAMED and rejection.crosses_edge:
                yield f"an attention whose name is lost, maybe {changed[0]}", rejection


def refusal(refused: Sequence[tuple[str, Rejection]], partial: bool) -> PlanError:
    (name, rejection), others = refused[0], len(refused) - 1
    advice = [MEND_THE_BREAK] if rejection.crosses_edge and partial else []
    if lacks_grid(rejection.reason):
        advice.append(NAME_THE_GRID)
    if not (rejection.crosses_edge and advice):
        advice.append("see jetvit.explain for all attentions of the model, and make a plan without this one")
    if partial:
        advice.append('allow full attention there with options={"partial": "warn"}')
    return PlanError(
        f"the plan changes {name}{f' and {others} more' if others else ''}, which cannot be rewritten here",
        why=rejection.reason,
        where=rejection.source,
        do="; or ".join(advice),
    )


def check_part(plan: Plan, match: NameMatch, sites: Sites, graph: RewritableGraph) -> None:
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
                why=f"{name} is in this graph, without {counted(len(match.absent), 'site')} of the plan",
                where=f"site {match.absent[0]} of the plan",
                do=MEND_THE_BREAK,
            )


def check_same_plan(plan: Plan, sites: Sites, graph: RewritableGraph) -> None:
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


def check_base_weights(plan: Plan, match: NameMatch, graph: RewritableGraph) -> list[str]:
    """Refuse a model with other weights than the plan was made on; what could not be compared is a note."""
    absent = check_base({match.rename(name): sample for name, sample in plan.base_samples.items()}, graph.values())
    if not absent:
        return []
    others = f" and {len(absent) - 1} more" if len(absent) > 1 else ""
    note = f"the plan's samples of {absent[0]}{others} could not be compared: the model has none of that name"
    log.warning("%s", note)
    return [note]


def notes_on(
    plan: Plan, match: NameMatch, sites: Sites, graph: RewritableGraph, refused: Sequence[tuple[str, Rejection]]
) -> list[str]:
    """Notes for the user, which are logged as warnings."""
    notes = [f"{name} keeps full attention, against the plan: {rejection.reason}" for name, rejection in refused]
    if absent := [name for name in match.absent if name not in dict(refused)]:
        notes.append(f"this graph lacks {counted(len(absent), 'site')} of the plan, first {absent[0]}")
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
