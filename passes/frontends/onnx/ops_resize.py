"""Resize and Upsample, as F.interpolate where that means the same, and refused by name where it does not."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from jetvit.passes.frontends.onnx.call import Call, operator
from jetvit.passes.frontends.onnx.values import Number, UnsupportedError, fixed, same_number, small_ratio
from jetvit.patterns.wording import counted

_LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}
_BY_SCALE: dict[str, Callable[..., Tensor]] = {
    "linear": torch.ops.aten.upsample_linear1d.default, "bilinear": torch.ops.aten.upsample_bilinear2d.default,
    "trilinear": torch.ops.aten.upsample_trilinear3d.default, "bicubic": torch.ops.aten.upsample_bicubic2d.default,
}  # fmt: skip
_BY_SCALE_ANTIALIASED: dict[str, Callable[..., Tensor]] = {
    "bilinear": torch.ops.aten._upsample_bilinear2d_aa.default,
    "bicubic": torch.ops.aten._upsample_bicubic2d_aa.default,
}
"""Functions that are told a size and also the scales, which place the samples."""


@operator("Resize", "Upsample")
def resize(call: Call) -> Tensor:
    """Another size for the spatial axes of [batch, channel, *spatial].

    Raises:
        UnsupportedError: a mode, a coordinate transform or a coefficient that F.interpolate has not.
    """
    x, mode = call.tensor(0), call.attribute("mode", "nearest")
    scales, sizes = _targets(call, x)
    spatial = list(range(x.ndim))
    for dim in (0, 1):
        if x.ndim > 2 and dim in spatial and not same_number(sizes[dim], x.shape[dim]):
            raise UnsupportedError("the batch or the channels are resized")
    target, factors = sizes[2:], scales[2:] if scales is not None else None
    if x.ndim not in (3, 4, 5):
        raise UnsupportedError(f"a tensor with {counted(x.ndim, 'axis', 'axes')}")
    if all(same_number(size, before) for size, before in zip(target, x.shape[2:], strict=True)) and factors is None:
        return x
    transform = call.attribute("coordinate_transformation_mode", "half_pixel")
    if call.node.op_type == "Upsample" or call.opset < 11:
        transform = "asymmetric"
    if call.attribute("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise UnsupportedError("keep_aspect_ratio_policy")
    if mode == "nearest":
        return _nearest(call, x, target, factors, transform)
    return _smooth(call, x, target, factors, str(mode), transform)


def _targets(call: Call, x: Tensor) -> tuple[list[float] | None, list[Number]]:
    """(scales, sizes) of all axes; scales only where the file gives them, for then they are not size over size."""
    if call.node.op_type == "Upsample":
        given = call.ints(1) if call.opset >= 9 else call.attribute("scales")
        return _scaled(x, _all(call, x, given, [1.0] * x.ndim))
    by_scale, by_size = (1, None) if call.opset < 11 else (2, 3)
    if by_size is not None and call.has(by_size):
        return None, _all(call, x, call.ints(by_size), list(x.shape))
    if not call.has(by_scale):
        raise UnsupportedError("neither scales nor sizes are given")
    return _scaled(x, _all(call, x, call.ints(by_scale), [1.0] * x.ndim))


def _all(call: Call, x: Tensor, given: list[Number], default: list[Number]) -> list[Number]:
    axes = call.attribute("axes") or list(range(len(given)))
    result = list(default)
    for axis, value in zip(axes, given, strict=True):
        result[axis % x.ndim] = value
    return result


def _scaled(x: Tensor, scales: list[Number]) -> tuple[list[float], list[Number]]:
    """Scales as numbers, and sizes rounded as ONNX Runtime has it: down, after a product in single precision.

    An open axis stays open where that product is exact for every size; else it is fixed, for no formula of whole
    numbers gives what rounding does.
    """
    factors = [fixed(scale) for scale in scales]
    sizes: list[Number] = []
    for size, scale in zip(x.shape, factors, strict=True):
        over, under = small_ratio(scale)
        if under:
            sizes.append(size * over // under)
        else:
            sizes.append(int(np.floor(np.float32(int(size)) * np.float32(scale))))
    return factors, sizes


def _smooth(
    call: Call, x: Tensor, target: list[Number], factors: list[float] | None, mode: str, transform: str
) -> Tensor:
    rank, antialias = x.ndim - 2, bool(call.attribute("antialias", 0))
    outside = bool(call.attribute("exclude_outside", 0))
    align = transform == "align_corners"
    if transform == "pytorch_half_pixel" and all(isinstance(size, int) and size > 1 for size in target):
        transform = "half_pixel"
    if transform not in ("half_pixel", "align_corners"):
        raise UnsupportedError(f"coordinate_transformation_mode {transform!r} with mode {mode!r}")
    coefficient = call.attribute("cubic_coeff_a", -0.75)
    if mode == "cubic":
        wanted = (-0.5, True) if antialias else (-0.75, False)
        if rank != 2 or abs(coefficient - wanted[0]) > 1e-6 or outside != wanted[1]:
            raise UnsupportedError(
                f"mode 'cubic' over {counted(rank, 'axis', 'axes')} with cubic_coeff_a {coefficient}, "
                f"exclude_outside {int(outside)}"
            )
        name = "bicubic"
    elif mode == "linear" and rank in _LINEAR and outside == antialias:
        name = _LINEAR[rank]
    else:
        raise UnsupportedError(
            f"mode {mode!r} over {counted(rank, 'axis', 'axes')} with exclude_outside {int(outside)}"
        )
    if antialias and (rank != 2 or align):
        raise UnsupportedError("antialias over other than two axes, or with align_corners")
    if factors is not None and not align:
        if _rounds_alike(x, target, factors):
            return F.interpolate(x, scale_factor=factors, mode=name, align_corners=False, antialias=antialias)
        table = _BY_SCALE_ANTIALIASED if antialias else _BY_SCALE
        return table[name](x, target, False, *factors)
    return F.interpolate(x, size=target, mode=name, align_corners=align, antialias=antialias)


def _rounds_alike(x: Tensor, target: list[Number], factors: list[float]) -> bool:
    """True if PyTorch, which rounds a size in double precision, gets the same ones."""
    triples = zip(x.shape[2:], target, factors, strict=True)
    return all(small_ratio(factor)[1] or int(int(before) * factor) == after for before, after, factor in triples)


def _nearest(call: Call, x: Tensor, target: list[Number], factors: list[float] | None, transform: str) -> Tensor:
    """F.interpolate where the same entries are picked, else each axis by its own indices."""
    rounding = call.attribute("nearest_mode", "round_prefer_floor")
    if call.opset < 11:
        rounding = "floor"
    whole = factors is not None and all(factor.is_integer() for factor in factors)
    known = all(
        isinstance(a, int) and isinstance(b, int) and a % b == 0 for a, b in zip(target, x.shape[2:], strict=True)
    )
    if transform == "asymmetric" and rounding == "floor" and (factors is None or whole):
        return F.interpolate(x, size=target, mode="nearest")
    if transform == "half_pixel" and rounding == "round_prefer_ceil" and (factors is None or whole):
        return F.interpolate(x, size=target, mode="nearest-exact")
    if transform in ("half_pixel", "pytorch_half_pixel") and rounding in ("round_prefer_floor",) and (whole or known):
        return F.interpolate(x, size=target, mode="nearest-exact")  # no tie where it grows
    for index, size in enumerate(target):
        scale = factors[index] if factors is not None else None
        # Before opset 11 there was no nearest_mode; ONNX Runtime then rounds up along an axis that shrinks.
        chosen = "ceil" if call.opset < 11 and scale is not None and scale < 1 else rounding
        x = x.index_select(index + 2, _picked(x.shape[index + 2], size, scale, transform, chosen))
    return x


def _picked(before: Number, after: Number, scale: Number | None, transform: str, rounding: str) -> Tensor:
    """The entries of an axis that a resize picks."""
    places = torch.arange(after, dtype=torch.float32)
    ratio = torch.sym_float(after) / before if scale is None else scale
    if transform in ("half_pixel", "pytorch_half_pixel"):
        places = (places + 0.5) / ratio - 0.5
    elif transform == "asymmetric":
        places = places / ratio
    elif transform == "align_corners":
        places = places * (torch.sym_float(before - 1) / torch.sym_max(after - 1, 1))
    else:
        raise UnsupportedError(f"coordinate_transformation_mode {transform!r} with mode 'nearest'")
    round_ = {
        "floor": torch.floor,
        "ceil": torch.ceil,
        "round_prefer_floor": lambda x: torch.ceil(x - 0.5),
        "round_prefer_ceil": lambda x: torch.floor(x + 0.5),
    }[rounding]
    return round_(places).clamp(0, before - 1).long()
