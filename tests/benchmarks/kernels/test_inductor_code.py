"""What Inductor makes of a hybrid on a Hopper GPU compiles, without fp64 and without copies of q, k and v."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
pytest.importorskip("transformers")

from benchmarks.kernels.inductor_code import FRONTENDS, KERNELS, Found, _copied
from benchmarks.kernels.sm90 import cannot_compile
from tests.zoo.quick import sweep

pytestmark = pytest.mark.skipif(bool(cannot_compile()), reason=cannot_compile())
ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("frontend", sweep(FRONTENDS, quick=["aoti"]))
def test_every_kernel_in_the_code_is_right(frontend) -> None:
    """In a process of its own, which takes itself for one with a GPU."""
    command = [sys.executable, "-m", "benchmarks.kernels.inductor_code", frontend]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    found = re.findall(r"^ok +(\w+)_\d+ ", done.stdout, re.M)
    assert set(found) == set(KERNELS), done.stdout
    assert "FAILED" not in done.stdout


def test_a_copy_is_found() -> None:
    calls = """
        extern_kernels.addmm(arg3_1, arg1_1, reinterpret_tensor(arg2_1, (8, 24), (1, 8), 0), out=buf0)
        triton_poi_fused_clone_0.run(buf0, buf1, 64, stream=stream0)
        attend_windows_1.run(reinterpret_tensor(buf0, (1, 2, 1, 4), (8, 4, 4, 1), 0), buf1, buf0, 7, stream=stream0)
    """
    arguments = ("q_ptr", "k_ptr", "v_ptr", "SCALE", "batch")
    assert _copied("attend_windows_1", arguments, {"SCALE": 0.125}, calls) == ("k_ptr",)


def test_calls_that_are_not_found_are_not_taken_for_right() -> None:
    with pytest.raises(RuntimeError, match="another way"):
        _copied("mix_3", ("q_ptr",), {}, "attend_windows_1.run(buf0, stream=stream0)")


@pytest.mark.parametrize(
    "wrong", [{"fp64_arguments": ("eps",)}, {"fp64": 1}, {"copied": ("q_ptr",)}, {"error": "CompilationError"}]
)
def test_what_is_not_right(wrong) -> None:
    right = {"name": "mix_0", "fp64_arguments": (), "fp64": 0, "instructions": 9, "copied": (), "error": ""}
    assert Found(**right).is_right
    assert not Found(**{**right, **wrong}).is_right
