"""Operations for hypothesis, and a made-up device with a latency for each."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from hypothesis import strategies as st

from jetvit.cost_model.measuring.operation import ATTENTIONS, OPS, Operation
from jetvit.cost_model.predicting.roofline import Device

DEVICE = Device("made up", 20)


def synthetic_ms(x: Operation) -> float:
    """A launch, then work in blocks of 96 rows in waves, an efficiency that grows with the width, and bytes."""
    padded = x.flops / x.rows * 96 * DEVICE.multiprocessors * math.ceil(x.rows / 96 / DEVICE.multiprocessors)
    efficiency = 1 - 0.6 * math.exp(-x.features / 300)
    return 0.01 + max(padded / (3e10 * efficiency), x.bytes / 1e9)


def shape(op: str, family: int, batch: int, side_h: int, side_w: int, extra: int = 0) -> Operation:
    """An operation of one of a few families."""
    sizes = {"batch": batch, "grid_h": side_h, "grid_w": side_w, "extra": extra}
    if op == "window":
        return Operation(op, "float32", **sizes, heads=1 + family, head_dim=64, window_h=8, window_w=8)
    if op in ATTENTIONS:
        return Operation(op, "float32", **sizes, heads=1 + family, head_dim=64)
    outputs = {"outputs": 64 * (1 + family % 3)} if op == "gemm" else {}
    return Operation(op, "float32", **sizes, inputs=64 * (1 + family), **outputs)


def rows(op: str, count: int, *, families: int = 8, seed: int = 0) -> tuple[list[Operation], list[float]]:
    """Distinct operations of one op and noisy latencies."""
    rng, found = np.random.default_rng(seed), {}
    while len(found) < count:
        batch, side_h, side_w, family = (int(size) for size in np.exp(rng.uniform(0, [2, 4, 4, 0])))
        family = int(rng.integers(families))
        extra = int(rng.integers(6))
        found[shape(op, family, batch, side_h, side_w, extra)] = None
    return list(found), [synthetic_ms(x) * math.exp(rng.normal(0, 0.03)) for x in found]


@st.composite
def operations(draw: st.DrawFn, ops: tuple[str, ...] = OPS) -> Operation:
    """Any op, of sizes in and beyond those of `rows`."""
    side = st.integers(1, 100)
    extra = draw(st.integers(0, 10))
    return shape(
        draw(st.sampled_from(ops)), draw(st.integers(0, 9)), draw(st.integers(1, 40)), draw(side), draw(side), extra
    )


@st.composite
def grown_pairs(draw: st.DrawFn, ops: tuple[str, ...] = OPS) -> tuple[Operation, Operation]:
    """An operation, and one that is alike but for a larger or equal batch, grid and number of extra tokens."""
    small = draw(operations(ops))
    growth = {name: draw(st.just(0) | st.integers(0, 60)) for name in ("batch", "grid_h", "grid_w", "extra")}
    return small, replace(small, **{name: getattr(small, name) + by for name, by in growth.items()})
