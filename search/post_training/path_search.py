"""The search for a path through a trained supernet: an integer program over scores, and beam search, on one metric."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jetvit.cost_model import FULL, Choice
from jetvit.patterns.errors import PlanError
from jetvit.search.calibration.run_folder import RunFolder
from jetvit.search.post_training.beam import BeamSearch, Level, Rated, best_of
from jetvit.search.post_training.paths import Alternatives, path_key
from jetvit.search.post_training.recipe import Recipe
from jetvit.search.post_training.scores import PathLatency, ScoredChoice, Scores
from jetvit.search.post_training.supernet import Path

# Without a budget: the integer program is asked for paths with up to so many full sites.
_FEW = 3
# Latencies within one per cent are equal: they are not measured more closely.
_AS_FAST = 1.01


class Evaluations:
    """The metric of paths: each is measured once, and kept in the folder of the search.

    Args:
        measure: how good a path is.
        folder: where values are kept, if anywhere.
        stage: which weights they are of.
    """

    def __init__(self, measure: Callable[[Path], float], folder: RunFolder | None, stage: str):
        self._measure, self._folder, self._stage = measure, folder, stage
        kept = folder.evaluations() if folder is not None else []
        self.values = {record["path"]: float(record["value"]) for record in kept if record["stage"] == stage}

    def __call__(self, path: Path) -> float:
        """Return the metric of a path, which is measured at the first call."""
        key = path_key(path)
        if key not in self.values:
            self.values[key] = self._measure(path)
            if self._folder is not None:
                self._folder.evaluated({"stage": self._stage, "path": key, "value": self.values[key]})
        return self.values[key]


@dataclass(frozen=True)
class Searched:
    """The result of a path search.

    * best: the path that was chosen. levels: of the beam search. listed: the paths of the integer program, rated.
    * controls: paths that a search has to beat, by their names. full: the original model's value and latency.
    """

    best: Rated
    levels: tuple[Level, ...]
    listed: tuple[Rated, ...]
    controls: Mapping[str, Rated]
    full: Rated

    def to_json(self) -> dict[str, Any]:
        """The trace, as pictures are drawn from it."""
        return {
            "best": self.best.to_json(),
            "full": self.full.to_json(),
            "beam": [
                {"phase": level.phase, "changed": level.changed, "paths": [rated.to_json() for rated in level.beam]}
                for level in self.levels
            ],
            "listed": [rated.to_json() for rated in self.listed],
            "controls": {name: rated.to_json() for name, rated in self.controls.items()},
        }


class PathSearch:
    """The paper's two climbs, and the best paths by scores; what is rated best by the metric is chosen.

    Args:
        alternatives: what each site may be besides full attention.
        scores: the error of each choice alone, and of full attention.
        latency: of paths. evaluate: how good a path is.
        recipe: sizes. limit_ms: the budget. max_full: at how many sites attention may stay full.
        seed: of the random control.
    """

    def __init__(
        self,
        alternatives: Alternatives,
        scores: Scores,
        latency: PathLatency,
        evaluate: Callable[[Path], float],
        recipe: Recipe,
        *,
        limit_ms: float,
        max_full: int | None,
        seed: int,
    ):
        self.alternatives, self.latency, self.evaluate = alternatives, latency, evaluate
        self.scored = ScoredChoice.of(scores, alternatives, latency)
        self.recipe, self.limit_ms, self.max_full, self.seed = recipe, limit_ms, max_full, seed
        self.beam = BeamSearch(
            evaluate,
            latency,
            limit_ms,
            recipe.width,
            recipe.expand,
            lambda path: -self.scored.error(path),
        )

    def __call__(self) -> Searched:
        """Search. Raises PlanError where no path keeps the budget."""
        refuse_tight_budget(self.alternatives, self.latency, self.limit_ms, self.max_full)
        full = self._rate(dict.fromkeys(self.alternatives, FULL))
        levels = self._climb(full.value)
        listed = [self._rate(path) for path in self._listed()]
        # The integer program knows nothing of the metric: the climb goes on from the best of its paths as well.
        if listed:
            levels += self._put_back([max(listed, key=_quality).path], full.value, "listed")
        candidates = [rated for level in levels for rated in level.beam] + listed
        controls = self._controls(_chosen(candidates, full))
        # A control that keeps the bounds is a plan as good as any: where it wins, it is taken.
        candidates += filter(self._keeps_bounds, controls.values())
        return Searched(_chosen(candidates, full), tuple(levels), tuple(listed), controls, full)

    def _keeps_bounds(self, rated: Rated) -> bool:
        return rated.latency_ms <= self.limit_ms and (self.max_full is None or rated.full <= self.max_full)

    def _climb(self, goal: float) -> list[Level]:
        """From all-linear to linear and window, then to some full attention."""
        ladder = {
            name: sorted(some, key=lambda each: self.latency.alone(name, each))
            for name, some in self.alternatives.items()
        }
        start = fastest_path(self.alternatives, self.latency, self.max_full)
        dearer = {name: some[1:] for name, some in ladder.items() if start[name] != FULL}
        levels = self.beam.climb("efficient", [start], dearer, goal=goal)
        found = best_of(levels)
        return levels + (self._put_back([found.path], goal, "full") if found is not None else [])

    def _put_back(self, starts: list[Path], goal: float, phase: str) -> list[Level]:
        """Put full attention back, site by site, until the original's value is reached."""
        present = sum(choice == FULL for choice in starts[0].values())
        most = None if self.max_full is None else max(0, self.max_full - present)
        moves = {name: [FULL] for name in self.alternatives}
        return self.beam.climb(phase, starts, moves, goal=goal, most=most, until_no_better=False)

    def _listed(self) -> list[dict[str, Choice]]:
        """The paths of least error by the scores. Where nothing bounds them, that is the original: so ask in turn."""
        count = self.recipe.candidates
        if self.max_full is not None or self.limit_ms < math.inf:
            return self.scored.best(self.limit_ms, count, self.max_full)
        each = max(1, count // (_FEW + 1))
        paths = [path for full in range(_FEW + 1) for path in self.scored.best(math.inf, each, full)]
        return list({path_key(path): path for path in paths}.values())

    def _controls(self, best: Rated) -> dict[str, Rated]:
        """All sites of one choice; full attention evenly spaced; a random path that takes as long."""
        found: dict[str, Path] = {}
        for choice in dict.fromkeys(each for some in self.alternatives.values() for each in some):
            if all(choice in some for some in self.alternatives.values()):
                found[f"all {choice.label}"] = dict.fromkeys(self.alternatives, choice)
        names = list(self.alternatives)
        if best.full:
            spaced = {names[round((number + 1) * len(names) / best.full) - 1] for number in range(best.full)}
            found["evenly spaced full"] = {
                name: FULL if name in spaced else _not_full(best.path[name], self.alternatives[name]) for name in names
            }
        rng = random.Random(f"{self.seed} control")
        drawn = []
        for _ in range(500):
            path = {name: rng.choice(list(some)) for name, some in self.alternatives.items()}
            drawn.append(path | dict.fromkeys(rng.sample(names, best.full), FULL))
        found["random"] = min(drawn, key=lambda path: abs(self.latency(path) - best.latency_ms))
        return {name: self._rate(path) for name, path in found.items()}

    def _rate(self, path: Path) -> Rated:
        return Rated(path, self.evaluate(path), self.latency(path))


def fastest_path(alternatives: Alternatives, latency: PathLatency, max_full: int | None) -> dict[str, Choice]:
    """The fastest choice at every site; full attention, where that is the fastest, at up to `max_full` sites."""
    path = {name: min(some, key=lambda each: latency.alone(name, each)) for name, some in alternatives.items()}
    gains = {name: latency.alone(name, choice) - latency.alone(name, FULL) for name, choice in path.items()}
    full = sorted((name for name, gain in gains.items() if gain > 0), key=lambda name: -gains[name])
    return path | dict.fromkeys(full[:max_full], FULL)


def refuse_tight_budget(
    alternatives: Alternatives, latency: PathLatency, limit_ms: float, max_full: int | None
) -> None:
    """Raise PlanError where even the fastest path takes longer than `limit_ms`."""
    fastest = fastest_path(alternatives, latency, max_full)
    if latency(fastest) > limit_ms:
        raise PlanError(
            "no plan keeps the budget",
            why=f"the fastest takes about {latency(fastest):.4g} ms, and {limit_ms:.4g} ms are allowed; the full model "
            f"takes {latency.full_ms:.4g} ms",
            do="allow more time, or give faster choices",
        )


def _chosen(candidates: Sequence[Rated], full: Rated) -> Rated:
    """The best of the fastest that are as good as the original; where none is, the best."""
    good = [rated for rated in candidates if rated.value >= full.value]
    if not good:
        return max(candidates, key=_quality)
    fastest_ms = min(rated.latency_ms for rated in good)
    return max((rated for rated in good if rated.latency_ms <= _AS_FAST * fastest_ms), key=_quality)


def _quality(rated: Rated) -> tuple[float, float]:
    return rated.value, -rated.latency_ms


def _not_full(choice: Choice, some: Any) -> Choice:
    return choice if choice != FULL else some[0]
