"""Rules of the layout walk for operators that join tensors, or exchange, pad and reduce the entries of an axis."""

from __future__ import annotations

import torch
from torch.fx import Node

from jetvit.patterns import axes as ax
from jetvit.patterns.calls import argument, shape
from jetvit.patterns.rules import AxisReader, Value, dims, marked, renewed, rule

aten = torch.ops.aten


@rule(aten.cat.default, aten.concat.default, aten.concatenate.default)
def cat(walk: AxisReader, node: Node) -> Value:
    """Segments along one axis, a join along the others."""
    operands = [walk.of(used) for used in node.args[0]]
    (dim,) = dims(argument(node, 1, "dim", 0), len(shape(node)))
    operands = [axes for axes in operands if len(axes) == len(shape(node))]
    result = list(ax.broadcast(operands))
    result[dim] = ax.concatenate([axes[dim] for axes in operands])
    return tuple(result)


@rule(aten.stack.default)
def stack(walk: AxisReader, node: Node) -> Value:
    """A new axis."""
    result = list(ax.broadcast([walk.of(used) for used in node.args[0]]))
    (dim,) = dims(argument(node, 1, "dim", 0), len(result) + 1)
    result.insert(dim, ax.fresh(len(node.args[0]), "weight"))
    return tuple(result)


@rule(aten.glu.default)
def glu(walk: AxisReader, node: Node) -> Value:
    """Half of an axis by the other half: new entries along it."""
    axes = list(walk.of(node.args[0]))
    (dim,) = dims(argument(node, 1, "dim", -1), len(axes))
    axes[dim] = renewed(axes[dim], shape(node)[dim], "aten.glu.default")
    return tuple(axes)


@rule(aten.channel_shuffle.default)
def channel_shuffle(walk: AxisReader, node: Node) -> Value:
    """Channels in another order."""
    axes = walk.of(node.args[0])
    return (axes[0], renewed(axes[1], shape(node)[1], "aten.channel_shuffle.default"), *axes[2:])


@rule(aten.index.Tensor)
def index(walk: AxisReader, node: Node) -> Value:
    """Entries of one axis, picked by a row of numbers: the other axes stay."""
    axes, picked = list(walk.of(node.args[0])), [dim for dim, each in enumerate(node.args[1]) if each is not None]
    if len(picked) != 1 or len(shape(node.args[1][picked[0]])) != 1 or len(shape(node)) != len(axes):
        return None
    (dim,) = picked
    kind = "feature" if axes[dim] and all(atom.kind == "feature" for atom in axes[dim]) else "unknown"
    axes[dim] = ax.fresh(shape(node)[dim], kind, f"aten.index.Tensor ({node.name})")
    return tuple(axes)


@rule(aten.roll.default, aten.flip.default)
def moved(walk: AxisReader, node: Node) -> Value:
    """The same kinds of axes, but other entries: no longer equal to the axes before."""
    axes = list(walk.of(node.args[0]))
    index = node.args[1] if node.target is aten.flip.default else argument(node, 2, "dims", [])
    for dim in dims(index or list(range(len(axes))), len(axes)):
        axes[dim] = renewed(axes[dim], shape(node)[dim], str(node.target))
    return tuple(axes)


@rule(aten.constant_pad_nd.default, aten.pad.default)
def pad(walk: AxisReader, node: Node) -> Value:
    """An axis that is padded or cropped is another axis of the same kind, also where both keep its size."""
    axes, sizes, amounts = list(walk.of(node.args[0])), shape(node), list(node.args[1])
    for pair in range(len(amounts) // 2):
        if amounts[2 * pair : 2 * pair + 2] != [0, 0]:
            dim = len(axes) - 1 - pair
            axes[dim] = renewed(axes[dim], sizes[dim], "padding")
    return tuple(axes)


@rule(aten.mean.dim, aten.sum.dim_IntList, aten.any.dim, aten.all.dim, aten.amax.default, aten.amin.default)
def reduce(walk: AxisReader, node: Node) -> Value:
    """The reduced axes go, or keep size 1."""
    axes = walk.of(node.args[0])
    index = argument(node, 1, "dim")
    gone = dims(index if index is not None else list(range(len(axes))), len(axes))
    keep = argument(node, 2, "keepdim", False)
    rest = tuple(() if dim in gone else axis for dim, axis in enumerate(axes) if keep or dim not in gone)
    for dim in gone:
        rest = marked(rest, walk.entry_of(axes[dim], node))
    return rest


@rule(aten.max.dim, aten.min.dim)
def extreme(walk: AxisReader, node: Node) -> Value:
    """The extreme entries of one axis, and where they stand: both have the axes that are left."""
    rest = reduce(walk, node)
    return [rest, rest]
