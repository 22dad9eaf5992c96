"""The result of `find_attention`: an `AttentionSite` for each full attention, a `Rejection` for each near miss."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch.fx import Node

from jetvit.patterns.sizes import Size

UNKNOWN_GRID = "unknown token grid"
"""The beginning of a rejection's reason where the token grid is not known."""


@dataclass(frozen=True)
class Layout:
    """The role of each axis of a tensor.

    `roles` has one entry an axis; each entry is a tuple over "b" (batch), "h" (head), "t" (token), "d" (head_dim).
    ("b", "h"), ("t",), ("d",) is the [B·H, N, D] of `bmm`; an axis of size 1 that plays no role is (). Batch or heads
    that stand on several axes have numbers, "b1" and "b2", in the order in which the axes are counted, outermost first.
    """

    roles: tuple[tuple[str, ...], ...]

    @property
    def parts(self) -> list[str]:
        """The roles in the order of the axes."""
        return [part for role in self.roles for part in role]

    @property
    def is_numbered(self) -> bool:
        """True if batch or heads stand on several axes."""
        return any(len(part) > 1 for part in self.parts)

    def __str__(self) -> str:
        return "[" + ", ".join("·".join(role) or "1" for role in self.roles) + "]"


@dataclass(frozen=True)
class Operand:
    """A tensor of a site: the node that yields it and the layout of its axes."""

    node: Node
    layout: Layout

    def __str__(self) -> str:
        return f"{self.node.name}{self.layout}"


@dataclass(frozen=True)
class Factor:
    """A tensor that multiplies q·kᵀ beside the scale, or `divides` it: a temperature for each head, say.

    The roles of its layout are over "b" and "h"; an axis of size 1 is ().
    """

    operand: Operand
    divides: bool

    def __str__(self) -> str:
        return f"{'/' if self.divides else '·'} {self.operand}"


@dataclass(frozen=True)
class RopeTables:
    """The inputs of an operator of jetvit that does a rotation itself, proven to be the same rotation.

    `q` and `k` are the whole tensors before the rotation, extra tokens too. `cos` and `sin` are the nodes of the tables
    […, token, …, head_dim], equal along every other axis; `token` is their axis of tokens, counted from the last one,
    which is −1. The tokens are those of the grid, row by row; of head_dim the second half repeats the first, and of a
    half the first part varies with the row of a token alone, the second with its column alone.
    """

    q: Operand
    k: Operand
    cos: Node
    sin: Node
    token: int


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding on q and k, applied in the graph before the attention.

    `style` is "half" (rotate the two halves of head_dim, as HF DINOv3 does) or "interleaved" (rotate pairs, as timm's
    EVA family does). `cos` and `sin` are the nodes of the tables; `q` and `k` the nodes before the rotation. `tables`
    is there where an operator can do the rotation instead. An operator that does it already has neither cos nor sin.
    """

    style: str
    cos: Node | None
    sin: Node | None
    q: Node
    k: Node
    tables: RopeTables | None = None

    def __str__(self) -> str:
        return self.style


@dataclass(frozen=True)
class Linear:
    """A projection: the node of the matrix product and the names of its weight and bias (None where it has none)."""

    node: Node
    weight: str
    bias: str | None
    out_features: int
    in_features: int


@dataclass(frozen=True)
class Projections:
    """The projections that belong to one site alone; `packed` instead of q, k and v where one product yields all."""

    packed: Linear | None = None
    q: Linear | None = None
    k: Linear | None = None
    v: Linear | None = None
    out: Linear | None = None

    def named(self) -> dict[str, Linear]:
        """The projections that are there, by role."""
        roles = {"packed": self.packed, "q": self.q, "k": self.k, "v": self.v, "out": self.out}
        return {role: linear for role, linear in roles.items() if linear is not None}


@dataclass(frozen=True)
class AttentionSite:
    """One full self-attention over a token grid, in canonical terms.

    The tokens of a site are `extra_before` prefix tokens (CLS, registers), then `grid[0]` × `grid[1]` patch tokens in
    row-major order, then `extra_after` tokens. Sizes are ints, or SymInts where the graph is dynamic.

    `scale` multiplies q·kᵀ, and so do the tensors of `factors`. `form` is "sdpa" for the one operator of ATen,
    "softmax" for two products with a softmax between, "operator" for `jetvit::full_attention`, which also does the
    rotation where `rope` is there. `autocast` is the dtype that an enclosing autocast region gives the attention, None
    outside of one. `projections` are those that belong to this site alone; `source` is the line of the model's code
    that computes the result. `pooled`: the module of the attention, or the one around it, makes the grid from a map.
    `kv_heads`: how many heads k and v have where each of them is for several of q (grouped queries), else None.
    """

    name: str
    q: Operand
    k: Operand
    v: Operand
    out: Operand
    num_heads: int
    head_dim: int
    scale: float
    grid: tuple[Size, Size]
    extra_before: Size
    extra_after: Size
    rope: Rope | None
    projections: Projections
    form: str
    autocast: torch.dtype | None
    source: str
    factors: tuple[Factor, ...] = ()
    pooled: bool = False
    kv_heads: int | None = None

    @property
    def tokens(self) -> Size:
        """The number of tokens: extra tokens and grid."""
        return self.extra_before + self.grid[0] * self.grid[1] + self.extra_after

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the attention's result."""
        return self.out.node.meta["val"].dtype

    @property
    def compute_dtype(self) -> torch.dtype:
        """The dtype of an attention in its place: that of the autocast region, else the widest of q, k and v."""
        if self.autocast is not None:
            return self.autocast
        q, k, v = (side.node.meta["val"].dtype for side in (self.q, self.k, self.v))
        return torch.promote_types(torch.promote_types(q, k), v)


@dataclass(frozen=True)
class Rejection:
    """A near miss: an attention that is no rewritable site, and the reason, the node and the source line.

    `crosses_edge`: a part of it, or what was to be known of it, lies outside of the graph, as at a graph break.
    """

    name: str
    reason: str
    node: Node
    source: str
    crosses_edge: bool = False

    def __str__(self) -> str:
        return f"{self.name}: {self.reason} (node {self.node.name}{', ' + self.source if self.source else ''})"


def lacks_grid(reason: str) -> bool:
    """True if a rejection's reason is that the token grid is not known."""
    return reason.startswith(UNKNOWN_GRID)


@dataclass(frozen=True)
class Rewritten:
    """A site that was rewritten before: the node of the `jetvit::` operator that stands there now."""

    name: str
    node: Node


class Sites(list[AttentionSite]):
    """The sites of a graph in the order of execution.

    `rejected` holds the near misses, `rewritten` the sites that a plan has rewritten already.
    """

    def __init__(self, sites: Iterable[AttentionSite] = ()):
        super().__init__(sites)
        self.rejected: list[Rejection] = []
        self.rewritten: list[Rewritten] = []
