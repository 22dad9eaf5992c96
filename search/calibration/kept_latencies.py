"""Latencies of a calibration that are measured once and kept in its folder."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from jetvit.cost_model import FULL, Choice
from jetvit.cost_model.predicting.estimate import Answer
from jetvit.search.calibration.measurements import CHOICE_LATENCIES, Measurements, whole_key
from jetvit.search.calibration.model_latency import Chosen, MeasuredHere, WholeLatencies


class KeptLatencies:
    """Latencies that were measured on this device and kept.

    Latencies that the device was too busy to measure are not kept: the next run measures them again.
    """

    confirms, share = MeasuredHere.confirms, MeasuredHere.share

    def __init__(self, source: MeasuredHere, measurements: Measurements):
        self._source, self._kept = source, measurements
        self.doubts = source.doubts

    def alone(self, alternatives: Mapping[str, Sequence[Choice]]) -> dict[str, dict[Choice, Answer]]:
        """The latency of full attention and of every alternative, by site."""
        if CHOICE_LATENCIES not in self._kept:
            answers = self._source.alone(alternatives)
            if not self.doubts:
                rows = {
                    site: {choice.label: [each.ms, each.low, each.high] for choice, each in some.items()}
                    for site, some in answers.items()
                }
                self._kept.keep(CHOICE_LATENCIES, rows)
            return answers
        rows = self._kept[CHOICE_LATENCIES]
        found: dict[str, dict[Choice, Answer]] = {}
        for site, some in alternatives.items():
            found[site] = {}
            for choice in (FULL, *some):
                ms, low, high = rows[site][choice.label]
                found[site][choice] = Answer(ms, low, high, "measured")
        self._source.attentions_ms = math.fsum(answers[FULL].ms for answers in found.values())
        return found

    def whole(self, plans: Sequence[Chosen]) -> WholeLatencies:
        """The latency of the original and of these plans."""
        key = whole_key(plans)
        if key in self._kept:
            return WholeLatencies(tuple(map(tuple, self._kept[key])))
        doubts = len(self.doubts)
        latencies = self._source.whole(plans)
        if len(self.doubts) == doubts:
            self._kept.keep(key, latencies.samples_ms)
        return latencies

    def record(self) -> dict[str, Any]:
        """Entries for the provenance of a plan."""
        return self._source.record()
