"""Tell which goals hold on a device: those of an H100, of an H200, or none."""

from __future__ import annotations

import re

_WITH_GOALS = ("H100", "H200")


def goal_device(device: str) -> str | None:
    """Return "H100" or "H200" for the name of such a device, None for any other: no goal is set there."""
    return next((name for name in _WITH_GOALS if re.search(rf"\b{name}\b", device)), None)
