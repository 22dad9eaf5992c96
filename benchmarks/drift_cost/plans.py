"""Plans from every band of drift, without training: windows in calibrated order, windows at random, and linear."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.drift_cost.table import BANDS, LINEAR, ORDERED, RANDOM, in_band
from jetvit.cost_model import Choice
from jetvit.search.calibration.trial import Trial
from jetvit.search.data.splits import evenly_spaced

WINDOWS = tuple(Choice("window", window=(side, side)) for side in (4, 8, 12, 16))
MOST_LINEAR = 3
Chosen = Mapping[str, Choice]


@dataclass(frozen=True)
class Candidate:
    """A plan that may be measured.

    * kind: how its blocks were chosen.
    * chosen: the choice at each site that it changes.
    * drift: on the images that plans are chosen by.
    """

    kind: str
    chosen: Chosen
    drift: float


def candidates(trial: Trial, draws: int, seed: int) -> list[Candidate]:
    """Return many plans with their drifts.

    * windows, calibrated order: one window size at the k sites where it drifts least alone, for every size and k.
    * windows, random blocks: a random window size at each of k random sites.
    * linear blocks: linear attention at one to three sites, those where it drifts least alone and random ones.

    Args:
        trial: the model on the images that plans are chosen by.
        draws: how many random plans of windows, and how many of linear attention.
        seed: of the random plans.
    """
    proposed = [
        *((ORDERED, chosen) for chosen in _ordered(trial, WINDOWS, len(trial.sites))),
        *((RANDOM, chosen) for chosen in _random(trial, WINDOWS, len(trial.sites), draws, seed)),
        *((LINEAR, chosen) for chosen in _ordered(trial, [Choice("linear")], MOST_LINEAR)),
        *((LINEAR, chosen) for chosen in _random(trial, [Choice("linear")], MOST_LINEAR, draws, seed)),
    ]
    distinct: dict[tuple[tuple[str, Choice], ...], tuple[str, Chosen]] = {}
    for kind, chosen in proposed:
        distinct.setdefault(tuple(sorted(chosen.items(), key=lambda item: item[0])), (kind, chosen))
    return [Candidate(kind, chosen, trial.joint(chosen)) for kind, chosen in distinct.values()]


def spread(some: Sequence[Candidate], per_band: Mapping[str, int]) -> list[Candidate]:
    """Return the candidates to measure: at most so many of each kind from each band, evenly spaced by drift."""
    found: list[Candidate] = []
    for band in BANDS:
        for kind, count in per_band.items():
            inside = [each for each in some if each.kind == kind and in_band(each.drift, band)]
            inside.sort(key=lambda each: each.drift)
            found += (inside[place] for place in evenly_spaced(len(inside), count))
    return found


def _ordered(trial: Trial, choices: Sequence[Choice], most: int) -> Iterator[Chosen]:
    """Yield each choice at the 1, 2, … sites where it drifts least alone, up to `most` sites."""
    alone = trial.alone(trial.alternatives(choices))
    for choice in choices:
        order = sorted((site for site in alone if choice in alone[site]), key=lambda site: alone[site][choice])
        for count in range(1, min(most, len(order)) + 1):
            yield dict.fromkeys(order[:count], choice)


def _random(trial: Trial, choices: Sequence[Choice], most: int, draws: int, seed: int) -> Iterator[Chosen]:
    """Yield random choices at up to `most` random sites; few sites are more likely, for they drift less."""
    alternatives = {site: some for site, some in trial.alternatives(choices).items() if some}
    generator = random.Random(seed)
    for _ in range(draws):
        count = generator.randint(1, generator.randint(1, min(most, len(alternatives))))
        yield {site: generator.choice(alternatives[site]) for site in generator.sample(list(alternatives), count)}
