"""Who competes in a problem: ours, our ATen reference, plain PyTorch, and torch's own attention kernels.

`jetvit` is the operator, with Triton on a GPU. `reference` is its meaning in ATen. `eager` and `compiled` are plain
PyTorch (`benchmarks.kernels.plain`). All of them rotate q and k where the model does; the bare backends of SDPA, named
`sdpa …`, do not and so do less.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.kernels import plain as kernel_plain
from benchmarks.kernels.inputs import Inputs
from benchmarks.kernels.rows import OURS, REFERENCE
from benchmarks.kernels.shapes import Problem
from jetvit.kernels import balanced_windows, full_attention, linear_attention, window_attention
from jetvit.kernels.full_attention.reference import full_attention_reference
from jetvit.kernels.linear_attention.reference import linear_attention_reference
from jetvit.kernels.window_attention.reference import window_attention_reference

Call = Callable[[], Tensor]

_OPERATORS = {
    OURS: {"linear": linear_attention, "window": window_attention, "full": full_attention},
    REFERENCE: {
        "linear": linear_attention_reference,
        "window": window_attention_reference,
        "full": full_attention_reference,
    },
}
SDPA = {
    "sdpa flash": SDPBackend.FLASH_ATTENTION,
    "sdpa cudnn": SDPBackend.CUDNN_ATTENTION,
    "sdpa efficient": SDPBackend.EFFICIENT_ATTENTION,
    "sdpa math": SDPBackend.MATH,
}


@dataclass(frozen=True)
class Implementation:
    """A way to compute a problem.

    prepare: makes the call to be timed; what it does itself is not timed. same_function: whether the call computes what
    our reference computes, to rounding.
    """

    name: str
    prepare: Callable[[Inputs], Call]
    same_function: bool = True


def implementations(problem: Problem) -> list[Implementation]:
    """Those of a problem, our reference first."""
    found = [Implementation(name, partial(operator_call, which=name)) for name in (REFERENCE, OURS)]
    return found + _PLAIN[problem.mixer.kind](problem)


def operator_call(inputs: Inputs, which: str) -> Call:
    """Our operator or its reference on the inputs."""
    q, k, v = inputs.qkv.unbind(2)
    kind, tables = inputs.problem.mixer.kind, (inputs.rope_y, inputs.rope_x)
    operator = _OPERATORS[which][kind]
    if kind == "linear":
        weights = (inputs.w1, inputs.b1, inputs.w2, inputs.b2)
        options = (*inputs.place, inputs.problem.mixer.size, 1e-6, "relu")
        return partial(operator, q, k, v, *tables, *weights, *options)
    sides = (inputs.problem.mixer.size,) * 2 if kind == "window" else ()
    return partial(operator, q, k, v, *tables, *inputs.place, *sides, inputs.scale)


def _compiled(forward: kernel_plain.Forward, inputs: Inputs) -> Call:
    # A CPU only tries the programs, and has no need of generated code, which takes long.
    backend = "inductor" if inputs.qkv.is_cuda else "aot_eager"
    return partial(torch.compile(forward, dynamic=False, backend=backend), inputs.qkv)


def _eager_and_compiled(
    suffix: str, make: Callable[[Inputs], kernel_plain.Forward], same: bool = True
) -> list[Implementation]:
    def eager(inputs: Inputs) -> Call:
        return partial(make(inputs), inputs.qkv)

    def compiled(inputs: Inputs) -> Call:
        return _compiled(make(inputs), inputs)

    return [Implementation(f"eager{suffix}", eager, same), Implementation(f"compiled{suffix}", compiled, same)]


def _linear(problem: Problem) -> list[Implementation]:
    return _eager_and_compiled("", kernel_plain.linear)


def _window(problem: Problem) -> list[Implementation]:
    found = _eager_and_compiled(" balanced", partial(kernel_plain.window, balanced=True))
    side = problem.mixer.size
    if any(balanced_windows(grid, side)[1] != side for grid in (problem.grid_h, problem.grid_w)):
        found += _eager_and_compiled(" padded", partial(kernel_plain.window, balanced=False), same=False)
    for name, reorder in (("flex", False), ("flex reordered", True)):

        def flex(inputs: Inputs, reorder: bool = reorder) -> Call:
            return _compiled(kernel_plain.flex_window(inputs, reorder), inputs)

        found.append(Implementation(name, flex))
    return found


def _full(problem: Problem) -> list[Implementation]:
    bare = [
        Implementation(name, partial(_sdpa, backend=backend), same_function=not problem.rope)
        for name, backend in SDPA.items()
    ]
    return _eager_and_compiled("", kernel_plain.full) + bare


def _sdpa(inputs: Inputs, backend: SDPBackend) -> Call:
    """SDPA alone, by one backend."""
    problem, q, k, v = inputs.problem, *inputs.qkv.permute(2, 0, 3, 1, 4)
    if backend == SDPBackend.MATH and q.is_cuda:
        # The scores, their softmax and a copy of it, in fp32.
        needed, free = 3 * 4 * problem.num_heads * problem.tokens**2, torch.cuda.mem_get_info(q.device)[0]
        if needed > free:
            raise MemoryError(f"the scores need {needed / 1e9:.0f} GB, {free / 1e9:.0f} GB are free")

    def call() -> Tensor:
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(q, k, v, scale=inputs.scale).transpose(1, 2).flatten(2)

    return call


_PLAIN: dict[str, Callable[[Problem], list[Implementation]]] = {
    "linear": _linear,
    "window": _window,
    "full": _full,
}
