"""The matrix products of a graph whose results are added to the hidden state, and the sums that they go into."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import Node

aten = torch.ops.aten


@dataclass(frozen=True)
class Product:
    """A product x·Wᵀ + b with weights of its own, by the names of nodes.

    * node: the product. inputs: x. weight, bias: the weights; bias is "" where there is none.
    * total: the sum hidden + scale · product that it goes into; "" if it goes into none.
    * hidden: the other operand of that sum. scale: a weight [channels] (LayerScale); "" if there is none.
    """

    node: str
    inputs: str
    weight: str
    bias: str
    total: str = ""
    hidden: str = ""
    scale: str = ""


def products(nodes: list[Node], weights: Mapping[str, str]) -> Iterator[Product]:
    """All products of a graph whose weights nothing else uses, in order. weights: placeholder → FQN."""
    owners = Counter(weights.values())  # a weight may be there twice, by two placeholders
    for node in nodes:
        if node.target is not aten.linear.default:
            continue
        own = [each for each in node.args[1:] if isinstance(each, Node)]
        if all(each.name in weights and owners[weights[each.name]] == len(each.users) == 1 for each in own):
            bias = own[1].name if len(own) > 1 else ""
            yield Product(node.name, node.args[0].name, own[0].name, bias, **_destination(node, weights))


def _destination(product: Node, weights: Mapping[str, str]) -> dict[str, str]:
    """The sum that a product goes into, perhaps after LayerScale."""
    node, scale, shape = product, "", _shape(product)
    while len(node.users) == 1:
        user = next(iter(node.users))
        if user.target not in (aten.mul.Tensor, aten.add.Tensor) or user.kwargs or len(user.args) != 2:
            break
        other = user.args[1] if user.args[0] is node else user.args[0]
        if not isinstance(other, Node) or other is node:
            break
        if user.target is aten.add.Tensor:
            same = _shape(other) == shape == _shape(user) and other.name not in weights
            return {"total": user.name, "hidden": other.name, "scale": scale} if same else {}
        if scale or other.name not in weights or _shape(other) != shape[-1:]:
            break
        node, scale = user, other.name
    return {}


def _shape(node: Node) -> tuple[int, ...]:
    value = node.meta.get("val")
    return tuple(value.shape) if isinstance(value, Tensor) else ()
