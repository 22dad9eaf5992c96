"""Everything that jetvit uses of torch and that torch does not document, by name, in one place.

No other file of the package takes a private name of torch (a test holds that). What is taken here may be renamed or
dropped by any release, so each name is looked up when it is first asked for, and a missing one is named. All were there
in the releases of `SEEN`.

Outside of every room: this file imports none, and each may import it.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

if TYPE_CHECKING:  # each name as itself, which is how a type checker is told that others may import it from here
    from torch._decomp import get_decompositions as get_decompositions
    from torch._dispatch.python import enable_python_dispatcher as enable_python_dispatcher
    from torch._dynamo import OptimizedModule as OptimizedModule
    from torch._dynamo import lookup_backend as lookup_backend
    from torch._dynamo.exc import InvalidBackend as InvalidBackend
    from torch._export.utils import _collect_all_valid_cia_ops_for_aten_namespace as composite_operators
    from torch._export.utils import _get_decomp_for_cia as decomposition_of_composite
    from torch._guards import TracingContext as TracingContext
    from torch._guards import detect_fake_mode as detect_fake_mode
    from torch._guards import tracing as tracing
    from torch._inductor import aot_compile as aot_compile
    from torch._inductor import aoti_load_package as aoti_load_package
    from torch._inductor import list_mode_options as list_mode_options
    from torch._inductor.compile_fx import compile_fx as compile_fx
    from torch._inductor.cpp_builder import get_cpp_compiler as get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler as InvalidCxxCompiler
    from torch._ops import HigherOrderOperator as HigherOrderOperator
    from torch._ops import OpOverload as OpOverload
    from torch._ops import OpOverloadPacket as OpOverloadPacket
    from torch._subclasses import FakeTensor as FakeTensor
    from torch._subclasses import FakeTensorMode as FakeTensorMode
    from torch._subclasses.functional_tensor import FunctionalTensor as FunctionalTensor
    from torch.amp.autocast_mode import _enter_autocast as enter_autocast
    from torch.amp.autocast_mode import _exit_autocast as exit_autocast
    from torch.export import ExportedProgram
    from torch.export._tree_utils import reorder_kwargs as reorder_kwargs
    from torch.export.pt2_archive._package import PT2ArchiveReader as PT2ArchiveReader
    from torch.export.pt2_archive._package import package_pt2 as package_pt2
    from torch.utils._python_dispatch import TorchDispatchMode as TorchDispatchMode
    from torch.utils._python_dispatch import _disable_current_modes as disable_current_modes
    from torch.utils._sympy.functions import FloorDiv as FloorDiv
    from torch.utils._sympy.interp import sympy_interp as sympy_interp
    from torch.utils._sympy.numbers import int_oo as int_oo
    from torch.utils._sympy.reference import PythonReferenceAnalysis as PythonReferenceAnalysis
    from torch.utils._sympy.value_ranges import bound_sympy as bound_sympy

SEEN = ("2.11.0", "2.13.0", "2.14.1", "2.15.0")
"""The releases of torch in which all names were there."""

_PLACES = {
    # Graphs and tensors without values
    "FakeTensor": "torch._subclasses.FakeTensor",
    "FakeTensorMode": "torch._subclasses.FakeTensorMode",
    "FunctionalTensor": "torch._subclasses.functional_tensor.FunctionalTensor",
    "HigherOrderOperator": "torch._ops.HigherOrderOperator",
    "OpOverload": "torch._ops.OpOverload",
    "OpOverloadPacket": "torch._ops.OpOverloadPacket",
    "TorchDispatchMode": "torch.utils._python_dispatch.TorchDispatchMode",
    "TracingContext": "torch._guards.TracingContext",
    "detect_fake_mode": "torch._guards.detect_fake_mode",
    "tracing": "torch._guards.tracing",
    "disable_current_modes": "torch.utils._python_dispatch._disable_current_modes",
    "enable_python_dispatcher": "torch._dispatch.python.enable_python_dispatcher",
    "enter_autocast": "torch.amp.autocast_mode._enter_autocast",
    "exit_autocast": "torch.amp.autocast_mode._exit_autocast",
    # Symbolic sizes
    "FloorDiv": "torch.utils._sympy.functions.FloorDiv",
    "PythonReferenceAnalysis": "torch.utils._sympy.reference.PythonReferenceAnalysis",
    "bound_sympy": "torch.utils._sympy.value_ranges.bound_sympy",
    "int_oo": "torch.utils._sympy.numbers.int_oo",
    "sympy_interp": "torch.utils._sympy.interp.sympy_interp",
    # torch.export
    "composite_operators": "torch._export.utils._collect_all_valid_cia_ops_for_aten_namespace",
    "decomposition_of_composite": "torch._export.utils._get_decomp_for_cia",
    "get_decompositions": "torch._decomp.get_decompositions",
    "PT2ArchiveReader": "torch.export.pt2_archive._package.PT2ArchiveReader",
    "package_pt2": "torch.export.pt2_archive._package.package_pt2",
    "reorder_kwargs": "torch.export._tree_utils.reorder_kwargs",
    # Dynamo and Inductor
    "InvalidBackend": "torch._dynamo.exc.InvalidBackend",
    "InvalidCxxCompiler": "torch._inductor.exc.InvalidCxxCompiler",
    "OptimizedModule": "torch._dynamo.OptimizedModule",
    "aot_compile": "torch._inductor.aot_compile",
    "aoti_load_package": "torch._inductor.aoti_load_package",
    "compile_fx": "torch._inductor.compile_fx.compile_fx",
    "get_cpp_compiler": "torch._inductor.cpp_builder.get_cpp_compiler",
    "list_mode_options": "torch._inductor.list_mode_options",
    "lookup_backend": "torch._dynamo.lookup_backend",
}

__all__ = [*_PLACES, "SEEN", "MissingFromTorch", "pytree"]


class MissingFromTorch(ImportError):
    """This torch lacks a private name that jetvit uses."""

    def __init__(self, name: str):
        super().__init__(
            f"torch {torch.__version__} has no {name}, which jetvit uses. It was there in torch {', '.join(SEEN)}: "
            "install one of these, or a newer jetvit"
        )


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = _PLACES[name].rpartition(".")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise MissingFromTorch(_PLACES[name]) from error


def attribute_of(owner: Any, name: str) -> Any:
    """A private attribute of one of torch's objects.

    Raises:
        MissingFromTorch: it has none of that name.
    """
    try:
        return getattr(owner, name)
    except AttributeError as error:
        raise MissingFromTorch(f"{type(owner).__name__}.{name}") from error


def schema(operator: OpOverload) -> Any:
    """The FunctionSchema of an operator: arguments, results, what is written to and what shares memory."""
    return operator._schema


def edit_count(tensor: Tensor) -> int | None:
    """Count the in-place edits of a tensor; None for one made in inference mode, which keeps no count."""
    return None if tensor.is_inference() else attribute_of(tensor, "_version")


def flat_inputs(program: ExportedProgram, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Any]:
    """The values of a program's placeholders, weights too, in their order, as ExportedProgram's own call finds them."""
    return list(attribute_of(program, "_graph_module_flat_inputs")(args, dict(kwargs)))


def size_guards(program: ExportedProgram) -> list[str]:
    """Return the guards of a program on the sizes of its inputs, such as "L['x'].size()[2] // 8 == 4"."""
    return list(attribute_of(program, "_guards_code") or ())


@contextmanager
def observed_guards(observe: Callable[[Any, Mapping[str, str]], None]) -> Iterator[None]:
    """Observe the conditions on symbolic sizes that torch comes to rely on, while the code that causes them runs.

    Args:
        observe: called with each condition, a sympy expression, and symbol → source, such as "L['x'].size()[2]".
    """
    shape_env = importlib.import_module("torch.fx.experimental.symbolic_shapes").ShapeEnv
    original = getattr(shape_env, "_log_guard", None)
    if original is None:  # a torch that records them elsewhere: messages name no line
        yield
        return

    def log_guard(self: Any, prefix: str, guard: Any, *args: Any, **kwargs: Any) -> Any:
        if "suppressed" not in prefix:
            observe(guard, {str(symbol): source for source, symbol in getattr(self, "source_to_var", {}).items()})
        return original(self, prefix, guard, *args, **kwargs)

    shape_env._log_guard = log_guard
    try:
        yield
    finally:
        shape_env._log_guard = original


def set_state(program: ExportedProgram, state: Mapping[str, Any]) -> None:
    """Give an ExportedProgram other parameters and buffers, by FQN."""
    attribute_of(program, "_state_dict")
    program._state_dict = dict(state)


def symbols_of_input(context: TracingContext, tensor: Tensor) -> Any:
    """Return which sizes of a Dynamo graph's input are symbols, for `FakeTensorMode.from_tensor`; None if unknown."""
    return attribute_of(context, "tensor_to_context").get(tensor)


class RunningCall(NamedTuple):
    """A call of something that torch.compile returned.

    context: torch's object for that `torch.compile`; each function in its `enter_exit_hooks` is called at the start of
    every call, and what it returns at the end. cleanups: what is called at the end of this call.
    """

    context: Any
    cleanups: list[Callable[[], None]]


def running_call() -> RunningCall | None:
    """The outermost call of something compiled that is running; None outside of one.

    Raises:
        MissingFromTorch: torch keeps something else of it.
    """
    found: FrameType | None = None
    frame: FrameType | None = sys._getframe(1)
    module = vars(importlib.import_module("torch._dynamo.eval_frame"))
    while frame is not None:
        if frame.f_globals is module and "cleanups" in frame.f_code.co_varnames:
            found = frame
        frame = frame.f_back
    if found is None:
        return None
    context, cleanups = (found.f_locals.get(name) for name in ("self", "cleanups"))
    if not (isinstance(cleanups, list) and isinstance(getattr(context, "enter_exit_hooks", None), list)):
        raise MissingFromTorch("torch._dynamo.eval_frame.compile_wrapper, with its cleanups")
    return RunningCall(context, cleanups)


def is_vmap(target: Any) -> bool:
    """Report whether a function is a part of `torch.vmap`, which opens and closes levels and returns nothing."""
    return str(getattr(target, "__module__", None)).startswith("torch._functorch.")


@contextmanager
def recording_vmap() -> Iterator[None]:
    """Record the parts of `torch.vmap` in a trace as calls, as torch.export does; else its tensors become constants."""
    with _raised("_is_exporting_flag"):
        yield


@contextmanager
def as_if_exporting() -> Iterator[None]:
    """Answer code that asks `torch.compiler` whether it is being compiled or exported with yes."""
    with _raised("_is_compiling_flag"), _raised("_is_exporting_flag"):
        yield


@contextmanager
def _raised(flag: str) -> Iterator[None]:
    before = attribute_of(torch.compiler, flag)
    setattr(torch.compiler, flag, True)
    try:
        yield
    finally:
        setattr(torch.compiler, flag, before)


def type_named(name: str) -> Any:
    """A type of operator schemas by its name in torch._C, "TensorType" say."""
    return attribute_of(torch._C, name).get()


@contextmanager
def without_kernel_search() -> Iterator[None]:
    """Keep `triton_op` from searching an operator's source for Triton kernels, for which it imports Inductor: 1.5 s.

    It would find none: jetvit's operators import their kernels when they are called.
    """
    library: Any = importlib.import_module("torch._library.triton")
    search = getattr(library, "get_inner_triton_kernels", None)
    if search is None:  # a torch that searches elsewhere, or not at all
        yield
        return
    library.get_inner_triton_kernels = lambda function: []
    try:
        yield
    finally:
        library.get_inner_triton_kernels = search


@contextmanager
def compiled_input_checks() -> Iterator[None]:
    """Let AOTInductor packages check the sizes, strides, dtype and device of their inputs in every call.

    Torch compiles these checks into every package, and runs them only where the environment has
    AOTI_RUNTIME_CHECK_INPUTS=1. Here they become the default, and 0 turns them off. Torch has no option for this, so a
    condition of the generated C++ is edited; where a release writes it in another way, the package is as torch makes
    it. The check that an open size is at least 2 is left out: graphs take 1 as well.
    """
    from torch._inductor import config
    from torch._inductor.codegen.cpp_wrapper_cpu import CppWrapperCpu

    name = "generate_input_output_runtime_checks"
    original = getattr(CppWrapperCpu, name, None)
    if original is None or not hasattr(config.aot_inductor, "check_lowerbound"):
        yield
        return

    def generate(wrapper: Any) -> None:
        original(wrapper)
        lines = wrapper.prefix._lines
        for index, line in enumerate(lines):
            if isinstance(line, str):
                lines[index] = line.replace("env_var_value != nullptr && env", "env_var_value == nullptr || env")

    setattr(CppWrapperCpu, name, generate)
    try:
        with config.patch({"aot_inductor.check_lowerbound": False}):
            yield
    finally:
        setattr(CppWrapperCpu, name, original)
