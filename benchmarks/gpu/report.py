"""Write a page of all that a campaign has measured, from the files in its folder alone."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.end_to_end.table import end_to_end_lines
from benchmarks.gpu.journal import FAILURES, Event, Journal
from benchmarks.kernels.rows import newest, read_rows
from benchmarks.report import kernel_lines
from jetvit.cost_model.files.whole_file import write_whole
from jetvit.cost_model.measuring.table import read_table

Row = Mapping[str, str]


def write_report(folder: Path, dry: bool, pictures: bool = True) -> bool:
    """Write report.md (report-dry.md) and the pictures; return whether a step failed or a row is wrong."""
    suffix = "-dry" if dry else ""
    rows = {name: _rows(folder / f"{name}{suffix}.csv") for name in ("end_to_end", "kernels")}
    checks, tests = (_rows(folder / f"{name}{suffix}.csv") for name in ("kernels-checks", "operator_tests"))
    latest = _latest(Journal(folder / f"steps{suffix}.jsonl").events())
    parts = [f"# Campaign{': small shapes on a CPU, numbers that mean nothing' if dry else ''}", ""]
    parts += _machine(folder / f"machine{suffix}.jsonl")
    parts += ["", "## Correctness", "", _outcomes("checks against fp64", checks), _outcomes("operator tests", tests)]
    parts += ["", "## Whole models, random weights", "", *end_to_end_lines(rows["end_to_end"])]
    parts += ["", "## All end-to-end rows", "", *_end_to_end_lines(rows["end_to_end"])]
    parts += ["", "## Kernels", "", *kernel_lines(rows["kernels"])]
    if rows["kernels"] and pictures:
        from benchmarks.kernels.plot import plot

        plot(read_rows(folder / f"kernels{suffix}.csv"), folder)
    parts += ["", "## Breakdown", "", *_breakdowns(folder, dry)]
    parts += ["", "## Latency table", "", *_tables(folder, dry)]
    parts += ["", "## Steps", "", "| step | became | expected s | actual s | reason |", "|---|---|---|---|---|"]
    for event in latest.values():
        seconds = f"{event['at'] - event['began']:.0f}" if "began" in event else ""
        cells = (event["step"], event["event"], f"{event.get('expected_s', 0):.0f}", seconds, event.get("reason", ""))
        parts.append("| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |")
    path = folder / f"report{suffix}.md"
    write_whole(path, ("\n".join(parts) + "\n").encode())
    wrong = [row for row in (*checks, *tests) if row["status"] not in ("ok", "passed", "skipped")]
    wrong += [row for each in rows.values() for row in each if row["status"] == "wrong"]
    failed = [event for event in latest.values() if event["event"] in FAILURES]
    if pictures:
        print(f"wrote {path}: {len(wrong)} wrong rows, {len(failed)} steps failed", flush=True)
    return bool(wrong or failed)


def _rows(path: Path) -> Sequence[Row]:
    """Return the rows of the newest device, versions and code in a table that may not be there."""
    return newest(read_rows(path)) if path.exists() else []


def _latest(events: Sequence[Event]) -> dict[str, Event]:
    return {event["step"]: event for event in events}


def _machine(path: Path) -> list[str]:
    if not path.exists():
        return []
    runs = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    last = runs[-1]
    lines = [f"{last['device']}, torch {last['torch']}, CUDA {last['cuda']}, triton {last['triton']}, {len(runs)} runs"]
    lines += [f"* {run['run']}: `{run['command']}`" for run in runs]
    return lines + (["", "```", last["state"], "```"] if last["state"] else [])


def _outcomes(what: str, rows: Sequence[Row]) -> str:
    counts = Counter(row["status"] for row in rows)
    return f"* {what}: " + (", ".join(f"{count} {status}" for status, count in counts.items()) or "not run yet")


def _end_to_end_lines(rows: Sequence[Row]) -> list[str]:
    lines = [
        "| model | size | batch | variant | ms (quartiles) | img/s | over `compiled` (95 %) | memory | timing | |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        timed = f"{row['median_ms']} ({row['q25_ms']}–{row['q75_ms']})" if row["median_ms"] else ""
        ratio = f"{row['ratio']} ({row['ratio_low']}–{row['ratio_high']})" if row["ratio"] else ""
        memory = f"{row['peak_memory_gb']} GB" if row["peak_memory_gb"] else ""
        note = "" if row["status"] == "ok" else f"{row['status']}: {row['reason']}".replace("|", "/")
        cells = (row["model"], row["size"], row["batch"], row["variant"], timed, row["images_per_s"], ratio, memory)
        lines.append(f"| {' | '.join(cells)} | {row['timing']} | {note} |")
    return lines


def _breakdowns(folder: Path, dry: bool) -> list[str]:
    found = [path for path in sorted(folder.glob("breakdown-*.json")) if path.stem.endswith("-dry") == dry]
    lines = []
    for path in found:
        record = json.loads(path.read_text(encoding="utf-8"))
        kinds = ", ".join(f"{each['kind']} {each['ms']:.3g}" for each in record["kinds"])
        lines.append(f"* {record['model']}, {record['variant']}: {record['wall_ms']:.4g} ms: {kinds}")
        lines.append(f"  ![{path.stem}]({path.with_suffix('.png').name})")
    return lines or ["not profiled yet"]


def _tables(folder: Path, dry: bool) -> list[str]:
    own = {"end_to_end", "kernels", "kernels-checks", "operator_tests", "search_camvid"}
    found = [path for path in sorted(folder.glob("*.csv")) if path.stem.removesuffix("-dry") not in own]
    lines = [f"* {path.name}: {len(read_table(path))} rows" for path in found if path.stem.endswith("-dry") == dry]
    return lines or ["not measured yet"]
