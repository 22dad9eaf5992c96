"""Autocast stays outside of the operators: their meaning is that of the tensors they are given."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """A context in which autocast does not touch the ATen calls of a reference, so that sums stay in fp32."""
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()
