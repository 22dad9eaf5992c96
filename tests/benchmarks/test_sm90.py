"""What a launch becomes for the compiler."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from benchmarks.sm90 import cannot_compile, compile_launch, variant_of
from jetvit.kernels.launch import Config, Launch
from jetvit.kernels.linear_attention import triton_kernels

pytestmark = pytest.mark.skipif(bool(cannot_compile()), reason=cannot_compile())


def launch(weight: torch.Tensor | None = None, **change: object) -> Launch:
    x = torch.empty(1, 1024, device="meta")
    weight = torch.empty(48, 1024, dtype=torch.bfloat16, device="meta") if weight is None else weight
    tensors = {"x": x, "weight": weight, "bias": x, "out": x}
    arguments = {**tensors, "batch": 2, "rows": 48, "columns": 1024, "SILU": True, **change}
    return Launch(triton_kernels.matvec, (96,), arguments, Config(4, 2, {"ROWS": 1, "COLUMNS": 1024}))


def test_types_are_those_of_the_arguments() -> None:
    types = dict(variant_of(launch(rows=2**31)).types)
    assert (types["x"], types["weight"], types["rows"], types["columns"]) == ("*fp32", "*bf16", "i64", "i32")
    assert (types["SILU"], types["ROWS"]) == ("constexpr", "constexpr")


def test_alignment_is_told_where_it_holds() -> None:
    place = {name: index for index, name in enumerate(("x", "weight", "bias", "out", "batch", "rows", "columns"))}
    assert set(variant_of(launch()).aligned) == set(place.values()) - {place["batch"]}
    assert place["rows"] not in variant_of(launch(rows=40)).aligned
    shifted = torch.empty(49 * 1024, dtype=torch.bfloat16, device="meta")[4 : 4 + 48 * 1024].view(48, 1024)
    assert place["weight"] not in variant_of(launch(shifted)).aligned


def test_one_is_a_constant_where_triton_specialises() -> None:
    one = launch(batch=1, rows=1)
    assert [index for index in (4, 5) if index in dict(variant_of(one).constants)] == [5]
    by_inductor = dict(variant_of(one, by_inductor=True).constants)
    assert (by_inductor[4], by_inductor[5]) == (1, 1)
    tokens = next(p for p in triton_kernels.mix.params if p.name == "tokens")
    assert tokens.do_not_specialize


def test_what_is_no_difference_to_the_compiler_is_one_variant() -> None:
    assert variant_of(launch(rows=48)) == variant_of(launch(rows=64)) != variant_of(launch(rows=40))


def test_a_kernel_without_products_compiles() -> None:
    found = compile_launch(launch())
    assert 16 <= found.registers <= 255
    assert (found.spill_bytes, found.hgmma, found.hmma, found.serialised) == (0, 0, 0, False)
    # The sums of a row meet in shared memory, a number a warp; CUDA's own 1 KB is not counted.
    assert 0 < found.shared_bytes < 8192


def test_an_interpreted_process_cannot_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cannot_compile() == ""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert "TRITON_INTERPRET" in cannot_compile()
