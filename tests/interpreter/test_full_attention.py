"""The Triton kernel of `jetvit::full_attention`, the rotation, against the reference in fp64."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jetvit.kernels import full_attention
from jetvit.kernels.full_attention.reference import full_attention_reference
from tests.interpreter.device import DTYPES, on_device
from tests.kernels.naive import ABSENT, LAYOUTS, make_qkv, make_rope


@settings(max_examples=25)
@given(
    layout=st.sampled_from(LAYOUTS),
    dtype=st.sampled_from(DTYPES),
    rope=st.booleans(),
    batch=st.integers(1, 2),
    heads=st.integers(1, 3),
    head_dim=st.sampled_from([4, 32, 64, 80, 96, 128]),
    grid_h=st.integers(1, 12),
    grid_w=st.integers(1, 12),
    before=st.integers(0, 6),
    after=st.integers(0, 3),
    scale=st.sampled_from([0.05, 0.125]),
    seed=st.integers(0, 2**31),
)
def test_is_the_reference(
    layout, dtype, rope, batch, heads, head_dim, grid_h, grid_w, before, after, scale, seed
) -> None:
    torch.manual_seed(seed)
    q, k, v = make_qkv(layout, batch, before + grid_h * grid_w + after, heads, head_dim, dtype)
    options = (*(make_rope(grid_h, grid_w, head_dim) if rope else (ABSENT, ABSENT)), grid_h, grid_w, before, scale)
    out = full_attention(*map(on_device, (q, k, v, *options))).cpu()
    expected = full_attention_reference(q.double(), k.double(), v.double(), *options)
    assert out.dtype == dtype
    assert out.is_contiguous()
    # Roundings of q and k move a score by at most 2u·Σ|q·k|·scale, each weight by twice that of its value, and the
    # result by that share of max|v|; SDPA rounds the weights and the output once more.
    unit = torch.finfo(dtype).eps / 2
    score = scale * q.double().abs().flatten(2).norm(dim=2).amax() * k.double().abs().flatten(2).norm(dim=2).amax()
    bound = unit * v.double().abs().amax() * (4 * score + 8)
    assert ((out.double() - expected).abs() <= bound).all()
