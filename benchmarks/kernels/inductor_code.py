"""What Inductor makes of a rewritten model on a Hopper GPU, on a machine without one.

A model with every kind of attention is captured and rewritten, moved to a stand-in for an H200, and compiled by
Inductor as far as its code; then every copy of jetvit's kernels in that code is compiled for sm_90. Prints each kernel
with its arguments of fp64, instructions of fp64 and all instructions, and whether q, k and v are read where the
projections left them. Exit status 1: a kernel does not compile, or has fp64 in it, or q, k or v are copied; 2: nothing
can be compiled.

    python -m benchmarks.kernels.inductor_code FRONTEND      # export, dynamo, or aoti (AOTInductor)
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib.util
import os
import re
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter, Node
from torch.utils import _pytree as pytree
from triton.compiler import ASTSource

from benchmarks.end_to_end.models import MODELS, dinov3, mixed_plan
from benchmarks.kernels import fake_hopper
from benchmarks.kernels.sm90 import TARGET, cannot_compile, read_resources
from jetvit.passes.frontends.capture import capture, capture_dynamo
from jetvit.passes.pipeline import RewriteOptions, rewrite

FRONTENDS = ("export", "dynamo", "aoti")
KERNELS = ("kv_partials", "kv_state", "generate_taps", "mix", "attend_windows", "combine_extra", "rotate")
IMAGE = 192  # 12 × 12 tokens: windows of 8 are cut to 6


@dataclass(frozen=True)
class Found:
    """A kernel in Inductor's code. fp64_arguments: their names. copied: which of q, k and v no product wrote."""

    name: str
    fp64_arguments: tuple[str, ...]
    fp64: int
    instructions: int
    copied: tuple[str, ...]
    error: str = ""

    @property
    def is_right(self) -> bool:
        """Whether it compiles, without fp64 and without copies."""
        return not (self.error or self.fp64_arguments or self.fp64 or self.copied)


def small_model() -> nn.Module:
    """DINOv3 of four blocks with heads of 64 channels, RoPE and five extra tokens; random weights, bf16."""
    return dinov3(replace(MODELS["DINOv3-B"], width=128, heads=2, depth=4, mlp=256)).eval().to(torch.bfloat16)


def rewritten(frontend: str) -> tuple[GraphModule, list[Tensor]]:
    """The rewritten graph of the small model, on the CPU, and its inputs."""
    import jetvit

    torch.manual_seed(0)
    model, images = small_model(), torch.randn(1, 3, IMAGE, IMAGE, dtype=torch.bfloat16)
    plan = mixed_plan(jetvit.find_attention(model, images), full=(3,), window=8)
    # As on a GPU: full attention becomes an operator, too.
    options = RewriteOptions(partial=True, operator=True)
    if frontend != "dynamo":
        graph = capture(model, (images,))
        rewrite(graph, plan, options)
        return graph.program().module(check_guards=False), [images]
    caught: list[tuple[GraphModule, list[Tensor]]] = []

    def backend(gm: GraphModule, inputs: Sequence[Tensor]) -> Any:
        dynamo = capture_dynamo(gm, inputs)
        rewrite(dynamo, plan, options)
        caught.append((dynamo.module, list(inputs)))
        return gm

    with torch.no_grad():
        torch.compile(model, backend=backend, dynamic=False)(images)
    assert len(caught) == 1, "the model has a graph break"
    return caught[0]


class _OnDevice(Interpreter):
    """Runs a graph of the CPU with its tensors and its devices on the stand-in."""

    def __init__(self, gm: GraphModule, attributes: dict[str, Tensor]):
        super().__init__(gm)
        self._attributes = attributes

    def fetch_attr(self, target: str) -> Any:
        return self._attributes[target] if target in self._attributes else super().fetch_attr(target)

    def run_node(self, node: Node) -> Any:
        args, kwargs = self.fetch_args_kwargs_from_env(node)
        moved = pytree.tree_map_only(torch.device, lambda _: torch.device("cuda"), (args, kwargs))
        return getattr(self, node.op)(node.target, *moved)


def inductor_code(module: GraphModule, inputs: Sequence[Tensor], cpp: bool) -> tuple[dict[str, str], str]:
    """The definitions of the kernels by name, and the code that calls them, which is "" with `cpp`.

    cpp: as AOTInductor, whose calls are C++ and ask for compiled kernels, which the stand-in cannot load.
    """
    from torch._functorch.aot_autograd import aot_module_simplified
    from torch._guards import TracingContext, tracing
    from torch._inductor.codegen.wrapper import PythonWrapperCodegen
    from torch._inductor.compile_fx import _recursive_post_grad_passes
    from torch._inductor.debug import DebugContext
    from torch._inductor.decomposition import select_decomp_table
    from torch._inductor.graph import GraphLowering
    from torch._inductor.virtualized import V
    from torch._subclasses import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx

    mode = FakeTensorMode(allow_non_fake_inputs=True)
    targets = sorted({str(node.target) for node in module.graph.find_nodes(op="get_attr")})
    attributes = {name: value for name in targets if isinstance(value := attrgetter(name)(module), Tensor)}
    definitions: dict[str, str] = {}
    calls: list[str] = []
    define_kernel = PythonWrapperCodegen.define_kernel

    def define(self: Any, kernel_name: str, kernel_body: str, *args: Any, **kwargs: Any) -> Any:
        definitions[kernel_name] = kernel_body
        return define_kernel(self, kernel_name, kernel_body, *args, **kwargs)

    def generate(gm: GraphModule, example_inputs: Sequence[Any]) -> Any:
        with V.set_fake_mode(mode):
            _recursive_post_grad_passes(gm, is_inference=True)
        graph = GraphLowering(
            gm, example_inputs=example_inputs, shape_env=None, is_inference=True, cpp_wrapper=cpp, aot_mode=cpp
        )
        with V.set_graph_handler(graph), V.set_fake_mode(mode), V.set_debug_handler(DebugContext()):
            graph.run(*example_inputs)
            if cpp:
                graph.init_wrapper_code()
                graph._update_scheduler()
                graph.wrapper_code.push_codegened_graph(graph)
                graph.scheduler.codegen()
            else:
                made = graph.codegen()[0]
                calls.append(made if isinstance(made, str) else made.value)
        raise _Generated

    def run(*tensors: Tensor) -> Any:
        named = dict(zip(attributes, tensors[len(inputs) :], strict=True))
        return pytree.tree_leaves(_OnDevice(module, named).run(*tensors[: len(inputs)]))

    # torch's CPU build cannot choose among the fused attentions of CUDA: something else reads q, k and v instead.
    sdpa = mock.patch("jetvit.kernels.full_attention.triton_launch.attend", _stand_in_attention)
    with mode, torch.no_grad(), sdpa, mock.patch.object(PythonWrapperCodegen, "define_kernel", define):
        arguments = [
            torch.empty_strided(each.shape, each.stride(), dtype=each.dtype, device="cuda")
            for each in (*inputs, *attributes.values())
        ]
        traced = make_fx(run, tracing_mode="real")(*arguments)
        with contextlib.suppress(_Generated), tracing(TracingContext(mode)):
            aot_module_simplified(
                traced,
                arguments,
                fw_compiler=generate,
                inference_compiler=generate,
                decompositions=select_decomp_table(),
            )
    return definitions, "".join(calls)


def _stand_in_attention(q: Tensor, k: Tensor, v: Tensor, *_: Any, **__: Any) -> Tensor:
    return q + k + v


class _Generated(Exception):
    """The code is there: nothing that comes after it is wanted."""


def compile_definition(name: str, definition: str, calls: str, folder: Path) -> Found | None:
    """Compile a kernel for sm_90 as Inductor's runtime would; None for a kernel that Inductor wrote itself."""
    source = definition.partition("'''")[2].rpartition("'''")[0].replace("\\'", "'")
    decorator = re.search(r"@triton_heuristics\.\w+\((.*?)\n\)\n@triton\.jit", source, re.S)
    kernel = re.search(r"async_compile\.triton\('(\w+)'", definition)
    if decorator is None or kernel is None or kernel[1] not in KERNELS:
        return None
    meta = re.search(r"triton_meta=(\{.*?\}),\n\s*(?:filename|inductor_meta)", decorator[1], re.S)
    configs = re.search(r"configs=\[(\{.*?\})\],\n", decorator[1], re.S)
    if meta is None or configs is None:
        raise RuntimeError(f"Inductor writes its decorators in another way than is known here:\n{decorator[1]}")
    # Code that torch has written a moment ago from our own kernels.
    settings = eval(meta[1], {"DeviceProperties": lambda **known: known, "torch": torch})
    config = ast.literal_eval(configs[1])
    options = {"num_warps": config.pop("num_warps"), "num_stages": config.pop("num_stages")}
    file = folder / f"{name}.py"
    file.write_text(_IMPORTS + source[decorator.end() - len("@triton.jit") :], encoding="utf-8")
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    function = getattr(module, kernel[1])
    constants = {**settings["constants"], **config}
    signature = {key: "constexpr" if key in constants else kind for key, kind in settings["signature"].items()}
    signature |= dict.fromkeys(config, "constexpr")
    index = {argument: number for number, argument in enumerate(function.arg_names)}
    fp64 = tuple(key for key, kind in signature.items() if kind == "fp64")
    copied = _copied(name, function.arg_names, constants, calls)
    try:
        built = triton.compile(
            ASTSource(
                function, signature, {(index[key],): each for key, each in constants.items()}, settings["configs"][0]
            ),
            target=TARGET,
            options=options,
        )
    except Exception as error:  # whatever triton or ptxas raises is the result of this kernel
        return Found(name, fp64, 0, 0, copied, f"{type(error).__name__}: {str(error).strip()[-300:]}")
    found = read_resources(built.asm["cubin"], built.asm["ptx"], built.metadata.shared, options["num_warps"])
    return Found(name, fp64, found.fp64, found.instructions, copied)


_IMPORTS = """import triton, triton.language as tl
from torch._inductor.runtime import triton_helpers, triton_heuristics
from torch._inductor.runtime.triton_helpers import libdevice, math as tl_math
from torch._inductor.runtime.hints import AutotuneHint, ReductionHint, TileHint, DeviceProperties
"""


def _copied(name: str, arguments: Sequence[str], constants: Mapping[str, Any], calls: str) -> tuple[str, ...]:
    """Which of q, k and v a call of the kernel reads from a buffer that no matrix product wrote."""
    products = set(re.findall(r"extern_kernels\.(?:addmm|mm|bmm|bias_addmm)\([^\n]*out=(\w+)", calls))
    given = [each for each in arguments if each not in constants]
    found = set()
    launches = re.findall(rf"^\s*{name}\.run\((.*)\)$", calls, re.M)
    if calls and not launches:
        raise RuntimeError(f"Inductor calls {name} in another way than is known here")
    for launch in launches:
        values = ast.parse(f"f({launch})", mode="eval").body.args  # type: ignore[attr-defined]
        for argument, value in zip(given, values, strict=False):
            buffers = {node.id for node in ast.walk(value) if isinstance(node, ast.Name)} - {"reinterpret_tensor"}
            if argument in ("q_ptr", "k_ptr", "v_ptr", "x_ptr") and not buffers & products:
                found.add(argument)
    return tuple(sorted(found))


def check(frontend: str) -> list[Found]:
    """What Inductor makes of every launch of jetvit's kernels; installs the stand-in for the rest of the process."""
    os.environ["JETVIT_AUTOTUNE"] = "0"
    module, inputs = rewritten(frontend)
    fake_hopper.install()
    definitions, calls = inductor_code(module, inputs, cpp=frontend == "aoti")
    with tempfile.TemporaryDirectory() as folder:
        found = (compile_definition(name, text, calls, Path(folder)) for name, text in definitions.items())
        return [each for each in found if each is not None]


def main(arguments: Sequence[str] | None = None) -> int:
    """Generate, compile, print; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("frontend", choices=FRONTENDS)
    args = parser.parse_args(arguments)
    if reason := cannot_compile():
        print(f"nothing can be compiled: {reason}", file=sys.stderr)
        return 2
    results = check(args.frontend)
    print(f"torch {torch.__version__}, triton {triton.__version__}, {args.frontend}")
    for each in results:
        notes = [f"{name} is fp64" for name in each.fp64_arguments] + [f"{name} is a copy" for name in each.copied]
        notes += [f"{each.fp64} instructions of fp64"] * bool(each.fp64) + [each.error] * bool(each.error)
        print(f"{'ok' if each.is_right else 'FAILED':<6} {each.name:<18} {each.instructions:>5}  {'; '.join(notes)}")
    missing = sorted(set(KERNELS) - {re.sub(r"_\d+$", "", each.name) for each in results})
    if missing:
        print(f"FAILED: no code for {', '.join(missing)}")
    return 0 if not missing and all(each.is_right for each in results) else 1


if __name__ == "__main__":
    sys.exit(main())
