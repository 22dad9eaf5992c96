"""Window attention over grids of symbolic size, for compilers that take long over sizes derived from sizes.

The number of windows and of places in a window are quotients of quotients of the image's sizes. Inductor simplifies
every index that has them in it, for minutes. Here they are counted instead, when the graph runs, and so are symbols.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from jetvit.kernels.window_attention.reference import attend_in_windows, attend_to_windows
from jetvit.kernels.window_attention.windows import balanced_windows


def count_windows(
    grid_h: int, grid_w: int, window_h: int, window_w: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """The numbers of the windows of a grid, from 0, and those of the places in a window; each of a length of its own.

    There are at least two places, of which the second may be filled up: a tensor of length 1 is another case to torch.
    """
    (count_h, side_h), (count_w, side_w) = balanced_windows(grid_h, window_h), balanced_windows(grid_w, window_w)
    windows = _counted(count_h * count_w, device)
    places = _counted(torch.sym_max(side_h * side_w, 2), device)
    return windows, places


def window_attention_counted(
    windows: Tensor,
    places: Tensor,
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
    """Compute `jetvit::window_attention` with `windows` and `places` of `count_windows`, which layers share."""
    inside = partial(_counted_windows, windows, places)
    return attend_in_windows(inside, q, k, v, rope_y, rope_x, grid_h, grid_w, extra_before, window_h, window_w, scale)


def _counted(size: int, device: torch.device) -> Tensor:
    numbers = torch.nonzero(torch.ones(size, dtype=torch.bool, device=device))[:, 0]
    torch._check(numbers.shape[0] > 0)
    return numbers


def _counted_windows(
    windows: Tensor,
    places: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    extra_k: Tensor,
    extra_v: Tensor,
    window_h: int,
    window_w: int,
    scale: float,
) -> Tensor:
    """As `masked_windows`; sizes that are derived from others are used as values alone, never as a tensor's length."""
    torch._check(places.shape[0] > 1)
    grid_h, grid_w = q.shape[1:3]
    (_, high), (across, wide) = balanced_windows(grid_h, window_h), balanced_windows(grid_w, window_w)
    side_h, count_w, side_w = (torch.full((), size, device=q.device) for size in (high, across, wide))
    row, column = windows[:, None] // count_w, windows[:, None] % count_w
    inner = places // side_w
    y, x = row * side_h + inner, column * side_w + places % side_w
    token = y.clamp(max=grid_h - 1) * grid_w + x.clamp(max=grid_w - 1)
    real = (inner < side_h) & (y < grid_h) & (x < grid_w)
    mask = F.pad(real, (0, extra_k.shape[1]), value=True)[None]
    own_q, own_k, own_v = (part.flatten(1, 2)[:, token] for part in (q, k, v))
    out = attend_to_windows(own_q, own_k, own_v, extra_k, extra_v, mask, scale)
    y = torch.arange(grid_h, device=q.device)[:, None]
    x = torch.arange(grid_w, device=q.device)
    row, column = y // side_h, x // side_w
    place = (row * count_w + column) * places.shape[0] + (y - row * side_h) * side_w + x - column * side_w
    return out.flatten(1, 2)[:, place]
