"""The gates that need no GPU: every kernel in every configuration compiles well for an H100.

One test a launch, named as `make kernels` names it. What is compiled here is a part of that table: with RoPE and a
generated convolution, other head_dims than 64 and 128 in the default configuration only. All configurations of bf16 at
a head_dim of 64, and the default ones, are in `make test`; the others are slow.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch

pytest.importorskip("triton")

from benchmarks.kernels import resources as kernel_resources
from benchmarks.kernels.launches import (
    CONV_SIZES,
    DTYPES,
    HEAD_DIMS,
    Entry,
    every_entry,
    linear_attention,
    window_attention,
)
from benchmarks.kernels.resources import PRODUCT_ROWS, Result, compile_all, gate, main
from benchmarks.kernels.sm90 import Resources, cannot_compile, compile_variant, variant_of
from jetvit.kernels.full_attention.triton_launch import rotate
from jetvit.kernels.launch import Config, record_launches
from jetvit.kernels.linear_attention.triton_launch import linear_attention_triton
from jetvit.kernels.window_attention.triton_launch import window_attention_triton
from tests.zoo.quick import sweep

pytestmark = pytest.mark.skipif(bool(cannot_compile()), reason=cannot_compile())

GOOD = Resources(
    registers=128,
    spill_bytes=0,
    shared_bytes=65536,
    hgmma=4,
    hmma=0,
    serialised=False,
    fp64=0,
    instructions=1000,
    outside_loops=700,
    loops=(300,),
    programs_per_sm=2,
)
ENTRIES = every_entry()


def is_compiled_here(entry: Entry) -> bool:
    if entry.head_dim not in (64, 128) and not (entry.default and entry.dtype == "bf16"):
        return False
    if entry.kernel == "attend_windows":
        few = "rope width=16 extra=16 rest=16", "width=any extra=16 rest=64"
        return entry.options in few[: 1 if entry.dtype != "bf16" else 2]
    if entry.kernel == "mix":
        return entry.options in ("rope conv=3 generated", "rope conv=5 generated", "rope")
    options = {"kv_partials": "rope mean", "kv_state": "mean", "generate_taps": "conv=3"}
    return options.get(entry.kernel, entry.options) == entry.options


HERE = [entry for entry in ENTRIES if is_compiled_here(entry)]


def entry_of(kernel: str, dtype: str = "bf16", head_dim: int = 128) -> Entry:
    return next(e for e in HERE if (e.kernel, e.dtype, e.head_dim) == (kernel, dtype, head_dim))


@pytest.fixture(scope="module")
def result_of(request: pytest.FixtureRequest) -> Iterator[Callable[[Entry], Result]]:
    """What became of an entry. All that this run asks for are compiled in the background, on all cores."""
    items = [item for item in request.session.items if hasattr(item, "callspec")]
    names = {item.callspec.params["entry"].name for item in items if "entry" in item.callspec.params}
    stream = compile_all([entry for entry in HERE if entry.name in names], os.cpu_count() or 1)
    results: dict[str, Result] = {}

    def find(entry: Entry) -> Result:
        while entry.name not in results:
            result = next(stream)
            results[result.entry.name] = result
        return results[entry.name]

    yield find
    stream.close()


def is_quick(entry: Entry) -> bool:
    return entry.default and (entry.head_dim in (64, 128) if entry.dtype == "bf16" else entry.head_dim == 64)


@pytest.mark.parametrize(
    "entry",
    [pytest.param(entry, id=entry.name, marks=() if is_quick(entry) else pytest.mark.slow) for entry in HERE],
)
def test_passes_the_gates(entry: Entry, result_of: Callable[[Entry], Result]) -> None:
    failures = "; ".join(result_of(entry).failures)
    assert not failures, failures


def test_a_spilling_configuration_is_caught() -> None:
    """A block of the state and its tokens that 128 threads cannot hold, in fp32."""
    entry = entry_of("kv_partials", "fp32")
    too_large = replace(entry, launch=replace(entry.launch, config=Config(4, 2, {"BLOCK_N": 64}, 1)))
    (result,) = compile_all([too_large], jobs=1)
    spills, waits = result.failures
    assert spills.startswith("spills ")
    assert waits == "waits after every warpgroup product"


def test_a_configuration_that_does_not_compile_is_caught() -> None:
    entry = entry_of("mix")
    (result,) = compile_all(
        [replace(entry, launch=replace(entry.launch, config=Config(4, 2, {"BLOCK_W": 24, "ROWS": 8, "UNROLL": True})))],
        1,
    )
    assert result.resources is None
    assert result.failures[0].startswith("does not compile: ")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"spill_bytes": 4}, "spills 4 bytes"),
        ({"shared_bytes": 227 * 1024 + 1}, "takes 232449 bytes of shared memory of 232448"),
        ({"serialised": True}, "waits after every warpgroup product"),
        ({"hgmma": 0}, "has no HGMMA"),
        ({"hmma": 2}, "has 2 HMMA"),
        ({"fp64": 1}, "has 1 instructions of fp64"),
    ],
)
@pytest.mark.parametrize("kernel", sorted(PRODUCT_ROWS))
def test_the_gate_fails_what_it_should(kernel: str, change: dict[str, object], message: str) -> None:
    assert gate(entry_of(kernel), GOOD) == []
    assert gate(entry_of(kernel), replace(GOOD, **change)) == [message]


def test_no_wgmma_is_asked_of_small_products_and_of_fp32() -> None:
    warps_only = replace(GOOD, hgmma=0, hmma=8)
    assert gate(entry_of("mix", head_dim=32), warps_only) == []
    assert gate(entry_of("mix", "fp32"), warps_only) == []
    entry = entry_of("mix")
    small = replace(
        entry, launch=replace(entry.launch, config=Config(4, 2, {"BLOCK_W": 32, "ROWS": 8, "UNROLL": True}))
    )
    assert gate(small, warps_only) == []


def test_a_kernel_with_products_must_be_known() -> None:
    assert gate(entry_of("kv_state"), GOOD) == ["has products that PRODUCT_ROWS does not know"]


def test_names_tell_launches_apart() -> None:
    names = [entry.name for entry in ENTRIES]
    assert len(set(names)) == len(names)
    assert "mix-bf16-d64-rope-conv=3-generated-block_w=32-rows=16-unroll=True-warps=4-stages=2" in names
    assert not any(character.isspace() for name in names for character in name)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_all_that_linear_attention_launches_is_in_the_table(dtype: str, head_dim: int) -> None:
    known = {variant_of(entry.launch) for entry in ENTRIES}
    for conv_size in CONV_SIZES:
        for rotated in (False, True):
            for launch in linear_attention(dtype, head_dim, conv_size, rotated):
                assert variant_of(launch) in known, launch.kernel.__name__


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_all_that_window_attention_launches_is_in_the_table(dtype: str, head_dim: int) -> None:
    known = {variant_of(entry.launch) for entry in ENTRIES}
    for side in (8, 13, 16, 32):
        for rotated in (False, True):
            for extra_tokens in (0, 1, 5, 60):
                for launch in window_attention(dtype, head_dim, side, rotated, extra_tokens):
                    assert variant_of(launch) in known, launch.kernel.__name__


@pytest.mark.parametrize("head_dim", sweep([4, 16, 112], quick=[112]))
@pytest.mark.parametrize("rotated", [pytest.param(False, marks=pytest.mark.slow), True])
def test_other_head_dims_and_sizes_of_one_compile(head_dim: int, rotated: bool) -> None:
    """Inductor makes a constant of every size that is 1, and a constant has fewer operations than a scalar."""
    q = torch.empty(1, 2, 1, head_dim, dtype=torch.float16, device="meta")
    tables = [torch.empty((1, 2, head_dim // 4) if rotated else 0, device="meta")] * 2
    shapes = [(1, head_dim), (1,), (head_dim, 1), (head_dim,)]
    weights = [torch.empty(shape, device="meta") for shape in shapes]
    with record_launches() as launches:
        linear_attention_triton(q, q, q, *tables, *weights, 1, 1, 1, 1, 1e-6, "relu")
        window_attention_triton(q, q, q, *tables, 1, 1, 1, 1, 1, 0.25)
        if rotated:
            rotate(q, *tables, 1, 1, 1)
    assert len({launch.kernel for launch in launches}) == 6 + rotated
    for launch in launches:
        variant = variant_of(launch, by_inductor=True)
        assert {dict(variant.types).get(size, "constexpr") for size in ("batch", "batch_heads")} == {"constexpr"}
        compile_variant(variant)


def test_what_is_the_same_to_the_compiler_is_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []
    monkeypatch.setattr(kernel_resources, "compile_variant", lambda variant: compiled.append(variant) or GOOD)
    results = list(compile_all(ENTRIES, jobs=2))
    assert [result.entry for result in results] == ENTRIES
    assert len(compiled) == len(set(compiled)) < len(ENTRIES)


def test_the_table_says_where_it_comes_from(monkeypatch: pytest.MonkeyPatch, tmp_path, capsys) -> None:
    monkeypatch.setattr(kernel_resources, "compile_variant", lambda variant: GOOD)
    path = tmp_path / "table.csv"
    assert main(["--only", "mix-bf16-d64", "-o", str(path)]) == 0
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["kernel"] for row in rows} == {"mix"}
    assert all(row["triton"] and row["command"] and row["date"] and row["target"] == "sm_90" for row in rows)
    assert f"{len(rows)} of {len(rows)} launches pass" in capsys.readouterr().out


def test_a_failed_gate_is_named_and_is_the_exit_status(monkeypatch: pytest.MonkeyPatch, tmp_path, capsys) -> None:
    monkeypatch.setattr(kernel_resources, "compile_variant", lambda variant: replace(GOOD, spill_bytes=8))
    assert main(["--only", "kv_partials-bf16-d64-rope-mean", "-o", str(tmp_path / "table.csv")]) == 1
    assert (
        "FAILED kv_partials-bf16-d64-rope-mean-block_n=64-warps=4-stages=3-splits_per_sm=2: spills 8 bytes"
        in capsys.readouterr().out
    )


def test_an_interpreted_process_says_that_it_cannot(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert main([]) == 2
    assert "TRITON_INTERPRET=1" in capsys.readouterr().err
