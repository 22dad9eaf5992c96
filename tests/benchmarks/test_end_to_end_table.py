"""The end-to-end rows beside the paper's figures."""

from __future__ import annotations

from typing import Any

from benchmarks.end_to_end_models import MODELS
from benchmarks.end_to_end_table import MISSING, PAPER, compared, latency_table, throughput_table


def row(variant: str, ms: float, ratio: str, **more: Any) -> dict[str, str]:
    known = {"model": "DINOv3-L", "size": "1024x2048", "batch": "1", "status": "ok", "dry": "False"}
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


def test_nothing_is_estimated_where_nothing_is_measured() -> None:
    for table in (latency_table([]), throughput_table([])):
        for model in PAPER:
            cells = line(table, model)
            assert cells.count(MISSING) == len(cells) - (3 if table == latency_table([]) else 2)
    assert line(latency_table([]), "DINOv3-L")[:2] == ["DINOv3-L, 1024×2048", "35.07 → 18.77 ms"]


def test_ratios_are_over_the_fastest_full_attention_that_is_right() -> None:
    here = compared(ROWS, "DINOv3-L", "1024x2048", 1)
    assert here.best_full == "compiled cudnn"
    assert here.best_hybrid == "hybrid 2 FA"
    assert here.speedup("hybrid 2 FA", "compiled cudnn") == 2.0  # of the ratios, for 26 and 13 ms are of other minutes
    cells = line(latency_table(ROWS), "DINOv3-L")
    assert cells[2:6] == ["36 ms", "26 ms (compiled cudnn)", "17 ms", "**13 ms**"]
    assert cells[7:] == ["**2.00×**", "≤ 14 ms, ≥ 1.7×: met"]


def test_a_goal_is_missed_by_the_ratio_alone() -> None:
    rows = [row("compiled", 20.0, ""), row("hybrid 2 FA", 13.0, "1.5")]
    assert line(latency_table(rows), "DINOv3-L")[-1].endswith("missed")


def test_small_shapes_meet_no_goal() -> None:
    rows = [each | {"dry": "True", "size": "80x112"} for each in ROWS]
    cells = line(latency_table(rows), "DINOv3-L")
    assert cells[5] == "**13 ms**"
    assert cells[-1] == "≤ 14 ms, ≥ 1.7×"


def test_throughput_is_that_of_the_best_batch() -> None:
    more = [
        row("compiled", 100.0, "", batch=4, images_per_s=40),
        row("hybrid 2 FA", 50.0, "2", batch=4, images_per_s=80),
    ]
    cells = line(throughput_table([*ROWS, *more]), "DINOv3-L")
    assert cells[2:] == ["40 img/s (batch 4)", "80 img/s (batch 4)", "**2.00×**"]
