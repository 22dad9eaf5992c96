"""The best choice at every site as a shortest path: the independent check on `jetvit.cost_model.optimum`.

The sites are the layers of a directed acyclic graph, a node is one option of one site, and an edge from a site to the
next one carries what the option costs there, corrections with its neighbour included. A path from the source to the
sink is a plan. Every node keeps the ways to it that no other way beats in both latency and loss; those of the sink are
the front.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import networkx as nx

from jetvit.cost_model.optimum import Costs, Pick, Rated, Selection

_SOURCE, _SINK = "source", "sink"
Way = tuple[float, float, Selection]


def layered_graph(costs: Costs) -> nx.DiGraph:
    """The graph whose paths from "source" to "sink" are the plans; its edges have `latency_ms` and `loss`.

    Raises:
        ValueError: a correction is between sites that are no neighbours.
    """
    graph = nx.DiGraph()
    for pair in (*costs.latency_pairs, *costs.loss_pairs):
        if abs(pair[0][0] - pair[1][0]) != 1:
            raise ValueError(f"{pair[0]} and {pair[1]} are of sites that are no neighbours: no edge can hold this pair")
    before: list[Pick | str] = [_SOURCE]
    graph.add_node(_SOURCE)
    for site, losses in enumerate(costs.loss):
        layer: list[Pick | str] = [(site, option) for option, loss in enumerate(losses) if loss < math.inf]
        for number in (pick[1] for pick in layer if not isinstance(pick, str)):
            node = (site, number)
            for other in before:
                graph.add_edge(
                    other,
                    node,
                    latency_ms=costs.latency_ms[site][number] + _pair(costs.latency_pairs, other, node),
                    loss=losses[number] + _pair(costs.loss_pairs, other, node),
                )
        before = layer
    graph.add_node(_SINK)
    graph.add_edges_from(((other, _SINK) for other in before), latency_ms=costs.fixed_ms, loss=0.0)
    return graph


def front_by_paths(costs: Costs) -> list[Rated]:
    """Return what `jetvit.cost_model.optimum.front` returns, from the slowest plan to the fastest.

    Raises:
        ValueError: a correction is between sites that are no neighbours.
    """
    graph = layered_graph(costs)
    ways: dict[Pick | str, list[Way]] = {_SOURCE: [(0.0, 0.0, ())]}
    for node in nx.topological_sort(graph):
        if node == _SOURCE:
            continue
        taken = () if node == _SINK else (node[1],)
        ways[node] = _unbeaten(
            (latency_ms + edge["latency_ms"], loss + edge["loss"], (*selection, *taken))
            for other, _, edge in graph.in_edges(node, data=True)
            for latency_ms, loss, selection in ways[other]
        )
    return [costs.rate(selection) for _, _, selection in reversed(ways[_SINK])]


def _unbeaten(ways: Iterable[Way]) -> list[Way]:
    """Keep the ways that no other beats in both measures, the fastest first; of equal ones one."""
    kept: list[Way] = []
    for way in sorted(ways):
        if not kept or way[1] < kept[-1][1]:
            kept.append(way)
    return kept


def _pair(pairs: Mapping[tuple[Pick, Pick], float], one: Pick | str, other: Pick) -> float:
    """The corrections of two picks, in whichever order they are named."""
    if isinstance(one, str):
        return 0.0
    return pairs.get((one, other), 0.0) + pairs.get((other, one), 0.0)
