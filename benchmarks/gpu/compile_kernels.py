"""Compile the Triton kernels in several processes, into Triton's cache on disk, as a later launch will look them up.

A program of the campaign: `python -m benchmarks.gpu.compile_kernels JSON`. It has no device: a driver that only knows
the target stands in for it, so that Triton specialises arguments and makes keys exactly as for a launch. No process
opens a CUDA context, and the processes are forks of one that has imported everything.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor

from triton.runtime.driver import driver

from benchmarks.gpu.processes import end_with_parent
from benchmarks.kernels.launches import Entry, every_entry
from benchmarks.kernels.sm90 import variant_of
from benchmarks.kernels.target_driver import TargetDriver

DTYPES, HEAD_DIMS = ("bf16", "fp16"), (64, 128)
"""Types and sizes that the first steps of a campaign launch, the most needed first."""
_entries: list[Entry] = []  # forks inherit it: an entry cannot be sent to another process


def selected() -> list[Entry]:
    """Return one launch of each variant to compile, the most needed first.

    First all of bf16 with head_dim 64, which most models have and which is tuned; then defaults before others.
    """

    def order(entry: Entry) -> tuple[bool, bool, int, int]:
        place = HEAD_DIMS.index(entry.head_dim), DTYPES.index(entry.dtype)
        return place != (0, 0), not entry.default, *place

    found = [entry for entry in every_entry() if entry.dtype in DTYPES and entry.head_dim in HEAD_DIMS]
    first = {variant_of(entry.launch): entry for entry in sorted(found, key=order, reverse=True)}
    return sorted(first.values(), key=order)


def compile_entry(entry: Entry) -> str:
    """Compile one launch; return its key in Triton's cache."""
    launch = entry.launch
    options = {"num_warps": launch.config.num_warps, "num_stages": launch.config.num_stages}
    return launch.kernel.warmup(grid=launch.grid, **launch.arguments, **launch.config.blocks, **options).hash


def compile_all(entries: Sequence[Entry], jobs: int, seconds: float) -> tuple[int, list[str]]:
    """Compile launches in so many processes, starting none after so many seconds.

    Returns how many were compiled, and an error in one line for each that does not compile.
    """
    _entries[:] = entries
    deadline = time.monotonic() + seconds
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("fork")) as pool:
        results = list(pool.map(_compile_number, range(len(entries)), [deadline] * len(entries)))
    return results.count(""), [error for error in results if error]


def _compile_number(number: int, deadline: float) -> str | None:
    """Return "" for a kernel that was compiled, an error for one that does not compile, None if it is too late."""
    if time.monotonic() > deadline:
        return None
    try:
        compile_entry(_entries[number])
    except Exception as error:  # of any type that triton or ptxas raises
        return f"{_entries[number].name}: {type(error).__name__}: {' '.join(str(error).split())[-200:]}"
    return ""


def main() -> None:
    """Compile, and print what did not compile and how long it took."""
    end_with_parent()
    given = json.loads(sys.argv[1])
    began = time.monotonic()
    driver.set_active(TargetDriver(given["capability"]))
    entries = selected()[: given["limit"]]
    done, errors = compile_all(entries, given["jobs"], given["seconds"])
    for error in errors:
        print(error)
    print(f"{done} of {len(entries)} variants compiled in {time.monotonic() - began:.1f} s")
    sys.exit(bool(errors))


if __name__ == "__main__":
    main()
