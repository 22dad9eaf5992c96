"""Rules of the layout walk for convolutions, pooling and resampling of sequences, maps and films.

A convolution makes new features. Along the other axes it keeps the places where its stride is 1 and no size changes:
each entry of the result stands over the same entry of the input. Elsewhere these axes are new.
"""

from __future__ import annotations

import torch
from torch.fx import Node

from jetvit.patterns import axes as ax
from jetvit.patterns.axes import Axis
from jetvit.patterns.calls import argument, shape
from jetvit.patterns.rules import AxisReader, Value, rule
from jetvit.patterns.sizes import Size, same

aten = torch.ops.aten


@rule(aten.conv1d.default, aten.conv1d.padding)
def conv1d(walk: AxisReader, node: Node) -> Value:
    """Features and one row of tokens, [batch, channel, token]: a projection where the kernel is 1."""
    axes, sizes = walk.of(node.args[0]), shape(node)
    if len(axes) != 3:
        return None
    features = ax.fresh(sizes[1], "feature")
    if _keeps_places(node, axes[2:], sizes[2:]):
        return (axes[0], features, axes[2])
    return (axes[0], features, ax.fresh(sizes[2], "unknown", f"{node.target} ({node.name})"))


@rule(
    aten.conv2d.default, aten.conv2d.padding, aten.convolution.default, aten.conv_transpose2d.input,
    aten.max_pool2d.default, aten.avg_pool2d.default, aten.adaptive_avg_pool2d.default,
    aten.upsample_bicubic2d.vec, aten.upsample_bilinear2d.vec, aten.upsample_nearest2d.vec,
    aten.upsample_bicubic2d.default, aten.upsample_bilinear2d.default, aten.upsample_nearest2d.default,
    aten._upsample_bicubic2d_aa.vec, aten._upsample_bilinear2d_aa.vec, aten.pixel_shuffle.default,
    aten.pixel_unshuffle.default,
    aten._upsample_bicubic2d_aa.default, aten._upsample_bilinear2d_aa.default,
)  # fmt: skip
def map2d(walk: AxisReader, node: Node) -> Value:
    """A two-dimensional map in, a two-dimensional map out: what is spatial before is spatial after."""
    axes, sizes = walk.of(node.args[0]), shape(node)
    if len(axes) != 4 or len(sizes) != 4:
        return None
    features = axes[1]
    if isinstance(node.args[1], Node):  # a convolution: it has a weight
        features = ax.fresh(sizes[1], "feature")
        if not _is_raw(axes[2:]) and _keeps_places(node, axes[2:], sizes[2:]):
            return (axes[0], features, *axes[2:])
    elif not same(ax.axis_size(features), sizes[1]):
        features = ax.fresh(sizes[1], "unknown", node.name)
    spatial = all(_is_spatial(axis) for axis in axes[2:])
    kinds = ("row", "col") if spatial else ("unknown", "unknown")
    return (axes[0], features, *(ax.fresh(s, kind, node.name) for s, kind in zip(sizes[2:], kinds, strict=True)))


@rule(aten.conv3d.default, aten.conv3d.padding, aten.max_pool3d.default, aten.avg_pool3d.default)
def map3d(walk: AxisReader, node: Node) -> Value:
    """A film in, a film out: frames, or tubelets of frames, of two-dimensional maps."""
    axes, sizes = walk.of(node.args[0]), shape(node)
    if len(axes) != 5 or not all(_is_spatial(axis) for axis in axes[3:]):
        return None
    features = axes[1]
    if isinstance(node.args[1], Node):  # a convolution: it has a weight
        features = ax.fresh(sizes[1], "feature")
        if not _is_raw(axes[3:]) and _keeps_places(node, axes[2:], sizes[2:]):
            return (axes[0], features, *axes[2:])
    kinds = ("input", "row", "col")
    return (axes[0], features, *(ax.fresh(s, kind, node.name) for s, kind in zip(sizes[2:], kinds, strict=True)))


@rule(aten.im2col.default)
def im2col(walk: AxisReader, node: Node) -> Value:
    """Patches as columns: [batch, channel · patch, row · col]."""
    axes, (kernel, dilation, padding, stride) = walk.of(node.args[0]), node.args[1:5]
    if len(axes) != 4 or not all(_is_spatial(axis) for axis in axes[2:]):
        return None
    sizes = shape(node.args[0])[2:]
    grid = [
        (size + 2 * p - d * (k - 1) - 1) // s + 1
        for size, k, d, p, s in zip(sizes, kernel, dilation, padding, stride, strict=True)
    ]
    tokens = ax.fresh(grid[0], "row", node.name) + ax.fresh(grid[1], "col", node.name)
    return (axes[0], ax.fresh(shape(node)[1], "feature"), tokens)


def _is_spatial(axis: Axis) -> bool:
    """An axis of size 1, of a map, or of a user's image."""
    return not axis or (len(axis) == 1 and axis[0].segments is None and axis[0].kind in ("row", "col", "input"))


def _is_raw(axes: tuple[Axis, ...]) -> bool:
    """True for the axes of a user's image, which are no rows and columns of a map yet."""
    return any(atom.kind == "input" and atom.pieces is None for axis in axes for atom in axis)


def _keeps_places(node: Node, axes: tuple[Axis, ...], sizes: tuple[Size, ...]) -> bool:
    """True for a convolution of stride 1 that changes no size along these axes."""
    strides = argument(node, 3, "stride", 1)
    strides = strides if isinstance(strides, list | tuple) else [strides]
    if any(stride != 1 for stride in strides):
        return False
    return all(same(ax.axis_size(axis), size) for axis, size in zip(axes, sizes, strict=True))
