"""Operators that make shapes, and that rearrange or join the entries of tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from jetvit.passes.frontends.onnx.call import Call, operator
from jetvit.passes.frontends.onnx.ops_numbers import filling
from jetvit.passes.frontends.onnx.values import (
    DTYPES,
    Known,
    Number,
    UnsupportedError,
    broadcast_shape,
    known,
    product,
    same_number,
    target_shape,
)

if TYPE_CHECKING:
    import onnx_ir as ir


@operator("Shape")
def shape(call: Call) -> Known:
    """The sizes of a tensor, or a range of them."""
    value = call.inputs[0]
    assert value is not None
    sizes = list(value.shape)
    return known(sizes[call.attribute("start", 0) : call.attribute("end")])


@operator("Size")
def size(call: Call) -> Known:
    """The number of entries of a tensor."""
    value = call.inputs[0]
    assert value is not None
    return known(product(value.shape))


@operator("Identity")
def identity(call: Call) -> Any:
    """The tensor itself."""
    return call.inputs[0]


@operator("Dropout")
def dropout(call: Call) -> Any:
    """The tensor itself, but in training mode.

    Raises:
        UnsupportedError: the mask is read.
    """
    if call.wants(1):
        raise UnsupportedError("the mask of a dropout as an output")
    if not (call.opset >= 12 and call.has(2) and call.known(2).number):
        return call.inputs[0]
    return torch.dropout(call.tensor(0), call.known(1).number if call.has(1) else 0.5, True)


@operator("Reshape")
def reshape(call: Call) -> Tensor:
    """Sizes are known numbers or symbols."""
    x = call.tensor(0)
    asked = call.attribute("shape") if call.opset < 5 else call.ints(1)
    sizes = target_shape(x.shape, asked, bool(call.attribute("allowzero", 0)))
    if len(sizes) == x.ndim and all(same_number(a, b) for a, b in zip(sizes, x.shape, strict=True)):
        return x
    key = _turned_key(call, sizes)
    return x.reshape(sizes) if key is None else key


def _turned_key(call: Call, sizes: list[Number]) -> Tensor | None:
    """x.transpose(-2, -1), if that is what a reshape, a transpose and this reshape do to x; else None.

    It is how torch's exporter transposes the key of an attention: leading axes are folded into one and out again.
    """
    after = call.node.inputs[0]
    outer = after.producer() if after is not None else None
    if outer is None or outer.op_type != "Transpose" or list(outer.attributes.get_ints("perm", [])) != [0, 2, 1]:
        return None
    between = outer.inputs[0]
    inner = between.producer() if between is not None else None
    if between is None or inner is None or inner.op_type != "Reshape" or inner.inputs[0] is None:
        return None
    x, folded = call.values.get(inner.inputs[0]), call.values.get(between)
    if not isinstance(x, Tensor) or not isinstance(folded, Tensor) or x.ndim < 3 or len(sizes) != x.ndim:
        return None
    wanted = [*x.shape[:-2], x.shape[-1], x.shape[-2]]
    pairs = [*zip(sizes, wanted, strict=True), *zip(folded.shape[1:], x.shape[-2:], strict=True)]
    return x.transpose(-2, -1) if all(same_number(a, b) for a, b in pairs) else None


@operator("Flatten")
def flatten(call: Call) -> Tensor:
    """Two axes: the product of those before an axis, and of those from there on."""
    x, axis = call.tensor(0), call.attribute("axis", 1)
    axis = axis + x.ndim if axis < 0 else axis
    return x.reshape(product(x.shape[:axis]), product(x.shape[axis:]))


@operator("Transpose")
def transpose(call: Call) -> Tensor:
    """Axes in another order: all of them reversed if no order is given."""
    x = call.tensor(0)
    return x.permute(call.attribute("perm", list(range(x.ndim))[::-1]))


@operator("Squeeze")
def squeeze(call: Call) -> Tensor:
    """Without some axes of size 1, or without all of them."""
    x, axes = call.tensor(0), call.axes(1)
    if axes is None:
        axes = [dim for dim, length in enumerate(x.shape) if same_number(length, 1)]
    if len(axes) == 1 and (entry := _entry(call, call.node.inputs[0], axes[0] % x.ndim)) is not None:
        return entry
    for axis in sorted((axis % x.ndim for axis in axes), reverse=True):
        x = x.squeeze(axis)
    return x


def _entry(call: Call, cut: ir.Value | None, dim: int) -> Tensor | None:
    """One entry of an axis, if it has been cut out before its axis is dropped: how exporters write `unbind`.

    ONNX Runtime's optimizer moves transpositions in between: the axis is dropped before them, as for the other entries.
    """
    before = cut.producer() if cut is not None else None
    if cut is None or before is None or not before.inputs or before.inputs[0] is None:
        return None
    x, part = call.values.get(before.inputs[0]), call.values.get(cut)
    if not isinstance(x, Tensor) or not isinstance(part, Tensor) or part.ndim != x.ndim:
        return None
    if before.op_type == "Transpose" and before.domain in ("", "ai.onnx"):
        perm = list(before.attributes.get_ints("perm", list(range(x.ndim))[::-1]))
        entry = _entry(call, before.inputs[0], perm[dim])
        rest = [axis for axis in perm if axis != perm[dim]]
        return entry.permute([axis - (axis > perm[dim]) for axis in rest]) if entry is not None else None
    if before.op_type == "Split":
        axis = before.attributes.get_int("axis", 0) % x.ndim
        parts = [call.values.get(value) for value in before.outputs]
        earlier = parts[: list(before.outputs).index(cut)]
        sizes: list[Number] = [each.shape[axis] if isinstance(each, Tensor) else None for each in earlier]
        place = sum(sizes) if all(isinstance(size, int) for size in sizes) else None
        return x.select(dim, place) if axis == dim and place is not None else None
    if before.op_type != "Slice" or call.opset < 10:
        return None
    start, _, along, *step = [call.number_of(value) for value in before.inputs[1:5]] + [None] * 2
    if not isinstance(start, int) or not isinstance(along, int) or along % x.ndim != dim:
        return None
    length = x.shape[dim]
    inside = start == -1 or (isinstance(length, int) and -length <= start < length)
    return x.select(dim, start) if inside and (step[0] == 1 or len(before.inputs) < 5) else None


@operator("Unsqueeze")
def unsqueeze(call: Call) -> Tensor:
    """With new axes of size 1."""
    x, axes = call.tensor(0), call.axes(1) or []
    rank = x.ndim + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


@operator("Concat")
def concat(call: Call) -> Tensor:
    """Joined along an axis."""
    if (parts := _unstacked(call)) is not None:
        return torch.stack(parts, dim=call.attribute("axis"))
    tensors = [call.tensor(index) for index in range(len(call.inputs))]
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors, dim=call.attribute("axis"))


def _unstacked(call: Call) -> list[Tensor] | None:
    """The tensors that are stacked, if each of them has been given the axis that they are joined along."""
    parts: list[Tensor] = []
    for value in call.node.inputs:
        before = value.producer() if value is not None else None
        whole = call.values.get(value) if value is not None else None
        if before is None or before.op_type != "Unsqueeze" or not isinstance(whole, Tensor) or not before.inputs[0]:
            return None
        part, given = call.values.get(before.inputs[0]), before.attributes.get("axes")
        axis = call.number_of(before.inputs[1]) if len(before.inputs) > 1 else list(given.value) if given else None
        axis = axis[0] if isinstance(axis, list) and len(axis) == 1 else axis
        wanted = call.attribute("axis") % whole.ndim
        if not isinstance(part, Tensor) or not isinstance(axis, int) or axis % whole.ndim != wanted:
            return None
        parts.append(part)
    return parts if len(parts) > 1 else None


@operator("Expand")
def expand(call: Call) -> Tensor:
    """Broadcast to a shape, both ways."""
    x = call.tensor(0)
    sizes = broadcast_shape(list(x.shape), call.ints(1))
    if len(sizes) == x.ndim and all(same_number(a, b) for a, b in zip(sizes, x.shape, strict=True)):
        return x
    return x.expand(sizes)


@operator("Tile")
def tile(call: Call) -> Tensor:
    """Repeated along each axis."""
    return call.tensor(0).repeat(call.ints(1))


@operator("ConstantOfShape")
def constant_of_shape(call: Call) -> Tensor:
    """One number everywhere."""
    number, dtype = filling(call)
    return torch.full(call.ints(0), number, dtype=dtype)


@operator("Range")
def range_(call: Call) -> Tensor:
    """Numbers in order."""
    start, limit, delta = (call.known(index) for index in range(3))
    return torch.arange(start.number, limit.number, delta.number, dtype=start.dtype)


@operator("EyeLike")
def eye_like(call: Call) -> Tensor:
    """Ones on a diagonal."""
    x, offset = call.tensor(0), call.attribute("k", 0)
    dtype = DTYPES[call.attribute("dtype")] if call.attribute("dtype") else x.dtype
    rows, columns = torch.arange(x.shape[0]).unsqueeze(1), torch.arange(x.shape[1])
    return (columns - rows == offset).to(dtype)


@operator("DepthToSpace")
def depth_to_space(call: Call) -> Tensor:
    """Channels to places of a map."""
    x, block = call.tensor(0), call.attribute("blocksize")
    if call.attribute("mode", "DCR") == "CRD":
        return F.pixel_shuffle(x, block)
    b, c, h, w = x.shape
    x = x.reshape(b, block, block, c // block**2, h, w).permute(0, 3, 4, 1, 5, 2)
    return x.reshape(b, c // block**2, h * block, w * block)


@operator("SpaceToDepth")
def space_to_depth(call: Call) -> Tensor:
    """Places of a map to channels."""
    x, block = call.tensor(0), call.attribute("blocksize")
    b, c, h, w = x.shape
    x = x.reshape(b, c, h // block, block, w // block, block).permute(0, 3, 5, 1, 2, 4)
    return x.reshape(b, c * block**2, h // block, w // block)
