"""The way out to TensorRT: a program becomes TensorRT engines in one file, by Torch-TensorRT.

Nothing here has run with TensorRT itself, which needs a GPU: the tests prove that every
operator of the graph that is handed over has a converter, and check the calls against the signatures of the release.
"""

from __future__ import annotations

import importlib
import inspect
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import SymInt, Tensor
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.export.passes import move_to_device_pass
from torch.fx import GraphModule

from jetvit.passes.targets.tensorrt.plugins import register_plugins
from jetvit.passes.targets.tensorrt.prepare import prepare
from jetvit.patterns.errors import InputError
from jetvit.patterns.wording import counted, did_you_mean
from jetvit.torch_private import bound_sympy, int_oo, pytree

INSTALL = "pip install 'jetvit[tensorrt]', on a machine with an NVIDIA GPU, CUDA and TensorRT"
MAX_SIZE = 2**31 - 1

# Double precision is what TensorRT has not; a block of one operator in TensorRT still saves a change of runtime.
SETTINGS: Mapping[str, Any] = {"truncate_double": True, "min_block_size": 1}

Shapes = Mapping[str, Sequence[int]]


def require_tensorrt() -> Any:
    """The module `torch_tensorrt`.

    Raises:
        InputError: it is not installed, or it cannot be loaded here, as where there is no GPU.
    """
    try:
        module = importlib.import_module("torch_tensorrt")
        importlib.import_module("torch_tensorrt.dynamo")
    except ModuleNotFoundError as error:
        raise InputError(
            "the target TensorRT needs Torch-TensorRT", why=f"the package {error.name} is not installed", do=INSTALL
        ) from error
    except Exception as error:  # it raises whatever it likes where CUDA or TensorRT is missing
        why = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise InputError("Torch-TensorRT cannot be loaded here", why=why, do=INSTALL) from error
    return module


def compile_tensorrt(
    program: ExportedProgram,
    *,
    plugins: bool = False,
    max_shapes: Shapes | None = None,
    **settings: Any,
) -> GraphModule:
    """Compile a program to TensorRT engines, for the GPU of this machine.

    Args:
        program: a rewritten program; it is not changed. Its open sizes become ranges that the engine takes, tuned for
            the sizes of its example inputs.
        plugins: see `prepare`.
        max_shapes: the largest shape of an input by its name, where the program's own sizes have no upper bound.
        settings: of `torch_tensorrt.dynamo.compile`; they take precedence over `SETTINGS`.
    Returns:
        The module that `torch_tensorrt.dynamo.compile` gives.
    Raises:
        InputError: Torch-TensorRT is missing, a setting is not known, or a size has no upper bound.
        RewriteError: as `prepare`.
    """
    library = require_tensorrt()
    settings = {**SETTINGS, **settings}
    _check_settings(settings, _parameters(library.dynamo.compile), "torch_tensorrt.dynamo.compile")
    if "use_explicit_typing" in _parameters(library.dynamo.compile):
        settings.setdefault("use_explicit_typing", True)  # releases that type engines weakly unless they are asked
    args, kwargs, _ = engine_inputs(library, program, max_shapes)
    program = on_gpu(prepare(program, plugins=plugins))
    if plugins:
        register(library, [node.target for node in program.graph.nodes])
    return library.dynamo.compile(program, arg_inputs=args, kwarg_inputs=kwargs, **settings)


def write_tensorrt(
    program: ExportedProgram,
    path: str | os.PathLike[str],
    *,
    plugins: bool = False,
    max_shapes: Shapes | None = None,
    **settings: Any,
) -> None:
    """Compile a program and write it as a file of torch.export, with the engines inside.

    `torch_tensorrt.load(path).module()` loads it on a GPU of the same kind with the same TensorRT; an engine with
    plugins only after `jetvit.passes.targets.tensorrt.register()`. The file appears whole, or not at all.

    Args, Raises: as `compile_tensorrt`; path: the file, an old one is replaced.
    """
    library = require_tensorrt()
    args, kwargs, constants = engine_inputs(library, program, max_shapes)
    module = compile_tensorrt(program, plugins=plugins, max_shapes=max_shapes, **settings)
    place = Path(path)
    with tempfile.TemporaryDirectory(dir=place.parent, prefix=f".{place.name}.") as folder:
        written = Path(folder) / place.name
        # Arguments that are no tensors cannot be given to it, and so it cannot be traced again with them.
        library.save(
            module,
            str(written),
            output_format="exported_program",
            arg_inputs=args,
            kwarg_inputs=kwargs,
            retrace=not constants,
        )
        written.replace(place)


def register(library: Any | None = None, targets: Iterable[Any] | None = None) -> list[str]:
    """Register jetvit's plugins with TensorRT: before an engine that holds some is built, or loaded.

    Args:
        library: `torch_tensorrt`; imported where it is not given.
        targets: operators; only plugins among them are registered. None: all of jetvit's.
    Returns:
        The names that were registered now; each is registered once in a process.
    Raises:
        InputError: Torch-TensorRT is missing.
    """
    library = require_tensorrt() if library is None else library
    custom_op = library.dynamo.conversion.plugins.custom_op
    return register_plugins(custom_op) if targets is None else register_plugins(custom_op, targets)


def engine_inputs(
    library: Any, program: ExportedProgram, max_shapes: Shapes | None = None
) -> tuple[list[Any], dict[str, Any], bool]:
    """The inputs of a program as `torch_tensorrt.Input`: (positional, by keyword, whether others were left out).

    Raises:
        InputError: an open size has no upper bound, or `max_shapes` does not fit.
    """
    max_shapes = dict(max_shapes or {})
    names = [spec.arg.name for spec in program.graph_signature.input_specs if spec.kind is InputKind.USER_INPUT]
    if unknown := [name for name in max_shapes if name not in names]:
        raise InputError(f"the program has no input {unknown[0]!r}", do=f"its inputs are {', '.join(names)}")
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    given = pytree.tree_leaves(program.example_inputs) if program.example_inputs is not None else []
    examples = given if len(given) == len(names) else [None] * len(names)
    values = [nodes[name].meta.get("val") for name in names]
    leaves = [
        _input(library, program, name, value, example, max_shapes.get(name)) if isinstance(value, Tensor) else None
        for name, value, example in zip(names, values, examples, strict=True)
    ]
    args, kwargs = pytree.tree_unflatten(leaves, program.call_spec.in_spec)
    named = {name: value for name, value in kwargs.items() if _holds_inputs(value)}
    return [value for value in args if _holds_inputs(value)], named, None in leaves


def _holds_inputs(value: Any) -> bool:
    return any(each is not None for each in pytree.tree_leaves(value))


def _input(
    library: Any, program: ExportedProgram, name: str, value: Tensor, example: Any, largest: Sequence[int] | None
) -> Any:
    if all(isinstance(size, int) for size in value.shape):
        return library.Input(shape=tuple(value.shape), dtype=value.dtype, name=name)
    if largest is not None and len(largest) != value.dim():
        raise InputError(
            f"the largest shape of {name} has {counted(len(largest), 'axis', 'axes')}",
            why=f"the input has {value.dim()}",
        )
    shapes: list[tuple[int, int, int]] = []
    for axis, size in enumerate(value.shape):
        tuned = int(example.shape[axis]) if isinstance(example, Tensor) else None
        shapes.append(_range(program, name, axis, size, tuned, None if largest is None else largest[axis]))
    low, middle, high = (tuple(each) for each in zip(*shapes, strict=True))
    return library.Input(min_shape=low, opt_shape=middle, max_shape=high, dtype=value.dtype, name=name)


def _range(
    program: ExportedProgram, name: str, axis: int, size: int | SymInt, tuned: int | None, largest: int | None
) -> tuple[int, int, int]:
    """(smallest, tuned for, largest) of an axis."""
    if isinstance(size, int):
        return size, size, size
    bounds = bound_sympy(size.node.expr, program.range_constraints)
    low = max(1, int(bounds.lower)) if bounds.lower != -int_oo else 1
    if largest is None and (bounds.upper == int_oo or bounds.upper > MAX_SIZE):
        raise InputError(
            f"axis {axis} of {name} has no upper bound",
            why="an engine is built for a range of sizes",
            do=f'give max_shapes={{"{name}": …}}, or capture with torch.export.Dim(…, min=…, max=…)',
        )
    high = largest if largest is not None else int(bounds.upper)
    if high < low:
        raise InputError(f"axis {axis} of {name} is at least {low}", why=f"its largest size is given as {high}")
    return low, min(max(tuned if tuned is not None else high, low), high), high


def on_gpu(program: ExportedProgram) -> ExportedProgram:
    """The program on the GPU, where Torch-TensorRT folds its constants; itself where it is there or there is none."""
    on_cpu = any(tensor.device.type == "cpu" for tensor in program.state_dict.values())
    return move_to_device_pass(program, "cuda") if on_cpu and torch.cuda.is_available() else program


def check_backend_settings(library: Any, settings: Mapping[str, Any]) -> None:
    """Refuse an option that Torch-TensorRT's backend of torch.compile would pass over in silence.

    Raises:
        InputError: it has no such setting.
    """
    known = getattr(library.dynamo.CompilationSettings, "__dataclass_fields__", {})
    _check_settings(settings, [*known, "debug"], "the tensorrt backend")


def _parameters(function: Callable[..., Any]) -> list[str]:
    kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return [name for name, each in inspect.signature(function).parameters.items() if each.kind not in kinds]


def _check_settings(settings: Mapping[str, Any], known: Sequence[str], what: str) -> None:
    for name in settings:
        if name not in known:
            raise InputError(f"{what} has no setting {name!r}", do=did_you_mean(name, known))
