"""Estimate the latency of a whole exported model on a device, from its latency table."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import torch
from torch.export import ExportedProgram

from jetvit.cost_model import Plan
from jetvit.cost_model.measuring.graph_operations import GraphOperations, graph_operations
from jetvit.cost_model.measuring.operation import Operation
from jetvit.cost_model.measuring.runs import Mode
from jetvit.cost_model.predicting.device_costs import DeviceCosts
from jetvit.cost_model.predicting.estimate import Estimate
from jetvit.cost_model.predicting.latencies import UnknownLatency
from jetvit.passes.pipeline import RewriteOptions, rewrite_program
from jetvit.patterns.sizes import is_static


def rewritten_for(program: ExportedProgram, plan: Plan | None, costs: DeviceCosts) -> ExportedProgram:
    """The program as jetvit leaves it on the machine of `costs`, wherever it is now: it is not meant to be run.

    A GPU gets operators that a CPU does not. Raises PlanError where the plan does not fit.
    """
    return rewrite_program(program, plan, RewriteOptions(operator=bool(costs.machine.cuda), check=False))


def estimate_program(
    program: ExportedProgram, costs: DeviceCosts, mode: Mode = "compiled", dtype: str | None = None
) -> Estimate:
    """The latency of a program as it is: rewrite it first. Sizes that it leaves open are those of its example.

    Args:
        program: what runs.
        costs: of the machine.
        mode: how it runs.
        dtype: "float32", "float16" or "bfloat16", of every operation there; by default what each has here.
    Raises:
        UnknownLatency: it runs an operation that nothing is known of.
    """
    operations = graph_operations(program.graph_module)
    if dtype is not None:
        counted: Counter[Operation] = Counter()
        for operation, count in operations.counted.items():
            counted[replace(operation, dtype=dtype)] += count
        operations = GraphOperations(counted, operations.others)
    return costs.estimate(operations, mode)


def refuse_open_sizes(program: ExportedProgram) -> None:
    """Raise UnknownLatency for a program whose sizes are not known before it runs."""
    for node in program.graph.find_nodes(op="placeholder"):
        value = node.meta.get("val")
        if isinstance(value, torch.Tensor) and not all(map(is_static, value.shape)):
            raise UnknownLatency(f"the sizes of its input {node.name} are open")
