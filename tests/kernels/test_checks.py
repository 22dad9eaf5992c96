"""Every wrong argument that both operators share is refused by name; a symbolic one is left alone."""

from __future__ import annotations

import pytest
import torch

from jetvit.kernels import linear_attention, window_attention
from jetvit.kernels.checks import check_shape
from tests.kernels.naive import ABSENT, make_rope

Q = torch.randn(2, 8, 2, 8)
ROPE_Y, ROPE_X = make_rope(2, 3, 8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": Q[0]}, r"q must be \[batch, token, head, dim\], got \[\d+, \d+, \d+\]$"),
        ({"v": Q[0]}, r"v must be \[batch, token, head, dim\], got \[\d+, \d+, \d+\]$"),
        ({"k": Q.half()}, "k is torch.float16 but q is torch.float32"),
        ({"q": Q.int(), "k": Q.int(), "v": Q.int()}, "q must be fp16, bf16, fp32 or fp64, got torch.int32"),
        ({"k": Q[:, :7]}, r"k must be \[2, 8, 2, 8\], got \[2, 7, 2, 8\]"),
        ({"v": Q[:1]}, r"v must be \[2, 8, 2, 8\], got \[1, 8, 2, 8\]"),
        ({"v": Q.mT.contiguous().mT}, "v must have stride 1 along dim, got strides"),
        ({"grid_h": -2}, "grid_h must be at least 1, got -2"),
        ({"grid_w": 0}, "grid_w must be at least 1, got 0"),
        ({"extra_before": -1}, "extra_before must not be negative, got -1"),
        (
            {"extra_before": 3},
            r"3 extra tokens and a 2×3 grid do not fit in 8 tokens; q is \[batch, .*\], got \[2, 8, 2, 8\]",
        ),
        ({"k": Q.to("meta")}, "k is on meta but q is on cpu"),
        ({"rope_x": ROPE_X.to("meta")}, "rope_x is on meta but q is on cpu"),
        ({"rope_y": torch.tensor(1.0)}, r"rope_y must be \[grid, 2, dim / 4\], or \[0\] for no RoPE"),
        ({"rope_y": ABSENT}, "rope_y and rope_x must both be given or both be absent"),
        ({"rope_x": ROPE_X.half()}, "rope_x must be fp32, got torch.float16"),
        ({"rope_y": ROPE_X}, r"rope_y must be \[2, 2, 2\], got \[3, 2, 2\]"),
        ({"rope_x": ROPE_X[:, 0]}, r"rope_x must be \[grid, 2, dim / 4\], or \[0\] for no RoPE, got \[3, 2\]"),
        ({"q": Q[..., :6], "k": Q[..., :6], "v": Q[..., :6]}, "a head_dim that is a multiple of 4, got 6"),
    ],
)
@pytest.mark.parametrize("op", ["linear_attention", "window_attention"])
def test_wrong_arguments_are_refused_by_name(op: str, change: dict[str, object], message: str) -> None:
    arguments = {
        "q": Q,
        "k": Q,
        "v": Q,
        "rope_y": ROPE_Y,
        "rope_x": ROPE_X,
        "grid_h": 2,
        "grid_w": 3,
        "extra_before": 1,
    }
    if op == "linear_attention":
        function = linear_attention
        options = dict.fromkeys(("w1", "b1", "w2", "b2"), ABSENT) | {"conv_size": 0, "eps": 1e-6, "feature_map": "relu"}
    else:
        function = window_attention
        options = {"window_h": 2, "window_w": 2, "scale": 0.5}
    function(**arguments, **options)
    with pytest.raises(ValueError, match=f"jetvit::{op}: .*{message}"):
        function(**{**arguments, **options, **change})


class Checked(torch.nn.Module):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        check_shape("op", "x", x, (y.shape[0],))
        return x + 1


def test_a_symbolic_size_gets_no_guard() -> None:
    """Were the two sizes compared, the program would hold them to be equal, or to be unequal."""
    dynamic = {0: torch.export.Dim.DYNAMIC}
    program = torch.export.export(Checked(), (torch.randn(5), torch.randn(6)), dynamic_shapes=(dynamic, dynamic))
    for sizes in ((7, 7), (3, 9)):
        assert program.module()(*map(torch.randn, sizes)).shape == sizes[:1]
