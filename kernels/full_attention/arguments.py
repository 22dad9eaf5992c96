"""The arguments of `jetvit::full_attention` by name."""

from __future__ import annotations

from typing import Any, NamedTuple


class FullAttentionArgs(NamedTuple):
    """One call's arguments in the order of the schema: values where the operator runs, nodes where a graph calls it."""

    q: Any
    k: Any
    v: Any
    rope_y: Any
    rope_x: Any
    grid_h: Any
    grid_w: Any
    extra_before: Any
    scale: Any
