"""What is timed is the operation that its name says, on data as models have it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from jetvit.cost_model.measuring.calls import first_line, make_call
from jetvit.cost_model.measuring.operation import ATTENTIONS, Operation
from jetvit.cost_model.measuring.sweep import ModelShape, operations

CPU = torch.device("cpu")
MODEL = {"m": ModelShape(2, 16, 8, 5, True)}
SOME = [
    each
    for dtype in ("float32", "bfloat16")
    for gpu in (False, True)
    for each in operations(MODEL, [(96, 80)], (2,), [dtype], gpu=gpu)
    if not each.backend
]


def run(operation: Operation) -> Tensor:
    result = make_call(operation, CPU).run()
    assert isinstance(result, Tensor)
    return result


def test_all_ops_are_tried():
    assert {(each.op, each.rope) for each in SOME} >= {(op, rope) for op in ATTENTIONS for rope in (False, True)}
    assert len({each.op for each in SOME}) == 7


@pytest.mark.parametrize("operation", dict.fromkeys(SOME), ids=str)
def test_shape_and_dtype_of_the_result(operation: Operation):
    result = run(operation)
    assert str(result.dtype) == f"torch.{operation.dtype}"
    assert result.isfinite().all()
    assert result.numel() == 2 * (12 * 10 + 5) * (operation.outputs or operation.features)
    assert result.std() > 0.01


def arguments(monkeypatch: pytest.MonkeyPatch, name: str, operation: Operation) -> tuple[Tensor, ...]:
    """What the operator of `jetvit.cost_model.measuring.calls` is called with."""
    seen: list[tuple[Tensor, ...]] = []
    monkeypatch.setattr(f"jetvit.cost_model.measuring.calls.{name}", lambda *args: seen.append(args))
    make_call(operation, CPU).run()
    return seen[0]


def test_q_k_and_v_are_views_of_one_projection(monkeypatch: pytest.MonkeyPatch):
    operation = Operation("window", "float32", 2, 12, 10, 5, heads=2, head_dim=16, rope=True, window_h=8, window_w=4)
    q, k, v, rope_y, rope_x, *rest = arguments(monkeypatch, "window_attention", operation)
    assert q.shape == (2, 125, 2, 16)
    assert q.stride() == (125 * 96, 96, 16, 1)
    assert len({x.untyped_storage().data_ptr() for x in (q, k, v)}) == 1
    assert [x.storage_offset() for x in (q, k, v)] == [0, 32, 64]
    assert (rope_y.shape, rope_x.shape) == ((12, 2, 4), (10, 2, 4))
    assert rest == [12, 10, 5, 8, 4, 0.25]


def test_a_convolution_brings_its_generator(monkeypatch: pytest.MonkeyPatch):
    operation = Operation("linear", "bfloat16", 1, 12, 10, heads=2, head_dim=16, conv_size=3, feature_map="hedgehog")
    *_, w1, b1, w2, b2, grid_h, grid_w, extra, conv_size, eps, feature_map = arguments(
        monkeypatch, "linear_attention", operation
    )
    assert [tuple(x.shape) for x in (w1, b1, w2, b2)] == [(8, 32), (8,), (288, 8), (288,)]
    assert (grid_h, grid_w, extra, conv_size, eps, feature_map) == (12, 10, 0, 3, 1e-6, "hedgehog")


def test_full_attention_is_sdpa_with_a_backend_or_without():
    plain = Operation("full", "float32", 1, 12, 10, 5, heads=2, head_dim=16)
    named = Operation("full", "float32", 1, 12, 10, 5, heads=2, head_dim=16, backend="MATH")
    torch.testing.assert_close(run(named), run(plain))
    assert make_call(named, CPU).config == f"MATH, threads {torch.get_num_threads()}"
    assert make_call(plain, CPU).config.startswith("F.scaled_dot_product_attention")


def test_a_product_has_its_bias(monkeypatch: pytest.MonkeyPatch):
    seen: list[tuple[Tensor, ...]] = []
    monkeypatch.setattr(F, "linear", lambda *args: seen.append(args))
    make_call(Operation("gemm", "float32", 2, 3, 4, 1, inputs=8, outputs=6), CPU).run()
    assert [tuple(each.shape) for each in seen[0]] == [(2, 13, 8), (6, 8), (6,)]


def test_what_cannot_run_is_a_runtime_error():
    common = {"dtype": "float32", "batch": 1, "grid_h": 4, "grid_w": 4, "heads": 2, "head_dim": 16}
    for own in ({"backend": "MATH", "rope": True}, {"backend": "QUICK"}):
        with pytest.raises(RuntimeError, match="backend"):
            make_call(Operation("full", **common, **own), CPU)


def test_first_line():
    assert first_line(RuntimeError("no\x1b kernel\nmore")) == "no kernel"
    assert first_line(RuntimeError()) == "RuntimeError"
    assert len(first_line(RuntimeError("x" * 999))) == 160
