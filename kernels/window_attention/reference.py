"""Window attention in ATen: the meaning of the operator, and the CPU's own implementation."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from jetvit.kernels.autocast import without_autocast
from jetvit.kernels.checks import is_absent
from jetvit.kernels.rope import rotate
from jetvit.kernels.window_attention.windows import balanced_windows, window_runs


def window_attention_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rope_y: Tensor,
    rope_x: Tensor,
    grid_h: int,
    grid_w: int,
    extra_before: int,
    window_h: int,
    window_w: int,
    scale: float,
) -> Tensor:
    """Compute `jetvit::window_attention`; the operator's own docstring has the contract."""
    # A graph with a symbolic grid cannot ask whether the last window is short: it masks always.
    static = isinstance(grid_h, int) and isinstance(grid_w, int)
    inside = sliced_windows if static else masked_windows
    return attend_in_windows(inside, q, k, v, rope_y, rope_x, grid_h, grid_w, extra_before, window_h, window_w, scale)


def attend_in_windows(
    inside: Callable[..., Tensor],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rope_y: Tensor,
    rope_x: Tensor,
    grid_h: int,
    grid_w: int,
    extra_before: int,
    window_h: int,
    window_w: int,
    scale: float,
) -> Tensor:
    """Compute the operator; `inside` attends inside the windows: `sliced_windows` or a function of its signature."""
    with without_autocast(q.device):
        if not is_absent(rope_y):
            q, k = (x.to(v.dtype) for x in rotate(q, k, rope_y, rope_x, extra_before))
        grid_tokens = grid_h * grid_w
        sizes = [extra_before, grid_tokens, q.shape[1] - extra_before - grid_tokens]
        (q_before, q_grid, q_after), (k_before, k_grid, k_after), (v_before, v_grid, v_after) = (
            x.split(sizes, dim=1) for x in (q, k, v)
        )
        extra_out = attend(torch.cat([q_before, q_after], dim=1), k, v, None, scale)
        before_out, after_out = extra_out.split([sizes[0], sizes[2]], dim=1)
        grid_out = inside(
            q_grid.unflatten(1, (grid_h, grid_w)),
            k_grid.unflatten(1, (grid_h, grid_w)),
            v_grid.unflatten(1, (grid_h, grid_w)),
            torch.cat([k_before, k_after], dim=1),
            torch.cat([v_before, v_after], dim=1),
            window_h,
            window_w,
            scale,
        )
        return torch.cat([before_out, grid_out.flatten(1, 2), after_out], dim=1).contiguous()


def sliced_windows(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    extra_k: Tensor | None,
    extra_v: Tensor | None,
    window_h: int,
    window_w: int,
    scale: float,
) -> Tensor:
    """Attend inside each window of q, k, v [batch, grid_h, grid_w, head, dim] and to the extra keys and values.

    The short last row and column of windows are attended to apart, so that nothing is padded and nothing masked.
    `extra_k` and `extra_v` [batch, token, head, dim] are None for runtimes without tensors of length 0.
    """
    rows = []
    for y, side_h in window_runs(q.shape[1], window_h):
        row = []
        for x, side_w in window_runs(q.shape[2], window_w):
            own = [_cut(_cut(part, 1, y), 2, x) for part in (q, k, v)]
            own_q, own_k, own_v = (to_windows(part, side_h, side_w) for part in own)
            out = attend_to_windows(own_q, own_k, own_v, extra_k, extra_v, None, scale)
            row.append(to_grid(out, own[0].shape, side_h, side_w))
        rows.append(row)
    return join([join(row, dim=2) for row in rows], dim=1)


def masked_windows(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    extra_k: Tensor | None,
    extra_v: Tensor | None,
    window_h: int,
    window_w: int,
    scale: float,
) -> Tensor:
    """Compute `sliced_windows` by one graph for every grid size: short windows are filled up and masked.

    Tokens are gathered by index, because a reshape of a padded grid guards on whether the padding is empty.
    """
    token, mask, place = window_places(q.shape[1], q.shape[2], window_h, window_w, q.device)
    if extra_k is not None:
        # Not a padding, which TensorRT does not take of a boolean tensor.
        mask = torch.cat([mask, mask.new_ones(()).expand(mask.shape[0], extra_k.shape[1])], dim=1)
    own_q, own_k, own_v = (part.flatten(1, 2)[:, token] for part in (q, k, v))
    out = attend_to_windows(own_q, own_k, own_v, extra_k, extra_v, mask[None], scale)
    return out.flatten(1, 2)[:, place]


def window_places(
    grid_h: int, grid_w: int, window_h: int, window_w: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Index the tokens of a grid of any size in its windows, all of one size, the last ones filled up.

    Returns token [window, place], the number of the token at a place of a window; real [window, place], False where
    the window is filled up; and place [grid_h, grid_w], the place of a token among those of all windows in a row.
    """
    (count_h, side_h), (count_w, side_w) = balanced_windows(grid_h, window_h), balanced_windows(grid_w, window_w)
    y = torch.arange(count_h * side_h, device=device).unflatten(0, (count_h, 1, side_h, 1))
    x = torch.arange(count_w * side_w, device=device).unflatten(0, (1, count_w, 1, side_w))
    token = (y.clamp(max=grid_h - 1) * grid_w + x.clamp(max=grid_w - 1)).flatten(2).flatten(0, 1)
    # Not `&`, whose operands TensorRT wants to know as boolean before they are computed.
    real = torch.logical_and(y < grid_h, x < grid_w).flatten(2).flatten(0, 1)
    y = torch.arange(grid_h, device=device)[:, None]
    x = torch.arange(grid_w, device=device)
    row, column = y // side_h, x // side_w
    # No remainders: exporters to ONNX take no symbolic divisor there.
    place = ((row * count_w + column) * side_h + y - row * side_h) * side_w + x - column * side_w
    return token, real, place


def to_windows(x: Tensor, side_h: int, side_w: int) -> Tensor:
    """[batch, height, width, head, dim] to [batch, window, token, head, dim]."""
    batch, height, width, heads, dim = x.shape
    count_h, count_w = height // side_h, width // side_w
    x = x.reshape(batch, count_h, side_h, count_w, side_w, heads, dim).transpose(2, 3)
    return x.reshape(batch, count_h * count_w, side_h * side_w, heads, dim)


def to_grid(x: Tensor, shape: torch.Size, side_h: int, side_w: int) -> Tensor:
    """The inverse of `to_windows`, to [batch, height, width, head, dim] = `shape`."""
    batch, height, width, heads, dim = shape
    x = x.reshape(batch, height // side_h, width // side_w, side_h, side_w, heads, dim)
    return x.transpose(2, 3).reshape(shape)


def attend_to_windows(
    q: Tensor, k: Tensor, v: Tensor, extra_k: Tensor | None, extra_v: Tensor | None, mask: Tensor | None, scale: float
) -> Tensor:
    """Attend from each window [batch, window, token, head, dim] to its keys and the extra [batch, token, head, dim].

    `mask` is [1, window, key], True where a key is real.
    """
    batch, windows = q.shape[:2]
    if extra_k is not None and extra_v is not None:
        k = torch.cat([k, extra_k.unsqueeze(1).expand(-1, windows, -1, -1, -1)], dim=2)
        v = torch.cat([v, extra_v.unsqueeze(1).expand(-1, windows, -1, -1, -1)], dim=2)
    if mask is not None:
        mask = mask.expand(batch, -1, -1).flatten(0, 1)[:, None, None]
    out = attend(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), mask, scale)
    return out.unflatten(0, (batch, windows))


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Softmax attention of [batch, token, head, dim]; `mask` [batch, 1, 1, key] is True where a key takes part."""
    if q.shape[2] == 0:  # on a CPU torch 2.11 divides by the count of heads, which ends the process
        return q.new_empty(q.shape)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale).transpose(1, 2)


def join(parts: list[Tensor], dim: int) -> Tensor:
    """Concatenate parts along an axis; a single part is returned as it is."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


def _cut(x: Tensor, dim: int, tokens: range) -> Tensor:
    return x if len(tokens) == x.shape[dim] else x.narrow(dim, tokens.start, len(tokens))
