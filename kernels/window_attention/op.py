"""The operator `jetvit::window_attention`."""

from __future__ import annotations

from torch import Tensor

from jetvit.kernels.checks import check_rope, check_tokens, refuse
from jetvit.kernels.launch import has_kernel
from jetvit.kernels.registration import operator
from jetvit.kernels.window_attention.reference import window_attention_reference


def _check(
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
) -> None:
    op = "jetvit::window_attention"
    check_tokens(op, q, k, v, grid_h, grid_w, extra_before)
    check_rope(op, q, rope_y, rope_x, grid_h, grid_w)
    refuse(window_h < 1, f"{op}: window_h must be at least 1, got {window_h}")
    refuse(window_w < 1, f"{op}: window_w must be at least 1, got {window_w}")


@operator("jetvit::window_attention", check=_check, reference=window_attention_reference)
def window_attention(
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
    """Softmax attention inside the windows of a token grid; extra tokens are global.

    A grid token attends to the grid tokens of its own window and to all extra tokens, an extra token to all tokens.
    Windows are those of `balanced_windows`: at most window_h × window_w, never padded, no wrap at the borders. A
    window that covers the grid is full attention.

    q, k, v: [batch, token, head, dim] in one of fp16, bf16, fp32, fp64, any strides with stride(-1) == 1. The tokens
        are `extra_before` extra tokens, grid_h × grid_w grid tokens row by row, then extra tokens again.
    rope_y, rope_x: [grid_h, 2, dim / 4] and [grid_w, 2, dim / 4], fp32, applied to the grid tokens of q and k; see
        `jetvit.kernels.rope`. Both [0] where there is no RoPE to apply.
    scale: multiplies q·kᵀ.

    Returns contiguous [batch, token, head, dim] in q's dtype; softmax and sums are fp32, or fp64 for fp64. Raises
    ValueError for anything else. Gradients: autograd through the reference. Source: arXiv 2605.26636, window
    attention; balanced windows and the place of the extra tokens are our choice.
    """
    _check(q, k, v, rope_y, rope_x, grid_h, grid_w, extra_before, window_h, window_w, scale)
    implementation = window_attention_reference
    if has_kernel(q):
        from jetvit.kernels.window_attention.triton_launch import window_attention_triton as implementation
    return implementation(q, k, v, rope_y, rope_x, grid_h, grid_w, extra_before, window_h, window_w, scale)
