"""ONNX models in ONNX Runtime and OpenVINO."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from jetvit.passes.targets.onnx.convention import OPERATORS
from jetvit.passes.targets.signature import KEY, Bound, Signature
from jetvit.passes.targets.signature_inputs import OpenAxis, TensorInput
from jetvit.patterns.errors import InputError
from jetvit.runtimes.loaded_file import LoadedFile, refused_inputs

_DTYPES = {
    "float": "float32", "float32": "float32", "f32": "float32", "double": "float64", "float64": "float64",
    "float16": "float16", "bfloat16": "bfloat16", "bool": "bool", "boolean": "bool",
    **{f"{kind}{bits}": f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)},
}  # fmt: skip
"""Names of types in ONNX Runtime and OpenVINO, by the names of torch."""


def open_in_onnxruntime(path: Path, threads: int | None) -> LoadedFile:
    """Open an ONNX model in ONNX Runtime, on the GPU where that runtime sees one."""
    try:
        import onnxruntime
    except ImportError as error:
        raise _missing(path, "onnxruntime", "onnxruntime") from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    known = ("CUDAExecutionProvider", "CPUExecutionProvider")
    providers = [name for name in known if name in onnxruntime.get_available_providers()]
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # of a class of its own for every kind of failure
        raise _not_loaded(path, "ONNX Runtime", error) from error
    signature = _signature_of_onnx(
        path,
        session.get_modelmeta().custom_metadata_map.get(KEY),
        [(each.name, each.type.removeprefix("tensor(").removesuffix(")"), each.shape) for each in session.get_inputs()],
        [each.name for each in session.get_outputs()],
    )
    bf16 = [each.name for each in (*session.get_inputs(), *session.get_outputs()) if "bfloat16" in each.type]
    if bf16:
        raise InputError(
            f"{path} cannot be run",
            why=f"{bf16[0]} is bfloat16, which numpy does not have; ONNX Runtime is called with numpy arrays",
            do="export the model in float32 or float16, or to another target",
        )
    names = [each.name for each in session.get_inputs()]

    def run(bound: Bound) -> Any:
        return _on_arrays(
            path, signature, bound, lambda arrays: session.run(None, dict(zip(names, arrays, strict=True)))
        )

    return LoadedFile(path, "onnx", signature, run)


def open_in_openvino(path: Path, threads: int | None) -> LoadedFile:
    """Open an ONNX model in OpenVINO, on the CPU."""
    try:
        import openvino
    except ImportError as error:
        raise _missing(path, "openvino", "jetvit[openvino]") from error
    core = openvino.Core()
    # Else a processor that computes in bf16 does so with a model of fp32.
    options: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    if threads is not None:
        options["INFERENCE_NUM_THREADS"] = threads
    try:
        model = core.read_model(str(path))
        _check_resampling(path, model)
        compiled = core.compile_model(model, "CPU", options)
    except InputError:
        raise
    except Exception as error:  # RuntimeError with the C++ text, or a class of the binding
        raise _not_loaded(path, "OpenVINO", error) from error
    record = dict(model.get_rt_info().items()).get("framework")  # the metadata_props of the file
    metadata = getattr(record, "value", record)
    text = metadata.get(KEY) if isinstance(metadata, Mapping) else None
    signature = _signature_of_onnx(
        path,
        None if text is None else str(getattr(text, "value", text)),
        [
            (
                each.get_any_name(),
                each.element_type.to_dtype().name,
                [size.get_length() if size.is_static else None for size in each.partial_shape],
            )
            for each in model.inputs
        ],
        [each.get_any_name() for each in model.outputs],
    )

    def run(bound: Bound) -> Any:
        return _on_arrays(path, signature, bound, lambda arrays: list(compiled(arrays).values()))

    return LoadedFile(path, "onnx", signature, run)


def _check_resampling(path: Path, model: Any) -> None:
    """Refuse what OpenVINO computes wrong without an error: it leaves antialiasing out of cubic resampling."""
    for name, attributes in _resamplings(path, model):
        if attributes.get("mode") in ("cubic", b"cubic") and attributes.get("antialias"):
            raise InputError(
                f"OpenVINO would give wrong results for {path}",
                why="the model resamples with antialiasing in cubic mode, which OpenVINO leaves out",
                where=f"node {name}",
                do="write the file for one size, where resampled position embeddings are constants; "
                "or use another runtime",
            )


def _resamplings(path: Path, model: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Name and attributes of each resampling: in the file, where onnx is installed, and as OpenVINO read them.

    OpenVINO before 2026 drops the attribute `antialias` as it reads a file.
    """
    if importlib.util.find_spec("onnx") is not None:
        import onnx

        for each in onnx.load(str(path), load_external_data=False).graph.node:
            if each.op_type == "Resize":
                yield each.name, {entry.name: onnx.helper.get_attribute_value(entry) for entry in each.attribute}
    for node in model.get_ordered_ops():
        if node.get_type_name() == "Interpolate":
            yield node.get_friendly_name(), node.get_attributes()


def _on_arrays(path: Path, signature: Signature, bound: Bound, run: Callable[[list[Any]], Sequence[Any]]) -> Any:
    device = bound.tensors[0].device if bound.tensors else torch.device("cpu")
    arrays = [each.detach().cpu().contiguous().numpy() for each in bound.tensors]
    try:
        found = run(arrays)
    except Exception as error:  # of the runtime's own: a size that the graph does not take
        raise refused_inputs(path, bound, error) from error
    return signature.build([torch.from_numpy(each).to(device) for each in found])


def _signature_of_onnx(
    path: Path, text: str | None, inputs: Sequence[tuple[str, str, Sequence[Any]]], outputs: Sequence[str]
) -> Signature:
    """The signature that jetvit wrote, or what the graph says itself: open axes take any size, outputs are a dict."""
    if text is not None:
        return Signature.from_json(text)
    found = []
    for name, dtype, shape in inputs:
        if dtype not in _DTYPES:
            raise InputError(f"{path} cannot be run", why=f"its input {name} is of type {dtype}", do="give it tensors")
        axes: tuple[int | OpenAxis | None, ...] = tuple(size if isinstance(size, int) else None for size in shape)
        found.append(TensorInput(name, _DTYPES[dtype], axes))
    places = {name: place for place, name in enumerate(outputs)}
    return Signature(tuple(found), tuple((each.name, place) for place, each in enumerate(found)), (), places)


def _missing(path: Path, package: str, install: str) -> InputError:
    return InputError(
        f"{path} cannot be run here", why=f"the package {package} is not installed", do=f"pip install '{install}'"
    )


def _not_loaded(path: Path, runtime: str, error: Exception) -> InputError:
    text = " ".join(str(error).split())
    if any(name in text for name in OPERATORS):
        return InputError(
            f"{runtime} does not load {path}",
            why="it was written with jetvit's operators as functions, or as nodes without a body",
            do="write it without --functions and --custom-ops (functions=False, custom_ops=False)",
        )
    return InputError(f"{runtime} does not load {path}", why=text[:300], do="write it again, or try another runtime")
