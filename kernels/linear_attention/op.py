"""The operator `jetvit::linear_attention`."""

from __future__ import annotations

from torch import Tensor

from jetvit.kernels.checks import check_device, check_dtype, check_rope, check_shape, check_tokens, is_absent, refuse
from jetvit.kernels.launch import has_kernel
from jetvit.kernels.linear_attention.reference import FEATURE_MAPS, linear_attention_reference
from jetvit.kernels.registration import operator

CONV_SIZES = (0, 1, 3, 5, 7)


def _check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rope_y: Tensor,
    rope_x: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    grid_h: int,
    grid_w: int,
    extra_before: int,
    conv_size: int,
    eps: float,
    feature_map: str,
) -> None:
    op = "jetvit::linear_attention"
    check_tokens(op, q, k, v, grid_h, grid_w, extra_before)
    check_rope(op, q, rope_y, rope_x, grid_h, grid_w)
    known = sorted(FEATURE_MAPS)
    refuse(feature_map not in known, f"{op}: feature_map must be one of {known}, got {feature_map!r}")
    refuse(conv_size not in CONV_SIZES, f"{op}: conv_size must be one of {CONV_SIZES}, got {conv_size}")
    refuse(eps <= 0, f"{op}: eps must be positive, got {eps}")
    absent = [is_absent(x) for x in (w1, b1, w2, b2)]
    if conv_size == 0:
        refuse(not all(absent), f"{op}: conv_size is 0, but w1, b1, w2 or b2 is given")
        return
    refuse(
        absent not in ([False] * 4, [True, True, True, False]),
        f"{op}: conv_size {conv_size} needs w1, b1, w2 and b2, or b2 alone, where [0] means absent; got shapes "
        + ", ".join(str(list(x.shape)) for x in (w1, b1, w2, b2)),
    )
    channels = q.shape[2] * q.shape[3]
    weights: dict[str, tuple[Tensor, tuple[int, ...]]] = {"b2": (b2, (channels * conv_size**2,))}
    if not is_absent(w1):
        hidden = b1.numel()
        weights["b1"] = (b1, (hidden,))
        weights["w1"] = (w1, (hidden, channels))
        weights["w2"] = (w2, (channels * conv_size**2, hidden))
    for name, (weight, shape) in weights.items():
        check_dtype(op, name, weight)
        check_device(op, name, weight, q)
        check_shape(op, name, weight, shape)


@operator("jetvit::linear_attention", check=_check, reference=linear_attention_reference)
def linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rope_y: Tensor,
    rope_x: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    grid_h: int,
    grid_w: int,
    extra_before: int,
    conv_size: int,
    eps: float,
    feature_map: str,
) -> Tensor:
    """Linear attention over a token grid, plus a depthwise convolution of v whose kernel is made from the image.

    num = f(q)·(f(k)ᵀ v), den = f(q)·Σ f(k), both over all tokens; out = num / (den + eps), and on grid tokens
    + DWConv(v), with kernel = W2·SiLU(W1·mean(v) + b1) + b2. f is the feature map, after RoPE. No softmax scale.

    q, k, v: [batch, token, head, dim] in one of fp16, bf16, fp32, fp64, any strides with stride(-1) == 1. The tokens
        are `extra_before` extra tokens, grid_h × grid_w grid tokens row by row, then extra tokens again. Extra tokens
        are in the sums, are not rotated, and get no convolution.
    rope_y, rope_x: [grid_h, 2, dim / 4] and [grid_w, 2, dim / 4], fp32; see `jetvit.kernels.rope`.
    w1, b1: [hidden, head·dim], [hidden]. They read the mean of v over the grid tokens, heads major.
    w2, b2: [head·dim·K·K, hidden], [head·dim·K·K], K = conv_size. Row ((head·D + dim)·K + y)·K + x yields the tap of
        that channel at offset (y − K // 2, x − K // 2): cross-correlation, zeros around the grid.
        w1, b1 and w2 absent, b2 present: b2 is the kernel of every image. All four absent: conv_size is 0.
        Any of the four dtypes.
    conv_size: 0 (no convolution), 1, 3, 5 or 7. eps: positive, added to den, 1e-6 by custom.
    feature_map: "relu" alone has Triton kernels; on a GPU the others run the reference.
        "relu": ReLU of q and of k.
        "relu_centred": ReLU of q, and of k minus its mean over all tokens, for each image, head and channel. A constant
            added to all keys (after RoPE) changes nothing, as in softmax attention; with "relu" it would.
        "hedgehog": softmax(x), then softmax(−x), over the channels of a head, for q and for k: 2·dim features. In
            arXiv 2402.04347 a learned linear map, the identity at first, stands in front. Here the projections of q
            and k, which are trained, are that map, so that the operator needs no weights of its own.

    An absent tensor has shape [0]. Returns contiguous [batch, token, head, dim] in q's dtype; sums are fp32, or fp64
    for fp64. A token whose den is 0 gets 0, never NaN. Raises ValueError for anything else. Gradients: autograd
    through the reference. Source: arXiv 2605.26636, the squeeze dynamic convolution of the JetViT block; K, the width
    of the MLP, eps and the place of the extra tokens are our choice.
    """
    _check(q, k, v, rope_y, rope_x, w1, b1, w2, b2, grid_h, grid_w, extra_before, conv_size, eps, feature_map)
    implementation = linear_attention_reference
    if has_kernel(q) and feature_map == "relu":
        from jetvit.kernels.linear_attention.triton_launch import linear_attention_triton as implementation
    return implementation(
        q, k, v, rope_y, rope_x, w1, b1, w2, b2, grid_h, grid_w, extra_before, conv_size, eps, feature_map
    )
