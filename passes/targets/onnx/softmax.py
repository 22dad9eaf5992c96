"""The bodies of full and of window attention, and the RoPE that they share with linear attention.

They restate the ATen references in standard ONNX operators, which no tensor function can emit; a property test compares
them in ONNX Runtime with the operators.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jetvit.kernels.window_attention.windows import window_runs
from jetvit.passes.targets.onnx.body import Body, Grid, Shape

if TYPE_CHECKING:
    import onnx_ir as ir


def full_attention(body: Body, shape: Shape, arguments: dict[str, Any]) -> ir.Value:
    """The body of `jetvit::full_attention`."""
    q, k, v = (arguments[name] for name in ("q", "k", "v"))
    if arguments["rope_y"] is not None:
        grid = Grid.of(body, q, shape, arguments["grid_h"], arguments["grid_w"], arguments["extra_before"])
        tables = rope_tables(body, shape, arguments["rope_y"], arguments["rope_x"], grid)
        q, k = (rotate(body, shape, x, tables, shape.dtype) for x in (q, k))
    return _over_tokens(body, shape, q, k, v, arguments["scale"])


def window_attention(body: Body, shape: Shape, arguments: dict[str, Any]) -> ir.Value:
    """The body of `jetvit::window_attention`: cut by slices where the grid is known, by indices where it is not."""
    q, k, v = (arguments[name] for name in ("q", "k", "v"))
    height, width, scale = arguments["grid_h"], arguments["grid_w"], arguments["scale"]
    windows = arguments["window_h"], arguments["window_w"]
    grid = Grid.of(body, q, shape, height, width, arguments["extra_before"])
    if arguments["rope_y"] is not None:
        tables = rope_tables(body, shape, arguments["rope_y"], arguments["rope_x"], grid)
        q, k = (rotate(body, shape, x, tables, shape.dtype) for x in (q, k))
    if all(isinstance(each, int) for each in (height, width)) and windows[0] >= height and windows[1] >= width:
        return _over_tokens(body, shape, q, k, v, scale)  # one window that covers the grid: the extra tokens see it all
    # The slices have to know the number of extra tokens too: a Reshape takes a computed 0 for another length.
    static = all(isinstance(each, int) for each in (height, width, grid.before, grid.after))
    cut = _sliced_windows if static else _masked_windows
    extra_kv = None if grid.alone else [grid.extra(body, x) for x in (k, v)]
    out = cut(body, shape, [grid.part(body, x) for x in (q, k, v)], extra_kv, grid, windows, scale)
    if grid.alone:
        return out
    # ONNX Runtime's Attention refuses to be given no queries, which the decomposed form takes.
    extra = _over_tokens(body, shape, grid.extra(body, q), k, v, scale, native=static)
    return grid.around(body, extra, out)


def rope_tables(body: Body, shape: Shape, rope_y: ir.Value, rope_x: ir.Value, grid: Grid) -> tuple[ir.Value, ir.Value]:
    """Cosines and sines [token, 1, dim] of every token; extra tokens turn by no angle."""
    quarter = shape.head_dim // 4
    # The tables are fp32 or fp64, whatever q is.
    rope_y, rope_x = (body.cast(x, shape.wide) for x in (rope_y, rope_x))
    rope_y = body.reshape(rope_y, -1, 1, 2, quarter)
    rope_x = body.reshape(rope_x, 1, -1, 2, quarter)
    rope_y = body.op("Expand", rope_y, body.ints(1, grid.width, 1, 1))
    rope_x = body.op("Expand", rope_x, body.ints(grid.height, 1, 1, 1))
    angles = body.reshape(body.op("Concat", rope_y, rope_x, axis=3), -1, 2, 2 * quarter)
    cos, sin = body.split(angles, 2, axis=1)
    cos = body.concat([cos, cos], 2)
    sin = body.concat([body.op("Neg", sin), sin], 2)
    before, after = [grid.before, 0, 0], [grid.after, 0, 0]
    return body.pad(cos, before, after, body.constant(1.0, shape.wide)), body.pad(sin, before, after)


def rotate(body: Body, shape: Shape, x: ir.Value, tables: tuple[ir.Value, ir.Value], dtype: str) -> ir.Value:
    """q or k [batch, token, head, dim] after RoPE, which is computed in fp32 or fp64, in `dtype`."""
    cos, sin = tables
    x = body.cast(x, shape.wide, shape.dtype)
    first, second = body.split(x, 2, axis=3)
    turned = body.op("Mul", body.concat([second, first], 3), sin)
    return body.cast(body.op("Add", body.op("Mul", x, cos), turned), dtype, shape.wide)


def _over_tokens(
    body: Body, shape: Shape, q: ir.Value, k: ir.Value, v: ir.Value, scale: float, native: bool = True
) -> ir.Value:
    """Attention of q, k and v [batch, token, head, dim]; `native` as `_attend` takes it."""
    q, k, v = (body.transpose(x, 0, 2, 1, 3) for x in (q, k, v))
    return body.transpose(_attend(body, shape, q, k, v, scale, native=native), 0, 2, 1, 3)


def _attend(
    body: Body,
    shape: Shape,
    q: ir.Value,
    k: ir.Value,
    v: ir.Value,
    scale: float,
    mask: ir.Value | None = None,
    native: bool = True,
) -> ir.Value:
    """Attention of q, k and v […, head, token, dim].

    `mask` is True where a key takes part; `native` allows the Attention operator, where the opset has it.
    """
    # With a mask ONNX Runtime wants it as large as the scores, and it has no such operator in fp64.
    if native and mask is None and body.opset >= 23 and shape.dtype != "DOUBLE":
        return body.op("Attention", q, k, v, scale=scale)
    # The scale comes before the product, which then stays in the range of fp16.
    q = body.op("Mul", q, body.constant(scale, shape.dtype))
    axes = (0, 1, 3, 2) if mask is None else (0, 1, 2, 4, 3)
    scores = body.op("MatMul", q, body.transpose(k, *axes))
    if mask is not None:
        scores = body.op("Where", mask, scores, body.constant(float("-inf"), shape.dtype))
    return body.op("MatMul", body.op("Softmax", scores, axis=-1), v)


def _sliced_windows(
    body: Body,
    shape: Shape,
    qkv: list[ir.Value],
    extra_kv: list[ir.Value] | None,
    grid: Grid,
    windows: tuple[int, int],
    scale: float,
) -> ir.Value:
    """Attention inside the windows of a known grid; the short last row and column of windows are attended to apart."""
    heads, dim = shape.heads, shape.head_dim
    qkv = [body.reshape(x, 0, grid.height, grid.width, heads, dim) for x in qkv]
    rows = []
    for y, side_h in window_runs(grid.height, windows[0]):
        row = []
        for x, side_w in window_runs(grid.width, windows[1]):
            count_h, count_w = len(y) // side_h, len(x) // side_w
            own = []
            for part in qkv:
                part = part if len(y) == grid.height else body.slice(part, y.start, y.stop, 1)
                part = part if len(x) == grid.width else body.slice(part, x.start, x.stop, 2)
                part = body.reshape(part, 0, count_h, side_h, count_w, side_w, heads, dim)
                part = body.transpose(part, 0, 1, 3, 5, 2, 4, 6)
                own.append(body.reshape(part, -1, heads, side_h * side_w, dim))
            if extra_kv is not None:
                for index, part in enumerate(extra_kv, start=1):
                    part = body.op("Unsqueeze", body.transpose(part, 0, 2, 1, 3), body.constant([1]))
                    part = body.op("Expand", part, body.ints(1, count_h * count_w, 1, 1, 1))
                    part = body.reshape(part, -1, heads, grid.before + grid.after, dim)
                    own[index] = body.concat([own[index], part], 2)
            out = _attend(body, shape, own[0], own[1], own[2], scale)
            out = body.reshape(out, -1, count_h, count_w, heads, side_h, side_w, dim)
            out = body.transpose(out, 0, 1, 4, 2, 5, 3, 6)
            row.append(body.reshape(out, -1, len(y), len(x), heads, dim))
        rows.append(body.concat(row, 2))
    return body.reshape(body.concat(rows, 1), 0, grid.tokens, heads, dim)


def _masked_windows(
    body: Body,
    shape: Shape,
    qkv: list[ir.Value],
    extra_kv: list[ir.Value] | None,
    grid: Grid,
    windows: tuple[int, int],
    scale: float,
) -> ir.Value:
    """Attend inside the windows of a grid of any size: gather tokens by index, fill up and mask short windows."""
    heads, dim = shape.heads, shape.head_dim
    height, width = grid.height, grid.width
    count_h, count_w = body.ceil_divide(height, windows[0]), body.ceil_divide(width, windows[1])
    side_h, side_w = body.ceil_divide(height, count_h), body.ceil_divide(width, count_w)
    y = body.reshape(_range(body, body.multiply(count_h, side_h)), count_h, 1, side_h, 1)
    x = body.reshape(_range(body, body.multiply(count_w, side_w)), 1, count_w, 1, side_w)
    flat = (body.multiply(count_h, count_w), body.multiply(side_h, side_w))
    last_y, last_x = (body.ints(body.subtract(size, 1)) for size in (height, width))
    token = body.op("Mul", body.op("Min", y, last_y), body.ints(width))
    token = body.reshape(body.op("Add", token, body.op("Min", x, last_x)), *flat)
    real = body.op("And", body.op("Less", y, body.ints(height)), body.op("Less", x, body.ints(width)))
    real = body.reshape(real, 1, flat[0], 1, 1, flat[1])
    own = [body.transpose(body.op("Gather", part, token, axis=1), 0, 1, 3, 2, 4) for part in qkv]
    if extra_kv is not None:
        for index, part in enumerate(extra_kv, start=1):
            part = body.op("Unsqueeze", body.transpose(part, 0, 2, 1, 3), body.constant([1]))
            part = body.op("Expand", part, body.ints(1, flat[0], 1, 1, 1))
            own[index] = body.concat([own[index], part], 3)
        extra = body.add(grid.before, grid.after)
        seen = body.op("Expand", body.constant([True], "BOOL"), body.ints(1, flat[0], 1, 1, extra))
        real = body.concat([real, seen], 4)
    out = _attend(body, shape, own[0], own[1], own[2], scale, real)
    out = body.reshape(body.transpose(out, 0, 1, 3, 2, 4), 0, -1, heads, dim)
    # Back: the place of token (y, x) is window · tokens of a window + place in the window.
    y, x = body.reshape(_range(body, height), -1, 1), _range(body, width)
    row = body.op("Mul", body.op("Div", y, body.ints(side_h)), body.ints(count_w))
    window_index = body.op("Add", row, body.op("Div", x, body.ints(side_w)))
    place = body.op("Add", body.op("Mul", window_index, body.ints(side_h)), body.op("Mod", y, body.ints(side_h)))
    place = body.op("Add", body.op("Mul", place, body.ints(side_w)), body.op("Mod", x, body.ints(side_w)))
    return body.op("Gather", out, body.reshape(place, -1), axis=1)


def _range(body: Body, size: Any) -> ir.Value:
    """0, 1, … size − 1, int64."""
    limit = body.op("Squeeze", body.ints(size), body.constant([0]))
    return body.op("Range", body.constant(0), limit, body.constant(1))
