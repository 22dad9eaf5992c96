"""Whether the operators compute what their references do on the device at hand, before anything is timed.

Inputs are random, grids ragged, layouts those of models; the reference runs in fp64. Every output is filled with NaN
before a kernel writes to it.
"""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from jetvit.kernels import full_attention, linear_attention, window_attention
from jetvit.kernels.full_attention.reference import full_attention_reference
from jetvit.kernels.launch import has_kernel
from jetvit.kernels.linear_attention.reference import linear_attention_reference
from jetvit.kernels.window_attention.reference import window_attention_reference

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
# The largest ‖out − reference‖ / ‖reference‖. A kernel that is wrong somewhere is far above.
LIMITS = {"bf16": 2e-2, "fp16": 4e-3, "fp32": 1e-4}
HEAD_DIMS = (64, 128, 32, 80, 96)


@dataclass(frozen=True)
class Check:
    """One comparison. `run` and `reference` take the same tensors; `reference` is given them in fp64."""

    name: str
    dtype: str
    tensors: tuple[Tensor, ...]
    run: Callable[..., Tensor]
    reference: Callable[..., Tensor]


@dataclass(frozen=True)
class Verdict:
    """error: ‖out − reference‖ / ‖reference‖. max_error: the largest |out − reference|. NaN for what is not finite."""

    error: float
    max_error: float
    limit: float

    @property
    def right(self) -> bool:
        """Whether the error is within the limit."""
        return self.error <= self.limit


def verdict(check: Check) -> Verdict:
    """Run a check."""
    with torch.no_grad(), poisoned_outputs(), untuned():
        out = check.run(*check.tensors)
    with torch.no_grad():
        expected = check.reference(*(tensor.double() for tensor in check.tensors))
    difference = out.double() - expected
    error = difference.norm() / expected.norm()
    return Verdict(float(error), float(difference.abs().max()), LIMITS[check.dtype])


@contextlib.contextmanager
def poisoned_outputs() -> Iterator[None]:
    """Within it `torch.empty` gives NaN, so that an element that no kernel wrote is seen."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


@contextlib.contextmanager
def untuned() -> Iterator[None]:
    """Within it operators take the configuration that they have or start from: a small problem need not be tuned."""
    before = os.environ.get("JETVIT_AUTOTUNE")
    os.environ["JETVIT_AUTOTUNE"] = "0"
    try:
        yield
    finally:
        del os.environ["JETVIT_AUTOTUNE"]
        if before is not None:
            os.environ["JETVIT_AUTOTUNE"] = before


def checks(device: torch.device, seed: int = 0) -> Iterator[Check]:
    """Every operator in every dtype and head_dim; where kernels run, in every configuration of head_dim 64 and 128."""
    rng = random.Random(seed)
    for head_dim in HEAD_DIMS:
        for dtype in DTYPES:
            yield from _linear_checks(rng, device, dtype, head_dim)
            yield from _window_checks(rng, device, dtype, head_dim)
            yield from _full_checks(rng, device, dtype, head_dim)


@dataclass(frozen=True)
class _Case:
    """Random q, k, v, RoPE tables or [0], and where the grid is."""

    q: Tensor
    k: Tensor
    v: Tensor
    rope_y: Tensor
    rope_x: Tensor
    place: tuple[int, int, int]
    words: str


def _case(rng: random.Random, device: torch.device, dtype: str, head_dim: int) -> _Case:
    large = device.type == "cuda"
    grid_h, grid_w = (rng.randint(17, 75) if large else rng.randint(5, 11) for _ in range(2))
    before, after, batch, heads = rng.randint(0, 6), rng.choice([0, 0, 3]), rng.randint(1, 3), rng.randint(1, 3)
    tokens = before + grid_h * grid_w + after
    options = {"device": device, "dtype": DTYPES[dtype]}
    layout = rng.choice(["packed", "head first", "one image"])
    if layout == "packed":
        q, k, v = torch.randn(batch, tokens, 3, heads, head_dim, **options).unbind(2)
    elif layout == "head first":
        q, k, v = (torch.randn(batch, heads, tokens, head_dim, **options).transpose(1, 2) for _ in range(3))
    else:
        q, k, v = (torch.randn(1, tokens, heads, head_dim, **options).expand(batch, -1, -1, -1) for _ in range(3))
    rope_y = rope_x = torch.empty(0, device=device)
    rotated = rng.random() < 0.7
    if rotated:
        angles = [3 * torch.randn(side, head_dim // 4, device=device) for side in (grid_h, grid_w)]
        rope_y, rope_x = (torch.stack([angle.cos(), angle.sin()], dim=1) for angle in angles)
    words = f"{dtype} d{head_dim} {batch}x{heads} heads {before}+{grid_h}x{grid_w}+{after} {layout}"
    return _Case(q, k, v, rope_y, rope_x, (grid_h, grid_w, before), words + (" rope" if rotated else ""))


def _linear_checks(rng: random.Random, device: torch.device, dtype: str, head_dim: int) -> Iterator[Check]:
    case = _case(rng, device, dtype, head_dim)
    channels, size = case.q.shape[2] * head_dim, rng.choice([3, 5])
    shapes = [(16, channels), (16,), (channels * size**2, 16), (channels * size**2,)]
    weights = [torch.randn(shape, device=device, dtype=DTYPES[dtype]) / 4 for shape in shapes]
    options = (*case.place, size, 1e-6, "relu")
    tensors = (case.q, case.k, case.v, case.rope_y, case.rope_x, *weights)

    def reference(*given: Tensor) -> Tensor:
        return linear_attention_reference(*given, *options)

    name = f"linear {case.words} conv={size}"
    yield Check(f"{name} generated", dtype, tensors, lambda *given: linear_attention(*given, *options), reference)
    if not (has_kernel(case.q) and head_dim in (64, 128)):
        return

    from jetvit.kernels.linear_attention import triton_launch as kernels

    absent = torch.empty(0, device=device)
    for conv in (size, 0):
        states = kernels.state_configs(head_dim, DTYPES[dtype])
        mixes = kernels.mix_configs(head_dim, DTYPES[dtype], conv)
        taps = weights[3] if conv else absent
        for index in range(max(len(states), len(mixes))):
            first, second = states[index % len(states)], mixes[index % len(mixes)]

            def run(q, k, v, rope_y, rope_x, w1, b1, w2, taps, first=first, second=second, conv=conv) -> Tensor:
                state, sums, _ = kernels.key_value_state(k, v, rope_y, rope_x, w1, b1, *case.place, first)
                shared = kernels.shared_taps(taps, conv)
                return kernels.mix(q, v, rope_y, rope_x, state, sums, shared, *case.place, conv, 1e-6, second)

            yield Check(
                f"linear {case.words} conv={conv} given [{first}] [{second}]",
                dtype,
                (case.q, case.k, case.v, case.rope_y, case.rope_x, absent, absent, absent, taps),
                run,
                lambda *given, conv=conv: linear_attention_reference(*given, *case.place, conv, 1e-6, "relu"),
            )


def _window_checks(rng: random.Random, device: torch.device, dtype: str, head_dim: int) -> Iterator[Check]:
    case = _case(rng, device, dtype, head_dim)
    tensors = (case.q, case.k, case.v, case.rope_y, case.rope_x)
    sides = [(16, 16), (8, 8), (rng.randint(3, 20), rng.randint(3, 20)), (32, 32)]
    for side in sides if device.type == "cuda" else sides[2:3]:
        options = (*case.place, *side, head_dim**-0.5)
        yield Check(
            f"window {case.words} {side[0]}x{side[1]}",
            dtype,
            tensors,
            lambda *given, options=options: window_attention(*given, *options),
            lambda *given, options=options: window_attention_reference(*given, *options),
        )
    if not (has_kernel(case.q) and head_dim in (64, 128)):
        return

    from jetvit.kernels.window_attention import triton_launch as kernels

    side, scale = 16, head_dim**-0.5
    for config in kernels.window_configs(head_dim, DTYPES[dtype], side**2):

        def run(q, k, v, rope_y, rope_x, config=config) -> Tensor:
            return kernels.attend(q, k, v, rope_y, rope_x, *case.place, side, side, scale, config)

        yield Check(
            f"window {case.words} {side}x{side} [{config}]",
            dtype,
            tensors,
            run,
            lambda *given: window_attention_reference(*given, *case.place, side, side, scale),
        )


def _full_checks(rng: random.Random, device: torch.device, dtype: str, head_dim: int) -> Iterator[Check]:
    case = _case(rng, device, dtype, head_dim)
    options = (*case.place, head_dim**-0.5)
    yield Check(
        f"full {case.words}",
        dtype,
        (case.q, case.k, case.v, case.rope_y, case.rope_x),
        lambda *given: full_attention(*given, *options),
        lambda *given: full_attention_reference(*given, *options),
    )
