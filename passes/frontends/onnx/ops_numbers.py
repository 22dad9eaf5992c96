"""Operators on known values: the arithmetic of sizes, done in Python while the graph is read."""

from __future__ import annotations

import math
import operator as py
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from jetvit.passes.frontends.onnx.call import Call, array, fits, on_numbers
from jetvit.passes.frontends.onnx.values import (
    DTYPES,
    SYMBOLS,
    Known,
    Number,
    known,
    product,
    settled,
    target_shape,
    trunc_divide,
)


def _is_symbol(*items: Number) -> bool:
    return any(isinstance(item, SYMBOLS) for item in items)


def _divide(a: Number, b: Number, whole: bool) -> Number:
    if whole:
        return trunc_divide(a, b)
    if not _is_symbol(a, b) and b == 0:
        return math.nan if a == 0 or a != a else math.copysign(math.inf, a)
    return a / b


def _power(a: Number, b: Number, whole: bool) -> Number:
    return torch.sym_sqrt(a) if _is_symbol(a) and b == 0.5 else a**b


def _either(first: bool) -> Callable[[Number, Number, bool], Number]:
    """The smaller or the larger of two."""

    def choose(a: Number, b: Number, whole: bool) -> Number:
        if _is_symbol(a, b):
            return torch.sym_min(a, b) if first else torch.sym_max(a, b)
        return min(a, b) if first else max(a, b)

    return choose


BINARY: dict[str, Callable[[Number, Number, bool], Number]] = {
    "Add": lambda a, b, _: a + b,
    "Sub": lambda a, b, _: a - b,
    "Mul": lambda a, b, _: a * b,
    "Div": _divide,
    "Pow": _power,
    "Min": _either(True),
    "Max": _either(False),
}
COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    "Equal": py.eq, "Less": py.lt, "Greater": py.gt, "LessOrEqual": py.le, "GreaterOrEqual": py.ge,
    "And": lambda a, b: bool(a) and bool(b), "Or": lambda a, b: bool(a) or bool(b),
    "Xor": lambda a, b: bool(a) != bool(b),
}  # fmt: skip
UNARY: dict[str, Callable[[Number], Number]] = {
    "Neg": py.neg, "Abs": abs, "Not": lambda a: not a, "Identity": lambda a: a, "Dropout": lambda a: a,
    "Sqrt": lambda a: torch.sym_sqrt(a) if _is_symbol(a) else math.sqrt(a) if a >= 0 else math.nan,
    "Floor": lambda a: math.floor(a) if _is_symbol(a) or math.isfinite(a) else a,
    "Ceil": lambda a: math.ceil(a) if _is_symbol(a) or math.isfinite(a) else a,
    "Round": lambda a: round(a) if _is_symbol(a) or math.isfinite(a) else a,
    "Reciprocal": lambda a: _divide(1.0, a, False),
}  # fmt: skip


def _map(function: Callable[..., Number], dtype: torch.dtype, *arrays: np.ndarray) -> Known | None:
    """A function of the entries of arrays that broadcast against each other."""
    together = np.broadcast_arrays(*arrays)
    if not fits(together[0].size):
        return None
    result = np.empty(together[0].shape, dtype=object)
    flat = result.reshape(-1)
    for index, items in enumerate(zip(*(each.reshape(-1) for each in together), strict=True)):
        flat[index] = function(*items)
    return known(flat.reshape(result.shape), dtype)


@on_numbers(*BINARY)
def binary(call: Call) -> Known | None:
    """Elementwise, from the left where there are more than two."""
    function, first = BINARY[call.node.op_type], call.known(0)
    whole = not first.dtype.is_floating_point
    result: Known | None = first
    for index in range(1, len(call.inputs)):
        if result is None:
            return None
        result = _map(lambda a, b: function(a, b, whole), first.dtype, result.items, call.known(index).items)
    return result


@on_numbers(*COMPARISONS)
def comparison(call: Call) -> Known | None:
    """Elementwise, to bool."""
    return _map(COMPARISONS[call.node.op_type], torch.bool, call.known(0).items, call.known(1).items)


@on_numbers(*UNARY)
def unary(call: Call) -> Known | None:
    """Elementwise."""
    value, function = call.known(0), UNARY[call.node.op_type]
    if call.node.op_type in ("Floor", "Ceil", "Round"):
        return _map(lambda a: function(settled(a, value.dtype)), value.dtype, value.items)
    return _map(function, value.dtype, value.items)


@on_numbers("Mod")
def mod(call: Call) -> Known | None:
    """The sign is the divisor's, or the dividend's for `fmod`."""
    a, b = call.known(0), call.known(1)
    if call.attribute("fmod", 0):
        return _map(math.fmod, a.dtype, a.items, b.items) if a.is_static and b.is_static else None
    return _map(py.mod, a.dtype, a.items, b.items)


@on_numbers("Cast")
def cast(call: Call) -> Known | None:
    """To another type."""
    dtype, value = DTYPES.get(call.attribute("to")), call.known(0)
    if dtype is None:
        return None
    if dtype.is_floating_point:
        return known(value.items, dtype)
    items = np.empty_like(value.items)
    items.reshape(-1)[:] = [settled(item, value.dtype) for item in value.list()]
    return known(items, dtype)


@on_numbers("Where")
def where(call: Call) -> Known | None:
    """A choice for each entry."""
    return _map(lambda c, a, b: a if c else b, call.known(1).dtype, *(call.known(index).items for index in range(3)))


@on_numbers("Gather")
def gather(call: Call) -> Known | None:
    """Entries by their index."""
    value, indices = call.known(0), call.known(1)
    if not indices.is_static:
        return None
    taken = np.take(value.items, indices.items.astype(np.int64), axis=call.attribute("axis", 0))
    return Known(array(taken), value.dtype)


@on_numbers("Concat")
def concat(call: Call) -> Known | None:
    """Joined along an axis."""
    values = [call.known(index) for index in range(len(call.inputs))]
    joined = np.concatenate([value.items for value in values], axis=call.attribute("axis"))
    return Known(joined, values[0].dtype) if fits(joined.size) else None


@on_numbers("Slice")
def slice_(call: Call) -> Known | None:
    """Ranges of axes."""
    value = call.known(0)
    if call.opset < 10:
        starts, ends = call.attribute("starts"), call.attribute("ends")
        axes, steps = call.attribute("axes"), None
    else:
        starts, ends = call.ints(1), call.ints(2)
        axes = call.ints(3) if call.has(3) else None
        steps = call.ints(4) if call.has(4) else None
    axes = list(range(len(starts))) if axes is None else axes
    index: list[Any] = [slice(None)] * value.items.ndim
    for place, axis in enumerate(axes):
        start, end, step = starts[place], ends[place], steps[place] if steps else 1
        if _is_symbol(start, end, step):
            return None
        size = value.shape[axis]
        if step < 0:  # an end before the first entry is no end
            start = min(start + size if start < 0 else start, size - 1)
            end = None if end < -size else end
        index[axis] = slice(start, end, step)
    return Known(array(value.items[tuple(index)]), value.dtype)


@on_numbers("Squeeze")
def squeeze(call: Call) -> Known | None:
    """Without axes of size 1."""
    value, axes = call.known(0), call.axes(1)
    return Known(array(np.squeeze(value.items, None if axes is None else tuple(axes))), value.dtype)


@on_numbers("Unsqueeze")
def unsqueeze(call: Call) -> Known | None:
    """With new axes of size 1."""
    value, axes = call.known(0), call.axes(1) or []
    return Known(np.expand_dims(value.items, tuple(axes)), value.dtype)


@on_numbers("Reshape")
def reshape(call: Call) -> Known | None:
    """The same entries in another shape."""
    value, shape = call.known(0), call.known(1)
    if not shape.is_static:
        return None
    sizes = target_shape(value.shape, shape.list(), bool(call.attribute("allowzero", 0)))
    return Known(value.items.reshape(sizes), value.dtype)


@on_numbers("Flatten")
def flatten(call: Call) -> Known | None:
    """Two axes."""
    value, axis = call.known(0), call.attribute("axis", 1)
    return Known(value.items.reshape(math.prod(value.shape[:axis]), -1), value.dtype)


@on_numbers("Transpose")
def transpose(call: Call) -> Known | None:
    """Axes in another order."""
    value = call.known(0)
    return Known(value.items.transpose(call.attribute("perm")), value.dtype)


@on_numbers("Expand")
def expand(call: Call) -> Known | None:
    """Broadcast to a shape."""
    value, shape = call.known(0), call.known(1)
    if not shape.is_static or not fits(product(shape.list())):
        return None
    together = np.broadcast_shapes(value.shape, tuple(shape.list()))
    return Known(array(np.broadcast_to(value.items, together)), value.dtype)


@on_numbers("Tile")
def tile(call: Call) -> Known | None:
    """Repeated."""
    value, repeats = call.known(0), call.known(1)
    if not repeats.is_static or not fits(value.items.size * product(repeats.list())):
        return None
    return Known(np.tile(value.items, repeats.list()), value.dtype)


@on_numbers("Split")
def split(call: Call) -> list[Known] | None:
    """Consecutive parts of an axis."""
    value, axis = call.known(0), call.attribute("axis", 0)
    sizes = call.axes(1, "split")
    if sizes is None:
        count = len(call.node.outputs)
        each = -(-value.shape[axis] // count)
        sizes = [each] * (count - 1) + [value.shape[axis] - each * (count - 1)]
    parts = np.split(value.items, np.cumsum(sizes)[:-1], axis=axis)
    return [Known(array(part), value.dtype) for part in parts]


@on_numbers("Range")
def range_(call: Call) -> Known | None:
    """Whole numbers in order; a long or an open range is a tensor."""
    start, limit, delta = (call.known(index) for index in range(3))
    if start.dtype.is_floating_point or not (start.is_static and limit.is_static and delta.is_static):
        return None
    items = range(start.number, limit.number, delta.number)
    return known(list(items), start.dtype) if fits(len(items)) else None


@on_numbers("ConstantOfShape")
def constant_of_shape(call: Call) -> Known | None:
    """One number everywhere."""
    shape = call.known(0)
    if not shape.is_static or not fits(product(shape.list())):
        return None
    number, dtype = filling(call)
    return known(np.full(tuple(shape.list()), number, dtype=object), dtype)


def filling(call: Call) -> tuple[Number, torch.dtype]:
    """The number and type that a ConstantOfShape fills with."""
    value = call.attribute("value")
    if value is None:
        return 0.0, torch.float32
    return value.numpy().reshape(-1)[0].item(), DTYPES[int(value.dtype)]


_REDUCTIONS: dict[str, Callable[[list[Number]], Number]] = {
    "ReduceProd": product,
    "ReduceSum": sum,
    "ReduceMax": lambda items: _fold(_either(False), items),
    "ReduceMin": lambda items: _fold(_either(True), items),
}


def _fold(function: Callable[[Number, Number, bool], Number], items: list[Number]) -> Number:
    result = items[0]
    for item in items[1:]:
        result = function(result, item, True)
    return result


@on_numbers(*_REDUCTIONS)
def reduce(call: Call) -> Known | None:
    """Of a vector, to one number."""
    value, axes = call.known(0), call.axes(1)
    if value.items.ndim != 1 or value.items.size == 0 or (not axes and call.attribute("noop_with_empty_axes", 0)):
        return None
    number = _REDUCTIONS[call.node.op_type](value.list())
    return known([number] if call.attribute("keepdims", 1) else number, value.dtype)
