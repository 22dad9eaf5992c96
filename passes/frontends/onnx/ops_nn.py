"""Convolutions, pools and normalisations."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from jetvit.passes.frontends.onnx.call import Call, operator
from jetvit.passes.frontends.onnx.values import Number, UnsupportedError, same_number
from jetvit.patterns.wording import counted

_CONV: dict[int, Any] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_CONV_TRANSPOSE: dict[int, Any] = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
_MAX_POOL: dict[int, Any] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_AVG_POOL: dict[int, Any] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


def _window(call: Call, x: Tensor, kernel: list[int]) -> tuple[list[int], list[int], list[Number], list[Number]]:
    """Strides, dilations, and the padding before and after each spatial axis."""
    rank = len(kernel)
    strides = call.attribute("strides", [1] * rank)
    dilations = call.attribute("dilations", [1] * rank)
    auto = call.attribute("auto_pad", "NOTSET")
    if auto == "NOTSET":
        pads = call.attribute("pads", [0] * 2 * rank)
        return strides, dilations, pads[:rank], pads[rank:]
    before: list[Number] = [0] * rank
    after: list[Number] = [0] * rank
    for dim, size in enumerate(x.shape[2:] if auto in ("SAME_UPPER", "SAME_LOWER") else []):
        steps = (size + strides[dim] - 1) // strides[dim]
        total = torch.sym_max((steps - 1) * strides[dim] + dilations[dim] * (kernel[dim] - 1) + 1 - size, 0)
        small, large = total // 2, total - total // 2
        before[dim], after[dim] = (small, large) if auto == "SAME_UPPER" else (large, small)
    return strides, dilations, before, after


def _is_even(before: list[Number], after: list[Number]) -> bool:
    return all(isinstance(a, int) and isinstance(b, int) and a == b for a, b in zip(before, after, strict=True))


def _padded(x: Tensor, before: list[Number], after: list[Number], value: float = 0.0) -> Tensor:
    flat: list[Number] = []
    for first, last in zip(reversed(before), reversed(after), strict=True):
        flat += [first, last]
    return x if all(same_number(amount, 0) for amount in flat) else F.pad(x, flat, value=value)


@operator("Conv")
def conv(call: Call) -> Tensor:
    """A convolution over one to three axes."""
    x, weight, bias = call.tensor(0), call.tensor(1), call.optional(2)
    rank = weight.ndim - 2
    if rank not in _CONV:
        raise UnsupportedError(f"a convolution over {counted(rank, 'axis', 'axes')}")
    strides, dilations, before, after = _window(call, x, list(weight.shape[2:]))
    padding: list[Number] = before
    if not _is_even(before, after):
        x, padding = _padded(x, before, after), [0] * rank
    return _CONV[rank](x, weight, bias, strides, padding, dilations, call.attribute("group", 1))


@operator("ConvTranspose")
def conv_transpose(call: Call) -> Tensor:
    """A transposed convolution; uneven pads are cut off its result."""
    x, weight, bias = call.tensor(0), call.tensor(1), call.optional(2)
    rank = weight.ndim - 2
    if rank not in _CONV or call.attribute("output_shape") or call.attribute("auto_pad", "NOTSET") != "NOTSET":
        raise UnsupportedError(
            f"a transposed convolution over {counted(rank, 'axis', 'axes')}, with auto_pad or an output shape"
        )
    strides, dilations, before, after = _window(call, x, list(weight.shape[2:]))
    extra, even = call.attribute("output_padding", [0] * rank), _is_even(before, after)
    padding = before if even else [0] * rank
    group = call.attribute("group", 1)
    result = _CONV_TRANSPOSE[rank](x, weight, bias, strides, padding, extra, group, dilations)
    return result if even else _padded(result, [-amount for amount in before], [-amount for amount in after])


@operator("MaxPool", "AveragePool")
def pool(call: Call) -> Tensor:
    """The largest entry, or the mean, of each window."""
    x, kernel = call.tensor(0), call.attribute("kernel_shape")
    rank, is_max = len(kernel), call.node.op_type == "MaxPool"
    if rank not in _MAX_POOL or call.wants(1):
        raise UnsupportedError(
            "the indices of a pool" if call.wants(1) else f"a pool over {counted(rank, 'axis', 'axes')}"
        )
    strides, dilations, before, after = _window(call, x, kernel)
    if call.attribute("auto_pad", "NOTSET").startswith("SAME"):
        spans = [dilation * (size - 1) + 1 for dilation, size in zip(dilations, kernel, strict=True)]
        if any(stride > span for stride, span in zip(strides, spans, strict=True)):
            raise UnsupportedError("a pool with auto_pad whose strides are larger than its windows: runtimes differ")
    ceil = bool(call.attribute("ceil_mode", 0))
    counts_pads = bool(call.attribute("count_include_pad", 0))
    fits = _is_even(before, after) and all(2 * pad <= size for pad, size in zip(before, kernel, strict=True))
    padding: list[Number] = before
    if not fits:
        if not is_max and (not counts_pads or ceil):
            raise UnsupportedError("a mean over windows that are padded unevenly")
        floating = x.is_floating_point()
        fill = 0.0 if not is_max else -math.inf if floating else torch.iinfo(x.dtype).min
        x, padding = _padded(x, before, after, fill), [0] * rank
    if is_max:
        return _MAX_POOL[rank](x, kernel, strides, padding, dilations, ceil)
    if any(step != 1 for step in dilations):
        raise UnsupportedError("a mean over dilated windows")
    return _AVG_POOL[rank](x, kernel, strides, padding, ceil, counts_pads)


@operator("GlobalAveragePool", "GlobalMaxPool")
def global_pool(call: Call) -> Tensor:
    """Over all spatial axes, which keep size 1."""
    x = call.tensor(0)
    dims = list(range(2, x.ndim))
    return x.amax(dims, True) if call.node.op_type == "GlobalMaxPool" else x.mean(dims, True)


# Normalisations ---------------------------------------------------------------------------------------------------


@operator("LayerNormalization")
def layer_normalization(call: Call) -> list[Tensor | None]:
    """Over the axes from one on, with a scale and a bias."""
    x, weight, bias = call.tensor(0), call.tensor(1), call.optional(2)
    eps, dim = call.attribute("epsilon", 1e-5), call.attribute("axis", -1) % x.ndim
    sizes = list(x.shape[dim:])
    if call.wants(1) or call.wants(2):
        raise UnsupportedError("the mean or deviation of a layer normalisation as an output")
    plain = all(isinstance(size, int) for size in sizes) and list(weight.shape) == sizes
    plain = plain and (bias is None or list(bias.shape) == sizes)
    if plain and weight.dtype == x.dtype:
        return [F.layer_norm(x, sizes, weight, bias, eps), None, None]
    dims = list(range(dim, x.ndim))
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) and call.attribute("stash_type", 1) == 1 else x
    centred = wide - wide.mean(dims, keepdim=True)
    normal = centred * torch.rsqrt((centred * centred).mean(dims, keepdim=True) + eps)
    result = normal.to(x.dtype) * weight
    return [result if bias is None else result + bias, None, None]


@operator("RMSNormalization", "SimplifiedLayerNormalization")
def rms_normalization(call: Call) -> Tensor:
    """Divided by the root of the mean square over the axes from one on."""
    x, weight = call.tensor(0), call.tensor(1)
    eps, dim = call.attribute("epsilon", 1e-5), call.attribute("axis", -1) % x.ndim
    sizes = list(x.shape[dim:])
    if all(isinstance(size, int) for size in sizes) and list(weight.shape) == sizes and weight.dtype == x.dtype:
        return F.rms_norm(x, sizes, weight, eps)
    wide = x.float() if call.attribute("stash_type", 1) == 1 else x
    mean = (wide * wide).mean(list(range(dim, x.ndim)), keepdim=True)
    return (wide * torch.rsqrt(mean + eps)).to(x.dtype) * weight


@operator("GroupNormalization")
def group_normalization(call: Call) -> Tensor:
    """Over groups of channels; before version 21 scale and bias are those of a group."""
    x, weight, bias = call.tensor(0), call.tensor(1), call.tensor(2)
    groups = call.attribute("num_groups")
    if call.opset < 21:
        each = x.shape[1] // groups
        weight, bias = weight.repeat_interleave(each), bias.repeat_interleave(each)
    return F.group_norm(x, groups, weight, bias, call.attribute("epsilon", 1e-5))


@operator("InstanceNormalization")
def instance_normalization(call: Call) -> Tensor:
    """Over the spatial axes of each channel."""
    return F.instance_norm(
        call.tensor(0), weight=call.tensor(1), bias=call.tensor(2), eps=call.attribute("epsilon", 1e-5)
    )


@operator("BatchNormalization")
def batch_normalization(call: Call) -> Tensor:
    """By fixed means and variances."""
    if call.attribute("training_mode", 0) or call.wants(1):
        raise UnsupportedError("batch normalisation in training mode")
    x, weight, bias, mean, variance = (call.tensor(index) for index in range(5))
    return F.batch_norm(x, mean, variance, weight, bias, False, 0.0, call.attribute("epsilon", 1e-5))


@operator("LpNormalization")
def lp_normalization(call: Call) -> Tensor:
    """Divided by the norm along an axis."""
    x, dim, order = call.tensor(0), call.attribute("axis", -1), call.attribute("p", 2)
    norm = x.abs().sum(dim, keepdim=True) if order == 1 else (x * x).sum(dim, keepdim=True).sqrt()
    return x / norm


@operator("GridSample")
def grid_sample(call: Call) -> Tensor:
    """Entries of a map at places between its own."""
    modes = {
        "linear": "bilinear",
        "bilinear": "bilinear",
        "nearest": "nearest",
        "cubic": "bicubic",
        "bicubic": "bicubic",
    }
    mode, padding = call.attribute("mode", "linear"), call.attribute("padding_mode", "zeros")
    x, grid = call.tensor(0), call.tensor(1)
    if x.ndim != 4 and mode in ("cubic", "bicubic"):
        raise UnsupportedError("a cubic grid sample over three axes")
    return F.grid_sample(x, grid, modes.get(mode, mode), padding, bool(call.attribute("align_corners", 0)))
