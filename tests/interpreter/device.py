"""Where the kernels run in these tests, and in which dtypes."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch

from jetvit.kernels.launch import interpreted

ON_GPU = torch.cuda.is_available() and not interpreted()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
# The interpreter takes the bits of bf16 for its values.
DTYPES = [torch.float32, torch.float16] + [torch.bfloat16] * ON_GPU


def on_device(value: Any) -> Any:
    """A tensor on the device of these tests, with the strides that it has; other values as they are."""
    if not isinstance(value, torch.Tensor):
        return value
    if 0 in value.stride():  # one image in the place of several
        return value[:1].to(DEVICE).expand(value.shape)
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=DEVICE).copy_(value)


def why_not() -> str | None:
    """Why no Triton kernel can run in this process, or None."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if not ON_GPU and not interpreted():
        return "there is no GPU, and TRITON_INTERPRET=1 was not set before triton was imported: see `make test`"
    return None
