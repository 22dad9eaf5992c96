"""An operation is valid or refused, survives a row, and its work is what a count by hand gives."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from jetvit.cost_model.measuring.operation import ATTENTIONS, ELEMENT_BYTES, OPS, ROW_WISE, Operation
from jetvit.kernels.linear_attention.reference import FEATURE_MAPS

sizes = st.integers(1, 300)
feature_maps = st.sampled_from(["", *FEATURE_MAPS])


@st.composite
def operations(draw: st.DrawFn) -> Operation:
    op = draw(st.sampled_from(OPS))
    fields = {name: draw(sizes) for name in ("batch", "grid_h", "grid_w")} | {"extra": draw(st.integers(0, 9))}
    if op in ATTENTIONS:
        fields |= {"heads": draw(sizes), "head_dim": draw(sizes), "rope": draw(st.booleans())}
    else:
        fields |= {"inputs": draw(sizes)}
    fields |= {
        "window": lambda: {"window_h": draw(sizes), "window_w": draw(sizes)},
        "linear": lambda: {"conv_size": draw(st.sampled_from([0, 3, 5])), "feature_map": draw(feature_maps)},
        "full": lambda: {"backend": draw(st.sampled_from(["", "FLASH_ATTENTION"]))},
        "gemm": lambda: {"outputs": draw(sizes)},
    }.get(op, dict)()
    return Operation(op, draw(st.sampled_from(sorted(ELEMENT_BYTES))), **fields)


@given(operations())
def test_a_row_holds_it(operation: Operation) -> None:
    row = operation.to_row()
    assert all(type(text) is str for text in row.values())
    assert Operation.from_row({**row, "median_ms": "1.0"}) == operation


@given(operations())
def test_its_key_has_the_same_work(operation: Operation) -> None:
    key = operation.key
    assert key.key == key
    assert (key.family, key.rows, key.features) == (operation.family, operation.rows, operation.features)
    assert (key.flops, key.bytes) == (operation.flops, operation.bytes)


@given(operations(), st.sampled_from(["batch", "grid_h", "grid_w", "extra"]))
def test_more_tokens_are_of_the_family_and_no_less_work(operation: Operation, size: str) -> None:
    more = Operation.from_row({**operation.to_row(), size: str(getattr(operation, size) + 1)})
    assert more.family == operation.family
    assert more.bytes > operation.bytes
    if operation.op != "window":  # a longer side may make more and smaller windows
        assert more.flops > operation.flops


def test_work_by_hand() -> None:
    attention = {"dtype": "bfloat16", "batch": 2, "grid_h": 4, "grid_w": 6, "extra": 1, "heads": 3, "head_dim": 8}
    full = Operation("full", **attention)
    assert (full.tokens, full.rows, full.features) == (25, 50, 24)
    assert full.flops == 2 * (2 * 2 * 3 * 25 * 25 * 8)
    assert full.bytes == 4 * 50 * 24 * 2
    window = Operation("window", **attention, window_h=2, window_w=3)
    # 4 windows of 6 tokens that see 7 each, and one token that sees 25.
    assert window.window_tokens == 6
    assert window.flops == 2 * (2 * 2 * 3 * 8) * (4 * 6 * 7 + 25)
    linear = Operation("linear", **attention, conv_size=3)
    assert linear.flops == 2 * (2 * 2 * 3 * 25 * 8 * 8) + 2 * (2 * 9 * 24 * 24)
    assert linear.bytes == 5 * 50 * 24 * 2
    hedgehog = Operation("linear", **attention, conv_size=3, feature_map="hedgehog")
    assert hedgehog.flops == 2 * (2 * 2 * 3 * 25 * 16 * 8) + 2 * (2 * 9 * 24 * 24)
    assert hedgehog.bytes == linear.bytes
    centred = Operation("linear", **attention, conv_size=3, feature_map="relu_centred")
    assert (centred.flops, centred.bytes) == (linear.flops, 6 * 50 * 24 * 2)
    gemm = Operation("gemm", "float32", 1, 1, 10, inputs=3, outputs=7)
    assert (gemm.flops, gemm.bytes) == (2 * 10 * 3 * 7, 4 * (30 + 70 + 21))
    for op, passes in zip(ROW_WISE, (2, 2, 3), strict=True):
        assert Operation(op, "float16", 1, 1, 10, inputs=3).bytes == passes * 30 * 2


def test_linear_attention_is_of_relu_where_nothing_is_said() -> None:
    attention = {"dtype": "float32", "batch": 1, "grid_h": 4, "grid_w": 6, "heads": 3, "head_dim": 8, "conv_size": 3}
    plain, hedgehog = Operation("linear", **attention), Operation("linear", **attention, feature_map="hedgehog")
    assert plain == Operation("linear", **attention, feature_map="relu")
    assert plain.family == "linear float32 3x8 conv3"
    assert hedgehog.family == "linear float32 3x8 conv3 hedgehog"
    assert (plain.variant, hedgehog.variant) == ("", "hedgehog")


def test_a_feature_map_makes_as_many_features_as_are_counted() -> None:
    q, k = torch.randn(2, 1, 3, 2, 8)
    for name, feature_map in FEATURE_MAPS.items():
        operation = Operation("linear", "float32", 1, 1, 3, heads=2, head_dim=8, feature_map=name)
        assert [each.shape for each in feature_map(q, k)] == [(1, 3, 2, operation.feature_dim)] * 2


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"op": "conv"}, "op is 'conv', which is none of full, window"),
        ({"dtype": "int8"}, "dtype is 'int8', which is none of"),
        ({"batch": 0}, "full needs batch of at least 1, got 0"),
        ({"heads": 0}, "full needs heads of at least 1, got 0"),
        ({"extra": -1}, "extra is negative: -1"),
        ({"conv_size": 3}, "full has no conv_size, got 3"),
        ({"inputs": 3}, "full has no inputs, got 3"),
        ({"feature_map": "relu"}, "full has no feature_map, got 'relu'"),
        ({"op": "linear", "feature_map": "exp"}, "feature_map is 'exp', which is none of relu, relu_centred, hedgehog"),
        ({"op": "window"}, "window needs window_. of at least 1, got 0"),
        ({"op": "gemm", "heads": 0, "head_dim": 0, "inputs": 3}, "gemm needs outputs of at least 1, got 0"),
        ({"op": "gelu"}, "gelu has no heads|gelu needs inputs"),
    ],
)
def test_what_means_nothing_is_refused(fields: dict[str, object], message: str) -> None:
    valid = {"op": "full", "dtype": "float16", "batch": 1, "grid_h": 2, "grid_w": 3, "heads": 4, "head_dim": 8}
    Operation(**valid)
    with pytest.raises(ValueError, match=message):
        Operation(**{**valid, **fields})


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ({"batch": "two"}, "batch is 'two', which is no whole number"),
        ({"batch": "1.0"}, "batch is '1.0', which is no whole number"),
        ({"rope": "yes"}, "rope is 'yes', neither 0 nor 1"),
        ({"heads": None}, "there is no column heads"),
    ],
)
def test_a_row_that_is_none_is_refused(cells: dict[str, str | None], message: str) -> None:
    row = Operation("full", "float16", 1, 2, 3, heads=4, head_dim=8).to_row() | cells
    with pytest.raises(ValueError, match=message):
        Operation.from_row({name: text for name, text in row.items() if text is not None})
