"""Time whole models: full attention, eager and compiled, and hybrids with our kernels and without. For any NVIDIA GPU.

Every variant of a model (`benchmarks.end_to_end.variants`) is timed in turns with the compiled original. The weights
are random. A row is on disk as soon as its variant is timed, and the same command resumes where it stopped. Exit
status 3: the device was lost, run again.

    python -m benchmarks.end_to_end [--minutes M] [--only WORDS] [--out DIR] [--dry]

Without a GPU, or with --dry, small models on the CPU only show that the program works. `python -m benchmarks.gpu` runs
the same steps, and compiles the models in parallel before.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import torch

from benchmarks.end_to_end.cases import Case, is_done, run
from benchmarks.end_to_end.models import LARGE_SIZE, MODELS, PAPER_SIZE, SIZES, Size
from benchmarks.end_to_end.variants import ANCHOR, FIRST, MORE, NEXT, TUNED, Variant
from benchmarks.gpu.campaign import Cost, Step, campaign_of
from benchmarks.kernels.group import DeviceLost
from benchmarks.results import default_path

_BATCHES = (4, 8, 2, 16)
_MODELS = ("DINOv3-L", "DepthAnythingV2-L", "DINOv3-B", "DepthAnythingV2-G", "DINOv3-7B")  # the most telling first
LATE_MODELS = _MODELS[3:]
"""The models that take long."""
# Seconds of a compiled variant: to build and export the model, to rewrite it, to trace it (Dynamo and AOTAutograd), to
# compile it cold (Inductor), to time it in turns with the original. REVIEW.md §4 at depth 24: 4.5, 5.3, 12, 34 CPU-s.
_EXPORT, _REWRITE, _TRACE, _COMPILE, _TIME = 6.0, 5.3, 12.0, 34.0, 3.0
_AUTOTUNE = 60.0  # a guess: ~8 shapes of products, ~20 Triton configurations each, for max-autotune
_BASIS = "at depth 24 export 6, rewrite 5, a variant: trace 12, cold compile 34, timing 3"


def steps(dry: bool) -> list[Step]:
    """Return all steps, the most telling first. dry: few, with every variant among them."""
    return sorted(_steps(dry), key=lambda step: step.value)


def compile_name(model: str, part: str = "") -> str:
    """Return the name of the step that compiles the variants of a part in parallel."""
    return f"compile {model} {part}" if part else "compile models"


def _steps(dry: bool) -> Iterator[Step]:
    throughput = tuple(each for each in FIRST if each.name in ("compiled", "hybrid 2 FA"))
    for number, model in enumerate(_MODELS):
        late, order = model in LATE_MODELS, number / 10
        warmed_by = compile_name(model, "first") if late else compile_name("")
        yield _step(50 + order if late else 22 + order, model, PAPER_SIZE, 1, FIRST, "", warmed_by)
        if dry and number:
            continue
        # Steps of their own, so that every model has its first variants before any has its last.
        next_by = compile_name(model, "next")
        yield _step(31 if number == 0 else 53 + order, model, PAPER_SIZE, 1, NEXT, " next", next_by)
        value = {"DINOv3-L": 33.0, "DINOv3-B": 34.0}.get(model, 55 + order)
        yield _step(value, model, PAPER_SIZE, 1, TUNED, " max-autotune")
        yield _step(57 + order, model, PAPER_SIZE, 1, MORE, " more")
        for place, batch in enumerate(_BATCHES[2:3] if dry else _BATCHES):
            value = 41 + place / 10 if number == 0 else 60 + number + place / 10
            yield _step(value, model, PAPER_SIZE, batch, throughput)
        for size in () if dry else SIZES[model][1:]:
            yield _step(72 if size == LARGE_SIZE else 70, model, size, 1, FIRST)


def _step(
    value: float, model: str, size: Size, batch: int, variants: tuple[Variant, ...], suffix: str = "", warmed: str = ""
) -> Step:
    case = Case(model, size, batch, variants)
    name = f"end_to_end {model} {size[0]}x{size[1]} batch {batch}{suffix}"
    cost = _cost(model, variants)
    return Step(name, value, cost, 120 + 2 * cost.cold_s, partial(is_done, case), partial(run, case), warmed)


def _cost(model: str, variants: Sequence[Variant]) -> Cost:
    compiled = {ANCHOR, *(each for each in variants if each.mode != "eager")}
    hybrids = {each.full for each in compiled} - {None}
    tuned = any(each.mode == "max-autotune" for each in compiled)
    warm = (_EXPORT + _REWRITE * len(hybrids) + _TRACE * len(compiled)) * MODELS[model].depth / 24
    cold = warm + _COMPILE * len(compiled) * MODELS[model].depth / 24 + (_AUTOTUNE if tuned else 0)
    timed = _TIME * len(variants)
    return Cost(round(cold + timed), round(warm + timed), _BASIS, dry_s=25)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the steps in their order; return the exit status."""
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
