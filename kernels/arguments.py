"""The named arguments of each operator of jetvit.

A named tuple is the positional arguments of a call: `op(*arguments)` calls the operator, and
`ARGUMENTS[op](*args, **kwargs)` names the arguments of a call.
"""

from __future__ import annotations

import torch

import jetvit.kernels  # noqa: F401  registers the operators
from jetvit.kernels.full_attention.arguments import FullAttentionArgs
from jetvit.kernels.linear_attention.arguments import LinearAttentionArgs
from jetvit.kernels.window_attention.arguments import WindowAttentionArgs

OperatorArgs = FullAttentionArgs | LinearAttentionArgs | WindowAttentionArgs
ARGUMENTS: dict[object, type[OperatorArgs]] = {
    torch.ops.jetvit.full_attention.default: FullAttentionArgs,
    torch.ops.jetvit.linear_attention.default: LinearAttentionArgs,
    torch.ops.jetvit.window_attention.default: WindowAttentionArgs,
}
"""The class of each operator's arguments."""
