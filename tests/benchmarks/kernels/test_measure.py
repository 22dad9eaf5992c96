"""The kernel benchmark on small shapes: what it counts, writes, goes on from, and says."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import report
from benchmarks.kernels import group as kernel_group
from benchmarks.kernels import implementations as kernel_implementations
from benchmarks.kernels import measure as kernels
from benchmarks.kernels.check import Check, checks, poisoned_outputs, verdict
from benchmarks.kernels.goals import Comparison, comparisons
from benchmarks.kernels.group import DeviceLost
from benchmarks.kernels.implementations import implementations
from benchmarks.kernels.inputs import make_inputs
from benchmarks.kernels.plain import flex_window, window
from benchmarks.kernels.rows import COLUMNS, KEY, Table, newest, read_rows
from benchmarks.kernels.shapes import (
    FIRST_MIXERS,
    MODELS,
    MORE_MIXERS,
    SIZES,
    Ceilings,
    Mixer,
    Problem,
    floor_ms,
    problem,
    problems,
)
from jetvit.kernels.window_attention.reference import window_attention_reference

ROOT = Path(__file__).resolve().parents[3]
LINEAR, WINDOW, FULL = FIRST_MIXERS
SMALL = SIZES[0]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The program names a folder for what tuning measures, where none is named."""
    monkeypatch.setenv("JETVIT_CACHE", str(tmp_path / "tuned"))


def run(out: Path, *arguments: str) -> int:
    return kernels.main(["--dry", "--out", str(out), *arguments])


def table(out: Path) -> list[dict[str, str]]:
    return read_rows(out / "kernels-dry.csv")


def key(row: dict[str, str]) -> tuple[str, ...]:
    return tuple(row[name] for name in KEY)


# Worked by hand for 3.0 TB/s and 600 TFLOP/s: linear and window in µs. Full attention as fast as FlashAttention 3,
# 496 TFLOP/s at head_dim 64 and 646 at 128.
@pytest.mark.parametrize(
    ("model", "linear_us", "window_us", "full_us", "full_tflop_s"),
    [
        ("DINOv3-B", 21, 17, 417, 496),
        ("DINOv3-L", 28, 22, 556, 496),
        ("DINOv3-7B", 112, 90, 1720, 646),
        ("DepthAnythingV2-L", 36, 29, 940, 496),
        ("DepthAnythingV2-G", 55, 44, 1410, 496),
    ],
)
def test_floors_are_those_worked_by_hand(model, linear_us, window_us, full_us, full_tflop_s) -> None:
    best = Ceilings(3.0, 600)
    assert 1e3 * floor_ms(problem(model, SMALL, LINEAR), best) == pytest.approx(linear_us, rel=0.05)
    assert 1e3 * floor_ms(problem(model, SMALL, WINDOW), best) == pytest.approx(window_us, rel=0.05)
    full = floor_ms(problem(model, SMALL, FULL), Ceilings(3.0, full_tflop_s))
    assert 1e3 * full == pytest.approx(full_us, rel=0.05)


def test_the_larger_of_bytes_and_products_is_the_floor() -> None:
    large = problem("DINOv3-B", SMALL, Mixer("window 32", "window", 32))
    # 8192 queries see 1024 keys of their own and 5 others; 5 queries see all 8197.
    flops = 4 * 768 * (8192 * 1029 + 5 * 8197)
    assert floor_ms(large, Ceilings(3.0, 600)) == pytest.approx(flops / 600e12 * 1e3)
    assert floor_ms(large, Ceilings(0.1, 600)) == pytest.approx(4 * 8197 * 768 * 2 / 0.1e12 * 1e3)


def test_grids_are_whole_patches() -> None:
    assert (problem("DINOv3-L", SMALL, FULL).grid_h, problem("DINOv3-L", SMALL, FULL).grid_w) == (64, 128)
    shape = problem("DepthAnythingV2-L", SMALL, FULL)
    assert (shape.grid_h, shape.grid_w, shape.tokens) == (73, 146, 10659)


def test_the_most_telling_problems_come_first() -> None:
    found = problems()
    assert len(found) == len(set(found)) == len(MODELS) * len(SIZES) * 6
    first = [(each.model, each.size, each.mixer) for each in found[:6]]
    assert first == [(model, "1024x2048", mixer) for model in ("DINOv3-B", "DINOv3-L") for mixer in FIRST_MIXERS]


SMALL_PROBLEMS = [problem(m, SMALL, x).shrunk() for m in MODELS for x in (*FIRST_MIXERS, *MORE_MIXERS)]


@pytest.mark.parametrize("small", SMALL_PROBLEMS, ids=lambda each: f"{each.model} {each.mixer.name}")
def test_eager_rivals_compute_the_same_function(small: Problem) -> None:
    """A rival that computes something else would be no rival."""
    inputs = make_inputs(small, torch.device("cpu"), torch.float32, seed=3)
    with torch.no_grad():
        expected = implementations(small)[0].prepare(inputs)().flatten(2)
        rivals = [each for each in implementations(small)[1:] if each.same_function and "eager" in each.name]
        assert rivals
        for rival in rivals:
            torch.testing.assert_close(rival.prepare(inputs)().flatten(2), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("reorder", [False, True])
def test_flex_attention_computes_the_same_function(reorder: bool) -> None:
    small = Problem("ragged", "0x0", Mixer("window 4", "window", 4), 2, 16, 9, 11, 3, True)
    inputs = make_inputs(small, torch.device("cpu"), torch.float32, seed=3)
    with torch.no_grad():
        expected = implementations(small)[0].prepare(inputs)().flatten(2)
        found = flex_window(inputs, reorder)(inputs.qkv)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_padded_windows_are_those_of_a_grid_that_they_divide() -> None:
    """Sides of exactly 4, so that the last row and column of windows are short: no balanced sides, no padding seen."""
    small = Problem("ragged", "0x0", Mixer("window 4", "window", 4), 1, 8, 9, 10, 2, False)
    inputs = make_inputs(small, torch.device("cpu"), torch.float64, seed=3)
    found = window(inputs, balanced=False)(inputs.qkv).unflatten(2, (1, 8))[0, :, 0]
    q, k, v = inputs.qkv[0, :, :, 0].unbind(1)
    place = torch.arange(90)
    number = torch.cat([torch.tensor([-1, -1]), place // 10 // 4 * 3 + place % 10 // 4])
    sees = (number[:, None] == number) | (number[:, None] < 0) | (number < 0)
    scores = (q @ k.T * 8**-0.5).masked_fill(~sees, -torch.inf)
    torch.testing.assert_close(found, scores.softmax(-1) @ v)


def test_dry_run_from_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, "--only", "DepthAnythingV2-L 1024x2048 linear 3x3,DINOv3-B 1024x2048 full") == 0
    rows = table(tmp_path)
    names = {(row["mixer"], row["implementation"]) for row in rows}
    assert {("linear 3x3", name) for name in ("jetvit", "reference", "eager", "compiled")} <= names
    assert {("full", f"sdpa {name}") for name in ("flash", "cudnn", "efficient", "math")} <= names
    for row in rows:
        assert row["dry"] == "True"
        assert row["device"]
        assert row["command"]
        assert row["time"]
        if row["status"] == "ok":
            assert float(row["q25_ms"]) <= float(row["median_ms"]) <= float(row["q75_ms"])
            assert float(row["floor_ms"]) > 0
        else:
            assert row["reason"], row
    # A CPU has no cuDNN: that is a row, not an end.
    assert {row["status"] for row in rows if row["implementation"] == "sdpa cudnn"} == {"unsupported"}
    assert all(float(row["max_error"]) < 0.1 for row in rows if row["implementation"] == "jetvit")
    assert (tmp_path / "kernels-dry-1024x2048.png").stat().st_size > 20_000
    assert {row["status"] for row in read_rows(tmp_path / "kernels-dry-checks.csv")} == {"ok"}
    assert "checks passed" in capsys.readouterr().out


def test_a_second_run_measures_nothing(tmp_path: Path) -> None:
    run(tmp_path, "--only", "DINOv3-B 1024x2048 linear 3x3")
    before = (tmp_path / "kernels-dry.csv").read_bytes(), (tmp_path / "kernels-dry-checks.csv").read_bytes()
    run(tmp_path, "--only", "DINOv3-B 1024x2048 linear 3x3")
    assert before == ((tmp_path / "kernels-dry.csv").read_bytes(), (tmp_path / "kernels-dry-checks.csv").read_bytes())


@pytest.mark.slow
def test_changed_kernels_are_measured_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path, "--only", "DINOv3-B 1024x2048 linear 3x3")
    first = len(table(tmp_path))
    monkeypatch.setattr(kernels, "code_of_kernels", lambda: "another")
    run(tmp_path, "--only", "DINOv3-B 1024x2048 linear 3x3")
    assert len(table(tmp_path)) == 2 * first
    assert {row["code"] for row in newest(table(tmp_path))} == {"another"}


@pytest.mark.slow
def test_a_killed_run_goes_on_with_no_row_doubled(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.kernels", "--dry", "--only", "linear 3x3", "--out", str(tmp_path)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("[2/"):
            process.send_signal(signal.SIGKILL)
            break
    process.wait(timeout=60)
    process.stdout.close()
    left = table(tmp_path)
    assert {row["model"] for row in left} == {"DINOv3-B"}  # the group that was under way is not half there
    with (tmp_path / "kernels-dry.csv").open("a") as file:
        file.write("DepthAnythingV2-L,1024x2048,lin")  # what a kill in the middle of a write would leave
    assert run(tmp_path, "--only", "linear 3x3") == 0
    rows = table(tmp_path)
    assert rows[: len(left)] == left
    assert len({key(row) for row in rows}) == len(rows) == 8
    assert {row["status"] for row in rows} == {"ok"}


def test_no_group_is_begun_when_the_time_is_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, "--minutes", "0") == 0
    assert table(tmp_path) == []
    assert "are left to the next run" in capsys.readouterr().out


@pytest.mark.slow
def test_retry_measures_the_whole_group_of_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    only = ("--only", "DINOv3-B 1024x2048 linear 3x3")
    with monkeypatch.context() as broken:
        broken.setitem(kernel_implementations._OPERATORS["jetvit"], "linear", _raise(RuntimeError("no kernel")))
        run(tmp_path, *only)
    rows = {row["implementation"]: row for row in table(tmp_path)}
    assert (rows["jetvit"]["status"], rows["jetvit"]["reason"]) == ("unsupported", "RuntimeError: no kernel")
    assert rows["eager"]["status"] == "ok"
    run(tmp_path, *only)
    assert len(table(tmp_path)) == 4
    run(tmp_path, *only, "--retry")
    again = table(tmp_path)
    assert len(again) == 4
    assert {row["status"] for row in again} == {"ok"}
    assert len({row["run"] for row in again}) == 1


@pytest.mark.slow
def test_what_does_not_fit_in_memory_is_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        kernel_implementations._OPERATORS["jetvit"], "linear", _raise(torch.OutOfMemoryError("no room"))
    )
    only = ("--only", "DINOv3-B 1024x2048 linear 3x3")
    run(tmp_path, *only)
    before = table(tmp_path)
    assert {row["implementation"]: row["status"] for row in before}["jetvit"] == "out of memory"
    run(tmp_path, *only, "--retry")
    assert table(tmp_path) == before


def test_a_wrong_operator_is_not_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    operator = kernel_implementations._OPERATORS["jetvit"]["linear"]
    wrong = lambda *args: operator(*args) + 1  # noqa: E731
    monkeypatch.setitem(kernel_implementations._OPERATORS["jetvit"], "linear", wrong)
    run(tmp_path, "--only", "DINOv3-B 1024x2048 linear 3x3")
    row = next(row for row in table(tmp_path) if row["implementation"] == "jetvit")
    assert (row["status"], row["median_ms"]) == ("wrong", "")
    assert comparisons(table(tmp_path)) == []


def test_a_failed_check_is_the_exit_status(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.kernels.check.full_attention", lambda *args: torch.zeros_like(args[0]))
    monkeypatch.setattr(kernels, "measure_problems", lambda *args: None)
    assert run(tmp_path) == 1
    statuses = {row["check"].split()[0]: row["status"] for row in read_rows(tmp_path / "kernels-dry-checks.csv")}
    assert statuses == {"linear": "ok", "window": "ok", "full": "wrong"}


def test_what_cannot_be_meant_is_refused_before_anything_runs(tmp_path: Path, capsys) -> None:
    (tmp_path / "file").touch()
    for arguments, message in (
        (["--only", "nothing"], "none of the problems has it in its name; they are\n  DINOv3-B 1024x2048 full\n"),
        (["--out", str(tmp_path / "file")], "is not a folder"),
    ):
        with pytest.raises(SystemExit, match="2"):
            run(tmp_path / "out", *arguments)
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_lost_device_ends_the_run_after_its_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(device: torch.device, cause: Exception) -> None:
        raise DeviceLost("an illegal memory access")

    monkeypatch.setattr(kernel_group, "assert_device", lost)
    monkeypatch.setitem(kernel_implementations._OPERATORS["jetvit"], "linear", _raise(RuntimeError("illegal")))
    assert run(tmp_path, "--only", "DINOv3-B 1024x2048 linear 3x3") == 3
    assert [(row["implementation"], row["status"]) for row in table(tmp_path)] == [("jetvit", "unsupported")]


def test_an_unwritten_output_is_seen() -> None:
    def leaves_one_out(x: torch.Tensor) -> torch.Tensor:
        out = torch.empty_like(x)
        out[1:] = x[1:]
        return out

    x = torch.randn(8)
    assert verdict(Check("whole", "fp32", (x,), lambda x: x.clone(), lambda x: x)).right
    assert not verdict(Check("part", "fp32", (x,), leaves_one_out, lambda x: x)).right
    with poisoned_outputs():
        assert torch.empty(3).isnan().all()
    assert not torch.are_deterministic_algorithms_enabled()


def test_checks_cover_every_operator_dtype_and_head_dim() -> None:
    found = {tuple(check.name.split()[:3]) for check in checks(torch.device("cpu"))}
    assert found == {
        (operator, dtype, f"d{head_dim}")
        for operator in ("linear", "window", "full")
        for dtype in ("bf16", "fp16", "fp32")
        for head_dim in (32, 64, 80, 96, 128)
    }


def test_a_group_is_checked_where_no_window_divides_the_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def spy(*args):
        seen.append(args[5:8])
        return window_attention_reference(*args)

    monkeypatch.setitem(kernel_implementations._OPERATORS["jetvit"], "window", spy)
    small = problem("DINOv3-B", SMALL, WINDOW)
    inputs = make_inputs(small.shrunk(), torch.device("cpu"), torch.bfloat16)
    large = make_inputs(Problem(**{**vars(small), "num_heads": 1, "head_dim": 8}), torch.device("cpu"), torch.bfloat16)
    for each in (inputs, large):
        assert kernel_group._check_cropped(each, "jetvit").right
    assert seen == [(8, 16, 5), (44, 76, 5)]


def row_of(**change: object) -> dict[str, str]:
    known = {
        **{"model": "DINOv3-B", "size": "1024x2048", "mixer": "linear 3x3", "implementation": "jetvit"},
        **{"status": "ok", "median_ms": 0.03, "q25_ms": 0.03, "q75_ms": 0.03, "floor_ms": 0.02, "times_floor": 1.5},
        **{"dtype": "bf16", "device": "NVIDIA H100", "torch": "2.11", "triton": "3.6", "code": "abc", "run": "1"},
        **{"copy_tb_s": 3, "gemm_tflop_s": 700, "dry": False, "threads": 16, "jetvit": "0", "command": "python"},
    }
    return {name: str(value) for name, value in {**known, **change}.items()}


def test_goals_are_computed_from_rows_of_one_run() -> None:
    (met,) = comparisons([row_of(), row_of(implementation="eager", median_ms=0.15)])
    assert (met.floors, met.ratios, met.missed) == (pytest.approx(1.5), {"eager": pytest.approx(5)}, [])
    (slow,) = comparisons([row_of(median_ms=0.05), row_of(implementation="eager", median_ms=0.15)])
    assert slow.missed == ["> 2× floor", "3.0× over eager, not 4×"]
    (two_runs,) = comparisons([row_of(), row_of(implementation="eager", median_ms=0.15, run="2")])
    assert (two_runs.ratios, two_runs.missed) == ({}, None)
    (elsewhere,) = comparisons([row_of(size="2048x2048"), row_of(size="2048x2048", implementation="eager")])
    assert elsewhere.missed is None


def test_goals_are_those_of_a_device_that_has_some() -> None:
    eager = {"implementation": "eager", "median_ms": 0.15}
    for device, missed in (("NVIDIA H200", []), ("NVIDIA GH200 480GB", None), ("NVIDIA A100-SXM4-80GB", None)):
        (found,) = comparisons([row_of(device=device), row_of(device=device, **eager)])
        assert found.missed == missed


def test_devices_are_not_mixed() -> None:
    first, second = comparisons([row_of(), row_of(device="NVIDIA H200", median_ms=0.02)])
    assert (first.device, first.ours_ms, second.device, second.ours_ms) == ("NVIDIA H100", 0.03, "NVIDIA H200", 0.02)


def test_a_window_must_beat_every_rival() -> None:
    rivals = dict.fromkeys(("eager balanced", "compiled balanced", "flex", "flex reordered"), 1.5)
    assert Comparison("NVIDIA H100", "DINOv3-B", "1024x2048", "window 16", 0.04, 0.02, rivals).missed == []
    beaten = Comparison("NVIDIA H100", "DINOv3-B", "1024x2048", "window 16", 0.06, 0.02, {**rivals, "flex": 0.9}).missed
    assert beaten == ["> 2.5× floor", "0.9× over flex, not 1×"]


def test_the_report_reads_the_table_and_nothing_is_invented(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    block = "<!-- results:kernels -->\n<!-- end -->"
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    monkeypatch.setattr(report, "README", tmp_path / "README.md")
    assert "not measured yet" in report.render(block)
    written = Table(tmp_path / "nvidia-h100" / "2026-01-01" / "kernels.csv", COLUMNS, KEY)
    assert "not measured yet" in report.render(block)
    written.append([row_of(), row_of(implementation="eager", median_ms=0.15), row_of(model="DINOv3-L", status="wrong")])
    text = report.render(block)
    assert "| linear 3x3, DINOv3-B | 0.03 ms | 0.02 ms | **1.50** | 5.00× |  |  |  | met |" in text
    assert "DINOv3-L" not in text
    assert "**NVIDIA H100**" in text
    other = Table(tmp_path / "nvidia-a100" / "2026-01-01" / "kernels.csv", COLUMNS, KEY)
    other.append([row_of(device="NVIDIA A100", median_ms=0.06), row_of(implementation="eager", device="NVIDIA A100")])
    text = report.render(block)
    assert text.index("**NVIDIA A100**") < text.index("| 0.06 ms |") < text.index("**NVIDIA H100**")
    assert text.count("| met |") == 1  # no goal is set for an A100


def test_dropped_rows_are_gone_and_may_come_again(tmp_path: Path) -> None:
    written = Table(tmp_path / "t.csv", ("a", "b"), ("a",))
    written.append([{"a": 1, "b": "x, “y”"}, {"a": 2, "b": ""}])
    written.drop(lambda row: row["a"] == "1")
    assert written.rows() == [{"a": "2", "b": ""}]
    assert written.has({"a": 2})
    assert not written.has({"a": 1})
    assert [path.name for path in tmp_path.iterdir()] == ["t.csv"]


def _raise(error: Exception):
    def raising(*args: object) -> torch.Tensor:
        raise error

    return raising
