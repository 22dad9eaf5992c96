"""Score single choices: the latency of each, and the error of the features that the head reads."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from jetvit.cost_model import FULL, Choice
from jetvit.cost_model.optimum import Costs, least_loss
from jetvit.search.calibration.model_latency import LatencySource
from jetvit.search.data.stream import Stream
from jetvit.search.post_training.feature_extractor import FeatureExtractor, relative_error
from jetvit.search.post_training.paths import Alternatives
from jetvit.search.post_training.supernet import Path, Supernet
from jetvit.search.post_training.train import Run

Scores = Mapping[str, Mapping[Choice, float]]


@dataclass(frozen=True)
class PathLatency:
    """The latency of the whole model on a path, in ms: the original's, less what its attentions save.

    * attention_ms: of each attention alone, by site and choice. share: what a millisecond of it adds to the model.
    * full_ms: of the whole original.
    """

    attention_ms: Mapping[str, Mapping[Choice, float]]
    share: float
    full_ms: float

    @classmethod
    def of(cls, source: LatencySource, alternatives: Alternatives) -> PathLatency:
        """By measurement, or by a table."""
        answers = source.alone(alternatives)
        attention_ms = {name: {choice: each.ms for choice, each in some.items()} for name, some in answers.items()}
        return cls(attention_ms, source.share, source.whole([]).median_ms[0])

    def to_json(self) -> dict[str, Any]:
        """The latencies as the folder keeps them."""
        own = {
            name: [[choice.to_json(), ms] for choice, ms in some.items()] for name, some in self.attention_ms.items()
        }
        return {"attention_ms": own, "share": self.share, "full_ms": self.full_ms}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> PathLatency:
        """The inverse of `to_json`."""
        own = {
            name: {Choice.from_json(choice): ms for choice, ms in some} for name, some in record["attention_ms"].items()
        }
        return cls(own, record["share"], record["full_ms"])

    def alone(self, name: str, choice: Choice) -> float:
        """The latency that a site adds to the whole model, in ms."""
        return self.share * self.attention_ms[name][choice]

    def __call__(self, path: Path) -> float:
        """The latency of a path; sites that it does not name are full."""
        saved = (self.alone(name, FULL) - self.alone(name, choice) for name, choice in path.items())
        return self.full_ms - math.fsum(saved)


@torch.no_grad()
def score_alone(
    net: Supernet,
    extractor: FeatureExtractor,
    teacher: FeatureExtractor,
    alternatives: Alternatives,
    stream: Stream,
    steps: int,
    run: Run,
) -> dict[str, dict[Choice, float]]:
    """The relative error of the features where one site has a choice and all others are full, over `steps` batches.

    It is a squared error, so that those of several sites add up, roughly.
    """
    cases = [(name, choice) for name, some in alternatives.items() for choice in some if choice != FULL]
    sums = torch.zeros(len(cases), dtype=torch.float64)
    for number in range(steps):
        images, _ = stream(number)
        with run.autocast():
            reference = teacher.tokens(images)
            for index, (name, choice) in enumerate(cases):
                with net.path({name: choice}):
                    sums[index] += relative_error(extractor.tokens(images), reference).mean().double().cpu()
                run.progress("scoring choices", number * len(cases) + index + 1, steps * len(cases))
    run.processes.average([sums])
    found: dict[str, dict[Choice, float]] = {name: {FULL: 0.0} for name in alternatives}
    for (name, choice), value in zip(cases, (sums / steps).tolist(), strict=True):
        found[name][choice] = value
    return found


def survivors(scores: Scores, latency: PathLatency, most: int) -> dict[str, list[Choice]]:
    """Up to `most` choices of each kind (linear, window) a site, the least error first.

    Those that another of the kind beats in both latency and error are left out. The fastest of a kind stays, for a
    tight budget may need it.
    """
    found: dict[str, list[Choice]] = {}
    for name, some in scores.items():
        kinds: dict[str, list[Choice]] = {}
        others = [each for each in some if each != FULL]
        for choice in sorted(others, key=lambda each: (some[each], latency.alone(name, each))):
            front = kinds.setdefault(choice.kind, [])
            if not front or latency.alone(name, choice) < latency.alone(name, front[-1]):
                front.append(choice)
        kept = (front if len(front) <= most else [*front[: most - 1], front[-1]] for front in kinds.values())
        found[name] = sorted((each for front in kept for each in front), key=lambda each: some[each])
    return found


@dataclass(frozen=True)
class ScoredChoice:
    """Paths by what single choices add up to.

    * names, options: the sites and what each may be. costs: of each option.
    """

    names: tuple[str, ...]
    options: tuple[tuple[Choice, ...], ...]
    costs: Costs

    @classmethod
    def of(cls, scores: Scores, alternatives: Alternatives, latency: PathLatency) -> ScoredChoice:
        """From scores; full attention is an option everywhere."""
        names = tuple(alternatives)
        options = tuple((FULL, *(each for each in alternatives[name] if each != FULL)) for name in names)
        pairs = list(zip(names, options, strict=True))
        own = [[latency.alone(name, each) for each in some] for name, some in pairs]
        rest = latency.full_ms - math.fsum(some[0] for some in own)
        loss = [[scores[name][each] for each in some] for name, some in pairs]
        return cls(names, options, Costs(own, loss, fixed_ms=rest))

    def best(self, limit_ms: float, count: int, max_full: int | None = None) -> list[dict[str, Choice]]:
        """The `count` paths of least error within a latency, with at most so many full sites, the best first."""
        found = least_loss(self.costs, limit_ms, count, most_first=max_full)
        return [self.path(rated.selection) for rated in found]

    def path(self, selection: Sequence[int]) -> dict[str, Choice]:
        """The path of option numbers."""
        rows = zip(self.names, self.options, selection, strict=True)
        return {name: some[number] for name, some, number in rows}

    def error(self, path: Path) -> float:
        """The sum of the errors of a path's choices."""
        return math.fsum(
            self.costs.loss[index][self.options[index].index(path[name])] for index, name in enumerate(self.names)
        )
