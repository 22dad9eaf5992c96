"""From an .onnx file to an ExportedProgram."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram
from torch.fx.experimental.symbolic_shapes import ShapeEnv, is_concrete_int

from jetvit.passes.frontends.onnx import scopes
from jetvit.passes.frontends.onnx.interpreter import ImportedModel, check_operators, dtype_of, inputs_of
from jetvit.passes.frontends.onnx.normalizing import normalize
from jetvit.passes.frontends.onnx.reading import read_model
from jetvit.passes.frontends.onnx.values import UnsupportedError
from jetvit.patterns.errors import InputError
from jetvit.torch_private import FakeTensorMode

if TYPE_CHECKING:
    import onnx_ir as ir

log = logging.getLogger(__name__)

OBLONG = (224, 336)
"""Height and width of the example where both are open: multiples of 14 and of 16, and unlike each other."""
SQUARES = (224, 384, 448, 512, 518, 336, 256, 1024, 640, 192, 160, 128, 96, 64, 32)
_MOST_EXTRA = 16  # extra tokens in a table of position embeddings


def read_onnx(path: str | os.PathLike[str]) -> ExportedProgram:
    """Import an ONNX file: a program in the dialect of torch.export, with the modules' and weights' original names.

    A weight whose name the exporter made up is called by the bias beside it, by the original model's list of parameters
    in the file, or by the module that reads it. An attention whose node names no module is called by the projection
    behind it, else `layers.N.attn` by its position.

    An axis that the file leaves open is open in the program, if the graph works for other sizes; else it is fixed, and
    a warning says so. Inputs are taken by position under the file's names; the outputs are a dict by name, in the
    file's order. Tensors keep their dtypes. `program.example_inputs` hold random tensors, images of 3 channels.

    Raises:
        InputError: the file is no valid model, has operators that cannot be imported, or needs values of the input to
            compute a shape.
    """
    model, file = read_model(path), Path(path).name
    graph = model.graph
    if not scopes.mark(graph):
        log.info("%s names no modules: attentions are called by their position or by their weights", file)
    check_operators(model, file)
    normalize(model)
    scopes.fill(graph)
    module = ImportedModel(model, file).eval()
    chosen, openings = _choose_sizes(module, graph, file)
    program = _export(module, chosen, openings, file)
    _tell_fixed(program, chosen, openings, graph, file)
    # For whoever writes the program to a file again: a placeholder cannot have every name that an input can.
    program.graph_module.meta["onnx_input_names"] = [str(value.name) for value in inputs_of(graph)]
    _write_traces(program, module, graph)
    program.graph.eliminate_dead_code()  # what a peephole has passed over
    program.graph_module.recompile()
    return program


Sizes = list[list[int]]
Open = list[set[int]]


def _candidates(graph: ir.Graph) -> Iterator[tuple[Sizes, Open]]:
    """Sizes for the inputs, and which axes are left open, the most open first."""
    values = inputs_of(graph)
    every = [_axes(value) for value in values]
    image = any(len(axes) == 4 and any(isinstance(axes[index], str) for index in _plane(axes)) for axes in every)
    batch = any(axes and not isinstance(axes[0], int) for axes in every)
    squares = [(side, side) for side in dict.fromkeys((*_guessed_sides(graph), *SQUARES))]
    for count in (2, 1) if batch else (2,):
        for place in [OBLONG, *squares] if image else [OBLONG]:
            yield _filled(every, count, place, is_open=(count > 1, place == OBLONG))


def _axes(value: ir.Value) -> list[int | str]:
    """The sizes of an input: a number, or the name of an open axis."""
    if value.shape is None:
        return []
    return [
        dim if isinstance(dim, int) else str(dim.value) if dim.value is not None else f"{value.name}_{index}"
        for index, dim in enumerate(value.shape)
    ]


_CHANNELS = (1, 3, 4)


def _plane(axes: list[int | str]) -> tuple[int, int]:
    """The two of four axes that are height and width: the last two, or the middle ones if the channels come last."""
    return (1, 2) if axes[3] in _CHANNELS and axes[1] not in _CHANNELS else (2, 3)


def _filled(
    every: list[list[int | str]], batch: int, place: tuple[int, int], is_open: tuple[bool, bool]
) -> tuple[Sizes, Open]:
    """Numbers for the open axes: the same for the same name."""
    named: dict[str, tuple[int, bool]] = {}
    spare = iter(range(24, 10_000, 16))
    sizes: Sizes = []
    openings: Open = []
    for axes in every:
        own: list[int] = []
        for index, axis in enumerate(axes):
            if isinstance(axis, str) and axis not in named:
                if index == 0:
                    named[axis] = batch, is_open[0]
                elif len(axes) == 4:
                    plane = _plane(axes)
                    inside = index in plane
                    named[axis] = (place[plane.index(index)], is_open[1]) if inside else (3, False)
                else:
                    named[axis] = next(spare), True
            own.append(axis if isinstance(axis, int) else named[axis][0])
        sizes.append(own)
        openings.append({index for index, axis in enumerate(axes) if isinstance(axis, str) and named[axis][1]})
    return sizes, openings


def _guessed_sides(graph: ir.Graph) -> Iterator[int]:
    """Image sides that fit a fixed number of tokens: patches of the first convolution, tables of [1, tokens, dim]."""
    patch = 16
    for node in graph.all_nodes():
        if node.op_type == "Conv" and (strides := node.attributes.get("strides")) is not None:
            patch = int(strides.value[0])
            break
    for value in graph.initializers.values():
        shape = value.shape
        if shape is None or len(shape) != 3 or shape[0] != 1 or not isinstance(shape[1], int) or shape[1] < 5:
            continue
        for extra in range(_MOST_EXTRA):
            side = math.isqrt(max(shape[1] - extra, 0))
            if side > 1 and side * side == shape[1] - extra:
                yield side * patch


def _choose_sizes(module: ImportedModel, graph: ir.Graph, file: str) -> tuple[list[Tensor], Open]:
    """Example inputs on which the graph runs.

    Raises:
        InputError: there are none, for the reason of the first attempt.
    """
    first: InputError | None = None
    dtypes = [dtype_of(value, file) for value in inputs_of(graph)]
    for sizes, openings in _candidates(graph):
        try:
            with FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True), torch.no_grad():
                module(*[torch.zeros(each, dtype=dtype) for each, dtype in zip(sizes, dtypes, strict=True)])
        except InputError as error:
            if isinstance(error.__cause__, UnsupportedError):
                raise  # it is not a matter of sizes
            log.debug("%s does not run on %s: %s", file, sizes, error.why)
            first = first or error
            continue
        return [_example(each, dtype) for each, dtype in zip(sizes, dtypes, strict=True)], openings
    assert first is not None
    if all(isinstance(axis, int) for value in inputs_of(graph) for axis in _axes(value)):
        raise first
    raise InputError(
        f"{file} runs on none of the sizes that were tried",
        why=f"it leaves axes of its inputs open, but {first.what}: {first.why}",
        where=first.where,
        do="export the model with fixed sizes, or so that its graph holds for the sizes that it leaves open",
    ) from first


def _example(sizes: list[int], dtype: torch.dtype) -> Tensor:
    if dtype.is_floating_point:
        return torch.randn(sizes, generator=torch.Generator().manual_seed(0)).to(dtype)
    return torch.ones(sizes, dtype=dtype)


def _export(module: ImportedModel, examples: list[Tensor], openings: Open, file: str) -> ExportedProgram:
    shapes = tuple(dict.fromkeys(sorted(dims), Dim.AUTO) or None for dims in openings)
    try:
        with torch.no_grad():
            return torch.export.export(module, tuple(examples), dynamic_shapes=shapes, strict=False)
    except InputError:
        raise
    except Exception as error:  # whatever the tracer raises
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        if any(openings):
            log.info("%s cannot be traced with open sizes: %s", file, " ".join(lines[:3]))
            return _export(module, examples, [set() for _ in openings], file)
        raise InputError(
            f"{file} could not be traced",
            why=f"{type(error).__name__}: {' '.join(lines[:3])[:400]}",
            do="export the model again, with another opset or exporter if need be",
        ) from error


def _tell_fixed(program: ExportedProgram, examples: list[Tensor], openings: Open, graph: ir.Graph, file: str) -> None:
    """Warn of axes that the file leaves open and the program does not."""
    names = program.graph_signature.user_inputs
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    for value, example, name in zip(inputs_of(graph), examples, names, strict=True):
        shape = nodes[str(name)].meta["val"].shape
        fixed = [
            f"axis {index} ({axis}) at {example.shape[index]}"
            for index, axis in enumerate(_axes(value))
            if isinstance(axis, str) and is_concrete_int(shape[index])
        ]
        if fixed:
            log.warning("%s: the graph works for one size of %s only: fixed %s", file, value.name, ", ".join(fixed))


def _write_traces(program: ExportedProgram, module: ImportedModel, graph: ir.Graph) -> None:
    """Say of each node where it comes from: the model's code, or the node of the file."""
    places = {node: index for index, node in enumerate(graph.all_nodes(), 1)}
    for node in program.graph.nodes:
        entries: Any = node.meta.get("nn_module_stack") or {}
        source = None
        if entries:
            key, (path, _) = list(entries.items())[-1]
            _, _, number = key.partition("@")
            source = module.calls.get((path.partition("@")[0], int(number or 0)))
        node.meta.pop("stack_trace", None)
        if source is not None:
            node.meta["stack_trace"] = scopes.stack_trace(source, module.file, places.get(source, 0))
