"""The refits of a calibration: of each choice alone, and of whole plans."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from jetvit.cost_model import Choice
from jetvit.patterns.site import AttentionSite
from jetvit.search.calibration.execution import Batch, Execution
from jetvit.search.calibration.least_squares import Fit, Sums, fit
from jetvit.search.calibration.measurements import REFIT
from jetvit.search.calibration.refit import Refitted, as_weights, prior_of, refit, sums_of
from jetvit.search.calibration.residuals import Product, products
from jetvit.search.calibration.run_folder import RunFolder
from jetvit.search.calibration.trial import Trial
from jetvit.search.calibration.walk import Walk

WIDEST = 2048
"""The most input channels of a product that is refitted besides the output projections: it takes their third power."""

Weights = Mapping[str, Tensor]


@dataclass(frozen=True)
class Best:
    """A plan's drift on the choosing images, the name that these measurements have, and the refit behind them.

    name: "refitted" for a joint refit, "alone" where each attention was refitted alone, "before" for none.
    """

    drift: float
    name: str
    refitted: Refitted


class Refits:
    """Refits choices and plans on images that measure nothing else.

    Args:
        trial: the model.
        batches: the images to fit on, two or more.
        run: keeps what was fitted; None keeps it in memory alone.
    """

    def __init__(self, trial: Trial, batches: Sequence[Batch], run: RunFolder | None = None):
        self._trial, self._batches, self._run = trial, batches, run
        self._joint: dict[str, Refitted] = {}
        self._execution = Execution(trial.program)
        known = products(self._execution.nodes, self._execution.weight_names)
        self._products = {self._execution.weight_names[product.weight]: product for product in known}
        named = [(site, site.projections.out) for site in trial.sites]
        self._projections = {site.name: out.weight for site, out in named if out and out.weight in self._products}

    @property
    def _written(self) -> set[str]:
        """What a whole plan refits: the output projections, and all other products that write into the hidden state."""
        others = {name for name, product in self._products.items() if product.total and self._inputs_of(name) <= WIDEST}
        return set(self._projections.values()) | others

    def _inputs_of(self, weight: str) -> int:
        return int(self._trial.program.state_dict[weight].shape[1])

    @property
    def images(self) -> int:
        """The number of images that are fitted on."""
        return len(self._batches) * self._trial.images(held_out=False) // len(self._trial.selection)

    @property
    def without(self) -> list[str]:
        """The names of the attentions that have no output projection of their own to refit."""
        return [site.name for site in self._trial.sites if site.name not in self._projections]

    def alone(self, alternatives: Mapping[str, Sequence[Choice]]) -> dict[tuple[str, Choice], Weights]:
        """The new weights of each choice at each site, where all other sites stay full."""
        sites = [site for site in self._trial.sites if site.name in self._projections]
        found: dict[tuple[str, Choice], Weights] = {}
        with torch.inference_mode(), tempfile.TemporaryDirectory(prefix="jetvit-") as folder:
            walk = Walk(self._execution, self._batches, Path(folder))
            for number, site in enumerate(sites):
                self._trial.report("refitting each choice", number, len(sites))
                choices = alternatives[site.name]
                fits = self._kept(number, len(choices))
                if fits is None:
                    fits = self._fit_site(site, choices, walk)
                    self._keep(number, fits)
                found |= {(site.name, choice): some for choice, some in zip(choices, fits, strict=True)}
        self._trial.report("refitting each choice", len(sites), len(sites))
        return found

    def _kept(self, number: int, choices: int) -> list[Weights] | None:
        """The refits at one site that an earlier run made."""
        kept = self._run.load(f"{REFIT}{number}") if self._run is not None else None
        if kept is None:
            return None
        split = [name.partition(" ") for name in kept[0]]
        return [{n: kept[0][f"{at} {n}"] for at, _, n in split if at == str(place)} for place in range(choices)]

    def _keep(self, number: int, fits: Sequence[Weights]) -> None:
        if self._run is not None:
            tensors = {f"{place} {name}": value for place, some in enumerate(fits) for name, value in some.items()}
            self._run.save(f"{REFIT}{number}", tensors, {"done": True, "seconds": []})

    def joint(self, chosen: Mapping[str, Choice]) -> Refitted:
        """Refit a whole plan."""
        key = hashlib.sha256(json.dumps({name: each.label for name, each in chosen.items()}).encode()).hexdigest()[:16]
        if key not in self._joint:
            kept = self._run.load(f"{REFIT}{key}") if self._run is not None else None
            if kept is not None:
                fits = {name: Fit(**values) for name, values in kept[1]["fits"].items()}
                self._joint[key] = Refitted(kept[0], fits)
            else:
                self._joint[key] = self._fit_plan(chosen, key)
        return self._joint[key]

    def best(self, chosen: Mapping[str, Choice]) -> Best:
        """The weights with which a whole plan drifts least on the choosing images.

        A joint refit brings the hidden state nearer to the original's, and nearly always the output: where it does
        not, the plan keeps the weights of single refits, or those of the model.
        """
        trial = self._trial
        joint = self.joint(chosen)
        options = [
            Best(trial.joint(chosen, weights=joint.weights, name="refitted"), "refitted", joint),
            Best(trial.joint(chosen), "alone", Refitted(trial.weights_of(chosen), {})),
            Best(trial.joint(chosen, weights={}, name="before"), "before", Refitted({}, {})),
        ]
        return min(options, key=lambda each: each.drift)

    def _fit_plan(self, chosen: Mapping[str, Choice], key: str) -> Refitted:
        found = refit(
            self._trial.program,
            self._trial.converted(chosen, {}),
            self._batches,
            self._written,
            lambda done, total: self._trial.report("refitting a whole plan", done, total),
        )
        if self._run is not None:
            fits = {name: asdict(each) for name, each in found.fits.items()}
            self._run.save(f"{REFIT}{key}", found.weights, {"done": True, "seconds": [], "fits": fits})
        return found

    def _fit_site(self, site: AttentionSite, choices: Sequence[Choice], walk: Walk) -> list[Weights]:
        """Refit the projection of a site to what it yields in the original model, for each choice."""
        product, cut = self._products[self._projections[site.name]], site.out.node.name
        targets = [walk.value(index, product.node, cut) for index in range(len(self._batches))]
        weights = self._execution.weights
        weight, bias = weights[product.weight], weights.get(product.bias)
        found: list[Weights] = []
        for choice in choices:
            converted = Execution(self._trial.converted({site.name: choice}, {}))
            rows = zip(self._inputs(converted, product, walk, cut), targets, strict=True)
            sums = sums_of(weight, bias, rows, len(self._batches))
            found.append(self._solved(product, sums, weight, bias))
        return found

    def _inputs(self, converted: Execution, product: Product, walk: Walk, cut: str) -> Iterator[Tensor]:
        """What comes into a product after a choice, batch by batch."""
        for index, batch in enumerate(self._batches):
            known = converted.start(batch)
            if not converted.order_matters:  # else the graph runs from its start
                known |= walk.at(index, cut)
            yield converted.evaluate(product.inputs, known)

    def _solved(self, product: Product, sums: Sequence[Sums], weight: Tensor, bias: Tensor | None) -> Weights:
        solved, found = fit(sums, prior_of(weight, bias))
        if found.penalty is None:
            return {}
        names = [self._execution.weight_names[each] for each in (product.weight, product.bias) if each]
        return dict(zip(names, as_weights(solved, weight, bias), strict=True))
