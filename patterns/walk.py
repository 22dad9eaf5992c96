"""The layout walk: one forward pass that tells what every axis of every tensor in a graph is made of.

`LayoutWalk(view)` gives `axes[node]` for each live node: a tuple of axes for a tensor, a list of them for a tuple of
tensors. Operators are rules in a table; one that is not there makes axes of kind "unknown" that name the operator, so
that an attention over such an axis is refused with the true reason. The walk is linear in the number of nodes.
"""

from __future__ import annotations

import operator
import string
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.fx import Node

from jetvit.patterns import axes as ax
from jetvit.patterns import ranges
from jetvit.patterns.axes import Atom, Axes, Axis
from jetvit.patterns.calls import argument, shape, traced_value
from jetvit.patterns.constants import Constants
from jetvit.patterns.operators import SPLITS
from jetvit.patterns.regions import GraphView
from jetvit.patterns.sizes import Size, is_one, quotient, same
from jetvit.patterns.storage import storage, writes
from jetvit.patterns.wording import operator_name
from jetvit.torch_private import OpOverload

aten = torch.ops.aten
Value = Axes | list[Any] | None
Rule = Callable[["LayoutWalk", Node], Value]
RULES: dict[Any, Rule] = {}


_LIKE_ANOTHER = {aten.type_as.default, aten.expand_as.default, aten.view_as.default, aten.reshape_as.default}
_FILLED = {
    aten.zeros_like.default, aten.ones_like.default, aten.new_zeros.default, aten.new_ones.default,
}  # fmt: skip
_WRITES_IN_PLACE = {aten.fill_, aten.normal_, aten.uniform_, aten.bernoulli_}
"""Writes of no other tokens, beside those of elementwise operators."""


class LayoutWalk:
    """The axes of every node of a view, and which of its inputs each depends on.

    Args:
        view: of the graph.
        tensor_names: the placeholders and attributes that are parameters, buffers and constants.
        told: the axes of inputs of which more is known than their shape.

    Attributes:
        axes: node → axes of its tensor (a list of axes where it yields several tensors).
        sources: node → the subset of {"input", "weight"} that its value depends on; empty for a constant.
        writes: the nodes that write in place, in order, with what they write to.
        written: the nodes whose memory the graph writes to in place.
    """

    def __init__(self, view: GraphView, tensor_names: Any, told: Mapping[Node, Axes] | None = None):
        self.view = view
        told = told or {}
        self.axes: dict[Node, Value] = {}
        self.sources: dict[Node, frozenset[str]] = {}
        self.writes = writes(view)
        self.written = {target for _, target in self.writes}
        targets: dict[Node, list[Node]] = {}
        for node, target in self.writes:
            targets.setdefault(node, []).append(target)
        self._looking_at: dict[Node, list[Node]] = {target: [] for target in self.written}
        for node in view.nodes if self.written else ():
            if (memory := storage(node, view)) in self._looking_at:
                self._looking_at[memory].append(node)
        self._chosen: dict[tuple[Axis, Any], Atom] = {}
        self._constants = Constants(view, self.sources, self.writes)
        for node in view.nodes:
            resolved = view.resolve(node)
            if resolved is not node:
                self.axes[node], self.sources[node] = self.axes.get(resolved), self.sources.get(resolved, frozenset())
                continue
            used = node.all_input_nodes
            if node.target in _LIKE_ANOTHER:  # only the dtype, or the sizes, of the other tensor count
                used = used[:1]
            elif node.target in _FILLED:
                used = []
            self.sources[node] = frozenset().union(*(self.sources.get(each, ()) for each in used))
            if node.op in ("placeholder", "get_attr"):
                weight = node in tensor_names
                self.sources[node] = frozenset(["weight" if weight else "input"])
                self.axes[node] = told.get(node) or self._entry(node, weight)
            elif node.op == "call_function":
                if node.target is aten.sym_size.int:
                    self.sources[node] = frozenset()  # a size is nothing that an image holds
                self.axes[node] = self._call(node)
                if node in targets and not self._keeps_tokens(node):
                    self._forget(targets[node], f"{operator_name(node.target)}, which writes other tokens in place")

    def _forget(self, targets: list[Node], origin: str) -> None:
        """Nothing is known any more of what looks at some memory, and why."""
        for target in targets:
            for each in self._looking_at[target]:
                if each in self.axes:
                    self.axes[each] = unknown(each, origin=origin)

    def of(self, node: Any) -> Axes:
        """The axes of a tensor argument; a number has none."""
        value = self.axes.get(node) if isinstance(node, Node) else ()
        return value if isinstance(value, tuple) else ()

    def is_always(self, node: Node, value: float, reader: Node) -> bool:
        """True if every entry of a tensor is provably this number where another node reads it."""
        if not self._is_written(node) and ranges.is_always(node, value):
            return True
        known = self.constant(node, reader)
        return known is not None and bool((known == value).all())

    def constant(self, node: Node, reader: Node) -> torch.Tensor | None:
        """The value, on the CPU, that a node has where another one reads it, if nothing but constants makes it."""
        return self._constants.value(node, reader)

    def _keeps_tokens(self, node: Node) -> bool:
        """True if what an in-place node writes into a place of a tensor is no other token than stands there.

        An elementwise operator changes the token of each place, as it does out of place. A copy has to be of the same
        tokens; numbers, and what is the same for every image, may be copied anywhere.
        """
        if not isinstance(node.target, OpOverload):
            return True  # the body of a higher-order operator writes to none of its operands, in all that is known
        if node.target is not aten.copy_.default:
            elementwise = torch.Tag.pointwise in node.target.tags or RULES.get(node.target) is like_first
            return elementwise or node.target.overloadpacket in _WRITES_IN_PLACE
        places, axes = self.of(node.args[0]), self.of(node.args[1])
        pairs = zip(reversed(axes), reversed(places), strict=False)
        return len(axes) <= len(places) and all(
            ax.rank_of(axis) <= 0 or _in_place(axis, place) for axis, place in pairs
        )

    def _is_written(self, node: Node) -> bool:
        """True if something writes to a tensor, or to what it is made from."""
        stack, seen = [node], set()
        while stack:
            each = stack.pop()
            if each not in seen:
                seen.add(each)
                if storage(each, self.view) in self.written:
                    return True
                stack.extend(each.all_input_nodes)
        return False

    def entry_of(self, axis: Axis, index: Any) -> Axis:
        """What is left of an axis when one entry is taken: an atom of size 1 that tells one entry from another.

        Nothing is left of features, which hold q, k and v side by side; two images of a batch or two frames are two
        sequences, and attention from one to the other is no self-attention.
        """
        if ax.rank_of(axis) < 3 and not any(atom.kind == "unknown" for atom in axis):
            return ()
        return (self._chosen.setdefault((axis, index), Atom(1, "input", "one entry of an axis")),)

    @staticmethod
    def _entry(node: Node, weight: bool) -> Value:
        value = node.meta.get("val")
        if not isinstance(value, torch.Tensor):
            return None
        if weight:
            return ax.fresh_axes(value.shape, "weight")
        return tuple(ax.fresh(size, "input", node.name, (node.name, dim)) for dim, size in enumerate(value.shape))

    def _call(self, node: Node) -> Value:
        value = node.meta.get("val")
        rule = RULES.get(node.target) or BY_NAME.get(str(node.target))
        result: Value = None
        if rule is not None:
            result = rule(self, node)
        elif isinstance(node.target, OpOverload) and node.target.namespace == "jetvit":
            result = attention(self, node)
        elif isinstance(node.target, OpOverload) and torch.Tag.pointwise in node.target.tags:
            result = pointwise(self, node)
        if isinstance(result, tuple) and isinstance(value, torch.Tensor) and len(result) == value.dim():
            return result
        if isinstance(result, list):
            return result
        # What is made of weights and constants alone is the same for every image, whatever makes it.
        return unknown(node, "weight" if self.sources[node] <= {"weight"} else "unknown")


def _in_place(axis: Axis, place: Axis) -> bool:
    """True if the entries of an axis can go along another: the same ones, or others of the same kind.

    Features can take the place of features, and the rows of a map those of another map of as many rows.
    """
    axis, place = (tuple(atom for atom in each if not is_one(atom.size)) for each in (axis, place))
    if not axis or ax.alike(axis, place) or all(atom.kind == "feature" for atom in axis + place):
        return True
    whole = len(axis) == len(place) == 1 and axis[0].cut is None and place[0].cut is None
    return whole and axis[0].kind == place[0].kind in ("row", "col")


def unknown(node: Node, kind: str = "unknown", origin: str = "") -> Value:
    """Axes of an operator that the walk does not know, named after it, or of which an origin is known."""

    def make(value: Any) -> Value:
        if isinstance(value, torch.Tensor):
            return ax.fresh_axes(value.shape, kind, origin or f"{operator_name(node.target)} ({node.name})")
        return [make(item) for item in value] if isinstance(value, list | tuple) else None

    return make(node.meta.get("val"))


def rule(*targets: Any) -> Callable[[Rule], Rule]:
    """Enter a function into the table for these operators."""

    def enter(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(targets, function))
        return function

    return enter


def dims(index: Any, rank: int) -> list[int]:
    """Dimension numbers counted from the front."""
    return [i % rank for i in (index if isinstance(index, list | tuple) else [index])] if rank else []


# Elementwise ------------------------------------------------------------------------------------------------------


@rule(aten.where.ScalarSelf, aten.where.ScalarOther, aten.where.Scalar)
def pointwise(walk: LayoutWalk, node: Node) -> Value:
    """Every tensor argument is broadcast against the others."""
    return ax.broadcast([walk.of(used) for used in node.all_input_nodes])


@rule(
    aten.to.dtype, aten.to.device, aten.to.dtype_layout, aten.to.other, aten._to_copy.default, aten.type_as.default,
    aten.contiguous.default, aten.clone.default, aten.detach.default, aten.alias.default, aten.lift_fresh_copy.default,
    aten.dropout.default, aten.feature_dropout.default, aten.native_dropout.default, aten.softmax.int,
    aten._softmax.default, aten.log_softmax.int, aten.layer_norm.default, aten.rms_norm.default,
    aten.group_norm.default, aten.batch_norm.default, aten.instance_norm.default, aten.copy_.default,
    aten.cumsum.default, aten.zeros_like.default, aten.ones_like.default, aten.full_like.default,
    aten.fake_quantize_per_tensor_affine.default, aten.fake_quantize_per_tensor_affine.tensor_qparams,
    aten.fake_quantize_per_channel_affine.default, aten.hardswish.default, aten.hardswish_.default, aten.mish.default,
    aten.mish_.default, aten.log_sigmoid.default, aten.prelu.default, aten.relu6.default, aten.relu6_.default,
    aten.gelu_.default, aten.celu_.default, aten.rrelu.default, aten.rrelu_.default, aten.threshold.default,
    aten.threshold_.default, aten.dropout_.default, aten.feature_dropout_.default, aten.alpha_dropout.default,
    aten.feature_alpha_dropout.default, aten.softplus.default, aten.softshrink.default, aten.hardshrink.default,
    aten.fill_.Scalar, aten.zero_.default, aten.masked_fill.Scalar, aten.masked_fill.Tensor, aten.masked_fill_.Scalar,
    aten.masked_fill_.Tensor,
)  # fmt: skip
def like_first(walk: LayoutWalk, node: Node) -> Value:
    """The result has the axes of the first argument."""
    return walk.of(node.args[0])


BY_NAME: dict[str, Rule] = dict.fromkeys(
    ("torchao.quantize_affine.default", "torchao.dequantize_affine.default"), like_first
)
"""Rules for operators of packages that need not be installed."""


@rule(operator.getitem)
def getitem(walk: LayoutWalk, node: Node) -> Value:
    """One tensor of several."""
    value = walk.axes.get(node.args[0])
    return value[node.args[1]] if isinstance(value, list) else None


# Views ------------------------------------------------------------------------------------------------------------


@rule(
    aten.view.default, aten.reshape.default, aten._unsafe_view.default, aten.flatten.using_ints,
    aten.unflatten.int, aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims, aten.unsqueeze.default,
    aten.view_as.default, aten.reshape_as.default,
)  # fmt: skip
def view(walk: LayoutWalk, node: Node) -> Value:
    """Row-major order stays; only the ends of axes move."""
    sizes = list(shape(node))
    asked = node.args[1] if len(node.args) == 2 and isinstance(node.args[1], list | tuple) else []
    if len(asked) == len(sizes):
        # A size that the model's code gives as a number is shorter than the expression that the tracer derives for it.
        sizes = [own if isinstance(own, int) and own > 0 else size for own, size in zip(asked, sizes, strict=True)]
    return ax.reshape(walk.of(node.args[0]), sizes)


@rule(aten.view_as_complex.default)
def view_as_complex(walk: LayoutWalk, node: Node) -> Value:
    """The last axis, of real and imaginary part, goes. Some models write rotary embeddings as complex products."""
    return walk.of(node.args[0])[:-1]


@rule(aten.view_as_real.default)
def view_as_real(walk: LayoutWalk, node: Node) -> Value:
    """The last axis, of real and imaginary part, comes back."""
    return (*walk.of(node.args[0]), ax.fresh(2, "feature", "the parts of a complex number"))


@rule(aten.permute.default)
def permute(walk: LayoutWalk, node: Node) -> Value:
    """Axes in another order."""
    axes = walk.of(node.args[0])
    return tuple(axes[dim] for dim in dims(node.args[1], len(axes)))


@rule(aten.transpose.int, aten.swapaxes.default, aten.swapdims.default)
def transpose(walk: LayoutWalk, node: Node) -> Value:
    """Two axes swapped."""
    axes = list(walk.of(node.args[0]))
    first, second = dims(node.args[1:3], len(axes))
    axes[first], axes[second] = axes[second], axes[first]
    return tuple(axes)


@rule(aten.t.default, aten.numpy_T.default, aten.mT.default, aten.adjoint.default)
def swap_last(walk: LayoutWalk, node: Node) -> Value:
    """The last two axes swapped (the only two, for `t`)."""
    axes = walk.of(node.args[0])
    return (*axes[:-2], *axes[-2:][::-1])


@rule(aten.movedim.int, aten.movedim.intlist)
def movedim(walk: LayoutWalk, node: Node) -> Value:
    """Axes moved to other places."""
    axes = walk.of(node.args[0])
    source, target = dims(node.args[1], len(axes)), dims(node.args[2], len(axes))
    rest = iter([axis for dim, axis in enumerate(axes) if dim not in source])
    places = dict(zip(target, source, strict=True))
    return tuple(axes[places[dim]] if dim in places else next(rest) for dim in range(len(axes)))


@rule(aten.expand.default, aten.expand_as.default, aten.repeat.default, aten.tile.default)
def expand(walk: LayoutWalk, node: Node) -> Value:
    """An axis keeps its atoms where its size stays."""
    axes, sizes = walk.of(node.args[0]), shape(node)
    axes = ((),) * (len(sizes) - len(axes)) + axes
    kept = [same(ax.axis_size(axis), size) for axis, size in zip(axes, sizes, strict=True)]
    return tuple(axis if keep else ax.fresh(size, "weight") for axis, size, keep in zip(axes, sizes, kept, strict=True))


@rule(aten.repeat_interleave.self_int)
def repeat_interleave(walk: LayoutWalk, node: Node) -> Value:
    """One axis has each of its entries several times; without an axis, all entries stand in one row."""
    return expand(walk, node) if argument(node, 2, "dim") is not None else None


@rule(aten.select.int)
def select(walk: LayoutWalk, node: Node) -> Value:
    """One entry of an axis: the axis goes."""
    axes = walk.of(node.args[0])
    (dim,) = dims(node.args[1], len(axes))
    return _marked(axes[:dim] + axes[dim + 1 :], walk.entry_of(axes[dim], node.args[2]))


@rule(aten.unbind.int)
def unbind(walk: LayoutWalk, node: Node) -> Value:
    """Every entry of an axis: the axis goes."""
    axes = walk.of(node.args[0])
    (dim,) = dims(argument(node, 1, "dim", 0), len(axes))
    rest = axes[:dim] + axes[dim + 1 :]
    return [_marked(rest, walk.entry_of(axes[dim], index)) for index in range(len(node.meta["val"]))]


@rule(*SPLITS)
def split(walk: LayoutWalk, node: Node) -> Value:
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
def slice_(walk: LayoutWalk, node: Node) -> Value:
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
def unfold(walk: LayoutWalk, node: Node) -> Value:
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


# Joining ----------------------------------------------------------------------------------------------------------


@rule(aten.cat.default, aten.concat.default, aten.concatenate.default)
def cat(walk: LayoutWalk, node: Node) -> Value:
    """Segments along one axis, a join along the others."""
    operands = [walk.of(used) for used in node.args[0]]
    (dim,) = dims(argument(node, 1, "dim", 0), len(shape(node)))
    operands = [axes for axes in operands if len(axes) == len(shape(node))]
    result = list(ax.broadcast(operands))
    result[dim] = ax.concatenate([axes[dim] for axes in operands])
    return tuple(result)


@rule(aten.stack.default)
def stack(walk: LayoutWalk, node: Node) -> Value:
    """A new axis."""
    result = list(ax.broadcast([walk.of(used) for used in node.args[0]]))
    (dim,) = dims(argument(node, 1, "dim", 0), len(result) + 1)
    result.insert(dim, ax.fresh(len(node.args[0]), "weight"))
    return tuple(result)


@rule(aten.glu.default)
def glu(walk: LayoutWalk, node: Node) -> Value:
    """Half of an axis by the other half: new entries along it."""
    axes = list(walk.of(node.args[0]))
    (dim,) = dims(argument(node, 1, "dim", -1), len(axes))
    axes[dim] = _renewed(axes[dim], shape(node)[dim], "aten.glu.default")
    return tuple(axes)


@rule(aten.channel_shuffle.default)
def channel_shuffle(walk: LayoutWalk, node: Node) -> Value:
    """Channels in another order."""
    axes = walk.of(node.args[0])
    return (axes[0], _renewed(axes[1], shape(node)[1], "aten.channel_shuffle.default"), *axes[2:])


@rule(aten.index.Tensor)
def index(walk: LayoutWalk, node: Node) -> Value:
    """Entries of one axis, picked by a row of numbers: the other axes stay."""
    axes, picked = list(walk.of(node.args[0])), [dim for dim, each in enumerate(node.args[1]) if each is not None]
    if len(picked) != 1 or len(shape(node.args[1][picked[0]])) != 1 or len(shape(node)) != len(axes):
        return None
    (dim,) = picked
    kind = "feature" if axes[dim] and all(atom.kind == "feature" for atom in axes[dim]) else "unknown"
    axes[dim] = ax.fresh(shape(node)[dim], kind, f"aten.index.Tensor ({node.name})")
    return tuple(axes)


@rule(aten.roll.default, aten.flip.default)
def moved(walk: LayoutWalk, node: Node) -> Value:
    """The same kinds of axes, but other entries: no longer equal to the axes before."""
    axes = list(walk.of(node.args[0]))
    index = node.args[1] if node.target is aten.flip.default else argument(node, 2, "dims", [])
    for dim in dims(index or list(range(len(axes))), len(axes)):
        axes[dim] = _renewed(axes[dim], shape(node)[dim], str(node.target))
    return tuple(axes)


@rule(aten.constant_pad_nd.default, aten.pad.default)
def pad(walk: LayoutWalk, node: Node) -> Value:
    """An axis that is padded or cropped is another axis of the same kind, also where both keep its size."""
    axes, sizes, amounts = list(walk.of(node.args[0])), shape(node), list(node.args[1])
    for pair in range(len(amounts) // 2):
        if amounts[2 * pair : 2 * pair + 2] != [0, 0]:
            dim = len(axes) - 1 - pair
            axes[dim] = _renewed(axes[dim], sizes[dim], "padding")
    return tuple(axes)


def _renewed(axis: Axis, size: Size, origin: str) -> Axis:
    kind = axis[0].kind if len(axis) == 1 and axis[0].segments is None else "unknown"
    return ax.fresh(size, kind, origin, axis[0].entry if kind == "input" else None)


# Products ---------------------------------------------------------------------------------------------------------


@rule(aten.linear.default)
def linear(walk: LayoutWalk, node: Node) -> Value:
    """New features on the last axis; a weight that is a vector leaves none."""
    before = walk.of(node.args[0])[:-1]
    if len(shape(node.args[1])) == 1:
        return before
    return (*before, ax.fresh(shape(node)[-1], "feature"))


@rule(
    aten.matmul.default, aten.mm.default, aten.bmm.default, aten.addmm.default, aten.baddbmm.default,
    aten._int_mm.default, aten.mv.default,
)  # fmt: skip
def matmul(walk: LayoutWalk, node: Node) -> Value:
    """Rows of the first operand, columns of the second; columns of a weight are new features, a vector has none."""
    first, second = node.args[1:3] if node.target in (aten.addmm.default, aten.baddbmm.default) else node.args[:2]
    a, b = walk.of(first), walk.of(second)
    if len(a) >= 2 and len(b) == 1:
        return a[:-1]
    if len(a) < 2 or len(b) < 2:
        return None
    columns = b[-1] if ax.rank_of(b[-1]) > 0 else ax.fresh(shape(node)[-1], "feature")
    return (*ax.broadcast([a[:-2], b[:-2]]), a[-2], columns)


@rule(aten.scaled_dot_product_attention.default)
def attention(walk: LayoutWalk, node: Node) -> Value:
    """The query's axes, the value's features."""
    q, v = walk.of(node.args[0]), walk.of(node.args[2])
    return (*q[:-1], v[-1])


@rule(aten.einsum.default)
def einsum(walk: LayoutWalk, node: Node) -> Value:
    """Each letter is an axis."""
    equation, operands = node.args[:2]
    parsed = parse_einsum(equation, [len(shape(used)) for used in operands])
    if parsed is None:
        return None
    letters: dict[str, Axis] = {}
    for term, used in zip(parsed[0], operands, strict=True):
        axes = walk.of(used)
        if len(axes) != len(term):
            return None
        for letter, axis in zip(term, axes, strict=True):
            letters[letter] = ax.join(letters[letter], axis) if letter in letters else axis
    return tuple(letters[letter] for letter in parsed[1])


def parse_einsum(equation: str, ranks: Sequence[int]) -> tuple[list[str], str] | None:
    """The terms and the result of an equation such as "bhqd,bhkd->bhqk"; None for a trace or no result.

    Each axis that an ellipsis stands for gets a letter; `ranks` are those of the operands.
    """
    terms, arrow, result = equation.replace(" ", "").partition("->")
    inputs = terms.split(",")
    if "..." in terms:
        letters = "".join(letter for letter in string.ascii_letters if letter not in equation)
        counts = [rank - len(term) + 3 for term, rank in zip(inputs, ranks, strict=True) if "..." in term]
        most = letters[: max(counts)]
        inputs = [
            term.replace("...", most[max(0, len(most) - (rank - len(term) + 3)) :])
            for term, rank in zip(inputs, ranks, strict=True)
        ]
        result = result.replace("...", most)
    if not arrow or any(len(set(term)) != len(term) for term in [*inputs, result]):
        return None
    return inputs, result


@rule(aten.mean.dim, aten.sum.dim_IntList, aten.any.dim, aten.all.dim, aten.amax.default, aten.amin.default)
def reduce(walk: LayoutWalk, node: Node) -> Value:
    """The reduced axes go, or keep size 1."""
    axes = walk.of(node.args[0])
    index = argument(node, 1, "dim")
    gone = dims(index if index is not None else list(range(len(axes))), len(axes))
    keep = argument(node, 2, "keepdim", False)
    rest = tuple(() if dim in gone else axis for dim, axis in enumerate(axes) if keep or dim not in gone)
    for dim in gone:
        rest = _marked(rest, walk.entry_of(axes[dim], node))
    return rest


@rule(aten.max.dim, aten.min.dim)
def extreme(walk: LayoutWalk, node: Node) -> Value:
    """The extreme entries of one axis, and where they stand: both have the axes that are left."""
    rest = reduce(walk, node)
    return [rest, rest]


def _marked(axes: Axes, marker: Axis) -> Axes:
    """The first axis, usually the batch, remembers which entry of a lost axis the tensor was taken from."""
    return (marker + axes[0], *axes[1:]) if axes and marker else axes
