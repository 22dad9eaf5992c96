"""`jetvit.load`: open a written file of any target."""

from __future__ import annotations

import logging
import os
import zipfile
import zlib
from pathlib import Path
from typing import Any

from jetvit.files import load_exported
from jetvit.passes.targets.aoti import read_signature
from jetvit.passes.targets.signature import Bound, Signature
from jetvit.patterns.errors import InputError
from jetvit.runtimes.loaded_file import KINDS, LoadedFile, refused_inputs
from jetvit.runtimes.onnx import open_in_onnxruntime, open_in_openvino
from jetvit.torch_private import aoti_load_package

log = logging.getLogger(__name__)
RUNTIMES = ("onnxruntime", "openvino")


def load(
    path: str | os.PathLike[str], *, runtime: str | None = None, threads: int | None = None, warm_up: bool = False
) -> LoadedFile:
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
            why=f"it is {KINDS[kind]}, which torch runs",
            do="leave it out" if option == "runtime" else "leave it out, and call torch.set_num_threads",
        )
    if kind == "onnx":
        runtime = RUNTIMES[0] if runtime is None else runtime
        if runtime not in RUNTIMES:
            raise InputError(f"there is no runtime {runtime!r}", do=f"choose one of {', '.join(RUNTIMES)}")
        open_file = open_in_openvino if runtime == "openvino" else open_in_onnxruntime
        model = open_file(path, threads)
    else:
        model = {"pt2": _open_program, "aoti": _open_package, "tensorrt": _open_tensorrt}[kind](path)
    if warm_up:
        model.warm_up()
    return model


def file_kind(path: Path) -> str:
    """Return the kind of a file, by its content.

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


def _open_program(path: Path) -> LoadedFile:
    program = load_exported(path)
    return _as_model(path, "pt2", program)


def _open_tensorrt(path: Path) -> LoadedFile:
    from jetvit.passes.targets.tensorrt.compiler import require_tensorrt

    return _as_model(path, "tensorrt", require_tensorrt().load(str(path)))


def _as_model(path: Path, kind: str, program: Any) -> LoadedFile:
    module = program.module()

    def run(bound: Bound) -> Any:
        try:
            return module(*bound.args, **bound.kwargs)
        except AssertionError as error:  # a guard that the signature does not hold
            raise refused_inputs(path, bound, error) from error

    return LoadedFile(path, kind, Signature.of(program), run)


def _open_package(path: Path) -> LoadedFile:
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
            raise refused_inputs(path, bound, error) from error

    return LoadedFile(path, "aoti", signature, run)
