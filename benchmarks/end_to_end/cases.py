"""Measure the variants of one model at one image size and batch, a row each.

A row is on disk as soon as its variant is timed. Every variant is timed in rounds that take turns with the compiled
original, which stays in memory, so that a ratio is of the same minute.
"""

from __future__ import annotations

import datetime
import json
import os
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.end_to_end.models import Size, build, pixels, shape_of
from benchmarks.end_to_end.variants import ANCHOR, Ready, Subject, Variant, make_ready, release
from benchmarks.gpu.campaign import Campaign
from benchmarks.kernels.group import Row, assert_device, failure
from benchmarks.kernels.rows import Table
from jetvit.cost_model.measuring.rounds import in_rounds, ratio

KEY = ("device", "torch", "triton", "code", "model", "size", "batch", "variant", "dtype")
# difference: from the same function in eager mode, of the norm. peak_memory_gb: the variant's weights and the most that
# a call holds besides. compile_s, graph_cache: see `Compiled`; a "hit" is no compile time. full_blocks: from 0 on.
# timing: how, see `Ready`.
COLUMNS = (
    *("model", "size", "batch", "variant", "status", "reason"),
    *("median_ms", "q25_ms", "q75_ms", "samples", "timing", "images_per_s"),
    *("anchor_ms", "ratio", "ratio_low", "ratio_high", "difference", "peak_memory_gb", "compile_s", "graph_cache"),
    *("grid", "tokens", "full_blocks", "mode", "weights", "dtype"),
    *("dry", "device", "torch", "cuda", "triton", "jetvit", "code", "threads", "run", "time", "command"),
)
_LARGEST_DIFFERENCE = 0.05  # bf16 throughout, sums of the plain mixers included
_ROUNDS, _DRY_ROUNDS = 15, 5
_ROUNDS_S = 10.0  # begin no round after
_DIED = "the process died or was stopped twice while it was prepared"


@dataclass(frozen=True)
class Case:
    """A model at one image size (of `SIZES`) and batch, and the variants to time, in this order."""

    model: str
    size: Size
    batch: int
    variants: tuple[Variant, ...]

    def row(self, campaign: Campaign, variant: Variant) -> Row:
        """Return the columns of a variant's row that are known before it is measured."""
        shape, size = shape_of(self.model, campaign.dry), pixels(self.model, self.size, campaign.dry)
        grid_h, grid_w = shape.grid(size)
        blocks = range(shape.depth) if variant.full is None else shape.full_blocks(variant.full)
        return {
            **campaign.known,
            "model": self.model,
            "size": f"{size[0]}x{size[1]}",
            "batch": self.batch,
            "variant": variant.name,
            "grid": f"{grid_h}x{grid_w}",
            "tokens": shape.extra_tokens + grid_h * grid_w,
            "full_blocks": " ".join(map(str, blocks)) or "none",
            "mode": variant.mode,
            "weights": "random",
            "dtype": "fp32" if campaign.dry else "bf16",
        }


def subject_of(case: Case, device: torch.device, dry: bool) -> Subject:
    """Build the model of a case and random images, the same in every process."""
    dtype = torch.float32 if dry else torch.bfloat16
    model = build(case.model, device, dtype, dry)
    images = torch.randn(case.batch, 3, *pixels(case.model, case.size, dry), device=device, dtype=dtype)
    return Subject(model, images, shape_of(case.model, dry), window=4 if dry else 16)


def table_of(campaign: Campaign) -> Table:
    """Return the table of the rows, which is made if it is not there."""
    return Table(campaign.path("end_to_end.csv"), COLUMNS, KEY)


def is_done(case: Case, campaign: Campaign) -> bool:
    """Return whether every variant of the case has a row."""
    if not campaign.path("end_to_end.csv").exists():
        return False
    table = table_of(campaign)
    return all(table.has(case.row(campaign, variant)) for variant in case.variants)


def run(case: Case, campaign: Campaign, seconds: float) -> None:
    """Time the variants of a case that have no row, starting none after so many seconds.

    Raises DeviceLost after it wrote the row of the variant that lost the device.
    """
    deadline = time.monotonic() + seconds
    table, attempts = table_of(campaign), campaign.path("end_to_end-attempts.jsonl")
    bench = _Bench(case, campaign)
    for variant in case.variants:
        row = case.row(campaign, variant)
        if table.has(row):
            continue
        if time.monotonic() > deadline:
            break
        if _attempts(attempts, row) >= 2:
            _append(table, row | {"status": "unsupported", "reason": _DIED})
            continue
        _note_attempt(attempts, row)
        try:
            row |= bench.measure(variant, table)
        except Exception as error:  # a failure is the result of its variant
            _append(table, row | failure(_cause(error)))
            assert_device(campaign.device, error)
        else:
            _append(table, row)
        release(campaign.device)
    del bench
    torch._dynamo.reset()
    release(campaign.device)


def _cause(error: Exception) -> Exception:
    """Return the first cause of an error of the compiler: lack of memory, or an unsupported operation."""
    inner = error.__cause__ or error.__context__
    compiler = type(error).__module__.startswith(("torch._dynamo", "torch._inductor"))
    return _cause(inner) if compiler and isinstance(inner, Exception) else error


class _Bench:
    """A case on its device: the model, built at first use, and the anchor, made ready once."""

    def __init__(self, case: Case, campaign: Campaign):
        self._case, self._campaign = case, campaign
        self._subject: Subject | None = None
        self._anchor: Ready | None = None
        self._anchor_failed = False

    def measure(self, variant: Variant, table: Table) -> Row:
        """Measure a variant; return the measured columns. Raises whatever the variant raises."""
        subject = self._subject = self._subject or subject_of(self._case, self._campaign.device, self._campaign.dry)
        if variant == ANCHOR:
            ready = self._anchor = make_ready(variant, subject)
            return self._time(ready, None)
        return self._time(make_ready(variant, subject), self._ready_anchor(subject, table))

    def _ready_anchor(self, subject: Subject, table: Table) -> Ready | None:
        """Return the anchor, made ready again if its row is of an earlier run; None if it does not run."""
        if self._anchor is None and not self._anchor_failed:
            mine = self._case.row(self._campaign, ANCHOR)
            status = [row["status"] for row in table.rows() if all(row[name] == str(mine[name]) for name in KEY)]
            if status and status[-1] not in ("ok", "wrong"):
                self._anchor_failed = True
                return None
            try:
                self._anchor = make_ready(ANCHOR, subject)
            except Exception as error:  # the others are still worth their time alone
                self._anchor_failed = True
                print(f"  no anchor: {failure(error)['reason']}", flush=True)
                assert_device(self._campaign.device, error)
        return self._anchor

    def _time(self, ready: Ready, anchor: Ready | None) -> Row:
        samplers = [ready.sampler] + ([anchor.sampler] if anchor is not None else [])
        rounds = _DRY_ROUNDS if self._campaign.dry else _ROUNDS
        samples, *anchors = in_rounds(samplers, rounds, time_limit_s=_ROUNDS_S)
        low, middle, high = statistics.quantiles(samples, n=4, method="inclusive")
        row: Row = {
            "status": "ok",
            "median_ms": f"{middle:.5g}",
            "q25_ms": f"{low:.5g}",
            "q75_ms": f"{high:.5g}",
            "samples": len(samples),
            "timing": ready.timing,
            "images_per_s": f"{1e3 * self._case.batch / middle:.5g}",
            "compile_s": "" if ready.compile_s is None else f"{ready.compile_s:.1f}",
            "graph_cache": ready.graph_cache,
            "peak_memory_gb": "" if ready.peak_memory_gb is None else f"{ready.peak_memory_gb:.2f}",
            "difference": "" if ready.difference is None else f"{ready.difference:.2g}",
        }
        for theirs in anchors:
            row["anchor_ms"] = f"{statistics.median(theirs):.5g}"
            ratios = zip(("ratio", "ratio_low", "ratio_high"), ratio(theirs, samples), strict=True)
            row |= {name: f"{value:.4g}" for name, value in ratios}
        if ready.difference is not None and not ready.difference <= _LARGEST_DIFFERENCE:
            row |= {"status": "wrong", "reason": f"differs by {ready.difference:.2g} of the norm of what is expected"}
        return row


def _append(table: Table, row: Row) -> None:
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    table.append([{name: value for name, value in row.items() if name in table.columns} | {"time": now}])
    timed = f"{float(row['median_ms']):9.3f} ms {row.get('ratio', ''):>6}" if "median_ms" in row else row["reason"]
    print(f"  {row['model']} {row['size']} {row['batch']} {row['variant']:<24} {row['status']:<12} {timed}", flush=True)


def _note_attempt(path: Path, row: Mapping[str, Any]) -> None:
    """Write that a variant is about to be prepared, so that one that kills the process is not tried for ever."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps([str(row[name]) for name in KEY]) + "\n")
        file.flush()
        os.fsync(file.fileno())


def _attempts(path: Path, row: Mapping[str, Any]) -> int:
    """Return how often a variant was started; a line that was cut off does not count."""
    line = json.dumps([str(row[name]) for name in KEY])
    return path.read_text(encoding="utf-8").splitlines().count(line) if path.exists() else 0
