"""From a site's own layouts to the canonical orders and back, with no more nodes than it takes."""

from __future__ import annotations

import torch
from torch.fx import Node

from jetvit.passes.insertion import Insertion
from jetvit.patterns.projections import LAYOUTS
from jetvit.patterns.site import AttentionSite, Layout, Operand

aten = torch.ops.aten


def to_order(insertion: Insertion, operand: Operand, site: AttentionSite, order: str, heads: int | None = None) -> Node:
    """A site's tensor with one axis each for batch, token, head and dim, in the order of the four letters.

    `heads` is how many the tensor has, where it has fewer than the site: each is repeated then. The result has stride 1
    along dim.
    """
    node = insertion.bring(operand.node)
    letters = _letters(operand.layout)
    if any(len(role) != 1 for role in operand.layout.roles) or len(letters) != 4:
        sizes = {"b": -1, "h": heads or site.num_heads, "t": insertion.size(site.tokens), "d": site.head_dim}
        letters += [letter for letter in "bh" if letter not in letters]
        node = insertion.call(aten.reshape.default, node, [sizes[letter] for letter in letters])
    permutation = [letters.index(letter) for letter in order]
    if permutation != [0, 1, 2, 3]:
        node = insertion.call(aten.permute.default, node, permutation)
    if heads == 1:
        node = insertion.call(aten.expand.default, node, [site.num_heads if letter == "h" else -1 for letter in order])
    elif heads is not None:
        node = insertion.call(aten.repeat_interleave.self_int, node, site.num_heads // heads, order.index("h"))
    if order[-1] == "d" and node.meta["val"].stride(-1) != 1:
        node = insertion.call(aten.contiguous.default, node)
    return node


def factor_in_order(insertion: Insertion, operand: Operand, site: AttentionSite, order: str) -> Node:
    """A factor of a site's scores, as a tensor of four axes in the order of the letters: 1 along those it has not."""
    node = insertion.bring(operand.node)
    letters = _letters(operand.layout)
    sizes = {"b": -1, "h": site.num_heads}
    if letters != (kept := [letter for letter in order if letter in letters]):
        node = insertion.call(aten.reshape.default, node, [sizes[letter] for letter in letters])
        node = insertion.call(aten.permute.default, node, [letters.index(letter) for letter in kept])
    shape = [sizes[letter] if letter in letters else 1 for letter in order]
    return insertion.call(aten.reshape.default, node, shape)


def from_order(insertion: Insertion, node: Node, site: AttentionSite, order: str) -> Node:
    """The inverse for the site's result: a tensor in the four-letter order as the layout of `site.out`."""
    layout = site.out.layout
    letters = _letters(layout)
    missing = [letter for letter in "bh" if letter not in letters]
    permutation = [order.index(letter) for letter in (*letters, *missing)]
    if permutation != [0, 1, 2, 3]:
        node = insertion.call(aten.permute.default, node, permutation)
    if any(len(role) != 1 for role in layout.roles) or missing:
        shape: list[int | Node] = []
        for role in layout.roles:
            if role == ("t",):
                shape.append(insertion.size(site.tokens))
            elif role == ("d",):
                shape.append(site.head_dim)
            elif "b" in role:
                shape.append(-1)
            else:
                shape.append(site.num_heads if role else 1)
        node = insertion.call(aten.reshape.default, node, shape)
    return node


def relax_views(node: Node) -> int:
    """Let the views of a tensor take any strides: `view` becomes `reshape`. Returns how many did.

    Where a `view` may stand is a matter of the strides that were seen at capture, and torch.export leaves out the
    `contiguous` that does nothing for them. The two differ in nothing else, as nobody writes to a site's tensors.
    """
    relaxed = 0
    reached, stack = {node}, [node]
    while stack:
        for user in stack.pop().users:
            if user.target in LAYOUTS and user not in reached:
                reached.add(user)
                stack.append(user)
                if user.target is aten.view.default:
                    user.target = aten.reshape.default
                    relaxed += 1
    return relaxed


def _letters(layout: Layout) -> list[str]:
    return [letter for role in layout.roles for letter in role]
