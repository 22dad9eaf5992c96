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

from jetvit.cost_model.measuring.timing import generator_shapes
from jetvit.kernels.full_attention.triton_launch import rotate
from jetvit.kernels.launch import Launch, record_launches
from jetvit.kernels.linear_attention.triton_launch import (
    key_value_state,
    linear_attention_triton,
    mix,
    mix_configs,
    shared_taps,
    state_configs,
)
from jetvit.kernels.window_attention.triton_launch import attend, window_attention_triton, window_configs

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
HEAD_DIMS = (32, 64, 80, 96, 128)
TUNED_HEAD_DIMS = (64, 128)  # of the models that are measured: here every configuration is listed, else the default
CONV_SIZES = (0, 3, 5)
GRID = (64, 128)
EXTRA_TOKENS = 5
MANY_EXTRA_TOKENS = 100  # as the detection tokens of YOLOS
# Widths that divide the grid's, each alone a compile-time constant, and two that do not: one leaves few keys that fill
# no block, the other many.
WINDOWS = (16, 8, 32, 15, 13)
HEADS = 16


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
                    if entry.default or head_dim in TUNED_HEAD_DIMS:
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
        rotated = "" if rope_tables[0].numel() == 0 else "rope"
        for index, config in enumerate(state_configs(head_dim, DTYPES[dtype])):
            for mean in (False, True):
                layer = generator(dtype, head_dim, 3 if mean else 0)[:2]
                launches = _recorded(key_value_state, k, v, *rope_tables, *layer, *place, config)
                summed = "mean" if mean else ""
                options = {"kv_partials": f"{rotated} {summed}".strip(), "kv_state": summed}
                yield from entries(launches, options, default=index == 0)
        for conv_size in CONV_SIZES:
            for index, config in enumerate(mix_configs(head_dim, DTYPES[dtype], conv_size)):
                for kind, taps in convolutions(dtype, head_dim, conv_size).items():
                    state = _meta(HEADS, head_dim, head_dim, dtype=DTYPES[dtype])
                    sums = _meta(HEADS, head_dim)
                    launches = _recorded(mix, q, v, *rope_tables, state, sums, taps, *place, conv_size, 1e-6, config)
                    convolved = f"conv={conv_size} {kind}" if conv_size else ""
                    yield from entries(launches, {"mix": f"{rotated} {convolved}".strip()}, default=index == 0)
    for conv_size in CONV_SIZES:
        for launch in linear_attention(dtype, head_dim, conv_size):
            if launch.kernel.__name__ == "generate_taps":
                yield Entry("generate_taps", dtype, head_dim, f"conv={conv_size}", True, launch)


def window_entries(dtype: str, head_dim: int) -> Iterator[Entry]:
    """The launches of window attention: the default configuration of each window with few, many and no extra tokens,
    the others with few."""
    defaults = {str(window_configs(head_dim, DTYPES[dtype], side**2)[0]) for side in WINDOWS}
    for tables in (rope(head_dim), absent_rope()):
        rotated = "" if tables[0].numel() == 0 else "rope"
        for extra_tokens in (EXTRA_TOKENS, MANY_EXTRA_TOKENS, 0):
            operands = (*qkv(dtype, head_dim, extra_tokens), *tables, *GRID, extra_tokens)
            for side in WINDOWS:
                configs = window_configs(head_dim, DTYPES[dtype], side**2)
                for config in configs if extra_tokens == EXTRA_TOKENS else configs[:1]:
                    for launch in _recorded(attend, *operands, side, side, head_dim**-0.5, config):
                        kernel = launch.kernel.__name__
                        options = window_options(launch, rotated) if kernel == "attend_windows" else ""
                        yield Entry(kernel, dtype, head_dim, options, str(config) in defaults, launch)


def window_options(launch: Launch, rotated: str) -> str:
    """What tells one launch of `attend_windows` from its kin: RoPE, width, extra queries and keys in masked blocks."""
    values = launch.arguments
    extra = f"extra={values['BLOCK_E']}" if values["EXTRA"] else ""
    words = (rotated, f"width={values['SIDE_W'] or 'any'}", extra, f"rest={values['BLOCK_R']}")
    return " ".join(word for word in words if word)


def full_entries(dtype: str, head_dim: int) -> Iterator[Entry]:
    """The rotation of q and k; the attention itself is torch's."""
    q, _, _ = qkv(dtype, head_dim)
    for launch in _recorded(rotate, q, *rope(head_dim), *GRID, EXTRA_TOKENS):
        yield Entry(launch.kernel.__name__, dtype, head_dim, "", True, launch)


def linear_attention(dtype: str, head_dim: int, conv_size: int, rotated: bool = True) -> list[Launch]:
    """What the operator launches by default, with a kernel generator if there is a convolution."""
    tables = rope(head_dim) if rotated else absent_rope()
    tensors = (*qkv(dtype, head_dim), *tables, *generator(dtype, head_dim, conv_size))
    return _recorded(linear_attention_triton, *tensors, *GRID, EXTRA_TOKENS, conv_size, 1e-6, "relu")


def generator(dtype: str, head_dim: int, conv_size: int) -> list[Tensor]:
    """w1, b1, w2 and b2, or what stands for none without a convolution."""
    shapes = generator_shapes(HEADS * head_dim, conv_size)
    return [_meta(*shape, dtype=DTYPES[dtype]) if conv_size else _meta(0) for shape in shapes]


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
    channels = HEADS * head_dim
    if conv_size == 0:
        return {"none": _meta(0)}
    given = _meta(channels * conv_size**2, dtype=DTYPES[dtype])
    return {"generated": _meta(1, conv_size**2, channels), "given": shared_taps(given, conv_size)}


def _recorded(function: Callable[..., Any], *arguments: Any) -> list[Launch]:
    with record_launches() as launches:
        function(*arguments)
    return launches


def _meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")
