"""Refit a converted model without a gradient: the products that write into its hidden state get new weights.

Most of what a converted attention loses is linear in what it yields. In the order of execution, from the first
converted attention on, each output projection, and the second product of each MLP, gets the weights that bring the
hidden state nearest to that of the original model, on images, by ridge regression towards its own weights:

    argmin Σ‖γ·(x·W + b) − (h'ₒ − h)‖² + λ·m·‖γ·(W − W₀)‖²

x is what comes in, in the converted model with all products before it refitted. h'ₒ is the hidden state of the
original model after the attention; h is the hidden state before it, the mean of the converted model's and of the
original's, so that a product repairs half of what was lost before: to repair all of it or nothing drifts more on
unseen images. γ is LayerScale. A product whose result is added to nothing is fitted to what it yields in the original
model. λ is the one that does best on images left out; where none does, W₀ stays.

It is what GPTQ (https://arxiv.org/abs/2210.17323) does for quantised weights, for converted attentions.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from jetvit.search.calibration.execution import Batch, Execution
from jetvit.search.calibration.least_squares import Fit, Sums, fit
from jetvit.search.calibration.residuals import Product, products
from jetvit.search.calibration.walk import Walk

PARTS = 4
"""In how many parts images are divided, each of which is left out once."""

_REPAIRED = 0.5
# The share of what was lost before a product that it is to repair.
_SMALL = 1e-4
# A channel whose LayerScale is smaller than this share of the largest keeps its weights.


@dataclass(frozen=True)
class Refitted:
    """A refit: the new weights by FQN, and how each product was fitted, by the FQN of its weight."""

    weights: Mapping[str, Tensor]
    fits: Mapping[str, Fit]

    def record(self) -> list[dict[str, Any]]:
        """What a plan keeps of it: penalty, and errors before, on fitted images, and on those left out."""
        return [{"weight": name, **asdict(each)} for name, each in self.fits.items()]


def refit(
    original: ExportedProgram,
    converted: ExportedProgram,
    batches: Sequence[Batch],
    names: Collection[str],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Refitted:
    """Refit products of a converted model.

    Args:
        original: the model. converted: the same with some attentions rewritten; neither is changed.
        batches: the images, in an order in which neighbours are alike: a quarter of them is left out at a time.
        names: the FQNs of the weights to refit; those before the first rewritten attention stay as they are, and so
            do those that are in a region of the graph, or that several products share.
        progress: called with the number of products done, and of all.
    """
    ours, theirs = Execution(converted), Execution(original)
    first = _first_difference(ours, theirs)
    todo = [
        product
        for product in products(theirs.nodes, theirs.weight_names)
        if theirs.weight_names[product.weight] in names and ours.position.get(product.node, -1) > first
    ]
    fits: dict[str, Fit] = {}
    weights: dict[str, Tensor] = {}
    with torch.inference_mode(), tempfile.TemporaryDirectory(prefix="jetvit-") as folder:
        place = Path(folder)
        pair = _Pair(Walk(theirs, batches, place), Walk(ours, batches, place), len(batches))
        for done, product in enumerate(todo):
            progress(done, len(todo))
            fits[theirs.weight_names[product.weight]], changed = pair.fit(product)
            weights |= {theirs.weight_names[placeholder]: value for placeholder, value in changed.items()}
    progress(len(todo), len(todo))
    return Refitted(weights, fits)


class _Pair:
    """The original and the converted model on all batches, side by side."""

    def __init__(self, theirs: Walk, ours: Walk, count: int):
        self.theirs, self.ours, self.count = theirs, ours, count

    def fit(self, product: Product) -> tuple[Fit, dict[str, Tensor]]:
        """Fit one product, and put its new weights into the converted model; returns them by placeholder."""
        weights = self.ours.execution.weights
        weight, bias = weights[product.weight], weights.get(product.bias)
        prior, scale = prior_of(weight, bias), self._scale(product, weight)
        sums = sums_of(weight, bias, (self._rows(product, index) for index in range(self.count)), self.count)
        scaled, found = fit(sums, prior * scale)
        if found.penalty is None:
            return found, {}
        kept = scale.abs() <= _SMALL * scale.abs().max()
        solved = torch.where(kept, prior, scaled / torch.where(kept, 1.0, scale))
        changed = dict(zip((product.weight, product.bias), as_weights(solved, weight, bias), strict=False))
        weights.update(changed)
        return found, changed

    def _scale(self, product: Product, weight: Tensor) -> Tensor:
        if not product.scale:
            return torch.ones(weight.shape[0], dtype=torch.float64, device=weight.device)
        return self.ours.execution.weights[product.scale].double()

    def _rows(self, product: Product, index: int) -> tuple[Tensor, Tensor]:
        """What comes into a product in the converted model, and what should come out, scaled."""
        x = self.ours.value(index, product.inputs, product.node)
        if not product.total:
            return x, self.theirs.value(index, product.node, product.node)
        theirs = self.theirs.value(index, product.hidden, product.node).float()
        ours = self.ours.value(index, product.hidden, product.node).float()
        total = self.theirs.value(index, product.total, product.node).float()
        return x, total - torch.lerp(theirs, ours, _REPAIRED)


def prior_of(weight: Tensor, bias: Tensor | None) -> Tensor:
    """A product's weights as a regression has them: [inputs (+ 1), outputs] in float64."""
    rows = [weight.double().T, *([bias.double()[None]] if bias is not None else [])]
    return torch.cat(rows)


def sums_of(weight: Tensor, bias: Tensor | None, rows: Iterable[tuple[Tensor, Tensor]], batches: int) -> list[Sums]:
    """The sums of each part of the images. rows: what comes into a product and what should come out, batch by batch."""
    parts = min(PARTS, batches)
    sums = [Sums(weight.shape[1], weight.shape[0], bias is not None, weight.device) for _ in range(parts)]
    for index, (x, target) in enumerate(rows):
        sums[index * parts // batches].add(x, target)
    return sums


def as_weights(solved: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, ...]:
    """The inverse of `prior_of`, in the dtypes of the weights that were there: the weight, and the bias if any."""
    new = solved[: weight.shape[1]].T.to(weight.dtype).contiguous()
    return (new,) if bias is None else (new, solved[-1].to(bias.dtype).contiguous())


def _first_difference(ours: Execution, theirs: Execution) -> int:
    """The position in our graph of the first node that the other has not, or that does something else there."""
    for position, node in enumerate(ours.nodes):
        other = theirs.by_name.get(node.name)
        if other is None or other.target != node.target:
            return position
    return len(ours.nodes)
