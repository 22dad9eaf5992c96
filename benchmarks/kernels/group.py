"""One problem, measured: all its implementations, warm and in the same minute, so that their ratios mean something."""

from __future__ import annotations

import gc
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.kernels.check import Check, Verdict, verdict
from benchmarks.kernels.implementations import Implementation, implementations, operator_call
from benchmarks.kernels.inputs import Inputs, make_inputs
from benchmarks.kernels.rows import OURS, REFERENCE
from benchmarks.kernels.shapes import Ceilings, Problem, floor_ms
from benchmarks.kernels.timing import ROUNDS, Stopwatch

# ‖out − reference‖ / ‖reference‖ in bf16 throughout, sums of some plain implementations included.
_LARGEST_DIFFERENCE = 0.05
_CHECK_GRID = (44, 76)  # no window side divides both


Row = dict[str, Any]
Write = Callable[[list[Row]], None]


class DeviceLost(RuntimeError):
    """The device takes no more work from this process: a new one has to go on."""


@dataclass
class Entrant:
    """An implementation on its way through a group; `row` is what will be written of it."""

    implementation: Implementation
    row: Row
    stopwatch: Stopwatch | None = None


def entrants_of(problem: Problem, ceilings: Ceilings) -> list[Entrant]:
    """All implementations of a problem, none of them measured yet."""
    known = _description(problem, ceilings)
    return [Entrant(each, known | {"implementation": each.name}) for each in implementations(problem)]


def measure(problem: Problem, entrants: list[Entrant], device: torch.device, write: Write, seed: int) -> None:
    """Measure entrants of a problem and write their rows: what failed at once, what was timed together at the end.

    seed: of the inputs and of the order of timing. Raises DeviceLost after it wrote the row that says what happened.
    """
    inputs = make_inputs(problem, device, torch.bfloat16, seed)
    expected: Tensor | None = None
    with torch.no_grad():
        for entrant in entrants:
            try:
                expected = _warm_up(entrant, inputs, expected)
            except Exception as error:  # what an implementation cannot do is its result
                _write_failure(entrant, error, device, write)
        _sample(entrants, device, write, seed)
    write([entrant.row | _result(entrant) for entrant in entrants if entrant.stopwatch is not None])
    del inputs, expected
    for entrant in entrants:
        entrant.stopwatch = None
    torch._dynamo.reset()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _warm_up(entrant: Entrant, inputs: Inputs, expected: Tensor | None) -> Tensor | None:
    """Check the entrant, compile it, run it; returns what the reference gives, which is the first to come."""
    name, row = entrant.implementation.name, entrant.row
    if name in (OURS, REFERENCE):
        checked = _check_cropped(inputs, name)
        row["max_error"] = f"{checked.max_error:.3g}"
        if not checked.right:
            raise ArithmeticError(f"the error is {checked.error:.3g} of the output's norm on a {_CHECK_GRID} grid")
    call = entrant.implementation.prepare(inputs)
    out = call().flatten(2)
    if name == REFERENCE:
        expected = out
    elif expected is not None and entrant.implementation.same_function:
        difference = _distance(out, expected)
        row["difference"] = f"{difference:.3g}"
        if not difference <= _LARGEST_DIFFERENCE:
            raise ArithmeticError(f"differs from the reference by {difference:.3g} of its norm")
    entrant.stopwatch = Stopwatch(call, inputs.qkv.device)
    return expected


def _sample(entrants: list[Entrant], device: torch.device, write: Write, seed: int) -> None:
    """Sample all in rounds, each round in a new order, so that a noisy moment of the machine hits all alike."""
    shuffle = random.Random(seed).shuffle
    order = [entrant for entrant in entrants if entrant.stopwatch is not None]
    for _ in range(ROUNDS):
        shuffle(order)
        for entrant in order:
            if entrant.stopwatch is None:
                continue
            try:
                entrant.stopwatch.sample()
            except Exception as error:  # what was possible once need not be so beside the others
                _write_failure(entrant, error, device, write)


def _check_cropped(inputs: Inputs, name: str) -> Verdict:
    """The operator or its reference against fp64, on a grid that is small enough and that no window divides."""
    grid_h, grid_w = (min(a, b) for a, b in zip(inputs.place[:2], _CHECK_GRID, strict=True))
    heads = min(2, inputs.problem.num_heads)
    cropped = replace(inputs.problem, grid_h=grid_h, grid_w=grid_w, num_heads=heads)
    small = make_inputs(cropped, inputs.qkv.device, inputs.qkv.dtype, seed=1)
    call = operator_call(small, name)
    tensors = tuple(value for value in call.args if isinstance(value, Tensor))
    options = call.args[len(tensors) :]
    reference = operator_call(small, REFERENCE).func
    return verdict(
        Check(
            name,
            "bf16",
            tensors,
            lambda *given: call.func(*given, *options),
            lambda *given: reference(*given, *options),
        )
    )


def _distance(out: Tensor, expected: Tensor) -> float:
    return float((out.float() - expected.float()).norm() / expected.float().norm())


def _description(problem: Problem, ceilings: Ceilings) -> Row:
    return {
        "model": problem.model,
        "size": problem.size,
        "mixer": problem.mixer.name,
        "dtype": "bf16",
        "batch": 1,
        "num_heads": problem.num_heads,
        "head_dim": problem.head_dim,
        "grid": f"{problem.grid_h}x{problem.grid_w}",
        "extra_tokens": problem.extra_tokens,
        "rope": problem.rope,
        "bytes": problem.operation.bytes,
        "flops": problem.operation.flops,
        "floor_ms": f"{floor_ms(problem, ceilings):.5g}",
        "copy_tb_s": f"{ceilings.copy_tb_s:.4g}",
        "gemm_tflop_s": f"{ceilings.gemm_tflop_s:.4g}",
    }


def _result(entrant: Entrant) -> Row:
    assert entrant.stopwatch is not None
    low, middle, high = entrant.stopwatch.quartiles_ms
    return {
        "status": "ok",
        "median_ms": f"{middle:.5g}",
        "q25_ms": f"{low:.5g}",
        "q75_ms": f"{high:.5g}",
        "reps": len(entrant.stopwatch.samples_ms),
        "timing": entrant.stopwatch.how,
        "launched_ms": f"{entrant.stopwatch.launched_ms:.5g}",
        "times_floor": f"{middle / float(entrant.row['floor_ms']):.4g}",
    }


def _write_failure(entrant: Entrant, error: Exception, device: torch.device, write: Write) -> None:
    """Write why an entrant has no time; raise DeviceLost if its error has taken the device from this process."""
    entrant.stopwatch = None
    write([entrant.row | failure(error)])
    assert_device(device, error)


def failure(error: Exception) -> Row:
    """The columns of a row that tell of an error."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        status = "out of memory"
    else:
        status = "wrong" if isinstance(error, ArithmeticError) else "unsupported"
    words = str(error).strip().splitlines() or [""]
    return {"status": status, "reason": f"{type(error).__name__}: {words[0]}"[:300]}


def assert_device(device: torch.device, cause: Exception) -> None:
    """Raise DeviceLost if an error has taken the device from this process."""
    if device.type != "cuda":
        return
    try:
        torch.cuda.synchronize(device)
    except RuntimeError as error:
        raise DeviceLost(str(error).strip().splitlines()[0]) from cause
    torch.cuda.empty_cache()
