"""The two ways in: `torch.export` and a Dynamo graph, both to the same pre-dispatch ATen dialect."""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from functools import partial
from typing import Any

import torch
import torch.fx.traceback
from torch import nn
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx

from jetvit.passes.frontends.capture_check import check_capture, warn_of_training
from jetvit.passes.frontends.collected_keywords import with_named_keywords
from jetvit.passes.frontends.emit import OptimizedModule
from jetvit.passes.frontends.export_errors import explained
from jetvit.passes.frontends.scalar_reads import Told, is_about_values, read_values, size_of_values
from jetvit.passes.frontends.unchanged import unchanged, warn_of_hooks
from jetvit.passes.graph.region_interpreter import RegionInterpreter, ambient_autocast
from jetvit.passes.graph.rewritable import DynamoGraph, ExportedGraph
from jetvit.passes.graph.source_lines import failing_line, first_lines
from jetvit.patterns.errors import CaptureError
from jetvit.patterns.names import clean_name
from jetvit.patterns.wording import operator_name
from jetvit.torch_private import (
    FakeTensor,
    FakeTensorMode,
    TracingContext,
    detect_fake_mode,
    symbols_of_input,
    tracing,
)
from jetvit.torch_private import OptimizedModule as CompiledModule

aten = torch.ops.aten
_DECOMPOSED = (aten._softmax.default, aten.native_layer_norm.default, aten._native_batch_norm_legit_no_training.default)


def export_model(
    model: nn.Module | ExportedProgram,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
    check: bool = True,
) -> ExportedProgram:
    """Export a model for inference; an ExportedProgram is returned as it is, and so is that of a rewritten model.

    Args:
        check: run the model and what was captured on the inputs, and compare.
    Raises:
        CaptureError: torch.export cannot capture the model, it captured another computation than the model's, or a
            program was given that was decomposed already.
    """
    if isinstance(model, OptimizedModule):
        return model.program
    if isinstance(model, ExportedProgram):
        _refuse_decomposed(model)
        return model
    if not isinstance(model, nn.Module):
        raise CaptureError(
            f"a {type(model).__name__} cannot be captured",
            do="give an nn.Module or a torch.export.ExportedProgram",
        )
    if isinstance(model, CompiledModule):
        raise CaptureError(
            "what torch.compile returned cannot be captured",
            why="it holds compiled code, made anew for other inputs",
            do="give the module that torch.compile was given; compile what jetvit returns",
        )
    warn_of_hooks(model)
    kwargs = kwargs or {}
    try:
        program = _export(model, args, kwargs, dynamic_shapes)
    except CaptureError:
        raise
    except Exception as error:
        raise _refusal(model, args, kwargs, dynamic_shapes, error) from error
    warn_of_training(model, program)
    if check:
        check_capture(model, program, args, kwargs)
    return program


def _refusal(
    model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], dynamic_shapes: Any, error: Exception
) -> CaptureError:
    """The error for a failed export: the model's own, where it does not run on these inputs in eager mode either."""
    try:
        refuse_inputs(model, args, kwargs)
    except CaptureError as own:
        return own
    why, do = explained(error)
    if dynamic_shapes is not None and not do.startswith("give example inputs"):
        do = f"leave dynamic_shapes out, or {do}"
    return CaptureError(
        f"{type(model).__name__} could not be captured by torch.export", why=why, where=failing_line(error), do=do
    )


def refuse_inputs(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Raise CaptureError for inputs that the model itself does not run on."""
    try:
        with torch.no_grad(), unchanged(model):
            model(*args, **kwargs)
    except Exception as own:
        raise CaptureError(
            f"{type(model).__name__} does not run on these inputs",
            why=first_lines(own),
            where=failing_line(own),
            do="give inputs that the model itself can be called with",
        ) from own


def _export(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], dynamic_shapes: Any) -> ExportedProgram:
    """Export a model; where its code reads numbers off constants, a second time, with these numbers."""
    export = partial(torch.export.export, model, tuple(args), dict(kwargs), strict=False)
    with torch.no_grad(), unchanged(model), _without_tracebacks():
        try:
            with _without_graphs():
                return export(dynamic_shapes=with_named_keywords(model, args, kwargs, dynamic_shapes))
        except Exception as error:
            if not is_about_values(error):
                raise
    with torch.no_grad(), unchanged(model), _without_tracebacks():
        reads = read_values(model, args, kwargs)
        if dynamic_shapes is not None:
            raise CaptureError(
                "the model reads a value off a tensor, and sizes are to stay open",
                why="what is read may depend on them",
                where=reads[0].line if reads else "",
                do="leave dynamic_shapes out, and optimize for each size",
            )
        try:
            with Told(reads), _without_graphs():
                return export()
        except Exception as error:
            if isinstance(error, CaptureError) or not is_about_values(error):
                raise
            raise size_of_values(error) from error


@contextmanager
def _without_graphs() -> Iterator[None]:
    """Keep torch from printing the whole graph so far where an export fails on a value; the error tells of it."""
    printed, graph = io.StringIO(), ""
    try:
        with redirect_stderr(printed):
            yield
    except Exception as error:
        graph = f"{getattr(error, 'partial_fx_graph', '')}\n"
        raise
    finally:
        sys.stderr.write(printed.getvalue().replace(graph, "") if graph else printed.getvalue())


@contextmanager
def _without_tracebacks() -> Iterator[None]:
    """Keep torch from logging the traceback of an operator that refuses its inputs; the error tells of it."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")

    def is_other(record: logging.LogRecord) -> bool:
        return not record.msg.startswith("failed while attempting to run meta")

    logger.addFilter(is_other)
    try:
        yield
    finally:
        logger.removeFilter(is_other)


def _refuse_decomposed(program: ExportedProgram) -> None:
    for module in program.graph_module.modules():
        for node in getattr(getattr(module, "graph", None), "nodes", ()):
            if node.target in _DECOMPOSED:
                raise CaptureError(
                    "a program that was decomposed cannot be rewritten",
                    why=f"it has {operator_name(node.target)}, which torch.export.export does not yield",
                    do="give the program as torch.export.export yields it, before run_decompositions",
                )


def capture(
    model: nn.Module | ExportedProgram,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
    check: bool = True,
) -> ExportedGraph:
    """The rewritable graph of a model or of an exported program; `check` is that of `export_model`."""
    return ExportedGraph(export_model(model, args, kwargs, dynamic_shapes, check))


def capture_dynamo(gm: GraphModule, example_inputs: Sequence[Any], freeze: bool = False) -> DynamoGraph:
    """The ATen graph of a Dynamo graph, traced on Dynamo's own fake inputs so that its symbols stay.

    Args:
        gm: what Dynamo hands to a backend.
        example_inputs: its example inputs, in the order of the placeholders.
        freeze: take the present values of parameters and buffers as constants that may be folded.
    Raises:
        CaptureError: it works on tensors that a trace takes for constants, or cannot be traced at all.
    """
    placeholders = [node for node in gm.graph.nodes if node.op == "placeholder"]
    context = TracingContext.try_get()
    mode = (
        context.fake_mode if context is not None and context.fake_mode is not None else detect_fake_mode(example_inputs)
    )
    if mode is None:
        mode = FakeTensorMode(shape_env=torch.fx.experimental.symbolic_shapes.ShapeEnv())
    fakes = [_fake_input(example, mode, context) for example in example_inputs]

    def run(*inputs: Any) -> Any:
        with torch.fx.traceback.preserve_node_meta():
            return RegionInterpreter(gm).run(*inputs)

    try:
        with tracing(context), mode:
            traced = make_fx(run, pre_dispatch=True, tracing_mode="real", _allow_non_fake_inputs=True)(*fakes)
    except Exception as error:
        raise CaptureError(
            "this graph of torch.compile cannot be traced",
            why=first_lines(error),
            where=failing_line(error),
            do="change what the line does, or try jetvit.optimize, which captures the model otherwise",
        ) from error
    names: dict[Node, str] = {}
    values: dict[Node, torch.Tensor] = {}
    inputs = [node for node in traced.graph.nodes if node.op == "placeholder"]
    for node, original, example in zip(inputs, placeholders, example_inputs, strict=True):
        node.meta |= {key: value for key, value in original.meta.items() if key in ("tensor_dict", "grapharg")}
        # Dynamo takes the sources away when it is done; a graph may be captured again for other weights.
        name = original.meta.setdefault("jetvit_parameter", _parameter_name(original, example))
        if name is not None:
            names[node] = name
            values[node] = example
    for node in traced.graph.nodes:
        if node.op == "get_attr" and isinstance(tensor := getattr(traced, str(node.target), None), torch.Tensor):
            if isinstance(tensor, FakeTensor):
                raise CaptureError(
                    "this graph cannot be traced",
                    why="it makes tensors that a trace does not follow, as the parts of quantised weights are",
                    do="rewrite the model before it is quantised, or with jetvit.optimize, which captures it otherwise",
                )
            names[node] = str(node.target)
            node.meta.setdefault("val", mode.from_tensor(tensor, static_shapes=True))
    return DynamoGraph(traced, names, ambient_autocast(), values, freeze)


def _fake_input(example: Any, mode: FakeTensorMode, context: TracingContext | None) -> Any:
    """A fake of an input with the symbols that Dynamo gave it: they are found again by the input's source."""
    if not isinstance(example, torch.Tensor):
        return example
    if isinstance(example, FakeTensor):
        return example
    symbolic = symbols_of_input(context, example) if context is not None else None
    if symbolic is None:
        return mode.from_tensor(example, static_shapes=True)
    return mode.from_tensor(example, symbolic_context=symbolic, source=symbolic.tensor_source)


def _parameter_name(node: Node, example: Any) -> str | None:
    """The FQN of a placeholder that stands for a parameter or buffer of the model."""
    argument = node.meta.get("grapharg")
    source = getattr(argument, "source", None)
    if source is None or not isinstance(example, torch.Tensor):
        return None
    name: str | Callable[[], str] = source.name
    path = name if isinstance(name, str) else name()
    owned = isinstance(example, nn.Parameter) or "._parameters[" in path or "._buffers[" in path
    return clean_name(path) if owned else None
