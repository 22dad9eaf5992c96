"""Weights that several processes hold in parts (FSDP), and the same weights whole."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from jetvit.search.data.processes import Processes


def shard(module: nn.Module, processes: Processes) -> None:
    """Let every process hold a part of a module's weights, of their gradients, and so of the optimiser's state.

    The parts are put together while the module runs, and its gradients are averaged. In place.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    device = next(module.parameters()).device.type
    mesh = init_device_mesh(device, (processes.count,))
    # Also where no backward follows: weights that stay whole would not see the next step of the optimiser.
    fully_shard(module, mesh=mesh, reshard_after_forward=True)


def is_shard(tensor: Tensor) -> bool:
    """Report whether this process holds only a part of a tensor."""
    return isinstance(tensor, DTensor)


def whole(tensor: Tensor) -> Tensor:
    """A tensor itself, or all of one of which this process holds a part: then all processes have to ask."""
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def like(tensor: Tensor, other: Tensor) -> Tensor:
    """A whole tensor on the device of `other`, or the part of it that this process holds of `other`."""
    if isinstance(other, DTensor):
        return distribute_tensor(tensor.to(other.device), other.device_mesh, other.placements)
    return tensor.to(other.device)


def all_finite(tensor: Tensor) -> bool:
    """Report whether a tensor has no NaN and no infinity; all processes get the same answer."""
    return bool(whole(torch.isfinite(tensor.detach()).all()))
