"""`make_call`: an `Operation` as a call on random data that lies in memory as a model would have it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from jetvit.cost_model.measuring.operation import ATTENTIONS, Operation
from jetvit.cost_model.measuring.timing import generator_shapes
from jetvit.cost_model.plans.choice import DEFAULT_EPS
from jetvit.kernels import full_attention, linear_attention, window_attention
from jetvit.kernels.cuda_graph import captured

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Call:
    """A call to time: `run` makes it, forward only, without gradients; `config` says in words what it runs."""

    run: Callable[[], object]
    config: str


def make_call(operation: Operation, device: torch.device) -> Call:
    """The call that a rewritten model makes on `device` for this operation.

    q, k and v are strided views of one packed projection [batch, token, 3, head, dim], the extra tokens come first, and
    everything is of unit variance. Full attention is `jetvit::full_attention` on a GPU; on a CPU, with a named backend,
    or both, SDPA on [batch, head, token, dim] views. Linear attention with a convolution brings a kernel generator.

    Raises RuntimeError (with torch.OutOfMemoryError) for what this device or torch cannot run or hold.
    """
    generator = torch.Generator(device).manual_seed(0)
    dtype = _DTYPES[operation.dtype]

    def random(*size: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.randn(size, generator=generator, dtype=dtype, device=device)

    with torch.inference_mode():
        if operation.op in ATTENTIONS:
            run, config = _attention(operation, random)
        else:
            run, config = _other(operation, random), f"F.{_FUNCTIONS[operation.op]}"
    if device.type == "cuda" and operation.dtype == "float32":
        config += f", float32 products {torch.get_float32_matmul_precision()}"
    if device.type != "cuda":
        config += f", threads {torch.get_num_threads()}"
    return Call(run, config)


def as_graph(call: Call) -> Call:
    """The replay of a CUDA graph of the call, which does not wait for the host; the call itself where none can be made.

    The current device is that of the call, which has run once already.
    """
    try:
        return Call(captured(call.run), f"{call.config}, CUDA graph")
    except RuntimeError as error:
        return Call(call.run, f"{call.config}, launched: {first_line(error)}")


def first_line(error: BaseException) -> str:
    """The first line of an error's message, fit for a cell of a table."""
    text = str(error).strip().partition("\n")[0] or type(error).__name__
    return "".join(sign for sign in text[:160] if sign.isprintable())


_FUNCTIONS = {"gemm": "linear", "layer_norm": "layer_norm", "gelu": "gelu", "add": "add"}


def _other(operation: Operation, random: Callable[..., Tensor]) -> Callable[[], Tensor]:
    width = operation.inputs
    x = random(operation.batch, operation.tokens, width)
    if operation.op == "gemm":
        return partial(F.linear, x, random(operation.outputs, width), random(operation.outputs))
    if operation.op == "layer_norm":
        return partial(F.layer_norm, x, (width,), random(width), random(width))
    if operation.op == "gelu":
        return partial(F.gelu, x)
    return partial(torch.add, x, random(*x.shape))


def _attention(operation: Operation, random: Callable[..., Tensor]) -> tuple[Callable[[], Tensor], str]:
    """The call, and its name."""
    heads, dim = operation.heads, operation.head_dim
    q, k, v = random(operation.batch, operation.tokens, 3, heads, dim).unbind(2)
    absent = q.new_empty(0)
    rope_y, rope_x = (_rope_table(side, dim, random) if operation.rope else absent for side in _grid(operation))
    place = (*_grid(operation), operation.extra)
    scale = dim**-0.5
    if operation.op == "window":
        window = (operation.window_h, operation.window_w)
        return partial(window_attention, q, k, v, rope_y, rope_x, *place, *window, scale), "jetvit::window_attention"
    if operation.op == "linear":
        w1, b1, w2, b2 = _generator_weights(operation, random, absent)
        options = (operation.conv_size, DEFAULT_EPS, operation.feature_map)
        call = partial(linear_attention, q, k, v, rope_y, rope_x, w1, b1, w2, b2, *place, *options)
        return call, "jetvit::linear_attention"
    if operation.backend:
        if operation.rope:
            raise NotImplementedError("full attention with RoPE chooses its backend by itself")
        if operation.backend not in SDPBackend.__members__:
            raise NotImplementedError(f"torch has no backend {operation.backend} of SDPA")
        return partial(_by_backend, q, k, v, scale, SDPBackend.__members__[operation.backend]), operation.backend
    if q.is_cuda or operation.rope:
        return partial(full_attention, q, k, v, rope_y, rope_x, *place, scale), "jetvit::full_attention"
    return partial(_sdpa, q, k, v, scale), "F.scaled_dot_product_attention"


def _sdpa(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    return F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), scale=scale)


def _by_backend(q: Tensor, k: Tensor, v: Tensor, scale: float, backend: SDPBackend) -> Tensor:
    with sdpa_kernel(backend):
        return _sdpa(q, k, v, scale)


def _grid(operation: Operation) -> tuple[int, int]:
    return operation.grid_h, operation.grid_w


def _rope_table(side: int, head_dim: int, random: Callable[..., Tensor]) -> Tensor:
    """Cosines and sines [side, 2, head_dim / 4] of random angles."""
    angles = random(side, head_dim // 4, dtype=torch.float32)
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def _generator_weights(operation: Operation, random: Callable[..., Tensor], absent: Tensor) -> list[Tensor]:
    """w1, b1, w2, b2 of the kernel generator, absent without a convolution."""
    if operation.conv_size == 0:
        return [absent] * 4
    return [random(*size) for size in generator_shapes(operation.features, operation.conv_size)]
