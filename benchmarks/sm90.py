"""Compile a launch for an H100 on a machine that need not have one, and read off what the compiler made of it."""

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

from jetvit.kernels.launch import Launch

TARGET = GPUTarget("cuda", 90, 32)
# 228 KB an SM, of which CUDA keeps 1 KB a block.
SHARED_LIMIT = 227 * 1024
_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
_TYPES = {torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.float32: "*fp32", torch.float64: "*fp64"}


@dataclass(frozen=True)
class Resources:
    """What one compiled kernel takes and which tensor-core instructions it has.

    registers: per thread. spill_bytes: local memory for spilled registers, per thread. shared_bytes: per block, dynamic
    and static. hgmma: Hopper's warpgroup products; hmma: the products of one warp. serialised: ptxas warns that it
    waits after every warpgroup product (C7515 and its kin).
    """

    registers: int
    spill_bytes: int
    shared_bytes: int
    hgmma: int
    hmma: int
    serialised: bool


def compile_launch(launch: Launch) -> Resources:
    """Compile for sm_90 with the specialisations that triton would make of the launch's arguments."""
    kernel = launch.kernel
    values = {**launch.arguments, **launch.config.blocks}
    signature: dict[str, str] = {}
    constants: dict[tuple[int, ...], Any] = {}
    attributes: dict[tuple[int, ...], list[list[Any]]] = {}
    for index, parameter in enumerate(kernel.params):
        value = values[parameter.name]
        # Triton makes a constant of an int that is 1, and tells the compiler of multiples of 16.
        specialised = not parameter.do_not_specialize
        if parameter.is_constexpr or (specialised and isinstance(value, int) and value == 1):
            signature[parameter.name] = "constexpr"
            constants[(index,)] = value
            continue
        signature[parameter.name], aligned = _kind(value)
        if aligned and specialised:
            attributes[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constants, attributes)
    options = {"num_warps": launch.config.num_warps, "num_stages": launch.config.num_stages}
    compiled = triton.compile(source, target=TARGET, options=options)
    return _read(compiled.asm["cubin"], compiled.asm["ptx"], compiled.metadata.shared)


def _kind(value: Any) -> tuple[str, bool]:
    """The type of an argument in Triton's signature, and whether 16 divides it (or its address, in bytes)."""
    if isinstance(value, torch.Tensor):
        return _TYPES[value.dtype], value.storage_offset() * value.element_size() % 16 == 0
    if isinstance(value, float):
        return "fp32", False
    return "i32" if -(2**31) <= value < 2**31 else "i64", value % 16 == 0


def _read(cubin: bytes, ptx: str, dynamic_shared: int) -> Resources:
    with tempfile.TemporaryDirectory() as folder:
        binary, text = Path(folder, "kernel.cubin"), Path(folder, "kernel.ptx")
        binary.write_bytes(cubin)
        text.write_text(ptx)
        usage = _run(_TOOLS / "cuobjdump", "-res-usage", binary)
        code = _run(_TOOLS / "nvdisasm", "-c", binary)
        report = _run(get_ptxas(90).path, "-v", "--gpu-name=sm_90a", text, "-o", Path(folder, "again.cubin"))
    spills = re.findall(r"(\d+) bytes spill (?:stores|loads)", report)
    return Resources(
        registers=int(re.search(r"REG:(\d+)", usage)[1]),
        spill_bytes=sum(map(int, spills)),
        shared_bytes=dynamic_shared + int(re.search(r"SHARED:(\d+)", usage)[1]),
        hgmma=len(re.findall(r"\bHGMMA\.", code)),
        hmma=len(re.findall(r"\bHMMA\.", code)),
        serialised="serializ" in report.lower() or "C7515" in report,
    )


def _run(*command: object) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=True)
    return done.stdout + done.stderr
