"""The operator `jetvit::full_attention`."""

from __future__ import annotations

from torch import Tensor

from jetvit.kernels.checks import check_rope, check_tokens
from jetvit.kernels.full_attention.reference import full_attention_reference
from jetvit.kernels.launch import has_kernel
from jetvit.kernels.registration import operator


def _check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rope_y: Tensor,
    rope_x: Tensor,
    grid_h: int,
    grid_w: int,
    extra_before: int,
    scale: float,
) -> None:
    op = "jetvit::full_attention"
    check_tokens(op, q, k, v, grid_h, grid_w, extra_before)
    check_rope(op, q, rope_y, rope_x, grid_h, grid_w)


@operator("jetvit::full_attention", check=_check, reference=full_attention_reference)
def full_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rope_y: Tensor,
    rope_x: Tensor,
    grid_h: int,
    grid_w: int,
    extra_before: int,
    scale: float,
) -> Tensor:
    """Softmax attention of all tokens to all tokens, with the rotary embedding of the grid tokens inside.

    q, k, v: [batch, token, head, dim] in one of fp16, bf16, fp32, fp64, any strides with stride(-1) == 1. The tokens
        are `extra_before` extra tokens, grid_h × grid_w grid tokens row by row, then extra tokens again.
    rope_y, rope_x: [grid_h, 2, dim / 4] and [grid_w, 2, dim / 4], fp32, applied to the grid tokens of q and k; see
        `jetvit.kernels.rope`. Both [0] where there is no RoPE to apply; the grid then plays no part.
    scale: multiplies q·kᵀ.

    Returns contiguous [batch, token, head, dim] in q's dtype; softmax and sums are fp32, or fp64 for fp64. Raises
    ValueError for anything else. Gradients: autograd through the reference. Not approximate: it is what the model does.
    """
    _check(q, k, v, rope_y, rope_x, grid_h, grid_w, extra_before, scale)
    implementation = full_attention_reference
    if has_kernel(q):
        from jetvit.kernels.full_attention.triton_launch import full_attention_triton as implementation
    return implementation(q, k, v, rope_y, rope_x, grid_h, grid_w, extra_before, scale)
