"""A device whose latencies are made up."""

from __future__ import annotations

from collections.abc import Collection
from typing import cast

from jetvit.cost_model.measuring.measurement import Machine
from jetvit.cost_model.measuring.operation import Operation
from jetvit.cost_model.measuring.runs import Mode
from jetvit.cost_model.predicting.device_costs import DeviceCosts
from jetvit.cost_model.predicting.estimate import Answer, Overheads
from jetvit.cost_model.predicting.latencies import Latencies, UnknownLatency
from tests.cost_model.tables import MACHINE


def made_up_costs(
    unknown: Collection[str] = (), overheads: dict[Mode, Overheads] | None = None, machine: Machine = MACHINE
) -> DeviceCosts:
    """Full attention was measured, windows are predicted, linear attention is beyond the table, and the rest is cheap.

    unknown: ops of which nothing is known.
    """

    def look_up(operation: Operation) -> Answer:
        if operation.op in unknown:
            raise UnknownLatency(f"{operation}: not measured, and not predicted: no {operation.op} was measured")
        return {
            "full": Answer(12.34, 12.0, 12.5, "measured"),
            "window": Answer(operation.window_h, operation.window_h * 0.9, operation.window_h * 1.1, "predicted"),
            "linear": Answer(1.5, 1.0, 2.25, "predicted", extrapolated=True),
        }.get(operation.op, Answer(0.125, 0.1, 0.15, "measured"))

    return DeviceCosts(machine, cast(Latencies, look_up), overheads or {})
