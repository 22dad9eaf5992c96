"""Batch and heads of q, k, v and the result: what each leading axis is, in the order in which the products pair them.

Both may stand on several axes: the frames of a film beside its batch, groups of queries beside the heads of k and v.
Axis by axis a product has to take the same batch and the same heads together. Where k and v have one head for all of
q's along an axis, q has grouped queries: such an axis is counted last, so that neighbours in the order of heads share.
"""

from __future__ import annotations

from dataclasses import dataclass

from jetvit.patterns import axes as ax
from jetvit.patterns.axes import Atom, Axis
from jetvit.patterns.core import Core, Refused, Side
from jetvit.patterns.site import Layout
from jetvit.patterns.sizes import Size, is_one, is_static, same
from jetvit.patterns.walk import LayoutWalk
from jetvit.patterns.wording import counted


@dataclass(frozen=True)
class Leading:
    """The leading axes of a core's tensors.

    q and k have as many entries, and so have v and out; an axis that a tensor has not is the empty product. `shared`
    are the numbers of the entries along which k and v have one head for all of q's. `grouped`: they have fewer heads.
    """

    q: list[Axis]
    k: list[Axis]
    v: list[Axis]
    out: list[Axis]
    shared: tuple[int, ...]
    grouped: bool


def read_leading(core: Core, walk: LayoutWalk) -> Leading:
    """The leading axes of a core whose operands are known; heads that are repeated in k and v count as those of q."""
    q, k, v = core.q, core.k, core.v
    assert q is not None
    assert k is not None
    assert v is not None
    of_q, of_k, of_v, of_out = (leading_axes(walk, side) for side in (q, k, v, core.out))
    of_k = [_ungrouped(*axes) for axes in zip(of_k, of_q, strict=True)]
    if len(of_out) == len(of_q):
        of_out = [_ungrouped(*axes) for axes in zip(of_out, of_q, strict=True)]
    of_v = [_ungrouped(*axes) for axes in zip(of_v, of_out, strict=True)]
    shared = _shared(of_q, of_k)
    if core.grouped:
        if any(slot != len(of_q) - 1 for slot in shared):
            raise Refused("grouped-query attention: the heads of q share those of k on two axes", k.node)
        shared = ()
    elif len(of_out) != len(of_q) or shared != _shared(of_out, of_v):
        shared = ()
    return Leading(of_q, of_k, of_v, of_out, shared, core.grouped or bool(shared))


def leading_axes(walk: LayoutWalk, side: Side) -> list[Axis]:
    """The atoms of the leading axes of an operand, in the order of the products."""
    return [axis_of(walk, side, dim) for dim in side.leading]


def axis_of(walk: LayoutWalk, side: Side, dim: int | None) -> Axis:
    """The atoms of an axis of an operand."""
    axes = walk.of(walk.view.resolve(side.node))
    return axes[dim] if dim is not None and dim < len(axes) else ()


def is_head(atom: Atom) -> bool:
    """True for an atom of heads, on an axis that leads."""
    return atom.kind == "feature"


def number_of_heads(axes: list[Axis]) -> Size:
    """The number of heads on these axes together."""
    return ax.axis_size(tuple(atom for axis in axes for atom in axis if is_head(atom)))


def same_batch(a: list[Axis], b: list[Axis]) -> bool:
    """The batch atoms agree, as far as both are known; an axis broadcast from size 1 counts as its partner."""
    first, second = ([atom for axis in axes for atom in axis if not is_head(atom)] for axes in (a, b))
    if len(first) != len(second):
        return False
    return all(x is y for x, y in zip(first, second, strict=True))


def kv_heads(core: Core, walk: LayoutWalk, heads: dict[str, Size]) -> int:
    """The number of heads of k and v, each for several of q.

    Raises:
        Refused: their numbers do not fit.
    """
    assert core.k is not None
    q, k, v = heads["q"], heads["k"], heads["v"]
    for side in (core.q, core.k, core.v):
        assert side is not None
        if core.grouped and not all(is_head(atom) for atom in axis_of(walk, side, side.leading[-1])):
            raise Refused("grouped-query attention: what its groups are of is not known to be heads", side.node)
    if not (is_static(q) and is_static(k) and same(k, v)) or q % k:
        raise Refused(f"grouped-query attention: q has {counted(q, 'head')}, k {k} and v {v}", core.k.node)
    return int(k)


def check_alignment(core: Core, walk: LayoutWalk, leading: Leading) -> None:
    """Refuse products that pair axes of different batches or heads: equal sizes do not make them the same.

    Raises:
        Refused: a product pairs different ones.
    """
    assert core.k is not None
    assert core.v is not None
    reason = "batch and heads of q, k and v do not stand in the same order"

    def aligned(a: Axis, b: Axis) -> bool:
        one_for_all = leading.grouped and _is_one_head(b) and all(map(is_head, a))
        return one_for_all or _aligned(a, b)

    for first, a, second, b in core.pairs:
        left, right = (walk.of(walk.view.resolve(node)) for node in (first, second))
        if not (left and right) or not aligned(left[a], right[b]):
            raise Refused(reason, second)
    paired = len(leading.q) - core.grouped  # the operator itself takes heads and groups together on the last axis
    for number in range(paired):
        if not aligned(leading.q[number], leading.k[number]):
            raise Refused(reason, core.k.node)
    for number in range(len(leading.out) - core.grouped):
        if not aligned(leading.out[number], leading.v[number]):
            raise Refused(reason, core.v.node)
    if not same(number_of_heads(leading.q), number_of_heads(leading.out)):
        raise Refused("the heads of the result are not those of q", core.out.node)


def read_layout(side: Side, leading: list[Axis], last: tuple[int, ...] = ()) -> Layout:
    """Roles of the axes; `last` are the numbers of those leading axes whose heads are counted last.

    With one axis each for batch and heads, an axis of size 1 takes the role that is left.

    Raises:
        Refused: batch and heads cannot be told apart by a few views.
    """
    runs: dict[int, list[str]] = {}
    for dim, axis in zip(side.leading, leading, strict=True):
        if dim is None:
            continue
        runs[dim] = []
        for atom in axis:
            letter = "h" if is_head(atom) else "b"
            if runs[dim][-1:] != [letter]:
                if letter in runs[dim]:
                    raise Refused("heads and batch are interleaved", side.node)
                runs[dim].append(letter)
    late = [side.leading[number] for number in last]
    dims = {letter: [dim for dim in runs if letter in runs[dim]] for letter in "bh"}
    dims["h"].sort(key=lambda dim: dim in late)
    if len(dims["h"]) > 1 and any(len(letters) > 1 for letters in runs.values()):
        raise Refused("the heads stand on several axes, on one of them together with the batch", side.node)
    empty = [dim for dim, letters in runs.items() if not letters]
    free = [letter for letter in "bh" if not dims[letter]]
    roles: dict[int, tuple[str, ...]] = {side.token: ("t",), side.dim: ("d",)}
    for dim, letters in runs.items():
        roles[dim] = tuple(
            letter if len(dims[letter]) == 1 else f"{letter}{dims[letter].index(dim) + 1}" for letter in letters
        )
    if len(empty) == len(free):
        roles |= {dim: (letter,) for dim, letter in zip(empty, free, strict=True)}
    return Layout(tuple(roles[dim] for dim in range(len(roles))))


def _shared(of_q: list[Axis], of_k: list[Axis]) -> tuple[int, ...]:
    """The numbers of the axes along which k has one head, which the products broadcast, for all of q's."""
    pairs = enumerate(zip(of_q, of_k, strict=True))
    return tuple(number for number, (q, k) in pairs if q and all(map(is_head, q)) and _is_one_head(k) and q != k)


def _is_one_head(axis: Axis) -> bool:
    return is_one(ax.axis_size(axis)) and all(map(is_head, axis))


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

    repeated = any(atom.kind == "weight" for atom in axis) and any(is_head(atom) for atom in of_q)
    fits = repeated and same(ax.axis_size(axis), ax.axis_size(of_q))
    return of_q if fits and batch_and_heads(axis) == batch_and_heads(of_q) else axis


def _aligned(a: Axis, b: Axis) -> bool:
    """Head by head and image by image; heads of different projections are told by their size alone."""
    a, b = _ungrouped(a, b), _ungrouped(b, a)
    return len(a) == len(b) and all(
        same(x.size, y.size) if is_head(x) and is_head(y) else x is y for x, y in zip(a, b, strict=True)
    )
