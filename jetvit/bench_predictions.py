"""Predictions of a latency table for the columns of `bench`, beside the measurements."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch.export import ExportedProgram

from jetvit.cost_model.measuring.runs import Mode
from jetvit.cost_model.predicting.device_costs import DeviceCosts
from jetvit.cost_model.predicting.latencies import UnknownLatency
from jetvit.search.calibration.whole_model import estimate_program, refuse_open_sizes


@dataclass(frozen=True)
class PredictedColumn:
    """The predicted latency of one column in ms a batch, its interval, and how far off it is.

    `deviation`: of the measured median, 0.04 where the prediction is 4 % above it. `extrapolated`: beyond the sizes
    that the table holds.
    """

    ms: float
    low: float
    high: float
    deviation: float
    extrapolated: bool

    def __str__(self) -> str:
        mark = "*" if self.extrapolated else ""
        return f"{digits(self.ms)} [{digits(self.low)}–{digits(self.high)}]{mark}"


@dataclass(frozen=True)
class Predictions:
    """The predictions of a table.

    `machine` and `torch` are those of the table. `columns`: by name, those that can be predicted. `ratio`: of the
    predicted latencies of two columns, None where one is not known. `unknown`: why columns are missing. `overheads`:
    whether whole runs of the table tell how compiled operations add up; else a prediction is their plain sum.
    """

    machine: str
    torch: str
    columns: Mapping[str, PredictedColumn]
    ratio: float | None
    unknown: str
    overheads: bool

    def lines(self, ratio: float, torch: str) -> Iterator[str]:
        """Sentences for below the columns; `ratio` was measured, by this version of `torch`."""
        if self.ratio is not None:
            yield f"predicted {self.ratio:.2f}×, measured {ratio:.2f}×"
        if self.unknown:
            yield f"not predicted: {self.unknown}"
        if self.columns:
            here = "" if torch == self.torch else f"; this is torch {torch}"
            yield f"predicted by the table of {self.machine}, torch {self.torch}, with 90 % intervals{here}"
        if self.columns and not self.overheads:
            yield "they are plain sums of operations: the table has no compiled runs of whole models"
        if any(column.extrapolated for column in self.columns.values()):
            yield "* beyond the sizes that the table holds: the interval promises nothing there"


def predict(
    costs: DeviceCosts,
    programs: Mapping[str, tuple[ExportedProgram, Mode]],
    measured_ms: Mapping[str, float],
    ratio_of: tuple[str, str],
) -> Predictions:
    """Predict columns.

    Args:
        costs: the latency table of a device.
        programs: by the name of a column, what it runs and how.
        measured_ms: the median latency by the name of a column.
        ratio_of: the columns whose latencies are compared, the first over the second.
    """
    columns: dict[str, PredictedColumn] = {}
    unknown = ""
    for name, (program, mode) in programs.items():
        try:
            refuse_open_sizes(program)
            found = estimate_program(program, costs, mode)
        except UnknownLatency as error:
            unknown = unknown or f"{name}: {error}"
            continue
        deviation = found.ms / measured_ms[name] - 1
        columns[name] = PredictedColumn(found.ms, found.low, found.high, deviation, found.extrapolated)
    first, second = (columns.get(name) for name in ratio_of)
    ratio = first.ms / second.ms if first is not None and second is not None and second.ms else None
    overheads = "compiled" in costs.overheads
    return Predictions(str(costs.machine), costs.machine.torch, columns, ratio, unknown, overheads)


def digits(value: float) -> str:
    """Three or four significant digits: all that a latency is good for."""
    return f"{value:.0f}" if value >= 1000 else f"{value:.4g}"
