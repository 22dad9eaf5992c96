"""One attention site of a captured graph, cut out as a module: from its projections of q, k and v to its output.

The same cut is made in the graph of the original model and in the graphs where the sites were rewritten. What a cut
takes from outside (the block's input, tables of a rotary embedding) has the same name in all of them, so that the cuts
of one site are exchangeable.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node

from jetvit.patterns.site import AttentionSite
from jetvit.torch_private import HigherOrderOperator

_PRODUCTS = {torch.ops.aten.linear.default, torch.ops.aten.addmm.default, torch.ops.aten.mm.default}


class CannotCut(Exception):
    """Why a site cannot be trained by itself; it keeps full attention."""


@dataclass(frozen=True)
class Cut:
    """The first and last nodes of a site, by name.

    starts: the products that yield q, k and v. end: the product of the output projection.
    """

    site: str
    starts: frozenset[str]
    end: str

    @classmethod
    def of(cls, site: AttentionSite) -> Cut:
        """The cut of a site. Raises CannotCut where it has no output projection of its own, or none before."""
        own = site.projections
        if own.out is None:
            raise CannotCut(f"{site.name} has no output projection, or shares it with another site")
        projections = [own.packed] if own.packed is not None else [own.q, own.k, own.v]
        starts = [linear.node for linear in projections if linear is not None]
        if len(starts) < len(projections):  # shared with another site, or with a bias that the graph puts together
            starts = [node for operand in (site.q, site.k, site.v) for node in _products_before(operand.node)]
        if not starts:
            raise CannotCut(f"no projection of {site.name} was found")
        return cls(site.name, frozenset(node.name for node in starts), own.out.node.name)


@dataclass(frozen=True)
class Branch:
    """A cut as a module: called with the values of the nodes `inputs`, in that order, it yields the site's output."""

    module: GraphModule
    inputs: tuple[str, ...]


def cut_out(cut: Cut, graph: GraphModule, outside: Mapping[str, Node], *, trained: bool) -> Branch:
    """A copy of a site as a module of its own.

    Parameters that only this site uses are its own, by their names in the model. Everything else comes from outside.

    Args:
        cut: the site.
        graph: the original model or one where sites were rewritten, with its tensors as attributes.
        outside: the nodes of the original model by name.
        trained: its parameters are copies, to be trained; else they share the model's storage, and are not.
    Raises:
        CannotCut: a value from the inside is used elsewhere, or the site is in a region of its own.
    """
    nodes = {node.name: node for node in graph.graph.nodes}
    if cut.end not in nodes or not cut.starts <= nodes.keys():
        raise CannotCut(f"{cut.site} is in a region of the graph (autocast, no_grad), or partly")
    end = nodes[cut.end]
    depends = _dependents(graph, cut)
    inside = _inside(end, depends, outside)
    for node in inside:
        if isinstance(node.target, HigherOrderOperator):
            raise CannotCut(f"{cut.site} is in a region of the graph (autocast, no_grad), or partly")
        for user in node.users if node in depends and node is not end else ():
            if user not in inside and not _is_check(user):
                raise CannotCut(f"{node.name}, inside of {cut.site}, is used outside of it, by {user.name}")
    own = {node for node in inside if node.op == "get_attr"}
    ordered = [node for node in graph.graph.nodes if node in inside]
    inputs = list(dict.fromkeys(each for node in ordered for each in node.all_input_nodes if each not in inside))
    copy = Graph()
    copies = {node: copy.placeholder(node.name) for node in inputs}
    attributes: dict[str, Tensor] = {}
    for node in ordered:
        copies[node] = copy.node_copy(node, lambda each: copies[each])
        if node in own:
            attributes[str(node.target)] = _own(_attribute(graph, str(node.target)), trained)
    copy.output(copies[end])
    return Branch(GraphModule(attributes, copy), tuple(node.name for node in inputs))


def _products_before(node: Node) -> list[Node]:
    """The nearest products with a weight that a value is made from."""
    found, seen, waiting = [], set(), [node]
    while waiting:
        each = waiting.pop()
        if each in seen:
            continue
        seen.add(each)
        if each.target in _PRODUCTS:
            found.append(each)
        else:
            waiting += each.all_input_nodes
    return found


def _dependents(graph: GraphModule, cut: Cut) -> set[Node]:
    """The site's first products, and all nodes that they have an influence on."""
    found: set[Node] = set()
    for node in graph.graph.nodes:
        if node.name in cut.starts or any(each in found for each in node.all_input_nodes):
            found.add(node)
    return found


def _inside(end: Node, depends: set[Node], outside: Mapping[str, Node]) -> set[Node]:
    """The nodes that the output needs, back to those that the original model has outside of the site."""
    found: set[Node] = set()
    waiting = [end]
    while waiting:
        node = waiting.pop()
        if node in found:
            continue
        found.add(node)
        for each in node.all_input_nodes:
            known = each.name in outside and outside[each.name].target == each.target
            if each in depends or not (known or each.op in ("placeholder", "get_attr")):
                waiting.append(each)
    # A tensor that another site uses as well is nobody's own.
    tensors = {each for node in found for each in node.all_input_nodes if each.op == "get_attr"}
    return found | {each for each in tensors if found.issuperset(each.users)}


def _is_check(node: Node) -> bool:
    """Report whether a node returns nothing: an assertion that capture left there."""
    return not node.users and node.op == "call_function" and "assert" in str(node.target)


def _attribute(graph: GraphModule, target: str) -> Tensor:
    owner, _, name = target.rpartition(".")
    value = getattr(graph.get_submodule(owner), name)
    if not isinstance(value, Tensor):
        raise CannotCut(f"{target} is no tensor")
    return value


def _own(value: Tensor, trained: bool) -> Tensor:
    if not isinstance(value, nn.Parameter):
        return value
    if trained and value.is_floating_point():
        return nn.Parameter(value.detach().clone())
    return nn.Parameter(value.detach(), requires_grad=False)


def frozen(graph: GraphModule) -> None:
    """Make all parameters of a module ones that are not trained, in place; they share the storage of the old ones."""
    for module in graph.modules():
        for name, value in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(value.detach(), requires_grad=False))
