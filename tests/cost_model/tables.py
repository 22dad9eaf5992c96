"""Machines, operations and measurements for tests of the latency table."""

from __future__ import annotations

from hypothesis import strategies as st

from jetvit.cost_model.measuring.measurement import Machine, Measurement
from jetvit.cost_model.measuring.operation import ATTENTIONS, ELEMENT_BYTES, OPS, Operation
from jetvit.cost_model.measuring.timing import Latency
from jetvit.kernels.linear_attention.reference import FEATURE_MAPS

MACHINE = Machine("Some CPU", 2, "", "", "2.13.0", "3.9.0", "0.1.0")
GPU = Machine("NVIDIA H100 80GB HBM3", 132, "580.1", "13.0", "2.13.0", "3.9.0", "0.1.0")
NOW = "2026-11-22T21:00:00+00:00"

sizes = st.integers(1, 4096)
texts = st.text(st.characters(exclude_categories=("Cc", "Cs", "Cn")), max_size=12).filter(str.isprintable)
times = st.datetimes(timezones=st.sampled_from([None])).map(lambda moment: f"{moment.isoformat()}+00:00")
machines = st.builds(Machine, texts.filter(bool), sizes, texts, texts, texts, texts, texts)


@st.composite
def operations(draw: st.DrawFn) -> Operation:
    op = draw(st.sampled_from(OPS))
    own: dict[str, object] = {}
    if op in ATTENTIONS:
        own = {"heads": draw(sizes), "head_dim": draw(sizes), "rope": draw(st.booleans())}
        own |= {
            "full": {"backend": draw(st.sampled_from(["", "MATH", 'a "b", c']))},
            "window": {"window_h": draw(sizes), "window_w": draw(sizes)},
            "linear": {
                "conv_size": draw(st.sampled_from([0, 3, 5])),
                "feature_map": draw(st.sampled_from(sorted(FEATURE_MAPS))),
            },
        }[op]
    else:
        own = {"inputs": draw(sizes)} | ({"outputs": draw(sizes)} if op == "gemm" else {})
    dtype = draw(st.sampled_from(list(ELEMENT_BYTES)))
    return Operation(op, dtype, draw(sizes), draw(sizes), draw(sizes), draw(st.integers(0, 9)), **own)  # type: ignore[arg-type]


@st.composite
def latencies(draw: st.DrawFn) -> Latency:
    q25, median, q75 = sorted(draw(st.tuples(*[st.floats(1e-9, 1e300)] * 3)))
    return Latency(median, q25, q75, draw(sizes))


measurements = st.builds(Measurement, st.just(MACHINE), operations(), latencies(), texts, times)


def add(width: int, **changes: object) -> Operation:
    """The sum of two tensors of this width; `changes` are other fields."""
    return Operation(
        **{"op": "add", "dtype": "float32", "batch": 1, "grid_h": 2, "grid_w": 3, "inputs": width} | changes
    )  # type: ignore[arg-type]


def measurement(width: int, median_ms: float = 1.5, machine: Machine = MACHINE) -> Measurement:
    """A measurement of `add(width)`."""
    return Measurement(machine, add(width), Latency(median_ms, median_ms / 2, median_ms * 2, 20), "F.add", NOW)
