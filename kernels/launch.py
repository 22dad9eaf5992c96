"""Launch Triton kernels: on a GPU, inside a trace, in the interpreter, or only written down."""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.library import wrap_triton

from jetvit.kernels.checks import is_absent
from jetvit.torch_private import FakeTensor, FunctionalTensor


@dataclass(frozen=True)
class Config:
    """The choices of a launch that autotuning may make.

    num_warps, num_stages: of the compilation. blocks: block sizes, by the kernel's name for them. splits_per_sm: how
    many programs a multiprocessor the tokens are split for, or 0 where nothing is split; `split_count` makes their
    number of it, and the kernel is the same for all.
    """

    num_warps: int
    num_stages: int
    blocks: Mapping[str, int] = field(default_factory=dict)
    splits_per_sm: int = 0

    def __str__(self) -> str:
        blocks = "".join(f"{name.lower()}={size} " for name, size in self.blocks.items())
        splits = f" splits_per_sm={self.splits_per_sm}" if self.splits_per_sm else ""
        return f"{blocks}warps={self.num_warps} stages={self.num_stages}{splits}"


@dataclass(frozen=True)
class Launch:
    """One launch, written down: the kernel, its grid, its arguments by name and its compile-time choices."""

    kernel: Any
    grid: tuple[Any, ...]
    arguments: dict[str, Any]
    config: Config


_RECORD: ContextVar[list[Launch] | None] = ContextVar("jetvit_launches", default=None)


@contextlib.contextmanager
def record_launches() -> Iterator[list[Launch]]:
    """Within it launches are written down, in order, and not made: what they would have written stays undefined."""
    launches: list[Launch] = []
    token = _RECORD.set(launches)
    try:
        yield launches
    finally:
        _RECORD.reset(token)


def interpreted() -> bool:
    """True if kernels run in Triton's interpreter, on CPU tensors; decided when triton is first imported."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def launch(kernel: Any, grid: tuple[Any, ...], arguments: dict[str, Any], config: Config) -> None:
    """Launch a kernel of `triton.jit` over `grid`.

    Inside a trace the launch becomes a node, which Inductor compiles into its own code and AOTInductor packs.

    Args:
        kernel: the kernel.
        grid: one to three sizes, ints or SymInts.
        arguments: the kernel's arguments by name, `tl.constexpr` ones included, without those of `config`.
        config: block sizes, warps and stages.
    """
    record = _RECORD.get()
    if record is not None:
        record.append(Launch(kernel, grid, arguments, config))
        return
    options = {**config.blocks, "num_warps": config.num_warps, "num_stages": config.num_stages}
    if interpreted():
        kernel[grid](**arguments, **options)
        return
    tensor = next(value for value in arguments.values() if isinstance(value, Tensor))
    # Triton launches on the current device, wherever the tensors are; a trace is of no device in particular.
    traced = isinstance(tensor, FakeTensor)
    with contextlib.nullcontext() if traced else torch.cuda.device(tensor.device):
        wrap_triton(kernel)[grid](**arguments, **options)


def has_kernel(q: Tensor) -> bool:
    """True if the Triton kernels take q [batch, token, head, dim]; any other q runs the ATen reference.

    They take fp16, bf16 and fp32 with an even head_dim of at most 128, on a GPU where triton is installed; and on a CPU
    under TRITON_INTERPRET=1, but for bf16, of which the interpreter handles the bits and not the values, and but for
    traces, which have no values. An empty q asks for no launch.
    """
    if importlib.util.find_spec("triton") is None or q.shape[3] > 128 or q.shape[3] % 2:
        return False
    if any(isinstance(size, int) and size == 0 for size in q.shape):
        return False
    if q.is_cuda:
        return q.dtype in (torch.float16, torch.bfloat16, torch.float32)
    traced = isinstance(q, FakeTensor | FunctionalTensor)
    return interpreted() and not traced and q.dtype in (torch.float16, torch.float32)


def multiprocessors(device: torch.device) -> int:
    """The number of streaming multiprocessors; away from a GPU that of an H100, which the defaults are made for.

    In the interpreter, which runs one program after the other, it is 6: enough for several splits.
    """
    if interpreted():
        return 6
    if device.type != "cuda" or not torch.cuda.is_available():
        return 132
    return torch.cuda.get_device_properties(device).multi_processor_count


def split_count(config: Config, programs: int, tokens: int, block: int, device: torch.device) -> int:
    """Into how many splits the tokens are cut so that `programs` times as many fill the device, and no more.

    One program past the last full wave would take as long as a whole wave. No split has less than one block of tokens.
    programs, tokens: at least 1; they may be symbolic. block: tokens that a program takes at a time.
    """
    filling = multiprocessors(device) * config.splits_per_sm // programs
    return torch.sym_max(torch.sym_min(filling, (tokens + block - 1) // block), 1)


def power_of_two(size: int) -> int:
    """The smallest power of two that is at least `size` and at least 16, the least that `tl.dot` takes."""
    return max(16, 1 << (size - 1).bit_length())


def strides(name: str, tensor: Tensor) -> dict[str, int]:
    """The strides of a [batch, token, head, dim] tensor, under the names that the kernels give them."""
    return dict(zip((f"stride_{name}b", f"stride_{name}n", f"stride_{name}h"), tensor.stride(), strict=False))


def head_sizes(head_dim: int) -> dict[str, int]:
    """head_dim, and its half and itself rounded up to what a block may have, under the names of the kernels."""
    return {"HEAD_DIM": head_dim, "HALF_D": power_of_two(head_dim // 2), "BLOCK_D": power_of_two(head_dim)}


def rope_options(rope_y: Tensor, dtype: torch.dtype) -> dict[str, object]:
    """The options of a kernel that may rotate, and the factor that keeps a rotated value in the range of fp16.

    A rotation can make a value √2 times as large.
    """
    rope = not is_absent(rope_y)
    return {"ROPE": rope, "SHRINK": 0.5 if rope and dtype == torch.float16 else 1.0}
