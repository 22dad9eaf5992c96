"""`find_sites`: every full attention of a captured graph, and every near miss with its reason."""

from __future__ import annotations

import logging
from dataclasses import replace

from torch.fx import Node

from jetvit.patterns.captured import CapturedGraph
from jetvit.patterns.cores import Core, find_cores
from jetvit.patterns.geometry import Geometry, Refused, read_geometry
from jetvit.patterns.known_axes import entries
from jetvit.patterns.names import module_name, source_line, unique
from jetvit.patterns.projections import read_projections
from jetvit.patterns.regions import GraphView
from jetvit.patterns.rope import RopeReader
from jetvit.patterns.site import AttentionSite, Operand, Rejection, Rewritten, Sites
from jetvit.patterns.storage import storage, writes
from jetvit.patterns.walk import LayoutWalk

log = logging.getLogger(__name__)

UNNAMED = "(root)"
"""What an attention is called that is in no module of the model, or in the model itself."""


def find_sites(graph: CapturedGraph) -> Sites:
    """Find the full self-attention sites of a graph; the graph is not changed.

    Args:
        graph: a pre-dispatch ATen graph.
    Returns:
        The sites in the order of execution; `.rejected` holds the near misses. Linear in the size of the graph.
    """
    view = GraphView(graph.module, graph.ambient_autocast)
    walk = LayoutWalk(view, graph.tensor_names, entries(graph))
    order = {node: index for index, node in enumerate(view.nodes)}
    mutations, ropes = writes(view), RopeReader(walk)
    answers: dict[Node, tuple[Core, Geometry | Refused] | None] = {
        node: None for node in view.nodes if str(node.target).startswith("jetvit.")
    }
    for core in find_cores(view, walk):
        answers[core.out.node] = (core, _judge(core, walk, mutations, order))
    # Names count through found, refused and rewritten ones alike, so that a rewrite does not rename its neighbours.
    nodes = sorted(answers, key=order.__getitem__)
    names = unique([module_name(node) or UNNAMED for node in nodes])
    sites = Sites()
    for name, node in zip(names, nodes, strict=True):
        answer = answers[node]
        if answer is None:
            sites.rewritten.append(Rewritten(name, node))
            continue
        core, found = answer
        if isinstance(found, Refused):
            sites.rejected.append(_rejection(name, node, found))
        else:
            site = _site(name, core, found, graph, view)
            sites.append(replace(site, rope=ropes.read(core, site)))
    return sites


def _rejection(name: str, out: Node, refused: Refused) -> Rejection:
    where = source_line(refused.node) or source_line(out)
    log.info("%s: refused: %s (node %s, %s)", name, refused.reason, refused.node.name, where)
    return Rejection(name, refused.reason, refused.node, where, refused.from_inputs)


def _judge(
    core: Core, walk: LayoutWalk, mutations: list[tuple[Node, Node]], order: dict[Node, int]
) -> Geometry | Refused:
    """The geometry of a core, or the reason why it is no site. What the core itself shows comes before its axes."""
    if core.obstacles:
        return Refused(core.obstacles[0].reason, core.obstacles[0].node)
    try:
        geometry = read_geometry(core, walk)
        _check_mutations(core, walk.view, mutations, order)
    except Refused as refused:
        return refused
    return geometry


def _site(name: str, core: Core, geometry: Geometry, graph: CapturedGraph, view: GraphView) -> AttentionSite:
    assert core.q is not None
    assert core.k is not None
    assert core.v is not None
    device = core.out.node.meta["val"].device.type
    log.debug("%s: found (%s), grid %s", name, core.form, geometry.grid)
    return AttentionSite(
        name=name,
        q=Operand(core.q.node, geometry.q),
        k=Operand(core.k.node, geometry.k),
        v=Operand(core.v.node, geometry.v),
        out=Operand(core.out.node, geometry.out),
        num_heads=geometry.num_heads,
        head_dim=geometry.head_dim,
        scale=core.scale,
        grid=geometry.grid,
        extra_before=geometry.extra_before,
        extra_after=geometry.extra_after,
        rope=None,
        projections=read_projections(core, view, graph.tensor_names),
        form=core.form,
        autocast=view.autocast_dtype(core.out.node, device),
        source=source_line(core.out.node),
    )


def _check_mutations(core: Core, view: GraphView, mutations: list[tuple[Node, Node]], order: dict[Node, int]) -> None:
    """q, k and v are read where the attention ends: nothing may write to them after they were first read."""
    if not mutations:
        return
    assert core.q is not None
    assert core.k is not None
    assert core.v is not None
    storages = {storage(side.node, view) for side in (core.q, core.k, core.v)}
    first, last = min(order[node] for node in (*core.nodes, *core.peeled)), order[core.out.node]
    for node, target in mutations:
        if target is core.out.node:
            raise Refused("the result of the attention is changed in place", node)
        if first < order[node] < last and node not in core.nodes and target in storages:
            raise Refused("q, k or v is changed in place while the attention reads them", node)
