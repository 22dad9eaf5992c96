"""What a whole exported model takes on a device, by its latency table."""

from __future__ import annotations

import torch
from torch.export import ExportedProgram

from jetvit.cost_model.device_costs import DeviceCosts
from jetvit.cost_model.estimate import Estimate
from jetvit.cost_model.graph_operations import graph_operations
from jetvit.cost_model.latencies import UnknownLatency
from jetvit.cost_model.runs import Mode
from jetvit.patterns.sizes import is_static


def estimate_program(program: ExportedProgram, costs: DeviceCosts, mode: Mode = "compiled") -> Estimate:
    """The latency of a program as it is: rewrite it first.

    Raises:
        UnknownLatency: the program leaves sizes open, or runs an operation that nothing is known of.
    """
    for node in program.graph.find_nodes(op="placeholder"):
        value = node.meta.get("val")
        if isinstance(value, torch.Tensor) and not all(map(is_static, value.shape)):
            raise UnknownLatency(f"the sizes of its input {node.name} are open")
    return costs.estimate(graph_operations(program.graph_module), mode)
