"""Stand-ins for captured sites."""

from __future__ import annotations

from dataclasses import fields
from types import SimpleNamespace
from typing import Any, cast

import torch

from jetvit.cost_model import SiteShape
from jetvit.patterns.site import AttentionSite, Linear, Projections, Rope


def as_site(shape: SiteShape, **changes: Any) -> AttentionSite:
    """A site of that shape. It has only the fields that a fingerprint may read: the others depend on the capture."""
    node = torch.fx.Graph().placeholder("x")
    linears = {role: Linear(node, f"{role}.weight", None, *size) for role, size in shape.projections.items()}
    values: dict[str, Any] = {
        "name": shape.name,
        "num_heads": shape.num_heads,
        "head_dim": shape.head_dim,
        "projections": Projections(**linears),
        "extra_before": shape.extra_before,
        "extra_after": shape.extra_after,
        "rope": None if shape.rope is None else Rope(shape.rope, node, node, node, node),
    }
    assert values.keys() <= {field.name for field in fields(AttentionSite)}
    return cast(AttentionSite, SimpleNamespace(**values | changes))
