"""The building of a function body from standard operators.

A size is an int where it is known, or an int64 value of shape [1] that the body computes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True)
class Shape:
    """The sizes of q, k and v [batch, token, head, dim] and the extra tokens; None is known at run time only."""

    batch: int | None
    tokens: int | None
    heads: int
    head_dim: int
    extra_after: int | None
    dtype: str  # of onnx_ir.DataType: "FLOAT", "FLOAT16", "BFLOAT16" or "DOUBLE"

    @property
    def wide(self) -> str:
        """The dtype of sums: fp32, or fp64 for fp64."""
        return "DOUBLE" if self.dtype == "DOUBLE" else "FLOAT"


class Body:
    """The nodes of one function, in order.

    Args:
        opset: the version of the standard operators, 18 or 23.
    """

    def __init__(self, opset: int):
        import onnx_ir as ir

        self.opset = opset
        self._ir = ir
        self._tape = ir.tape.Tape()
        self._constants: dict[tuple[Any, ...], ir.Value] = {}

    @property
    def nodes(self) -> Sequence[ir.Node]:
        """What was built."""
        return self._tape.nodes

    def op(self, op_type: str, *inputs: Any, **attributes: Any) -> ir.Value:
        """A node of a standard operator with one output."""
        return self._tape.op(op_type, list(inputs), attributes)

    def split(self, x: ir.Value, count: int, axis: int) -> Sequence[ir.Value]:
        """Equal parts of an axis."""
        attributes = {"axis": axis, "num_outputs": count}
        return self._tape.op_multi_out("Split", [x], attributes, num_outputs=count)

    def constant(self, value: Any, dtype: str = "INT64") -> ir.Value:
        """A constant: a number, or a list of numbers, of a dtype of `onnx_ir.DataType`; the same is made once."""
        key = (tuple(value) if isinstance(value, list) else value, dtype)
        if key not in self._constants:
            tensor = self._ir.tensor(value, dtype=self._ir.DataType[dtype])
            self._constants[key] = self.op("Constant", value=tensor)
        return self._constants[key]

    # --- sizes ---

    def size(self, scalar: ir.Value) -> ir.Value:
        """A scalar int64 as a size."""
        return self.op("Reshape", scalar, self.constant([1]))

    def dim(self, x: ir.Value, axis: int) -> ir.Value:
        """The length of an axis as a size, read at run time."""
        return self.op("Shape", x, start=axis, end=axis + 1)

    def ints(self, *dims: Any) -> ir.Value:
        """Sizes as an int64 vector."""
        if all(isinstance(dim, int) for dim in dims):
            return self.constant(list(dims))
        parts = [self.constant([dim]) if isinstance(dim, int) else dim for dim in dims]
        return parts[0] if len(parts) == 1 else self.op("Concat", *parts, axis=0)

    def add(self, a: Any, b: Any) -> Any:
        """a + b of two sizes."""
        if isinstance(a, int) and isinstance(b, int):
            return a + b
        if 0 in (a if isinstance(a, int) else None, b if isinstance(b, int) else None):
            return b if isinstance(a, int) else a
        return self.op("Add", self.ints(a), self.ints(b))

    def subtract(self, a: Any, b: Any) -> Any:
        """a − b of two sizes."""
        if isinstance(b, int):
            return a - b if isinstance(a, int) else self.add(a, -b)
        return self.op("Sub", self.ints(a), self.ints(b))

    def multiply(self, a: Any, b: Any) -> Any:
        """a · b of two sizes."""
        return a * b if isinstance(a, int) and isinstance(b, int) else self.op("Mul", self.ints(a), self.ints(b))

    def ceil_divide(self, a: Any, b: Any) -> Any:
        """⌈a / b⌉ of two positive sizes."""
        if isinstance(a, int) and isinstance(b, int):
            return -(-a // b)
        return self.op("Div", self.ints(self.subtract(self.add(a, b), 1)), self.ints(b))

    # --- tensors ---

    def cast(self, x: ir.Value, dtype: str, present: str | None = None) -> ir.Value:
        """x in a dtype; itself where that is the dtype that it has at present."""
        return x if dtype == present else self.op("Cast", x, to=self._ir.DataType[dtype])

    def transpose(self, x: ir.Value, *perm: int) -> ir.Value:
        """The axes of x in another order."""
        return self.op("Transpose", x, perm=list(perm))

    def reshape(self, x: ir.Value, *dims: Any) -> ir.Value:
        """x in another shape: 0 is the length that the same axis of x has, −1 what is left."""
        return self.op("Reshape", x, self.ints(*dims))

    def slice(self, x: ir.Value, start: Any, end: Any, axis: int) -> ir.Value:
        """The part of an axis from `start` to `end`."""
        return self.op("Slice", x, self.ints(start), self.ints(end), self.constant([axis]))

    def concat(self, parts: Sequence[ir.Value], axis: int) -> ir.Value:
        """The parts joined along an axis."""
        return parts[0] if len(parts) == 1 else self.op("Concat", *parts, axis=axis)

    def pad(self, x: ir.Value, before: list[Any], after: list[Any], value: ir.Value | None = None) -> ir.Value:
        """x with `before[axis]` and `after[axis]` more entries along each axis, zeros or `value`."""
        if not any(isinstance(each, self._ir.Value) or each for each in (*before, *after)):
            return x
        return self.op("Pad", x, self.ints(*before, *after), *([] if value is None else [value]))


@dataclass(frozen=True)
class Grid:
    """The place of the grid tokens among the tokens; every size may be known or computed."""

    height: Any
    width: Any
    before: Any
    after: Any
    tokens: Any  # height · width
    end: Any  # before + tokens

    @classmethod
    def of(cls, body: Body, q: ir.Value, shape: Shape, height: Any, width: Any, before: Any) -> Grid:
        """The grid of q [batch, token, head, dim]."""
        tokens = body.multiply(height, width)
        end = body.add(before, tokens)
        after = shape.extra_after
        if after is None:
            after = body.subtract(body.dim(q, 1) if shape.tokens is None else shape.tokens, end)
        return cls(height, width, before, after, tokens, end)

    @property
    def alone(self) -> bool:
        """True if there are provably no extra tokens."""
        return isinstance(self.before, int) and isinstance(self.after, int) and self.before + self.after == 0

    def part(self, body: Body, x: ir.Value) -> ir.Value:
        """The grid tokens of x [batch, token, …]."""
        return x if self.alone else body.slice(x, self.before, self.end, 1)

    def extra(self, body: Body, x: ir.Value) -> ir.Value:
        """The extra tokens of x [batch, token, …], those before the grid first."""
        parts = []
        if self.before != 0:
            parts.append(body.slice(x, 0, self.before, 1))
        if self.after != 0:
            parts.append(body.slice(x, self.end, 2**63 - 1, 1))
        return body.concat(parts, 1)

    def around(self, body: Body, extra: ir.Value, x: ir.Value) -> ir.Value:
        """The grid tokens x [batch, token, …] with the extra tokens back in their places."""
        parts = [x]
        if self.before != 0:
            parts.insert(0, body.slice(extra, 0, self.before, 1))
        if self.after != 0:
            parts.append(body.slice(extra, self.before, 2**63 - 1, 1))
        return body.concat(parts, 1)
