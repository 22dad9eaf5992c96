"""A stand-in for Triton's driver that knows which GPU to compile for, and can launch nothing."""

from __future__ import annotations

from triton.backends.compiler import GPUTarget


class TargetDriver:
    """A driver of Triton that names the target to compile for. capability: 90 for sm_90."""

    def __init__(self, capability: int):
        self._target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        """Return the target."""
        return self._target

    def get_current_device(self) -> int:
        """Return the number of the device."""
        return 0

    def get_current_stream(self, device: int | None = None) -> int:
        """Return the default stream."""
        return 0
