"""`jetvit.export`: a model, rewritten by a plan, as a file for another place.

A file is written beside its place, run or read there once, and renamed; so it appears whole and working, or not at all.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from jetvit.api import load_plan
from jetvit.cost_model import Plan
from jetvit.export_targets import READERS, TARGETS, WRITERS, Inputs, Target, require_target, run_program
from jetvit.files import atomic_files, require_space, writable
from jetvit.passes.frontends.capture import capture
from jetvit.passes.frontends.differences import copied, differ, largest_error, tensors
from jetvit.passes.frontends.emit import OptimizedModule
from jetvit.passes.frontends.fixed_sizes import fixed_sizes
from jetvit.passes.frontends.open_sizes import export_sizes
from jetvit.passes.pipeline import RewriteOptions, rewrite
from jetvit.passes.targets.plain_outputs import plain_program, with_plain_outputs
from jetvit.passes.targets.strides import dense, order_of
from jetvit.patterns.errors import InputError, RewriteError
from jetvit.patterns.wording import did_you_mean
from jetvit.torch_private import pytree


def export(
    model: nn.Module | ExportedProgram,
    *args: Any,
    path: str | os.PathLike[str],
    plan: Plan | str | os.PathLike[str] | None = None,
    target: str = "pt2",
    kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
    dynamic: bool = False,
    opset: int | None = None,
    custom_ops: bool = False,
    functions: bool = False,
    plugins: bool = False,
    max_shapes: Mapping[str, Sequence[int]] | None = None,
    disable: Sequence[str] = (),
) -> Path:
    """Rewrite a model for inference and write it as a file; without a plan only exact rewrites are made.

    The model given is never changed. Outputs that are dataclasses are dicts in the file. It takes inputs of the shapes
    of `args` and `kwargs` but for the axes that `dynamic`, `dynamic_shapes` or the program given leaves open. Before it
    takes its place, it is read, and, where it can be run here, run on these inputs and compared with the rewritten
    program. `jetvit.load` opens a file of any target.

    Args:
        model: a module in eval mode, an ExportedProgram, or what `jetvit.optimize` gave.
        args, kwargs: example inputs; a program needs none.
        path: the file to write; an old one is replaced. Its suffix must fit the target.
        plan: which sites become window or linear attention: a `Plan` or the folder of one.
        target:
            "pt2": a program for `torch.export.load`, after `import jetvit`.
            "aoti": compiled code for `torch._inductor.aoti_load_package`, which needs torch alone; for the device that
                the model is on, and processors like that of this machine. It takes tensors with the strides of `args`
                and `kwargs`, and refuses others, as other sizes and dtypes.
            "onnx": for any ONNX runtime.
            "tensorrt": TensorRT engines for the GPU of this machine, for `torch_tensorrt.load`; it is read and not run.
        dynamic_shapes: as `torch.export.export` takes them.
        dynamic: leave batch, height and width of the images open, whatever the size of the example; the model is then
            called with one tensor of images, [batch, channel, height, width]. Not together with `dynamic_shapes`.
        opset: onnx: the version of its standard operators, 18 (the default) or 23.
        custom_ops: onnx: leave the operators of jetvit as nodes of their own, for a runtime that knows them.
        functions: onnx: write them as model-local functions, one for all equal calls, in place of inlined standard
            operators. The graph is shorter, and OpenVINO does not load it.
        plugins: tensorrt: the operators of jetvit run as plugins.
        max_shapes: tensorrt: the largest shape of an input by its name, where sizes are open without a bound.
        disable: names of passes to leave out, as for `jetvit.optimize`.
    Returns:
        The path.
    Raises:
        InputError: a target, suffix or option that does not fit, `dynamic` where it does not fit the inputs, or a
            package or compiler that is missing.
        CaptureError: torch.export cannot capture the model.
        PlanError: the plan does not fit the model.
        RewriteError: the target cannot express the model, or the file does not compute what the program does.
    """
    job = ExportJob.parse(
        target,
        path,
        opset=opset,
        custom_ops=custom_ops,
        functions=functions,
        plugins=plugins,
        max_shapes=max_shapes,
    )
    plan = load_plan(plan)
    if isinstance(model, nn.Module) and not isinstance(model, OptimizedModule):
        model = with_plain_outputs(model)
    job.check_place()
    # A compiled file takes the strides of the example: not those of a slice of another tensor.
    args, kwargs = pytree.tree_map(
        lambda value: dense(value, order_of(value)) if isinstance(value, Tensor) else value, (args, dict(kwargs or {}))
    )
    graph = capture(export_sizes(model, args, kwargs, dynamic_shapes, dynamic))
    rewrite(graph, plan, RewriteOptions(disable=disable))
    job.write(graph.program(), (args, kwargs) if dynamic and tensors((args, kwargs)) else None)
    return Path(path)


@dataclass(frozen=True)
class Written:
    """A file that was written: bytes on disk, its largest error as a share of the largest value of an output, or why
    it was not run here (then `error` is None)."""

    size: int
    error: float | None
    why_not_run: str = ""


@dataclass(frozen=True)
class ExportJob:
    """A file that is to be written, all that can be refused before a model is loaded having been refused.

    Attributes:
        target: the kind of file.
        path: where it goes.
        options: those of the target that were given.
    """

    target: Target
    path: Path
    options: Mapping[str, Any]

    @property
    def loads_with(self) -> str:
        """What takes the file."""
        return "a runtime that has jetvit's operators" if self.options.get("custom_ops") else self.target.load

    @classmethod
    def parse(
        cls, target: str, path: str | os.PathLike[str], spelling: Mapping[str, str] | None = None, **options: Any
    ) -> ExportJob:
        """A job from what a user asks for; an option that is None, False or empty was not given.

        Args:
            target, path: as `export` takes them.
            spelling: what the user calls an option, where it is not its name.
            options: those of `export`.
        Raises:
            InputError: a target, suffix or option that does not fit, or a package or compiler that is missing.
        """
        if target not in TARGETS:
            raise InputError(
                f"there is no target {target!r}",
                do=did_you_mean(str(target).lower(), TARGETS, f"choose one of {', '.join(TARGETS)}"),
            )
        kind = TARGETS[target]
        given = {name: value for name, value in options.items() if value not in (None, False, {})}
        for name in given:
            if name not in kind.options:
                takers = [each.name for each in TARGETS.values() if name in each.options]
                raise InputError(
                    f"the target {target!r} takes no option {(spelling or {}).get(name, name)!r}",
                    why=f"it belongs to {' and '.join(map(repr, takers))}",
                    do="leave it out, or choose that target",
                )
        if given.keys() >= {"custom_ops", "functions"}:
            custom_ops, functions = ((spelling or {}).get(name, name) for name in ("custom_ops", "functions"))
            raise InputError(
                f"{custom_ops} and {functions} exclude each other",
                why="an operator without a body has no function",
                do="leave one of them out",
            )
        if Path(path).suffix != kind.suffix:
            fitting = [each.name for each in TARGETS.values() if each.suffix == Path(path).suffix]
            raise InputError(
                f"cannot write {path}",
                why=f"a file of the target {target!r} ends in {kind.suffix}",
                do=f"name it {Path(path).stem or 'model'}{kind.suffix}"
                + (f", or choose the target {' or '.join(map(repr, fitting))}" if fitting else ""),
            )
        require_target(target)
        return cls(kind, Path(path), given)

    def check_place(self) -> None:
        """Refuse a place that cannot be written to, before anything is loaded.

        Raises:
            InputError: as `jetvit.files.atomic_path`.
        """
        writable(self.path)

    def write(self, program: ExportedProgram, inputs: Inputs | None = None) -> Written:
        """Write the file, and run it beside the program.

        Args:
            program: the program, rewritten already; it is not changed.
            inputs: the (args, kwargs) to run both on; None takes the program's example inputs.
        Raises:
            InputError, RewriteError: as `export`.
        """
        if self.target.name != "pt2" and (fixed := fixed_sizes(program)):
            raise InputError(
                f"the file would be wrong for other sizes than {fixed[0]}",
                why="the model's code fixed that at capture, and a file of this kind does not check it",
                do="leave that axis out (dynamic_shapes, dynamic=True), or choose the target 'pt2', which checks it",
            )
        program = plain_program(program)
        inputs = inputs or program.example_inputs
        require_space(self.path, sum({each.data_ptr(): each.nbytes for each in _weights(program)}.values()))
        with atomic_files(self.path) as path:
            WRITERS[self.target.name](program, path, **self.options)
            run = READERS[self.target.name](path, program, **self.options)
            size = sum(each.stat().st_size for each in path.parent.iterdir())
            if isinstance(run, str) or inputs is None:
                return Written(size, None, run if isinstance(run, str) else "the program has no example inputs")
            expected = run_program(program, inputs)
            with torch.no_grad():
                found = run(*copied(inputs))
            error, wrong = largest_error(found, expected)
            if not wrong:
                return Written(size, error)
            if differ(run_program(program, inputs), expected):
                raise InputError(
                    "the model does not compute the same twice",
                    why="it draws random numbers, so that no file can be compared with it",
                    do="put it in eval mode, and leave functional dropout out",
                )
            raise RewriteError(
                f"the file written for {self.target.name} does not compute what the program does",
                why=wrong,
                do="report this with the model" + ("" if self.target.name == "pt2" else "; target='pt2' may do"),
            )


def _weights(program: ExportedProgram) -> list[Tensor]:
    return [each for each in (*program.state_dict.values(), *program.constants.values()) if isinstance(each, Tensor)]
