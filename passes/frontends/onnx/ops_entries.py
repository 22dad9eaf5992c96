"""Operators that cut tensors, and that pick, replace or add up their entries."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from jetvit.passes.frontends.onnx.call import Call, operator
from jetvit.passes.frontends.onnx.values import MAX_READ, SYMBOLS, Known, Number, UnsupportedError, known, same_number
from jetvit.patterns.wording import counted

_LAST = 2**31 - 1
"""Ends from here on mean "to the end"."""


@operator("Slice")
def slice_(call: Call) -> Tensor:
    """Ranges of axes; a negative step runs backwards."""
    x = call.tensor(0)
    if call.opset < 10:
        starts, ends, axes = call.attribute("starts"), call.attribute("ends"), call.attribute("axes")
        steps = None
    else:
        starts, ends = call.ints(1), call.ints(2)
        axes = call.axes(3)
        steps = call.ints(4) if call.has(4) else None
    axes = list(range(len(starts))) if axes is None else axes
    for place, axis in enumerate(axes):
        x = _cut(call, x, axis % x.ndim, starts[place], ends[place], steps[place] if steps else 1)
    return x


def _cut(call: Call, x: Tensor, dim: int, start: Number, end: Number, step: Number) -> Tensor:
    length = x.shape[dim]
    if isinstance(step, SYMBOLS):
        raise UnsupportedError("a slice whose step depends on the size of the input")
    if step > 0:
        first = same_number(start, 0) or (isinstance(start, int) and start <= -_LAST)
        last = (isinstance(end, int) and end >= _LAST) or same_number(end, length)
        if first and last and step == 1:
            return x
        return torch.ops.aten.slice.Tensor(x, dim, 0 if first else start, None if last else end, step)
    if any(isinstance(each, SYMBOLS) for each in (length, start, end)):
        whole = isinstance(start, int) and (start == -1 or start >= _LAST) and isinstance(end, int) and end <= -_LAST
        if whole and step == -1:
            return x.flip(dim)
        raise UnsupportedError("a slice that runs backwards from a place that depends on the size of the input")
    places = list(range(length))[slice(*_backwards(start, end, length), step)]
    return x.index_select(dim, call.as_tensor(known(places))) if places else x.narrow(dim, 0, 0)


def _backwards(start: int, end: int, length: int) -> tuple[int, int | None]:
    """Start and end as Python has them: ONNX clamps the end to −1, "before the first"."""
    start = max(min(start + length if start < 0 else start, length - 1), 0)
    end = end + length if end < 0 else end
    return start, None if end < 0 else end


@operator("Split")
def split(call: Call) -> list[Tensor]:
    """Consecutive parts of an axis; the last is the smaller one where they are not even."""
    x, dim = call.tensor(0), call.attribute("axis", 0) % call.tensor(0).ndim
    sizes: list[Number] | None = call.ints(1) if call.has(1) else call.attribute("split")
    if sizes is None:
        count = call.attribute("num_outputs", len(call.node.outputs))
        length = x.shape[dim]
        if not isinstance(length, int) or length % count == 0:
            return list(x.chunk(count, dim))
        each = -(-length // count)
        sizes = [each] * (count - 1) + [length - each * (count - 1)]
    return list(torch.split(x, sizes, dim))


@operator("Gather")
def gather(call: Call) -> Tensor:
    """Entries of an axis by their index; one known index takes the axis away."""
    x, axis = call.tensor(0), call.attribute("axis", 0)
    dim = axis % x.ndim
    indices = call.inputs[1]
    if isinstance(indices, Known):
        places = indices.list()
        if indices.shape == ():
            return x.select(dim, places[0])
        if len(places) == 1 and len(indices.shape) == 1 and isinstance(places[0], int):
            start = places[0]
            return torch.ops.aten.slice.Tensor(x, dim, start, None if start == -1 else start + 1, 1)
    if (pieces := _pieces(call, x, dim)) is not None:
        return pieces
    index = _wrapped(call.tensor(1).long(), x.shape[dim], isinstance(indices, Known) and _is_plain(indices))
    if index.ndim == 1:
        return x.index_select(dim, index)
    taken = x.index_select(dim, index.reshape(-1))
    return taken.reshape([*x.shape[:dim], *index.shape, *x.shape[dim + 1 :]])


def _pieces(call: Call, x: Tensor, dim: int) -> Tensor | None:
    """An axis cut into equal pieces, if that is what a matrix of indices does: how exporters write `unfold`.

    The matrix is [place in a piece, piece], for windows that touch and do not overlap.
    """
    shape, length = call.inputs[1].shape if call.inputs[1] is not None else (), x.shape[dim]
    if len(shape) != 2 or not isinstance(length, int) or length != shape[0] * shape[1] or length > MAX_READ:
        return None
    indices = call.inputs[1]
    numbers = indices if isinstance(indices, Known) else call.weights.numbers(call.node.inputs[1])
    size, count = shape
    if numbers is None or numbers.list() != [place + piece * size for place in range(size) for piece in range(count)]:
        return None
    return x.unflatten(dim, (count, size)).transpose(dim, dim + 1)


def _is_plain(indices: Known) -> bool:
    return all(isinstance(item, int) and item >= 0 for item in indices.list())


def _wrapped(index: Tensor, length: Number, is_plain: bool = False) -> Tensor:
    """Indices counted from the front."""
    return index if is_plain else torch.where(index < 0, index + length, index)


@operator("GatherElements")
def gather_elements(call: Call) -> Tensor:
    """One entry for each index, along an axis."""
    x, dim = call.tensor(0), call.attribute("axis", 0)
    return torch.gather(x, dim, _wrapped(call.tensor(1).long(), x.shape[dim]))


@operator("GatherND")
def gather_nd(call: Call) -> Tensor:
    """Slices by their index tuples."""
    x, indices, batch = call.tensor(0), call.tensor(1).long(), call.attribute("batch_dims", 0)
    depth = indices.shape[-1]
    if not isinstance(depth, int):
        raise UnsupportedError("index tuples of a length that depends on the input")
    parts = [_wrapped(indices[..., place], x.shape[batch + place]) for place in range(depth)]
    lead = []
    for dim in range(batch):
        sizes = [1] * (indices.ndim - 1)
        sizes[dim] = x.shape[dim]
        lead.append(torch.arange(x.shape[dim]).reshape(sizes))
    return x[(*lead, *parts)]


@operator("ScatterND")
def scatter_nd(call: Call) -> Tensor:
    """Slices replaced by their index tuples."""
    x, indices, updates = call.tensor(0), call.tensor(1).long(), call.tensor(2)
    if (reduction := call.attribute("reduction", "none")) not in ("none", "add"):
        raise UnsupportedError(f"reduction {reduction!r}")
    parts = [_wrapped(indices[..., place], x.shape[place]) for place in range(int(indices.shape[-1]))]
    return x.index_put(tuple(parts), updates, accumulate=reduction == "add")


@operator("ScatterElements", "Scatter")
def scatter_elements(call: Call) -> Tensor:
    """One entry replaced for each index, along an axis."""
    x, dim, updates = call.tensor(0), call.attribute("axis", 0), call.tensor(2)
    index = _wrapped(call.tensor(1).long(), x.shape[dim])
    reduction = call.attribute("reduction", "none")
    if reduction == "none":
        return x.scatter(dim, index, updates)
    names = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}
    return x.scatter_reduce(dim, index, updates, names[reduction], include_self=True)


@operator("Pad")
def pad(call: Call) -> Tensor:
    """With a number, a reflection, the edge or the other side; negative amounts crop."""
    x, mode = call.tensor(0), call.attribute("mode", "constant")
    amounts = call.attribute("pads") if call.opset < 11 else call.ints(1)
    axes = call.axes(3) or list(range(len(amounts) // 2))
    fill = call.number_or_tensor(2) if call.has(2) and call.opset >= 11 else call.attribute("value", 0.0)
    by_dim: dict[int, tuple[Number, Number]] = {}
    for place, axis in enumerate(axes):
        by_dim[axis % x.ndim] = amounts[place], amounts[place + len(axes)]
    wanted = [dim for dim, pair in by_dim.items() if not all(same_number(amount, 0) for amount in pair)]
    if not wanted:
        return x
    flat: list[Number] = []
    for dim in range(x.ndim - 1, min(wanted) - 1, -1):
        flat += by_dim.get(dim, (0, 0))
    if mode == "constant":
        if isinstance(fill, Tensor):
            raise UnsupportedError("padding with a value that depends on the input")
        return F.pad(x, flat, value=int(fill) if not x.dtype.is_floating_point else fill)
    names = {"reflect": "reflect", "edge": "replicate", "wrap": "circular"}
    spatial = len(flat) // 2
    if mode not in names or x.ndim > 5:
        raise UnsupportedError(f"mode {mode!r} of a tensor with {counted(x.ndim, 'axis', 'axes')}")
    if spatial > 3 or any(isinstance(amount, int) and amount < 0 for amount in flat):
        raise UnsupportedError(f"mode {mode!r} over {counted(spatial, 'axis', 'axes')}, or with negative amounts")
    padded = x.reshape(1, 1, *x.shape) if x.ndim <= spatial else x.unsqueeze(0) if x.ndim == spatial + 1 else x
    while padded.ndim > spatial + 2:  # F.pad wants [batch, channel, *padded axes] for these modes
        padded = padded.flatten(0, 1)
    result = F.pad(padded, flat, mode=names[mode])
    kept = list(x.shape[: x.ndim - spatial])
    return result.reshape([*kept, *result.shape[-spatial:]])


@operator("Trilu")
def trilu(call: Call) -> Tensor:
    """The upper or lower triangle."""
    x, offset = call.tensor(0), call.known(1).number if call.has(1) else 0
    return x.triu(offset) if call.attribute("upper", 1) else x.tril(offset)


@operator("NonZero")
def non_zero(call: Call) -> Tensor:
    """Indices, one column for each entry that is not zero."""
    return call.tensor(0).nonzero().t()


@operator("OneHot")
def one_hot(call: Call) -> Tensor:
    """A new axis with one entry on."""
    indices, depth, values = call.tensor(0).long(), call.known(1).number, call.tensor(2)
    axis = call.attribute("axis", -1)
    dim = axis % (indices.ndim + 1)
    places = torch.arange(depth).reshape([-1] + [1] * (indices.ndim - dim))
    return torch.where(_wrapped(indices, depth).unsqueeze(dim) == places, values[1], values[0])


@operator("CumSum")
def cum_sum(call: Call) -> Tensor:
    """Running sums."""
    x, dim = call.tensor(0), call.known(1).number
    x = x.flip(dim) if call.attribute("reverse", 0) else x
    total = x.cumsum(dim, dtype=x.dtype)
    total = total - x if call.attribute("exclusive", 0) else total
    return total.flip(dim) if call.attribute("reverse", 0) else total


@operator("TopK")
def top_k(call: Call) -> list[Tensor]:
    """The largest or smallest entries of an axis, and where they are."""
    count = call.known(1).number if call.opset >= 10 else call.attribute("k")
    largest, ordered = bool(call.attribute("largest", 1)), bool(call.attribute("sorted", 1))
    return list(torch.topk(call.tensor(0), count, call.attribute("axis", -1), largest, ordered))
