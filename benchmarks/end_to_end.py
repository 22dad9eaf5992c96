"""How fast whole models are: full attention eager and compiled, and hybrids with our kernels and without. For an H100.

Every variant of a model (`benchmarks.end_to_end_variants`) is timed in rounds that take turns with the compiled
original, which stays in memory, so that a ratio is of the same minute. The weights are random. A row is on disk as soon
as its variant is timed, and the same command goes on where it stopped. Exit status 3: the device was lost, run again.

    python -m benchmarks.end_to_end [--minutes M] [--only WORDS] [--out DIR] [--dry]

Without a GPU, or with --dry, small models on the CPU only show that the program works.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.campaign import Campaign, Step, campaign_of
from benchmarks.end_to_end_models import LARGE_SIZE, MODELS, PAPER_SIZE, SIZES, Size, build, pixels, shape_of
from benchmarks.end_to_end_variants import ANCHOR, FIRST, MORE, NEXT, Ready, Subject, Variant, make_ready, release
from benchmarks.kernel_group import DeviceLost, Row, assert_device, failure
from benchmarks.kernel_rows import Table
from benchmarks.results import default_path
from jetvit.cost_model.rounds import in_rounds, ratio

KEY = ("device", "torch", "triton", "code", "model", "size", "batch", "variant", "dtype")
# difference: from the same function in eager mode, of the norm. peak_memory_gb: the variant's weights and the most that
# a call holds besides. compile_s: the first call, with what the caches on disk have. full_blocks: counted from 0.
# timing: how, see `Ready`.
COLUMNS = (
    *("model", "size", "batch", "variant", "status", "reason"),
    *("median_ms", "q25_ms", "q75_ms", "samples", "timing", "images_per_s"),
    *("anchor_ms", "ratio", "ratio_low", "ratio_high", "difference", "peak_memory_gb", "compile_s"),
    *("grid", "tokens", "full_blocks", "mode", "weights", "dtype"),
    *("dry", "device", "torch", "cuda", "triton", "jetvit", "code", "threads", "run", "time", "command"),
)
LIMIT_S = 600.0
_LARGEST_DIFFERENCE = 0.05  # bf16 throughout, sums of the plain mixers included
_ROUNDS, _DRY_ROUNDS = 15, 5
_ROUNDS_S = 10.0  # begin no round after
_BATCHES = (4, 8, 2, 16)
_DIED = "the process died or was stopped twice while it was prepared"


@dataclass(frozen=True)
class Case:
    """A model at one image size (of `SIZES`) and batch, and the variants to time, in this order."""

    model: str
    size: Size
    batch: int
    variants: tuple[Variant, ...]

    def row(self, campaign: Campaign, variant: Variant) -> Row:
        """What is known of a variant's row before it is measured."""
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


def steps(dry: bool) -> list[Step]:
    """All steps of the section, the most telling first. dry: few, with every variant among them."""
    found: list[Step] = []

    def add(value: int, model: str, size: Size, batch: int, variants: tuple[Variant, ...], suffix: str = "") -> None:
        case = Case(model, size, batch, variants)
        name = f"end_to_end {model} {size[0]}x{size[1]} batch {batch}{suffix}"
        found.append(Step(name, value, LIMIT_S, partial(_is_done, case), partial(_run, case)))

    throughput = tuple(each for each in FIRST if each.name in ("compiled", "hybrid 2 FA"))
    for number, model in enumerate(MODELS):
        late = number > 2  # G and 7B take long
        add(40 if late else 20, model, PAPER_SIZE, 1, FIRST if not (dry and number) else FIRST[:3])
        if dry and number:
            continue
        # Steps of their own, so that every model has its first variants before any has its last: each compiles anew.
        add(48 if late else 28, model, PAPER_SIZE, 1, NEXT, " next")
        add(50 if late else 32, model, PAPER_SIZE, 1, MORE, " more")
        for order, batch in enumerate(_BATCHES[2:3] if dry else _BATCHES):
            add(60 + 5 * late + order, model, PAPER_SIZE, batch, throughput)
        for size in () if dry else SIZES[model][1:]:
            add(72 if size == LARGE_SIZE else 70, model, size, 1, FIRST)
    return sorted(found, key=lambda step: step.value)


def _table(campaign: Campaign) -> Table:
    return Table(campaign.path("end_to_end.csv"), COLUMNS, KEY)


def _is_done(case: Case, campaign: Campaign) -> bool:
    if not campaign.path("end_to_end.csv").exists():
        return False
    table = _table(campaign)
    return all(table.has(case.row(campaign, variant)) for variant in case.variants)


def _run(case: Case, campaign: Campaign, seconds: float) -> None:
    """Time the variants of a case that have no row, and begin none after so many seconds.

    Raises DeviceLost after it wrote the row that says what happened.
    """
    deadline = time.monotonic() + seconds
    table, attempts = _table(campaign), campaign.path("end_to_end-attempts.jsonl")
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
        except Exception as error:  # what a variant cannot do is its result
            _append(table, row | failure(_cause(error)))
            assert_device(campaign.device, error)
        else:
            _append(table, row)
        release(campaign.device)
    del bench
    torch._dynamo.reset()
    release(campaign.device)


def _cause(error: Exception) -> Exception:
    """What an error of the compiler began with: lack of memory, or what a backend does not support."""
    inner = error.__cause__ or error.__context__
    compiler = type(error).__module__.startswith(("torch._dynamo", "torch._inductor"))
    return _cause(inner) if compiler and isinstance(inner, Exception) else error


class _Bench:
    """A case on its device: the model, made when it is needed first, and the anchor, made ready once."""

    def __init__(self, case: Case, campaign: Campaign):
        self._case, self._campaign = case, campaign
        self._subject: Subject | None = None
        self._anchor: Ready | None = None
        self._anchor_failed = False

    def measure(self, variant: Variant, table: Table) -> Row:
        """The columns that are measured. Raises whatever the variant raises."""
        subject = self._subject = self._subject or self._build()
        if variant == ANCHOR:
            ready = self._anchor = make_ready(variant, subject)
            return self._time(ready, None)
        return self._time(make_ready(variant, subject), self._ready_anchor(subject, table))

    def _build(self) -> Subject:
        case, campaign = self._case, self._campaign
        dtype = torch.float32 if campaign.dry else torch.bfloat16
        model = build(case.model, campaign.device, dtype, campaign.dry)
        size = pixels(case.model, case.size, campaign.dry)
        images = torch.randn(case.batch, 3, *size, device=campaign.device, dtype=dtype)
        return Subject(model, images, shape_of(case.model, campaign.dry), window=4 if campaign.dry else 16)

    def _ready_anchor(self, subject: Subject, table: Table) -> Ready | None:
        """The anchor, made ready again where its row is of an earlier run; None where it does not run."""
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
    """How often a variant was begun; a line that was cut off counts for nothing."""
    line = json.dumps([str(row[name]) for name in KEY])
    return path.read_text(encoding="utf-8").splitlines().count(line) if path.exists() else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the steps in their order; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no variant after so many minutes")
    parser.add_argument("--only", default="", metavar="WORDS", help="steps with one of these, by commas: 'DINOv3-B'")
    parser.add_argument("--out", type=Path, help="folder of the results; by default under benchmarks/results")
    parser.add_argument("--dry", action="store_true", help="small models on the CPU")
    args = parser.parse_args(arguments)
    dry = args.dry or not torch.cuda.is_available()
    deadline = time.monotonic() + 60 * args.minutes
    words = [word.strip() for word in args.only.split(",") if word.strip()]
    selected = [step for step in steps(dry) if not words or any(word in step.name for word in words)]
    if not selected:
        names = "\n  ".join(step.name for step in steps(dry))
        parser.error(f"--only {args.only}: no step has it in its name; they are\n  {names}")
    out = args.out or (Path("out") / "end_to_end-dry" if dry else default_path("end_to_end").parent)
    # What tuning measures is kept beside the results.
    os.environ.setdefault("JETVIT_CACHE", str(out / "tuned"))
    out.mkdir(parents=True, exist_ok=True)
    campaign = campaign_of(out, dry)
    for step in selected:
        left = deadline - time.monotonic()
        if left <= 0 or step.is_done(campaign):
            continue
        print(step.name, flush=True)
        try:
            step.run(campaign, left)
        except DeviceLost as error:
            print(f"the device was lost ({error}); run the same command again to go on")
            return 3
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
