"""The parts of an attention, as read off a graph: `Core`, its operands, and its obstacles."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch.fx import Node

from jetvit.patterns.calls import shape


class Refused(Exception):
    """A core that is no rewritable site: the reason, the node at which it shows, and `Rejection.crosses_edge`."""

    def __init__(self, reason: str, node: Node, crosses_edge: bool = False):
        super().__init__(reason)
        self.reason, self.node, self.crosses_edge = reason, node, crosses_edge


@dataclass(frozen=True)
class Side:
    """One operand of a core: its node, its token axis and its head_dim axis; the others lead (batch, heads).

    `slots` are the leading axes in the order in which the products take them, None where only the other operand has
    an axis; without `slots` they lead in their own order.
    """

    node: Node
    token: int
    dim: int
    slots: tuple[int | None, ...] | None = None

    @property
    def leading(self) -> list[int | None]:
        """The batch and head axes, in the order of the products."""
        if self.slots is not None:
            return list(self.slots)
        return [axis for axis in range(len(shape(self.node))) if axis not in (self.token, self.dim)]

    def before_permutation(self, node: Node, order: list[int]) -> Side:
        """The same operand before a transposition, which takes axis `order[i]` of `node` to axis i."""
        slots = tuple(None if axis is None else order[axis] for axis in self.leading)
        return Side(node, order[self.token], order[self.dim], slots)


@dataclass(frozen=True)
class Obstacle:
    """Why a core is not plain full attention, at which node, and `Rejection.crosses_edge`."""

    reason: str
    node: Node
    crosses_edge: bool = False


@dataclass(frozen=True)
class Factor:
    """A tensor that multiplies the scores, or divides them: the same for all tokens, as a temperature of each head is.

    side: the operand of the first product that is q. axes: for each axis of the tensor the axis of q that it goes
    along; None where it has one entry, for all.
    """

    node: Node
    divides: bool
    side: Side
    axes: tuple[int | None, ...]


@dataclass
class Core:
    """softmax(scale · q·kᵀ)·v somewhere in a graph, or something close to it (then `obstacles` is not empty).

    `nodes` are those of the attention itself; `peeled` are the scalings, transposes and upcasts between q, k, v and the
    first product, which the core has taken into its scale and its axes. `pairs` are the leading axes that the products
    take together: they have to be the same batch or the same heads. `factors` are tensors that multiply the scores.
    `grouped`: each head of k and v, on the axis in front of the tokens, is for several heads of q.
    """

    form: str
    out: Side
    q: Side | None = None
    k: Side | None = None
    v: Side | None = None
    scale: float = 1.0
    nodes: list[Node] = field(default_factory=list)
    peeled: list[Node] = field(default_factory=list)
    pairs: list[tuple[Node, int, Node, int]] = field(default_factory=list)
    factors: list[Factor] = field(default_factory=list)
    obstacles: list[Obstacle] = field(default_factory=list)
    grouped: bool = False

    def refuse(self, reason: str, node: Node, crosses_edge: bool = False) -> None:
        """Note a reason against this core."""
        self.obstacles.append(Obstacle(reason, node, crosses_edge))
