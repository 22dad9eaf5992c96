"""A stand-in for Torch-TensorRT: the functions have the names of the real ones' parameters, and note their calls."""

from __future__ import annotations

import inspect
import itertools
import sys
from collections.abc import Callable, Sequence
from dataclasses import make_dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch._dynamo.backends import registry

from benchmarks.targets.converters import Signature, release
from jetvit.passes.targets.tensorrt import plugins
from jetvit.torch_private import type_named


class Input:
    """`torch_tensorrt.Input`: what it was made with."""

    def __init__(self, **given: Any):
        self.given = given

    def __repr__(self) -> str:
        return f"Input({self.given})"


class Release:
    """The calls that were made, by name, with their arguments by name."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.compiled = torch.fx.symbolic_trace(torch.nn.Identity())

    def named(self, name: str) -> list[dict[str, Any]]:
        return [arguments for called, arguments in self.calls if called == name]

    def _function(self, name: str, signature: Signature, effect: Callable[..., Any]) -> Callable[..., Any]:
        """A function of a real signature: a keyword that the real one has not is an error, not swallowed."""
        kinds = (
            (signature.positional, inspect.Parameter.POSITIONAL_OR_KEYWORD),
            (signature.keyword, inspect.Parameter.KEYWORD_ONLY),
        )
        parameters = [inspect.Parameter(each, kind, default=None) for names, kind in kinds for each in names]
        shape = inspect.Signature(parameters)

        def function(*args: Any, **kwargs: Any) -> Any:
            arguments = dict(shape.bind(*args, **kwargs).arguments)
            self.calls.append((name, arguments))
            return effect(**arguments)

        function.__signature__ = shape  # type: ignore[attr-defined]
        return function

    def install(self, patch: pytest.MonkeyPatch) -> None:
        """Be `torch_tensorrt` from now on, with its backends of torch.compile registered."""
        known = release()
        names = (
            "torch_tensorrt",
            *(f"torch_tensorrt.{rest}" for rest in ("dynamo", "dynamo.conversion", "dynamo.conversion.plugins")),
        )
        modules = {name: ModuleType(name) for name in names}
        for name, module in modules.items():
            parent, _, last = name.rpartition(".")
            patch.setitem(sys.modules, name, module)
            if parent:
                setattr(modules[parent], last, module)
        effects: dict[str, Callable[..., Any]] = {
            "dynamo.compile": lambda **_: self.compiled,
            "save": lambda file_path, **_: Path(file_path).write_text("an engine", encoding="utf-8"),
            "dynamo.conversion.plugins.custom_op": lambda **_: None,
        }
        for name, effect in effects.items():
            place, _, last = f"torch_tensorrt.{name}".rpartition(".")
            setattr(modules[place], last, self._function(name, known.signatures[name], effect))
        root: Any = modules["torch_tensorrt"]
        root.Input = Input
        root.dynamo.CompilationSettings = make_dataclass("CompilationSettings", known.settings)
        for name in known.backends:
            patch.setitem(registry._COMPILER_FNS, name, self._backend)
            patch.setitem(registry._BACKENDS, name, None)
        patch.setattr(plugins, "_registered", set())

    def _backend(self, gm: torch.fx.GraphModule, inputs: list[Any], **kwargs: Any) -> Callable[..., Any]:
        self.calls.append(("backend", {"graph": gm, "inputs": inputs, **kwargs}))
        return gm


def schema_refusals(schema: torch.FunctionSchema, types: Sequence[str]) -> list[str]:
    """List why the plugin generator takes no such schema, one sentence a reason; empty if it takes it.

    Args:
        schema: of an operator.
        types: the types that the generator takes, by their names in `torch._C`.
    """
    known = [type_named(name) for name in types]
    found = [
        f"{each.name} is a {each.type}, which the generator does not take"
        for each in schema.arguments
        if not any(each.type.isSubtypeOf(kind) for kind in known)
    ]
    tensors = [each.type.isSubtypeOf(type_named("TensorType")) for each in schema.arguments]
    if any(later and not earlier for earlier, later in itertools.pairwise(tensors)):
        found.append("a tensor stands after an attribute: the converter takes the first arguments for the tensors")
    if schema.overload_name:
        found.append(f"it is the overload {schema.overload_name!r}, and the generator looks up the default one")
    if any(not each.type.isSubtypeOf(type_named("TensorType")) for each in schema.returns):
        found.append("it returns something else than tensors")
    return found
