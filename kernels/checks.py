"""Check the arguments of the operators."""

from __future__ import annotations

import torch
from torch import SymBool, Tensor

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def refuse(wrong: bool | SymBool, message: str) -> None:
    """Raise ValueError if `wrong` holds.

    A symbolic `wrong` is let through: asking for its value would put a guard on the graph that is being traced. The
    sizes behind it are checked when the operator runs.
    """
    if isinstance(wrong, bool) and wrong:
        raise ValueError(message)


def is_absent(tensor: Tensor) -> bool:
    """True for the [0] that stands for an argument that is not given."""
    return tensor.dim() == 1 and tensor.shape[0] == 0


def check_dtype(op: str, name: str, tensor: Tensor) -> None:
    """Refuse a tensor that is not fp16, bf16, fp32 or fp64."""
    refuse(tensor.dtype not in DTYPES, f"{op}: {name} must be fp16, bf16, fp32 or fp64, got {tensor.dtype}")


def check_device(op: str, name: str, tensor: Tensor, q: Tensor) -> None:
    """Refuse a tensor that is on another device than q: a kernel would read its address as one of its own device."""
    refuse(tensor.device != q.device, f"{op}: {name} is on {tensor.device} but q is on {q.device}")


def check_shape(op: str, name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    """Refuse a tensor that has another shape."""
    message = f"{op}: {name} must be {list(shape)}, got {list(tensor.shape)}"
    refuse(tensor.dim() != len(shape), message)
    for got, expected in zip(tensor.shape, shape, strict=True):
        refuse(got != expected, message)


def check_tokens(op: str, q: Tensor, k: Tensor, v: Tensor, grid_h: int, grid_w: int, extra_before: int) -> None:
    """Refuse q, k, v that are not three [batch, token, head, dim] of one shape and dtype, or do not hold the grid."""
    for name, x in (("q", q), ("k", k), ("v", v)):
        refuse(x.dim() != 4, f"{op}: {name} must be [batch, token, head, dim], got {list(x.shape)}")
        check_dtype(op, name, x)
        check_device(op, name, x, q)
        refuse(x.dtype != q.dtype, f"{op}: {name} is {x.dtype} but q is {q.dtype}")
        check_shape(op, name, x, tuple(q.shape))
        refuse(x.stride(3) != 1, f"{op}: {name} must have stride 1 along dim, got strides {x.stride()}")
    refuse(grid_h < 1, f"{op}: grid_h must be at least 1, got {grid_h}")
    refuse(grid_w < 1, f"{op}: grid_w must be at least 1, got {grid_w}")
    refuse(extra_before < 0, f"{op}: extra_before must not be negative, got {extra_before}")
    refuse(
        extra_before + grid_h * grid_w > q.shape[1],
        f"{op}: {extra_before} extra tokens and a {grid_h}×{grid_w} grid do not fit in {q.shape[1]} tokens; "
        f"q is [batch, token, head, dim], got {list(q.shape)}",
    )


def check_rope(op: str, q: Tensor, rope_y: Tensor, rope_x: Tensor, grid_h: int, grid_w: int) -> None:
    """Refuse RoPE tables that are not [grid, 2, head_dim / 4] in fp32 or fp64, or of which only one is there."""
    for name, table in (("rope_y", rope_y), ("rope_x", rope_x)):
        refuse(
            table.dim() not in (1, 3),
            f"{op}: {name} must be [grid, 2, dim / 4], or [0] for no RoPE, got {list(table.shape)}",
        )
    refuse(is_absent(rope_y) != is_absent(rope_x), f"{op}: rope_y and rope_x must both be given or both be absent")
    if is_absent(rope_y):
        return
    head_dim = q.shape[3]
    refuse(head_dim % 4 != 0, f"{op}: axial RoPE needs a head_dim that is a multiple of 4, got {head_dim}")
    for name, table, size in (("rope_y", rope_y, grid_h), ("rope_x", rope_x, grid_w)):
        refuse(table.dtype not in (torch.float32, torch.float64), f"{op}: {name} must be fp32, got {table.dtype}")
        check_device(op, name, table, q)
        check_shape(op, name, table, (size, 2, head_dim // 4))
