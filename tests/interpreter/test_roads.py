"""What reaches a kernel in a process of the interpreter, and what goes by the reference."""

from __future__ import annotations

import pytest
import torch

from jetvit.kernels import full_attention, linear_attention, window_attention
from jetvit.kernels.launch import has_kernel
from tests.interpreter.device import DEVICE, ON_GPU
from tests.kernels.naive import ABSENT

ABSENT_HERE = ABSENT.to(DEVICE)


def linear(q: torch.Tensor) -> torch.Tensor:
    taps = torch.ones(q.shape[2] * q.shape[3] * 9, device=q.device)
    return linear_attention(q, q, q, *[ABSENT_HERE] * 5, taps, 2, 3, 1, 3, 1e-6, "relu")


def window(q: torch.Tensor) -> torch.Tensor:
    return window_attention(q, q, q, ABSENT_HERE, ABSENT_HERE, 2, 3, 1, 2, 2, 0.25)


def full(q: torch.Tensor) -> torch.Tensor:
    return full_attention(q, q, q, ABSENT_HERE, ABSENT_HERE, 2, 3, 1, 0.25)


@pytest.mark.parametrize(
    ("operator", "shape"),
    [
        (linear, (0, 8, 2, 16)),
        (window, (0, 8, 2, 16)),
        (window, (1, 8, 0, 16)),
        (full, (0, 8, 2, 16)),
        (full, (1, 8, 0, 16)),
    ],
)
def test_nothing_is_launched_for_an_empty_tensor(operator, shape) -> None:
    assert operator(torch.empty(shape, device=DEVICE)).shape == shape


@pytest.mark.parametrize("operator", [linear, window, full])
def test_keys_and_values_may_be_expanded(operator) -> None:
    """One head in the place of all, as in multi-query attention."""
    q = torch.randn(2, 8, 1, 16, device=DEVICE).expand(-1, -1, 4, -1)
    torch.testing.assert_close(operator(q), operator(q.contiguous()))


@pytest.mark.skipif(ON_GPU, reason="a GPU compiles the kernels themselves")
@pytest.mark.parametrize("operator", [linear, window])
def test_a_trace_goes_by_the_reference(operator) -> None:
    """It has no values that an interpreter could work on."""
    q = torch.randn(2, 8, 2, 16)
    assert has_kernel(q)
    compiled = torch.compile(operator, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(q), operator(q), rtol=1e-5, atol=1e-5)
