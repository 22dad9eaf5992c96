"""The Triton kernels of `jetvit::linear_attention` against the reference in fp64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from jetvit.kernels import linear_attention
from jetvit.kernels.launch import has_kernel
from jetvit.kernels.linear_attention.reference import linear_attention_reference
from tests.interpreter.device import DEVICE, DTYPES, on_device
from tests.kernels.naive import ABSENT, LAYOUTS, make_qkv, make_rope
from tests.zoo.quick import sweep

seed = st.integers(0, 2**31)
side = st.integers(1, 12)


def make_weights(channels: int, size: int, generated: bool, hidden: int = 20) -> list[Tensor]:
    if size == 0:
        return [ABSENT] * 4
    taps = channels * size * size
    generator = [torch.randn(hidden, channels), torch.randn(hidden), torch.randn(taps, hidden) / hidden]
    return [*(generator if generated else [ABSENT] * 3), torch.randn(taps)]


def run(q: Tensor, k: Tensor, v: Tensor, *arguments: Any) -> Tensor:
    """The kernels' result, on the CPU."""
    moved = [on_device(x) for x in (q, k, v, *arguments)]
    assert has_kernel(moved[0])
    return linear_attention(*moved).cpu()


def check(q: Tensor, k: Tensor, v: Tensor, *arguments: Any) -> Tensor:
    """Hold the kernels to the reference in fp64, and return what they gave."""
    out = run(q, k, v, *arguments)
    expected = linear_attention_reference(*(x.double() for x in (q, k, v)), *arguments)
    assert out.dtype == q.dtype
    assert out.is_contiguous()
    # out is a mean of v, weighted by p. Rounding k moves a mean of v by at most 2u·max|v|, rounding the mean and p by
    # u·max|v| each, rounding the output by u·|out|; p below the smallest normal number by less. The convolution and
    # all sums are fp32, where products of three tf32 and long sums take a few bits more than a rounding.
    unit = torch.finfo(q.dtype).eps / 2 * (64 if q.dtype == torch.float32 else 1)
    largest = v.double().abs().amax()
    bound = 5 * unit * largest + 1.01 * unit * expected.abs() + 64 * 2**-24 * (largest + expected.abs())
    error = (out.double() - expected).abs()
    assert (error <= bound).all(), f"{(error / bound).max():.2f} times the bound"
    return out


configurations = given(
    layout=st.sampled_from(LAYOUTS),
    dtype=st.sampled_from(DTYPES),
    rope=st.booleans(),
    batch=st.integers(1, 2),
    heads=st.integers(1, 2),
    head_dim=st.sampled_from([4, 32, 64, 80, 96, 128]),
    grid_h=side,
    grid_w=side,
    before=st.integers(0, 6),
    after=st.integers(0, 3),
    size=st.sampled_from([0, 1, 3, 5, 7]),
    generated=st.booleans(),
    eps=st.sampled_from([1e-6, 0.5]),
    seed=seed,
)


def check_configuration(
    layout, dtype, rope, batch, heads, head_dim, grid_h, grid_w, before, after, size, generated, eps, seed
) -> None:
    torch.manual_seed(seed)
    q, k, v = make_qkv(layout, batch, before + grid_h * grid_w + after, heads, head_dim, dtype)
    tables = make_rope(grid_h, grid_w, head_dim) if rope else (ABSENT, ABSENT)
    weights = make_weights(heads * head_dim, size, generated)
    check(q, k, v, *tables, *weights, grid_h, grid_w, before, size, eps, "relu")


@settings(max_examples=8)
@configurations
def test_is_the_reference(**of: Any) -> None:
    check_configuration(**of)


@pytest.mark.slow
@settings(max_examples=100)
@configurations
def test_is_the_reference_at_length(**of: Any) -> None:
    check_configuration(**of)


@pytest.mark.parametrize(
    "weight_dtype", sweep([torch.float16, torch.float32, torch.float64], quick=[torch.float32, torch.float64])
)
def test_weights_may_have_another_dtype(weight_dtype) -> None:
    torch.manual_seed(0)
    q, k, v = make_qkv("packed", 2, 2 + 5 * 7, 2, 32, torch.float16)
    weights = [weight.to(weight_dtype) for weight in make_weights(64, 3, generated=True)]
    check(q, k, v, ABSENT, ABSENT, *weights, 5, 7, 2, 3, 1e-6, "relu")


@pytest.mark.parametrize("dtype", sweep(DTYPES, quick=[torch.float16]), ids=str)
def test_runs_are_equal_to_the_bit(dtype) -> None:
    torch.manual_seed(0)
    q, k, v = make_qkv("packed", 1, 5 + 20 * 17, 2, 64, dtype)
    arguments = (q, k, v, *make_rope(20, 17, 64), *make_weights(128, 3, generated=True), 20, 17, 5, 3, 1e-6, "relu")
    assert torch.equal(run(*arguments), run(*arguments))


@pytest.mark.parametrize("dtype", sweep(DTYPES, quick=[torch.float32]), ids=str)
def test_batch_of_two_is_two_batches(dtype) -> None:
    torch.manual_seed(0)
    q, k, v = make_qkv("packed", 2, 5 + 9 * 7, 2, 64, dtype)
    options = (*make_rope(9, 7, 64), *make_weights(128, 3, generated=True), 9, 7, 5, 3, 1e-6, "relu")
    both = check(q, k, v, *options)
    alone = torch.cat([check(q[b : b + 1], k[b : b + 1], v[b : b + 1], *options) for b in range(2)])
    # Another batch splits the tokens otherwise: the sums differ by fp32 roundings, the output by at most one step.
    torch.testing.assert_close(both, alone, rtol=2 * torch.finfo(dtype).eps, atol=2e-6 if dtype.itemsize > 2 else 2e-3)


class TestExtremes:
    """Numbers on which a careless order of operations overflows, cancels or divides by zero."""

    GRID = (6, 9)

    def make(self, dtype: torch.dtype) -> list[Tensor]:
        torch.manual_seed(0)
        return make_qkv("packed", 1, 3 + 6 * 9, 2, 64, dtype)

    def options(self, size: int = 3, rope: bool = True) -> list[Any]:
        tables = make_rope(*self.GRID, 64) if rope else (ABSENT, ABSENT)
        return [*tables, *make_weights(128, size, generated=False), *self.GRID, 3, size, 1e-6, "relu"]

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_v_with_an_offset(self, dtype) -> None:
        q, k, v = self.make(dtype)
        check(q, k, v + 1000, *self.options())

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_no_feature_of_k_is_positive(self, dtype) -> None:
        q, k, v = self.make(dtype)
        options = self.options(rope=False)
        check(q, -k.abs(), v, *options)
        assert not run(q, -k.abs(), v, *self.options(size=0, rope=False)).any()

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_one_feature_of_k_is_never_positive(self, dtype) -> None:
        q, k, v = self.make(dtype)
        k[..., 5] = -1
        check(q, k, v, *self.options(rope=False))

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_rows_of_zeros(self, dtype) -> None:
        q, k, v = self.make(dtype)
        q[:, 7], k[:, 11], v[:, 13] = 0, 0, 0
        check(q, k, v, *self.options())

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize("rope", [False, True], ids=["plain", "rope"])
    def test_the_largest_numbers_of_fp16(self, dtype, rope) -> None:
        q, k, v = (60000 * x.sign() for x in self.make(dtype))
        out = check(q, k, v, *self.options(size=0, rope=rope))
        assert out.isfinite().all()

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_small_numbers(self, dtype) -> None:
        """Products of them are below fp16's range; eps is far below den all the same."""
        q, k, v = self.make(dtype)
        options = self.options()
        options[-2] = 1e-12
        check(q * 1e-3, k * 1e-3, v, *options)

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_nan_is_not_hidden(self, dtype) -> None:
        q, k, v = self.make(dtype)
        k[0, 5, 0, 3] = torch.nan
        q[0, 8, 1, 3] = torch.nan
        out = run(q, k, v, *self.options(size=0, rope=False))
        assert out[0, :, 0].isnan().any(-1)[(q[0, :, 0, 3] > 0).nonzero()].all()
        assert out[0, 8, 1].isnan().all()
        assert out[0, [token for token in range(57) if token != 8], 1].isfinite().all()

    @pytest.mark.parametrize(
        ("height", "width", "offset"), sweep([(256, 256, 3), (128, 64, 30)], quick=[(128, 64, 30)])
    )
    def test_many_tokens(self, height, width, offset) -> None:
        """Their sums are beyond fp16, their mean is not."""
        torch.manual_seed(0)
        q, k, v = make_qkv("packed", 1, height * width, 1, 32, torch.float16)
        out = check(q, k, v + offset, ABSENT, ABSENT, *[ABSENT] * 4, height, width, 0, 0, 1e-6, "relu")
        assert out.isfinite().all()


@pytest.mark.parametrize("tokens", [70, 133])
def test_offsets_of_later_blocks_beyond_two_to_the_31(tokens) -> None:
    """Tokens that lie 3.6e7 elements apart: a step of 64 of them is more than an int32 holds."""
    torch.manual_seed(0)
    apart = 36_000_000
    buffer = torch.empty(tokens * apart // 2, dtype=torch.float32, device=DEVICE).view(torch.float16)
    wide = buffer.as_strided((1, tokens, 1, 192), (0, apart - 192, 192, 1))
    wide.copy_(torch.randn(wide.shape))
    q, k, v = wide.split(64, dim=3)
    arguments = (ABSENT, ABSENT, *[ABSENT] * 4, 1, tokens, 0, 0, 1e-6, "relu")
    out = linear_attention(q, k, v, *(x.to(DEVICE) if isinstance(x, Tensor) else x for x in arguments)).cpu()
    expected = linear_attention_reference(*(x.contiguous().cpu().double() for x in (q, k, v)), *arguments)
    torch.testing.assert_close(out.double(), expected, rtol=2e-3, atol=5e-3)


def test_offsets_beyond_two_to_the_31() -> None:
    """Tokens that lie 6e8 elements apart; a buffer of which only these rows are ever touched."""
    torch.manual_seed(0)
    buffer = torch.empty(6 * 600_000_000 // 2, dtype=torch.float32, device=DEVICE).view(torch.float16)
    wide = buffer.as_strided((1, 6, 1, 96), (0, 599_999_904, 96, 1))
    wide.copy_(torch.randn(wide.shape))
    q, k, v = wide.split(32, dim=3)
    arguments = (ABSENT, ABSENT, *make_weights(32, 3, generated=False), 2, 3, 0, 3, 1e-6, "relu")
    out = linear_attention(q, k, v, *(x.to(DEVICE) if isinstance(x, Tensor) else x for x in arguments)).cpu()
    expected = linear_attention_reference(*(x.contiguous().cpu().double() for x in (q, k, v)), *arguments)
    torch.testing.assert_close(out.double(), expected, rtol=2e-3, atol=5e-3)
