"""The README's table of training-free plans."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jetvit.patterns.wording import counted


def calibrate_lines(record: Mapping[str, Any]) -> list[str]:
    """The rows of the plans in one result of `benchmarks.calibrate`, and a sentence on what they took."""
    lines = [
        "| plan | compiled full | compiled jetvit | ratio (95 % interval) | drift, other images | drift, other film |",
        "|---|---|---|---|---|---|",
    ]
    for name, plan in record["plans"].items():
        bench = plan["bench"]
        columns = {column["name"]: column for column in bench["columns"]}
        full, ours = columns["compiled, full"]["median_ms"], columns["compiled, jetvit"]["median_ms"]
        choices = ", ".join(f"{count} × {label}" for label, count in bench["choices"].items())
        lines.append(
            f"| {name}: {choices} | {full:.0f} ms | {ours:.0f} ms | **{bench['ratio']:.2f}×** "
            f"({bench['ratio_low']:.2f}–{bench['ratio_high']:.2f}) | {plan['drift']:.2f} | "
            f"{plan['drift_other_film']:.2f} |"
        )
    made, plain = (record["plans"][name]["provenance"] for name in ("calibrated", "calibrated without a refit"))
    return [
        *lines,
        "",
        f"The calibration with a refit took {made['calibration_seconds'] / 60:.1f} minutes and fitted on "
        f"{counted(made['images_fitted'], 'image')}; the one without took {plain['calibration_seconds'] / 60:.1f}. "
        f"Each drift is over {counted(record['plans']['calibrated']['images'], 'image')}.",
    ]
