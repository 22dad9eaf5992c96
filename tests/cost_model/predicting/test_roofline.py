from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from jetvit.cost_model.measuring.operation import Operation
from jetvit.cost_model.predicting.roofline import HEAD_DIM, Device, Roofline, kernel_of, round_up, sizes_of
from tests.cost_model.operations import DEVICE, grown_pairs, operations, synthetic_ms

CONSTANTS = {"overhead": -5.0, "flops": 26.0, "bytes": 21.0, "tile": 0.2, "split": 0.1, "sharpness": 1.0}


def roofline(operation: Operation, **change: float) -> Roofline:
    return Roofline(operation.op, 2, DEVICE.multiprocessors, **{**CONSTANTS, **change})


def gemm(rows: int, inputs: int = 1024, outputs: int = 1024) -> Operation:
    return Operation("gemm", "bfloat16", 1, 1, rows, inputs=inputs, outputs=outputs)


def estimate(operation: Operation, **change: float) -> float:
    return float(np.exp(roofline(operation, **change).log_ms(sizes_of([operation])))[0])


@given(grown_pairs())
def test_the_estimate_never_falls_with_batch_or_tokens(pair: tuple[Operation, Operation]):
    small, large = pair
    assume(small.op != "window" or small.window_tokens <= large.window_tokens)
    assert estimate(small) <= estimate(large) * (1 + 1e-12)


@given(operations())
def test_features_are_finite_and_of_one_number_for_a_kernel(operation: Operation):
    features = roofline(operation).features(sizes_of([operation]))
    assert np.isfinite(features).all()
    assert np.isfinite(estimate(operation))


@given(st.integers(1, 10**9), st.integers(2, 9))
def test_rounding_up_keeps_few_bits_and_is_near(value: int, bits: int):
    rounded = int(round_up(np.array([float(value)]), bits)[0])
    assert value <= rounded <= value * (1 + 2 / 2**bits) + 1
    assert round_up(np.array([float(rounded)]), bits)[0] == rounded
    assert rounded.bit_length() - (rounded & -rounded).bit_length() < bits + 1


def test_work_is_rounded_up_to_tiles_and_waves():
    free = {"overhead": -50.0, "tile": 0.0, "bytes": 50.0}
    # 64 and 100 rows are two heights of the smallest tile, of which one wave is enough for both.
    assert estimate(gemm(1), **free) == pytest.approx(estimate(gemm(64), **free))
    # One multiprocessor's tile more than a wave is a whole wave more.
    one_wave = Operation("full", "bfloat16", DEVICE.multiprocessors, 8, 8, heads=1, head_dim=64)
    more = Operation("full", "bfloat16", DEVICE.multiprocessors + 1, 8, 8, heads=1, head_dim=64)
    assert estimate(more, **free) == pytest.approx(2 * estimate(one_wave, **free), rel=1e-6)


def test_a_tiny_call_costs_its_launch():
    assert estimate(Operation("add", "bfloat16", 1, 1, 1, inputs=8)) == pytest.approx(np.exp(-5.0), rel=0.01)


@settings(deadline=None, max_examples=5)
@given(st.floats(-7, -3), st.floats(23, 28), st.floats(18, 23))
def test_the_fit_finds_the_constants_that_rows_came_from(overhead: float, flops: float, moved: float):
    rng = np.random.default_rng(0)
    known = [gemm(int(m), int(k) * 64, int(n) * 64) for m, n, k in np.exp(rng.uniform(0, [9, 5, 5], (150, 3))) + 1]
    true = Roofline("gemm", 2, DEVICE.multiprocessors, overhead, flops, moved, 0.2, 0.2, np.log(3))
    sizes = sizes_of(known)
    log_ms = true.log_ms(sizes) + rng.normal(0, 0.01, len(known))
    log_ms[:5] += 1.0  # outliers
    fitted = Roofline.fit("gemm", 2, DEVICE, sizes, log_ms)
    assert np.abs(fitted.log_ms(sizes) - true.log_ms(sizes)).mean() < 0.03


def test_rows_of_many_sequences_are_rows_of_one_but_for_full_attention():
    many = Operation("gemm", "bfloat16", 4, 8, 8, extra=1, inputs=64, outputs=64)
    np.testing.assert_array_equal(sizes_of([many]), sizes_of([gemm(4 * 65, 64, 64)]))
    full = Operation("full", "bfloat16", 4, 8, 8, heads=1, head_dim=64)
    assert sizes_of([full])[0, :2].tolist() == [4, 64]


def test_features_of_a_head_are_those_of_its_feature_map():
    for name, features in (("relu", 64), ("relu_centred", 64), ("hedgehog", 128)):
        linear = Operation("linear", "float16", 1, 8, 8, heads=2, head_dim=64, feature_map=name)
        assert sizes_of([linear])[0, HEAD_DIM] == features
    # Where the products rule, twice the features take twice the time.
    free = {"overhead": -50.0, "bytes": 50.0}
    relu = replace(linear, feature_map="relu")
    assert estimate(linear, **free) == pytest.approx(2 * estimate(relu, **free), rel=1e-6)


def test_a_kernel_is_an_op_a_dtype_and_a_backend_or_a_feature_map():
    full = Operation("full", "float16", 1, 8, 8, heads=1, head_dim=64, backend="flash")
    assert kernel_of(full) == "full float16 flash"
    linear = Operation("linear", "float16", 1, 8, 8, heads=1, head_dim=64)
    assert kernel_of(linear) == "linear float16"
    assert kernel_of(replace(linear, feature_map="hedgehog")) == "linear float16 hedgehog"
    assert kernel_of(gemm(3)) == kernel_of(gemm(4, 8, 8)) == "gemm bfloat16"


@pytest.mark.parametrize(("name", "cores"), [("", 4), ("a", 0), ("a", -1)])
def test_a_device_has_a_name_and_multiprocessors(name: str, cores: int):
    with pytest.raises(ValueError, match=r"name|multiprocessors"):
        Device(name, cores)


def test_the_synthetic_device_is_no_roofline_of_ours():
    # Otherwise the tests of the predictor would have nothing to learn.
    known = [gemm(m) for m in (1, 64, 65, 500, 4096)]
    assert np.ptp(np.log([synthetic_ms(x) / estimate(x) for x in known])) > 0.1
