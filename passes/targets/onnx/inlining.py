"""Inline the bodies of jetvit's operators in an ONNX model, and find the operators again in an inlined graph.

OpenVINO and other runtimes do not know model-local functions. `inline_calls` replaces every call by the nodes of its
body. The node that computes the result keeps a record of the call in its metadata_props, under "jetvit.call": JSON with
the op_type, the names of the inputs, the attributes, and a SHA-256 of the body. `restore_calls` rebuilds the call where
the nodes of the graph still have that hash. A body that another tool has changed stays as it is: the graph is what
runtimes execute, and a record that no longer describes it is ignored.
"""

from __future__ import annotations

import hashlib
import json
import logging
import struct
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from jetvit.passes.targets.onnx.convention import DOMAIN, FLOAT, INT, VERSION, metadata_key, operator_of, parameters

if TYPE_CHECKING:
    import onnx_ir as ir

log = logging.getLogger(__name__)
RECORD = f"{DOMAIN}.call"
_MOST_BYTES = 2**20  # of a constant in a body: a larger one is a weight, which is an input of the call


def inline_calls(model: ir.Model) -> int:
    """Replace the calls of local functions of jetvit by the nodes of their bodies, each with a record of its call.

    Args:
        model: changed in place; `add_functions` gave its calls a body.
    Returns:
        The number of calls.
    """
    from onnx_ir.passes import common

    records: dict[str, dict[str, Any]] = {}
    for node in model.graph.all_nodes():
        operator = operator_of(node.domain, node.op_type)
        if operator is None or (node.domain, node.op_type, node.overload) not in model.functions:
            continue
        kinds = parameters(operator)
        exact = {name: node.metadata_props.pop(metadata_key(name), None) for name in kinds}
        records[str(node.outputs[0].name)] = {
            "op_type": node.op_type,
            "inputs": ["" if value is None else value.name for value in node.inputs],
            "attributes": {
                name: float(exact[name] or attribute.value) if kinds[name] == FLOAT else attribute.value
                for name, attribute in node.attributes.items()
            },
        }
    common.InlinePass(lambda function: function.domain == DOMAIN)(model)
    model.opset_imports.pop(DOMAIN, None)
    values = _values(model)
    for name, record in records.items():
        out, inputs = values[name], _inputs(record, values)
        last = out.producer()
        assert last is not None
        assert inputs is not None
        last.metadata_props[RECORD] = json.dumps({**record, "sha256": _Body(inputs).digest(out)})
    return len(records)


def restore_calls(model: ir.Model) -> int:
    """Replace inlined bodies by the calls that their records describe; returns how many.

    Args:
        model: changed in place.
    """
    found = [node for node in model.graph.all_nodes() if RECORD in node.metadata_props]
    if not found:
        return 0
    values = _values(model)
    count = 0
    for node in found:
        record = _parse(node.metadata_props[RECORD])
        inputs = None if record is None else _inputs(record, values)
        if record is None or inputs is None:
            log.warning("the record of the call in node %s does not fit the graph: ignored", node.name)
            continue
        body = _Body(inputs)
        if body.digest(node.outputs[0]) != record["sha256"]:
            log.warning("the body of %s in node %s was changed: read as plain operators", record["op_type"], node.name)
            continue
        _replace(node, record, inputs, body.nodes)
        count += 1
    if count:
        model.opset_imports[DOMAIN] = VERSION
        for graph in {id(node.graph): node.graph for node in model.graph.all_nodes()}.values():
            if graph is not None:
                graph.sort()  # an input that the body does not read may be computed after it
    return count


def _values(model: ir.Model) -> dict[str, ir.Value]:
    """The values of a model by name; inner graphs reuse no name of an outer one."""
    values: list[Any] = [*model.graph.inputs, *model.graph.initializers.values()]
    for graph in model.graph.subgraphs():
        values += [*graph.inputs, *graph.initializers.values()]
    values += [out for node in model.graph.all_nodes() for out in node.outputs]
    return {str(value.name): value for value in values if value.name}


def _parse(text: str) -> dict[str, Any] | None:
    """A record; None where it is no record of this version."""
    try:
        record = json.loads(text)
        operator = operator_of(DOMAIN, record["op_type"])
        kinds = {name: {INT: int, FLOAT: float}.get(kind, str) for name, kind in parameters(str(operator)).items()}
        names = all(isinstance(name, str) for name in record["inputs"])
        attributes = all(type(value) is kinds[name] for name, value in record["attributes"].items())
        return record if names and attributes and isinstance(record["sha256"], str) else None
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _inputs(record: Mapping[str, Any], values: Mapping[str, ir.Value]) -> list[ir.Value | None] | None:
    """The inputs of a call; None where one is missing from the graph."""
    if any(name and name not in values for name in record["inputs"]):
        return None
    return [values[name] if name else None for name in record["inputs"]]


def _replace(node: ir.Node, record: Mapping[str, Any], inputs: list[ir.Value | None], body: list[ir.Node]) -> None:
    """Put a call in front of the last node of its body, and remove what nothing reads then."""
    import onnx_ir as ir

    kinds = parameters(str(operator_of(DOMAIN, record["op_type"])))
    old = node.outputs[0]
    call = ir.node(record["op_type"], inputs, attributes=record["attributes"], domain=DOMAIN, name=node.name)
    call.metadata_props.update({key: text for key, text in node.metadata_props.items() if key != RECORD})
    floats = {name: value for name, value in record["attributes"].items() if kinds[name] == FLOAT}
    call.metadata_props.update({metadata_key(name): repr(value) for name, value in floats.items()})
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    ir.convenience.replace_nodes_and_values(graph, node, [node], [call], [old], call.outputs)
    for each in body:  # a node after all nodes that read it
        if each is not node and each.graph is graph and not any(out.uses() for out in each.outputs):
            graph.remove(each, safe=True)


class _Body:
    """The nodes between the inputs of a call and its result.

    The hash is that of the expression: neither names, nor the order of nodes, nor whether a constant is a node or an
    initializer changes it.

    Attributes:
        nodes: those that `digest` met, each after all that read it.
    """

    def __init__(self, inputs: list[ir.Value | None]):
        self._hashes = {value: f"input {index}" for index, value in enumerate(inputs) if value is not None}
        self._order: list[ir.Node] = []

    @property
    def nodes(self) -> list[ir.Node]:
        return self._order[::-1]

    def digest(self, value: ir.Value) -> str:
        """The hash of a value as an expression of the inputs."""
        if value not in self._hashes:
            self._hashes[value] = hashlib.sha256(self._text(value)).hexdigest()
        return self._hashes[value]

    def _text(self, value: ir.Value) -> bytes:
        node = value.producer()
        if value.const_value is not None or (node is not None and node.op_type == "Constant" and not node.domain):
            if node is not None:
                self._order.append(node)
            return _constant(value.const_value if node is None else next(iter(node.attributes.values())).value)
        if node is None:
            return b"another input: " + repr(value.name).encode()
        parts = [node.domain, node.op_type, str(node.outputs.index(value))]
        parts += sorted(f"{name}={_attribute(attribute)}" for name, attribute in node.attributes.items())
        parts += ["" if each is None else self.digest(each) for each in node.inputs]
        if node not in self._order:
            self._order.append(node)
        return "\n".join(parts).encode()


def _attribute(attribute: ir.Attr) -> str:
    value = attribute.value
    if attribute.type.name == "TENSOR":
        return _constant(value).hex()
    if attribute.type.name == "FLOAT":
        return struct.pack("<f", value).hex()  # as the file stores it
    return repr(list(value) if isinstance(value, tuple | list) else value)


def _constant(value: Any) -> bytes:
    """A key that tells constants apart: type, shape and bytes."""
    if not hasattr(value, "nbytes") or value.nbytes > _MOST_BYTES:
        return b"a constant that no body has"
    return f"{value.dtype.name} {list(value.shape)} ".encode() + value.tobytes()
