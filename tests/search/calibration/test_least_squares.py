"""Laws of the ridge regression behind a refit."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from jetvit.search.calibration.least_squares import PENALTIES, Ridge, Sums, fit

SEEDS = st.integers(0, 2**32 - 1)
PENALTY = st.floats(1e-6, 1e6)


def problem(
    seed: int, rows: int, inputs: int = 5, outputs: int = 3, noise: float = 1.0
) -> tuple[Tensor, Tensor, Tensor]:
    """x, y and the weights that are there, of which y is some way off."""
    inputs, outputs = 5, 3
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, inputs, generator=generator) * torch.rand(inputs, generator=generator).add(0.1)
    prior = torch.randn(inputs + 1, outputs, generator=generator, dtype=torch.float64)
    true = prior + torch.randn(prior.shape, generator=generator, dtype=torch.float64)
    y = with_one(x).double() @ true + noise * torch.randn(rows, outputs, generator=generator)
    return x, y, prior


def with_one(x: Tensor) -> Tensor:
    return torch.cat([x, x.new_ones(len(x), 1)], dim=1)


def sums(x: Tensor, y: Tensor) -> Sums:
    found = Sums(x.shape[-1], y.shape[-1], bias=True)
    found.add(x, y)
    return found


@given(SEEDS, st.integers(1, 40), PENALTY)
def test_a_refit_never_raises_the_loss_that_it_minimises(seed: int, rows: int, penalty: float) -> None:
    x, y, prior = problem(seed, rows)
    before = sums(x, y).loss(prior)
    assert sums(x, y).loss(Ridge(sums(x, y)).solve(prior, penalty)) <= before * (1 + 1e-9)


@given(SEEDS, st.integers(1, 40))
def test_an_endless_penalty_changes_nothing(seed: int, rows: int) -> None:
    x, y, prior = problem(seed, rows)
    torch.testing.assert_close(Ridge(sums(x, y)).solve(prior, 1e12), prior)


@given(SEEDS, st.integers(2, 40), st.randoms(use_true_random=False))
def test_the_order_of_rows_changes_nothing(seed: int, rows: int, random) -> None:
    x, y, prior = problem(seed, rows)
    order = random.sample(range(rows), rows)
    ours, theirs = (Ridge(sums(*each)).solve(prior, 0.1) for each in ((x, y), (x[order], y[order])))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@given(SEEDS)
def test_the_solution_is_that_of_the_normal_equations(seed: int) -> None:
    x, y, prior = problem(seed, 40)
    full, mean = with_one(x).double(), x.double().square().sum(0).mean()
    penalty = torch.diag(torch.cat([mean.expand(5), torch.tensor([40.0], dtype=torch.float64)]) * 0.3)
    expected = torch.linalg.solve(full.T @ full + penalty, full.T @ y + penalty @ prior)
    torch.testing.assert_close(Ridge(sums(x, y)).solve(prior, 0.3), expected, rtol=1e-4, atol=1e-4)


@given(SEEDS, st.integers(1, 30))
def test_the_loss_is_that_of_the_rows(seed: int, rows: int) -> None:
    x, y, prior = problem(seed, rows)
    expected = (with_one(x).double() @ prior - y).square().sum()
    torch.testing.assert_close(sums(x, y).loss(prior), float(expected), rtol=1e-5, atol=1e-4)


@given(SEEDS)
def test_what_generalises_is_found(seed: int) -> None:
    x, y, prior = problem(seed, 400, noise=0.01)
    _, found = fit([sums(a, b) for a, b in zip(x.chunk(4), y.chunk(4), strict=True)], prior, (1e-4, *PENALTIES))
    assert found.penalty is not None
    assert found.held_out < 0.2 * found.before


@given(SEEDS)
def test_where_nothing_is_to_gain_the_weights_stay(seed: int) -> None:
    x, _, prior = problem(seed, 40)
    y = with_one(x).double() @ prior
    weight, found = fit([sums(a, b) for a, b in zip(x.chunk(4), y.chunk(4), strict=True)], prior)
    assert found.before < 1e-6
    torch.testing.assert_close(weight, prior, rtol=1e-3, atol=1e-3)


def test_noise_is_not_learned() -> None:
    """More inputs than rows, and a target that has nothing to do with them."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(24, 64, generator=generator), torch.randn(24, 2, generator=generator)
    prior = torch.zeros(65, 2, dtype=torch.float64)
    _, found = fit([sums(a, b) for a, b in zip(x.chunk(4), y.chunk(4), strict=True)], prior)
    assert found.held_out <= found.before
    assert found.penalty is None or found.penalty >= 1
