"""What a Hopper GPU would spend on the mixers of five models, by counting instructions. Needs no GPU.

The launches of a linear and a window block of each model at 1024×2048, bf16, batch 1, in their default configurations,
are compiled for sm_90 as Inductor has them compiled, and written to a table: instructions outside loops and in each
loop, registers, programs that fit on a multiprocessor, waves, and the issue bound: instructions that all warps
execute, over four a clock on each of 132 multiprocessors at 1.98 GHz. A kernel is not faster than that, nor than its
bytes allow.

    python -m benchmarks.kernels.costs [--only WORD] [-o FILE]
"""

from __future__ import annotations

import argparse
import datetime
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import triton

from benchmarks.kernels.shapes import Problem, problems
from benchmarks.kernels.sm90 import MULTIPROCESSORS, Resources, cannot_compile, compile_variant, variant_of
from benchmarks.results import RESULTS, environment, write_table
from jetvit.cost_model.measuring.timing import generator_shapes
from jetvit.kernels.launch import Launch, record_launches
from jetvit.kernels.linear_attention.triton_launch import linear_attention_triton
from jetvit.kernels.window_attention.triton_launch import window_attention_triton

SIZE = "1024x2048"
CLOCK_MHZ = 1980  # an H200's and an H100's under load
SCHEDULERS = 4


def launches(problem: Problem) -> list[Launch]:
    """What an operator launches for a problem."""
    heads, head_dim, grid = problem.num_heads, problem.head_dim, (problem.grid_h, problem.grid_w)
    q, k, v = torch.empty(1, problem.tokens, 3, heads, head_dim, dtype=torch.bfloat16, device="meta").unbind(2)
    tables = [torch.empty((side, 2, head_dim // 4) if problem.rope else 0, device="meta") for side in grid]
    with record_launches() as found:
        if problem.mixer.kind == "window":
            side = problem.mixer.size
            window_attention_triton(q, k, v, *tables, *grid, problem.extra_tokens, side, side, head_dim**-0.5)
        else:
            shapes = generator_shapes(problem.channels, problem.mixer.size)
            weights = [torch.empty(shape, dtype=torch.bfloat16, device="meta") for shape in shapes]
            place = (*grid, problem.extra_tokens, problem.mixer.size)
            linear_attention_triton(q, k, v, *tables, *weights, *place, 1e-6, "relu")
    return found


def executed(launch: Launch, resources: Resources) -> float | None:
    """Instructions that all warps of a launch execute, or None where the loops are not those that are known here."""
    values: Mapping[str, Any] = {**launch.arguments, **launch.config.blocks}
    programs, loops = math.prod(launch.grid), resources.loops
    kernel = launch.kernel.__name__
    if kernel == "kv_partials" and len(loops) == 1:
        blocks = -(-values["tokens"] // values["BLOCK_N"]) * values["batch_heads"]
        return (programs * resources.outside_loops + blocks * loops[0]) * launch.config.num_warps
    if kernel == "mix" and len(loops) == 2:  # rows, and tokens off the grid
        rows = values["rows"] + values["CONV"] - 1
        return programs * (resources.outside_loops + rows * max(loops)) * launch.config.num_warps
    if kernel == "attend_windows" and len(loops) == 3:  # extra tokens, rest of a window, its full blocks
        heads = values["batch"] * values["heads"]
        extra = values["tokens"] - values["grid_h"] * values["grid_w"]
        size = values["side_h"] * values["side_w"]
        full = size // values["BLOCK_N"]
        rest = -(-(extra + size - full * values["BLOCK_N"]) // values["BLOCK_R"])
        splits = values["splits"] * values["groups"] * heads
        keys = -(-values["tokens"] // values["BLOCK_EN"]) * values["groups"] * heads
        # Without extra tokens the kernel has the windows' instructions alone.
        alone = replace(launch, arguments={**launch.arguments, "EXTRA": False})
        once = compile_variant(variant_of(alone, by_inductor=True)).outside_loops
        windows = (programs - splits) * (once + rest * loops[1] + full * loops[2])
        return (windows + splits * (resources.outside_loops - once) + keys * loops[0]) * launch.config.num_warps
    return None


def rows(words: str) -> Iterator[dict[str, Any]]:
    """The rows of the table, one a launch."""
    for problem in problems():
        name = f"{problem.model} {problem.mixer.name}"
        if problem.size != SIZE or problem.mixer.kind == "full" or words not in name:
            continue
        for launch in launches(problem):
            found = compile_variant(variant_of(launch, by_inductor=True))
            programs, count = math.prod(launch.grid), executed(launch, found)
            issue_us = None if count is None else count / (SCHEDULERS * MULTIPROCESSORS * CLOCK_MHZ)
            yield {
                "model": problem.model,
                "mixer": problem.mixer.name,
                "kernel": launch.kernel.__name__,
                "config": str(launch.config),
                "programs": programs,
                "registers": found.registers,
                "spill_bytes": found.spill_bytes,
                "shared_bytes": found.shared_bytes,
                "programs_per_sm": found.programs_per_sm,
                "waves": round(programs / (MULTIPROCESSORS * found.programs_per_sm), 2),
                "outside_loops": found.outside_loops,
                "loops": " ".join(map(str, found.loops)),
                "fp64": found.fp64,
                "issue_bound_us": "" if issue_us is None else round(issue_us, 1),
            }


def main(arguments: Sequence[str] | None = None) -> int:
    """Compile, print, write; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="WORD", help="'DINOv3-L window 16'; writes no table without -o")
    parser.add_argument("-o", "--output", type=Path, help="result file; by default under benchmarks/results")
    args = parser.parse_args(arguments)
    if reason := cannot_compile():
        print(f"nothing can be compiled: {reason}", file=sys.stderr)
        return 2
    known = environment()
    provenance = {"target": "sm_90", "triton": triton.__version__}
    provenance |= {name: known[name] for name in ("torch", "jetvit", "date", "command")}
    table = []
    for row in rows(args.only):
        table.append(row | provenance)
        bound = f"{row['issue_bound_us']} µs" if row["issue_bound_us"] != "" else ""
        print(
            f"{row['model']:<18} {row['mixer']:<11} {row['kernel']:<15} {row['registers']:>4} registers "
            f"{row['programs_per_sm']:>2} a multiprocessor {row['waves']:>6} waves {row['outside_loops']:>5} + "
            f"{row['loops']:<16} {bound}",
            flush=True,
        )
    if not table:
        print(f"no problem has {args.only!r} in its name; a name is 'DINOv3-L window 16'", file=sys.stderr)
        return 2
    if args.output or not args.only:
        day = datetime.datetime.now(datetime.UTC).date().isoformat()
        path = RESULTS / "sm90-compile" / day / f"kernel_costs-triton-{triton.__version__}.csv"
        write_table(args.output or path, list(table[0]), table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
