"""Reductions, softmax, and where the largest entry is."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from jetvit.passes.frontends.onnx.call import Call, operator


def _log_sum_exp(x: Tensor, dims: list[int], keep: bool) -> Tensor:
    return torch.logsumexp(x, dims, keep)


def _prod(x: Tensor, dims: list[int], keep: bool) -> Tensor:
    for dim in sorted((dim % x.ndim for dim in dims), reverse=True):
        x = x.prod(dim, keepdim=keep, dtype=x.dtype)
    return x


_REDUCTIONS: dict[str, Callable[[Tensor, list[int], bool], Tensor]] = {
    "ReduceMean": lambda x, dims, keep: x.mean(dims, keep) if x.is_floating_point() else _mean(x, dims, keep),
    "ReduceSum": lambda x, dims, keep: x.sum(dims, keep, dtype=x.dtype),
    "ReduceMax": lambda x, dims, keep: x.amax(dims, keep),
    "ReduceMin": lambda x, dims, keep: x.amin(dims, keep),
    "ReduceProd": _prod,
    "ReduceL1": lambda x, dims, keep: x.abs().sum(dims, keep, dtype=x.dtype),
    "ReduceL2": lambda x, dims, keep: (x * x).sum(dims, keep).sqrt().to(x.dtype),
    "ReduceLogSum": lambda x, dims, keep: x.sum(dims, keep).log(),
    "ReduceLogSumExp": _log_sum_exp,
    "ReduceSumSquare": lambda x, dims, keep: (x * x).sum(dims, keep, dtype=x.dtype),
}


def _mean(x: Tensor, dims: list[int], keep: bool) -> Tensor:
    total = x.sum(dims, keep, dtype=x.dtype)
    return torch.div(total, math.prod(x.shape[dim] for dim in dims), rounding_mode="trunc")


@operator(*_REDUCTIONS)
def reduce(call: Call) -> Tensor:
    """Over some axes; over all of them where none are named, unless that is to do nothing."""
    x, axes = call.tensor(0), call.axes(1)
    if not axes:
        if call.attribute("noop_with_empty_axes", 0):
            return _noop(call.node.op_type, x)
        axes = list(range(x.ndim))
    return _REDUCTIONS[call.node.op_type](x, axes, bool(call.attribute("keepdims", 1))) if axes else x


def _noop(kind: str, x: Tensor) -> Tensor:
    """A reduction over no axes: its elementwise part."""
    if kind in ("ReduceL1", "ReduceL2"):
        return x.abs()
    if kind == "ReduceSumSquare":
        return x * x
    return x.log() if kind == "ReduceLogSum" else x


@operator("ArgMax", "ArgMin")
def arg_max(call: Call) -> Tensor:
    """The index of the largest or smallest entry of an axis."""
    x, dim, keep = call.tensor(0), call.attribute("axis", 0), bool(call.attribute("keepdims", 1))
    find = torch.argmax if call.node.op_type == "ArgMax" else torch.argmin
    if not call.attribute("select_last_index", 0):
        return find(x, dim, keep)
    return x.shape[dim] - 1 - find(x.flip(dim), dim, keep)


@operator("Softmax", "LogSoftmax")
def softmax(call: Call) -> Tensor:
    """Along an axis; before version 13 over all axes from there on."""
    function = torch.softmax if call.node.op_type == "Softmax" else torch.log_softmax
    x = call.tensor(0)
    if call.opset >= 13:
        return function(x, call.attribute("axis", -1))
    dim = call.attribute("axis", 1) % x.ndim
    if dim == x.ndim - 1:
        return function(x, -1)
    return function(x.flatten(dim), -1).reshape(x.shape)
