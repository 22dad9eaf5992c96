"""From the axes of q, k and v to a site in canonical terms: batch, heads, the token grid and the extra tokens."""

from __future__ import annotations

from dataclasses import dataclass

from torch.fx import Node

from jetvit.patterns import axes as ax
from jetvit.patterns import core as cores
from jetvit.patterns.axes import Atom, Axis
from jetvit.patterns.calls import shape
from jetvit.patterns.core import Core, Refused, Side
from jetvit.patterns.leading import (
    axis_of,
    check_alignment,
    is_head,
    kv_heads,
    leading_axes,
    number_of_heads,
    read_layout,
    read_leading,
    same_batch,
)
from jetvit.patterns.site import UNKNOWN_GRID, Factor, Layout, Operand
from jetvit.patterns.sizes import Size, is_one, is_static, same
from jetvit.patterns.tokens import Tokens
from jetvit.patterns.walk import LayoutWalk
from jetvit.patterns.wording import counted

_MOST_UNKNOWN_TOKENS = 16
"""Tokens beside a grid of which only is known that they are of no image: a CLS token that was made from something."""


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
    tokens = [axis_of(walk, side, side.token) for side in (q, k, v)]
    if tokens[0] and all(map(is_head, tokens[0])):
        if ax.is_of_a_map(axis_of(walk, q, q.dim)):
            raise Refused("the attention runs over channels, not over tokens", q.node)
        if any(ax.is_of_a_map(axis) for axis in leading_axes(walk, q)):
            raise Refused("the attention runs over the heads of each token, not over tokens", q.node)
    _check_self_attention(core, walk, tokens)
    leading = read_leading(core, walk)
    _check_not_local(core, leading.q, tokens[0])
    operands = {"k": (k, leading.k), "v": (v, leading.v)}
    heads = {"q": number_of_heads(leading.q)} | {name: number_of_heads(axes) for name, (_, axes) in operands.items()}
    for name, (side, axes) in operands.items():
        batch_agrees, heads_agree = same_batch(leading.q, axes), same(heads[name], heads["q"])
        repeated = any(atom.kind in ("weight", "unknown") for axis in axes for atom in axis)
        if not heads_agree and (not leading.grouped or (repeated and not batch_agrees)):
            raise Refused(
                f"grouped-query attention: q has {counted(heads['q'], 'head')}, {name} has {heads[name]} of its own",
                side.node,
            )
        if not batch_agrees:
            lost = next(filter(None, (_lost(ax.uncut(axis)) for axis in (*leading.q, *axes))), "")
            reason = f"cross attention: {name} comes from another part of the batch than q"
            raise Refused(f"the batch of q or {name} was lost at {lost}" if lost else reason, side.node)
    layouts = read_layout(q, leading.q, leading.shared), read_layout(k, leading.k), read_layout(v, leading.v)
    check_alignment(core, walk, leading)
    head_dim = shape(q.node)[q.dim]
    if not (is_static(heads["q"]) and is_static(head_dim)):
        raise Refused("the number of heads or their size is not fixed", q.node)
    if not same(head_dim, shape(v.node)[v.dim]):
        raise Refused(f"v has {counted(shape(v.node)[v.dim], 'feature')} a head, q has {head_dim}", v.node)
    place = read_tokens(tokens[0], q.node)
    if not same_batch(leading.q, leading.out):
        raise Refused("the batch of the result is not that of q", core.out.node)
    return Geometry(
        q=layouts[0],
        k=layouts[1],
        v=layouts[2],
        out=read_layout(core.out, leading.out, leading.shared),
        num_heads=int(heads["q"]),
        head_dim=int(head_dim),
        tokens=place,
        factors=tuple(_factor(walk, factor, leading.shared) for factor in core.factors),
        kv_heads=kv_heads(core, walk, heads) if leading.grouped else None,
    )


def read_tokens(axis: Axis, node: Node) -> Tokens:
    """The token grid on an axis.

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
    tokens = axis_of(walk, side, side.token)
    leading, wanted = leading_axes(walk, side), leading_axes(walk, other)
    heads = [[atom for axis in axes for atom in axis if is_head(atom)] for axes in (leading, wanted)]
    if not _same_tokens(tokens, axis_of(walk, other, other.token)) or heads[0] != heads[1]:
        return None
    if not same_batch(leading, wanted) or sum(any(map(is_head, axis)) for axis in leading) > 1:
        return None  # heads on several axes may be counted in another order
    try:
        return read_layout(side, leading)
    except Refused:
        return None


def _factor(walk: LayoutWalk, factor: cores.Factor, last: tuple[int, ...]) -> Factor:
    """A factor of the scores with the roles of its axes, which are those of q's axes that it goes along."""
    roles = read_layout(factor.side, leading_axes(walk, factor.side), last).roles
    layout = Layout(tuple(() if axis is None else roles[axis] for axis in factor.axes))
    for letter in "bh":
        has, all_of_q = (
            {part for role in each for part in role if part[0] == letter} for each in (layout.roles, roles)
        )
        if has and has != all_of_q:
            raise Refused(
                "the attention scores are multiplied by a tensor that goes along some of the axes of batch or heads",
                factor.node,
            )
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


def _same_tokens(a: Axis, b: Axis) -> bool:
    """The same atoms; or concatenations of the same segments, made once for q and once for k."""
    if a == b:
        return True
    a, b = ax.uncut(a), ax.uncut(b)
    first, second = ax.flat_segments(a), ax.flat_segments(b)
    if len(first) != len(second) or len(first) < 2:
        return a == b
    return all(ax.uncut(x) == ax.uncut(y) and same(n, m) for (x, n), (y, m) in zip(first, second, strict=True))


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
        elif sides_mixed := _mixed({"q": tokens[0], name: axis}):
            reason = f"a matrix product mixes tokens: each row of {' and '.join(sides_mixed)} is a sum over all of them"
        elif heads := _folded_heads(tokens[0], axis):
            reason = (
                f"grouped-query attention: {counted(heads, 'head')} of q stand on its axis of tokens. "
                "Give the heads of q and of the result an axis of their own"
            )
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


def _mixed(sides: dict[str, Axis]) -> list[str]:
    """The operands whose tokens a matrix product made, unless another operand's tokens are of no map either."""
    made = [name for name, axis in sides.items() if axis and all(map(is_head, axis))]
    return made if all(name in made or ax.is_of_a_map(axis) for name, axis in sides.items()) else []


def _folded_heads(queries: Axis, keys: Axis) -> Size:
    """The number of heads beside the tokens of `keys` on the axis of the queries' tokens; 0 if there are none."""
    heads = tuple(atom for atom in queries if is_head(atom))
    rest = tuple(atom for atom in queries if not is_head(atom))
    return ax.axis_size(heads) if heads and rest and _same_tokens(rest, keys) else 0


def _lost(axis: Axis) -> str:
    """The operator, not known to the walk, that made a part of an axis; "" if there is none."""
    return next((atom.origin for atom in axis if atom.kind == "unknown" and atom.origin and not atom.segments), "")


def _inputs(axis: Axis) -> list[str]:
    """The inputs of the graph that the atoms of an axis were axes of."""
    return list(dict.fromkeys(atom.root.entry[0] for atom in axis if atom.root.entry is not None))


def _side_lengths(tokens: Axis) -> str:
    """The numbers of rows and columns of tokens, also where both are cut into several pieces; else those of pieces."""
    kinds = [atom.root.kind for atom in tokens]
    if len(kinds) > 2 and set(kinds) == {"row", "col"}:
        pieces = ([atom for atom in tokens if atom.root.kind == kind] for kind in ("row", "col"))
        return "×".join(str(ax.axis_size(tuple(each))) for each in pieces)
    return "×".join(str(atom.size) for atom in tokens) or "1"


def _check_not_local(core: Core, leading: list[Axis], tokens: Axis) -> None:
    assert core.q is not None
    roots = {atom.root for atom in tokens}
    if tokens and {root.kind for root in roots} == {"input"} and any(ax.is_of_a_map(axis) for axis in leading):
        sizes = "×".join(str(piece.size) for piece in tokens)
        reason = f"the attention runs over {sizes} frames or views of one place, not over the tokens of an image"
        raise Refused(reason, core.q.node)
    for axis in leading:
        for atom in axis:
            if atom.root.kind in ("row", "col") or (atom.pieces and atom.root in roots):
                sizes = _side_lengths(tokens)
                noun = "token" if all(is_one(piece.size) for piece in tokens) else "tokens"
                if noun == "tokens" and all(piece.pieces is not None and piece.pieces[1] == 0 for piece in tokens):
                    raise Refused(f"the attention is dilated: it runs over {sizes} tokens that lie apart", core.q.node)
                raise Refused(f"the attention is local already: it runs inside windows of {sizes} {noun}", core.q.node)
