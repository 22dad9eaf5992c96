"""The sweep: every operation once, in an order whose beginnings are spread over all of them."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jetvit.cost_model.measuring import sweep
from jetvit.cost_model.measuring.operation import ATTENTIONS, OPS, Operation
from jetvit.cost_model.measuring.sweep import MODELS, SIZES, SMALL_MODELS, SMALL_SIZES, ModelShape, operations, spread
from tests.cost_model.tables import add

shapes = st.builds(
    ModelShape,
    st.sampled_from([1, 3, 6]),
    st.sampled_from([16, 64]),
    st.sampled_from([8, 14]),
    st.integers(0, 5),
    st.booleans(),
)
sides = st.integers(14, 700)
sweeps = st.builds(
    operations,
    st.dictionaries(st.sampled_from("abc"), shapes, min_size=1),
    st.lists(st.tuples(sides, sides), min_size=1, max_size=3),
    st.lists(st.integers(1, 8), min_size=1, max_size=2),
    st.lists(st.sampled_from(["float32", "bfloat16"]), min_size=1, max_size=2),
    gpu=st.booleans(),
)


def big() -> list[Operation]:
    return operations(MODELS, SIZES, (1, 4))


def test_the_models_are_those_of_the_kernel_benchmark():
    from benchmarks.kernels.shapes import MODELS as THEIRS

    assert {name: list(vars(shape).values()) for name, shape in MODELS.items()} == {
        name: list(vars(model).values()) for name, model in THEIRS.items()
    }


def test_what_a_block_calls():
    found = operations({"m": ModelShape(12, 64, 16, 5, True)}, [(1024, 2048)])
    assert {(each.grid_h, each.grid_w, each.extra, each.batch, each.dtype) for each in found} == {
        (64, 128, 5, 1, "bfloat16")
    }
    assert all((each.heads, each.head_dim) == (12, 64) for each in found if each.op in ATTENTIONS)
    products = {(each.inputs, each.outputs) for each in found if each.op == "gemm"}
    assert products == {(768, 2304), (768, 768), (768, 3072), (3072, 768)}
    assert {(each.op, each.inputs) for each in found if each.op in ("layer_norm", "gelu", "add")} == {
        ("layer_norm", 768),
        ("gelu", 3072),
        ("add", 768),
    }
    families = {each.family.partition("12x64")[2].strip() for each in found if each.op == "full"}
    assert families == {"", "rope", "CUDNN_ATTENTION", "FLASH_ATTENTION", "EFFICIENT_ATTENTION"}
    for rope in (False, True):
        windows = {each.window_h for each in found if each.op == "window" and each.rope is rope}
        convolutions = {each.conv_size for each in found if each.op == "linear" and each.rope is rope}
        assert (windows, convolutions) == ({8, 16, 32}, {0, 3, 5})


def test_a_model_without_rope_has_none():
    found = operations({"m": ModelShape(16, 64, 14, 1, False)}, [(512, 512)])
    assert not any(each.rope for each in found)
    assert {(each.grid_h, each.grid_w) for each in found} == {(36, 36)}


def test_a_cpu_has_one_full_attention():
    found = operations(SMALL_MODELS, SMALL_SIZES, gpu=False)
    assert {(each.rope, each.backend) for each in found if each.op == "full"} == {(False, "")}
    assert max(each.grid_h * each.grid_w for each in found) == 32 * 48


def test_a_window_over_the_whole_grid_is_left_out():
    found = operations({"m": ModelShape(3, 64, 16, 1, False)}, [(128, 192), (256, 256)], gpu=False)
    assert {(each.grid_w, each.window_w) for each in found if each.op == "window"} == {(12, 8), (16, 8)}


def test_an_image_below_a_patch_is_refused():
    with pytest.raises(ValueError, match="an image of 512x8 has no whole patch of m, 16 wide"):
        operations({"m": ModelShape(3, 64, 16, 1, False)}, [(512, 8)])


@given(sweeps, st.integers(0, 5), st.randoms(use_true_random=False))
def test_an_order_has_everything_once_and_depends_on_the_seed_alone(
    found: list[Operation], seed: int, chance: random.Random
):
    assert len(set(found)) == len(found)
    order = spread(found, seed)
    assert sorted(map(str, order)) == sorted(map(str, found))
    mixed = [*found, *found]
    chance.shuffle(mixed)
    assert spread(mixed, seed) == order


@given(sweeps, st.integers(0, 5))
def test_every_round_takes_one_of_each_op_that_is_left(found: list[Operation], seed: int):
    order = spread(found, seed)
    left = {op: sum(each.op == op for each in found) for op in OPS}
    while order:
        expected = [op for op in OPS if left[op]]
        chunk, order = order[: len(expected)], order[len(expected) :]
        assert sorted(each.op for each in chunk) == sorted(expected)
        for each in chunk:
            left[each.op] -= 1


def test_the_seed_shuffles_inside_rounds_only():
    found = big()
    orders = [spread(found, seed) for seed in range(3)]
    assert orders[0] != orders[1] != orders[2]
    for op in OPS:
        assert [each for each in orders[0] if each.op == op] == [each for each in orders[1] if each.op == op]
    assert len({tuple(each.op for each in order[:7]) for order in orders}) > 1


def test_a_beginning_is_spread_over_models_sizes_and_kinds():
    found = big()
    order = spread(found)
    for op in OPS:
        own = [each for each in order if each.op == op]
        # The cheapest first; a tenth of an op, or eight, spans most of its range of tokens and of widths.
        assert own[0].flops == min(each.flops for each in own)
        beginning = own[: max(8, len(own) // 10)]
        for size in ("rows", "features"):
            spans = [
                math.log(max(values) / min(values))
                for values in ([getattr(each, size) for each in part] for part in (beginning, own))
            ]
            assert spans[0] >= 0.8 * spans[1]
    beginning = order[: len(order) // 8]
    assert {each.window_h for each in beginning if each.op == "window"} == {8, 16, 32}
    assert {each.conv_size for each in beginning if each.op == "linear"} == {0, 3, 5}
    assert {each.backend for each in beginning if each.op == "full"} == set(sweep.GPU_BACKENDS)
    assert {each.rope for each in beginning if each.op == "full"} == {False, True}


def test_the_next_one_is_the_farthest():
    widths = [1, 2, 4, 64, 512]
    order = [each.inputs for each in spread([add(width) for width in widths])]
    assert order == [1, 512, 64, 4, 2]  # 512 is 9 steps from 1; then 64 is 3 from 512, 4 is 2 from 1
    assert [each.inputs for each in spread([add(2**step) for step in range(5)])] == [
        1,
        16,
        4,
        2,
        8,
    ]  # of equals the cheap


def test_one_of_another_batch_counts_as_far():
    own = [add(8), add(8, batch=16), add(9)]
    assert spread(own) == [own[0], own[1], own[2]]
    assert len(set(own)) == 3
    assert all(first != second for first, second in pairwise(own))
    assert spread([replace(own[0], batch=2)]) == [replace(own[0], batch=2)]
    assert spread([]) == []
