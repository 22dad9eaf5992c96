"""How well the latency model predicts linear layers that it has not seen, on a public table of GEMM latencies.

The table has columns m, n, k, model, median_ms and repeats; the default is h100_gemm_bf16.csv in the folder that
JETVIT_DATA names (an H100, bf16, linear layers of four language models). It is other people's data: only summary
figures are written here. Equal m, n, k are merged by their median first, so that no call is in both halves of a split.

* curve: random rows to learn from, other random rows to test on; beside it the fitted roofline alone, and trees that
  know m, n and k but no roofline.
* extrapolation: learn from the lower half of m, test on the upper.
* families, models: families (n, k) are left out, seven at a time, or all that occur in two of the language models; with
  the coverage and width of 90 % intervals that are calibrated by held-out families, and by rows held out at random.

Trees were chosen on the rows of one language model, but the form of the model (roofline, features, envelope) was
explored on random splits of this same table: the figures are a little kinder than those of a table never looked at.

    python -m benchmarks.cost_model.gemm [--data FILE] [--experiments NAME ...] [-o FILE]
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.results import default_path, environment, write_table
from jetvit.cost_model.measuring.operation import Operation
from jetvit.cost_model.predicting.kernel_model import KernelModel, calibrate_kernel
from jetvit.cost_model.predicting.roofline import Device
from jetvit.cost_model.predicting.trees import Forest

DEVICE = Device("NVIDIA H100", 132)  # What the table was measured on.
CURVE, SEEDS, TEST_ROWS = (100, 200, 500, 1500), 3, 4000
LEFT_OUT_ROWS = 800  # To learn from where families are left out; intervals need ten more fits of them.
FAMILY_FOLDS = 7
FIGURES = ("mape_pct", "median_ape_pct", "spearman", "flagged_pct", "coverage_pct", "width_pct")
# Over the families of a split: the lowest coverage of one, and how many have at least 85 %.
FIGURES += ("coverage_worst_pct", "families_85_pct")
COLUMNS = ("experiment", "method", "train_rows", "test_rows", "splits", *FIGURES)
PROVENANCE = (
    "latencies_of",
    "data_sha256",
    "command",
    "date",
    "device",
    "threads",
    "python",
    "torch",
    "jetvit",
    "sklearn",
    "numpy",
)


@dataclass(frozen=True)
class Table:
    """Distinct calls, their median log ms [n], and for each the language models that it occurs in."""

    operations: list[Operation]
    log_ms: np.ndarray
    models: list[frozenset[str]]

    def pick(self, rows: np.ndarray) -> list[Operation]:
        """The operations at places."""
        return [self.operations[row] for row in rows]


def read_table(path: Path) -> Table:
    """Read and merge a table. Raises ValueError for a file without its columns or rows."""
    samples: dict[tuple[int, int, int], list[float]] = {}
    models: dict[tuple[int, int, int], set[str]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if missing := {"m", "n", "k", "model", "median_ms"} - set(reader.fieldnames or ()):
            raise ValueError(f"{path} has no column {', '.join(sorted(missing))}")
        for row in reader:
            key = int(row["m"]), int(row["n"]), int(row["k"])
            samples.setdefault(key, []).append(float(row["median_ms"]))
            models.setdefault(key, set()).add(row["model"])
    if not samples:
        raise ValueError(f"{path} has no rows")
    keys = sorted(samples)
    return Table(
        [Operation("gemm", "bfloat16", 1, 1, m, inputs=k, outputs=n) for m, n, k in keys],
        np.log([np.median(samples[key]) for key in keys]),
        [frozenset(models[key]) for key in keys],
    )


def errors(predicted: np.ndarray, true: np.ndarray) -> dict[str, float]:
    """Figures of predicted and true log ms."""
    from scipy.stats import spearmanr

    apart = np.abs(np.exp(predicted - true) - 1) * 100
    rank = float(spearmanr(predicted, true).statistic)
    return {"mape_pct": float(apart.mean()), "median_ape_pct": float(np.median(apart)), "spearman": rank}


def without_roofline(table: Table, train: np.ndarray, test: np.ndarray) -> np.ndarray:
    """What the same trees predict from m, n and k alone."""
    sizes = np.log([[x.rows, x.outputs, x.inputs] for x in table.operations])
    return Forest.fit(sizes[train], table.log_ms[train])(sizes[test])


def curve(table: Table) -> Iterator[dict[str, Any]]:
    """One row for each method, number of rows and seed."""
    for rows, seed in itertools.product(CURVE, range(SEEDS)):
        order = np.random.default_rng(seed).permutation(len(table.log_ms))
        yield from _compare(table, "curve", order[:rows], order[rows : rows + TEST_ROWS])


def extrapolation(table: Table) -> Iterator[dict[str, Any]]:
    """Learn up to half of the largest m, and test beyond."""
    m = np.array([x.rows for x in table.operations])
    below, beyond = np.flatnonzero(m <= m.max() / 2), np.flatnonzero(m > m.max() / 2)
    for seed in range(SEEDS):
        train = np.random.default_rng(seed).permutation(below)[: CURVE[-1]]
        yield from _compare(table, "extrapolation", train, beyond)


def families(table: Table) -> Iterator[dict[str, Any]]:
    """Every family is left out once."""
    names = sorted({x.family for x in table.operations})
    names = [names[place] for place in np.random.default_rng(0).permutation(len(names))]
    for fold in range(FAMILY_FOLDS):
        yield from _left_out(table, "families", set(names[fold::FAMILY_FOLDS]), both=True)


def models(table: Table) -> Iterator[dict[str, Any]]:
    """Every pair of language models is left out once, with all families that occur in either."""
    for pair in itertools.combinations(sorted(frozenset.union(*table.models)), 2):
        out = {x.family for x, owners in zip(table.operations, table.models, strict=True) if owners & set(pair)}
        yield from _left_out(table, "models", out, both=False)


EXPERIMENTS = {"curve": curve, "extrapolation": extrapolation, "families": families, "models": models}


def _compare(table: Table, experiment: str, train: np.ndarray, test: np.ndarray) -> Iterator[dict[str, Any]]:
    known, asked, true = table.pick(train), table.pick(test), table.log_ms[test]
    model = KernelModel.fit(known, table.log_ms[train], DEVICE)
    flagged = float(model.is_extrapolated(asked).mean() * 100)
    shared = {"experiment": experiment, "train_rows": len(train), "test_rows": len(test)}
    yield {**shared, "method": "model", **errors(model.log_ms(asked), true), "flagged_pct": flagged}
    yield {**shared, "method": "roofline alone", **errors(model.roofline_log_ms(asked), true)}
    yield {**shared, "method": "no roofline", **errors(without_roofline(table, train, test), true)}


def _left_out(table: Table, experiment: str, out: set[str], *, both: bool) -> Iterator[dict[str, Any]]:
    is_out = np.array([x.family in out for x in table.operations])
    inside, test = np.flatnonzero(~is_out), np.flatnonzero(is_out)
    if len({table.operations[row].family for row in inside}) < 2:
        return  # Nothing is left to learn from.
    train = np.random.default_rng(0).permutation(inside)[:LEFT_OUT_ROWS]
    known, asked, true = table.pick(train), table.pick(test), table.log_ms[test]
    model = KernelModel.fit(known, table.log_ms[train], DEVICE)
    predicted = model.log_ms(asked)
    names = np.array([x.family for x in asked])
    shared = {"experiment": experiment, "train_rows": len(train), "test_rows": len(test), **errors(predicted, true)}
    at_random = [str(row) for row in range(len(known))]
    calibrations = {"model": None, "model, random calibration": at_random} if both else {"model": None}
    for method, by in calibrations.items():
        width = calibrate_kernel(known, table.log_ms[train], DEVICE, by=by).half_width
        held = np.abs(predicted - true) <= width
        by_family = np.array([held[names == name].mean() for name in sorted(out)]) * 100
        figures = {"coverage_pct": held.mean() * 100, "coverage_worst_pct": by_family.min()}
        figures["families_85_pct"] = (by_family >= 85).mean() * 100
        yield {**shared, "method": method, **figures, "width_pct": (np.exp(width) - np.exp(-width)) * 100}
    yield {**shared, "method": "roofline alone", **errors(model.roofline_log_ms(asked), true)}


def summary(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means over the splits of an experiment; of coverage_worst_pct the least. Splits count alike."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        of_curve = row["train_rows"] if row["experiment"] == "curve" else None
        groups.setdefault((row["experiment"], of_curve, row["method"]), []).append(row)
    out = []
    for (experiment, _, method), group in groups.items():
        mean = {name: float(np.mean([row[name] for row in group])) for name in FIGURES if name in group[0]}
        if "coverage_worst_pct" in mean:
            mean["coverage_worst_pct"] = float(min(row["coverage_worst_pct"] for row in group))
        counts = {name: round(float(np.mean([row[name] for row in group]))) for name in ("train_rows", "test_rows")}
        figures = {name: f"{value:.4f}" if name == "spearman" else f"{value:.2f}" for name, value in mean.items()}
        out.append({"experiment": experiment, "method": method, **counts, "splits": len(group), **figures})
    return out


def main(argv: Sequence[str] | None = None) -> None:
    """Run the experiments, print and write their figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="the table; by default h100_gemm_bf16.csv in $JETVIT_DATA")
    parser.add_argument("--experiments", nargs="+", choices=EXPERIMENTS, default=list(EXPERIMENTS))
    parser.add_argument("-o", "--output", type=Path, help="result file; by default under benchmarks/results")
    args = parser.parse_args(argv)
    if args.data is None and not os.environ.get("JETVIT_DATA"):
        parser.error("name a table with --data, or its folder in JETVIT_DATA")
    data = args.data or Path(os.environ["JETVIT_DATA"]) / "h100_gemm_bf16.csv"
    table = read_table(data)
    import sklearn

    provenance = {**environment(), "sklearn": sklearn.__version__, "numpy": np.__version__, "latencies_of": DEVICE.name}
    provenance |= {"data_sha256": hashlib.sha256(data.read_bytes()).hexdigest()[:16]}
    # A folder of somebody's machine is no part of the command.
    provenance["command"] = provenance["command"].replace(str(data.parent) + os.sep, "")
    found: list[dict[str, Any]] = []
    for name in args.experiments:
        of_this = summary(list(EXPERIMENTS[name](table)))
        for row in of_this:
            print("  ".join(f"{column} {row[column]}" for column in COLUMNS if column in row), flush=True)
        found += of_this
    path = args.output or default_path("cost_model_gemm").with_suffix(".csv")
    write_table(path, (*COLUMNS, *PROVENANCE), ({**row, **provenance} for row in found))


if __name__ == "__main__":
    main()
