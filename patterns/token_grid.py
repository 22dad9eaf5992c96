"""`jetvit.token_grid`: a model's own word for where the token grid is, where a graph does not show it.

The identity, as an operator that captures keep. The layout walk takes its word for the axis; the last pass removes it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from jetvit.patterns import axes as ax
from jetvit.patterns.calls import shape, traced_value
from jetvit.patterns.captured import CapturedGraph
from jetvit.patterns.core import Refused
from jetvit.patterns.geometry import grid_axis, read_tokens
from jetvit.patterns.regions import GraphView
from jetvit.patterns.rules import AxisReader, Value, rule
from jetvit.patterns.sizes import same_sizes
from jetvit.patterns.tokens import Tokens
from jetvit.patterns.wording import counted


def token_grid(x: Tensor, height: int, width: int, before: int = 0, dim: int = -2) -> Tensor:
    """Name the token grid of an axis, for models that jetvit refuses with "unknown token grid". Returns `x`.

    Call it in a model, on the tokens, before its first block. In eager mode it is a copy; in a rewritten model nothing
    is left of it.

    Args:
        x: [..., tokens, channels] of any dtype, or another layout with `dim`.
        height, width: the rows and columns of the grid, whose tokens stand row by row.
        before: how many tokens stand before the grid. The tokens behind it are extra tokens too; windows attend to all.
        dim: the axis of the tokens.
    Returns:
        A tensor equal to `x`. Differentiable.
    Raises:
        ValueError: the axis has fewer tokens.
    """
    return _token_grid(x, height, width, before, dim)


@torch.library.custom_op("jetvit_hint::token_grid", mutates_args=())
def _token_grid(x: Tensor, height: int, width: int, before: int, dim: int) -> Tensor:
    _check(x, height, width, before, dim)
    return x.clone()


@_token_grid.register_fake
def _(x: Tensor, height: int, width: int, before: int, dim: int) -> Tensor:
    _check(x, height, width, before, dim)
    return torch.empty_like(x)


def _keep_nothing(ctx: Any, inputs: Any, output: Tensor) -> None:
    pass


def _gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    return gradient, None, None, None, None


_token_grid.register_autograd(_gradients, setup_context=_keep_nothing)
TOKEN_GRID = torch.ops.jetvit_hint.token_grid.default


def has_hints(graph: CapturedGraph) -> bool:
    """True if something of `token_grid` is in a graph."""
    return any(node.target is TOKEN_GRID for node in GraphView(graph.module).nodes)


def _check(x: Tensor, height: int, width: int, before: int, dim: int) -> None:
    if not -x.dim() <= dim < x.dim():
        raise ValueError(f"token_grid: dim is {dim}, and the tensor has {counted(x.dim(), 'axis', 'axes')}")
    tokens = x.shape[dim]
    numbers = all(isinstance(size, int) for size in (height, width, before, tokens))
    if numbers and (height < 1 or width < 1 or before < 0 or before + height * width > tokens):
        raise ValueError(
            f"token_grid: a grid of {height}×{width} after {counted(before, 'token')} does not fit an axis of {tokens}"
        )


@rule(TOKEN_GRID)
def _named(walk: AxisReader, node: Node) -> Value:
    """The axes of the tensor, one of them with the grid that was named; lost, where the graph shows another grid."""
    axes = list(walk.of(node.args[0]))
    height, width, before, dim = map(traced_value, node.args[1:])
    size = shape(node)[dim]
    named = Tokens(before, (height, width), size - before - height * width)
    try:
        shown = read_tokens(axes[dim], node)
    except Refused:
        shown = named
    if same_sizes(shown.sizes(), named.sizes()):
        axes[dim] = grid_axis(named)
    else:
        grids = [f"{each.grid[0]}×{each.grid[1]} after {counted(each.before, 'token')}" for each in (named, shown)]
        axes[dim] = ax.fresh(size, "unknown", f"jetvit.token_grid, which names {grids[0]} and not {grids[1]}")
    return tuple(axes)
