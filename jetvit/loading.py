"""`jetvit.load`: a written file of any target as one callable, which checks its inputs before it runs."""

from __future__ import annotations

import importlib.util
import logging
import os
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from jetvit.files import load_exported
from jetvit.passes.targets.aoti import read_signature
from jetvit.passes.targets.onnx.convention import OPERATORS
from jetvit.passes.targets.signature import KEY, Bound, Signature
from jetvit.passes.targets.signature_inputs import OpenAxis, TensorInput
from jetvit.patterns.errors import InputError
from jetvit.torch_private import aoti_load_package

log = logging.getLogger(__name__)
RUNTIMES = ("onnxruntime", "openvino")
Run = Callable[[Bound], Any]
"""Runs checked inputs: the outputs, nested as the original's."""

_DTYPES = {
    "float": "float32", "float32": "float32", "f32": "float32", "double": "float64", "float64": "float64",
    "float16": "float16", "bfloat16": "bfloat16", "bool": "bool", "boolean": "bool",
    **{f"{kind}{bits}": f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)},
}  # fmt: skip
"""Names of types in ONNX Runtime and OpenVINO, by the names of torch."""


def load(
    path: str | os.PathLike[str], *, runtime: str | None = None, threads: int | None = None, warm_up: bool = False
) -> LoadedModel:
    """Open a file that `jetvit.export` wrote, of any target, to run it.

    The result is called as the original model is, with torch tensors by position or by name, and returns torch tensors
    nested as the original's outputs are (dataclasses are dicts). Every call is checked against the signature of the
    file: names, number of axes, sizes, dtypes and devices of the inputs.

    An AOTInductor package and TensorRT engines are compiled code, which runs as soon as they are loaded: load those of
    a source that you trust. Programs (.pt2) and ONNX models are data.

    Args:
        path: a program of torch.export, an AOTInductor package, a program with TensorRT engines, or an ONNX model.
            Programs and ONNX models of other tools are taken too. The content tells which it is, not the name.
        runtime: what runs an ONNX model: "onnxruntime" (the default) or "openvino".
        threads: how many CPU threads that runtime uses; for the other kinds, see `torch.set_num_threads`.
        warm_up: run the model twice on zeros, in the sizes it was written with, so that the first call is not slower
            than later ones.
    Raises:
        InputError: the file is none of these, it cannot be loaded here, or a package to run it is missing.
    """
    path = Path(path)
    kind = file_kind(path)
    if kind != "onnx" and (runtime is not None or threads is not None):
        option = "runtime" if runtime is not None else "threads"
        raise InputError(
            f"{path} takes no {option}",
            why=f"it is {_KINDS[kind]}, which torch runs",
            do="leave it out" if option == "runtime" else "leave it out, and call torch.set_num_threads",
        )
    if kind == "onnx":
        runtime = RUNTIMES[0] if runtime is None else runtime
        if runtime not in RUNTIMES:
            raise InputError(f"there is no runtime {runtime!r}", do=f"choose one of {', '.join(RUNTIMES)}")
        open_file = _open_in_openvino if runtime == "openvino" else _open_in_onnxruntime
        model = open_file(path, threads)
    else:
        model = {"pt2": _open_program, "aoti": _open_package, "tensorrt": _open_tensorrt}[kind](path)
    if warm_up:
        model.warm_up()
    return model


class LoadedModel:
    """A file that is ready to run.

    Attributes:
        path: the file.
        kind: "pt2", "aoti", "onnx" or "tensorrt".
        signature: what it takes and returns; None for an AOTInductor package that jetvit did not write.
    """

    def __init__(self, path: Path, kind: str, signature: Signature | None, run: Run):
        self.path = path
        self.kind = kind
        self.signature = signature
        self._run = run

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model.

        Raises:
            InputError: the file does not take these inputs.
        """
        with torch.no_grad():
            if self.signature is None:
                return self._run(Bound(args, kwargs, []))
            return self._run(self.signature.bind(self.path.name, args, kwargs))

    def __repr__(self) -> str:
        return f"jetvit.load({str(self.path)!r}): {_KINDS[self.kind]}, takes {self.signature or 'unknown inputs'}"

    def warm_up(self) -> None:
        """Run the model twice on zeros, in the sizes it was written with.

        Raises:
            InputError: the file does not say which inputs it takes.
        """
        if self.signature is None:
            raise InputError(
                f"{self.path} cannot be warmed up",
                why="it does not say which inputs it takes: jetvit did not write it",
                do="call it with inputs of your own",
            )
        args, kwargs = self.signature.examples()
        for _ in range(2):
            self(*args, **kwargs)


_KINDS = {
    "pt2": "a program of torch.export",
    "aoti": "an AOTInductor package",
    "onnx": "an ONNX model",
    "tensorrt": "a program with TensorRT engines",
}


def file_kind(path: Path) -> str:
    """What a file is, by its content.

    Raises:
        InputError: there is no such file, or it is nothing that jetvit writes.
    """
    if not path.is_file():
        raise InputError(f"{path} is a folder" if path.is_dir() else f"no file {path}", do="check the path")
    with path.open("rb") as stream:
        start = stream.read(2)
    if start[:1] == b"\x08":  # the first field of an ONNX model, its IR version
        return "onnx"
    takes = "give a .pt2 or .onnx file, as `jetvit export` writes them"
    if start != b"PK":
        why = "it is empty" if not start else "it is neither a zip archive, as .pt2 files are, nor an ONNX model"
        raise InputError(f"{path} cannot be loaded", why=why, do=takes)
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.partition("/")[2] for name in archive.namelist()]
            programs = [name for name in archive.namelist() if name.partition("/")[2].startswith("models/")]
            if any(name.startswith("data/aotinductor/") for name in names):
                return "aoti"
            if any(b"torch.ops.tensorrt." in archive.read(name) for name in programs if name.endswith(".json")):
                return "tensorrt"
    except (zipfile.BadZipFile, OSError, EOFError, RuntimeError, zlib.error) as error:
        raise InputError(
            f"{path} cannot be loaded", why=f"the archive is damaged: {error}", do="copy it again, or write it again"
        ) from error
    if not programs and "version" not in archive.namelist():
        what = "pickled tensors of torch.save, or TorchScript" if "data.pkl" in names else "another zip archive"
        raise InputError(f"{path} cannot be loaded", why=f"it holds {what}, and no exported program", do=takes)
    return "pt2"


# --- what torch runs --------------------------------------------------------------------------------------------------


def _open_program(path: Path) -> LoadedModel:
    program = load_exported(path)
    return _as_model(path, "pt2", program)


def _open_tensorrt(path: Path) -> LoadedModel:
    from jetvit.passes.targets.tensorrt.compiler import require_tensorrt

    return _as_model(path, "tensorrt", require_tensorrt().load(str(path)))


def _as_model(path: Path, kind: str, program: Any) -> LoadedModel:
    module = program.module()

    def run(bound: Bound) -> Any:
        try:
            return module(*bound.args, **bound.kwargs)
        except AssertionError as error:  # a guard that the signature does not hold
            raise _refused(path, bound, error) from error

    return LoadedModel(path, kind, Signature.of(program), run)


def _open_package(path: Path) -> LoadedModel:
    text = read_signature(path)
    signature = None if text is None else Signature.from_json(text)
    if signature is None:
        log.warning("%s does not say which inputs it takes: jetvit did not write it. They are not checked.", path)
    try:
        package = aoti_load_package(str(path))
    except Exception as error:  # of the dynamic loader, of C++, of torch
        raise InputError(
            f"{path} cannot be loaded here",
            why=" ".join(str(error).split())[:300],
            do="write it again on this machine: a package fits one version of torch and one kind of processor",
        ) from error

    def run(bound: Bound) -> Any:
        if signature is None:
            return package(*bound.args, **bound.kwargs)
        laid_out = signature.laid_out(bound)
        try:
            return package(*laid_out.args, **laid_out.kwargs)
        except RuntimeError as error:
            raise _refused(path, bound, error) from error

    return LoadedModel(path, "aoti", signature, run)


def _refused(path: Path, bound: Bound, error: Exception) -> InputError:
    shapes = ", ".join("×".join(map(str, each.shape)) for each in bound.tensors)
    return InputError(
        f"{path.name} does not take inputs of {shapes}",
        why=" ".join(str(error).split())[:300],
        do="give inputs of sizes that the model was captured for",
    )


# --- what runs ONNX ---------------------------------------------------------------------------------------------------


def _open_in_onnxruntime(path: Path, threads: int | None) -> LoadedModel:
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

    return LoadedModel(path, "onnx", signature, run)


def _open_in_openvino(path: Path, threads: int | None) -> LoadedModel:
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

    return LoadedModel(path, "onnx", signature, run)


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
        raise _refused(path, bound, error) from error
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
