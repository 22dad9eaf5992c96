"""The attention operators: one folder an operator, each a schema, an ATen reference and a place for its Triton kernel.

Importing this package registers `torch.ops.jetvit.linear_attention` and `torch.ops.jetvit.window_attention`. The two
functions hide the folders of the same names: reach into those by `from jetvit.kernels.window_attention.… import`.
"""

from jetvit.kernels.linear_attention.op import linear_attention
from jetvit.kernels.window_attention.op import window_attention
from jetvit.kernels.window_attention.windows import balanced_windows

__all__ = ["balanced_windows", "linear_attention", "window_attention"]
