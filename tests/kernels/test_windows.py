"""`balanced_windows`: the fewest windows under the bound, as equal as can be."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jetvit.kernels import balanced_windows


@given(size=st.integers(1, 500), window=st.integers(1, 600))
def test_cover_the_axis_and_only_the_last_is_short(size: int, window: int) -> None:
    count, side = balanced_windows(size, window)
    last = size - (count - 1) * side
    assert 1 <= last <= side <= window


@given(size=st.integers(1, 500), window=st.integers(1, 600))
def test_no_cut_has_fewer_or_more_equal_windows(size: int, window: int) -> None:
    count, side = balanced_windows(size, window)
    assert (count - 1) * window < size <= count * window
    assert count * (side - 1) < size


@pytest.mark.parametrize(
    ("size", "window", "expected"), [(44, 32, (2, 22)), (60, 32, (2, 30)), (73, 16, (5, 15)), (5, 9, (1, 5))]
)
def test_known_grids(size: int, window: int, expected: tuple[int, int]) -> None:
    assert balanced_windows(size, window) == expected
