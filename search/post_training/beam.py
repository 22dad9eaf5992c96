"""Beam search up the cost ladder: one site at a time takes a dearer choice, and the best few paths go on.

The paper's search (arXiv 2605.26636) climbs twice: from all-linear to linear and window attention, then from the best
of these to paths with some full attention put back.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from jetvit.cost_model import FULL, Choice
from jetvit.search.post_training.paths import Alternatives, path_key
from jetvit.search.post_training.supernet import Path

# A value that is better by less than this is not better.
_SAME = 1e-9


@dataclass(frozen=True)
class Rated:
    """A path, how good it is (more is better), and the latency of the whole model on it."""

    path: Path
    value: float
    latency_ms: float

    @property
    def full(self) -> int:
        """At how many of the named sites it is full attention."""
        return sum(choice == FULL for choice in self.path.values())

    def to_json(self) -> dict[str, Any]:
        """The entry of a trace."""
        labels = {name: choice.label for name, choice in self.path.items()}
        return {"path": labels, "value": self.value, "latency_ms": self.latency_ms}


@dataclass(frozen=True)
class Level:
    """A step of a climb: the number of sites changed since its start, and the best paths."""

    phase: str
    changed: int
    beam: tuple[Rated, ...]


@dataclass(frozen=True)
class BeamSearch:
    """A search over paths.

    * evaluate: how good a path is. latency: of the whole model, in ms.
    * limit_ms: the budget. width: how many paths go on from a level.
    * expand: so many of a level's candidates are evaluated, those with the best `promise`; None for all.
    """

    evaluate: Callable[[Path], float]
    latency: Callable[[Path], float]
    limit_ms: float = math.inf
    width: int = 3
    expand: int | None = None
    promise: Callable[[Path], float] = lambda path: 0.0

    def climb(
        self,
        phase: str,
        starts: Sequence[Path],
        moves: Alternatives,
        *,
        goal: float = math.inf,
        most: int | None = None,
        until_no_better: bool = True,
    ) -> list[Level]:
        """Change sites one by one.

        Args:
            phase: what the climb is called.
            starts: paths, all with the same sites.
            moves: what each site may become; a site is changed once.
            goal: a value that is enough.
            most: how many sites may be changed.
            until_no_better: stop at a level without a better path than before; else only at the goal, or where no
                candidate keeps the budget.
        Returns:
            the levels, the starts first; empty if no start keeps the budget.
        """
        begin = [self._rate(path) for path in starts if self._fits(path)]
        levels = [Level(phase, 0, tuple(_best(begin)[: self.width]))] if begin else []
        roots: dict[str, Path] = {path_key(path): path for path in starts}
        while levels and levels[-1].beam[0].value < goal - _SAME and (most is None or levels[-1].changed < most):
            candidates: dict[str, tuple[Path, Path]] = {}
            for rated in levels[-1].beam:
                root = roots[path_key(rated.path)]
                for path in self._neighbours(rated.path, root, moves):
                    candidates.setdefault(path_key(path), (path, root))
            fitting = {key: each for key, each in candidates.items() if self._fits(each[0])}
            promising = sorted(fitting.values(), key=lambda each: -self.promise(each[0]))[: self.expand]
            if not promising:
                break
            roots = {path_key(path): root for path, root in promising}
            best = _best([self._rate(path) for path, _ in promising])
            before = max(level.beam[0].value for level in levels)
            levels.append(Level(phase, levels[-1].changed + 1, tuple(best[: self.width])))
            if until_no_better and best[0].value <= before + _SAME:
                break
        return levels

    def _neighbours(self, path: Path, root: Path, moves: Alternatives) -> Iterator[dict[str, Choice]]:
        for name, choices in moves.items():
            if path[name] == root[name]:
                yield from ({**path, name: choice} for choice in choices if choice != path[name])

    def _fits(self, path: Path) -> bool:
        return self.latency(path) <= self.limit_ms

    def _rate(self, path: Path) -> Rated:
        return Rated(path, self.evaluate(path), self.latency(path))


def best_of(levels: Sequence[Level]) -> Rated | None:
    """The best path of all levels: of those that are as good, the fastest."""
    found = _best([rated for level in levels for rated in level.beam])
    return found[0] if found else None


def _best(rated: Sequence[Rated]) -> list[Rated]:
    return sorted(rated, key=lambda each: (-each.value, each.latency_ms))
