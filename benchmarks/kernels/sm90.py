"""Compile a launch for sm_90 (H100, H200) without a GPU, and read what the compiler made of it."""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource

from benchmarks.kernels.sass import read_listing
from jetvit.kernels.launch import Launch, interpreted

TARGET = GPUTarget("cuda", 90, 32)
# Of the 228 KB of a multiprocessor CUDA keeps 1 KB for each block, which cuobjdump counts as the block's own.
_SHARED_OF_CUDA = 1024
SHARED_LIMIT = 227 * 1024
MULTIPROCESSORS = 132
_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
_TYPES = {torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.float32: "*fp32", torch.float64: "*fp64"}


@dataclass(frozen=True)
class Resources:
    """What one compiled kernel takes and which instructions it has.

    registers: per thread. spill_bytes: the stack frame, which holds spilled registers, per thread. shared_bytes: per
    block, dynamic and static. hgmma: Hopper's warpgroup products; hmma: the products of one warp. serialised: ptxas
    warns that it waits after every warpgroup product (C7510 to C7515). fp64: instructions of double precision.
    instructions: in all; outside_loops: those of them that run once; loops: of each loop's body, in the order of the
    code. programs_per_sm: how many programs registers, shared memory and warps leave room for on a multiprocessor.
    """

    registers: int
    spill_bytes: int
    shared_bytes: int
    hgmma: int
    hmma: int
    serialised: bool
    fp64: int
    instructions: int
    outside_loops: int
    loops: tuple[int, ...]
    programs_per_sm: int


@dataclass(frozen=True)
class Variant:
    """One compilation of a kernel: types, constants and alignments of its arguments, warps and stages.

    Launches that make the same variant run the same machine code.
    """

    kernel: Any
    types: tuple[tuple[str, str], ...]
    constants: tuple[tuple[int, Any], ...]
    aligned: tuple[int, ...]
    num_warps: int
    num_stages: int


def cannot_compile() -> str:
    """Why nothing can be compiled in this process, or ""."""
    if interpreted():
        return "TRITON_INTERPRET=1 makes interpreted functions of the kernels"
    missing = [tool for tool in ("cuobjdump", "nvdisasm") if not (_TOOLS / tool).exists()]
    return f"this triton comes without {' and '.join(missing)}" if missing else ""


def variant_of(launch: Launch, by_inductor: bool = False) -> Variant:
    """What triton would compile for the launch, with the specialisations that it makes of the arguments.

    by_inductor: of a graph in which all sizes are known. Inductor heeds no `do_not_specialize`, and passes floats as
    fp64.
    """
    values = {**launch.arguments, **launch.config.blocks}
    types, constants, aligned = [], [], []
    for index, parameter in enumerate(launch.kernel.params):
        value = values[parameter.name]
        # Triton makes a constant of an int that is 1, and tells the compiler of multiples of 16.
        specialised = by_inductor or not parameter.do_not_specialize
        if parameter.is_constexpr or (specialised and type(value) is int and value == 1):
            types.append((parameter.name, "constexpr"))
            constants.append((index, value))
            continue
        kind, is_aligned = _kind(value)
        kind = "fp64" if by_inductor and kind == "fp32" else kind
        types.append((parameter.name, kind))
        if is_aligned and specialised:
            aligned.append(index)
    return Variant(
        launch.kernel,
        tuple(types),
        tuple(constants),
        tuple(aligned),
        launch.config.num_warps,
        launch.config.num_stages,
    )


def compile_variant(variant: Variant) -> Resources:
    """Compile for sm_90 and read the result; triton's own exceptions where it does not compile."""
    source = ASTSource(
        variant.kernel,
        dict(variant.types),
        {(index,): value for index, value in variant.constants},
        {(index,): [["tt.divisibility", 16]] for index in variant.aligned},
    )
    # Fusion of products and sums is the default of triton up to 3.9, which warns where it is not asked for.
    options = {"num_warps": variant.num_warps, "num_stages": variant.num_stages, "enable_fp_fusion": True}
    compiled = triton.compile(source, target=TARGET, options=options)
    return read_resources(compiled.asm["cubin"], compiled.asm["ptx"], compiled.metadata.shared, variant.num_warps)


def compile_launch(launch: Launch) -> Resources:
    """Compile one launch for sm_90."""
    return compile_variant(variant_of(launch))


def _kind(value: Any) -> tuple[str, bool]:
    """The type of an argument in Triton's signature, and whether 16 divides it (or its address, in bytes)."""
    if isinstance(value, torch.Tensor):
        return _TYPES[value.dtype], value.storage_offset() * value.element_size() % 16 == 0
    if isinstance(value, bool):
        return "u1", False
    if isinstance(value, float):
        return "fp32", False
    return "i32" if -(2**31) <= value < 2**31 else "i64", value % 16 == 0


def read_resources(cubin: bytes, ptx: str, dynamic_shared: int, num_warps: int) -> Resources:
    """Read what the compiler made of a kernel. dynamic_shared: bytes, as triton's metadata has them."""
    with tempfile.TemporaryDirectory() as folder:
        binary, text = Path(folder, "kernel.cubin"), Path(folder, "kernel.ptx")
        binary.write_bytes(cubin)
        text.write_text(ptx)
        usage = _run(_TOOLS / "cuobjdump", "-res-usage", binary)
        listing = read_listing(_run(_TOOLS / "nvdisasm", "-ndf", "-c", binary))
        report = ""
        if "mma" in ptx:
            # Only for its warnings the compiler is run again: the options of triton's own run differ from version to
            # version, and with them the registers, which are therefore read from triton's own result.
            report = _run(get_ptxas(90).path, "-v", "--gpu-name=sm_90a", text, "-o", Path(folder, "again.cubin"))
    registers, stack, static_shared = (
        int(re.search(rf"{name}:(\d+)", usage)[1]) for name in ("REG", "STACK", "SHARED")
    )
    shared = dynamic_shared + max(0, static_shared - _SHARED_OF_CUDA)
    return Resources(
        registers=registers,
        spill_bytes=stack,
        shared_bytes=shared,
        hgmma=listing.opcodes["HGMMA"],
        hmma=listing.opcodes["HMMA"],
        serialised="instructions are serialized" in report,
        fp64=listing.fp64,
        instructions=listing.count,
        outside_loops=listing.straight,
        loops=tuple(loop.count for loop in listing.loops),
        programs_per_sm=programs_per_sm(registers, shared, num_warps),
    )


def programs_per_sm(registers: int, shared_bytes: int, num_warps: int) -> int:
    """How many programs fit on a multiprocessor of sm_90: 64 K registers, 228 KB of shared memory, 64 warps."""
    # A warp gets registers by 256, which is 8 a thread.
    by_registers = 65536 // (-(-registers // 8) * 8 * 32 * num_warps)
    by_shared = 228 * 1024 // (shared_bytes + _SHARED_OF_CUDA)
    return min(by_registers, by_shared, 64 // num_warps, 32)


def _run(*command: object) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=True)
    return done.stdout + done.stderr
