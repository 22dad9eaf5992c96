"""Check a tensor of a call against the input that a signature describes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from jetvit.passes.targets.signature_inputs import OpenAxis, TensorInput, axis_name, axis_text, least_size
from jetvit.patterns.errors import InputError


def check(file: str, expected: TensorInput, value: Any, sizes: dict[str, tuple[int, str]]) -> None:
    """Refuse what is not such a tensor. `sizes` are those of the symbols so far, and whose they are."""
    name = expected.name
    if not isinstance(value, Tensor):
        raise InputError(
            f"{file} does not take {name} as {type(value).__name__}",
            why="every input is a torch.Tensor",
            do="convert it, for example with torch.from_numpy" if type(value).__name__ == "ndarray" else "",
        )
    dtype, shown = str(value.dtype).removeprefix("torch."), "×".join(map(str, value.shape)) or "no axis"
    refused = f"{file} does not take {name} of shape {shown}"
    if len(value.shape) != len(expected.shape):
        takes = f"[{', '.join(map(axis_text, expected.shape))}]"
        add = "add the batch axis: x.unsqueeze(0)" if len(value.shape) + 1 == len(expected.shape) else ""
        raise InputError(refused, why=f"it has {value.dim()} axes; the file takes {takes}", do=add)
    if dtype != expected.dtype:
        raise InputError(
            f"{file} does not take {name} in {dtype}",
            why=f"it was written for {expected.dtype}",
            do=f"convert it: x.to(torch.{expected.dtype})",
        )
    if expected.device is not None and value.device.type != expected.device:
        raise InputError(
            f"{file} does not take {name} on {value.device}",
            why=f"it runs on {expected.device}",
            do=f"move it: x.to({expected.device!r})",
        )
    wrong: list[str] = []
    is_fixed = False
    for index, (size, axis) in enumerate(zip(value.shape, expected.shape, strict=True)):
        place = axis_name(expected.shape, index)
        if isinstance(axis, int):
            is_fixed |= size != axis and "channels" not in place
            wrong += [f"its {place} must be {axis}"] if size != axis else []
        elif axis is not None:
            wrong += _check_axis(size, axis, place, name, sizes)
    if wrong:
        takes = "give a tensor of such a size"
        opened = "; or write the file with this axis open: dynamic=True in Python, --dynamic on the command line"
        raise InputError(refused, why=", and ".join(wrong), do=takes + (opened if is_fixed else ""))


def _check_axis(size: int, axis: OpenAxis, place: str, name: str, sizes: dict[str, tuple[int, str]]) -> Iterator[str]:
    if size < axis.least:
        yield f"its {place} must be at least {least_size(axis)}"
    elif axis.most is not None and size > axis.most:
        yield f"its {place} must be at most {axis.most}"
    elif size % axis.multiple_of:
        yield f"its {place} must be a multiple of {axis.multiple_of}"
    elif (size - axis.offset) % axis.factor:
        more = f" plus {axis.offset}" if axis.offset else ""
        yield f"its {place} must be a multiple of {axis.factor}{more}"
    else:
        root = (size - axis.offset) // axis.factor
        first, owner = sizes.setdefault(axis.symbol, (root, f"the {place} of {name}"))
        if root != first:
            yield f"its {place} must be {axis.factor * first + axis.offset}, to fit {owner}"
