"""The graph of an ONNX file as a module: it runs node by node on tensors, each in the module that it was made in."""

from __future__ import annotations

import functools
import inspect
import keyword
import re
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from jetvit.passes.frontends.onnx import (
    ops_attention,
    ops_entries,
    ops_jetvit,
    ops_math,
    ops_nn,
    ops_numbers,
    ops_reduce,
    ops_resize,
    ops_shape,
)
from jetvit.passes.frontends.onnx.call import ON_NUMBERS, OPERATORS, Call, as_tensor
from jetvit.passes.frontends.onnx.scopes import scope_of
from jetvit.passes.frontends.onnx.values import DTYPES, Known, UnsupportedError, Value, known
from jetvit.passes.frontends.onnx.weights import Scope, Weights
from jetvit.passes.targets.onnx.convention import DOMAIN
from jetvit.patterns.errors import InputError

if TYPE_CHECKING:
    import onnx_ir as ir

TABLES = (ops_attention, ops_entries, ops_math, ops_nn, ops_numbers, ops_reduce, ops_resize, ops_shape)
"""The modules whose import fills the tables of operators."""
_REFUSED = {
    "Loop": "a loop", "Scan": "a loop", "SequenceConstruct": "a sequence of tensors", "SequenceAt": "a sequence",
    "SplitToSequence": "a sequence of tensors", "ConcatFromSequence": "a sequence of tensors",
    "RandomNormal": "random numbers", "RandomNormalLike": "random numbers", "RandomUniform": "random numbers",
    "RandomUniformLike": "random numbers", "Bernoulli": "random numbers", "Multinomial": "random numbers",
}  # fmt: skip
_RESERVED = {"self", "torch", "math", "operator", "device", "inf", "nan", "NoneType", "pytree", "fx_pytree"}
"""Names that mean something in the Python code of a traced program: no argument may hide them."""
_CONTROL = {("", "If"), ("", "Constant")}


class ImportedModel(Scope):
    """A module that computes what an ONNX graph does, to be traced by torch.export.

    Its parameters and buffers are those that a run has read: run it once before it is traced. `forward` takes the
    graph's inputs by position and gives its outputs by name.

    Attributes:
        calls: (path of a module, number of its call) → the node that was run in it, of the last run.
    """

    def __init__(self, model: ir.Model, file: str):
        super().__init__()
        graph = model.graph
        self.file = file
        self.calls: dict[tuple[str, int], ir.Node] = {}
        self._graph = graph
        self._opsets = dict(model.opset_imports)
        self._weights = Weights(graph, self)
        self._counts: Counter[str] = Counter()
        # A Python signature, so that torch.export names the placeholders as the file does.
        forward = functools.partial(_forward, self)
        names = [f"input_{index}" for index in range(len(inputs_of(graph)))]
        for index, value in enumerate(inputs_of(graph)):
            name = re.sub(r"\W", "_", str(value.name))
            usable = name.isidentifier() and not keyword.iskeyword(name) and name not in _RESERVED
            names[index] = name if usable and name not in names else names[index]
        parameters = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in names]
        forward.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        self.forward = forward  # type: ignore[method-assign]

    def run_graph(self, inputs: Iterable[Tensor]) -> dict[str, Tensor]:
        """Run all nodes."""
        self.calls, self._counts = {}, Counter()
        values: dict[ir.Value, Value] = dict(zip(inputs_of(self._graph), inputs, strict=True))
        self._run(self._graph, values)
        outputs = {str(value.name): self._read(value, values) for value in self._graph.outputs}
        return {name: as_tensor(value, self._weights) for name, value in outputs.items() if value is not None}

    def _run(self, graph: ir.Graph, values: dict[ir.Value, Value]) -> None:
        for node in graph:
            results = self._node(node, values)
            for value, result in zip(node.outputs, results, strict=False):
                values[value] = result

    def _read(self, value: ir.Value | None, values: dict[ir.Value, Value]) -> Value:
        if value is None:
            return None
        if value not in values:
            if value.const_value is None:
                raise UnsupportedError(f"the value {value.name} is never computed")
            return self._weights.value(value)
        return values[value]

    def _node(self, node: ir.Node, values: dict[ir.Value, Value]) -> list[Value]:
        """The results of one node.

        Raises:
            InputError: the node cannot be run here.
        """
        domain = "" if node.domain == "ai.onnx" else node.domain
        try:
            if (domain, node.op_type) == ("", "Constant"):
                return [self._constant(node)]
            skipped = self._weights.read_as_stored(node)
            inputs = [
                None if index in skipped else self._read(value, values) for index, value in enumerate(node.inputs)
            ]
            if (domain, node.op_type) == ("", "If"):
                return self._branch(node, inputs[0], values)
            opset = self._opsets.get(domain, self._opsets.get(node.domain, 1))
            call = Call(node, inputs, opset, self._weights, values)
            return self._call(call, domain)
        except InputError:
            raise
        except (UnsupportedError, ValueError, RuntimeError, TypeError, IndexError, KeyError, AttributeError) as error:
            shapes = [_shape(values.get(value) if value is not None else None) for value in node.inputs]
            raise InputError(
                f"the ONNX operator {node.op_type} cannot be imported",
                why=f"{_line(error)} (inputs of shapes {shapes})",
                where=f"{self.file}: node {node.name or node.outputs[0].name}",
                do="export the model again, with another opset or exporter if need be",
            ) from error

    def _call(self, call: Call, domain: str) -> list[Value]:
        node = call.node
        every = [value for value in call.inputs if value is not None]
        if domain == "" and every and all(isinstance(value, Known) for value in every) and node.op_type in ON_NUMBERS:
            answer = ON_NUMBERS[node.op_type](call)
            if answer is not None:
                return answer if isinstance(answer, list) else [answer]
        function = ops_jetvit.rewritten if domain == DOMAIN else OPERATORS[domain, node.op_type]
        scope = scope_of(node)
        if scope:
            module, scope = self._weights.scope(scope)
            self.calls[scope, self._counts[scope]] = node
            self._counts[scope] += 1
            answer = module(functools.partial(function, call))
        else:
            answer = function(call)
        return answer if isinstance(answer, list) else [answer]

    def _constant(self, node: ir.Node) -> Value:
        (attribute,) = node.attributes.values()
        if attribute.name == "value":
            if node.outputs[0].const_value is None:  # an output of the graph, which is not lifted to an initializer
                node.outputs[0].const_value = attribute.value
            return self._weights.value(node.outputs[0])
        numbers = {"value_int": torch.int64, "value_ints": torch.int64, "value_float": torch.float32,
                   "value_floats": torch.float32}  # fmt: skip
        if attribute.name not in numbers:
            raise UnsupportedError(f"a constant of {attribute.name}")
        value = attribute.value
        return known(list(value) if isinstance(value, tuple | list) else value, numbers[attribute.name])

    def _branch(self, node: ir.Node, condition: Value, values: dict[ir.Value, Value]) -> list[Value]:
        """The branch that the sizes of the input, or a constant, choose."""
        if not isinstance(condition, Known):
            raise UnsupportedError("the condition depends on the values of the model's input")
        branch = node.attributes["then_branch" if condition.number else "else_branch"].as_graph()
        self._run(branch, values)
        return [self._read(value, values) for value in branch.outputs]


def _forward(model: ImportedModel, *inputs: Tensor) -> dict[str, Tensor]:
    return model.run_graph(inputs)


def inputs_of(graph: ir.Graph) -> list[ir.Value]:
    """The inputs of a graph's call: old files list their constants as inputs too."""
    return [value for value in graph.inputs if value.const_value is None]


def dtype_of(value: ir.Value, file: str) -> torch.dtype:
    """The type of an input.

    Raises:
        InputError: it is no tensor, or of a type that PyTorch has not.
    """
    dtype = DTYPES.get(int(value.dtype)) if value.dtype is not None else None
    if dtype is None:
        raise InputError(
            f"the input {value.name} of {file} cannot be read", why=f"it is of type {value.type}", do="give it tensors"
        )
    return dtype


def check_operators(model: ir.Model, file: str) -> None:
    """Refuse a graph with operators that are not known, all of them at once.

    Raises:
        InputError: names each operator, its domain, how many nodes there are of it, and one of them.
    """
    missing: dict[tuple[str, str], list[ir.Node]] = {}
    for node in model.graph.all_nodes():
        domain = "" if node.domain == "ai.onnx" else node.domain
        if domain != DOMAIN and (domain, node.op_type) not in OPERATORS and (domain, node.op_type) not in _CONTROL:
            missing.setdefault((domain, node.op_type), []).append(node)
    if not missing:
        return
    parts = []
    for (domain, name), nodes in missing.items():
        what = f" ({_REFUSED[name]})" if domain == "" and name in _REFUSED else ""
        count = f"{len(nodes)} node{'s' if len(nodes) > 1 else ''}, such as {nodes[0].name or nodes[0].outputs[0].name}"
        parts.append(f"{name} of the domain {domain or 'ai.onnx'}{what}: {count}")
    raise InputError(
        f"{file} has operators that cannot be imported",
        why="; ".join(parts),
        do="export the model without them, or load the PyTorch model that the file was exported from",
    )


def _line(error: Exception) -> str:
    first = str(error).strip().split("\n", 1)[0][:200]
    return first if isinstance(error, UnsupportedError) else f"{type(error).__name__}: {first}"


def _shape(value: Value) -> list[Any] | None:
    return None if value is None else list(value.shape)
