"""Sizes of one graph, written in one way."""

from __future__ import annotations

import pytest
import sympy
import torch
from torch.export import Dim

from jetvit.passes.frontends.capture import export_model
from jetvit.patterns.lengths import Lengths, product, quotient, total

A, B = sympy.symbols("a b", positive=True, integer=True)


class Aranges(torch.nn.Module):
    """Lines as long as an image is high, by several starts."""

    def __init__(self, start: float, step: float = 1) -> None:
        super().__init__()
        self.start, self.step = start, step

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        rows = image.shape[2] // 8
        return torch.arange(self.start, rows, self.step).cos()[:, None].tile(2)


def line(start: float, step: float = 1) -> tuple[Lengths, torch.fx.Node, sympy.Expr]:
    """The lengths of a graph, its last node and the number of rows."""
    program = export_model(Aranges(start, step), (torch.zeros(1, 1, 32, 32),), dynamic_shapes=({2: Dim.DYNAMIC},))
    nodes = list(program.graph.nodes)
    rows = next(node.meta["val"] for node in nodes if "floordiv" in node.name)
    return Lengths(nodes), nodes[-2], rows.node.expr


@pytest.mark.parametrize("start", [0, 1, 0.5, -0.5, 1.5, 2])
def test_arange_from_a_half_is_as_long_as_its_end_says(start: float) -> None:
    lengths, node, rows = line(start)
    for size in range(3, 9):
        expected = len(torch.arange(start, size))
        assert rows.subs(rows, size) - int(start // 1) == expected
    assert lengths.shape(node) == (sympy.expand(rows - int(start // 1)), 2)


@pytest.mark.parametrize(("start", "step"), [(0.3, 1), (0.5, 2), (0.5, 0.5)])
def test_other_lengths_stay_as_they_are(start: float, step: float) -> None:
    lengths, node, rows = line(start, step)
    assert lengths.shape(node)[0] != rows


def test_products_sums_and_quotients() -> None:
    assert product([2, 3]) == 6
    assert product([]) == 1
    assert product([A, B]) == product([B, A]) == A * B
    assert total(5, product([A, B]), -A * B) == 5
    assert isinstance(total(A, -A + 3), int)
    assert quotient(12, 4) == 3
    assert quotient(12, 5) is None
    assert quotient(4, 0) is None
    assert quotient(A * B, A) == B
    assert quotient(6 * A, 2 * A) == 3
    assert quotient(A, A) == 1
    assert quotient(A, B) is None
    assert quotient(A, 2) is None
    assert quotient(6, A) is None
