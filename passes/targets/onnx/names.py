"""Readable names in an ONNX model: inputs, outputs and dynamic axes as the exported program calls them."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind, OutputKind

from jetvit.passes.graph.rewritable import free_name
from jetvit.torch_private import pytree

if TYPE_CHECKING:
    import onnx_ir as ir


def input_names(program: ExportedProgram) -> list[str]:
    """The names of the program's inputs in order, those of the model's arguments; nested ones are joined by "_"."""
    specs = [spec for spec in program.graph_signature.input_specs if spec.kind == InputKind.USER_INPUT]
    names = [getattr(spec.arg, "name", "input") for spec in specs]
    signature = program.module_call_graph[0].signature
    in_spec = program.call_spec.in_spec
    if in_spec is not None and in_spec.num_leaves == len(specs):
        args, kwargs = pytree.tree_unflatten(list(range(len(specs))), in_spec)
        called = (signature.forward_arg_names if signature is not None else None) or []
        # A placeholder is not called "input" even if the argument is: that is a name of Python's own.
        pairs = dict(zip(called, args, strict=False)) | kwargs
        found = {leaf: name for top, value in pairs.items() for leaf, name in _leaves(value, top)}
        names = [found.get(index, name) for index, name in enumerate(names)]
    read = program.graph_module.meta.get("onnx_input_names")  # of the file that the program was read from
    names = list(read) if read is not None and len(read) == len(names) else names
    return [name for name, spec in zip(names, specs, strict=True) if not isinstance(spec.arg, ConstantArgument)]


def output_names(program: ExportedProgram) -> list[str]:
    """The names of the program's outputs in order: the keys of a dict, else "output" or "output_0", "output_1", …"""
    specs = [spec for spec in program.graph_signature.output_specs if spec.kind == OutputKind.USER_OUTPUT]
    names = [f"output_{index}" for index in range(len(specs))]
    out_spec = program.call_spec.out_spec
    if out_spec is not None and out_spec.num_leaves == len(specs):
        value = pytree.tree_unflatten(list(range(len(specs))), out_spec)
        top = "" if isinstance(value, Mapping) or dataclasses.is_dataclass(value) else "output"
        found = dict(_leaves(value, top))
        names = [found.get(index, name) for index, name in enumerate(names)]
    return [name for name, spec in zip(names, specs, strict=True) if not isinstance(spec.arg, ConstantArgument)]


def _leaves(value: Any, path: str) -> Iterator[tuple[int, str]]:
    """The numbers in a structure, each with the keys and indices that lead to it."""
    if isinstance(value, int):
        yield value, path
        return
    items: Any = ()
    if isinstance(value, Mapping):  # and the outputs of transformers
        items = value.items()
    elif hasattr(value, "_fields"):
        items = zip(value._fields, value, strict=True)
    elif dataclasses.is_dataclass(value):
        items = ((field.name, getattr(value, field.name)) for field in dataclasses.fields(value))
    elif isinstance(value, list | tuple):
        items = enumerate(value)
    for key, item in items:
        yield from _leaves(item, f"{path}_{key}" if path else str(key))


def axis_names(inputs: list[ir.Value]) -> dict[str, str]:
    """Names for the dynamic axes of a model: from what the exporter calls an axis (s77) to batch, height, width.

    The first axis of an input is the batch. The inputs of four axes are images, with the channels second or last.
    Other axes are named after their input (`mask_dim_1`); an axis keeps the first name that it gets.
    """
    names: dict[str, str] = {}
    for value in inputs:
        dims = list(value.shape) if value.shape is not None else []
        roles = {0: "batch"}
        if len(dims) == 4:
            roles = {0: "batch", 1: "height", 2: "width"} if not isinstance(dims[1], int) else {}
            roles = roles or {0: "batch", 2: "height", 3: "width"}
        for axis, dim in enumerate(dims):
            symbol = None if isinstance(dim, int) else dim.value
            if symbol is None or symbol in names:
                continue
            name = roles.get(axis, f"{value.name}_dim_{axis}")
            names[symbol] = name if name not in names.values() else f"{value.name}_{name}_{axis}"
            if multiple := re.fullmatch(r"(\d+)\*(\w+)", symbol):  # a height in whole patches, 8*s39
                names.setdefault(multiple[2], f"({names[symbol]}//{multiple[1]})")
    return names


def rename(model: ir.Model, inputs: list[str], outputs: list[str]) -> None:
    """Give the inputs and outputs of a model their names; what had one of these names before gets another."""
    import onnx_ir as ir

    graph = model.graph
    named = [*zip(graph.inputs, inputs, strict=True)]
    for value, name in zip(graph.outputs, outputs, strict=True):
        # An output cannot be called as an input is.
        taken = {each for _, each in named}
        named.append((value, name if name not in taken else free_name(f"{name}_out", taken)))
    names = {name: value for value, name in named}
    everything = [*graph.inputs, *graph.initializers.values()]
    everything += [out for node in ir.traversal.RecursiveGraphIterator(graph) for out in node.outputs]
    taken = {str(value.name) for value in everything} | set(names)
    for value in everything:
        if value.name in names and names[value.name] is not value:
            free = free_name(value.name, taken)
            taken.add(free)
            _call(graph, value, free)
    for value, name in named:
        _call(graph, value, name)


def _call(graph: ir.Graph, value: ir.Value, name: str) -> None:
    """Rename a value; an initializer is filed under its name."""
    old = str(value.name)
    held = graph.initializers.get(old) is value
    if held:
        del graph.initializers[old]
    value.name = name
    if held:
        graph.initializers[name] = value
