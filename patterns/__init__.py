"""Find full attention in graphs. Reads graphs, never changes them."""

from jetvit.patterns.captured import CapturedGraph
from jetvit.patterns.errors import CaptureError, InputError, JetvitError, PlanError, RewriteError
from jetvit.patterns.find import find_sites
from jetvit.patterns.site import (
    AttentionSite,
    Layout,
    Linear,
    Operand,
    Projections,
    Rejection,
    Rewritten,
    Rope,
    RopeTables,
    Sites,
)

__all__ = [
    "AttentionSite",
    "CaptureError",
    "CapturedGraph",
    "InputError",
    "JetvitError",
    "Layout",
    "Linear",
    "Operand",
    "PlanError",
    "Projections",
    "Rejection",
    "RewriteError",
    "Rewritten",
    "Rope",
    "RopeTables",
    "Sites",
    "find_sites",
]
