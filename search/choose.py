"""Choosing one option a site: least attention latency while the model's joint drift stays under a bound.

Drift is not additive, so adding up the drifts of single sites only orders the candidates. Each plan that is considered
is measured as a whole: first a bisection over the plans that are best for some exchange rate between latency and drift,
then single exchanges around the best of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

Selection = tuple[int, ...]
"""One option number a site; 0 is full attention."""


@dataclass(frozen=True)
class Option:
    """What a site may become: its drift when it is alone, and its latency in ms."""

    drift: float
    latency_ms: float


@dataclass(frozen=True)
class Candidate:
    """A whole plan that was measured: joint drift, and the sum of the attention latencies in ms."""

    selection: Selection
    drift: float
    latency_ms: float


def additive_front(sites: Sequence[Sequence[Option]]) -> list[Selection]:
    """The plans that minimise latency + rate · Σ drift for some rate, from all-full to the fastest.

    Args:
        sites: the options of each site; the first is full attention with drift 0.
    Returns:
        Selections of falling latency. Drifts that are infinite are never taken.
    """
    selection = [0] * len(sites)
    front = [tuple(selection)]
    while True:
        steps = []
        for index, options in enumerate(sites):
            here = options[selection[index]]
            for number, option in enumerate(options):
                saved, added = here.latency_ms - option.latency_ms, option.drift - here.drift
                if saved > 0 and added < float("inf"):
                    steps.append((added / saved if added > 0 else added, -saved, index, number))
        if not steps:
            return front
        _, _, index, number = min(steps)
        selection[index] = number
        front.append(tuple(selection))


def choose(
    sites: Sequence[Sequence[Option]],
    joint_drift: Callable[[Selection], float],
    max_drift: float,
    max_latency_ms: float | None = None,
    exchanges: int = 12,
) -> tuple[Candidate | None, list[Candidate]]:
    """The fastest measured plan within the bound; under a latency bound, the one of least drift.

    Args:
        sites: the options of each site; the first is full attention with drift 0.
        joint_drift: measures a whole plan.
        max_drift: the bound on the joint drift.
        max_latency_ms: the bound on the sum of the attention latencies, if any.
        exchanges: how many single exchanges are measured around the best plan.
    Returns:
        The choice, None if nothing satisfies both bounds, and every plan that was measured.
    """
    measured: dict[Selection, Candidate] = {}

    def measure(selection: Selection) -> Candidate:
        if selection not in measured:
            drift = joint_drift(selection) if any(selection) else 0.0
            measured[selection] = Candidate(selection, drift, latency_of(sites, selection))
        return measured[selection]

    front = additive_front(sites)
    measure(front[0])
    if max_latency_ms is not None:
        best = _least_drift(sites, front, measure, max_latency_ms, exchanges)
        within = best is not None and best.drift <= max_drift
        return best if within else None, list(measured.values())
    low, high = 0, len(front) - 1
    while low < high:
        middle = (low + high + 1) // 2
        if measure(front[middle]).drift <= max_drift:
            low = middle
        else:
            high = middle - 1
    best = measure(front[low])
    faster = [move for move in _exchanges(sites, best.selection) if latency_of(sites, move) < best.latency_ms]
    for selection in faster[:exchanges]:
        if latency_of(sites, selection) < best.latency_ms and measure(selection).drift <= max_drift:
            best = measure(selection)
    allowed = [each for each in measured.values() if each.drift <= max_drift]
    return min(allowed, key=lambda each: each.latency_ms), list(measured.values())


def _least_drift(
    sites: Sequence[Sequence[Option]],
    front: Sequence[Selection],
    measure: Callable[[Selection], Candidate],
    max_latency_ms: float,
    exchanges: int,
) -> Candidate | None:
    """The measured plan of least drift within a latency bound, from the slowest of the front that meets it."""
    start = next((each for each in front if latency_of(sites, each) <= max_latency_ms), None)
    if start is None:
        measure(front[-1])
        return None
    moves = [move for move in _exchanges(sites, start) if latency_of(sites, move) <= max_latency_ms]
    return min((measure(each) for each in [start, *moves[:exchanges]]), key=lambda each: each.drift)


def latency_of(sites: Sequence[Sequence[Option]], selection: Selection) -> float:
    """The sum of the attention latencies of a plan in ms."""
    return sum(options[number].latency_ms for options, number in zip(sites, selection, strict=True))


def _exchanges(sites: Sequence[Sequence[Option]], selection: Selection) -> list[Selection]:
    """Plans that differ at one site, or take at one site what another gives back, the least additive drift first."""
    moves = []
    for index, options in enumerate(sites):
        for number in range(len(options)):
            if number == selection[index] or options[number].drift == float("inf"):
                continue
            one = (*selection[:index], number, *selection[index + 1 :])
            moves.append(one)
            for other in range(index + 1, len(sites)):
                for second in range(len(sites[other])):
                    if second != selection[other]:
                        moves.append((*one[:other], second, *one[other + 1 :]))
    return sorted(moves, key=lambda move: sum(sites[i][n].drift for i, n in enumerate(move)))
