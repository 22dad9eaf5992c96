"""`DeviceCosts`: all that is known of what graphs cost on one machine, read from its latency table and whole runs."""

from __future__ import annotations

import hashlib
import logging
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from jetvit.cost_model.measuring.graph_operations import GraphOperations
from jetvit.cost_model.measuring.measurement import Machine, Measurement
from jetvit.cost_model.measuring.runs import Mode, WholeRun, read_runs, runs_path
from jetvit.cost_model.measuring.table import read_table
from jetvit.cost_model.predicting.estimate import Estimate, Overheads, Run, estimate
from jetvit.cost_model.predicting.latencies import Latencies, UnknownLatency
from jetvit.cost_model.predicting.predictor import Predictor
from jetvit.patterns.errors import InputError

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class DeviceCosts:
    """The latencies of single operations on one machine, and how they add up to whole graphs by mode.

    overheads: of the modes of which runs enough were measured; a graph of another mode is estimated by the plain sum.
    """

    machine: Machine
    latencies: Latencies
    overheads: Mapping[Mode, Overheads]

    @classmethod
    def load(cls, table: str | os.PathLike[str]) -> DeviceCosts:
        """From a table of `jetvit measure`, with what lies beside it: the predictor that `jetvit fit` wrote and runs.

        Of several versions of one device (torch, driver, …) the one that was measured last counts. Without a predictor
        of just these rows one is fitted, which needs scikit-learn and takes seconds.

        Raises InputError for a file that cannot be read, with its line, and for a table without rows.
        """
        rows = latest(read_table(table))
        if not rows:
            raise InputError(f"the latency table {table} has no rows", do="fill it: jetvit measure")
        machine = rows[0].machine
        runs = read_runs(runs_path(table)) if runs_path(table).exists() else []
        latencies = Latencies(rows, predictor) if (predictor := stored_predictor(table)) else Latencies.fit(rows)
        return cls(machine, latencies, fit_overheads([run for run in runs if run.machine == machine], latencies))

    def estimate(self, operations: GraphOperations, mode: Mode = "compiled") -> Estimate:
        """The latency of a graph. Raises UnknownLatency for an operation that nothing is known of."""
        return estimate(operations, self.latencies, self.overheads.get(mode))


def latest(measurements: Sequence[Measurement]) -> list[Measurement]:
    """The rows of the machine that the last row is of."""
    return [each for each in measurements if each.machine == measurements[-1].machine]


def fit_overheads(runs: Sequence[WholeRun], latencies: Latencies) -> dict[Mode, Overheads]:
    """Fit how the operations add up, by mode; a mode whose runs do not tell is left out, and the log says why.

    The error is that on models that were left out of the fit, each once.
    """
    by_mode: dict[Mode, dict[str, list[Run]]] = {}
    for run in runs:
        try:
            sum_ms = estimate(run.operations, latencies).ms
        except UnknownLatency as error:
            log.info("a run of %s is left out: %s", run.model, error)
            continue
        measured = Run(sum_ms, run.operations.launches, run.latency.median_ms)
        by_mode.setdefault(run.mode, {}).setdefault(run.model, []).append(measured)
    found: dict[Mode, Overheads] = {}
    for mode, by_model in by_mode.items():
        try:
            fitted = Overheads.fit([run for some in by_model.values() for run in some])
        except ValueError as error:
            log.info("%s runs are added up plainly: %s", mode, error)
            continue
        found[mode] = replace(fitted, error=_error(by_model, fitted))
    return found


def _error(by_model: Mapping[str, Sequence[Run]], fitted: Overheads) -> float:
    """The 90 % quantile of |log(predicted / measured)| as a ratio less 1, of models that are left out."""
    errors = []
    for model, own in by_model.items():
        try:
            overheads = Overheads.fit([run for name, some in by_model.items() if name != model for run in some])
        except ValueError:  # too few are left: an error that the fit has seen is better than none
            log.info("without %s the runs do not tell how operations add up", model)
            overheads = fitted
        errors += [abs(math.log(overheads.apply(run.sum_ms, run.launches) / run.measured_ms)) for run in own]
    return math.expm1(float(np.quantile(errors, 0.9)))


def predictor_path(table: str | os.PathLike[str]) -> Path:
    """Return the path of the predictor of a table: beside it."""
    return Path(table).with_suffix(".npz")


def digest(table: str | os.PathLike[str]) -> str:
    """The sha256 of a table, by which a predictor knows it."""
    return hashlib.sha256(Path(table).read_bytes()).hexdigest()


def stored_predictor(table: str | os.PathLike[str]) -> Predictor | None:
    """The predictor beside a table, if it was fitted to just that table."""
    path = predictor_path(table)
    if not path.exists():
        return None
    try:
        predictor = Predictor.load(path)
    except (ValueError, OSError) as error:
        log.warning("%s is left aside: %s", path, error)
        return None
    if predictor.fitted_to != digest(table):
        log.warning("%s was fitted to another state of %s: jetvit fit makes a new one", path, table)
        return None
    return predictor


def shipped_tables() -> dict[str, Path]:
    """The latency tables that come with the package, by their names without .csv."""
    return {path.stem: path for path in sorted((Path(__file__).parent.parent / "data").glob("*.csv"))}


def find_table(name: str | os.PathLike[str]) -> Path:
    """A table by its path, or one that comes with the package by its name. Raises InputError where there is none."""
    path, shipped = Path(name), shipped_tables()
    if not path.is_file() and str(name) in shipped:
        return shipped[str(name)]
    if not path.exists():
        raise InputError(
            f"no latency table {name}", do=f"make one with jetvit measure, or take one of: {', '.join(shipped)}"
        )
    return path
