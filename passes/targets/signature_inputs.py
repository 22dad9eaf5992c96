"""The inputs that a signature describes: tensors with fixed and open axes, and constants."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class OpenAxis:
    """An open axis: `factor` · (a size called `symbol`) + `offset`, within bounds; axes of one symbol agree."""

    symbol: str
    factor: int = 1
    offset: int = 0
    least: int = 1
    most: int | None = None
    multiple_of: int = 1


@dataclass(frozen=True)
class TensorInput:
    """A tensor that a file takes.

    Attributes:
        shape: each axis has a fixed size, is an `OpenAxis`, or is None, which takes any size.
        device: "cpu" or "cuda"; None takes any.
        example: the shape that the file was written with.
        order: the axes by their strides, largest first; None for a contiguous tensor.
    """

    name: str
    dtype: str
    shape: tuple[int | OpenAxis | None, ...]
    device: str | None = None
    example: tuple[int, ...] | None = None
    order: tuple[int, ...] | None = None


@dataclass(frozen=True)
class ConstantInput:
    """An argument that is no tensor: the file was written for this value alone, unless it is open."""

    name: str
    value: Any
    is_open: bool = False


def input_from_data(data: Mapping[str, Any]) -> TensorInput | ConstantInput:
    """Read an input from the JSON of a signature.

    Raises:
        ValueError: it is no input. KeyError, TypeError, AttributeError: a field is missing, unknown or no dtype.
    """
    fields = {key: value for key, value in data.items() if key != "kind"}
    if data["kind"] == "ConstantInput":
        return ConstantInput(**fields)
    if not isinstance(getattr(torch, fields["dtype"]), torch.dtype):
        raise ValueError(f"{fields['dtype']!r} is no dtype")
    axes = [OpenAxis(**axis) if isinstance(axis, dict) else axis for axis in fields.pop("shape")]
    if not all(_is_axis(axis) for axis in axes):
        raise ValueError(f"{axes} is no shape")
    for name in ("example", "order"):
        fields[name] = None if fields[name] is None else tuple(fields[name])
    return TensorInput(**fields, shape=tuple(axes))


def _is_axis(axis: Any) -> bool:
    if isinstance(axis, OpenAxis):
        numbers = (axis.factor, axis.multiple_of, axis.least, 1 if axis.most is None else axis.most)
        return all(type(number) is int and number > 0 for number in numbers) and type(axis.offset) is int
    return axis is None or (type(axis) is int and axis >= 0)


def least_size(axis: OpenAxis | None) -> int:
    """The smallest size that an axis takes."""
    if axis is None:
        return 1
    return -(-axis.least // axis.multiple_of) * axis.multiple_of


def axis_text(axis: int | OpenAxis | None) -> str:
    """The size of an axis for messages: "224", "batch", "14·height+2" or "any"."""
    if axis is None or isinstance(axis, int):
        return "any" if axis is None else str(axis)
    text = axis.symbol if axis.factor == 1 else f"{axis.factor}·{axis.symbol}"
    return f"{text}+{axis.offset}" if axis.offset else text


def role_of(shape: Sequence[Any], axis: int) -> str:
    """The role of an axis: the first is the batch, four axes are images; "" for an unknown role."""
    if axis == 0:
        return "batch"
    if len(shape) != 4:
        return ""
    channels_last = shape[3] in (1, 3, 4) and shape[1] not in (1, 3, 4)
    return ("", "height", "width", "channels")[axis] if channels_last else ("", "channels", "height", "width")[axis]


def axis_name(shape: Sequence[Any], axis: int) -> str:
    """The name of an axis in errors: "height (axis 2)" of an image, else "axis 1"."""
    role = role_of(shape, axis)
    return f"{role} (axis {axis})" if role else f"axis {axis}"
