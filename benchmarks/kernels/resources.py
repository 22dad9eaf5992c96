"""What a Hopper GPU would spend on every Triton kernel, and whether that passes the gates. Needs no GPU.

Every launch of `benchmarks.kernels.launches` is compiled for sm_90, its arguments typed as Inductor passes them; its
registers, spills, shared memory and instructions are printed and written to a table. The exit status is 1 if a launch
fails a gate, 2 if nothing can be compiled here.

    python -m benchmarks.kernels.resources [--only WORD] [--jobs N] [-o FILE]
"""

from __future__ import annotations

import argparse
import datetime
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import triton

from benchmarks.kernels.launches import Entry, every_entry
from benchmarks.kernels.sm90 import SHARED_LIMIT, Resources, Variant, cannot_compile, compile_variant, variant_of
from benchmarks.results import RESULTS, environment, write_table

# How many rows the smallest product of a kernel has: what wgmma, which takes 64 at a time, can be asked of.
PRODUCT_ROWS: dict[str, Callable[[Mapping[str, Any]], int]] = {
    "kv_partials": lambda values: values["BLOCK_D"],
    "mix": lambda values: values["BLOCK_W"],
    "attend_windows": lambda values: values["BLOCK_M"],
}
_WGMMA_ROWS = 64
# Bytes a thread that a kernel may spill, by dtype and head_dim: of 5 rows in fp32 triton 3.9 spills 16 without RoPE.
ALLOWED_SPILLS = {("mix", "fp32", 128): 16}


@dataclass(frozen=True)
class Result:
    """What the compiler made of an entry: resources, or the error in one line."""

    entry: Entry
    resources: Resources | None
    error: str = ""

    @property
    def failures(self) -> list[str]:
        """The gates that it does not pass."""
        return gate(self.entry, self.resources) if self.resources else [f"does not compile: {self.error}"]


def gate(entry: Entry, resources: Resources) -> list[str]:
    """What is wrong with a compiled launch, in words; nothing if it passes."""
    wrong = []
    if resources.spill_bytes > ALLOWED_SPILLS.get((entry.kernel, entry.dtype, entry.head_dim), 0):
        wrong.append(f"spills {resources.spill_bytes} bytes")
    if resources.shared_bytes > SHARED_LIMIT:
        wrong.append(f"takes {resources.shared_bytes} bytes of shared memory of {SHARED_LIMIT}")
    if resources.fp64 > 0:
        wrong.append(f"has {resources.fp64} instructions of fp64")
    if resources.serialised:
        wrong.append("waits after every warpgroup product")
    rows = PRODUCT_ROWS.get(entry.kernel)
    if rows is None:
        if resources.hgmma or resources.hmma:
            wrong.append("has products that PRODUCT_ROWS does not know")
        return wrong
    values = {**entry.launch.arguments, **entry.launch.config.blocks}
    if entry.dtype != "fp32" and entry.head_dim >= 64 and rows(values) >= _WGMMA_ROWS:
        if resources.hgmma == 0:
            wrong.append("has no HGMMA")
        if resources.hmma > 0:
            wrong.append(f"has {resources.hmma} HMMA")
    return wrong


def inductor_variant(entry: Entry) -> Variant:
    """What Inductor has triton compile for an entry. A launch by hand differs only in fewer specialisations."""
    return variant_of(entry.launch, by_inductor=True)


def compile_all(entries: Sequence[Entry], jobs: int) -> Iterator[Result]:
    """Compile the entries on `jobs` threads, those that are the same to the compiler once; in the order given."""
    pool = ThreadPoolExecutor(jobs)
    try:
        futures = {}
        for entry in entries:
            variant = inductor_variant(entry)
            if variant not in futures:
                futures[variant] = pool.submit(_attempt, variant)
        for entry in entries:
            yield Result(entry, *futures[inductor_variant(entry)].result())
    finally:
        pool.shutdown(cancel_futures=True)


def columns(result: Result) -> dict[str, Any]:
    """A row of the table."""
    entry = result.entry
    known = asdict(result.resources) if result.resources else dict.fromkeys(Resources.__dataclass_fields__, "")
    known["loops"] = " ".join(str(count) for count in known["loops"])
    return {
        "kernel": entry.kernel,
        "dtype": entry.dtype,
        "head_dim": entry.head_dim,
        "options": entry.options,
        "config": str(entry.launch.config),
        **known,
        "failures": "; ".join(result.failures),
    }


def write_results(path: Path, results: Iterable[Result]) -> None:
    """Write the rows, each with the versions and the command that made it."""
    known = environment()
    provenance = {"target": "sm_90", "triton": triton.__version__, **{k: known[k] for k in ("torch", "jetvit", "date")}}
    provenance["command"] = known["command"]
    rows = [{**columns(result), **provenance} for result in results]
    write_table(path, list(rows[0]), rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """Compile, print, write; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="WORD", help="only launches whose name holds it; writes no table")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), metavar="N", help="threads that compile")
    parser.add_argument("-o", "--output", type=Path, help="result file; by default under benchmarks/results")
    args = parser.parse_args(arguments)
    if args.jobs < 1:
        parser.error(f"--jobs must be at least 1, got {args.jobs}")
    if reason := cannot_compile():
        print(f"nothing can be compiled: {reason}", file=sys.stderr)
        return 2
    entries = [entry for entry in every_entry() if args.only in entry.name]
    if not entries:
        example = next(iter(every_entry())).name
        print(f"no launch has {args.only!r} in its name; a name is {example}", file=sys.stderr)
        return 2
    different = len({inductor_variant(entry) for entry in entries})
    print(f"{len(entries)} launches, {different} to compile; triton {triton.__version__}")
    print(_LINE.format("", "registers", "spilled", "shared", "HGMMA", "HMMA", "SASS", ""))
    results = []
    for result in compile_all(entries, args.jobs):
        results.append(result)
        print(_line(result), flush=True)
    if args.output or not args.only:
        day = datetime.datetime.now(datetime.UTC).date().isoformat()
        write_results(
            args.output or RESULTS / "sm90-compile" / day / f"kernel_resources-triton-{triton.__version__}.csv", results
        )
    failed = [result for result in results if result.failures]
    for result in failed:
        print(f"FAILED {result.entry.name}: {'; '.join(result.failures)}")
    print(f"{len(results) - len(failed)} of {len(results)} launches pass")
    return 1 if failed else 0


_LINE = "{:<100} {:>9} {:>7} {:>7} {:>5} {:>4} {:>5}  {}"


def _line(result: Result) -> str:
    found, notes = result.resources, "; ".join(result.failures)
    if found is None:
        return _LINE.format(result.entry.name, *[""] * 6, notes)
    numbers = (found.registers, found.spill_bytes, found.shared_bytes, found.hgmma, found.hmma, found.instructions)
    return _LINE.format(result.entry.name, *numbers, notes)


def _attempt(variant: Any) -> tuple[Resources | None, str]:
    try:
        return compile_variant(variant), ""
    except Exception as error:  # whatever triton or ptxas raises is the result of this launch
        return None, f"{type(error).__name__}: {error}".strip().splitlines()[0]


if __name__ == "__main__":
    sys.exit(main())
