"""`Trial`: a model on its images, and what rewriting some of its sites does to its output."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor
from torch.export import ExportedProgram

from jetvit.cost_model import Choice, Fingerprint, Plan, SitePlan
from jetvit.passes.graph.rewritable import ExportedGraph
from jetvit.passes.pipeline import RewriteOptions, rewrite_program
from jetvit.passes.rewrites.plan_checks import covers
from jetvit.patterns.find import find_sites
from jetvit.patterns.site import Sites
from jetvit.search.calibration.measurements import Measurements, alone_key, joint_key
from jetvit.search.calibration.runner import Batch, Output, Runner
from jetvit.search.calibration.split import Split
from jetvit.search.tasks.drift import Drift, check_finite, place_axes

Metric = Callable[[Tensor, Tensor], float]
Progress = Callable[[str, int, int], None]
_ONE_OPERATOR_A_SITE = RewriteOptions(disable=("straighten-views", "merge-projections", "fold-constants"))
"""Weights keep their names, which a plan asks for."""


class Trial:
    """References on all images, drift of single choices, and joint drift of plans.

    Attributes:
        own_weights: the weights that a choice at a site brings, by (site, choice): those of its refit alone.

    Args:
        program: the original model; nothing is changed.
        pairs: the batches, at least one.
        output: which tensor of the result is compared.
        metric: another measure of harm than drift.
        progress: called with a description, the steps done, and their number.
        measurements: what was measured before is read from there, and what is measured is kept there.
        held_out: the batches that are held out of the choice; every second one of `pairs` by default.
    Raises:
        InputError: an output is not finite, does not vary, or is not there.
    """

    def __init__(
        self,
        program: ExportedProgram,
        pairs: list[Batch],
        output: Output = None,
        metric: Metric | None = None,
        progress: Progress | None = None,
        measurements: Measurements | None = None,
        held_out: Sequence[Batch] | None = None,
    ):
        self.program = rewrite_program(program, options=_ONE_OPERATOR_A_SITE)
        self.sites = find_sites(ExportedGraph(self.program))
        self.fingerprint = Fingerprint.of(self.sites)
        self.metric, self.output = metric, output
        self._progress = progress
        self._kept = measurements or Measurements()
        self.original = Runner(self.program, output)
        self.own_weights: Mapping[tuple[str, Choice], Mapping[str, Tensor]] = {}
        split = Split.of(pairs, refit=False) if held_out is None else Split([], pairs, list(held_out))
        self.selection, self.held_out = split.selection, split.held_out
        batches = [*self.selection, *self.held_out]
        references = [self._reference(batch, index, len(batches)) for index, batch in enumerate(batches)]
        self._references = {False: references[: len(self.selection)], True: references[len(self.selection) :]}
        self.device = references[0].device
        self.places = place_axes(references[0], self.original.channel_axes())
        for half in (False, True):
            if self._references[half]:
                self._collector(half)  # refuses references that nothing can be compared with, before the long work

    def images(self, held_out: bool) -> int:
        """Count the images that choose, or that are held out."""
        return sum(len(reference) for reference in self._references[held_out])

    def alternatives(self, choices: Sequence[Choice]) -> dict[str, list[Choice]]:
        """The choices of each site besides full attention: a window over its whole grid is that already."""
        return alternatives_of(self.sites, choices)

    def alone(self, alternatives: Mapping[str, Sequence[Choice]]) -> dict[str, dict[Choice, float]]:
        """The harm of every choice, by site, where all other sites stay full."""
        batches = range(len(self.selection))
        missing = {
            (site, choice)
            for site, some in alternatives.items()
            for choice in some
            if any(alone_key(site, choice, index) not in self._kept for index in batches)
        }
        graphs = {(site, choice): self.runner({site: choice}) for site, choice in missing}
        collector = self._collector(held_out=False)
        nodes = {site.name: site.out.node.name for site in self.sites}
        names = {node: name for name, node in nodes.items()}
        total = sum(map(len, alternatives.values())) * len(self.selection)
        done = total - sum(alone_key(*pair, index) not in self._kept for pair in missing for index in batches)
        for index, batch in enumerate(self.selection):
            left = {pair for pair in missing if alone_key(*pair, index) not in self._kept}
            places = [node for name, node in nodes.items() if any(site == name for site, _ in left)]
            for place, alive in self.original.cuts(batch, places) if places else ():
                site = names[place]
                for choice in (each for each in alternatives[site] if (site, each) in left):
                    output = graphs[site, choice].run(batch, alive)
                    self._kept.keep(alone_key(site, choice, index), collector.errors(index, output))
                    done += 1
                    self.report("trying each choice at each site", done, total)

        def drift(site: str, choice: Choice) -> float:
            return collector.of([error for index in batches for error in self._kept[alone_key(site, choice, index)]])

        return {site: {choice: drift(site, choice) for choice in some} for site, some in alternatives.items()}

    def joint(
        self,
        chosen: Mapping[str, Choice],
        held_out: bool = False,
        weights: Mapping[str, Tensor] | None = None,
        name: str = "",
    ) -> float:
        """The harm of a whole plan on the choosing or the held-out images.

        Args:
            chosen: the choice at each site that is not full.
            held_out: on the held-out images.
            weights: of the plan, by FQN; by default those that the choices bring themselves, `own_weights`.
            name: of the measurement, where `weights` are given.
        """
        batches = self.held_out if held_out else self.selection
        if not batches or not chosen:
            return 0.0
        runner: Runner | None = None
        collect = self._collector(held_out)
        for index, batch in enumerate(batches):
            key = joint_key(chosen, held_out, index, name)
            if key not in self._kept:
                runner = runner or self.runner(chosen, weights)
                self._kept.keep(key, collect.errors(index, runner.run(batch)))
                self.report("measuring whole plans", index + 1, len(batches))
            collect.count(self._kept[key])
        return collect.total

    def runner(self, chosen: Mapping[str, Choice], weights: Mapping[str, Tensor] | None = None) -> Runner:
        """The model with some of its sites rewritten; the original one for none.

        weights: new and changed ones by FQN, by default those of `own_weights`; linear attention with a convolution
            needs those of its generator.
        """
        return Runner(self.converted(chosen, weights), self.output) if chosen else self.original

    def converted(self, chosen: Mapping[str, Choice], weights: Mapping[str, Tensor] | None = None) -> ExportedProgram:
        """The program of `runner`."""
        weights = self.weights_of(chosen) if weights is None else weights
        entries = tuple(SitePlan(name, choice) for name, choice in chosen.items())
        plan = Plan(entries, self.fingerprint, weights=weights)
        return rewrite_program(self.program, plan, RewriteOptions(exact=False, check=False))

    def weights_of(self, chosen: Mapping[str, Choice]) -> dict[str, Tensor]:
        """The weights that some choices bring themselves."""
        own = (self.own_weights.get(pair, {}) for pair in chosen.items())
        return {name: value for some in own for name, value in some.items()}

    def report(self, what: str, done: int, total: int) -> None:
        """Tell whoever waits."""
        if self._progress is not None:
            self._progress(what, done, total)

    def _reference(self, batch: Batch, index: int, total: int) -> Tensor:
        reference = check_finite(self.original.run(batch), f"the model's output on batch {index}")
        self.report("running the original model", index + 1, total)
        return reference

    def _collector(self, held_out: bool) -> Drift | _MetricMean:
        references = self._references[held_out]
        return Drift(references, self.places) if self.metric is None else _MetricMean(references, self.metric)


def alternatives_of(sites: Sites, choices: Sequence[Choice]) -> dict[str, list[Choice]]:
    """The choices of each site without windows over its whole grid, which are full attention."""
    return {site.name: [choice for choice in choices if not covers(site, choice)] for site in sites}


class _MetricMean:
    """The mean of a user's metric over batches."""

    def __init__(self, references: Sequence[Tensor], metric: Metric):
        self._references, self._metric, self._values = references, metric, list[float]()

    def errors(self, index: int, output: Tensor) -> list[float]:
        return [float(self._metric(output, self._references[index]))]

    def count(self, errors: Sequence[float]) -> None:
        self._values += errors

    @property
    def total(self) -> float:
        return self.of(self._values)

    def of(self, errors: Sequence[float]) -> float:
        value = sum(errors) / len(errors)
        return value if value == value else math.inf
