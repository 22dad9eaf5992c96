"""Call a rewritten model as the original was called, with inputs by position or by name."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.export import ExportedProgram

from jetvit.patterns.errors import InputError
from jetvit.torch_private import pytree


def signature_of(model: nn.Module) -> inspect.Signature | None:
    """The signature of a model's `forward`; None where Python cannot tell."""
    try:
        return inspect.signature(model.forward)
    except (TypeError, ValueError):
        return None


def as_captured(
    signature: inspect.Signature, program: ExportedProgram, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The inputs of a call in the places that they had at capture.

    An input that the program was captured without is left out where it has its default value.

    Raises:
        InputError: an input has another value, or one of the program's is missing.
    """
    positional, named = _places(program)
    if len(args) == positional and kwargs.keys() == set(named):
        return tuple(args), dict(kwargs)
    values = dict(signature.bind_partial(*args, **kwargs).arguments)
    names = {parameter.kind: parameter.name for parameter in signature.parameters.values()}
    more = values.pop(names.get(inspect.Parameter.VAR_POSITIONAL, ""), ())
    values |= values.pop(names.get(inspect.Parameter.VAR_KEYWORD, ""), {})
    order = [p.name for p in signature.parameters.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    first = order[:positional]
    if missing := [name for name in (*first, *named) if name not in values]:
        raise InputError(f"the rewritten model needs {', '.join(missing)}", do="give what it was captured with")
    for name, value in values.items():
        if name in first or name in named:
            continue
        parameter = signature.parameters.get(name)
        if value is not (parameter.default if parameter is not None else None):
            raise InputError(
                f"the rewritten model does not take {name}",
                why="its graph was captured without it",
                do=f"give {name} among the example inputs of jetvit.optimize",
            )
    return (*(values[name] for name in first), *more), {name: values[name] for name in named}


class OtherShape(NamedTuple):
    """An input that has another shape than the example that a program was captured with."""

    name: str
    given: list[int]
    captured: list[int]

    def __str__(self) -> str:
        return f"{self.name} is {self.given}, captured was {self.captured}"

    def advice(self) -> str:
        """Advice for a program that was captured for fixed sizes."""
        if len(self.given) != len(self.captured):
            return "optimize for an input of this shape"
        pairs = enumerate(zip(self.given, self.captured, strict=True))
        differ = [axis for axis, (given, captured) in pairs if given != captured]
        axes = ", ".join(f"{axis}: torch.export.Dim.DYNAMIC" for axis in differ)
        least = ", with an example of at least 2 there" if any(self.captured[axis] == 1 for axis in differ) else ""
        return (
            "give jetvit.optimize dynamic=True for images of any size, or the sizes that may differ, as in "
            f"dynamic_shapes={{{self.name!r}: {{{axes}}}}}{least}; or optimize for this size"
        )


def other_shape(program: ExportedProgram, args: Sequence[Any], kwargs: Mapping[str, Any]) -> OtherShape | None:
    """The first input that has another shape than the example that a program was captured with."""
    if program.example_inputs is None:
        return None
    examples = pytree.tree_leaves(program.example_inputs)
    given = pytree.tree_leaves((tuple(args), dict(kwargs)))
    for name, example, value in zip(program.graph_signature.user_inputs, examples, given, strict=False):
        if isinstance(example, Tensor) and isinstance(value, Tensor) and example.shape != value.shape:
            return OtherShape(str(name), list(value.shape), list(example.shape))
    return None


def _places(program: ExportedProgram) -> tuple[int, list[str]]:
    """The number of inputs captured by position, and the names of the others."""
    inputs = program.call_spec.in_spec
    args, kwargs = inputs.child(0), inputs.child(1)
    return args.num_children, list(kwargs.context)
