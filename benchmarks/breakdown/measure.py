"""Profile compiled models kernel by kernel, to show where the milliseconds go. For any NVIDIA GPU.

For each model and variant a few warm calls are profiled. All figures are of the one call whose wall time is the median:
from the start of its first kernel to the end of its last, with the time in which no kernel runs as "gaps". The same
calls without the profiler are timed by CUDA events, as a check. Weights are random: no latency depends on them.

    python -m benchmarks.breakdown [--minutes M] [--out DIR] [--dry]
    python -m benchmarks.breakdown --show FILE.json

Writes breakdown-MODEL-VARIANT.json and the picture of it. Without a GPU, or with --dry, tiny models on the CPU show
that the program works, with the self times of operators in the place of kernels, in files of names of their own.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.fx import GraphModule

from benchmarks.breakdown.kinds import CONVOLUTION, Work, convolutions, floors, record, work
from benchmarks.breakdown.plot import plot, table
from benchmarks.breakdown.profile import Call, profiled, synchronize
from benchmarks.end_to_end.measure import compile_name
from benchmarks.end_to_end.models import MODELS, PAPER_SIZE, build, pixels, shape_of
from benchmarks.end_to_end.variants import FIRST, prepare
from benchmarks.end_to_end.variants import Subject as Model
from benchmarks.gpu.campaign import Campaign, Cost, Step, campaign_of
from benchmarks.kernels.timing import ceilings
from benchmarks.results import default_path
from jetvit.cost_model.files.whole_file import write_whole
from jetvit.cost_model.measuring.graph_operations import graph_operations
from jetvit.cost_model.measuring.operation import ATTENTIONS
from jetvit.kernels.cuda_graph import captured

HYBRID, COMPILED = "hybrid 2 FA", "compiled"
PLAIN, GRAPH = "plain calls", "CUDA graph"  # how kernels are launched
# Model, variant, and the value of its step: the model that decides comes first.
SUBJECTS = (
    *(("DINOv3-L", HYBRID, 26), ("DINOv3-B", HYBRID, 44), ("DepthAnythingV2-L", HYBRID, 44)),
    *(("DINOv3-L", COMPILED, 45), ("DepthAnythingV2-G", HYBRID, 63), ("DINOv3-7B", HYBRID, 63)),
)
_WARM_UP, _TIMED = 3, 20


def steps(dry: bool) -> list[Step]:
    """Return one for each model and variant; a dry run has the same, of tiny models."""
    return [_step(model, variant, value) for model, variant, value in SUBJECTS]


def _step(model: str, variant: str, value: int) -> Step:
    def is_done(campaign: Campaign) -> bool:
        try:
            written = json.loads(_path(campaign, model, variant).read_text(encoding="utf-8"))["environment"]
            return all(written[name] == campaign.known[name] for name in ("device", "torch", "code"))
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def run(campaign: Campaign, seconds: float) -> None:
        if seconds > 0 and not is_done(campaign):
            measure(campaign, model, variant)

    deep = MODELS[model].depth / 24
    basis = "at depth 24 25 s, cold compile 34"
    cost = Cost(round(60 * deep), round(25 * deep), basis, dry_s=20)
    warmed_by = (
        compile_name("") if model in ("DINOv3-L", "DINOv3-B", "DepthAnythingV2-L") else compile_name(model, "first")
    )
    return Step(f"breakdown {model} {variant}", value, cost, 300, is_done, run, warmed_by)


def measure(campaign: Campaign, model: str, variant: str) -> None:
    """Profile one model, write its record and its picture.

    Calls one by one and, on a GPU, the replay of a CUDA graph; the record is of the graph where there is one.
    """
    device = campaign.device
    here = subject(model, variant, device, campaign.dry)
    ways = _ways(here.call, device)
    event_ms = {way: _event_ms(call, device) for way, call in ways.items()}  # before CUPTI is there to slow them
    best = ceilings(device)
    profiles = profiled(ways, device)
    launched = list(profiles)[-1]
    about: dict[str, Any] = {"model": model, "size": here.size, "variant": variant, "batch": 1, "dtype": here.dtype}
    about |= {"weights": "random", "launched": launched, "ceilings": asdict(best)}
    about["ways"] = {way: {"event_ms": round(ms, 4)} for way, ms in event_ms.items()}
    for way, each in profiles.items():
        about["ways"][way] |= {"wall_ms": round(each.wall_ms, 4), "gaps_ms": round(each.gaps_ms, 4)}
    written = record(profiles[launched], event_ms[launched], floors(here.work, best), campaign.known, about)
    path = _path(campaign, model, variant)
    path.parent.mkdir(parents=True, exist_ok=True)
    plot(written, path.with_suffix(".png"))  # first: a step is done when its record is there
    write_whole(path, (json.dumps(written, indent=1) + "\n").encode())
    print(table(written) + f"\nwrote {path} and its picture", flush=True)


def _ways(call: Call, device: torch.device) -> dict[str, Call]:
    """Return the ways to launch a call, warmed up."""
    for _ in range(_WARM_UP):
        call()
    synchronize(device)
    ways = {PLAIN: call}
    if device.type == "cuda":
        try:
            ways[GRAPH] = captured(call)
        except RuntimeError as error:
            print(f"  not captured: {str(error)[:200]}", flush=True)
    return ways


def _path(campaign: Campaign, model: str, variant: str) -> Path:
    name = re.sub(r"[^a-z0-9]+", "-", f"{model} {variant}".lower())
    return campaign.path(f"breakdown-{name}.json")


def _event_ms(call: Call, device: torch.device) -> float:
    """Return the median time of a call without the profiler."""
    found = []
    for _ in range(_TIMED):
        if device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            call()
            end.record()
            end.synchronize()
            found.append(start.elapsed_time(end))
        else:
            began = time.perf_counter()
            call()
            found.append(1e3 * (time.perf_counter() - began))
    return statistics.median(found)


@dataclass(frozen=True)
class Subject:
    """A compiled model on one image to profile, and the least work that it has to do (empty if not counted)."""

    call: Call
    size: str
    dtype: str
    work: Mapping[str, Sequence[Work]]


def subject(model: str, variant: str, device: torch.device, dry: bool) -> Subject:
    """Return a model of the end-to-end benchmark as one of its variants, ready to be called."""
    shape, dtype = shape_of(model, dry), torch.float32 if dry else torch.bfloat16
    height, width = pixels(model, PAPER_SIZE, dry)
    images = torch.randn(1, 3, height, width, device=device, dtype=dtype)
    made = Model(build(model, device, dtype, dry), images, shape, window=4 if dry else 16)
    made.expected(None)  # as in the end-to-end benchmark: an eager call first may change which backend torch prefers
    module, call = prepare(next(each for each in FIRST if each.name == variant), made)
    parts: dict[str, list[Work]] = {}
    if isinstance(module, GraphModule) and not dry:  # floors are in bf16, and of a GPU
        counted = graph_operations(module).counted
        attentions = [each for each in counted.elements() if each.op in ATTENTIONS]
        parts = work(shape, shape.grid((height, width)), attentions)
        parts |= {CONVOLUTION: [convolutions(model, (height, width))]}
    # The key of this cache leaves out the backend of SDPA: another program may have compiled the graph for another.
    with torch._functorch.config.patch(enable_autograd_cache=False):
        call()
    return Subject(call, f"{height}x{width}", str(dtype).removeprefix("torch."), parts)


def main(arguments: Sequence[str] | None = None) -> int:
    """Profile what is not there yet, or show a record; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no model after so many minutes")
    parser.add_argument("--out", type=Path, help="folder of the results; by default under benchmarks/results")
    parser.add_argument("--dry", action="store_true", help="tiny models on the CPU")
    parser.add_argument("--show", type=Path, metavar="FILE", help="print a record and do nothing else")
    args = parser.parse_args(arguments)
    if args.show:
        try:
            written = json.loads(args.show.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            parser.error(f"--show {args.show}: {error}")
        print(table(written))
        return 0
    deadline = time.monotonic() + 60 * args.minutes
    dry = args.dry or not torch.cuda.is_available()
    out = args.out or (Path("out") / "breakdown-dry" if dry else default_path("breakdown").parent)
    # What tuning measures is kept beside the results.
    os.environ.setdefault("JETVIT_CACHE", str(out / "tuned"))
    campaign = campaign_of(out, dry)
    failed = False
    for step in sorted(steps(dry), key=lambda step: step.value):
        if (left := deadline - time.monotonic()) <= 0:
            print("the time is over: the same command goes on from here")
            break
        if step.is_done(campaign):
            continue
        print(f"{step.name}", flush=True)
        try:
            step.run(campaign, left)
        except Exception as error:  # the others may still be measured
            failed = True
            print(f"  failed: {type(error).__name__}: {error}", flush=True)
        torch.compiler.reset()
    return int(failed)
