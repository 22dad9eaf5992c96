"""The targets of `jetvit export`: what writes a file of each kind, and what runs it again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from jetvit.cost_model.files.whole_file import stream_for_cpp
from jetvit.loading import load
from jetvit.models.loaded import reason
from jetvit.passes.frontends.differences import copied, tensors, with_own_buffers
from jetvit.passes.targets.aoti import require_compiler, write_aoti
from jetvit.patterns.errors import InputError

Inputs = tuple[Sequence[Any], Mapping[str, Any]]
Run = Callable[[Sequence[Any], Mapping[str, Any]], list[Tensor]]
"""Runs a written file: the tensors of its outputs, in their order."""


@dataclass(frozen=True)
class Target:
    """A kind of file: its name, its suffix, the options of `jetvit.export` that it takes, and how it is loaded."""

    name: str
    suffix: str
    options: tuple[str, ...]
    load: str


TARGETS = {
    each.name: each
    for each in (
        Target("pt2", ".pt2", (), "torch.export.load after `import jetvit`, or jetvit.load"),
        Target("aoti", ".pt2", (), "torch._inductor.aoti_load_package, which needs torch alone, or jetvit.load"),
        Target("onnx", ".onnx", ("opset", "custom_ops", "functions"), "any ONNX runtime, or jetvit.load"),
        Target("tensorrt", ".pt2", ("plugins", "max_shapes"), "torch_tensorrt.load, on a GPU of this kind"),
    )
}


def _write_pt2(program: ExportedProgram, path: Path) -> None:
    with stream_for_cpp(path) as stream:
        torch.export.save(program, stream)


def _write_onnx(program: ExportedProgram, path: Path, **options: Any) -> None:
    from jetvit.passes.targets.onnx.export import onnx_model
    from jetvit.passes.targets.onnx.write import write_onnx

    write_onnx(onnx_model(program, **options), path)


def _write_tensorrt(program: ExportedProgram, path: Path, **options: Any) -> None:
    from jetvit.passes.targets.tensorrt.compiler import write_tensorrt

    write_tensorrt(program, path, **options)


def _read(path: Path, program: ExportedProgram, custom_ops: bool = False, **options: Any) -> Run | str:
    if custom_ops:
        return "no runtime here has the operators of jetvit"
    try:
        model = load(path)
    except InputError as error:
        if path.suffix == ".onnx":  # for another machine, which may have a runtime for it
            return error.why
        raise
    return lambda args, kwargs: tensors(model(*args, **kwargs))


def _read_tensorrt(path: Path, program: ExportedProgram, **options: Any) -> str:
    from jetvit.passes.targets.tensorrt.compiler import require_tensorrt

    require_tensorrt().load(str(path))
    return "it was only read; compare it with the model on images of your own"


WRITERS: Mapping[str, Callable[..., None]] = {
    "pt2": _write_pt2,
    "aoti": write_aoti,
    "onnx": _write_onnx,
    "tensorrt": _write_tensorrt,
}


READERS: Mapping[str, Callable[..., Run | str]] = {
    "pt2": _read,
    "aoti": _read,
    "onnx": _read,
    "tensorrt": _read_tensorrt,
}
"""Functions that return what runs a written file, or why it cannot be run here."""


def run_program(program: ExportedProgram, inputs: Inputs) -> list[Tensor]:
    """Run a program, and return the tensors of its result; neither its buffers nor the inputs are changed.

    Raises:
        InputError: it does not take such inputs.
    """
    args, kwargs = copied(inputs)
    try:
        with torch.no_grad():
            return tensors(with_own_buffers(program.module())(*args, **kwargs))
    except (AssertionError, RuntimeError) as error:  # a guard, or an operator that meets a shape that it cannot take
        shapes = ", ".join("×".join(map(str, each.shape)) for each in tensors(inputs))
        raise InputError(
            f"the program does not take inputs of {shapes}",
            why=reason(error),
            do="give inputs of sizes that it was captured for",
        ) from error


def require_target(target: str) -> None:
    """Refuse a target whose packages or tools are missing."""
    if target == "aoti":
        require_compiler()
    if target == "onnx":
        from jetvit.passes.targets.onnx.export import require_onnx

        require_onnx()
    if target == "tensorrt":
        from jetvit.passes.targets.tensorrt.compiler import require_tensorrt

        require_tensorrt()
