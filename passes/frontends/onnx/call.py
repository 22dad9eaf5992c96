"""One call of an operator: its inputs and attributes, and the tables that operators are entered in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from jetvit.passes.frontends.onnx.values import MAX_KNOWN, SYMBOLS, Known, Number, UnsupportedError, Value

if TYPE_CHECKING:
    import onnx_ir as ir

    from jetvit.passes.frontends.onnx.weights import Weights

Operator = Callable[["Call"], Any]
OPERATORS: dict[tuple[str, str], Operator] = {}
"""(domain, name) → what it does; a function returns one value, or a list of them."""
ON_NUMBERS: dict[str, Operator] = {}
"""Operators of the default domain on known values alone; None where the result is better a tensor."""


def operator(*names: str, domain: str = "") -> Callable[[Operator], Operator]:
    """Enter a function into the table of operators."""

    def enter(function: Operator) -> Operator:
        OPERATORS.update({(domain, name): function for name in names})
        return function

    return enter


def on_numbers(*names: str) -> Callable[[Operator], Operator]:
    """Enter a function into the table of operators on known values."""

    def enter(function: Operator) -> Operator:
        ON_NUMBERS.update(dict.fromkeys(names, function))
        return function

    return enter


@dataclass(frozen=True)
class Call:
    """A node with the values of its inputs.

    Attributes:
        node: the ONNX node.
        inputs: its values; None for one that is left out.
        opset: the version of the node's domain.
        weights: the constants of the graph.
        values: what has been computed so far.
    """

    node: ir.Node
    inputs: list[Value]
    opset: int
    weights: Weights
    values: Mapping[ir.Value, Value]

    def has(self, index: int) -> bool:
        """True if an input is given."""
        return index < len(self.inputs) and self.inputs[index] is not None

    def wants(self, index: int) -> bool:
        """True if an output is read by anyone."""
        outputs = self.node.outputs
        return index < len(outputs) and (bool(outputs[index].uses()) or outputs[index].is_graph_output())

    def attribute(self, name: str, default: Any = None) -> Any:
        """The value of an attribute; strings as str, lists as lists, a tensor as an onnx_ir one."""
        attribute = self.node.attributes.get(name)
        if attribute is None:
            return default
        value = attribute.value
        return list(value) if isinstance(value, tuple) else value

    def tensor(self, index: int) -> Tensor:
        """An input as a tensor.

        Raises:
            UnsupportedError: the input is left out.
        """
        value = self.inputs[index] if index < len(self.inputs) else None
        if value is None:
            raise UnsupportedError(f"input {index} is missing")
        return self.as_tensor(value)

    def optional(self, index: int) -> Tensor | None:
        """An input as a tensor, or None."""
        return self.tensor(index) if self.has(index) else None

    def as_tensor(self, value: Tensor | Known) -> Tensor:
        """A value as a tensor: one that is the same everywhere is filled, others are constants of the program."""
        return as_tensor(value, self.weights)

    def operand(self, index: int, rank: int | None = None) -> Any:
        """An input of an elementwise operator: a number where it is a known one, else a tensor.

        Args:
            index: which input.
            rank: of the other operands; a number that would add axes to them is made a tensor.
        """
        value = self.inputs[index]
        if isinstance(value, Known) and value.items.size == 1 and (rank is None or len(value.shape) <= rank):
            return value.number
        return self.tensor(index)

    def number_or_tensor(self, index: int) -> Any:
        """An input that is an option rather than an operand: the number of a constant, else a tensor."""
        number = self.number_of(self.node.inputs[index])
        return self.tensor(index) if number is None else number

    def known(self, index: int) -> Known:
        """An input whose numbers have to be known: a shape, axes, pads.

        Raises:
            UnsupportedError: the input is computed from what the model is given.
        """
        value = self.inputs[index]
        if isinstance(value, Known):
            return value
        read = self.weights.numbers(self.node.inputs[index])
        if read is None:
            names = getattr(self.node.inputs[index], "name", None)
            raise UnsupportedError(f"input {index} ({names}) depends on the values of the model's input")
        return read

    def number_of(self, value: ir.Value | None) -> Number | None:
        """The only number of a known value that this node need not read; None for anything else."""
        if value is None:
            return None
        found = self.values.get(value) if value in self.values else self.weights.numbers(value)
        return found.number if isinstance(found, Known) and found.items.size == 1 else None

    def ints(self, index: int) -> list[Number]:
        """The numbers of an input, in row-major order."""
        return self.known(index).list()

    def axes(self, index: int, name: str = "axes") -> list[int] | None:
        """Axes that newer versions of an operator take as an input and older ones as an attribute."""
        if self.has(index):
            return [int(axis) for axis in self.ints(index)]
        axes = self.attribute(name)
        return None if axes is None else [int(axis) for axis in axes]


def as_tensor(value: Tensor | Known, weights: Weights) -> Tensor:
    """A value as a tensor: one that is the same everywhere is filled, others are constants of the program."""
    if isinstance(value, Tensor):
        return value
    items, shape = value.list(), tuple(value.shape)
    if items and all(item is items[0] or _equal(item, items[0]) for item in items):
        return torch.full(shape, items[0], dtype=value.dtype)
    if value.is_static:
        return weights.table(value)
    return torch.stack([torch.full((), item, dtype=value.dtype) for item in items]).reshape(shape)


def array(items: Any) -> np.ndarray:
    """An array of objects, whatever is in it."""
    result = np.empty(np.shape(items), dtype=object)
    result[...] = items
    return result


def fits(count: Number) -> bool:
    """True if so many entries may stay known."""
    return not isinstance(count, SYMBOLS) and count <= MAX_KNOWN


def _equal(a: Number, b: Number) -> bool:
    return not isinstance(a, SYMBOLS) and not isinstance(b, SYMBOLS) and type(a) is type(b) and (a == b)
