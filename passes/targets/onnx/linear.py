"""The body of linear attention.

It restates the ATen reference in standard ONNX operators, which no tensor function can emit; a property test compares
it in ONNX Runtime with the operator.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from jetvit.passes.targets.onnx.body import Body, Grid, Shape
from jetvit.passes.targets.onnx.softmax import rope_tables, rotate

if TYPE_CHECKING:
    import onnx_ir as ir


def linear_attention(body: Body, shape: Shape, arguments: dict[str, Any]) -> ir.Value:
    """The body of `jetvit::linear_attention`; all sums are fp32, or fp64 for fp64."""
    q, k, v = (arguments[name] for name in ("q", "k", "v"))
    grid = Grid.of(body, q, shape, arguments["grid_h"], arguments["grid_w"], arguments["extra_before"])
    if arguments["rope_y"] is not None:
        tables = rope_tables(body, shape, arguments["rope_y"], arguments["rope_x"], grid)
        q, k = (rotate(body, shape, x, tables, shape.wide) for x in (q, k))
    else:
        q, k = (body.cast(x, shape.wide, shape.dtype) for x in (q, k))
    v = body.cast(v, shape.wide, shape.dtype)
    q, k = _features(body, q, k, arguments["feature_map"])
    out = _attend(body, q, k, v, body.constant(arguments["eps"], shape.wide))
    if arguments["conv_size"] > 0:
        convolved = _convolution(body, shape, v, grid, arguments)
        convolved = body.reshape(convolved, 0, -1, shape.heads, shape.head_dim)
        out = body.op("Add", out, body.pad(convolved, [0, grid.before, 0, 0], [0, grid.after, 0, 0]))
    return body.cast(out, shape.dtype, shape.wide)


def _features(body: Body, q: ir.Value, k: ir.Value, feature_map: str) -> tuple[ir.Value, ir.Value]:
    """q and k [batch, token, head, dim] to their features [batch, token, head, feature]."""
    if feature_map == "hedgehog":
        both = [[body.op("Softmax", each, axis=-1) for each in (x, body.op("Neg", x))] for x in (q, k)]
        return body.concat(both[0], 3), body.concat(both[1], 3)
    if feature_map == "relu_centred":
        k = body.op("Sub", k, body.op("ReduceMean", k, body.constant([1]), keepdims=1))
    return body.op("Relu", q), body.op("Relu", k)


def _attend(body: Body, q: ir.Value, k: ir.Value, v: ir.Value, eps: ir.Value) -> ir.Value:
    """q·(kᵀv) / (q·Σk + eps) for features q, k [batch, token, head, feature] and v [batch, token, head, dim]."""
    q, v = (body.transpose(x, 0, 2, 1, 3) for x in (q, v))
    k = body.transpose(k, 0, 2, 3, 1)
    num = body.op("MatMul", q, body.op("MatMul", k, v))
    den = body.op("MatMul", q, body.op("ReduceSum", k, body.constant([3]), keepdims=1))
    return body.transpose(body.op("Div", num, body.op("Add", den, eps)), 0, 2, 1, 3)


def _convolution(body: Body, shape: Shape, v: ir.Value, grid: Grid, arguments: dict[str, Any]) -> ir.Value:
    """The depthwise convolution of v [batch, token, head, dim]: [batch, grid token, channel]."""
    size, channels = arguments["conv_size"], shape.heads * shape.head_dim
    v = body.reshape(grid.part(body, v), 0, -1, channels)
    # The weights may have any of the four dtypes.
    given = {name: arguments[name] for name in ("w1", "b1", "w2", "b2") if arguments[name] is not None}
    weights = {name: body.cast(value, shape.wide) for name, value in given.items()}
    kernel = weights["b2"]
    if "w1" in weights:
        mean = body.op("ReduceMean", v, body.constant([1]), keepdims=0)
        hidden = body.op("Gemm", mean, weights["w1"], weights["b1"], transB=1)
        hidden = body.op("Mul", hidden, body.op("Sigmoid", hidden))
        kernel = body.op("Gemm", hidden, weights["w2"], weights["b2"], transB=1)  # [batch, channel·K·K]
    images = shape.batch if "w1" in weights else 1
    if size == 1:
        return body.op("Mul", v, body.reshape(kernel, -1, 1, channels))
    if images is None or shape.wide == "DOUBLE":  # ONNX Runtime has no Conv in fp64
        return _by_taps(body, v, kernel, grid, size, channels)
    # A kernel an image: the images become channels of one, for `group` is an attribute.
    groups = images * channels
    x = body.transpose(v, 0, 2, 1)
    x = body.reshape(x, *((1, groups) if images > 1 else (0, 0)), grid.height, grid.width)
    kernel = body.reshape(kernel, groups, 1, size, size)
    out = body.op("Conv", x, kernel, group=groups, kernel_shape=[size, size], pads=[size // 2] * 4)
    return body.transpose(body.reshape(out, *((images, channels) if images > 1 else (0, 0)), -1), 0, 2, 1)


def _by_taps(body: Body, v: ir.Value, kernel: ir.Value, grid: Grid, size: int, channels: int) -> ir.Value:
    """The convolution for a batch of any size, a kernel an image, as a sum of shifted products."""
    half = size // 2
    x = body.reshape(v, 0, grid.height, grid.width, channels)
    x = body.pad(x, [0, half, half, 0], [0, half, half, 0])
    taps = body.transpose(body.reshape(kernel, -1, 1, 1, channels, size * size), 4, 0, 1, 2, 3)
    products = []
    for dy in range(size):
        row = body.slice(x, dy, body.add(grid.height, dy), 1)
        for dx in range(size):
            tap = body.op("Gather", taps, body.constant(dy * size + dx), axis=0)
            products.append(body.op("Mul", body.slice(row, dx, body.add(grid.width, dx), 2), tap))
    out = functools.reduce(lambda total, product: body.op("Add", total, product), products)
    return body.reshape(out, 0, -1, channels)
