"""Time the mixers on the attention shapes of DINOv3 and DepthAnythingV2, ours beside all others. For any NVIDIA GPU.

Every operator is first checked against fp64. Then each problem (model, image size, mixer) is measured as a group: our
operator, our ATen reference, plain PyTorch eager and compiled, FlexAttention, the backends of SDPA, in bf16, batch 1.
The most telling problems come first, rows are on disk as soon as a group is done, and the same command goes on where
it stopped. The last thing is the plot. Exit status 1: an operator is wrong; 3: the device was lost, run again.

    python -m benchmarks.kernels [--minutes M] [--only WORDS] [--out DIR] [--retry] [--dry]

Without a GPU, or with --dry, small shapes on the CPU only show that the program works: their rows go to a file of
their own, out/kernels-dry, and never into a report.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import os
import random
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from benchmarks.kernels.check import Check, checks, verdict
from benchmarks.kernels.group import DeviceLost, Row, assert_device, entrants_of, failure, measure
from benchmarks.kernels.plot import plot
from benchmarks.kernels.rows import COLUMNS, KEY, Table, code_of_kernels
from benchmarks.kernels.shapes import Problem, problems
from benchmarks.kernels.timing import ceilings
from benchmarks.results import default_path, environment
from jetvit.cost_model.measuring.measurement import device_name

CHECK_COLUMNS = (
    *("check", "status", "reason", "error", "limit", "max_error"),
    *("device", "torch", "cuda", "triton", "jetvit", "code", "run", "time", "command"),
)
CHECK_KEY = ("device", "torch", "triton", "code", "check")
DRY_CHECKS = 9
_DRY_MODELS = ("DINOv3-B", "DepthAnythingV2-L")  # with RoPE and without


def main(arguments: Sequence[str] | None = None) -> int:
    """Check, measure, plot; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no group after so many minutes")
    parser.add_argument(
        "--only", default="", metavar="WORDS", help="problems with one of these, by commas: 'DINOv3-B,full'"
    )
    parser.add_argument("--out", type=Path, help="folder of the results; by default under benchmarks/results")
    parser.add_argument("--seed", type=int, default=0, help="of the inputs and of the order of timing")
    parser.add_argument("--retry", action="store_true", help="measure groups anew in which something failed")
    parser.add_argument("--dry", action="store_true", help="small shapes on the CPU")
    args = parser.parse_args(arguments)
    dry = args.dry or not torch.cuda.is_available()
    selected = select_problems(args.only, dry)
    if not selected:
        names = sorted({f"{problem.model} {problem.size} {problem.mixer.name}" for problem in select_problems("", dry)})
        parser.error(f"--only {args.only}: none of the problems has it in its name; they are\n  " + "\n  ".join(names))
    if args.out and args.out.exists() and not args.out.is_dir():
        parser.error(f"--out {args.out} is not a folder")
    deadline = time.monotonic() + 60 * args.minutes
    device = torch.device("cpu" if dry else "cuda")
    name = "kernels-dry" if dry else "kernels"
    out = args.out or (Path("out") / name if dry else default_path(name).parent)
    # What tuning measured is kept beside the results.
    os.environ.setdefault("JETVIT_CACHE", str(out / "tuned"))
    known = _provenance(dry, args.out)
    table = Table(out / f"{name}.csv", COLUMNS, KEY)
    checked = Table(out / f"{name}-checks.csv", CHECK_COLUMNS, CHECK_KEY)
    if args.retry:
        _forget_failures(table, checked)
    print(f"{known['device']}, torch {known['torch']}, triton {known['triton']}; writing {table.path}")
    try:
        right, _ = check_operators(checked, device, known, 30 * args.minutes, dry)  # half of the time at most
        measure_problems(table, selected, device, known, deadline, args.seed)
    except DeviceLost as error:
        print(f"the device was lost ({error}); run the same command again to go on")
        return 3
    plot(table.rows(), out)
    return 0 if right else 1


def _forget_failures(table: Table, checked: Table) -> None:
    """Take out what failed; of the measurements the whole group, so that all of it is of one run.

    What did not fit in memory will not fit again.
    """

    def group(row: Mapping[str, Any]) -> tuple[Any, ...]:
        return row["model"], row["size"], row["mixer"]

    failed = {group(row) for row in table.rows() if row["status"] in ("wrong", "unsupported")}
    table.drop(lambda row: group(row) in failed)
    checked.drop(lambda row: row["status"] != "ok")


def select_problems(words: str, dry: bool) -> list[Problem]:
    """Return the problems that the command line selects, in their order; a dry run has few of them."""
    wanted = [word.strip() for word in words.split(",") if word.strip()]
    found = problems()
    if dry:
        size = found[0].size
        found = [problem.shrunk() for problem in found if problem.size == size and problem.model in _DRY_MODELS]
    return [
        problem
        for problem in found
        if not wanted or any(word in f"{problem.model} {problem.size} {problem.mixer.name}" for word in wanted)
    ]


def check_operators(
    table: Table,
    device: torch.device,
    known: Row,
    seconds: float,
    dry: bool,
    select: Callable[[Check], bool] = lambda check: True,
) -> tuple[bool, bool]:
    """Check the operators, starting no check after so many seconds.

    Returns whether all that were checked are right, and whether all that `select` takes were checked.
    """
    deadline, complete = time.monotonic() + seconds, True
    for check in itertools.islice(filter(select, checks(device)), DRY_CHECKS if dry else None):
        row = known | {"check": check.name}
        if table.has(row):
            continue
        if time.monotonic() > deadline:
            print("the time for checks is over: the others are left to the next run")
            complete = False
            break
        try:
            found = verdict(check)
            row |= {"status": "ok" if found.right else "wrong", "limit": found.limit}
            row |= {"error": f"{found.error:.3g}", "max_error": f"{found.max_error:.3g}"}
        except Exception as error:  # an operator that raises is not right
            row |= failure(error)
            _append(table, [row])
            assert_device(device, error)
        else:
            _append(table, [row])
        if row["status"] != "ok":
            print(f"WRONG {check.name}: {row.get('reason') or row['error']}", flush=True)
    rows = [row for row in table.rows() if row["code"] == known["code"] and row["device"] == known["device"]]
    passed = sum(row["status"] == "ok" for row in rows)
    print(f"{passed} of {len(rows)} checks passed" if rows else "no check was made yet", flush=True)
    return passed == len(rows), complete


def measure_problems(
    table: Table,
    selected: list[Problem],
    device: torch.device,
    known: Row,
    deadline: float,
    seed: int,
    left_out: Collection[str] = (),
) -> None:
    """Measure the problems that have no rows yet, starting none after `deadline`.

    left_out: the names of implementations that are not measured.
    """
    best = ceilings(device)
    print(f"copy {best.copy_tb_s:.2f} TB/s, bf16 product {best.gemm_tflop_s:.0f} TFLOP/s", flush=True)
    for number, problem in enumerate(selected, 1):
        if time.monotonic() > deadline:
            print(f"the time is over: {len(selected) - number + 1} of {len(selected)} groups are left to the next run")
            return
        todo = (each for each in entrants_of(problem, best) if each.implementation.name not in left_out)
        entrants = [each for each in todo if not table.has(known | each.row)]
        if not entrants:
            continue
        start = time.monotonic()
        print(f"[{number}/{len(selected)}] {problem.model} {problem.size} {problem.mixer.name}", flush=True)
        measure(
            problem,
            entrants,
            device,
            write=lambda rows: _append(table, [known | row for row in rows], say=True),
            seed=random.Random(f"{seed} {problem}").randrange(2**31),
        )
        print(f"  {time.monotonic() - start:.0f} s", flush=True)


def _append(table: Table, rows: list[Row], say: bool = False) -> None:
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    table.append({name: value for name, value in row.items() if name in table.columns} | {"time": now} for row in rows)
    for row in rows if say else ():
        timed = f"{float(row['median_ms']):9.4f} ms {row['times_floor']:>6}x floor" if row["status"] == "ok" else ""
        print(f"  {row['implementation']:<20} {timed or row['status'] + ': ' + row['reason']}", flush=True)


def _provenance(dry: bool, out: Path | None) -> Row:
    """Return the columns that are the same in all rows of a run."""
    known: dict[str, Any] = environment()
    command = known["command"].replace(str(out), "DIR") if out else known["command"]
    try:
        triton = version("triton")
    except PackageNotFoundError:
        triton = "none"
    if dry:
        known["device"] = device_name(torch.device("cpu"))
    return {
        **{name: known[name] for name in ("device", "torch", "jetvit", "threads")},
        "cuda": torch.version.cuda or "none",
        "triton": triton,
        "code": code_of_kernels(),
        "dry": dry,
        "run": known["date"],
        "command": command,
    }
