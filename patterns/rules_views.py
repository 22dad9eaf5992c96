"""Rules of the layout walk for views, permutations, selections and cuts."""

from __future__ import annotations

import torch
from torch.fx import Node

from jetvit.patterns import axes as ax
from jetvit.patterns.aten_sets import ROW_MAJOR, SPLITS
from jetvit.patterns.calls import argument, shape, traced_value
from jetvit.patterns.rules import AxisReader, Value, dims, marked, rule
from jetvit.patterns.sizes import quotient, same

aten = torch.ops.aten


@rule(*ROW_MAJOR)
def view(walk: AxisReader, node: Node) -> Value:
    """Row-major order stays; only the ends of axes move."""
    sizes = list(shape(node))
    asked = node.args[1] if len(node.args) == 2 and isinstance(node.args[1], list | tuple) else []
    if len(asked) == len(sizes):
        # A size that the model's code gives as a number is shorter than the expression that the tracer derives for it.
        sizes = [own if isinstance(own, int) and own > 0 else size for own, size in zip(asked, sizes, strict=True)]
    return ax.reshape(walk.of(node.args[0]), sizes)


@rule(aten.view_as_complex.default)
def view_as_complex(walk: AxisReader, node: Node) -> Value:
    """The last axis, of real and imaginary part, goes. Some models write rotary embeddings as complex products."""
    return walk.of(node.args[0])[:-1]


@rule(aten.view_as_real.default)
def view_as_real(walk: AxisReader, node: Node) -> Value:
    """The last axis, of real and imaginary part, comes back."""
    return (*walk.of(node.args[0]), ax.fresh(2, "feature", "the parts of a complex number"))


@rule(aten.permute.default)
def permute(walk: AxisReader, node: Node) -> Value:
    """Axes in another order."""
    axes = walk.of(node.args[0])
    return tuple(axes[dim] for dim in dims(node.args[1], len(axes)))


@rule(aten.transpose.int, aten.swapaxes.default, aten.swapdims.default)
def transpose(walk: AxisReader, node: Node) -> Value:
    """Two axes swapped."""
    axes = list(walk.of(node.args[0]))
    first, second = dims(node.args[1:3], len(axes))
    axes[first], axes[second] = axes[second], axes[first]
    return tuple(axes)


@rule(aten.t.default, aten.numpy_T.default, aten.mT.default, aten.adjoint.default)
def swap_last(walk: AxisReader, node: Node) -> Value:
    """The last two axes swapped (the only two, for `t`)."""
    axes = walk.of(node.args[0])
    return (*axes[:-2], *axes[-2:][::-1])


@rule(aten.movedim.int, aten.movedim.intlist)
def movedim(walk: AxisReader, node: Node) -> Value:
    """Axes moved to other places."""
    axes = walk.of(node.args[0])
    source, target = dims(node.args[1], len(axes)), dims(node.args[2], len(axes))
    rest = iter([axis for dim, axis in enumerate(axes) if dim not in source])
    places = dict(zip(target, source, strict=True))
    return tuple(axes[places[dim]] if dim in places else next(rest) for dim in range(len(axes)))


@rule(aten.expand.default, aten.expand_as.default, aten.repeat.default, aten.tile.default)
def expand(walk: AxisReader, node: Node) -> Value:
    """An axis keeps its atoms where its size stays."""
    axes, sizes = walk.of(node.args[0]), shape(node)
    axes = ((),) * (len(sizes) - len(axes)) + axes
    kept = [same(ax.axis_size(axis), size) for axis, size in zip(axes, sizes, strict=True)]
    return tuple(axis if keep else ax.fresh(size, "weight") for axis, size, keep in zip(axes, sizes, kept, strict=True))


@rule(aten.repeat_interleave.self_int)
def repeat_interleave(walk: AxisReader, node: Node) -> Value:
    """One axis has each of its entries several times; without an axis, all entries stand in one row."""
    return expand(walk, node) if argument(node, 2, "dim") is not None else None


@rule(aten.select.int)
def select(walk: AxisReader, node: Node) -> Value:
    """One entry of an axis: the axis goes."""
    axes = walk.of(node.args[0])
    (dim,) = dims(node.args[1], len(axes))
    return marked(axes[:dim] + axes[dim + 1 :], walk.entry_of(axes[dim], node.args[2]))


@rule(aten.unbind.int)
def unbind(walk: AxisReader, node: Node) -> Value:
    """Every entry of an axis: the axis goes."""
    axes = walk.of(node.args[0])
    (dim,) = dims(argument(node, 1, "dim", 0), len(axes))
    rest = axes[:dim] + axes[dim + 1 :]
    return [marked(rest, walk.entry_of(axes[dim], index)) for index in range(len(node.meta["val"]))]


@rule(*SPLITS)
def split(walk: AxisReader, node: Node) -> Value:
    """Consecutive cuts of one axis."""
    axes = walk.of(node.args[0])
    (dim,) = dims(argument(node, 2, "dim", 0), len(axes))
    parts, start = [], 0
    for value in node.meta["val"]:
        stop = start + value.shape[dim]
        if value is node.meta["val"][-1]:
            stop = ax.axis_size(axes[dim])  # the last part ends where the axis does, whatever its size expression
        parts.append((*axes[:dim], ax.cut(axes[dim], start, stop), *axes[dim + 1 :]))
        start = stop
    return parts


@rule(aten.slice.Tensor, aten.narrow.default)
def slice_(walk: AxisReader, node: Node) -> Value:
    """A range of an axis."""
    axes = walk.of(node.args[0])
    (dim,) = dims(argument(node, 1, "dim", 0), len(axes))
    before = axes[dim]
    size, whole = shape(node)[dim], ax.axis_size(before)
    start = argument(node, 2, "start") or 0
    stop = start + argument(node, 3, "length") if node.target is aten.narrow.default else argument(node, 3, "end")
    step = argument(node, 4, "step", 1) if node.target is aten.slice.Tensor else 1
    if same(size, whole):
        return axes
    start = traced_value(start)
    if step != 1:
        kind = before[0].kind if len(before) == 1 and before[0].kind in ("row", "col") else "unknown"
        after = ax.fresh(size, kind, "a strided slice" if kind == "unknown" else node.name)
    elif isinstance(start, int) and start < 0 and (stop is None or stop == 2**63 - 1):
        after = ax.cut(before, whole - size, whole)
    elif isinstance(start, int) and start < 0:
        after = ax.fresh(size, "unknown", "a slice")
    else:
        open_end = stop is None or stop == 2**63 - 1
        after = ax.cut(before, start, whole if open_end else start + size)
    return (*axes[:dim], after, *axes[dim + 1 :])


@rule(aten.unfold.default)
def unfold(walk: AxisReader, node: Node) -> Value:
    """Windows along an axis; disjoint ones split it in two."""
    axes = walk.of(node.args[0])
    (dim,) = dims(node.args[1], len(axes))
    size, step = node.args[2:4]
    whole = ax.axis_size(axes[dim])
    count, places = quotient(whole, size), shape(node)
    if size == step and count is not None and same(count, places[dim]):
        coarse, fine = ax.reshape((axes[dim],), [count, size])
    else:
        coarse, fine = ax.fresh(places[dim], "unknown", "overlapping windows"), ax.fresh(size, "unknown")
    return (*axes[:dim], coarse, *axes[dim + 1 :], fine)
