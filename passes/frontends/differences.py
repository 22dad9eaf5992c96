"""Runs of one model that leave each other's inputs and buffers alone, and how far their results are apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from jetvit.patterns.wording import counted
from jetvit.torch_private import pytree

LOOSE = {torch.float32: 1e-2, torch.float64: 1e-2, torch.bfloat16: 0.2, torch.float16: 0.1}
"""Largest error against the largest value of an output, by dtype, that rounding explains; beyond it, one is wrong."""


def tensors(value: Any) -> list[Tensor]:
    """The tensors in a tree of outputs, in their order."""
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


def tensors_by_name(value: Any) -> list[Tensor]:
    """The tensors in a tree of outputs; those of a mapping by the order of its keys, which export may change."""
    if isinstance(value, Mapping):
        return [each for key in sorted(value, key=str) for each in tensors_by_name(value[key])]
    if isinstance(value, list | tuple):
        return [each for inner in value for each in tensors_by_name(inner)]
    return tensors(value)


def copied(inputs: Any) -> Any:
    """Inputs that a model may write to."""
    return pytree.tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, inputs)


def with_own_buffers(module: nn.Module) -> nn.Module:
    """The module, whose buffers were another's: a run may write to them."""
    for each in module.modules():
        for name, buffer in each.named_buffers(recurse=False):
            each._buffers[name] = buffer.clone()
    return module


def differ(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> bool:
    """True if any value differs at all; NaN equals NaN."""
    return any(not torch.equal(one.nan_to_num(), other.nan_to_num()) for one, other in zip(ours, theirs, strict=True))


def largest_error(found: Sequence[Tensor], expected: Sequence[Tensor], loose: float = 1.0) -> tuple[float, str]:
    """The largest error of any output, as a share of its largest value, and what is wrong, in words, or "".

    Args:
        loose: the part of `LOOSE` that is taken for rounding.
    """
    wrong = ""
    worst = 0.0
    if len(found) != len(expected):
        wrong = f"it has {counted(len(found), 'output')} in place of {len(expected)}"
    for number, (ours, theirs) in enumerate(zip(found, expected, strict=False)):
        if (ours.shape, ours.dtype) != (theirs.shape, theirs.dtype):
            wrong = f"output {number} is {_text(ours)} in place of {_text(theirs)}"
        elif theirs.numel():
            # NaN where the other has NaN is right; the difference counts everywhere else.
            ours, theirs = _doubles(ours), _doubles(theirs)
            both = ours.isnan() & theirs.isnan() | (ours == theirs)
            error = torch.where(both, 0.0, (ours - theirs).abs()).max().item()
            scale = theirs[theirs.isfinite()].abs().max().item() if theirs.isfinite().any() else 0.0
            share = error / max(scale, 1e-6)
            worst = max(worst, share)
            if not share <= loose * LOOSE.get(expected[number].dtype, 1e-2):
                wrong = f"output {number} is off by {share:.1e} of its largest value"
    return worst, wrong


def _doubles(tensor: Tensor) -> Tensor:
    tensor = tensor.detach().cpu()
    return (torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor).double()


def _text(tensor: Tensor) -> str:
    return f"{'×'.join(map(str, tensor.shape))} {str(tensor.dtype).removeprefix('torch.')}"
