"""The Triton kernels of `jetvit::window_attention` against the reference in fp64."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from jetvit.kernels import launch as launch_module
from jetvit.kernels import window_attention
from jetvit.kernels.launch import Config, has_kernel
from jetvit.kernels.window_attention.reference import window_attention_reference
from tests.interpreter.device import DEVICE, DTYPES, on_device
from tests.kernels.naive import ABSENT, LAYOUTS, make_qkv, make_rope
from tests.zoo.quick import sweep

seed = st.integers(0, 2**31)
side = st.integers(1, 20)
window = st.integers(1, 40)
head_dims = st.sampled_from([4, 6, 32, 64, 80, 96, 128])


def run(q: Tensor, k: Tensor, v: Tensor, *arguments: Any) -> Tensor:
    """The kernels' result, on the CPU."""
    moved = [on_device(x) for x in (q, k, v, *arguments)]
    assert has_kernel(moved[0])
    return window_attention(*moved).cpu()


def bound(q: Tensor, k: Tensor, v: Tensor, scale: float, rotated: bool) -> float:
    """How far the kernels may be from exact arithmetic.

    out is a mean of v: rounding the weights moves it by u·max|v|, rounding the result by as much. A score that is off
    by e moves it by at most 2e·max|v|. Scores are sums of exact products of 16-bit numbers, so that e counts only where
    RoPE leaves q and k to be rounded, each by u, or where the dtype is fp32: products of three tf32 keep 22 bits.
    """
    unit = 2**-22 if q.dtype == torch.float32 else torch.finfo(q.dtype).eps / 2
    largest_score = (q.double().norm(dim=-1).amax() * k.double().norm(dim=-1).amax() * abs(scale)).item()
    score_error = 2 * largest_score if rotated or q.dtype == torch.float32 else 0
    return (2 + 2 * score_error) * unit * v.double().abs().amax().item() + 1e-6


def check(q: Tensor, k: Tensor, v: Tensor, rope_y: Tensor, rope_x: Tensor, *options: Any) -> Tensor:
    """Hold the kernels to the reference in fp64, and return what they gave."""
    out = run(q, k, v, rope_y, rope_x, *options)
    expected = window_attention_reference(*(x.double() for x in (q, k, v)), rope_y, rope_x, *options)
    assert out.dtype == q.dtype
    assert out.is_contiguous()
    tolerance = bound(q, k, v, options[-1], rope_y.numel() > 0)
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=tolerance)
    return out


configurations = given(
    layout=st.sampled_from(LAYOUTS),
    dtype=st.sampled_from(DTYPES),
    rope=st.booleans(),
    batch=st.integers(1, 2),
    heads=st.integers(1, 2),
    head_dim=head_dims,
    grid_h=side,
    grid_w=side,
    before=st.sampled_from([0, 1, 5, 20]),
    after=st.sampled_from([0, 1, 3]),
    window_h=window,
    window_w=window,
    scale=st.sampled_from([0.05, 0.125, 1.0, -0.3]),
    seed=seed,
)


def check_configuration(
    layout, dtype, rope, batch, heads, head_dim, grid_h, grid_w, before, after, window_h, window_w, scale, seed
) -> None:
    torch.manual_seed(seed)
    q, k, v = make_qkv(layout, batch, before + grid_h * grid_w + after, heads, head_dim, dtype)
    rope = rope and head_dim % 4 == 0
    tables = make_rope(grid_h, grid_w, head_dim) if rope else (ABSENT, ABSENT)
    check(q, k, v, *tables, grid_h, grid_w, before, window_h, window_w, scale)


@settings(max_examples=8)
@configurations
def test_is_the_reference(**of: Any) -> None:
    check_configuration(**of)


@pytest.mark.slow
@settings(max_examples=120)
@configurations
def test_is_the_reference_at_length(**of: Any) -> None:
    check_configuration(**of)


@settings(max_examples=6)
@given(
    dtype=st.sampled_from(DTYPES),
    grid_h=side,
    grid_w=side,
    before=st.integers(0, 6),
    after=st.integers(0, 3),
    slack=st.integers(0, 20),
    seed=seed,
)
def test_window_that_covers_the_grid_is_full_attention(dtype, grid_h, grid_w, before, after, slack, seed) -> None:
    torch.manual_seed(seed)
    q, k, v = make_qkv("packed", 1, before + grid_h * grid_w + after, 2, 32, dtype)
    out = run(q, k, v, ABSENT, ABSENT, grid_h, grid_w, before, grid_h + slack, grid_w + slack, 0.2)
    heads_first = (x.double().transpose(1, 2) for x in (q, k, v))
    full = scaled_dot_product_attention(*heads_first, scale=0.2).transpose(1, 2)
    torch.testing.assert_close(out.double(), full, rtol=0, atol=bound(q, k, v, 0.2, rotated=False))


@pytest.mark.parametrize("dtype", sweep(DTYPES, quick=[torch.float32]), ids=str)
def test_batch_of_two_is_two_batches(dtype) -> None:
    torch.manual_seed(0)
    q, k, v = make_qkv("packed", 2, 5 + 9 * 7 + 2, 2, 64, dtype)
    options = (*make_rope(9, 7, 64), 9, 7, 5, 4, 3, 0.125)
    both = run(q, k, v, *options)
    alone = torch.cat([run(q[b : b + 1], k[b : b + 1], v[b : b + 1], *options) for b in range(2)])
    grid = slice(5, 5 + 63)
    assert torch.equal(both[:, grid], alone[:, grid])
    # Another batch splits the tokens otherwise, and so rounds the sums of the extra tokens otherwise.
    torch.testing.assert_close(both, alone, rtol=torch.finfo(dtype).eps, atol=1e-6 if dtype.itemsize > 2 else 1e-3)


@pytest.mark.parametrize("dtype", sweep(DTYPES, quick=[torch.float16]), ids=str)
def test_runs_are_equal_to_the_bit(dtype) -> None:
    torch.manual_seed(0)
    q, k, v = make_qkv("packed", 1, 5 + 20 * 17, 1, 64, dtype)
    arguments = (q, k, v, *make_rope(20, 17, 64), 20, 17, 5, 8, 8, 0.125)
    assert torch.equal(run(*arguments), run(*arguments))


@pytest.mark.parametrize(
    ("before", "dtype"),
    sweep(product([16, 17, 100], DTYPES), quick=[(16, torch.float32), (17, torch.float32), (100, torch.float16)]),
    ids=str,
)
def test_many_extra_tokens(dtype, before) -> None:
    torch.manual_seed(0)
    q, k, v = make_qkv("packed", 1, before + 8 * 9 + 2, 1, 64, dtype)
    check(q, k, v, *make_rope(8, 9, 64), 8, 9, before, 4, 4, 0.125)


@pytest.mark.parametrize("grid", [(1, 1), (1, 37), (37, 1)])
@pytest.mark.parametrize("extra", [0, 1])
def test_grids_of_one_row_or_column(grid, extra) -> None:
    torch.manual_seed(0)
    q, k, v = make_qkv("packed", 1, extra + grid[0] * grid[1], 1, 32, torch.float32)
    check(q, k, v, *make_rope(*grid, 32), *grid, extra, 4, 4, 0.2)


@pytest.mark.parametrize("window_tokens", [16, 32, 64, 256])
@pytest.mark.parametrize(
    ("head_dim", "dtype"),
    sweep(product([64, 80], DTYPES), quick=[(64, torch.float16), (80, torch.float32)]),
    ids=str,
)
def test_every_configuration(dtype, window_tokens, head_dim) -> None:
    from jetvit.kernels.window_attention import triton_launch

    torch.manual_seed(0)
    q, k, v = make_qkv("packed", 1, 3 + 11 * 15 + 1, 1, head_dim, dtype)
    tables, place = make_rope(11, 15, head_dim), (11, 15, 3)
    # 121, 55, 24 and 12 tokens a window: with rows to spare, and blocks that are full and that are not.
    sides = {256: (11, 11), 64: (6, 11), 32: (4, 6), 16: (3, 4)}[window_tokens]
    expected = window_attention_reference(*(x.double() for x in (q, k, v)), *tables, *place, *sides, 0.125)
    operands = [on_device(x) for x in (q, k, v, *tables)]

    for config in triton_launch.window_configs(head_dim, dtype, window_tokens):
        out = triton_launch.attend(*operands, *place, *sides, 0.125, config).cpu().double()
        tolerance = bound(q, k, v, 0.125, rotated=True)
        torch.testing.assert_close(out, expected, rtol=0, atol=tolerance, msg=lambda m, c=config: f"{c}: {m}")


@pytest.mark.parametrize("width", [4, 8, 16])
def test_windows_of_one_width(width) -> None:
    """Whose width is a constant of the compilation: blocks are whole rows, also where the last windows are lower."""
    torch.manual_seed(0)
    q, k, v = make_qkv("packed", 1, 2 + 11 * 16, 1, 32, torch.float32)
    check(q, k, v, *make_rope(11, 16, 32), 11, 16, 2, 5, width, 0.2)


def test_no_extra_tokens_where_their_number_is_symbolic(monkeypatch) -> None:
    """Then the programs of extra tokens are there all the same, over nothing."""
    from jetvit.kernels.window_attention import triton_kernels, triton_launch

    launched = []

    def launched_anyway(kernel: Any, grid: Any, arguments: dict[str, Any], config: Config) -> None:
        launched.append(kernel)
        launch_module.launch(kernel, grid, arguments | {"EXTRA": True} if "EXTRA" in arguments else arguments, config)

    monkeypatch.setattr(triton_launch, "launch", launched_anyway)
    torch.manual_seed(0)
    q, k, v = make_qkv("packed", 1, 6, 1, 32, torch.float32)
    check(q, k, v, ABSENT, ABSENT, 2, 3, 0, 2, 2, 0.2)
    assert launched == [triton_kernels.attend_windows]


class TestExtremes:
    """Numbers on which a careless order of operations overflows, cancels or leaks."""

    GRID = (7, 10)
    OPTIONS = (*GRID, 3, 4, 5)

    def make(self, dtype: torch.dtype) -> list[Tensor]:
        torch.manual_seed(0)
        return make_qkv("packed", 1, 3 + 7 * 10 + 1, 2, 64, dtype)

    def tables(self, rope: bool) -> tuple[Tensor, Tensor]:
        return make_rope(*self.GRID, 64) if rope else (ABSENT, ABSENT)

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize("rope", [False, True], ids=["plain", "rope"])
    @pytest.mark.parametrize("largest", [30000, 60000])
    def test_the_largest_numbers_of_fp16(self, dtype, rope, largest) -> None:
        """RoPE makes some of them √2 times as large, and scores are beyond fp16 in any case."""
        q, k, v = self.make(dtype)
        q, k = (largest * x.sign() for x in (q, k))
        out = check(q, k, v, *self.tables(rope), *self.OPTIONS, 1 / largest**2)
        assert out.isfinite().all()

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_scores_that_pick_one_key(self, dtype) -> None:
        """All weights but one underflow; q and k are integers, so that the scores are exact."""
        q, k, v = self.make(dtype)
        q, k = ((8 * x).round() for x in (q, k))
        out = run(q, k, v, ABSENT, ABSENT, *self.OPTIONS, 1.0)
        expected = window_attention_reference(*(x.double() for x in (q, k, v)), ABSENT, ABSENT, *self.OPTIONS, 1.0)
        torch.testing.assert_close(out.double(), expected, rtol=0, atol=bound(q, k, v, 0.0, rotated=False) + 1e-5)

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_v_with_an_offset(self, dtype) -> None:
        q, k, v = self.make(dtype)
        check(q, k, v + 1000, *self.tables(True), *self.OPTIONS, 0.125)

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_rows_of_zeros(self, dtype) -> None:
        q, k, v = self.make(dtype)
        q[:, 7], k[:, 11], v[:, 13] = 0, 0, 0
        q[:, 1], k[:, 2] = 0, 0
        check(q, k, v, *self.tables(True), *self.OPTIONS, 0.125)

    @pytest.mark.parametrize("scale", [0.0, -0.5, -1e-3])
    def test_scales_that_are_not_positive(self, scale) -> None:
        q, k, v = self.make(torch.float32)
        check(q, k, v, *self.tables(True), *self.OPTIONS, scale)

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize("tensor", [0, 1, 2], ids=["q", "k", "v"])
    @pytest.mark.parametrize("token", [1, 3 + 4 * 10 + 9], ids=["extra", "grid"])
    def test_nan_goes_where_it_is_seen_and_nowhere_else(self, dtype, tensor, token) -> None:
        operands = self.make(dtype)
        operands[tensor][0, token, 0, 5] = torch.nan
        out = run(*operands, *self.tables(False), *self.OPTIONS, 0.125)
        expected = window_attention_reference(*(x.double() for x in operands), ABSENT, ABSENT, *self.OPTIONS, 0.125)
        assert torch.equal(out.isnan(), expected.isnan())
        assert out.isnan().any()
        assert not out[:, :, 1].isnan().any()


def test_offsets_beyond_two_to_the_31() -> None:
    """Tokens that lie 6e8 elements apart; a buffer of which only these rows are ever touched."""
    torch.manual_seed(0)
    buffer = torch.empty(8 * 600_000_000 // 2, dtype=torch.float32, device=DEVICE).view(torch.float16)
    wide = buffer.as_strided((1, 8, 1, 96), (0, 599_999_904, 96, 1))
    wide.copy_(torch.randn(wide.shape))
    q, k, v = wide.split(32, dim=3)
    arguments = (2, 3, 1, 2, 2, 0.2)
    out = window_attention(q, k, v, *(on_device(ABSENT),) * 2, *arguments).cpu()
    inputs = [x.contiguous().cpu() for x in (q, k, v)]
    expected = window_attention_reference(*(x.double() for x in inputs), ABSENT, ABSENT, *arguments)
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=bound(*inputs, 0.2, rotated=False))
