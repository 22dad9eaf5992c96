"""Bounds of values that no input and no weight has a part in: enough to prove that a mask hides nothing.

Libraries build masks from `arange`, comparisons and `where` even where nothing is masked (transformers' bidirectional
mask is `arange(n) >= 0`). The bounds hold for every size, so a symbolic graph is no obstacle.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.fx import Node

from jetvit.patterns.aten_sets import CASTS, COPIES, SQUEEZES, VIEWS
from jetvit.patterns.calls import argument

aten = torch.ops.aten
Range = tuple[float, float]
_ANY: Range = (-math.inf, math.inf)
_SAME = (
    (VIEWS - {aten.unflatten.int})  # masks are not seen to be unflattened, nor squeezed along several axes
    | (SQUEEZES - {aten.squeeze.dims})
    | COPIES
    | {aten.permute.default, aten.transpose.int, aten.slice.Tensor, aten.select.int}
    | {aten.expand_as.default, aten.repeat.default, aten.lift_fresh_copy.default}
)
"""Return no other values than those of their first argument."""
_CASTS = CASTS | {aten.to.device}
_FILLED = {
    aten.zeros.default: 0.0, aten.zeros_like.default: 0.0, aten.new_zeros.default: 0.0,
    aten.ones.default: 1.0, aten.ones_like.default: 1.0, aten.new_ones.default: 1.0,
}  # fmt: skip
_FULL = {aten.full.default: 1, aten.full_like.default: 1, aten.new_full.default: 2, aten.scalar_tensor.default: 0}
_COMPARISONS = {
    aten.ge.Scalar: "ge", aten.ge.Tensor: "ge", aten.gt.Scalar: "gt", aten.gt.Tensor: "gt",
    aten.le.Scalar: "le", aten.le.Tensor: "le", aten.lt.Scalar: "lt", aten.lt.Tensor: "lt",
}  # fmt: skip
_AND = {aten.logical_and.default, aten.bitwise_and.Tensor, aten.__and__.Tensor}
_OR = {aten.logical_or.default, aten.bitwise_or.Tensor, aten.__or__.Tensor}
_NOT = {aten.logical_not.default, aten.bitwise_not.default}
_WHERE = {aten.where.self, aten.where.ScalarOther, aten.where.ScalarSelf, aten.where.Scalar}


def is_always(node: Node, value: float) -> bool:
    """True if every entry of a tensor is provably this number (1 for True, 0 for False)."""
    return value_range(node) == (value, value)


def value_range(node: Any) -> Range:
    """Bounds (lowest, highest) of a number's or tensor's entries; infinite where nothing is known."""
    if isinstance(node, bool | int | float):
        return (float(node), float(node))
    if not isinstance(node, Node) or node.op != "call_function":
        return _ANY
    target = node.target
    if target in _SAME:
        return value_range(node.args[0])
    if target in _CASTS:
        return _stored(node, value_range(node.args[0]), _is_float(node.args[0]))
    if target in _FILLED:
        return (_FILLED[target], _FILLED[target])
    if target in _FULL:
        return _stored(node, value_range(node.args[_FULL[target]]))
    if target is aten.arange.default:
        return (0.0, math.inf)
    if target in (aten.arange.start, aten.arange.start_step):
        rising = (argument(node, 2, "step", 1) if target is aten.arange.start_step else 1) > 0
        return (value_range(node.args[0])[0], math.inf) if rising else _ANY
    if target in (aten.add.Tensor, aten.add.Scalar) and not node.kwargs and len(node.args) == 2:
        (a, b), (c, d) = value_range(node.args[0]), value_range(node.args[1])
        return _stored(node, (a + c, b + d))
    return _truth(node)


def _truth(node: Node) -> Range:
    """Bounds of comparisons and of what is made of them."""
    target = node.target
    if target in _COMPARISONS:
        (a, b), (c, d) = value_range(node.args[0]), _as_dtype_of(node.args[0], node.args[1])
        always = {"ge": a >= d, "gt": a > d, "le": b <= c, "lt": b < c}[_COMPARISONS[target]]
        never = {"ge": b < c, "gt": b <= c, "le": a > d, "lt": a >= d}[_COMPARISONS[target]]
        return (1.0, 1.0) if always else (0.0, 0.0) if never else (0.0, 1.0)
    if (target in _AND or target in _OR) and _is_boolean(node):
        both = [value_range(each) for each in node.args[:2]]
        absorbing = 0.0 if target in _AND else 1.0
        if (absorbing, absorbing) in both:
            return (absorbing, absorbing)
        return (1 - absorbing, 1 - absorbing) if both == [(1 - absorbing, 1 - absorbing)] * 2 else (0.0, 1.0)
    if target in _NOT and _is_boolean(node):
        low, high = value_range(node.args[0])
        return (1 - high, 1 - low)
    if target in _WHERE:
        condition = value_range(node.args[0])
        if condition in ((1.0, 1.0), (0.0, 0.0)):
            return value_range(node.args[1] if condition == (1.0, 1.0) else node.args[2])
        (a, b), (c, d) = value_range(node.args[1]), value_range(node.args[2])
        return (min(a, c), max(b, d))
    return _ANY


def _as_dtype_of(tensor: Any, other: Any) -> Range:
    """The bounds of what a tensor is compared with: an int that its dtype cannot hold wraps around."""
    bounds, value = value_range(other), tensor.meta.get("val") if isinstance(tensor, Node) else None
    if not isinstance(other, int) or isinstance(other, bool) or not isinstance(value, torch.Tensor):
        return bounds
    if value.dtype.is_floating_point or value.dtype is torch.bool:
        return bounds
    limits = torch.iinfo(value.dtype)
    return bounds if limits.min <= other <= limits.max else _ANY


def _stored(node: Node, before: Range, was_float: bool = False) -> Range:
    """The bounds as a node's dtype holds them: bool keeps 0 or 1, integers round and may wrap around.

    Of an infinity, which a float may be, integers make some number.
    """
    low, high = before
    if not low <= high:  # inf − inf
        return _ANY
    if _is_boolean(node):
        return (0.0, 0.0) if before == (0.0, 0.0) else (1.0, 1.0) if low > 0 or high < 0 else (0.0, 1.0)
    value = node.meta.get("val")
    if isinstance(value, torch.Tensor) and not value.dtype.is_floating_point:
        limits = torch.iinfo(value.dtype)
        low, high = (math.floor(low) if math.isfinite(low) else low), (math.ceil(high) if math.isfinite(high) else high)
        known = low == -math.inf or low >= limits.min, high == math.inf or high <= limits.max
        # No index or count is as large as 2 ** 31.
        lost = (was_float or limits.bits < 32) and (math.isinf(low) or math.isinf(high))
        return (low, high) if all(known) and not lost and low < math.inf and high > -math.inf else _ANY
    return (low, high)


def _is_float(node: Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.dtype.is_floating_point


def _is_boolean(node: Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.dtype is torch.bool
