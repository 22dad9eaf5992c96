"""`find_sites`: every full attention of a captured graph, and every near miss with its reason."""

from __future__ import annotations

import logging
from dataclasses import replace

from torch.fx import Node

from jetvit.patterns import axes as ax
from jetvit.patterns.aten_sets import PERMUTES
from jetvit.patterns.captured import CapturedGraph
from jetvit.patterns.core import Core, Refused
from jetvit.patterns.cores import find_cores
from jetvit.patterns.geometry import Geometry, read_geometry
from jetvit.patterns.known_axes import entries
from jetvit.patterns.names import module_name, source_line, unique
from jetvit.patterns.projections import read_projections
from jetvit.patterns.regions import GraphView
from jetvit.patterns.rope import RopeReader
from jetvit.patterns.site import AttentionSite, Operand, Rejection, Rewritten, Sites
from jetvit.patterns.storage import storage
from jetvit.patterns.walk import LayoutWalk

log = logging.getLogger(__name__)

UNNAMED = "(root)"
"""The name of an attention that is in no module of the model, or in the model itself."""


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
    ropes, by_name = RopeReader(walk), {node.name: node for node in view.nodes}
    answers: dict[Node, tuple[Core, Geometry | Refused] | None] = {
        node: None for node in view.nodes if str(node.target).startswith("jetvit.")
    }
    for core in find_cores(view, walk):
        answers[core.out.node] = (core, _judge(core, walk, order))
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
            maker = by_name.get(found.tokens.origin)
            pooled = maker is not None and _reads_a_map(maker, walk) and _is_near(module_name(maker), name)
            sites.append(replace(site, rope=ropes.read(core, site), pooled=pooled))
    return sites


def _reads_a_map(node: Node, walk: LayoutWalk) -> bool:
    axes = walk.of(node.args[0]) if node.args else ()
    return any(ax.is_of_a_map(axis) for axis in axes)


def _is_near(module: str, site: str) -> bool:
    """True if a module is that of a site, a part of it, or the one right around it."""
    own = site.partition("#")[0]
    return bool(module) and (f"{module}.".startswith(f"{own}.") or module == own.rpartition(".")[0])


def _rejection(name: str, out: Node, refused: Refused) -> Rejection:
    where = source_line(refused.node) or source_line(out)
    log.info("%s: refused: %s (node %s, %s)", name, refused.reason, refused.node.name, where)
    return Rejection(name, refused.reason, refused.node, where, refused.crosses_edge)


def _judge(core: Core, walk: LayoutWalk, order: dict[Node, int]) -> Geometry | Refused:
    """The geometry of a core, or the reason why it is no site. What the core itself shows comes before its axes."""
    if core.obstacles:
        first = core.obstacles[0]
        return Refused(first.reason, first.node, first.crosses_edge)
    try:
        geometry = read_geometry(core, walk)
        _check_mutations(core, walk, order)
    except Refused as refused:
        return refused
    return geometry


def _site(name: str, core: Core, geometry: Geometry, graph: CapturedGraph, view: GraphView) -> AttentionSite:
    assert core.q is not None
    assert core.k is not None
    assert core.v is not None
    device = core.out.node.meta["val"].device.type
    log.debug("%s: found (%s), grid %s", name, core.form, geometry.tokens.grid)
    return AttentionSite(
        name=name,
        q=Operand(core.q.node, geometry.q),
        k=Operand(core.k.node, geometry.k),
        v=Operand(core.v.node, geometry.v),
        out=Operand(core.out.node, geometry.out),
        num_heads=geometry.num_heads,
        head_dim=geometry.head_dim,
        scale=core.scale,
        grid=geometry.tokens.grid,
        extra_before=geometry.tokens.before,
        extra_after=geometry.tokens.after,
        rope=None,
        projections=read_projections(core, view, graph.tensor_names),
        form=core.form,
        autocast=view.autocast_dtype(core.out.node, device),
        source=source_line(core.out.node),
        factors=geometry.factors,
        kv_heads=geometry.kv_heads,
    )


def _check_mutations(core: Core, walk: LayoutWalk, order: dict[Node, int]) -> None:
    """Refuse an attention whose operands are written to between its first read and its end."""
    if not walk.writes:
        return
    assert core.q is not None
    assert core.k is not None
    assert core.v is not None
    read = [side.node for side in (core.q, core.k, core.v)] + [factor.node for factor in core.factors]
    storages = {storage(node, walk.view) for node in read}
    # A transposition that was taken in looks at the same memory: it reads nothing.
    reads = (*core.nodes, *(node for node in core.peeled if node.target not in PERMUTES))
    first, last = min(map(order.__getitem__, reads)), order[core.out.node]
    for node, target in walk.writes:
        if target is core.out.node:
            raise Refused("the result of the attention is changed in place", node)
        if first < order[node] < last and node not in core.nodes and target in storages:
            raise Refused("q, k, v or a factor of the scores is changed in place while the attention reads them", node)
