from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from jetvit.cost_model import base_record, base_warning, check_base, sample_base, sample_tensor
from jetvit.patterns.errors import PlanError


def weights(seed: int = 0, std: float = 0.02) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    names = [f"blocks.{i}.attn.qkv.{kind}" for i in range(6) for kind in ("weight", "bias")]
    return {n: torch.randn((96, 32) if n.endswith("weight") else (96,), generator=generator) * std for n in names}


@given(st.integers(0, 5000))
def test_samples_are_distinct_values_spread_over_the_tensor(numel: int):
    sample = sample_tensor(torch.arange(numel))
    assert sample.dtype == torch.float32
    assert len(sample) == min(64, numel)
    # One sample in each of as many parts.
    ends = torch.arange(len(sample) + 1) * numel // max(len(sample), 1)
    assert torch.all((ends[:-1] <= sample) & (sample < ends[1:]))


@pytest.mark.parametrize("columns", [64, 384, 768, 1024, 4096])
def test_samples_of_a_matrix_are_not_all_in_few_columns(columns: int):
    matrix = torch.arange(columns).expand(columns, columns)
    assert len(sample_tensor(matrix).unique()) > 30


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("std", [1e-4, 0.02, 5.0])
def test_a_cast_passes(dtype: torch.dtype, std: float):
    base = weights(std=std)
    check_base(sample_base(base), {fqn: tensor.to(dtype) for fqn, tensor in base.items()})


def test_layout_plays_no_part():
    matrix = torch.randn(100, 70)
    check_base({"w": sample_tensor(matrix)}, {"w": matrix.t().contiguous().t()})


@pytest.mark.parametrize("value", [0.0, float("inf"), float("nan")])
def test_odd_values_equal_themselves(value: float):
    base = {"w": torch.full((70,), value), "empty": torch.zeros(0), "scalar": torch.tensor(3)}
    check_base(sample_base(base), base)


def test_other_weights_are_named():
    base = weights()
    other = base | {"blocks.2.attn.qkv.bias": base["blocks.2.attn.qkv.bias"] * 1.05}
    other["blocks.4.attn.qkv.bias"] = torch.zeros(96)
    with pytest.raises(PlanError) as error:
        check_base(sample_base(base), other)
    assert error.value.where == "blocks.2.attn.qkv.bias"
    assert "off by more than 0.01 of the value plus " in error.value.why
    assert error.value.why.endswith(": 64 of 64 samples")
    assert "made on" in error.value.do


@pytest.mark.parametrize("change", [1.02, 0.98, -1.0, float("nan")])
def test_one_changed_sample_is_enough(change: float):
    base = {"w": torch.linspace(0.5, 1, 40)}
    changed = base["w"].clone()
    changed[7] *= change
    with pytest.raises(PlanError, match="sample 7 is") as error:
        check_base(sample_base(base), {"w": changed})
    assert "1 of 40 samples" in error.value.why


def test_a_missing_and_a_misshapen_weight_are_named():
    base = weights()
    with pytest.raises(PlanError, match="not in the model") as error:
        check_base(sample_base(base), {})
    assert error.value.where == "blocks.0.attn.qkv.weight"
    with pytest.raises(PlanError, match="the model's has 3 values"):
        check_base({"w": torch.zeros(5)}, {"w": torch.zeros(3)})


def test_a_tenth_may_be_absent():
    base = {f"w{i}": torch.randn(50, generator=torch.Generator().manual_seed(i)) for i in range(20)}
    samples = sample_base(base)
    assert check_base(samples, base) == []
    few = {name: tensor for name, tensor in base.items() if name not in ("w3", "w7")}
    assert check_base(samples, few) == ["w3", "w7"]
    with pytest.raises(PlanError, match="3 of 20 are missing") as error:
        check_base(samples, {name: tensor for name, tensor in few.items() if name != "w0"})
    assert error.value.where == "w0"
    with pytest.raises(PlanError, match="is not the one"):  # those that are there are compared all the same
        check_base(samples, {**few, "w19": -base["w19"]})


def test_a_record_is_short_and_spread():
    record = base_record(weights())
    assert len(record) == 8
    assert "blocks.0.attn.qkv.weight" in record
    assert any(name.startswith("blocks.5") for name in record)
    mean, std = record["blocks.0.attn.qkv.weight"]
    assert (mean, std) == pytest.approx((0.016, 0.02), rel=0.1)
    assert len(str(std).lstrip("0.")) <= 4
    assert base_record({}) == {}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_same_weights_do_not_warn(dtype: torch.dtype):
    base = weights()
    assert base_warning(base_record(base), {fqn: tensor.to(dtype) for fqn, tensor in base.items()}) is None


def test_other_weights_warn():
    base = weights()
    assert "blocks.0.attn.qkv.weight has mean |w|" in (base_warning(base_record(base), weights(std=0.021)) or "")
    assert "blocks.0.attn.qkv.weight is not in this model" in (base_warning(base_record(base), {}) or "")
