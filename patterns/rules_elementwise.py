"""Rules of the layout walk for operators that keep every entry in its place."""

from __future__ import annotations

import operator

import torch
from torch.fx import Node

from jetvit.patterns import axes as ax
from jetvit.patterns.aten_sets import CASTS, COPIES, DROPOUTS, MASKED_FILLS, NORMS, SOFTMAX
from jetvit.patterns.rules import AxisReader, Rule, Value, rule

aten = torch.ops.aten


@rule(aten.where.ScalarSelf, aten.where.ScalarOther, aten.where.Scalar)
def pointwise(walk: AxisReader, node: Node) -> Value:
    """Every tensor argument is broadcast against the others."""
    return ax.broadcast([walk.of(used) for used in node.all_input_nodes])


@rule(
    *CASTS, aten.to.device, aten.to.other, *COPIES, aten.lift_fresh_copy.default,
    *DROPOUTS, aten.feature_dropout.default, aten.native_dropout.default,
    *SOFTMAX, aten.log_softmax.int, *NORMS, aten.group_norm.default, aten.batch_norm.default,
    aten.instance_norm.default, aten.copy_.default,
    aten.cumsum.default, aten.zeros_like.default, aten.ones_like.default, aten.full_like.default,
    aten.fake_quantize_per_tensor_affine.default, aten.fake_quantize_per_tensor_affine.tensor_qparams,
    aten.fake_quantize_per_channel_affine.default, aten.hardswish.default, aten.hardswish_.default, aten.mish.default,
    aten.mish_.default, aten.log_sigmoid.default, aten.prelu.default, aten.relu6.default, aten.relu6_.default,
    aten.gelu_.default, aten.celu_.default, aten.rrelu.default, aten.rrelu_.default, aten.threshold.default,
    aten.threshold_.default, aten.feature_dropout_.default, aten.alpha_dropout.default,
    aten.feature_alpha_dropout.default, aten.softplus.default, aten.softshrink.default, aten.hardshrink.default,
    aten.fill_.Scalar, aten.zero_.default, *MASKED_FILLS,
)  # fmt: skip
def like_first(walk: AxisReader, node: Node) -> Value:
    """The result has the axes of the first argument."""
    return walk.of(node.args[0])


BY_NAME: dict[str, Rule] = dict.fromkeys(
    ("torchao.quantize_affine.default", "torchao.dequantize_affine.default"), like_first
)
"""Rules for operators of packages that need not be installed."""


@rule(operator.getitem)
def getitem(walk: AxisReader, node: Node) -> Value:
    """One tensor of several."""
    value = walk.axes.get(node.args[0])
    return value[node.args[1]] if isinstance(value, list) else None
