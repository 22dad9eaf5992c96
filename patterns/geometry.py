"""From the axes of q, k and v to a site in canonical terms: batch, heads, the token grid and the extra tokens."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch.fx import Node

from jetvit.patterns import axes as ax
from jetvit.patterns import core as cores
from jetvit.patterns.axes import Atom, Axis
from jetvit.patterns.calls import shape
from jetvit.patterns.core import Core, Side
from jetvit.patterns.site import UNKNOWN_GRID, Factor, Layout, Operand
from jetvit.patterns.sizes import Size, is_one, is_static, same
from jetvit.patterns.walk import LayoutWalk
from jetvit.patterns.wording import counted

_MOST_UNKNOWN_TOKENS = 16
"""Tokens beside a grid of which only is known that they are of no image: a CLS token that was made from something."""


class Refused(Exception):
    """A core that is no rewritable site: the reason, the node at which it shows, and `Rejection.crosses_edge`."""

    def __init__(self, reason: str, node: Node, crosses_edge: bool = False):
        super().__init__(reason)
        self.reason, self.node, self.crosses_edge = reason, node, crosses_edge


@dataclass(frozen=True)
class Tokens:
    """An axis of extra tokens, a grid in row-major order, and extra tokens again; `origin` is what made the grid."""

    before: Size
    grid: tuple[Size, Size]
    after: Size
    origin: str = field(default="", compare=False)

    def sizes(self) -> tuple[Size, ...]:
        """All numbers that it is made of."""
        return self.before, *self.grid, self.after


@dataclass(frozen=True)
class Geometry:
    """Layouts of the four tensors, heads, tokens, and what else multiplies the scores."""

    q: Layout
    k: Layout
    v: Layout
    out: Layout
    num_heads: int
    head_dim: int
    tokens: Tokens
    factors: tuple[Factor, ...]
    kv_heads: int | None


def read_geometry(core: Core, walk: LayoutWalk) -> Geometry:
    """The geometry of a core whose operands are known.

    Raises:
        Refused: cross attention, grouped queries, attention that is local already, or an unknown token grid.
    """
    q, k, v = core.q, core.k, core.v
    assert q is not None
    assert k is not None
    assert v is not None
    tokens = [_axis(walk, side, side.token) for side in (q, k, v)]
    if tokens[0] and all(_is_head(atom) for atom in tokens[0]):
        if ax.is_of_a_map(_axis(walk, q, q.dim)):
            raise Refused("the attention runs over channels, not over tokens", q.node)
        if any(ax.is_of_a_map(axis) for axis in _leading(walk, q)):
            raise Refused("the attention runs over the heads of each token, not over tokens", q.node)
    _check_self_attention(core, walk, tokens)
    leading = {name: _leading(walk, side) for name, side in (("q", q), ("k", k), ("v", v))}
    for name in ("k", "v"):
        if len(leading[name]) == len(leading["q"]):
            leading[name] = [_ungrouped(*axes) for axes in zip(leading[name], leading["q"], strict=True)]
    _check_not_local(core, leading["q"], tokens[0])
    heads = {name: ax.axis_size(tuple(atom for axis in axes for atom in axis if _is_head(atom)))
             for name, axes in leading.items()}  # fmt: skip
    grouped = core.grouped or _is_multi_query(leading)
    for name, side in (("k", k), ("v", v)):
        same_batch, same_heads = _same_batch(leading["q"], leading[name]), same(heads[name], heads["q"])
        shared = any(atom.kind in ("weight", "unknown") for axis in leading[name] for atom in axis)
        if not same_heads and (not grouped or (shared and not same_batch)):
            raise Refused(
                f"grouped-query attention: q has {counted(heads['q'], 'head')}, {name} has {heads[name]} of its own",
                side.node,
            )
        if not same_batch:
            lost = next(filter(None, (_lost(ax.uncut(axis)) for axis in (*leading["q"], *leading[name]))), "")
            reason = f"cross attention: {name} comes from another part of the batch than q"
            raise Refused(f"the batch of q or {name} was lost at {lost}" if lost else reason, side.node)
    layouts = {name: _layout(side, leading[name], tokens[0]) for name, side in (("q", q), ("k", k), ("v", v))}
    _check_alignment(core, walk, grouped)
    head_dim = shape(q.node)[q.dim]
    if not (is_static(heads["q"]) and is_static(head_dim)):
        raise Refused("the number of heads or their size is not fixed", q.node)
    if not same(head_dim, shape(v.node)[v.dim]):
        raise Refused(f"v has {counted(shape(v.node)[v.dim], 'feature')} a head, q has {head_dim}", v.node)
    place = read_tokens(tokens[0], q.node)
    result = _leading(walk, core.out)
    if not _same_batch(leading["q"], result):
        raise Refused("the batch of the result is not that of q", core.out.node)
    out_layout = _layout(core.out, result, tokens[0])
    factors = tuple(_factor(walk, factor, tokens[0]) for factor in core.factors)
    return Geometry(
        q=layouts["q"],
        k=layouts["k"],
        v=layouts["v"],
        out=out_layout,
        num_heads=int(heads["q"]),
        head_dim=int(head_dim),
        tokens=place,
        factors=factors,
        kv_heads=_kv_heads(core, walk, heads) if grouped else None,
    )


def _is_multi_query(leading: dict[str, list[Axis]]) -> bool:
    """True if k and v have one head for all of q: an axis of one, which the products broadcast, or no axis."""
    heads = [dim for dim, axis in enumerate(leading["q"]) if axis and all(map(_is_head, axis))]
    if len(heads) != 1:
        return False

    return all(
        _is_one_head(axes[heads[0]])
        if len(axes) == len(leading["q"])
        else not any(_is_head(atom) for axis in axes for atom in axis)
        for axes in (leading["k"], leading["v"])
    )


def _kv_heads(core: Core, walk: LayoutWalk, heads: dict[str, Size]) -> int | None:
    """How many heads k and v have, of which each is for several of q."""
    assert core.k is not None
    q, k, v = heads["q"], heads["k"], heads["v"]
    for side in (core.q, core.k, core.v):
        assert side is not None
        if core.grouped and not all(_is_head(atom) for atom in _axis(walk, side, side.leading[-1])):
            raise Refused("grouped-query attention: what its groups are of is not known to be heads", side.node)
    if not (is_static(q) and is_static(k) and same(k, v)) or q % k:
        raise Refused(f"grouped-query attention: q has {counted(q, 'head')}, k {k} and v {v}", core.k.node)
    return int(k)


def read_tokens(axis: Axis, node: Node) -> Tokens:
    """Where the token grid lies on an axis.

    Raises:
        Refused: the axis holds no two-dimensional grid in row-major order, more than one, parts of another, or many
            tokens of which is not known what they are.
    """
    axis = ax.uncut(axis)
    segments = ax.flat_segments(axis)
    found = [(index, grid) for index, (part, _) in enumerate(segments) if (grid := _grid(part)) is not None]
    if len(found) != 1:
        raise Refused(_no_grid(segments, len(found)), node, crosses_edge=bool(_inputs(axis)))
    ((place, (rows, columns)),) = found
    extra: list[Size] = [0, 0]
    for index, (part, size) in enumerate(segments):
        if index == place:
            continue
        beside = f"{UNKNOWN_GRID}: {counted(size, 'token')} beside the {rows.size}×{columns.size}"
        if ax.is_of_a_map(part):
            raise Refused(f"{beside} {'is' if is_one(size) else 'are'} of an image too", node)
        if ax.rank_of(part) > 0 and not (is_static(size) and size <= _MOST_UNKNOWN_TOKENS):
            raise Refused(f"{beside} are not learned ones, and what they are is not known", node)
        extra[index > place] = extra[index > place] + size
    return Tokens(extra[0], (rows.size, columns.size), extra[1], rows.origin)


def grid_axis(tokens: Tokens, entry: tuple[str, int] | None = None) -> Axis:
    """An axis whose grid is known from elsewhere than the graph; `entry` as in `Atom`."""
    height, width = tokens.grid
    grid = (Atom(height, "row", entry=entry), Atom(width, "col", entry=entry))
    if same(tokens.before, 0) and same(tokens.after, 0):
        return grid
    extra = [ax.fresh(count, "weight", "extra tokens") for count in (tokens.before, tokens.after)]
    parts = [(extra[0], tokens.before), (grid, height * width), (extra[1], tokens.after)]
    segments = tuple(part for part in parts if not same(part[1], 0))
    return (
        Atom(tokens.before + height * width + tokens.after, "unknown", "a concatenation", entry, segments=segments),
    )


def layout_like(walk: LayoutWalk, side: Side, other: Side) -> Layout | None:
    """The layout of a tensor that has the batch, the heads and the tokens of another; None where it has not."""
    tokens = _axis(walk, side, side.token)
    leading, wanted = _leading(walk, side), _leading(walk, other)
    heads = [[atom for axis in axes for atom in axis if _is_head(atom)] for axes in (leading, wanted)]
    if not _same_tokens(tokens, _axis(walk, other, other.token)) or heads[0] != heads[1]:
        return None
    if not _same_batch(leading, wanted):
        return None
    try:
        return _layout(side, leading, tokens)
    except Refused:
        return None


def _factor(walk: LayoutWalk, factor: cores.Factor, tokens: Axis) -> Factor:
    """A factor of the scores with the roles of its axes, which are those of q's axes that it goes along."""
    roles = _layout(factor.side, _leading(walk, factor.side), tokens).roles
    layout = Layout(tuple(() if axis is None else roles[axis] for axis in factor.axes))
    return Factor(Operand(factor.node, layout), factor.divides)


def _grid(axis: Axis) -> tuple[Atom, Atom] | None:
    """The rows and the columns of an axis that is a flattened two-dimensional map, in row-major order.

    Of a map of one row, or of one column, only the other axis is there.
    """
    axis = tuple(atom for atom in ax.uncut(axis) if not is_one(atom.size))
    if not all(_is_coarse(atom) for atom in axis):
        return None
    if [atom.kind for atom in axis] == ["col"]:
        return Atom(1, "row", axis[0].origin), axis[0]
    if [atom.kind for atom in axis] == ["row"]:
        return axis[0], Atom(1, "col", axis[0].origin)
    if len(axis) != 2:
        return None
    row, col = axis
    if (row.kind, col.kind) == ("row", "col"):
        return row, col
    patches = row.pieces is not None and col.pieces is not None  # cut into patches, as an image is and a table is not
    if row.kind == col.kind == "input" and row.entry is not None and col.entry is not None and patches:
        (row_input, row_dim), (col_input, col_dim) = row.entry, col.entry
        if row_input == col_input and 0 < row_dim < col_dim:
            return row, col
    return None


def _is_coarse(atom: Atom) -> bool:
    """Not split, or the outer piece of every split: neighbours along it are neighbours in the image."""
    return atom.pieces is None or (atom.pieces[1] == 0 and _is_coarse(atom.pieces[0]))


def _no_grid(segments: list[tuple[Axis, Size]], grids: int) -> str:
    if grids > 1:
        return f"{UNKNOWN_GRID}: {grids} grids stand side by side in one sequence"
    atoms = [atom for part, _ in segments for whole in part for atom in ax.uncut((whole,))]
    kinds = [atom.kind for atom in atoms]
    if kinds == ["col", "row"]:
        return f"{UNKNOWN_GRID}: the tokens are in column-major order"
    if sum(kind in ("row", "col", "input") for kind in kinds) > 2:
        return f"{UNKNOWN_GRID}: the tokens have more than two spatial axes"
    if len(atoms) > 1 and any(atom.segments is not None and ax.is_of_a_map((atom,)) for atom in atoms):
        return f"{UNKNOWN_GRID}: the tokens of several images, or of several windows, stand in one sequence"
    lost = next((atom for atom in atoms if atom.kind == "unknown" and atom.origin), None)
    if lost is not None:
        return f"{UNKNOWN_GRID}: it was lost at {lost.origin}"
    if any(atom.kind == "input" for atom in atoms):
        return f"{UNKNOWN_GRID}: the tokens come in one row from an input, not from an image"
    return f"{UNKNOWN_GRID}: no two-dimensional map was flattened into these tokens"


def _axis(walk: LayoutWalk, side: Side, dim: int) -> Axis:
    axes = walk.of(walk.view.resolve(side.node))
    return axes[dim] if dim < len(axes) else ()


def _leading(walk: LayoutWalk, side: Side) -> list[Axis]:
    return [_axis(walk, side, dim) for dim in side.leading]


def _is_head(atom: Atom) -> bool:
    return atom.kind == "feature"


def _is_one_head(axis: Axis) -> bool:
    return is_one(ax.axis_size(axis)) and all(map(_is_head, axis))


def _same_tokens(a: Axis, b: Axis) -> bool:
    """The same atoms; or concatenations of the same segments, made once for q and once for k."""
    if a == b:
        return True
    a, b = ax.uncut(a), ax.uncut(b)
    first, second = ax.flat_segments(a), ax.flat_segments(b)
    if len(first) != len(second) or len(first) < 2:
        return a == b
    return all(ax.uncut(x) == ax.uncut(y) and same(n, m) for (x, n), (y, m) in zip(first, second, strict=True))


def _same_batch(a: list[Axis], b: list[Axis]) -> bool:
    """The batch atoms agree, as far as both are known; an axis broadcast from size 1 counts as its partner."""
    first, second = ([atom for axis in axes for atom in axis if not _is_head(atom)] for axes in (a, b))
    if len(first) != len(second):
        return False
    return all(x is y for x, y in zip(first, second, strict=True))


def _check_self_attention(core: Core, walk: LayoutWalk, tokens: list[Axis]) -> None:
    sides = {"k": core.k, "v": core.v}
    for (name, side), axis in zip(sides.items(), tokens[1:], strict=True):
        if _same_tokens(tokens[0], axis):
            continue
        assert core.q is not None
        assert side is not None
        count, other = ax.axis_size(tokens[0]), ax.axis_size(axis)
        inputs, others = _inputs(tokens[0]), _inputs(axis)
        crosses_edge = bool(inputs and others) and same(count, other)
        is_learned = "input" not in walk.sources.get(walk.view.resolve(core.q.node), ())
        if ax.rank_of(tokens[0]) <= 0 and is_static(count) and is_learned:
            reason = _cross_attention(count, other, "learned ")
        elif is_static(count) and is_static(other) and count != other:
            reason = _cross_attention(count, other)
        elif lost := _lost(ax.uncut(tokens[0])) or _lost(ax.uncut(axis)):
            reason = f"the tokens of q or {name} were lost at {lost}"
        elif crosses_edge:
            reason = (
                f"q and {name} come into this graph as inputs, {', '.join(inputs)} and {', '.join(others)}: "
                "whether they are the same tokens is not known"
            )
        elif same(count, other):
            reason = f"cross attention: {name} comes from another token sequence than q"
        else:
            reason = _cross_attention(count, other)
        raise Refused(reason, side.node, crosses_edge)


def _cross_attention(queries: Size, tokens: Size, kind: str = "") -> str:
    attend = counted(queries, f"{kind}query attends", f"{kind}queries attend")
    return f"cross attention: {attend} to {counted(tokens, 'token')}"


def _lost(axis: Axis) -> str:
    """The operator, not known to the walk, that made a part of an axis; "" if there is none."""
    return next((atom.origin for atom in axis if atom.kind == "unknown" and atom.origin and not atom.segments), "")


def _inputs(axis: Axis) -> list[str]:
    """The inputs of the graph that the atoms of an axis were axes of."""
    return list(dict.fromkeys(atom.root.entry[0] for atom in axis if atom.root.entry is not None))


def _check_alignment(core: Core, walk: LayoutWalk, grouped: bool) -> None:
    """What a product takes together has to be the same batch or the same heads: equal sizes do not make them so."""
    for first, a, second, b in core.pairs:
        left, right = (walk.of(walk.view.resolve(node)) for node in (first, second))
        if grouped and left and right and _is_one_head(right[b]) and all(map(_is_head, left[a])):
            continue  # one head for all
        if not (left and right) or not _aligned(left[a], right[b]):
            raise Refused("batch and heads of q, k and v do not stand in the same order", second)


def _ungrouped(axis: Axis, of_q: Axis) -> Axis:
    """q's axis for one of k or v where heads stand several times, as grouped queries have it made; else the axis."""

    def batch_and_heads(atoms: Axis) -> list[Atom | str]:
        roles: list[Atom | str] = []
        for atom in atoms:
            if atom.kind not in ("feature", "weight"):
                roles.append(atom)
            elif roles[-1:] != ["heads"]:
                roles.append("heads")
        return roles

    repeated = any(atom.kind == "weight" for atom in axis) and any(_is_head(atom) for atom in of_q)
    fits = repeated and same(ax.axis_size(axis), ax.axis_size(of_q))
    return of_q if fits and batch_and_heads(axis) == batch_and_heads(of_q) else axis


def _aligned(a: Axis, b: Axis) -> bool:
    """Head by head and image by image; heads of different projections are told by their size alone."""
    a, b = _ungrouped(a, b), _ungrouped(b, a)
    return len(a) == len(b) and all(
        same(x.size, y.size) if _is_head(x) and _is_head(y) else x is y for x, y in zip(a, b, strict=True)
    )


def _check_not_local(core: Core, leading: list[Axis], tokens: Axis) -> None:
    roots = {atom.root for atom in tokens}
    for axis in leading:
        for atom in axis:
            if atom.root.kind in ("row", "col") or (atom.pieces and atom.root in roots):
                sizes = "×".join(str(piece.size) for piece in tokens) or "1"
                noun = "token" if all(is_one(piece.size) for piece in tokens) else "tokens"
                assert core.q is not None
                if noun == "tokens" and all(piece.pieces is not None and piece.pieces[1] == 0 for piece in tokens):
                    raise Refused(f"the attention is dilated: it runs over {sizes} tokens that lie apart", core.q.node)
                raise Refused(f"the attention is local already: it runs inside windows of {sizes} {noun}", core.q.node)


def _layout(side: Side, leading: list[Axis], tokens: Axis) -> Layout:
    """Roles of the axes. With one axis each for batch and heads, an axis of size 1 takes the role that is left."""
    roles: dict[int, tuple[str, ...]] = {side.token: ("t",), side.dim: ("d",)}
    for dim, axis in zip(side.leading, leading, strict=True):
        letters: list[str] = []
        for atom in axis:
            letter = "h" if _is_head(atom) else "b"
            if letters[-1:] != [letter]:
                if letter in letters:
                    raise Refused("heads and batch are interleaved", side.node)
                if any(letter in other for other in roles.values()):
                    whose = "heads stand" if letter == "h" else "batch stands"
                    raise Refused(f"the {whose} on several axes", side.node)
                letters.append(letter)
        roles[dim] = tuple(letters)
    empty = [dim for dim in side.leading if not roles[dim]]
    free = [letter for letter in "bh" if not any(letter in role for role in roles.values())]
    if len(empty) == len(free):
        for dim, letter in zip(empty, free, strict=True):
            roles[dim] = (letter,)
    return Layout(tuple(roles[dim] for dim in range(len(roles))))
