"""The Triton kernels of `jetvit::window_attention` against the reference in fp64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from jetvit.kernels import full_attention, window_attention
from jetvit.kernels.launch import has_kernel
from jetvit.kernels.window_attention.reference import window_attention_reference
from tests.interpreter.device import DEVICE, DTYPES, on_device
from tests.kernels.naive import ABSENT, LAYOUTS, make_qkv, make_rope, window_of

seed = st.integers(0, 2**31)
side = st.integers(1, 14)


def run(q: Tensor, k: Tensor, v: Tensor, *arguments: Any) -> Tensor:
    """The kernels' result, on the CPU."""
    moved = [on_device(x) for x in (q, k, v, *arguments)]
    assert has_kernel(moved[0])
    return window_attention(*moved).cpu()


def check(q: Tensor, k: Tensor, v: Tensor, *arguments: Any) -> Tensor:
    """Hold the kernels to the reference in fp64, and return what they gave."""
    out = run(q, k, v, *arguments)
    expected = window_attention_reference(*(x.double() for x in (q, k, v)), *arguments)
    assert out.dtype == q.dtype
    assert out.is_contiguous()
    # A weight moves by the share by which its score does: by 2u·Σ|q·k|·scale where q and k are rounded after RoPE, by a
    # few fp32 roundings of that sum anyway. The weights and the output are rounded once each.
    unit = torch.finfo(q.dtype).eps / 2 * (64 if q.dtype == torch.float32 else 1)
    norms = [x.double().flatten(2).norm(dim=2).amax() for x in (q, k)]
    score = abs(arguments[-1]) * norms[0] * norms[1]
    turned = arguments[0].dim() > 1
    bound = v.double().abs().amax() * (4 * unit * turned * score + 4 * unit + 32 * 2**-24 * (1 + score))
    error = (out.double() - expected).abs()
    assert (error <= bound).all(), f"{(error / bound).max():.2f} times the bound"
    return out


@settings(max_examples=30)
@given(
    layout=st.sampled_from(LAYOUTS),
    dtype=st.sampled_from(DTYPES),
    rope=st.booleans(),
    batch=st.integers(1, 2),
    heads=st.integers(1, 2),
    head_dim=st.sampled_from([4, 32, 64, 80, 96, 128]),
    grid_h=side,
    grid_w=side,
    before=st.sampled_from([0, 1, 5, 20]),
    after=st.sampled_from([0, 1, 3]),
    window_h=st.integers(1, 16),
    window_w=st.integers(1, 16),
    scale=st.sampled_from([0.05, 0.125, -0.1]),
    seed=seed,
)
def test_is_the_reference(
    layout, dtype, rope, batch, heads, head_dim, grid_h, grid_w, before, after, window_h, window_w, scale, seed
) -> None:
    torch.manual_seed(seed)
    q, k, v = make_qkv(layout, batch, before + grid_h * grid_w + after, heads, head_dim, dtype)
    tables = make_rope(grid_h, grid_w, head_dim) if rope else (ABSENT, ABSENT)
    check(q, k, v, *tables, grid_h, grid_w, before, window_h, window_w, scale)


@pytest.mark.parametrize("window", [4, 7, 14, 16, 24, 32])
def test_every_window_size(window) -> None:
    torch.manual_seed(0)
    q, k, v = make_qkv("packed", 1, 5 + 33 * 26, 1, 64, torch.float16)
    check(q, k, v, *make_rope(33, 26, 64), 33, 26, 5, window, window, 0.125)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("extra", [0, 5])
def test_a_window_that_covers_the_grid_is_full_attention(dtype, extra) -> None:
    torch.manual_seed(0)
    q, k, v = make_qkv("packed", 2, extra + 9 * 13, 2, 64, dtype)
    tables = make_rope(9, 13, 64)
    out = check(q, k, v, *tables, 9, 13, extra, 16, 16, 0.125)
    full = full_attention(*map(on_device, (q, k, v, *tables)), 9, 13, extra, 0.125).cpu()
    torch.testing.assert_close(out, full, rtol=0, atol=8 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_runs_are_equal_to_the_bit_and_batch_of_two_is_two_batches(dtype) -> None:
    torch.manual_seed(0)
    q, k, v = make_qkv("packed", 2, 5 + 11 * 13, 2, 64, dtype)
    options = (*make_rope(11, 13, 64), 11, 13, 5, 4, 6, 0.125)
    both = run(q, k, v, *options)
    assert torch.equal(both, run(q, k, v, *options))
    alone = torch.cat([run(q[b : b + 1], k[b : b + 1], v[b : b + 1], *options) for b in range(2)])
    # Another batch splits the keys of the extra tokens otherwise; the windows' own sums are the same.
    assert torch.equal(both[:, 5:], alone[:, 5:])
    torch.testing.assert_close(both, alone, rtol=2 * torch.finfo(dtype).eps, atol=2 * torch.finfo(dtype).eps)


class TestExtremes:
    """Numbers on which a careless softmax overflows, divides by zero or lets one window reach another."""

    def make(self, dtype: torch.dtype) -> list[Tensor]:
        torch.manual_seed(0)
        return make_qkv("packed", 1, 3 + 9 * 10, 2, 64, dtype)

    def options(self, rope: bool = False, scale: float = 0.125) -> tuple[Any, ...]:
        return *(make_rope(9, 10, 64) if rope else (ABSENT, ABSENT)), 9, 10, 2, 4, 4, scale

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_v_with_an_offset(self, dtype) -> None:
        q, k, v = self.make(dtype)
        check(q, k, v + 1000, *self.options())

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_rows_of_zeros(self, dtype) -> None:
        q, k, v = self.make(dtype)
        q[:, 7], k[:, 11], v[:, 13] = 0, 0, 0
        check(q, k, v, *self.options(rope=True))

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize("rope", [False, True], ids=["plain", "rope"])
    def test_the_largest_numbers_of_fp16(self, dtype, rope) -> None:
        """Scores far apart: each row is the value of its best key. With a rotation none may overflow."""
        q, k, v = self.make(dtype)
        out = run(60000 * q.sign(), 60000 * k.sign(), v, *self.options(rope=rope))
        assert out.isfinite().all()
        assert (out.abs() <= v.abs().max()).all()

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize("scale", [0.0, 1e-8])
    def test_scores_that_are_all_alike(self, dtype, scale) -> None:
        q, k, v = self.make(dtype)
        check(q, k, v, *self.options(scale=scale))

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_nan_stays_in_its_window_but_for_the_extra_tokens(self, dtype) -> None:
        q, k, v = self.make(dtype)
        place = 2 + 1 * 10 + 1
        v[0, place] = torch.nan
        out = run(q, k, v, *self.options())[0, :, 0, 0].isnan()
        rows, columns = (torch.tensor(window_of(size, 4)) == 0 for size in (9, 10))
        expected = torch.cat([torch.ones(2, dtype=torch.bool), (rows[:, None] & columns).flatten(), torch.ones(1) > 0])
        assert torch.equal(out, expected)


def test_offsets_beyond_two_to_the_31() -> None:
    """Tokens that lie 6e8 elements apart; a buffer of which only these rows are ever touched."""
    torch.manual_seed(0)
    buffer = torch.empty(6 * 600_000_000 // 2, dtype=torch.float32, device=DEVICE).view(torch.float16)
    wide = buffer.as_strided((1, 6, 1, 96), (0, 599_999_904, 96, 1))
    wide.copy_(torch.randn(wide.shape))
    q, k, v = wide.split(32, dim=3)
    options = (2, 2, 1, 1, 2, 0.125)
    out = window_attention(q, k, v, *map(on_device, (ABSENT, ABSENT)), *options).cpu()
    whole = (x.contiguous().cpu().double() for x in (q, k, v))
    expected = window_attention_reference(*whole, ABSENT, ABSENT, *options)
    torch.testing.assert_close(out.double(), expected, rtol=2e-3, atol=2e-3)
