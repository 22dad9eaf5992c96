"""Latencies of choices and of whole plans: measured on the device at hand, or from the table of another one."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.export import ExportedProgram

from jetvit.cost_model import FULL, AttentionShape, Choice, Fingerprint, Latency, Plan, SitePlan, measure_choices
from jetvit.cost_model.measuring.rounds import in_rounds, ratio, sampler
from jetvit.cost_model.measuring.site_operation import site_operation
from jetvit.cost_model.measuring.steadiness import change_doubts, sample_doubts, spread_doubts, steadily, sum_doubts
from jetvit.cost_model.predicting.device_costs import DeviceCosts
from jetvit.cost_model.predicting.estimate import Answer, Overheads
from jetvit.cost_model.predicting.latencies import UnknownLatency
from jetvit.passes.graph.rewritable import ExportedGraph
from jetvit.patterns.errors import InputError
from jetvit.patterns.find import find_sites
from jetvit.patterns.site import AttentionSite
from jetvit.search.calibration.runner import Runner
from jetvit.search.calibration.trial import Trial
from jetvit.search.calibration.whole_model import estimate_program, rewritten_for

log = logging.getLogger(__name__)

Chosen = Mapping[str, Choice]
"""Name → choice of the sites that are not full."""

_ROUNDS = 20
_TIME_LIMIT_S = 4.0


@dataclass(frozen=True)
class WholeLatencies:
    """The latencies of the original model and of plans: samples_ms[i] are those of the i-th, the original first.

    The k-th samples of all are of one round, so that ratios are taken within it. What was estimated has one sample.
    """

    samples_ms: tuple[tuple[float, ...], ...]

    @property
    def median_ms(self) -> list[float]:
        """The latency of each."""
        return [float(np.median(samples)) for samples in self.samples_ms]

    def speedup(self, index: int) -> tuple[float, float, float]:
        """The original's latency over that of the index-th: the median over rounds, and its 95 % interval."""
        return ratio(self.samples_ms[0], self.samples_ms[index])


def warn_of_doubts(doubts: Sequence[str], again: str) -> None:
    """Warn where a device was too busy to time on. again: what to do when nothing else runs there."""
    if doubts:
        log.warning(
            "this machine is too busy to time on: %s. The latencies confirm nothing: %s when nothing else runs here, "
            "or with the latency table of a device",
            "; ".join(doubts),
            again,
        )


def warn_of_noise(speedup: tuple[float, float, float], plan_ms: float, full_ms: float, how: str = "measured") -> None:
    """Warn where the interval of a speedup holds 1. how: where the latencies come from."""
    if speedup[1] <= 1:
        log.warning(
            "the plan is not faster than the original beyond noise, %s as a whole (%.4g ms for %.4g ms, a ratio of "
            "%.3f, 95 %% interval %.3f to %.3f)",
            how,
            plan_ms,
            full_ms,
            *speedup,
        )


def latency_record(
    how: str, full_ms: float, plan_ms: float, speedup: Sequence[float], doubts: Sequence[str]
) -> dict[str, Any]:
    """Entries for the provenance of a plan: the latencies of whole models, and their ratio unless it is doubtful."""
    return {
        f"{how}_full_ms": round(full_ms, 3),
        f"{how}_plan_ms": round(plan_ms, 3),
        **({"too_busy": list(doubts)} if doubts else {"speedup": [round(value, 4) for value in speedup]}),
    }


class LatencySource(Protocol):
    """A source of the latencies of a search.

    * confirms: whether `whole` measures, and does not only add up.
    * share: what a millisecond of attention alone adds to the whole model, in milliseconds.
    * doubts: reasons to distrust what was measured.
    """

    confirms: bool
    share: float
    doubts: list[str]

    def alone(self, alternatives: Mapping[str, Sequence[Choice]]) -> dict[str, dict[Choice, Answer]]:
        """The latency of full attention and of every alternative, by site."""

    def whole(self, plans: Sequence[Chosen]) -> WholeLatencies:
        """The latency of the original and of these plans."""

    def record(self) -> dict[str, Any]:
        """Entries for the provenance of a plan."""


class MeasuredHere:
    """Latencies on the device that the model is on, not compiled. device: what it calls itself.

    What looks unsteady is measured again; where it stays so, `doubts` say why.
    """

    confirms, share = True, 1.0

    def __init__(self, trial: Trial, device: str):
        self._trial, self._device = trial, device
        self.attentions_ms = 0.0
        self.doubts: list[str] = []

    def alone(self, alternatives: Mapping[str, Sequence[Choice]]) -> dict[str, dict[Choice, Answer]]:
        """Every choice at every shape that the model has, on random data."""
        choices = list(dict.fromkeys(choice for some in alternatives.values() for choice in some))
        measured, doubts = steadily(lambda: self._measure([FULL, *choices]))
        self.doubts += doubts
        found = {}
        for site in self._trial.sites:
            latencies = measured[attention_shape(site)]
            found[site.name] = {choice: _answer(latencies[choice]) for choice in (FULL, *alternatives[site.name])}
        self.attentions_ms = math.fsum(answers[FULL].ms for answers in found.values())
        return found

    def _measure(self, choices: Sequence[Choice]) -> tuple[dict[AttentionShape, dict[Choice, Latency]], list[str]]:
        """Every choice at every shape, full attention once more at the end, and what speaks against the result."""
        shapes = list(dict.fromkeys(attention_shape(site) for site in self._trial.sites))
        measured: dict[AttentionShape, dict[Choice, Latency]] = {}
        for index, shape in enumerate(shapes):
            measured[shape] = measure_choices(choices, shape)
            self._trial.report("timing each choice", index + 1, len(shapes))
        doubts: list[str] = []
        for shape, latencies in measured.items():
            full, what = latencies[FULL], f"full attention over {shape.tokens} tokens"
            doubts += spread_doubts(what, full)
            again = measure_choices([FULL], shape)[FULL]
            doubts += change_doubts(what, full.median_ms, again.median_ms)
        return measured, doubts

    def whole(self, plans: Sequence[Chosen], weights: Mapping[str, Tensor] | None = None) -> WholeLatencies:
        """The rewritten models on the first batch, in rounds that run all of them in a new order each.

        weights: the new and changed weights of the plans, by FQN.
        """
        runs = [self._run(self._trial.runner(chosen, weights)) for chosen in ({}, *plans)]
        device = self._trial.device
        progress = partial(self._trial.report, "timing whole models")

        def measure() -> tuple[WholeLatencies, list[str]]:
            samples = in_rounds(
                [sampler(run, device) for run in runs], _ROUNDS, time_limit_s=_TIME_LIMIT_S, progress=progress
            )
            names = ["the original model", *(f"plan {number}" for number in range(1, len(runs)))]
            doubts = list(sample_doubts(dict(zip(names, samples, strict=True))))
            latencies = WholeLatencies(tuple(map(tuple, samples)))
            doubts += sum_doubts(self.attentions_ms, latencies.median_ms[0])
            return latencies, doubts

        latencies, doubts = steadily(measure)
        self.doubts += doubts
        return latencies

    def record(self) -> dict[str, Any]:
        """The device itself."""
        return {"latencies_of": self._device}

    def _run(self, runner: Runner) -> Callable[[], None]:
        batch, cuda = self._trial.selection[0], self._trial.device.type == "cuda"

        def run() -> None:
            runner.run(batch)
            if cuda:  # each batch is waited for, so that what the host takes to launch it counts
                torch.cuda.synchronize()

        return run


class FromTable:
    """Latencies on the machine of a table, measured there or predicted; nothing runs here.

    Args:
        costs: what is known of that machine.
        program: the original model.
        dtype: "float32", "float16" or "bfloat16", which the model is to have there; that of the sites if it is None.
    """

    confirms, doubts = False, list[str]()  # what is not measured here

    def __init__(self, costs: DeviceCosts, program: ExportedProgram, dtype: str | None = None):
        self._costs, self._program, self._dtype = costs, program, dtype
        self._sites = find_sites(ExportedGraph(program))
        self._gpu = bool(costs.machine.cuda)
        self.share = costs.overheads.get("compiled", Overheads()).overlap
        self._sources: Counter[str] = Counter()

    def alone(self, alternatives: Mapping[str, Sequence[Choice]]) -> dict[str, dict[Choice, Answer]]:
        """Look up each site's operation in the table. Raises InputError for an operation that it does not know."""
        found: dict[str, dict[Choice, Answer]] = {}
        for site in self._sites:
            found[site.name] = {each: self._answer(site, each) for each in (FULL, *alternatives[site.name])}
        answers = [answer for some in found.values() for answer in some.values()]
        self._sources = Counter(answer.source for answer in answers)
        self._sources["extrapolated"] = sum(answer.extrapolated for answer in answers)
        return found

    def whole(self, plans: Sequence[Chosen]) -> WholeLatencies:
        """The estimates for the compiled graphs. Raises InputError for operations that the table does not know."""
        return WholeLatencies(tuple((self._estimate_ms(chosen),) for chosen in ({}, *plans)))

    def record(self) -> dict[str, Any]:
        """The machine, and how many of the latencies of single attentions it was asked for were measured there."""
        machine = self._costs.machine
        return {"latencies_of": str(machine), **{f"latencies_{name}": n for name, n in self._sources.items()}}

    def _answer(self, site: AttentionSite, choice: Choice) -> Answer:
        try:
            operation = site_operation(site, choice, gpu=self._gpu, dtype=self._dtype)
        except ValueError as error:
            raise InputError(f"no latency table has the attention of {site.name}", why=str(error)) from error
        try:
            return self._costs.latencies(operation)
        except UnknownLatency as error:
            raise self._unknown(f"{choice.label} attention at {site.name}", error) from error

    def _estimate_ms(self, chosen: Chosen) -> float:
        entries = tuple(SitePlan(name, choice) for name, choice in chosen.items())
        plan = Plan(entries, Fingerprint.of(self._sites)) if entries else None
        program = rewritten_for(self._program, plan, self._costs)
        try:
            return estimate_program(program, self._costs, dtype=self._dtype).ms
        except UnknownLatency as error:
            raise self._unknown("the model", error) from error

    def _unknown(self, what: str, error: UnknownLatency) -> InputError:
        return InputError(
            f"the latency table of {self._costs.machine} does not know {what}",
            why=str(error),
            do="measure more there (jetvit measure --models, --sizes, --dtype), or name the dtype that the table has",
        )


def attention_shape(site: AttentionSite) -> AttentionShape:
    """The shape of a site of fixed size."""
    value = site.out.node.meta["val"]
    return AttentionShape(
        batch=value.numel() // (int(site.tokens) * site.num_heads * site.head_dim),
        num_heads=site.num_heads,
        head_dim=site.head_dim,
        grid=(int(site.grid[0]), int(site.grid[1])),
        extra_before=int(site.extra_before),
        extra_after=int(site.extra_after),
        dtype=site.autocast or site.dtype,
        device=str(value.device),
        scale=site.scale,
    )


def _answer(latency: Latency) -> Answer:
    return Answer(latency.median_ms, latency.q25_ms, latency.q75_ms, "measured")
