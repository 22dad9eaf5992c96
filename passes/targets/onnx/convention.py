"""The form of a jetvit operator in an ONNX file, for writers and for readers.

By default calls are inlined (`inlining`), and a record in the metadata of the last node keeps what follows. Otherwise a
call of `jetvit::linear_attention`, `window_attention` or `full_attention` is one node:

* domain "jetvit", imported in version 1;
* op_type: the operator's name; where the file brings a body for it, a local function, the name has a suffix after "_"
  that tells apart functions made for different arguments (`linear_attention_conv3`). The suffix means nothing else:
  the arguments of a call are always all on the node;
* inputs: the operator's tensor arguments, then its int arguments, each at its own place in the order of the schema. An
  int is a scalar int64 where it is computed in the graph (a symbolic grid). A tensor that the operator takes as
  absent, and an int that is known, is an empty input ""; empty inputs at the end are left out;
* attributes: the int arguments that are known (INT), the float arguments (FLOAT), the str arguments (STRING), each
  under its name in the schema. An int argument is an input or an attribute, never both;
* metadata_props: "jetvit.NAME" for a float argument, its exact value in decimal, because FLOAT has 32 bits only;
* output: one, the shape and dtype of the first input.

Inputs by position, all operators in one view:

    linear_attention  q k v rope_y rope_x w1 b1 w2 b2 grid_h grid_w extra_before conv_size
    window_attention  q k v rope_y rope_x grid_h grid_w extra_before window_h window_w
    full_attention    q k v rope_y rope_x grid_h grid_w extra_before

`read_call` is the reader: from a node to the operator and its arguments.
"""

from __future__ import annotations

import functools
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from jetvit.patterns.errors import InputError
from jetvit.patterns.wording import counted
from jetvit.torch_private import schema

if TYPE_CHECKING:
    import onnx_ir as ir

DOMAIN = "jetvit"
VERSION = 1
OPERATORS = ("linear_attention", "window_attention", "full_attention")
TENSOR, INT, FLOAT, STRING = "Tensor", "int", "float", "str"


@dataclass(frozen=True)
class Call:
    """One call of an operator, read from a node.

    `arguments` has every argument of the operator in the order of its schema. A tensor is an `onnx_ir.Value`, or None
    where it is absent; an int is an int, or the scalar int64 `onnx_ir.Value` that yields it; a float is exact.
    """

    operator: str
    arguments: dict[str, Any]


def overload(operator: str) -> Any:
    """The ATen overload, `torch.ops.jetvit.<operator>.default`."""
    return getattr(torch.ops.jetvit, operator).default


@functools.cache
def parameters(operator: str) -> dict[str, str]:
    """Name → "Tensor", "int", "float" or "str", in the order of the operator's schema."""
    return {argument.name: str(argument.type) for argument in schema(overload(operator)).arguments}


@functools.cache
def input_names(operator: str) -> tuple[str, ...]:
    """The arguments that have a place among the inputs: the tensors and the ints."""
    return tuple(name for name, kind in parameters(operator).items() if kind in (TENSOR, INT))


def operator_of(domain: str, op_type: str) -> str | None:
    """The operator that a node of this domain and op_type calls; None for any other node."""
    if domain != DOMAIN:
        return None
    return next((name for name in OPERATORS if op_type == name or op_type.startswith(f"{name}_")), None)


def metadata_key(argument: str) -> str:
    """The key under which a node keeps the exact value of a float argument."""
    return f"{DOMAIN}.{argument}"


def read_call(node: ir.Node) -> Call | None:
    """The operator and the arguments that a node calls it with; None where it calls none.

    Raises:
        InputError: the node is of the domain "jetvit", but breaks the convention.
    """
    operator = operator_of(node.domain, node.op_type)
    if operator is None:
        return None
    names = input_names(operator)
    if len(node.inputs) > len(names):
        raise _broken(node, f"it has {counted(len(node.inputs), 'input')}, {operator} takes at most {len(names)}")
    inputs = dict(zip(names, [*node.inputs, *[None] * (len(names) - len(node.inputs))], strict=True))
    arguments: dict[str, Any] = {}
    for name, kind in parameters(operator).items():
        if kind == TENSOR or inputs.get(name) is not None:
            arguments[name] = inputs[name]
            continue
        attribute = node.attributes.get(name)
        if attribute is None or attribute.type.name != {INT: "INT", FLOAT: "FLOAT", STRING: "STRING"}[kind]:
            raise _broken(node, f"{name} of {operator} is neither an input nor an attribute of type {kind}")
        arguments[name] = attribute.value
        if kind == FLOAT:
            arguments[name] = _exact(attribute.value, node.metadata_props.get(metadata_key(name)))
    return Call(operator, arguments)


def _exact(stored: float, text: str | None) -> float:
    """The float behind an attribute of 32 bits; the text is believed where it rounds to the attribute."""
    try:
        value = float(text) if text is not None else stored
    except ValueError:
        return stored
    return value if _rounded(value) == _rounded(stored) else stored


def _rounded(value: float) -> bytes:
    try:
        return struct.pack("<f", value)
    except OverflowError:
        return b""


def _broken(node: ir.Node, why: str) -> InputError:
    return InputError(
        f"the node {node.name or node.op_type} of the domain jetvit cannot be read",
        why=why,
        do="write the file again with `jetvit export --target onnx`",
    )
