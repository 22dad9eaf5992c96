"""An .onnx file as an onnx_ir model: checked before anything in it is trusted, its external data left where it is."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jetvit.cost_model.files.file_content import refuse_unsafe, repair
from jetvit.passes.targets.onnx.convention import DOMAIN
from jetvit.passes.targets.onnx.inlining import restore_calls
from jetvit.patterns.errors import InputError
from jetvit.patterns.wording import counted

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

_OLDEST = 7
"""The first opset whose binary operators broadcast as they do today."""
_AGAIN = "export the model again"
_INSTALL = "pip install 'jetvit[onnx]'"


def read_model(path: str | os.PathLike[str]) -> ir.Model:
    """The model of an .onnx file: local functions are inlined, and the bodies of jetvit's operators are calls again.

    Raises:
        InputError: no such file, no ONNX model, one that onnx's checker refuses, a version that is not known, external
            data outside the file's folder, missing or cut off, or the packages to read it are missing.
    """
    path = Path(path)
    if not path.is_file():
        what = f"{path} is a folder" if path.is_dir() else f"no file {path}"
        raise InputError(what, do="check the path of the .onnx file")
    try:
        import onnx
        import onnx_ir as ir
        import onnxscript  # noqa: F401  # its rewriter is needed later on: better told now
    except ImportError as error:
        raise InputError("reading ONNX needs the packages onnx and onnxscript", why=str(error), do=_INSTALL) from error
    refuse_unsafe(path)
    with path.open("rb") as stream:
        if stream.read(2) == b"PK":
            raise InputError(
                f"{path} is no ONNX model",
                why="it is a zip archive, as programs saved by torch.export are",
                do="call it .pt2 if it is such a program",
            )
    try:
        proto = onnx.load(str(path), format="protobuf", load_external_data=False)
    except Exception as error:  # protobuf's own DecodeError, or whatever reading the bytes raises
        raise InputError(f"{path} is no ONNX model", why=_first_line(error), do=repair(path, _AGAIN)) from error
    _check_versions(path, proto)
    for tensor, owner in _tensors(proto):
        _check_data(path, tensor, owner)
    _check(path, proto)
    _check_outputs(path, proto)
    try:
        model = ir.serde.deserialize_model(proto)
        ir.external_data.set_base_dir(model.graph, path.parent)
        for function in model.functions.values():
            ir.external_data.set_base_dir(function.graph, path.parent)
        _check_names(model)
        import onnx_ir.passes.common as common

        common.InlinePass(lambda function: function.domain != DOMAIN)(model)
        restore_calls(model)
    except Exception as error:  # a graph that the checker lets through and onnx_ir does not
        raise InputError(f"{path} cannot be read", why=_first_line(error), do=_AGAIN) from error
    return model


def _check_names(model: ir.Model) -> None:
    """Names are text: protobuf hands out the bytes of what is no UTF-8."""
    for graph in (model.graph, *(function.graph for function in model.functions.values())):
        names: list[Any] = [value.name for value in (*graph.inputs, *graph.initializers.values())]
        for node in graph.all_nodes():
            names += [node.name, node.op_type, node.domain, *node.attributes, *(value.name for value in node.outputs)]
            names += [*node.metadata_props, *node.metadata_props.values()]
        if any(isinstance(name, bytes) for name in names):
            raise ValueError("a name in it is no text")


def _check_versions(path: Path, proto: onnx.ModelProto) -> None:
    import onnx

    if not proto.HasField("graph") or not proto.ir_version or not proto.graph.output:
        raise InputError(f"{path} is no ONNX model", why="it holds no graph", do=repair(path, _AGAIN))
    if proto.ir_version > onnx.IR_VERSION:
        raise InputError(
            f"{path} cannot be read",
            why=f"it is of IR version {proto.ir_version}; onnx {onnx.__version__} knows versions to {onnx.IR_VERSION}",
            do="install a newer onnx, or export the model with an older opset",
        )
    newest = onnx.defs.onnx_opset_version()
    for entry in proto.opset_import:
        if entry.domain in ("", "ai.onnx") and not _OLDEST <= entry.version <= newest:
            raise InputError(
                f"{path} cannot be read",
                why=f"it is of opset {entry.version}; opsets {_OLDEST} to {newest} are known",
                do="export the model with a newer opset, or install a newer onnx",
            )


def _check(path: Path, proto: onnx.ModelProto) -> None:
    """onnx's own checker; an operator that it has no schema for is named later, with all the others."""
    import onnx

    if bare := _without_shape(proto.graph.input):
        raise InputError(
            f"{path} does not tell the shape of its inputs",
            why=f"the input {bare[0]!r} has none, not even a number of axes",
            do="export the model again with shapes; open axes may have names in place of numbers",
        )
    try:
        if not _without_shape(proto.graph.output):
            onnx.checker.check_model(str(path), full_check=False)
        elif all(tensor.data_location != onnx.TensorProto.EXTERNAL for tensor, _ in _tensors(proto)):
            # The checker wants outputs to have shapes, though nothing needs them; it does not compare them either.
            filled = onnx.ModelProto()
            filled.CopyFrom(proto)
            for value in filled.graph.output:
                if value.type.HasField("tensor_type"):
                    value.type.tensor_type.shape.SetInParent()
            onnx.checker.check_model(filled, full_check=False)
    except Exception as error:
        reason = str(error)
        if "No Op registered for" in reason or "No opset import for domain" in reason:
            return
        raise InputError(f"{path} is no valid ONNX model", why=_first_line(error), do=_AGAIN) from error


def _without_shape(values: Iterable[onnx.ValueInfoProto]) -> list[str]:
    tensors = [value for value in values if value.type.HasField("tensor_type")]
    return [value.name for value in tensors if not value.type.tensor_type.HasField("shape")]


def _check_outputs(path: Path, proto: onnx.ModelProto) -> None:
    """Outputs are told apart by their names."""
    names = [value.name for value in proto.graph.output]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(
            f"{path} gives the same value out more than once",
            why=f"listed twice among its outputs: {', '.join(twice)}",
            do="export the model with each output once, or under names of their own",
        )


def _tensors(proto: onnx.ModelProto) -> Iterator[tuple[Any, str]]:
    """Every tensor of a model, also in attributes, branches and functions, with the name of what holds it."""
    graphs: list[Any] = [proto.graph]
    nodes: list[Any] = [node for function in proto.functions for node in function.node]
    while graphs or nodes:
        if graphs:
            graph = graphs.pop()
            nodes += graph.node
            for tensor in graph.initializer:
                yield tensor, tensor.name
            for sparse in graph.sparse_initializer:
                yield sparse.values, sparse.values.name
                yield sparse.indices, sparse.values.name
            continue
        node = nodes.pop()
        for attribute in node.attribute:
            graphs += [*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])]
            for tensor in (*attribute.tensors, *([attribute.t] if attribute.HasField("t") else [])):
                yield tensor, tensor.name or node.name or node.op_type


def _check_data(path: Path, tensor: onnx.TensorProto, owner: str) -> None:
    """External data lie in the file's folder, and have the length that type and shape ask for."""
    import onnx
    import onnx_ir as ir

    if tensor.data_location != onnx.TensorProto.EXTERNAL:
        return
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location, folder = entries.get("location", ""), path.parent.resolve()
    target = path.parent / location
    outside = Path(location).is_absolute() or ".." in Path(location).parts or "\\" in location or not location
    if not outside and target.exists() and not target.resolve().is_relative_to(folder):
        raise InputError(
            f"{path} is refused: its data lie outside its folder",
            why=f"{location!r}, which the tensor {owner!r} is to be read from, is a link to {target.resolve()}",
            where=str(folder),
            do="copy model and data into one folder, as files and not as links: cp -L",
        )
    if outside or not target.resolve().is_relative_to(folder):
        raise InputError(
            f"{path} is refused: its data lie outside its folder",
            why=f"the tensor {owner!r} is to be read from {location!r}",
            where=str(folder),
            do="put the data beside the file, or save the model again as one file",
        )
    if not target.is_file():
        raise InputError(
            f"the data of {path} are missing",
            why=f"the tensor {owner!r} is to be read from {location!r}",
            where=str(folder),
            do="copy the data file into the same folder",
        )
    try:
        offset, length = int(entries.get("offset") or 0), entries.get("length")
        bits = ir.DataType(tensor.data_type).bitwidth
        wanted = -(-bits * _count(tensor.dims) // 8)
        stored = int(length) if length is not None else target.stat().st_size - offset
    except (ValueError, TypeError) as error:
        raise InputError(f"the data of {path} cannot be read", why=f"{owner!r}: {error}", do=_AGAIN) from error
    if offset < 0 or stored != wanted or offset + wanted > target.stat().st_size:
        raise InputError(
            f"the data of {path} are cut off or of another model",
            why=f"the tensor {owner!r} needs {counted(wanted, 'byte')} from byte {offset} on; "
            f"{location!r} has {counted(target.stat().st_size, 'byte')}, {stored} of them listed for it",
            where=str(target),
            do="copy the data file again, or export the model again",
        )


def _count(dims: Any) -> int:
    count = 1
    for size in dims:
        if size < 0:
            raise ValueError(f"a size of {size}")
        count *= size
    return count


def _first_line(error: BaseException) -> str:
    cause = error.__cause__ or error
    return f"{type(error).__name__}: {str(cause).strip().split(chr(10), 1)[0][:200]}"
