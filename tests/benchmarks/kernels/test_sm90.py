"""What a launch becomes for the compiler."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from benchmarks.kernels.sm90 import cannot_compile, compile_launch, programs_per_sm, variant_of
from jetvit.kernels.launch import Config, Launch
from jetvit.kernels.linear_attention import triton_kernels

pytestmark = pytest.mark.skipif(bool(cannot_compile()), reason=cannot_compile())


def launch(weight: torch.Tensor | None = None, **change: object) -> Launch:
    x = torch.empty(1, 1024, device="meta")
    weight = torch.empty(48, 1024, dtype=torch.bfloat16, device="meta") if weight is None else weight
    tensors = {"hidden_ptr": x, "w2_ptr": weight, "b2_ptr": x, "taps_ptr": x}
    arguments = {**tensors, "batch": 2, "channels": 48, "units": 1024, "TAPS": 1, **change}
    return Launch(triton_kernels.generate_taps, (96,), arguments, Config(4, 2, {"ROWS": 1, "BLOCK_C": 1024}))


def test_types_are_those_of_the_arguments() -> None:
    types = dict(variant_of(launch(channels=2**31)).types)
    assert (types["hidden_ptr"], types["w2_ptr"], types["channels"], types["units"]) == ("*fp32", "*bf16", "i64", "i32")
    assert (types["TAPS"], types["ROWS"]) == ("constexpr", "constexpr")


def test_alignment_is_told_where_it_holds() -> None:
    place = {
        name: index
        for index, name in enumerate(("hidden_ptr", "w2_ptr", "b2_ptr", "taps_ptr", "batch", "channels", "units"))
    }
    assert set(variant_of(launch()).aligned) == set(place.values()) - {place["batch"]}
    assert place["channels"] not in variant_of(launch(channels=40)).aligned
    shifted = torch.empty(49 * 1024, dtype=torch.bfloat16, device="meta")[4 : 4 + 48 * 1024].view(48, 1024)
    assert place["w2_ptr"] not in variant_of(launch(shifted)).aligned


def test_one_is_a_constant_where_triton_specialises() -> None:
    one = launch(batch=1, channels=1)
    assert [index for index in (4, 5) if index in dict(variant_of(one).constants)] == [5]
    by_inductor = dict(variant_of(one, by_inductor=True).constants)
    assert (by_inductor[4], by_inductor[5]) == (1, 1)
    tokens = next(p for p in triton_kernels.mix.params if p.name == "tokens")
    assert tokens.do_not_specialize


def test_what_is_no_difference_to_the_compiler_is_one_variant() -> None:
    assert variant_of(launch(channels=48)) == variant_of(launch(channels=64)) != variant_of(launch(channels=40))


def test_inductor_passes_floats_as_fp64() -> None:
    """What is a float must be a constant: `scale` as fp64 did not compile, `eps` cost 178 instructions of fp64."""
    as_float = launch(batch=0.5)
    assert dict(variant_of(as_float).types)["batch"] == "fp32"
    assert dict(variant_of(as_float, by_inductor=True).types)["batch"] == "fp64"


def test_how_many_programs_fit_on_a_multiprocessor() -> None:
    assert programs_per_sm(registers=128, shared_bytes=0, num_warps=8) == 2
    assert programs_per_sm(registers=129, shared_bytes=0, num_warps=8) == 1  # registers come by eights
    assert programs_per_sm(registers=32, shared_bytes=75 * 1024, num_warps=4) == 3
    assert programs_per_sm(registers=16, shared_bytes=0, num_warps=1) == 32


def test_a_kernel_without_products_compiles() -> None:
    found = compile_launch(launch())
    assert 16 <= found.registers <= 255
    assert (found.spill_bytes, found.hgmma, found.hmma, found.serialised, found.fp64) == (0, 0, 0, False, 0)
    assert found.instructions == found.outside_loops + sum(found.loops)
    assert len(found.loops) == 1
    # The sums of a row meet in shared memory, a number a warp; CUDA's own 1 KB is not counted.
    assert 0 < found.shared_bytes < 8192


def test_an_interpreted_process_cannot_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cannot_compile() == ""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert "TRITON_INTERPRET" in cannot_compile()
