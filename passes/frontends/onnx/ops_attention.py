"""Attention and rotary embeddings of opset 23, and the operators that ONNX Runtime's optimizer makes of them."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from jetvit.passes.frontends.onnx.call import Call, operator
from jetvit.passes.frontends.onnx.ops_math import linear
from jetvit.passes.frontends.onnx.values import MICROSOFT, Number, UnsupportedError


@operator("Attention")
def attention(call: Call) -> list[Tensor | None]:
    """softmax(scale · q·kᵀ + mask)·v on [batch, head, token, dim] or [batch, token, head · dim].

    Raises:
        UnsupportedError: padded keys by length (opset 24) or a sliding window (opset 25).
    """
    if call.has(6):
        raise UnsupportedError("nonpad_kv_seqlen")
    if max(call.attribute("left_window_size", -1), call.attribute("right_window_size", -1)) >= 0:
        raise UnsupportedError("a sliding window")
    q, k, v = (call.tensor(index) for index in range(3))
    flat = q.ndim == 3
    if flat:
        heads, kv_heads = call.attribute("q_num_heads"), call.attribute("kv_num_heads")
        if not heads or not kv_heads:
            raise UnsupportedError("q_num_heads and kv_num_heads are missing")
        q, k, v = split_heads(q, heads), split_heads(k, kv_heads), split_heads(v, kv_heads)
    past = 0
    if call.has(4):
        past_key, past_value = call.tensor(4), call.tensor(5)
        past = past_key.shape[2]
        k, v = torch.cat([past_key, k], dim=2), torch.cat([past_value, v], dim=2)
    mask, causal = call.optional(3), bool(call.attribute("is_causal", 0))
    scale, softcap = call.attribute("scale"), call.attribute("softcap", 0.0)
    wants = call.wants(3)
    if mask is not None:
        mask = _four(mask, q, k)
    if causal and (mask is not None or past != 0 or wants or softcap):
        triangle = _causal(q.shape[-2], k.shape[-2], past)
        mask = triangle if mask is None else _both(mask, triangle)
        causal = False
    if wants or softcap:
        out, scores = _by_hand(call, q, k, v, mask, scale, softcap)
    else:
        grouped = not _same(q.shape[1], k.shape[1])
        scores = None
        out = F.scaled_dot_product_attention(q, k, v, mask, 0.0, causal, scale=scale, enable_gqa=grouped)
    if flat:
        out = merge_heads(out)
    return [out, k if call.wants(1) else None, v if call.wants(2) else None, scores]


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[batch, token, head · dim] as [batch, head, token, dim]."""
    return x.reshape(x.shape[0], x.shape[1], heads, x.shape[2] // heads).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """[batch, head, token, dim] as [batch, token, head · dim]."""
    return x.transpose(1, 2).reshape(x.shape[0], x.shape[2], x.shape[1] * x.shape[3])


def _same(a: Number, b: Number) -> bool:
    return bool(a == b)


def _four(mask: Tensor, q: Tensor, k: Tensor) -> Tensor:
    """A mask that broadcasts to the scores; keys beyond its end are hidden."""
    missing = k.shape[-2] - mask.shape[-1]
    if isinstance(missing, int) and missing > 0 and mask.shape[-1] != 1:
        fill = False if mask.dtype is torch.bool else -math.inf
        mask = F.pad(mask, (0, missing), value=fill)
    return mask if mask.dtype in (torch.bool, q.dtype) else mask.to(q.dtype)


def _causal(queries: Number, keys: Number, past: Number) -> Tensor:
    rows, columns = torch.arange(queries).unsqueeze(1), torch.arange(keys)
    return columns <= (rows if past == 0 else rows + past)


def _both(mask: Tensor, allowed: Tensor) -> Tensor:
    if mask.dtype is torch.bool:
        return torch.logical_and(mask, allowed)
    return torch.where(allowed, mask, -math.inf)


def _by_hand(
    call: Call, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float | None, softcap: float
) -> tuple[Tensor, Tensor]:
    """The attention step by step, and the scores that the file asks for."""
    if not _same(q.shape[1], k.shape[1]):
        times = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(times, dim=1), v.repeat_interleave(times, dim=1)
    scores = torch.matmul(q, k.transpose(-2, -1)) * (q.shape[-1] ** -0.5 if scale is None else scale)
    capped = torch.tanh(scores / softcap) * softcap if softcap else scores
    masked = capped
    if mask is not None:
        masked = torch.where(mask, capped, -math.inf) if mask.dtype is torch.bool else capped + mask
    weights = torch.ops.aten._safe_softmax.default(masked, -1)  # rows that the mask hides whole give zeros
    mode = call.attribute("qk_matmul_output_mode", 0)
    return torch.matmul(weights, v), (scores, capped, masked, weights)[mode]


@operator("RotaryEmbedding")
def rotary_embedding(call: Call) -> Tensor:
    """x·cos + rotate(x)·sin on [batch, head, token, dim] or [batch, token, head · dim]."""
    x, cos, sin = call.tensor(0), call.tensor(1), call.tensor(2)
    flat = x.ndim == 3
    if flat:
        if not call.attribute("num_heads", 0):
            raise UnsupportedError("num_heads is missing")
        x = split_heads(x, call.attribute("num_heads"))
    if call.has(3):
        cos, sin = (F.embedding(call.tensor(3).long(), table) for table in (cos, sin))
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    size = call.attribute("rotary_embedding_dim", 0) or int(x.shape[-1])
    turned, rest = (x, None) if size == x.shape[-1] else (x[..., :size], x[..., size:])
    if call.attribute("interleaved", 0):
        cos, sin = (table.repeat_interleave(2, dim=-1) for table in (cos, sin))
        rotated = torch.stack([-turned[..., 1::2], turned[..., ::2]], dim=-1).reshape(turned.shape)
    else:
        cos, sin = (torch.cat([table, table], dim=-1) for table in (cos, sin))
        first, second = turned.chunk(2, dim=-1)
        rotated = torch.cat([-second, first], dim=-1)
    result = turned * cos + rotated * sin
    result = result if rest is None else torch.cat([result, rest], dim=-1)
    return merge_heads(result) if flat else result


# ONNX Runtime's operators -----------------------------------------------------------------------------------------


@operator("Attention", domain=MICROSOFT)
def packed_attention(call: Call) -> list[Tensor | None]:
    """The projection to q, k and v and the attention in one.

    Raises:
        UnsupportedError: masks, past keys, biases or rotary embeddings inside it.
    """
    if call.node not in call.weights.linears:
        raise UnsupportedError("weights that are no constants")
    for index, what in ((3, "a mask"), (4, "past keys"), (5, "a bias on the scores"), (6, "past lengths")):
        if call.has(index):
            raise UnsupportedError(what)
    if call.attribute("do_rotary", 0) or call.wants(1):
        raise UnsupportedError("a rotary embedding or present keys inside the attention")
    x, heads = call.tensor(0), call.attribute("num_heads")
    qkv = linear(call, x)
    sizes = call.attribute("qkv_hidden_sizes") or [qkv.shape[-1] // 3] * 3
    q, k, v = (split_heads(part, heads) for part in torch.split(qkv, sizes, -1))
    causal, scale = bool(call.attribute("unidirectional", 0)), call.attribute("scale") or None
    return [merge_heads(F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale)), None]


@operator("MultiHeadAttention", domain=MICROSOFT)
def multi_head_attention(call: Call) -> list[Tensor | None]:
    """Attention on [batch, token, head · dim], with a bias on q, k and v.

    Raises:
        UnsupportedError: packed inputs, a padding mask or past keys.
    """
    if not call.has(1) or not call.has(2) or call.has(4) or call.has(6) or call.wants(1):
        raise UnsupportedError("packed inputs, a padding mask, or past or present keys")
    sides, heads = [call.tensor(index) for index in range(3)], call.attribute("num_heads")
    if call.has(3):
        biases = torch.split(call.tensor(3), [int(side.shape[-1]) for side in sides], -1)
        sides = [side + bias for side, bias in zip(sides, biases, strict=True)]
    q, k, v = (side if side.ndim == 4 else split_heads(side, heads) for side in sides)
    causal, scale = bool(call.attribute("unidirectional", 0)), call.attribute("scale") or None
    out = F.scaled_dot_product_attention(q, k, v, call.optional(5), is_causal=causal, scale=scale)
    return [merge_heads(out)]


@operator("SkipLayerNormalization", domain=MICROSOFT)
def skip_layer_normalization(call: Call) -> list[Tensor | None]:
    """A residual sum and its layer normalisation."""
    x, skip, weight = call.tensor(0), call.tensor(1), call.tensor(2)
    total = x + skip
    if call.has(4):
        total = total + call.tensor(4)
    eps = call.attribute("epsilon", 1e-12)
    return [F.layer_norm(total, [int(total.shape[-1])], weight, call.optional(3), eps), None, None, total]


@operator("SkipSimplifiedLayerNormalization", domain=MICROSOFT)
def skip_rms_normalization(call: Call) -> list[Tensor | None]:
    """A residual sum and its RMS normalisation."""
    total = call.tensor(0) + call.tensor(1)
    if call.has(3):
        total = total + call.tensor(3)
    eps = call.attribute("epsilon", 1e-12)
    return [F.rms_norm(total, [int(total.shape[-1])], call.tensor(2), eps), None, None, total]


@operator("Gelu", "BiasGelu", domain=MICROSOFT)
def exact_gelu(call: Call) -> Tensor:
    """The exact GELU, of a sum where a bias is given."""
    return F.gelu(call.tensor(0) + call.tensor(1) if call.has(1) else call.tensor(0))


@operator("FastGelu", domain=MICROSOFT)
def fast_gelu(call: Call) -> Tensor:
    """GELU by tanh."""
    return F.gelu(call.tensor(0) + call.tensor(1) if call.has(1) else call.tensor(0), approximate="tanh")


@operator("QuickGelu", domain=MICROSOFT)
def quick_gelu(call: Call) -> Tensor:
    """x · sigmoid(α · x)"""
    x = call.tensor(0)
    return x * torch.sigmoid(x * call.attribute("alpha", 1.702))
