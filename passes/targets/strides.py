"""Read and set the order in which the axes of a tensor stand in memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def order_of(tensor: Tensor) -> tuple[int, ...] | None:
    """The axes of a tensor by their strides, largest first; None for a contiguous one."""
    strides: tuple[int, ...] = tensor.stride()
    order = tuple(sorted(range(tensor.dim()), key=lambda axis: -strides[axis]))
    return None if tensor.is_contiguous() or order == tuple(range(tensor.dim())) else order


def dense(tensor: Tensor, order: Sequence[int] | None = None) -> Tensor:
    """The tensor with no gaps between its values, and with its axes in an order; its own storage where it fits.

    An axis of length 1 gets the stride of a new tensor too: it may have any.
    """
    order = range(tensor.dim()) if order is None else order
    moved = tensor.permute(tuple(order)).contiguous()
    strides = torch.empty(moved.shape, device="meta").stride()
    back = sorted(range(tensor.dim()), key=lambda place: order[place])
    return moved.as_strided(moved.shape, strides, moved.storage_offset()).permute(back)
