"""Every launch of the Triton kernels that has to compile well: kernel × configuration × dtype × head_dim × options.

Launches are recorded on meta tensors of a real shape, DINOv3-L at 1024×2048, so that the compiler is told of the same
alignments as on a GPU.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from jetvit.kernels.full_attention.triton_launch import rotate
from jetvit.kernels.launch import Launch, record_launches
from jetvit.kernels.linear_attention.triton_launch import (
    key_value_state,
    linear_attention_triton,
    mix,
    mix_configs,
    state_configs,
)
from jetvit.kernels.window_attention.triton_launch import (
    attend_extra,
    attend_windows,
    extra_configs,
    window_attention_triton,
    window_configs,
)

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
HEAD_DIMS = (32, 64, 80, 96, 128)
CONV_SIZES = (0, 3, 5)
GRID = (64, 128)
EXTRA_TOKENS = 5
MANY_EXTRA_TOKENS = 100  # as the detection tokens of YOLOS
WINDOWS = (16, 8, 32)
HEADS = 16
GENERATOR_WIDTH = 256


@dataclass(frozen=True)
class Entry:
    """One launch that has to pass the gates.

    dtype: a key of `DTYPES`. options: what else tells it from its kin, such as "rope conv=3". default: whether it is
    launched where nothing has been tuned.
    """

    kernel: str
    dtype: str
    head_dim: int
    options: str
    default: bool
    launch: Launch

    @property
    def name(self) -> str:
        """A stable name, one word."""
        words = f"{self.kernel} {self.dtype} d{self.head_dim} {self.options} {self.launch.config}"
        return re.sub(r"\s+", "-", words)


def every_entry() -> list[Entry]:
    """All of them, the same in every run."""
    found: dict[str, Entry] = {}
    for dtype in DTYPES:
        for head_dim in HEAD_DIMS:
            for entries in (linear_entries, window_entries, full_entries):
                for entry in entries(dtype, head_dim):
                    found.setdefault(entry.name, entry)
    return list(found.values())


def linear_entries(dtype: str, head_dim: int) -> Iterator[Entry]:
    """The launches of linear attention; what does not depend on an option is listed once."""

    def entries(launches: Iterable[Launch], options: dict[str, str], default: bool) -> Iterator[Entry]:
        for launch in launches:
            kernel = launch.kernel.__name__
            yield Entry(kernel, dtype, head_dim, options[kernel], default, launch)

    q, k, v = qkv(dtype, head_dim)
    place = (*GRID, EXTRA_TOKENS)
    for rope_tables in (rope(head_dim), absent_rope()):
        turned = "" if rope_tables[0].numel() == 0 else "rope"
        for index, config in enumerate(state_configs(head_dim, DTYPES[dtype])):
            for mean in (False, True):
                launches = _recorded(key_value_state, k, v, *rope_tables, *place, mean, config)
                summed = "mean" if mean else ""
                options = {"kv_partials": f"{turned} {summed}".strip(), "kv_state": summed}
                yield from entries(launches, options, default=index == 0)
        for index, config in enumerate(mix_configs(head_dim, DTYPES[dtype])):
            for conv_size in CONV_SIZES:
                for kind, taps in convolutions(dtype, head_dim, conv_size).items():
                    state = _meta(HEADS, head_dim, head_dim, dtype=DTYPES[dtype])
                    sums = _meta(HEADS, head_dim)
                    launches = _recorded(mix, q, v, *rope_tables, state, sums, taps, *place, conv_size, 1e-6, config)
                    convolved = f"conv={conv_size} {kind}" if conv_size else ""
                    yield from entries(launches, {"mix": f"{turned} {convolved}".strip()}, default=index == 0)
    launches = linear_attention(dtype, head_dim, conv_size=3)
    products = [launch for launch in launches if launch.kernel.__name__ == "matvec"]
    for launch in products:
        layer = "first layer" if launch.arguments["SILU"] else "second layer"
        yield Entry("matvec", dtype, head_dim, layer, True, launch)


def window_entries(dtype: str, head_dim: int) -> Iterator[Entry]:
    """The launches of window attention; the configurations of all windows together."""
    defaults = {str(window_configs(head_dim, DTYPES[dtype], side**2)[0]) for side in WINDOWS}
    for tables in (rope(head_dim), absent_rope()):
        turned = "" if tables[0].numel() == 0 else "rope"
        for extra_tokens in (EXTRA_TOKENS, MANY_EXTRA_TOKENS):
            q, k, v = qkv(dtype, head_dim, extra_tokens)
            operands = (q, k, v, *tables, torch.empty_like(q), *GRID, extra_tokens)
            for side in WINDOWS:
                for config in window_configs(head_dim, DTYPES[dtype], side**2):
                    for launch in _recorded(attend_windows, *operands, side, side, head_dim**-0.5, config):
                        default = str(config) in defaults
                        yield Entry(launch.kernel.__name__, dtype, head_dim, turned, default, launch)
            for index, config in enumerate(extra_configs(head_dim, DTYPES[dtype], extra_tokens)):
                for launch in _recorded(attend_extra, *operands, head_dim**-0.5, config):
                    options = turned if launch.kernel.__name__ == "attend_extra" else ""
                    yield Entry(launch.kernel.__name__, dtype, head_dim, options, index == 0, launch)


def full_entries(dtype: str, head_dim: int) -> Iterator[Entry]:
    """The rotation of q and k; the attention itself is torch's."""
    q, _, _ = qkv(dtype, head_dim)
    for launch in _recorded(rotate, q, *rope(head_dim), *GRID, EXTRA_TOKENS):
        yield Entry(launch.kernel.__name__, dtype, head_dim, "", True, launch)


def linear_attention(dtype: str, head_dim: int, conv_size: int, rotated: bool = True) -> list[Launch]:
    """What the operator launches by default, with a kernel generator if there is a convolution."""
    channels = HEADS * head_dim
    taps = channels * conv_size**2
    shapes = [(GENERATOR_WIDTH, channels), (GENERATOR_WIDTH,), (taps, GENERATOR_WIDTH), (taps,)]
    weights = [_meta(*shape, dtype=DTYPES[dtype]) if conv_size else _meta(0) for shape in shapes]
    tables = rope(head_dim) if rotated else absent_rope()
    tensors = (*qkv(dtype, head_dim), *tables, *weights)
    return _recorded(linear_attention_triton, *tensors, *GRID, EXTRA_TOKENS, conv_size, 1e-6, "relu")


def window_attention(
    dtype: str, head_dim: int, side: int, rotated: bool = True, extra_tokens: int = EXTRA_TOKENS
) -> list[Launch]:
    """What the operator launches by default."""
    tables = rope(head_dim) if rotated else absent_rope()
    tensors = (*qkv(dtype, head_dim, extra_tokens), *tables)
    return _recorded(window_attention_triton, *tensors, *GRID, extra_tokens, side, side, head_dim**-0.5)


def qkv(dtype: str, head_dim: int, extra_tokens: int = EXTRA_TOKENS) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v [1, token, head, head_dim] as a packed projection lays them out."""
    tokens = extra_tokens + GRID[0] * GRID[1]
    q, k, v = _meta(1, tokens, 3, HEADS, head_dim, dtype=DTYPES[dtype]).unbind(2)
    return q, k, v


def rope(head_dim: int) -> tuple[Tensor, Tensor]:
    """Tables of axial RoPE."""
    return _meta(GRID[0], 2, head_dim // 4), _meta(GRID[1], 2, head_dim // 4)


def absent_rope() -> tuple[Tensor, Tensor]:
    """What stands for no RoPE."""
    return _meta(0), _meta(0)


def convolutions(dtype: str, head_dim: int, conv_size: int) -> dict[str, Tensor]:
    """The taps of the convolution: generated for the image, in fp32, and given for all images, in the model's dtype."""
    taps = HEADS * head_dim * conv_size**2
    if conv_size == 0:
        return {"none": _meta(0)}
    return {"generated": _meta(1, taps), "given": _meta(taps, dtype=DTYPES[dtype])}


def _recorded(function: Callable[..., Any], *arguments: Any) -> list[Launch]:
    with record_launches() as launches:
        function(*arguments)
    return launches


def _meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")
