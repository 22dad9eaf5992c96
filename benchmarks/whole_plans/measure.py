"""How well the cost model predicts whole plans: their latency, their order, and which of them to choose.

With --measure, models under many plans are timed end to end first, and the runs are kept beside the latency table, from
where `jetvit` takes how operations add up on this device. A group (one model at one image size) that is there already
is passed over.

Each group is then predicted from the single operations of the table, with overheads fitted to the other groups alone:

* error: of the predicted latency of a plan, relative.
* spread: half the distance of the quartiles of the measurement itself, for comparison.
* spearman: rank correlation of predicted and measured latency, over the plans of a group.
* regret: how much slower than the fastest measured plan is the one that is predicted to be the fastest, among all
  plans whose loss is within a bound; over many bounds and losses. The loss of a choice at a block is made up, at random
  and larger for the cheaper choices, since random weights have no quality. "regret of 3": the three plans that are
  predicted to be the fastest are measured, and the fastest of those is taken.

    python -m benchmarks.whole_plans [--measure] [--table FILE] [-o FILE]
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.cost_model.measure import default_table
from benchmarks.results import default_path, environment, write_table
from benchmarks.whole_plans.plot import plot
from benchmarks.whole_plans.runs import CHOICES, CPU_GROUPS, GPU_GROUPS, measure_group
from jetvit import __version__
from jetvit.cost_model.measuring.measurement import this_machine
from jetvit.cost_model.measuring.runs import Mode, WholeRun, append_runs, read_runs, runs_path
from jetvit.cost_model.predicting.device_costs import DeviceCosts, fit_overheads
from jetvit.cost_model.predicting.estimate import Estimate, estimate

PLANS, PASSES = 32, 15
COMPILED_PLANS = 10
LOSSES, TOP = 20, 3
COLUMNS = ("mode", "group", "plans", "measured_share_pct", "mape_pct", "max_ape_pct", "sum_mape_pct", "spread_pct")
COLUMNS += ("spearman", "regret_pct", "worst_regret_pct", "regret_of_3_pct", "coverage_pct")
PROVENANCE = ("latencies_of", "table", "command", "date", "device", "threads", "python", "torch", "jetvit")


def measure(table: Path, device: torch.device, compiled: bool) -> None:
    """Time what is not among the runs of a table yet."""
    path, machine = runs_path(table), this_machine(device, __version__)
    mode: Mode = "compiled" if compiled else "eager"
    known = {(run.machine, run.model, run.mode) for run in (read_runs(path) if path.exists() else [])}
    for group in GPU_GROUPS if device.type == "cuda" else CPU_GROUPS:
        if (machine, str(group), mode) not in known:
            plans = COMPILED_PLANS if compiled else PLANS
            runs = measure_group(group, machine, device, plans=plans, passes=PASSES, compiled=compiled, progress=_say)
            append_runs(path, list(runs))


def predict(runs: Sequence[WholeRun], costs: DeviceCosts) -> dict[tuple[Mode, str], list[tuple[WholeRun, Estimate]]]:
    """By mode and group, every run with its estimate, whose overheads are fitted to the other groups of that mode."""
    groups = dict.fromkeys((run.mode, run.model) for run in runs)
    found = {}
    for mode, model in groups:
        others = [run for run in runs if run.mode == mode and run.model != model]
        overheads = fit_overheads(others, costs.latencies).get(mode)
        own = [run for run in runs if (run.mode, run.model) == (mode, model)]
        if overheads is not None:
            found[mode, model] = [(run, estimate(run.operations, costs.latencies, overheads)) for run in own]
    return found


def figures(rated: Sequence[tuple[WholeRun, Estimate]]) -> dict[str, Any]:
    """The figures of one group."""
    from scipy.stats import spearmanr

    measured = np.array([run.latency.median_ms for run, _ in rated])
    predicted = np.array([each.ms for _, each in rated])
    plain = np.array([sum(part.count * part.answer.ms for part in each.parts) for _, each in rated])
    error = np.abs(predicted / measured - 1) * 100
    inside = [each.low <= run.latency.median_ms <= each.high for run, each in rated]
    spread = [(run.latency.q75_ms - run.latency.q25_ms) / 2 / run.latency.median_ms * 100 for run, _ in rated]
    first, of_top = regrets([run.plan.split() for run, _ in rated], measured, predicted)
    return {
        "plans": len(rated),
        "measured_share_pct": round(100 * float(np.mean([each.measured_share for _, each in rated])), 1),
        "mape_pct": round(float(error.mean()), 2),
        "max_ape_pct": round(float(error.max()), 2),
        "sum_mape_pct": round(float(np.abs(plain / measured - 1).mean() * 100), 2),
        "spread_pct": round(float(np.mean(spread)), 2),
        "spearman": round(float(spearmanr(predicted, measured).statistic), 4),
        "regret_pct": round(100 * float(first.mean()), 2),
        "worst_regret_pct": round(100 * float(first.max()), 2),
        "regret_of_3_pct": round(100 * float(of_top.mean()), 2),
        "coverage_pct": round(100 * float(np.mean(inside)), 1),
    }


def regrets(plans: Sequence[Sequence[str]], measured: np.ndarray, predicted: np.ndarray) -> tuple[np.ndarray, ...]:
    """The regret of the plan that is predicted to be the fastest within a bound, and of the best of `TOP` such.

    By made-up losses and bounds, [LOSSES * bounds]; bounds that leave one plan alone tell nothing and are left out.
    """
    first, of_top = [], []
    for seed in range(LOSSES):
        loss = made_up_losses(plans, seed)
        for bound in np.unique(loss):
            within = np.flatnonzero(loss <= bound)
            if len(within) < 2:
                continue
            fastest = within[np.argsort(predicted[within], kind="stable")]
            best = measured[within].min()
            first.append(measured[fastest[0]] / best - 1)
            of_top.append(measured[fastest[:TOP]].min() / best - 1)
    return np.array(first), np.array(of_top)


def made_up_losses(plans: Sequence[Sequence[str]], seed: int) -> np.ndarray:
    """A loss a plan: of every block a random weight times that of its choice, which grows along `CHOICES`."""
    rng = np.random.default_rng(seed)
    weight = rng.exponential(size=len(plans[0]))
    harm = dict(zip(CHOICES, (0.0, 1.0, 0.5, 3.0, 2.0), strict=True))
    return np.array([sum(w * harm[name] for w, name in zip(weight, plan, strict=True)) for plan in plans])


def summary(rated: dict[tuple[Mode, str], list[tuple[WholeRun, Estimate]]]) -> Iterator[dict[str, Any]]:
    """The figures of every group, and their means by mode; of a worst figure the worst."""
    by_mode: dict[str, list[dict[str, Any]]] = {}
    for (mode, model), some in rated.items():
        row = {"mode": mode, "group": model, **figures(some)}
        by_mode.setdefault(mode, []).append(row)
        yield row
    for mode, rows in by_mode.items():
        total: dict[str, Any] = {"mode": mode, "group": "all", "plans": sum(row["plans"] for row in rows)}
        for name in COLUMNS[3:]:
            values = [row[name] for row in rows]
            total[name] = round(
                float(max(values) if name in ("max_ape_pct", "worst_regret_pct") else np.mean(values)), 4
            )
        yield total


def main(argv: Sequence[str] | None = None) -> int:
    """Measure if asked to, predict, print and write the figures; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=Path, help="a table of `jetvit measure`; by default one of the package's own")
    parser.add_argument("--measure", action="store_true", help="time the groups that are not among the table's runs")
    parser.add_argument("--device", default="cpu", help="of --measure: cpu or cuda (default: cpu)")
    parser.add_argument("-o", "--output", type=Path, help="result file; by default under benchmarks/results")
    args = parser.parse_args(argv)
    table = args.table or default_table()
    if args.measure:
        for compiled in (False, True):
            measure(table, torch.device(args.device), compiled)
    costs = DeviceCosts.load(table)
    runs = [run for run in read_runs(runs_path(table)) if run.machine == costs.machine]
    rated = predict(runs, costs)
    rows = list(summary(rated))
    for row in rows:
        print("  ".join(f"{column} {row[column]}" for column in COLUMNS), flush=True)
    provenance = {**environment(), "latencies_of": str(costs.machine), "table": table.name}
    output = args.output or default_path("whole_plans").with_suffix(".csv")
    write_table(output, (*COLUMNS, *PROVENANCE), ({**row, **provenance} for row in rows))
    picture = output.with_suffix(".png")
    plot(rated, made_up_losses, str(costs.machine), picture)
    print(f"wrote {picture}")
    return 0


def _say(text: str) -> None:
    print(text, flush=True)
