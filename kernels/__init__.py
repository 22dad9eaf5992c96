"""The attention operators: one folder an operator, each a schema, an ATen reference and a place for its Triton kernel.

Importing this package registers `full_attention`, `linear_attention` and `window_attention` of `torch.ops.jetvit`. The
functions hide the folders of the same names: reach into those by `from jetvit.kernels.window_attention.… import`.
"""

from jetvit.kernels.full_attention.op import full_attention
from jetvit.kernels.linear_attention.op import linear_attention
from jetvit.kernels.window_attention.op import window_attention
from jetvit.kernels.window_attention.windows import balanced_windows

__all__ = ["balanced_windows", "full_attention", "linear_attention", "window_attention"]
