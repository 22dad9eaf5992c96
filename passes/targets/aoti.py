"""The way out to AOTInductor: a program becomes compiled code in one file, which torch alone loads and runs.

Inductor traces the operators of jetvit: on a CPU into the ATen operations of their references, on a GPU into their
Triton kernels, which the file carries compiled. So whoever loads it needs neither jetvit nor the model's own package.
Weights are in the file as well; torch appends them to the code where they are more than 2 GB.
"""

from __future__ import annotations

import json
import operator
import os
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.export.pt2_archive.constants import EXTRA_DIR
from torch.fx import GraphModule, Node

from jetvit.cost_model.files.whole_file import stream_for_cpp
from jetvit.kernels.window_attention.arguments import WindowAttentionArgs
from jetvit.kernels.window_attention.counted import count_windows, window_attention_counted
from jetvit.passes.graph.regions import submodules
from jetvit.passes.targets.signature import Signature
from jetvit.patterns.calls import traced_value
from jetvit.patterns.errors import InputError, RewriteError
from jetvit.patterns.operator_args import arguments_of

SIGNATURE = "jetvit_signature.json"
"""The extra record of a package that holds its signature."""
OWN = ("aten", "prims", "quantized", "_c10d_functional")
"""Operators that torch has without any other package."""


def write_aoti(program: ExportedProgram, path: str | os.PathLike[str]) -> None:
    """Compile a program for the device that its weights are on, and write it as an AOTInductor package.

    `torch._inductor.aoti_load_package(path)` loads it, with the same version of torch and on the same kind of
    processor. Sizes that the program leaves open stay open. The package takes tensors with the strides of the example
    inputs, contiguous ones as a rule. It checks the sizes, strides, dtype and device of each, unless the environment
    has AOTI_RUNTIME_CHECK_INPUTS=0. `jetvit.load` takes tensors of any strides, and checks the rest in words, by the
    signature that the package holds.

    Args:
        program: the program, with example inputs; it is not changed.
        path: a file that ends in .pt2.
    Raises:
        InputError: no C++ compiler, or a program without example inputs.
        RewriteError: Inductor cannot compile it, or what it made needs operators of another package.
    """
    if program.example_inputs is None:
        raise InputError(
            "the program cannot be compiled",
            why="it has no example inputs, which AOTInductor takes its layouts from",
            do="export the model again with torch.export.export",
        )
    require_compiler()
    # Not in Inductor's cache, which would keep a copy of the weights of every model that was ever compiled.
    with tempfile.TemporaryDirectory(prefix="jetvit-aoti-") as folder:
        files = _compile(program, folder)
        foreign = _operators_outside(files)
        if foreign:
            raise RewriteError(
                "the compiled model would not run with torch alone",
                why=f"it calls {', '.join(foreign)}",
                do="export it with target='pt2', and load it where these operators are registered",
            )
        from jetvit.torch_private import package_pt2

        record = {SIGNATURE: Signature.of(program).to_json()}
        with stream_for_cpp(Path(path)) as stream:
            package_pt2(stream, aoti_files={"model": [*files]}, extra_files=record)


def read_signature(path: str | os.PathLike[str]) -> str | None:
    """The signature in a package, as text; None where it has none."""
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if name.partition("/")[2] == f"{EXTRA_DIR}{SIGNATURE}"]
        return archive.read(names[0]).decode("utf-8") if names else None


def require_compiler() -> None:
    """Refuse with advice where Inductor finds no C++ compiler.

    Raises:
        InputError: there is none.
    """
    from jetvit.torch_private import InvalidCxxCompiler, get_cpp_compiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise InputError(
            "AOTInductor needs a C++ compiler",
            why=f"none was found; {os.environ['CXX']!r} is what CXX names" if "CXX" in os.environ else "g++ is missing",
            do="install one (apt-get install g++, dnf install gcc-c++, xcode-select --install), or set CXX to its name",
        ) from error


def _compile(program: ExportedProgram, folder: str) -> list[str]:
    """The files of a package, in `folder`."""
    from jetvit.torch_private import aot_compile, compiled_input_checks

    args, kwargs = program.example_inputs
    module = program.module(check_guards=False)
    _count_windows(module)
    options = {"aot_inductor.package": True, "aot_inductor.output_path": folder}
    try:
        with torch.no_grad(), compiled_input_checks():
            files: Any = aot_compile(module, args, kwargs, options=options)
    except Exception as error:  # Inductor raises whatever its lowerings and the compiler meet
        text = " ".join(str(error).split())
        raise RewriteError(
            "AOTInductor cannot compile the model",
            why=f"{type(error).__name__}: {text[:400]}",
            do="check that torch.compile takes it; export it with target='pt2' or 'onnx' otherwise",
        ) from error
    return list(files)


def _count_windows(module: GraphModule) -> None:
    """On a CPU, count the windows of grids of symbolic size once, for all layers that have the same ones."""
    for part in submodules(module):
        counted: dict[Any, tuple[Node, Node]] = {}
        for node in part.graph.find_nodes(op="call_function", target=torch.ops.jetvit.window_attention.default):
            arguments = arguments_of(node)
            assert isinstance(arguments, WindowAttentionArgs)
            grid, window = (arguments.grid_h, arguments.grid_w), (arguments.window_h, arguments.window_w)
            device = arguments.q.meta["val"].device
            if device.type != "cpu" or not any(isinstance(size, Node) for size in grid):
                continue
            key = (*(str(traced_value(size)) for size in grid), *window)
            with part.graph.inserting_before(node):
                if key not in counted:
                    both = part.graph.call_function(count_windows, (*grid, *window, device))
                    counted[key] = tuple(part.graph.call_function(operator.getitem, (both, i)) for i in range(2))
                new = part.graph.call_function(window_attention_counted, (*counted[key], *arguments))
            new.meta = dict(node.meta)
            node.replace_all_uses_with(new)
            part.graph.erase_node(node)
        part.recompile()


def _operators_outside(files: list[str]) -> list[str]:
    """The operators that the compiled code calls by name and that torch alone does not have."""
    found = set()
    for file in (Path(each) for each in files):
        if file.suffix == ".json" and not file.stem.endswith("_metadata"):
            data = json.loads(file.read_text(encoding="utf-8"))
            for entry in data.get("nodes", []) if isinstance(data, dict) else []:
                found.add(str(entry["node"]["target"]).removeprefix("torch.ops."))
    return sorted(name for name in found if name.split(".")[0].split("::")[0] not in OWN)
