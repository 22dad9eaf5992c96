"""Values that are known while a graph is read: sizes, indices and single numbers, which never become tensors.

An ONNX graph computes with sizes in tensors (`Shape`, `Gather`, `Concat`, …). Here they stay Python numbers, or symbols
where an axis is dynamic, so that the program that is traced reads like one written in PyTorch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import sympy
import torch
from torch.fx.experimental.symbolic_shapes import statically_known_true

Number: TypeAlias = Any
"""bool, int, float, SymBool, SymInt or SymFloat."""
SYMBOLS = (torch.SymInt, torch.SymFloat, torch.SymBool)
MICROSOFT = "com.microsoft"  # the domain of ONNX Runtime's own operators
MAX_KNOWN = 64
"""Entries of a known value; what is larger is a tensor."""
MAX_READ = 4096
"""Entries of a constant whose numbers may be looked at."""
_SMALL = 256
"""A number whose product with any size of an axis is exact in single precision."""

# The numbers of TensorProto.DataType, the same for every release of ONNX.
DTYPES = {
    1: torch.float32, 2: torch.uint8, 3: torch.int8, 4: torch.uint16, 5: torch.int16, 6: torch.int32, 7: torch.int64,
    9: torch.bool, 10: torch.float16, 11: torch.float64, 12: torch.uint32, 13: torch.uint64, 16: torch.bfloat16,
}  # fmt: skip


_FLOATS: dict[torch.dtype, Any] = {torch.float16: np.float16, torch.float32: np.float32}


class UnsupportedError(Exception):
    """An operator, an attribute or an input that has no equal in PyTorch, or none that is known here."""


@dataclass(frozen=True)
class Known:
    """An array of numbers: `items` has dtype object, and any shape; `dtype` is the type that it has in the file."""

    items: np.ndarray
    dtype: torch.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.items.shape

    @property
    def is_static(self) -> bool:
        """True if no entry is a symbol."""
        return not any(isinstance(item, SYMBOLS) for item in self.items.flat)

    @property
    def number(self) -> Number:
        """The only entry."""
        return self.items.reshape(-1)[0]

    def list(self) -> list[Number]:
        """The entries in row-major order."""
        return list(self.items.reshape(-1))


Value: TypeAlias = torch.Tensor | Known | None


def known(items: Any, dtype: torch.dtype = torch.int64) -> Known:
    """A known value of a number, of nested sequences of numbers, or of an array; numbers are rounded to the dtype."""
    if isinstance(items, np.ndarray):
        array = items.astype(object) if items.dtype != object else items.copy()
    elif isinstance(items, list | tuple):
        array = np.empty(len(items), dtype=object)
        array[:] = items
    else:
        array = np.empty((), dtype=object)
        array[()] = items
    flat = array.reshape(-1)
    for index, item in enumerate(flat):
        flat[index] = rounded(item, dtype)
    return Known(flat.reshape(array.shape), dtype)


def rounded(item: Number, dtype: torch.dtype) -> Number:
    """A number as a dtype holds it; a symbol stays as it is, but for its kind."""
    if isinstance(item, SYMBOLS):
        if dtype.is_floating_point:
            return torch.sym_float(item)
        return item if dtype is torch.bool else as_int(item)
    if dtype is torch.bool:
        return bool(item)
    if dtype.is_floating_point:
        with np.errstate(over="ignore"):
            return float(_FLOATS.get(dtype, np.float64)(item))
    if isinstance(item, float) and not math.isfinite(item):
        raise UnsupportedError(f"{item} as {dtype}")
    limits = torch.iinfo(dtype)
    return (int(item) - limits.min) % (1 << limits.bits) + limits.min  # what does not fit wraps around


def small_ratio(number: float) -> tuple[int, int]:
    """A number as a fraction with small terms; (0, 0) if it is none, such as 5/6 in any precision."""
    over, under = number.as_integer_ratio() if math.isfinite(number) else (0, 0)
    return (over, under) if 0 < over <= _SMALL and under <= _SMALL else (0, 0)


def settled(item: Number, dtype: torch.dtype) -> Number:
    """A symbol that is about to be rounded to a whole number, fixed if the file's precision decides what it becomes.

    48 · 5/6 is 40 in single precision, and less than 40 in the double precision that symbols have.
    """
    if not isinstance(item, torch.SymFloat):
        return item
    factors = [float(atom) for atom in item.node.expr.atoms(sympy.Float)]
    if all(factor.is_integer() or small_ratio(abs(factor))[1] for factor in factors):
        return item
    return rounded(fixed(item), dtype)


def fixed(item: Number) -> float:
    """A number, with the axes fixed that it is computed from: a guard on it alone would leave them open."""
    if isinstance(item, SYMBOLS):
        environment = item.node.shape_env
        for symbol in item.node.expr.free_symbols:
            int(environment.create_symintnode(symbol, hint=None))
    return float(item)


def as_int(item: Number) -> Number:
    """Towards zero, as a cast rounds."""
    if isinstance(item, torch.SymFloat):
        return torch.sym_int(item)
    if isinstance(item, torch.SymBool):
        return torch.sym_ite(item, 1, 0)
    return item if isinstance(item, torch.SymInt) else int(item)


def same_number(a: Number, b: Number) -> bool:
    """True if two sizes are provably equal; no guard is made."""
    return bool(a == b) if not isinstance(a, SYMBOLS) and not isinstance(b, SYMBOLS) else statically_known_true(a == b)


def product(sizes: Iterable[Number]) -> Number:
    """The product of some sizes."""
    result: Number = 1
    for size in sizes:
        result = result * size
    return result


def trunc_divide(a: Number, b: Number) -> Number:
    """Integer division towards zero; a symbol's sign is proven, or guarded."""
    if (a >= 0) == (b > 0) or same_number(a, 0):
        return a // b
    return -((-a) // b)


def target_shape(before: Sequence[Number], asked: Sequence[Number], allow_zero: bool) -> list[Number]:
    """The sizes that a Reshape asks for, with 0 and −1 replaced; −1 stays where only the tracer can tell.

    Equal factors of both sides are cancelled, so that what −1 stands for is written as briefly as it can be.
    """
    sizes = list(asked)
    if not allow_zero:
        sizes = [before[index] if same_number(size, 0) else size for index, size in enumerate(sizes)]
    holes = [index for index, size in enumerate(sizes) if same_number(size, -1)]
    if not holes:
        return sizes
    left, right = list(before), [size for index, size in enumerate(sizes) if index != holes[0]]
    for size in list(right):
        match = next((index for index, other in enumerate(left) if same_number(size, other)), None)
        if match is not None:
            del left[match]
            right.remove(size)
    numbers = [size for size in left if isinstance(size, int)], [size for size in right if isinstance(size, int)]
    symbols = [[size for size in side if not isinstance(size, int)] for side in (left, right)]
    over, under = product(numbers[0]), product(numbers[1])
    if under == 0 or symbols[1] or over % under:
        return sizes
    sizes[holes[0]] = product(symbols[0]) * (over // under) if symbols[0] else over // under
    return sizes


def broadcast_shape(a: Sequence[Number], b: Sequence[Number]) -> list[Number]:
    """The shape that two shapes broadcast to; two sizes that are not provably 1 are taken to be equal."""
    rank = max(len(a), len(b))
    first, second = [1] * (rank - len(a)) + list(a), [1] * (rank - len(b)) + list(b)
    return [y if same_number(x, 1) else x for x, y in zip(first, second, strict=True)]
