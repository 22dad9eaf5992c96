"""Kernels that are compiled ahead of their launch, with the keys of the launch; no GPU is needed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

triton = pytest.importorskip("triton")

from triton.runtime.driver import driver  # noqa: E402

from benchmarks.gpu import compile_kernels  # noqa: E402
from benchmarks.gpu.compile_kernels import DTYPES, HEAD_DIMS, compile_all, compile_entry, selected  # noqa: E402
from benchmarks.kernels import launches as kernel_launches  # noqa: E402
from benchmarks.kernels.launches import Entry, every_entry  # noqa: E402
from benchmarks.kernels.sm90 import cannot_compile, variant_of  # noqa: E402
from benchmarks.kernels.target_driver import TargetDriver  # noqa: E402

pytestmark = pytest.mark.skipif(cannot_compile() != "", reason=cannot_compile() or "kernels can be compiled")


@pytest.fixture(autouse=True)
def target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "triton"))
    monkeypatch.setattr(driver, "_active", TargetDriver(90))


def test_each_variant_that_the_first_steps_launch_is_compiled_once_the_most_needed_first() -> None:
    found = selected()
    wanted = [each for each in every_entry() if each.dtype in DTYPES and each.head_dim in HEAD_DIMS]
    assert {variant_of(each.launch) for each in found} == {variant_of(each.launch) for each in wanted}
    assert len({variant_of(each.launch) for each in found}) == len(found)
    assert (found[0].dtype, found[0].head_dim, found[0].default) == ("bf16", 64, True)
    first = [(each.dtype, each.head_dim) == ("bf16", 64) for each in found]
    assert first == sorted(first, reverse=True)
    others = [each.default for each, mine in zip(found, first, strict=True) if not mine]
    assert others == sorted(others, reverse=True)


def specialisation(entry: Entry) -> tuple[str, str]:
    """What Triton makes of the arguments of a launch: all of its key that depends on them."""
    launch = entry.launch
    options = {"num_warps": launch.config.num_warps, "num_stages": launch.config.num_stages, "debug": False}
    *_, binder = launch.kernel.device_caches[0]
    _, specialised, others = binder(**launch.arguments, **launch.config.blocks, **options)
    return str(specialised), str(others)


def test_tensors_without_data_are_specialised_as_real_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    described = {each.name: specialisation(each) for each in selected()}
    monkeypatch.setattr(kernel_launches, "_meta", lambda *shape, dtype=torch.float32: torch.empty(shape, dtype=dtype))
    real = {each.name: specialisation(each) for each in selected()}
    assert described == real


def test_a_compiled_kernel_is_found_on_disk(tmp_path: Path) -> None:
    entry = min(selected(), key=lambda each: len(each.launch.arguments))
    key = compile_entry(entry)
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "triton").rglob("*.cubin")}
    assert len(files) == 1
    launch = entry.launch
    launch.kernel.device_caches.clear()  # as in a new process
    assert compile_entry(entry) == key
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "triton").rglob("*.cubin")} == files


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_errors_and_what_is_too_late_are_reported_and_the_rest_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    def compile_one(entry: Entry) -> str:
        if entry is entries[0]:
            raise ValueError("no such\ninstruction")
        return "key"

    entries = selected()[:3]
    monkeypatch.setattr(compile_kernels, "compile_entry", compile_one)
    done, errors = compile_all(entries, jobs=2, seconds=60)
    assert done == 2
    assert errors == [f"{entries[0].name}: ValueError: no such instruction"]
    assert compile_all(entries, jobs=1, seconds=-1) == (0, [])
