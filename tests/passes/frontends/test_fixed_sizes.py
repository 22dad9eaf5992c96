"""Which guards of a program say that the model's code fixed a size."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from jetvit.passes.frontends.fixed_sizes import fixed_sizes

HEIGHT, WIDTH = "L['image'].size()[2]", "L['image'].size()[3]"


@pytest.mark.parametrize(
    ("guards", "fixed"),
    [
        ([f"{HEIGHT} // 8 == 4"], ["height // 8 == 4"]),
        ([f"{HEIGHT} == 32", f"{HEIGHT} >= 8"], ["height == 32"]),
        ([f"({HEIGHT} // 8) * ({WIDTH} // 8) == 24"], ["height // 8 * (width // 8) == 24"]),
        ([f"{HEIGHT} == {WIDTH}"], ["height == width"]),
        ([f"{HEIGHT} // 5000 == 0"], ["height // 5000 == 0"]),
        # Divisibility, bounds and inequalities fix nothing.
        ([f"{HEIGHT} % 8 == 0", f"{HEIGHT} >= 8", f"{WIDTH} != 1"], []),
        # True for all sizes: torch could not simplify it.
        ([f"min(16 + 16 * ({HEIGHT} // 8), 32 + 32 * ({HEIGHT} // 8)) == 16 + 16 * ({HEIGHT} // 8)"], []),
        ([f"min({HEIGHT}, {WIDTH}) == {HEIGHT}"], ["min(height, width) == height"]),
        # True for the multiples of 8 that another guard asks for.
        ([f"8 * ({HEIGHT} // 8) == {HEIGHT}", f"{HEIGHT} % 8 == 0"], []),
        ([f"8 * ({HEIGHT} // 8) == {HEIGHT}"], ["8 * (height // 8) == height"]),
        # What cannot be evaluated is taken to fix something.
        ([f"unheard_of({HEIGHT}) == 4"], ["unheard_of(height) == 4"]),
        ([f"{HEIGHT} == 7", f"{HEIGHT} >= 5000"], ["height == 7"]),
        (["not python"], []),
    ],
)
def test_what_is_fixed(guards: list[str], fixed: list[str]) -> None:
    assert fixed_sizes(SimpleNamespace(_guards_code=guards)) == fixed
