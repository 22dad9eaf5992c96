"""The arguments of `jetvit::linear_attention` by name."""

from __future__ import annotations

from typing import Any, NamedTuple


class LinearAttentionArgs(NamedTuple):
    """One call's arguments in the order of the schema: values where the operator runs, nodes where a graph calls it."""

    q: Any
    k: Any
    v: Any
    rope_y: Any
    rope_x: Any
    w1: Any
    b1: Any
    w2: Any
    b2: Any
    grid_h: Any
    grid_w: Any
    extra_before: Any
    conv_size: Any
    eps: Any
    feature_map: Any
