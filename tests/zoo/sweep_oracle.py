"""The reference of the sweep: the eager model, whose attention sees a window mask that is made by hand.

Nothing in this file uses the graph that jetvit captures: functions of PyTorch are replaced while the eager model runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jetvit.passes.frontends.differences import tensors_by_name

Size = tuple[int, int]
_sdpa, _softmax = F.scaled_dot_product_attention, Tensor.softmax


@dataclass(frozen=True)
class Tokens:
    """The tokens of an attention: `before` extra tokens, a grid of rows and columns, `after` extra tokens."""

    before: int
    grid: Size
    after: int

    @property
    def count(self) -> int:
        return self.before + self.grid[0] * self.grid[1] + self.after

    def __str__(self) -> str:
        before = f"{self.before}+" if self.before else ""
        return f"{before}{self.grid[0]}×{self.grid[1]}" + (f"+{self.after}" if self.after else "")


def window_mask(tokens: Tokens, window: Size) -> Tensor:
    """Return [N, N], True where query i may attend to key j: in one window, or one of the two is an extra token."""
    rows, columns = torch.arange(tokens.grid[0]) // window[0], torch.arange(tokens.grid[1]) // window[1]
    of_grid = (rows[:, None] * tokens.grid[1] + columns).flatten()  # the number of a window is less than that of tokens
    extra = torch.full((1,), -1)
    windows = torch.cat([extra.expand(tokens.before), of_grid, extra.expand(tokens.after)])
    row, column = windows[:, None], windows[None, :]
    return (row == column) | (row < 0) | (column < 0)


Edit = Callable[[list[str], int, int, Tensor], Tensor | None]


class _Attentions:
    """Follows the modules of a model, and calls `edit(modules, queries, keys, q)` at each attention for its mask.

    `modules` are the names of the modules that run, the innermost first.
    """

    def __init__(self, edit: Edit) -> None:
        self.edit = edit
        self.stack: list[str] = []

    def leave(self, *_: Any) -> None:
        self.stack.pop()

    def mask(self, queries: int, keys: int, q: Tensor) -> Tensor | None:
        return self.edit(self.stack[::-1], queries, keys, q)

    def sdpa(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        **options: Any,
    ) -> Tensor:
        mask = self.mask(query.shape[-2], key.shape[-2], query)
        if mask is not None:
            assert not is_causal, "a site has an order"
            if attn_mask is None:
                attn_mask = mask
            elif attn_mask.dtype == torch.bool:
                attn_mask = attn_mask & mask
            else:
                attn_mask = attn_mask.masked_fill(~mask, float("-inf"))
        return _sdpa(query, key, value, attn_mask, dropout_p, is_causal, **options)

    def softmax(self, scores: Tensor, dim: int | None = None, *args: Any, **kwargs: Any) -> Tensor:
        assert dim is not None
        if scores.ndim > 2 and dim in (-1, scores.ndim - 1):
            mask = self.mask(scores.shape[-2], scores.shape[-1], scores)
            if mask is not None:
                scores = scores.masked_fill(~mask, float("-inf"))
        return _softmax(scores, dim, *args, **kwargs)


@contextmanager
def _followed(model: nn.Module, edit: Edit) -> Iterator[None]:
    """Within: every attention of the eager model asks `edit` for its mask."""
    attentions = _Attentions(edit)
    hooks = []
    for name, module in model.named_modules(remove_duplicate=True):
        hooks.append(module.register_forward_pre_hook(lambda *_, name=name: attentions.stack.append(name)))
        hooks.append(module.register_forward_hook(attentions.leave))
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # the fast path of nn.MultiheadAttention calls neither function
    try:
        with (
            mock.patch.object(F, "scaled_dot_product_attention", attentions.sdpa),
            mock.patch.object(torch, "softmax", attentions.softmax),
            mock.patch.object(
                Tensor, "softmax", lambda scores, *args, **kwargs: attentions.softmax(scores, *args, **kwargs)
            ),
        ):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        for hook in hooks:
            hook.remove()


class _Calls:
    """Tells which site an attention is: the next of as many tokens in the innermost module that has sites."""

    def __init__(self, sites: Mapping[str, Tokens]) -> None:
        self.left: dict[tuple[str, int], list[str]] = {}
        for name, tokens in sites.items():
            self.left.setdefault((name.partition("#")[0], tokens.count), []).append(name)

    def site(self, modules: list[str], queries: int, keys: int) -> str | None:
        for module in modules:
            if queries == keys and (names := self.left.get((module, queries))):
                return names.pop(0)
        return None


class OracleError(Exception):
    """The eager model has no attention where jetvit names a site."""


def windowed(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], sites: Mapping[str, Tokens], window: Size
) -> Any:
    """Return what the eager model returns with windows at `sites` (tokens by name of the site) and nowhere else.

    Raises:
        OracleError: a site does not run, or has another number of tokens.
    """
    calls = _Calls(sites)

    def edit(modules: list[str], queries: int, keys: int, _: Tensor) -> Tensor | None:
        name = calls.site(modules, queries, keys)
        return None if name is None else window_mask(sites[name], window)

    with torch.no_grad(), _followed(model, edit):
        result = model(*args, **kwargs)
    if left := [name for names in calls.left.values() for name in names]:
        raise OracleError(f"no attention of {sites[left[0]]} tokens ran in {', '.join(left)}")
    return result


class _Stop(Exception):
    pass


def moved_tokens(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], site: str, tokens: Tokens
) -> list[tuple[Size, Size]]:
    """Return the places of an image that the first site sees at other tokens than the grid says: (expected, found).

    The patch at the middle of an image's region is changed, and the query that changes most is looked up. An exchange
    of rows and columns, or a wrong number of extra tokens, shows.
    """
    (image,) = (value for value in (*args, *kwargs.values()) if isinstance(value, Tensor) and value.ndim == 4)
    rows, columns = tokens.grid
    places = sorted({(0, columns - 1), (rows - 1, 0), (rows // 2, columns // 2)})

    def queries(changed: Tensor) -> Tensor:
        kept: list[Tensor] = []
        calls = _Calls({site: tokens})

        def edit(modules: list[str], queries: int, keys: int, q: Tensor) -> Tensor | None:
            if calls.site(modules, queries, keys):
                kept.append(q)
                raise _Stop
            return None

        def put(value: Any) -> Any:
            return changed if value is image else value

        try:
            with torch.no_grad(), _followed(model, edit):
                model(*map(put, args), **{name: put(value) for name, value in kwargs.items()})
        except _Stop:
            pass
        return kept[0]

    plain, wrong = queries(image), []
    height, width = image.shape[-2] / rows, image.shape[-1] / columns
    for row, column in places:
        changed = image.clone()
        top, left = round(row * height), round(column * width)
        changed[..., top : round((row + 1) * height), left : round((column + 1) * width)] += 3
        change = (queries(changed) - plain).abs()
        token_axis = change.ndim - 2
        change = change.sum([axis for axis in range(change.ndim) if axis != token_axis])
        if change.sum() == 0:
            continue
        most = int(change[tokens.before : tokens.before + rows * columns].argmax())
        if (found := divmod(most, columns)) != (row, column):
            wrong.append(((row, column), found))
    return wrong


def difference(output: Any, expected: Any) -> float:
    """Return the largest difference of two outputs, relative to the largest value of the tensor it is in.

    Outputs with names are compared by name, because torch.export may change their order. Another number of tensors,
    another shape or dtype, and a value that is no number, are an infinite difference.
    """
    ours, theirs = tensors_by_name(output), tensors_by_name(expected)
    if [(one.shape, one.dtype) for one in ours] != [(one.shape, one.dtype) for one in theirs]:
        return float("inf")
    largest = 0.0
    for one, other in zip(ours, theirs, strict=True):
        if not other.numel():
            continue
        one, other = one.double(), other.double()
        same = (one == other) | (one.isnan() & other.isnan())
        gap = torch.where(same, 0.0, (one - other).abs()).max().item()
        if gap != gap:
            return float("inf")
        size = other[other.isfinite()].abs().max().item() if other.isfinite().any() else 1.0
        largest = max(largest, gap / max(size, 1e-6))
    return largest
