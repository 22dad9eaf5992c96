"""From an exported program to an ONNX model."""

from __future__ import annotations

import logging
import re
import sys
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, TensorArgument

from jetvit.passes.targets.onnx.functions import add_functions
from jetvit.passes.targets.onnx.inlining import inline_calls
from jetvit.passes.targets.onnx.names import axis_names, input_names, output_names, rename
from jetvit.passes.targets.onnx.translation import translation_table
from jetvit.passes.targets.signature import KEY, Signature
from jetvit.patterns.errors import InputError
from jetvit.patterns.regions import GraphView
from jetvit.patterns.storage import written

if TYPE_CHECKING:
    import onnx_ir as ir

OPSETS = (18, 23)
# What the exporter notes is dropped but for the names of the modules, and which constants are parameters of the model:
# stack traces hold paths of the machine, and outweigh the graph.
_KEPT_METADATA = (
    *("pkg.torch.onnx.name_scopes", "pkg.torch.onnx.class_hierarchy", "jetvit."),
    "pkg.torch.export.graph_signature.InputSpec.kind",
)


def onnx_model(
    program: ExportedProgram, *, opset: int = 18, custom_ops: bool = False, functions: bool = False
) -> ir.Model:
    """An ONNX model of an exported program; calls of the operators of jetvit follow `convention`.

    The inputs are called as the arguments of the model, the outputs as the keys of its result, the dynamic axes batch,
    height and width. Weights keep their names; they are not copied. Torch's exporter writes opset 18; for 23 it also
    uses the `Attention` operator, for softmax attention over all tokens and in windows of a known grid.

    Args:
        program: an exported program, optimised or not; it is not changed.
        opset: the version of ONNX's standard operators, 18 or 23.
        custom_ops: leave the operators of jetvit as nodes without a body, for a runtime that has them as plugins;
            otherwise each becomes standard operators, which any runtime can run.
        functions: keep these standard operators in model-local functions, one for all equal calls. OpenVINO does not
            load such a model.
    Raises:
        InputError: another opset, an operator that ONNX has no translation for, an output that is a plain number, a
            buffer that the program writes to, or onnx is not installed.
    """
    if opset not in OPSETS:
        raise InputError(
            f"ONNX opset {opset} is not supported",
            why="torch's exporter is written in opset 18, and 23 is the first with an Attention operator",
            do=f"choose one of {', '.join(map(str, OPSETS))}",
        )
    require_onnx()
    _check_outputs(program)
    _check_state(program)
    exported = _export(program, opset)
    exported.rename_axes(axis_names(list(exported.model.graph.inputs)))
    model = exported.model
    _tidy(model)
    rename(model, input_names(program), output_names(program))
    _check_types(model)
    if not custom_ops:
        add_functions(model)
        if not functions:
            inline_calls(model)
    _drop_metadata(model)
    model.metadata_props[KEY] = Signature.of(program).to_json()
    model.producer_name, model.producer_version = "jetvit", sys.modules["jetvit"].__version__
    return model


def require_onnx() -> None:
    """Refuse with advice where a package that ONNX needs is missing.

    Raises:
        InputError: onnx, onnx_ir or onnxscript is not installed.
    """
    try:
        import onnx  # noqa: F401
        import onnx_ir  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise InputError(
            "an ONNX model cannot be written",
            why=f"the package {error.name} is not installed",
            do="pip install 'jetvit[onnx]'",
        ) from error


def _check_outputs(program: ExportedProgram) -> None:
    """Refuse a number among the outputs, on which the exporter breaks; it leaves out a None."""
    for spec in program.graph_signature.output_specs:
        constant = isinstance(spec.arg, ConstantArgument)
        if (spec.arg.value is not None) if constant else not isinstance(spec.arg, TensorArgument):
            what = repr(spec.arg.value) if constant else f"{spec.arg.name}, a size"
            raise InputError(
                "the program cannot be written in ONNX",
                why=f"one of its outputs is {what}, which is no tensor",
                do="let the model return tensors only",
            )


def _check_state(program: ExportedProgram) -> None:
    """Refuse a program that changes itself from call to call: the exporter would drop the change without a word."""
    buffers = program.graph_signature.inputs_to_buffers
    changed = dict(program.graph_signature.buffers_to_mutate)  # of a program that was decomposed
    places = [node.name for node in written(GraphView(program.graph_module))]
    changed |= {name: buffers[name] for name in places if name in buffers}
    if changed:
        raise InputError(
            "the program cannot be written in ONNX",
            why=f"it writes to its buffer {next(iter(changed.values()))}; an ONNX model keeps nothing between calls",
            do="let the model compute the buffer once, before it is captured, or choose another target than ONNX",
        )


def _export(program: ExportedProgram, opset: int) -> Any:
    """Torch's exporter, without its own optimisation, and with its errors in few words."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    try:
        log.setLevel(logging.ERROR)  # it warns of what is well: an output that is None
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # of torch about itself
            return torch.onnx.export(
                program,
                dynamo=True,
                opset_version=opset,
                custom_translation_table=translation_table(),
                optimize=False,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        raise _refusal(error) from error
    finally:
        log.setLevel(level)


def _refusal(error: BaseException) -> InputError:
    """The part of the exporter's chain of errors that a user can act on."""
    chain = list(_causes(error))
    for each in chain:
        if match := re.search(r"No ONNX function found for <OpOverload\(op='([\w.]+)', overload='(\w+)'\)>", str(each)):
            name = match[1] if match[2] == "default" else f"{match[1]}.{match[2]}"
            return InputError(
                f"the operator {name} cannot be written in ONNX",
                why="torch's exporter has no translation for it",
                do="write that part of the model with other operators, or choose another target than ONNX",
            )
    node = next(
        (match[1] for each in chain if (match := re.search(r"translating node (%\S+ : .*?target=\S+?)\]", str(each)))),
        "",
    )
    return InputError(
        "torch's exporter could not write the program in ONNX",
        why=f"{type(chain[-1]).__name__}: {_first_line(chain[-1])}",
        where=node,
        do="choose another target than ONNX, or another version of torch",
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0][:300]


def _tidy(model: ir.Model) -> None:
    """Fold and simplify, as the optimiser of onnxscript does, but with the weights under their names.

    A folded transpose of a weight would be a new, nameless weight, and equal weights (two biases of zeros) would
    become one. Runtimes fold these at load.
    """
    import onnx_ir as ir
    from onnx_ir.passes import common
    from onnxscript import optimizer, rewriter

    weights = set(model.graph.initializers.values())

    def should_fold(node: ir.Node) -> bool | None:
        return False if node.op_type == "Transpose" and node.inputs[0] in weights else None

    common.InlinePass()(model)
    for _ in range(2):
        optimizer.fold_constants(model, onnx_shape_inference=True, should_fold=should_fold)
        rewriter.rewrite(model)
    ir.passes.Sequential(
        common.RemoveUnusedNodesPass(),
        common.RemoveUnusedFunctionsPass(),
        common.RemoveUnusedOpsetsPass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.LiftSubgraphInitializersToMainGraphPass(),
        common.CommonSubexpressionEliminationPass(),
        common.OutputFixPass(),
        common.NameFixPass(),
    )(model)


def _check_types(model: ir.Model) -> None:
    """Refuse bf16 where an operator of the opset does not take it yet, as Conv before 22: the exporter writes it."""
    import onnx_ir as ir
    from onnx import defs

    opset = model.opset_imports[""]
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        if node.domain or not any(value is not None and value.dtype == ir.DataType.BFLOAT16 for value in node.inputs):
            continue
        schema = defs.get_schema(node.op_type, opset)
        types = {constraint.type_param_str: constraint.allowed_type_strs for constraint in schema.type_constraints}
        for value, formal in zip(node.inputs, schema.inputs, strict=False):
            bf16 = value is not None and value.dtype == ir.DataType.BFLOAT16
            if bf16 and "tensor(bfloat16)" not in types.get(formal.type_str, ["tensor(bfloat16)"]):
                advice = f"choose opset {OPSETS[-1]}, or " if opset < OPSETS[-1] else ""
                raise InputError(
                    f"ONNX opset {opset} has no {node.op_type} in bf16",
                    where=str(node.name),
                    do=f"{advice}export the model in fp16 or fp32",
                )


def _drop_metadata(model: ir.Model) -> None:
    import onnx_ir as ir

    graph = model.graph
    nodes = list(ir.traversal.RecursiveGraphIterator(graph))
    owners: list[Any] = [graph, *nodes, *graph.inputs, *graph.initializers.values()]
    for owner in [*owners, *(out for node in nodes for out in node.outputs)]:
        for key in [key for key in owner.metadata_props if not key.startswith(_KEPT_METADATA)]:
            del owner.metadata_props[key]
