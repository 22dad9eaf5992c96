"""Bounds of constants: every value lies inside them, and the masks that libraries build around nothing are proven."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor
from torch.fx import Interpreter, Node
from torch.fx.experimental.proxy_tensor import make_fx

from jetvit.patterns.ranges import is_always, value_range

NUMBERS = st.sampled_from([-3, -1, -0.5, 0, 0.5, 1, 2, 3, math.inf, -math.inf])
DTYPES = st.sampled_from([torch.bool, torch.int8, torch.uint8, torch.int64, torch.float32])


def results(build: Callable[..., Tensor], *inputs: Tensor) -> tuple[Node, dict[Node, Tensor]]:
    """The node of the result of a function, and the value of every node."""
    graph = make_fx(build, tracing_mode="fake", pre_dispatch=True)(*inputs)

    class Keeper(Interpreter):
        def run_node(self, n: Node) -> object:
            values[n] = value = super().run_node(n)
            return value

    values: dict[Node, Tensor] = {}
    Keeper(graph).run(*inputs)
    return graph.graph.output_node().args[0], values


@st.composite
def constants(draw: st.DrawFn, depth: int = 4) -> Callable[[], Tensor]:
    """A function that makes a tensor of three entries from numbers alone."""
    kinds = ["arange", "range", "full", "zeros", "ones"]
    inner = ["add", "compare", "where", "cast", "not", "view", "and", "or", "bits"]
    kind = draw(st.sampled_from(kinds + inner * 3 if depth else kinds))
    if kind in kinds:
        number, start = draw(NUMBERS), draw(st.sampled_from([-2, 0, 0.5, 3]))
        step = draw(st.sampled_from([1, 2, -1, 0.5]))
        dtype = draw(st.sampled_from([torch.bool, torch.int64, torch.float32]))
        if dtype == torch.int64 and math.isinf(number):
            number = 0
        return {
            "arange": lambda: torch.arange(3),
            "range": lambda: torch.arange(start, start + 3 * step, step),
            "full": lambda: torch.full((3,), number, dtype=dtype),
            "zeros": lambda: torch.zeros(3, dtype=dtype),
            "ones": lambda: torch.ones(3, dtype=dtype),
        }[kind]
    a, b, c = (draw(constants(depth=depth - 1)) for _ in range(3))
    number = draw(NUMBERS.filter(math.isfinite))
    compare = draw(st.sampled_from([torch.ge, torch.gt, torch.le, torch.lt]))
    other = draw(st.sampled_from([b, lambda: number]))
    if kind == "cast":
        dtype = draw(DTYPES)
        return lambda: a().to(dtype)
    return {
        "add": lambda: a() + other(),
        "compare": lambda: compare(a(), other()),
        "where": lambda: torch.where(a().bool(), b(), c()),
        "not": lambda: ~a().bool(),
        "view": lambda: a().view(1, 3).expand(2, 3)[0],
        "and": lambda: a().bool() & b().bool(),
        "or": lambda: torch.logical_or(a(), b()),
        "bits": lambda: a().to(torch.int64) & b().to(torch.int64),
    }[kind]


@given(constants())
@example(lambda: torch.ones(3, dtype=torch.bool) + torch.ones(3, dtype=torch.bool))  # a sum of booleans is no number
@example(lambda: torch.full((3,), 3) & torch.full((3,), 2))
@example(lambda: torch.full((3,), -1).to(torch.uint8))  # wraps around
@example(lambda: (torch.arange(3) + 0.5).to(torch.int64))
@example(lambda: torch.where(torch.arange(3) > 0, torch.arange(3.0), torch.full((3,), math.inf)).to(torch.int64))
@example(lambda: torch.full((3,), 0.5, dtype=torch.int64))
@example(lambda: torch.full((3,), 3, dtype=torch.bool))
@example(lambda: torch.full((3,), 3, dtype=torch.uint8) >= -1)  # the number wraps around too
def test_every_value_lies_inside(build: Callable[[], Tensor]) -> None:
    _, values = results(build)
    for node, value in values.items():
        if not isinstance(value, Tensor) or value.isnan().any():
            continue
        low, high = value_range(node)
        assert low <= value.double().min()
        assert value.double().max() <= high


def bidirectional(n: int) -> Tensor:
    """What transformers builds where every token sees every token."""
    q, k = torch.arange(n)[:, None], torch.arange(n)[None, :]
    return torch.where((k >= 0) & (q >= 0), 0.0, -math.inf)


@pytest.mark.parametrize(
    ("build", "value"),
    [
        (lambda: bidirectional(5), 0),
        (lambda: torch.arange(4) >= 0, 1),
        (lambda: torch.arange(4) < 0, 0),
        (lambda: torch.arange(1, 4) > 0, 1),
        (lambda: (torch.zeros(3) + 1).bool(), 1),
        (lambda: torch.ones(3).bool() | (torch.arange(3) > 1), 1),
        (lambda: ~torch.zeros(3, dtype=torch.bool), 1),
        (lambda: torch.zeros(2, 1).expand(2, 3).to(torch.bfloat16), 0),
    ],
)
def test_proven(build: Callable[[], Tensor], value: float) -> None:
    node, values = results(build)
    assert (values[node] == value).all()
    assert is_always(node, value)


@pytest.mark.parametrize(
    "build",
    [
        lambda: torch.arange(4) > 0,
        lambda: torch.arange(4) >= 1,
        lambda: torch.where(torch.arange(4) < 3, 0.0, -math.inf),
        lambda: torch.arange(4)[:, None] >= torch.arange(4)[None, :],
        lambda: torch.arange(3, -1, -1) >= 0.5,
        lambda: torch.add(torch.zeros(3), torch.ones(3), alpha=-1),
        lambda: torch.full((3,), 0.5),
    ],
)
def test_not_proven(build: Callable[[], Tensor]) -> None:
    node, _ = results(build)
    assert not is_always(node, 0)
    assert not is_always(node, 1)


def test_what_depends_on_an_input_has_no_bounds() -> None:
    node, _ = results(lambda x: x + torch.zeros(3), torch.zeros(3))
    assert value_range(node) == (-math.inf, math.inf)
