"""Ridge regression towards weights that are there already, with the penalty that does best on images left out.

The sums that it needs are kept for several parts of the images. A fit without one of them is tried on that part, for
all penalties and from the sums alone: no image is read twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

PENALTIES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0, 10.0)
"""What is tried, in units of the mean square of an input."""
SLACK = 0.05
"""The share of the gain on images left out that is given up for a larger penalty."""


@dataclass(frozen=True)
class Fit:
    """How a product was fitted.

    * penalty: the one that did best; None where the weights that were there did, and are kept.
    * before, train, held_out: the squared error over the energy of the target, with the weights that were there, with
      the new ones on the images that they were fitted on, and on images left out.
    """

    penalty: float | None
    before: float
    train: float
    held_out: float


class Sums:
    """The sums over rows of a linear regression, in float64.

    Args:
        inputs: the number of input channels. With `bias` a constant is one more.
        outputs: the number of output channels.
    """

    def __init__(self, inputs: int, outputs: int, bias: bool, device: torch.device | str = "cpu"):
        size = inputs + bias
        self.bias, self.rows, self.energy = bias, 0, 0.0
        self.xx = torch.zeros(size, size, dtype=torch.float64, device=device)
        self.xy = torch.zeros(size, outputs, dtype=torch.float64, device=device)

    def add(self, x: Tensor, y: Tensor) -> None:
        """Count rows x [..., inputs] and y [..., outputs], of any floating-point dtype.

        The products of one call are made in float32 and added up in float64.
        """
        x, y = x.detach().float().flatten(0, -2), y.detach().float().flatten(0, -2)
        if self.bias:
            x = torch.cat([x, x.new_ones(len(x), 1)], dim=1)
        self.xx += (x.T @ x).double()
        self.xy += (x.T @ y).double()
        self.energy += float(y.double().square().sum())
        self.rows += len(x)

    def loss(self, weight: Tensor) -> float:
        """The squared error of a product with this weight [inputs (+ 1), outputs], over all rows."""
        return float((weight * (self.xx @ weight - 2 * self.xy)).sum()) + self.energy

    @classmethod
    def of(cls, parts: Sequence[Sums]) -> Sums:
        """All rows of several sums."""
        first = parts[0]
        total = cls(first.xx.shape[0] - first.bias, first.xy.shape[1], first.bias, first.xx.device)
        for part in parts:
            total.xx += part.xx
            total.xy += part.xy
            total.energy += part.energy
            total.rows += part.rows
        return total


class Ridge:
    """The solutions of a ridge regression for every penalty: argmin Σ‖xW − y‖² + λ·m·‖W − W₀‖².

    m is the mean over inputs of Σx². The constant of a bias counts as an input of that mean square. One eigenvalue
    decomposition yields all.
    """

    def __init__(self, sums: Sums):
        diagonal = sums.xx.diagonal()
        inputs = len(diagonal) - sums.bias
        self._mean = float(diagonal[:inputs].mean().clamp_min(1e-30))
        self._scale = torch.ones_like(diagonal)
        if sums.bias:
            self._scale[-1] = (self._mean / max(sums.rows, 1)) ** 0.5
        scaled = self._scale[:, None] * sums.xx * self._scale
        values, self._vectors = torch.linalg.eigh((scaled + scaled.T) / 2)
        self._values = values.clamp_min(0)
        self._sums = sums

    def solve(self, prior: Tensor, penalty: float) -> Tensor:
        """The weight [inputs (+ 1), outputs] in float64; `prior` is W₀."""
        gradient = self._scale[:, None] * (self._sums.xy - self._sums.xx @ prior)
        inner = (self._vectors.T @ gradient) / (self._values + penalty * self._mean)[:, None]
        return prior + self._scale[:, None] * (self._vectors @ inner)


def fit(parts: Sequence[Sums], prior: Tensor, penalties: Sequence[float] = PENALTIES) -> tuple[Tensor, Fit]:
    """Fit a product on all parts, with the penalty that does best where each part is left out in turn.

    Args:
        parts: sums over several parts of the images, two or more.
        prior: the weights that are there, [inputs (+ 1), outputs] in float64.
        penalties: those to try.
    Returns:
        The new weights [inputs (+ 1), outputs] in float64, and how they were fitted; those that are there, where no
        penalty does better.
    """
    everything = Sums.of(parts)
    energy = max(everything.energy, 1e-300)
    before = everything.loss(prior) / energy
    left_out = dict.fromkeys(penalties, 0.0)
    for index, part in enumerate(parts):
        ridge = Ridge(Sums.of([*parts[:index], *parts[index + 1 :]]))
        for penalty in penalties:
            left_out[penalty] += part.loss(ridge.solve(prior, penalty))
    least = min(left_out.values()) / energy
    if not least < before:
        return prior, Fit(None, before, before, before)
    # Images of another kind than these are served better by a larger penalty that is nearly as good on these.
    best = max(each for each, loss in left_out.items() if loss / energy <= least + SLACK * (before - least))
    held_out = left_out[best] / energy
    weight = Ridge(everything).solve(prior, best)
    return weight, Fit(best, before, everything.loss(weight) / energy, held_out)
