"""How well the cost model predicts operations that it has not seen, on the latency table of one device.

The table is one that `jetvit measure` wrote; every kernel (op, dtype and backend) has a model of its own.

* noise: how far the measurements of one operation, in passes minutes apart, lie from their median on average. What is
  learned and predicted is that median.
* in range: rows at random, in five parts, each predicted from the other four.
* family: each family of shapes is left out once, all its batches and grids.
* model: all that one of the models alone calls is left out.
* 2x: learn up to half of the most tokens, and predict beyond.

    python -m benchmarks.cost_model [--table FILE] [-o FILE]
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cost_model.gemm import errors
from benchmarks.cost_model.plot import plot
from benchmarks.results import default_path, environment, write_table
from jetvit.cost_model.measuring.measurement import Measurement
from jetvit.cost_model.measuring.operation import Operation
from jetvit.cost_model.measuring.sweep import MLP_RATIO, MODELS, SMALL_MODELS, ModelShape
from jetvit.cost_model.measuring.table import read_table
from jetvit.cost_model.predicting.conformal import MIN_ROWS
from jetvit.cost_model.predicting.device_costs import latest, shipped_tables
from jetvit.cost_model.predicting.kernel_model import KernelModel, calibrate_kernel
from jetvit.cost_model.predicting.predictor import by_kernel
from jetvit.cost_model.predicting.roofline import Device

PARTS = 5
COLUMNS = ("experiment", "op", "test_rows", "mape_pct", "median_ape_pct", "spearman")
COLUMNS += ("flagged_pct", "coverage_pct", "width_pct", "roofline_mape_pct")
PROVENANCE = ("latencies_of", "table", "table_rows", "table_sha256", "command", "date", "device", "threads")
PROVENANCE += ("python", "torch", "jetvit", "numpy")

# One held-out row: its experiment, operation, true and predicted log ms, those of the roofline alone, whether it was
# flagged as extrapolated, and the half width of its interval in log ms (NaN where none was made).
Held = tuple[str, Operation, float, float, float, bool, float]


class Rows:
    """The rows of one kernel: operations, each once, and their log ms [n]."""

    def __init__(self, latencies: dict[Operation, float], device: Device):
        self.operations = sorted(latencies, key=lambda operation: tuple(vars(operation).values()))
        self.log_ms = np.log([latencies[operation] for operation in self.operations])
        self.device = device

    def held_out(self, experiment: str, test: np.ndarray, calibrated: bool = False) -> Iterator[Held]:
        """Learn from all other rows, and predict those where `test` [n] is true; nothing if too few are left."""
        train = np.flatnonzero(~test)
        known = [self.operations[row] for row in train]
        if not test.any() or len(known) < MIN_ROWS:
            return
        model = KernelModel.fit(known, self.log_ms[train], self.device)
        width = calibrate_kernel(known, self.log_ms[train], self.device).half_width if calibrated else np.nan
        asked = [self.operations[row] for row in np.flatnonzero(test)]
        columns = (self.log_ms[test], model.log_ms(asked), model.roofline_log_ms(asked), model.is_extrapolated(asked))
        for operation, true, predicted, roofline, flagged in zip(asked, *columns, strict=True):
            yield experiment, operation, float(true), float(predicted), float(roofline), bool(flagged), width


def in_range(rows: Rows) -> Iterator[Held]:
    """Five parts at random."""
    part = np.random.default_rng(0).permutation(len(rows.operations)) % PARTS
    for number in range(PARTS):
        yield from rows.held_out("in range", part == number)


def family(rows: Rows) -> Iterator[Held]:
    """Every family once."""
    names = np.array([operation.family for operation in rows.operations])
    for name in sorted(set(names)):
        yield from rows.held_out("family", names == name, calibrated=True)


def model(rows: Rows) -> Iterator[Held]:
    """Every model's own widths once."""
    for shape in (*MODELS.values(), *SMALL_MODELS.values()):
        test = np.array([_is_of(operation, shape) for operation in rows.operations])
        if not test.all():
            yield from rows.held_out("model", test)


def twice(rows: Rows) -> Iterator[Held]:
    """The upper half of the range of tokens."""
    tokens = np.array([operation.rows for operation in rows.operations])
    yield from rows.held_out("2x", tokens > tokens.max() / 2)


EXPERIMENTS = (in_range, family, model, twice)


def _is_of(operation: Operation, shape: ModelShape) -> bool:
    """Whether a block of the model calls an operation of these sizes."""
    if operation.heads:
        return (operation.heads, operation.head_dim) == (shape.heads, shape.head_dim)
    hidden = MLP_RATIO * shape.width
    if operation.op == "gemm":
        return min(operation.inputs, operation.outputs) == shape.width
    return operation.inputs == (hidden if operation.op == "gelu" else shape.width)


def held_out(measurements: Sequence[Measurement]) -> list[Held]:
    """All experiments on one machine's measurements."""
    machine = measurements[0].machine
    device = Device(machine.device, machine.multiprocessors)
    latencies = by_kernel(
        [each.operation.key for each in measurements], [each.latency.median_ms for each in measurements]
    )
    kernels = [Rows(dict(rows), device) for rows in latencies.values()]
    return [held for experiment in EXPERIMENTS for rows in kernels for held in experiment(rows)]


def summary(held: Sequence[Held]) -> list[dict[str, Any]]:
    """The figures of each experiment, by op and over all."""
    groups: dict[tuple[str, str], list[Held]] = {}
    for row in held:
        for op in ("all", row[1].op):
            groups.setdefault((row[0], op), []).append(row)
    return [{"experiment": experiment, "op": op, **_figures(group)} for (experiment, op), group in groups.items()]


def _figures(group: Sequence[Held]) -> dict[str, Any]:
    true, predicted, roofline, flagged, width = (np.array([row[place] for row in group]) for place in range(2, 7))
    found = errors(predicted, true)
    figures = {
        "test_rows": len(group),
        "mape_pct": round(found["mape_pct"], 2),
        "median_ape_pct": round(found["median_ape_pct"], 2),
        "spearman": round(found["spearman"], 4),
        "flagged_pct": round(float(flagged.mean() * 100), 1),
        "roofline_mape_pct": round(errors(roofline, true)["mape_pct"], 2),
    }
    if np.isfinite(width).all():
        figures["coverage_pct"] = round(float((np.abs(predicted - true) <= width).mean() * 100), 1)
        figures["width_pct"] = round(float((np.exp(width) - np.exp(-width)).mean() * 100), 1)
    return figures


def noise(measurements: Sequence[Measurement]) -> Iterator[dict[str, Any]]:
    """The mean distance of repeated measurements from their median, by op and over all; of one measurement none."""
    repeated: dict[Operation, list[float]] = {}
    for each in measurements:
        repeated.setdefault(each.operation, []).append(each.latency.median_ms)
    groups: dict[str, list[float]] = {}
    for operation, values in repeated.items():
        if len(values) > 1:
            distance = float(np.abs(np.array(values) / np.median(values) - 1).mean() * 100)
            for op in ("all", operation.op):
                groups.setdefault(op, []).append(distance)
    for op, distances in groups.items():
        figures = {"mape_pct": round(float(np.mean(distances)), 2)}
        figures["median_ape_pct"] = round(float(np.median(distances)), 2)
        yield {"experiment": "noise", "op": op, "test_rows": len(distances), **figures}


def default_table() -> Path:
    """Return the first table that comes with the package."""
    return next(iter(shipped_tables().values()))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the experiments, print and write their figures; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=Path, help="a table of `jetvit measure`; by default one of the package's own")
    parser.add_argument("-o", "--output", type=Path, help="result file; by default under benchmarks/results")
    args = parser.parse_args(argv)
    path = args.table or default_table()
    measurements = latest(read_table(path))
    machine = measurements[0].machine
    held = held_out(measurements)
    rows = [*noise(measurements), *summary(held)]
    for row in rows:
        if row["op"] == "all":
            print("  ".join(f"{column} {row[column]}" for column in COLUMNS if column in row), flush=True)
    provenance = {**environment(), "numpy": np.__version__, "latencies_of": str(machine), "table": path.name}
    provenance["table_rows"] = len(measurements)
    provenance["table_sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    output = args.output or default_path("cost_model").with_suffix(".csv")
    write_table(output, (*COLUMNS, *PROVENANCE), ({**row, **provenance} for row in rows))
    picture = output.with_suffix(".png")
    plot(held, str(machine), picture)
    print(f"wrote {picture}")
    return 0
