"""Stand in for an NVIDIA H200 in a process without a GPU, far enough for Inductor to generate its code.

`install` replaces what torch and triton ask of the device, for the rest of the process. Nothing runs on such a device.
"""

from __future__ import annotations

import contextlib
import types
from typing import Any
from unittest import mock

import torch
import torch.utils._triton

from benchmarks.kernels.sm90 import MULTIPROCESSORS
from benchmarks.kernels.target_driver import TargetDriver

_PROPERTIES = types.SimpleNamespace(
    name="NVIDIA H200",
    major=9,
    minor=0,
    multi_processor_count=MULTIPROCESSORS,
    total_memory=150 << 30,
    warp_size=32,
    regs_per_multiprocessor=65536,
    max_threads_per_multi_processor=2048,
    max_threads_per_block=1024,
    shared_memory_per_block=48 << 10,
    shared_memory_per_block_optin=227 << 10,
    shared_memory_per_multiprocessor=228 << 10,
    L2_cache_size=60 << 20,
    gcnArchName="",
)


class _Device(contextlib.nullcontext[None]):
    """In the place of torch.cuda.device."""

    def __init__(self, *_: Any):
        super().__init__()


class _Driver(TargetDriver):
    """In the place of triton's driver, with what Inductor asks of it."""

    get_device_interface = staticmethod(lambda: torch.cuda)
    get_active_torch_device = staticmethod(lambda: torch.device("cuda", 0))
    is_active = staticmethod(lambda: True)


def install() -> None:
    """Install the device."""
    from triton.runtime.driver import driver

    def state(*_: Any) -> torch.Tensor:
        return torch.zeros(16, dtype=torch.uint8)

    for target, value in {
        "torch.cuda.is_available": lambda: True,
        "torch.cuda.device_count": lambda: 1,
        "torch.cuda.current_device": lambda: 0,
        "torch.cuda.get_device_properties": lambda device=None: _PROPERTIES,
        "torch.cuda.get_device_capability": lambda device=None: (9, 0),
        "torch.cuda.get_device_name": lambda device=None: _PROPERTIES.name,
        "torch.cuda._lazy_init": lambda: None,
        "torch.cuda.synchronize": lambda device=None: None,
        "torch.cuda.is_current_stream_capturing": lambda: False,
        "torch.cuda.get_rng_state": state,
        "torch.cuda.set_rng_state": lambda *_, **__: None,
        "torch.cuda.random.get_rng_state": state,
        "torch._subclasses.fake_tensor.init_gpu_context": lambda device: None,
        "torch.cuda._get_device_properties": lambda device: _PROPERTIES,
        "torch.cuda.device": _Device,
    }.items():
        mock.patch(target, value, create=True).start()  # a build for CPUs lacks some of them
    driver.set_active(_Driver(10 * _PROPERTIES.major + _PROPERTIES.minor))
    # torch remembers that it has found no triton that can be used.
    for function in vars(torch.utils._triton).values():
        if hasattr(function, "cache_clear"):
            function.cache_clear()
