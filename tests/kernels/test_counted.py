"""Windows that are counted while the graph runs: the same function as the operator, one graph for every grid."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from jetvit.kernels import balanced_windows, window_attention
from jetvit.kernels.window_attention.counted import count_windows, window_attention_counted

ABSENT = torch.empty(0)
side, window = st.integers(1, 13), st.integers(1, 15)


def tables(grid_h: int, grid_w: int, rope: bool) -> tuple[Tensor, Tensor]:
    if not rope:
        return ABSENT, ABSENT
    angles = [torch.randn(grid, 2) for grid in (grid_h, grid_w)]
    return tuple(torch.stack([each.cos(), each.sin()], dim=1) for each in angles)


@settings(max_examples=80, deadline=None)
@given(
    grid_h=side, grid_w=side, window_h=window, window_w=window, before=st.integers(0, 3), after=st.integers(0, 2),
    rope=st.booleans(), seed=st.integers(0, 2**16),
)  # fmt: skip
def test_it_is_the_operator(grid_h, grid_w, window_h, window_w, before, after, rope, seed) -> None:
    torch.manual_seed(seed)
    q, k, v = torch.randn(3, 2, before + grid_h * grid_w + after, 2, 8, dtype=torch.float64)
    arguments = (q, k, v, *tables(grid_h, grid_w, rope), grid_h, grid_w, before, window_h, window_w, 0.4)
    windows, places = count_windows(grid_h, grid_w, window_h, window_w, q.device)
    (count_h, side_h), (count_w, side_w) = balanced_windows(grid_h, window_h), balanced_windows(grid_w, window_w)
    assert (len(windows), len(places)) == (count_h * count_w, max(2, side_h * side_w))
    found = window_attention_counted(windows, places, *arguments)
    torch.testing.assert_close(found, window_attention(*arguments), rtol=0, atol=1e-14)


@pytest.mark.parametrize("before", [0, 1])
def test_one_graph_for_every_grid(before: int) -> None:
    """Nothing is guarded on but what the operator itself asks for."""

    def arguments(image: Tensor) -> tuple[Any, ...]:
        grid_h, grid_w = image.shape[2:]
        tokens = torch.cat([image[:, :, :before, 0], image.flatten(2)], dim=2)
        tokens = tokens.transpose(1, 2).contiguous().unflatten(2, (2, 4))
        return tokens, tokens, tokens, ABSENT, ABSENT, grid_h, grid_w, before, 3, 4, 0.5

    def counted(image: Tensor) -> Tensor:
        counts = count_windows(*image.shape[2:], 3, 4, image.device)
        return window_attention_counted(*counts, *arguments(image))

    graph = make_fx(counted, tracing_mode="symbolic", _allow_fake_constant=True)(torch.randn(2, 8, 7, 9))
    for size in [(7, 9), (1, 2), (3, 4), (2, 12), (13, 5), (1, 1)]:
        image = torch.randn(3, 8, *size)
        torch.testing.assert_close(graph(image), window_attention(*arguments(image)), rtol=0, atol=1e-6)
