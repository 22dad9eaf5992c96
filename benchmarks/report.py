"""Write the measured tables of the README from the result files.

A block between `<!-- results:NAME -->` and `<!-- end -->` is replaced by the table made from the newest NAME.json or
NAME.csv of each device. A test holds that the README says what the files say.

    python -m benchmarks.report [--check]
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.calibrate_table import calibrate_lines
from benchmarks.drift_cost.table import drift_cost_lines, drift_cost_sentence
from benchmarks.end_to_end.table import end_to_end_lines
from benchmarks.kernels.goals import GOAL_SIZE, Comparison, comparisons
from benchmarks.kernels.rows import newest as rows_of_one_device
from benchmarks.kernels.rows import read_rows
from benchmarks.kernels.shapes import FIRST_MIXERS
from benchmarks.results import RESULTS, command_of
from jetvit.patterns.wording import counted

README = Path(__file__).parent.parent / "README.md"
_BLOCK = re.compile(r"(<!-- results:(\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def newest(name: str) -> list[tuple[Path, dict[str, Any]]]:
    """Return the newest result file of that name of each device."""
    files = sorted(RESULTS.glob(f"*/*/{name}.*"))
    latest = {file.parent.parent.name: file for file in files if file.suffix in (".json", ".csv")}
    return [(file, record) for file in latest.values() if (record := _read(file))]


def _read(file: Path) -> dict[str, Any]:
    """A result file; of a table the newest rows and where the last of them comes from; nothing if it has no rows."""
    if file.suffix == ".json":
        return json.loads(file.read_text(encoding="utf-8"))
    rows = read_rows(file)
    if rows and "run" not in rows[-1]:  # written as a whole, by one run
        return {**rows[-1], "rows": rows}
    rows = rows_of_one_device(rows)
    return {**rows[-1], "date": rows[-1]["run"], "rows": rows} if rows else {}


def calibrate_table(results: list[tuple[Path, dict[str, Any]]]) -> str:
    """Latency and drift of training-free plans, the table of one device after the other."""
    return "\n\n".join(
        "\n".join([*calibrate_lines(record), "", *_sources([(file, record)])]) for file, record in results
    )


def drift_cost_table(results: list[tuple[Path, dict[str, Any]]]) -> str:
    """The metrics of two tasks by the drift of training-free plans, the table of one device after the other."""
    return _by_device(lambda rows: [*drift_cost_lines(rows), "", drift_cost_sentence(rows)], results)


def local_distillation_table(results: list[tuple[Path, dict[str, Any]]]) -> str:
    """Models all of whose blocks are of one choice, before and after local distillation."""
    lines = ["| all blocks | steps of two images | mIoU (95 % interval) | drift |", "|---|---|---|---|"]
    for _, record in results:
        lines += [
            f"| {row['choice']} | {row['steps']} | **{float(row['miou']):.3f}** "
            f"({float(row['low']):.3f}–{float(row['high']):.3f}) | {float(row['drift']):.2f} |"
            for row in record["rows"]
        ]
    return "\n".join([*lines, "", *_sources(results)])


def search_table(results: list[tuple[Path, dict[str, Any]]]) -> str:
    """The original, the control and hybrids on a task, on images that nothing was trained on or chosen by."""
    metric = {"miou": "mIoU", "delta1": "δ1"}[results[0][1]["rows"][0]["metric"]]
    lines = [
        f"| model | full blocks | {metric} (95 % interval) | minus control, in points | block by block | latency |",
        "|---|---|---|---|---|---|",
    ]
    for _, record in results:
        for row in record["rows"]:
            difference = ""
            if row["minus_control"]:
                mean, low, high = (
                    100 * float(row[name]) for name in ("minus_control", "minus_control_low", "minus_control_high")
                )
                words = "non-inferior" if row["non_inferior"] == "True" else "not shown to be non-inferior"
                difference = f"{mean:+.1f} ({low:+.1f} to {high:+.1f}), {words}"
            lines.append(
                f"| {row['model'].partition(',')[0]} | {row['full_blocks']} | **{float(row['value']):.3f}** "
                f"({float(row['low']):.3f}–{float(row['high']):.3f}) | {difference} | {row['attention'].strip()} | "
                f"{float(row['estimated_ms']):.0f} ms |"
            )
    return "\n".join([*lines, "", *_sources(results)])


def ablation_table(results: list[tuple[Path, dict[str, Any]]]) -> str:
    """Designs of the linear block: quality after local distillation, and latency of the whole model."""
    lines = [
        "| all twelve blocks | mIoU (95 % interval) | drift | local loss | speed-up, not compiled | new weights |",
        "|---|---|---|---|---|---|",
    ]
    for _, record in results:
        for row in record["rows"]:
            full = row["design"] == "full"
            name = row["design"] + ("" if full or row["inherited"] == "True" else ", projections drawn anew")
            speed = (
                f"{float(row['speedup']):.2f}× ({float(row['speedup_low']):.2f}–{float(row['speedup_high']):.2f})"
                if row["speedup"]
                else ""
            )
            lines.append(
                f"| {name} | **{float(row['miou']):.3f}** ({float(row['low']):.3f}–{float(row['high']):.3f}) | "
                f"{float(row['drift']):.2f} | {row['local_loss']} | {speed} | {row['weights']} |"
            )
    return "\n".join([*lines, "", *_sources(results)])


def targets_table(results: list[tuple[Path, dict[str, Any]]]) -> str:
    """What the files of every target weigh, how long they take to write, and their errors."""
    lines = ["| model | target | file | written in | largest error | run in |", "|---|---|---|---|---|---|"]
    for _, record in results:
        for row in record["rows"]:
            target = f"{row['target']} {row['opset']}".strip()
            size = f"{float(row['file_mb']):.0f} MB" if row["file_mb"] else "not written"
            seconds = f"{float(row['seconds']):.0f} s" if row["seconds"] else ""
            ran = row["ran_in"] + (f" ({row['note']})" if row["note"] else "")
            lines.append(f"| {row['model']} | {target} | {size} | {seconds} | {row['max_error']} | {ran} |")
    return "\n".join([*lines, "", *_sources(results)])


def runtimes_table(results: list[tuple[Path, dict[str, Any]]]) -> str:
    """The original and the rewritten model in each runtime."""
    lines = ["| runtime | original | rewritten | ratio (95 % interval) | largest error |", "|---|---|---|---|---|"]
    for _, record in results:
        for row in record["rows"]:
            lines.append(
                f"| {row['runtime']} {row['version']} | {float(row['original_ms']):.0f} ms | "
                f"{float(row['rewritten_ms']):.0f} ms | **{float(row['speedup']):.2f}×** "
                f"({float(row['speedup_low']):.2f}–{float(row['speedup_high']):.2f}) | {row['max_error']} |"
            )
    return "\n".join([*lines, "", *_sources(results)])


def find_sites_table(results: list[tuple[Path, dict[str, Any]]]) -> str:
    """Time to find the sites of a graph."""
    lines = ["| layers | graph nodes | sites found | time to find them |", "|---|---|---|---|"]
    for _, record in results:
        lines += [
            f"| {row['depth']} | {row['nodes']} | {row['sites']} | {1e3 * row['find_median_s']:.0f} ms |"
            for row in record["rows"]
        ]
    return "\n".join([*lines, "", *_sources(results)])


def kernels_table(results: list[tuple[Path, dict[str, Any]]]) -> str:
    """Return our mixers beside their floor and their rivals, and whether the goals are met, a table a device."""
    return _by_device(kernel_lines, results)


def kernel_lines(rows: Sequence[Mapping[str, str]]) -> list[str]:
    """Return the table of one device, under its name; one short line if there are no rows."""
    if not rows:
        return ["not measured yet"]
    lines = [
        f"**{rows[-1]['device']}**",
        "",
        "| mixer, model | ours | floor | ours / floor | eager | compiled | FlexAttention | SDPA | goals |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    shown = {mixer.name for mixer in FIRST_MIXERS}
    for each in comparisons(rows):
        if each.size == GOAL_SIZE and each.mixer in shown:
            rivals = " | ".join(_fastest(each, name) for name in ("eager", "compiled", "flex", "sdpa"))
            lines.append(
                f"| {each.mixer}, {each.model} | {each.ours_ms:.3g} ms | {each.floor_ms:.3g} ms | "
                f"**{each.floors:.2f}** | {rivals} | {_goals(each)} |"
            )
    return lines


def end_to_end_table(results: list[tuple[Path, dict[str, Any]]]) -> str:
    """Return latency and throughput of whole models beside the paper's, the tables of one device after the other."""
    return _by_device(end_to_end_lines, results)


def _by_device(
    lines: Callable[[Sequence[Mapping[str, str]]], list[str]], results: list[tuple[Path, dict[str, Any]]]
) -> str:
    """Return the tables of each device, with their source below."""
    return "\n\n".join("\n".join([*lines(each[1]["rows"]), "", *_sources([each])]) for each in results)


_LATENCY_COLUMNS = [
    "| held out | rows | error, mean (median) | roofline alone | rank correlation | 90 % intervals hold |",
    "|---|---|---|---|---|---|",
]


def cost_model_table(results: list[tuple[Path, dict[str, Any]]]) -> str:
    """The latency model on the operations of a device's own table."""
    lines = list(_LATENCY_COLUMNS)
    names = {
        "in range": "a fifth at random",
        "family": "a family of shapes",
        "model": "a model",
        "2x": "beyond half of the tokens",
    }
    for _, record in results:
        shown = [row for row in record["rows"] if row["op"] == "all" or (row["experiment"], row["op"]) == _PRODUCTS]
        lines += [
            _latency_line(f"{names[row['experiment']]}, {row['op']}", row, row["roofline_mape_pct"])
            for row in shown
            if row["experiment"] in names
        ]
    return "\n".join([*lines, "", *_latency_sources(results)])


def cost_model_gemm_table(results: list[tuple[Path, dict[str, Any]]]) -> str:
    """The latency model on a public table of matrix products."""
    lines = list(_LATENCY_COLUMNS)
    names = {
        "extrapolation": "beyond half of the tokens",
        "families": "families of shapes",
        "models": "two language models",
    }
    for _, record in results:
        rows = record["rows"]
        alone = {(row["experiment"], row["train_rows"]): row for row in rows if row["method"] == "roofline alone"}
        for row in rows:
            if row["method"] == "model":
                name = names.get(row["experiment"], f"rows at random, {row['train_rows']} to learn from")
                roofline = alone[row["experiment"], row["train_rows"]]["mape_pct"]
                lines.append(_latency_line(name, row, roofline))
    return "\n".join([*lines, "", *_latency_sources(results)])


def whole_plans_table(results: list[tuple[Path, dict[str, Any]]]) -> str:
    """The cost model on whole plans, by model and over all."""
    lines = [
        "| whole models | plans | error, mean (largest) | own spread | rank correlation | regret (of 3 measured) |",
        "|---|---|---|---|---|---|",
    ]
    for _, record in results:
        lines += [
            f"| {row['mode']}: {row['group']} | {row['plans']} | **{float(row['mape_pct']):.1f} %** "
            f"({float(row['max_ape_pct']):.0f} %) | {float(row['spread_pct']):.1f} % | {float(row['spearman']):.3f} | "
            f"{float(row['regret_pct']):.1f} % ({float(row['regret_of_3_pct']):.1f} %) |"
            for row in record["rows"]
            if row["mode"] == "compiled" or row["group"] == "all"
        ]
    return "\n".join([*lines, "", *_latency_sources(results)])


_PRODUCTS = ("in range", "gemm")


def _latency_line(name: str, row: dict[str, str], roofline: str) -> str:
    held = f"{float(row['coverage_pct']):.0f} %" if row["coverage_pct"] else ""
    error = f"**{float(row['mape_pct']):.1f} %** ({float(row['median_ape_pct']):.1f} %)"
    rank = f"{float(row['spearman']):.3f}"
    return f"| {name} | {row['test_rows']} | {error} | {float(roofline):.1f} % | {rank} | {held} |"


def _latency_sources(results: list[tuple[Path, dict[str, Any]]]) -> list[str]:
    return [
        f"<sub>Latencies of {record['latencies_of']}; {record['date'][:10]}: `{command_of(record)}`, "
        f"[{file.relative_to(README.parent)}]({file.relative_to(README.parent)})</sub>"
        for file, record in results
    ]


def _fastest(comparison: Comparison, kind: str) -> str:
    """Return how many times as long as ours the fastest implementation of a kind takes."""
    ratios = [ratio for name, ratio in comparison.ratios.items() if name.startswith(kind)]
    return f"{min(ratios):.2f}×" if ratios else ""


def _goals(comparison: Comparison) -> str:
    if comparison.missed is None:
        return ""
    return "missed: " + "; ".join(comparison.missed) if comparison.missed else "met"


TABLES: dict[str, Callable[[list[tuple[Path, dict[str, Any]]]], str]] = {
    "calibrate": calibrate_table,
    "drift_cost": drift_cost_table,
    "find_sites": find_sites_table,
    "targets": targets_table,
    "runtimes": runtimes_table,
    "kernels": kernels_table,
    "end_to_end": end_to_end_table,
    "cost_model": cost_model_table,
    "cost_model_gemm": cost_model_gemm_table,
    "whole_plans": whole_plans_table,
    "local_distillation": local_distillation_table,
    "ablation": ablation_table,
    "search_camvid": search_table,
    "search_nyuv2": search_table,
}


def render(text: str) -> str:
    """The README with its measured blocks brought up to date; "not measured yet" where there is no result."""

    def block(match: re.Match[str]) -> str:
        results = newest(match[2])
        table = TABLES[match[2]](results) if results else "not measured yet"
        return f"{match[1]}{table}\n{match[3]}"

    return _BLOCK.sub(block, text)


def main() -> None:
    """Rewrite the README, or with --check only say whether it is up to date."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if the README is out of date")
    args = parser.parse_args()
    before = README.read_text(encoding="utf-8")
    after = render(before)
    if args.check:
        sys.exit(before != after)
    README.write_text(after, encoding="utf-8")


def _sources(results: list[tuple[Path, dict[str, Any]]]) -> list[str]:
    return [
        f"<sub>{record['device']}, {counted(int(record['threads']), 'thread')}, "
        f"torch {record['torch']}, {record['date'][:10]}: "
        f"`{command_of(record)}`, [{file.relative_to(README.parent)}]({file.relative_to(README.parent)})</sub>"
        for file, record in results
    ]


if __name__ == "__main__":
    main()
