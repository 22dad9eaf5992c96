"""Masks and biases on the attention scores: whether one hides nothing, and what to call one that does."""

from __future__ import annotations

import torch
from torch.fx import Node

from jetvit.patterns.walk import LayoutWalk


def is_neutral_mask(mask: Node, walk: LayoutWalk, reader: Node) -> bool:
    """A boolean mask that is all True, or an additive one that is all zero, where a node reads it."""
    return walk.is_always(mask, 1 if _is_boolean(mask) else 0, reader)


def describe_mask(mask: Node, walk: LayoutWalk) -> str:
    """The effect of a mask, as a reason to refuse."""
    sources = walk.sources.get(walk.view.resolve(mask), frozenset())
    if _is_boolean(mask):
        return "a boolean mask hides some keys"
    if sources == {"weight"}:
        return "a learned bias is added to the scores (relative-position bias)"
    if not sources:
        return "a constant mask is added to the scores"
    return "an additive mask or bias that depends on the input is added to the scores"


def _is_boolean(mask: Node) -> bool:
    value = mask.meta.get("val")
    return isinstance(value, torch.Tensor) and value.dtype is torch.bool
