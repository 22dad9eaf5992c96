"""From a site's own layouts to the canonical orders and back, with no more nodes than it takes."""

from __future__ import annotations

import torch
from torch.fx import Node

from jetvit.passes.graph.insertion import Insertion
from jetvit.patterns.aten_sets import LAYOUTS
from jetvit.patterns.site import AttentionSite, Layout, Operand

aten = torch.ops.aten


def to_order(insertion: Insertion, operand: Operand, site: AttentionSite, order: str, heads: int | None = None) -> Node:
    """A site's tensor with one axis each for batch, token, head and dim, in the order of the four letters.

    `heads` is how many the tensor has, where it has fewer than the site: each is repeated then. The result has stride 1
    along dim.
    """
    node = insertion.bring(operand.node)
    letters = operand.layout.parts
    if operand.layout.is_numbered:
        sizes = _sizes(insertion, site, heads)
        node, _ = _in_order(insertion, node, operand.layout, order, sizes)
        node = insertion.call(aten.reshape.default, node, [sizes[letter] for letter in order])
        letters = list(order)
    elif any(len(role) != 1 for role in operand.layout.roles) or len(letters) != 4:
        sizes = _sizes(insertion, site, heads)
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
    if not isinstance(node.meta["val"], torch.Tensor):
        return node  # a number: with dynamic=True, Dynamo makes inputs of the floats of a model's code
    sizes: dict[str, int | Node] = {"b": -1, "h": site.num_heads}
    node, parts = _in_order(insertion, node, operand.layout, order, sizes)
    letters = {part[0] for part in parts}
    return insertion.call(aten.reshape.default, node, [sizes[letter] if letter in letters else 1 for letter in order])


def from_order(insertion: Insertion, node: Node, site: AttentionSite, order: str) -> Node:
    """The inverse for the site's result: a tensor in the four-letter order as the layout of `site.out`."""
    layout = site.out.layout
    parts, missing = layout.parts, [letter for letter in "bh" if not any(part[0] == letter for part in layout.parts)]
    now = list(order)
    if layout.is_numbered:
        now = _counted([*parts, *missing], order)
        sizes = _sizes(insertion, site) | _sizes_of_parts(insertion, site.out.node, layout)
        node = insertion.call(aten.reshape.default, node, [sizes[part] for part in now])
    permutation = [now.index(part) for part in (*parts, *missing)]
    if permutation != list(range(len(now))):
        node = insertion.call(aten.permute.default, node, permutation)
    if any(len(role) != 1 for role in layout.roles) or missing:
        sizes = _sizes(insertion, site) | _sizes_of_parts(insertion, site.out.node, layout)
        shape = [sizes[role[0]] if len(role) == 1 else -1 if role else 1 for role in layout.roles]
        node = insertion.call(aten.reshape.default, node, shape)
    return node


def _sizes(insertion: Insertion, site: AttentionSite, heads: int | None = None) -> dict[str, int | Node]:
    """The size of each letter. Ask for them where a tensor is reshaped: not every number of tokens can be computed."""
    return {"b": -1, "h": heads or site.num_heads, "t": insertion.size(site.tokens), "d": site.head_dim}


def _in_order(
    insertion: Insertion, node: Node, layout: Layout, order: str, sizes: dict[str, int | Node]
) -> tuple[Node, list[str]]:
    """A tensor with one axis for each part of its layout, in the order of the letters, and those parts."""
    parts = layout.parts
    counted = _counted(parts, order)
    if parts != counted:
        if any(len(role) != 1 for role in layout.roles):
            each = sizes | _sizes_of_parts(insertion, node, layout)
            node = insertion.call(aten.reshape.default, node, [each[part] for part in parts])
        node = insertion.call(aten.permute.default, node, [parts.index(part) for part in counted])
    return node, counted


def _counted(parts: list[str], order: str) -> list[str]:
    """Parts of a layout in the order of the letters, and those of one letter in the order of their numbers."""
    return sorted(parts, key=lambda part: (order.index(part[0]), part))


def _sizes_of_parts(insertion: Insertion, node: Node, layout: Layout) -> dict[str, int | Node]:
    """The sizes of batch and heads on several axes; -1 for one part of the batch, which the other sizes determine."""
    dims = {role[0]: dim for dim, role in enumerate(layout.roles) if len(role) == 1 and len(role[0]) > 1}
    merged = [part for role in layout.roles if len(role) > 1 for part in role if part[0] == "b"]
    inferred = merged or [part for part in layout.parts if part[0] == "b"][:1]
    return {
        part: -1 if part in inferred else insertion.size(node.meta["val"].shape[dim]) for part, dim in dims.items()
    } | dict.fromkeys(merged, -1)


def views_to_reshapes(node: Node) -> int:
    """Turn each `view` of a tensor into a `reshape`, which takes any strides; returns how many there were.

    Where a `view` may stand is a matter of the strides that were seen at capture, and torch.export leaves out the
    `contiguous` that does nothing for them. The two differ in nothing else, as nobody writes to a site's tensors.
    """
    fired = 0
    reached, stack = {node}, [node]
    while stack:
        for user in stack.pop().users:
            if user.target in LAYOUTS and user not in reached:
                reached.add(user)
                stack.append(user)
                if user.target is aten.view.default:
                    user.target = aten.reshape.default
                    fired += 1
    return fired
