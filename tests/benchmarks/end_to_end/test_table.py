"""The end-to-end rows beside the paper's figures."""

from __future__ import annotations

from typing import Any

from benchmarks.end_to_end.models import MODELS
from benchmarks.end_to_end.table import (
    GOALS,
    MISSING,
    PAPER,
    compared,
    end_to_end_lines,
    latency_table,
    throughput_table,
)


def row(variant: str, ms: float, ratio: str, **more: Any) -> dict[str, str]:
    known = {"model": "DINOv3-L", "size": "1024x2048", "batch": "1", "status": "ok", "dry": "False"}
    known["device"] = "NVIDIA H100 80GB HBM3"
    timed = {"variant": variant, "median_ms": f"{ms}", "ratio": ratio, "images_per_s": f"{1e3 / ms:.4g}"}
    return {**known, **timed, **{name: str(value) for name, value in more.items()}}


ROWS = [
    row("compiled", 30.0, ""),
    row("eager flash", 36.0, "0.85"),
    row("compiled cudnn", 26.0, "1.2"),
    row("compiled flash", 20.0, "", status="wrong"),
    row("hybrid 2 FA", 13.0, "2.4"),
    row("hybrid 2 FA plain", 17.0, "1.8"),
]


def line(table: str, model: str) -> list[str]:
    (found,) = (each for each in table.splitlines() if each.startswith(f"| {model}"))
    return [cell.strip() for cell in found.strip("|").split(" | ")]


def test_every_model_that_is_timed_has_a_line() -> None:
    assert PAPER.keys() == MODELS.keys()
    assert all(goals.keys() == MODELS.keys() for goals in GOALS.values())


def test_nothing_is_estimated_where_nothing_is_measured() -> None:
    assert end_to_end_lines([]) == [MISSING]
    assert latency_table([]) == throughput_table([]) == MISSING
    for table, known in ((latency_table(ROWS), 3), (throughput_table(ROWS), 2)):
        cells = line(table, "DINOv3-7B")
        assert cells.count(MISSING) == len(cells) - known
    assert line(latency_table(ROWS), "DINOv3-L")[:2] == ["DINOv3-L, 1024×2048", "35.07 → 18.77 ms"]


def test_goals_are_those_of_the_device_of_the_rows() -> None:
    def table(device: str) -> str:
        return latency_table([{**row, "device": device} for row in ROWS])

    assert line(table("NVIDIA H100 80GB HBM3"), "DINOv3-L")[-1] == "≤ 14 ms: met"
    assert line(table("NVIDIA H200"), "DINOv3-L")[-1] == "≤ 11 ms, ≥ 2×: missed"
    assert line(table("NVIDIA H200"), "DINOv3-B")[-1] == "≤ 4.2 ms"
    for device in ("NVIDIA A100-SXM4-80GB", "NVIDIA GH200 480GB"):
        assert "goal" not in table(device)
        assert "≤" not in table(device)
        assert line(table(device), "DINOv3-L")[-1] == "**2.00×**"


def test_tables_name_their_device() -> None:
    assert end_to_end_lines(ROWS)[0] == "**NVIDIA H100 80GB HBM3**"
    assert "paper, on an H100" in end_to_end_lines(ROWS)[2]


def test_ratios_are_over_the_fastest_full_attention_that_is_right() -> None:
    here = compared(ROWS, "DINOv3-L", "1024x2048", 1)
    assert here.best_full == "compiled cudnn"
    assert here.best_hybrid == "hybrid 2 FA"
    assert here.speedup("hybrid 2 FA", "compiled cudnn") == 2.0  # of the ratios, for 26 and 13 ms are of other minutes
    cells = line(latency_table(ROWS), "DINOv3-L")
    assert cells[2:6] == ["36 ms", "26 ms (compiled cudnn)", "17 ms", "**13 ms**"]
    assert cells[7:] == ["**2.00×**", "≤ 14 ms: met"]


def test_a_goal_is_missed_by_the_ratio_alone() -> None:
    rows = [row("compiled", 20.0, ""), row("hybrid 2 FA", 10.0, "1.9")]
    rows = [{**each, "device": "NVIDIA H200"} for each in rows]
    assert line(latency_table(rows), "DINOv3-L")[-1].endswith("missed")


def test_small_shapes_meet_no_goal() -> None:
    rows = [each | {"dry": "True", "size": "80x112"} for each in ROWS]
    cells = line(latency_table(rows), "DINOv3-L")
    assert cells[5] == "**13 ms**"
    assert cells[-1] == "≤ 14 ms"


def test_throughput_is_that_of_the_best_batch() -> None:
    more = [
        row("compiled", 100.0, "", batch=4, images_per_s=40),
        row("hybrid 2 FA", 50.0, "2", batch=4, images_per_s=80),
    ]
    cells = line(throughput_table([*ROWS, *more]), "DINOv3-L")
    assert cells[2:] == ["40 img/s (batch 4)", "80 img/s (batch 4)", "**2.00×**"]
