"""Outputs without classes: dicts in place of dataclasses, so that a file loads where the class is not.

A dataclass (a HuggingFace ModelOutput is one), a named tuple or a dict of another class becomes a dict; entries that
are None are left out. Whoever loads the file can rebuild a dict, and no class that it does not know.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import inspect
from collections.abc import Mapping
from typing import Any, TypeVar

from torch import nn
from torch.export import ExportedProgram
from torch.export.graph_signature import OutputKind
from torch.fx import Node

from jetvit.torch_private import pytree

Model = TypeVar("Model", bound=nn.Module)


def with_plain_outputs(model: Model) -> Model:
    """A copy of `model` that shares all its modules and weights, under the same names, and returns plain outputs."""
    plain = copy.copy(model)
    forward = type(model).forward

    @functools.wraps(forward)
    def flattened(*args: Any, **kwargs: Any) -> Any:
        return _plain(forward(plain, *args, **kwargs))

    parameters = list(inspect.signature(forward).parameters.values())[1:]
    flattened.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    plain.forward = flattened
    return plain


def plain_program(program: ExportedProgram) -> ExportedProgram:
    """A program that returns plain outputs; one that does so already comes back itself. Tensors are shared."""
    spec = program.call_spec.out_spec
    results = pytree.tree_leaves(program.graph.output_node().args[0])
    specs = program.graph_signature.output_specs
    first = len(specs) - spec.num_leaves  # what the program writes to its buffers comes before what it returns
    leaves = [place if isinstance(results[first + place], Node) else None for place in range(spec.num_leaves)]
    kept, plain_spec = pytree.tree_flatten(_plain(pytree.tree_unflatten(leaves, spec)))
    if plain_spec == spec:
        return program
    assert all(each.kind == OutputKind.USER_OUTPUT for each in specs[first:])
    places = [first + (place if place is not None else leaves.index(None)) for place in kept]
    signature = copy.copy(program.graph_signature)
    signature.output_specs = [*specs[:first], *(copy.copy(specs[place]) for place in places)]
    module = copy.deepcopy(program.graph_module)
    output = module.graph.output_node()
    values = list(pytree.tree_leaves(output.args[0]))
    output.args = ((*values[:first], *(values[place] for place in places)),)
    module.recompile()
    calls = list(program.module_call_graph)
    whole = copy.deepcopy(calls[0])
    assert whole.fqn == ""
    assert whole.signature is not None
    whole.signature.out_spec = plain_spec
    if len(whole.signature.outputs) == len(leaves):  # torch.export leaves them out where it preserves no call
        whole.signature.outputs = [whole.signature.outputs[place - first] for place in places]
    calls[0] = whole
    return ExportedProgram(
        root=module,
        graph=module.graph,
        graph_signature=signature,
        state_dict=program.state_dict,
        range_constraints=program.range_constraints,
        module_call_graph=calls,
        example_inputs=program.example_inputs,
        constants=program.constants,
        verifiers=list(program.verifiers),
    )


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items() if item is not None}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return {key: _plain(item) for key, item in fields.items() if item is not None}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return {key: _plain(item) for key, item in value._asdict().items() if item is not None}
    if isinstance(value, list | tuple):
        return type(value)(_plain(item) for item in value)
    return value
