"""Compile one variant of a model, into Inductor's and Triton's caches on disk, for the process that will time it.

A program of the campaign: `python -m benchmarks.gpu.compile_model JSON`. It builds, exports and rewrites the model at
once, and waits for the file `go` before it uses the device: kernels must be tuned first, by one process alone.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import torch

from benchmarks.end_to_end.cases import Case, subject_of
from benchmarks.end_to_end.variants import VARIANTS, Subject, Variant, compiled
from benchmarks.gpu.processes import end_with_parent

_POLL_S = 0.1


def main() -> None:
    """Prepare, wait, compile, and print how long each took."""
    end_with_parent()
    os.environ["JETVIT_AUTOTUNE"] = "0"  # other processes use the device, too: what is measured now is wrong
    given = json.loads(sys.argv[1])
    variant, go, began = VARIANTS[given["variant"]], Path(given["go"]), time.monotonic()
    case = Case(given["model"], tuple(given["size"]), given["batch"], (variant,))
    subject = subject_of(case, torch.device("cpu" if given["dry"] else "cuda"), given["dry"])
    prepare(variant, subject)
    prepared = time.monotonic()
    print(f"prepared in {prepared - began:.1f} s", flush=True)
    while not go.exists():
        time.sleep(_POLL_S)
    released = time.monotonic()
    made = compiled(variant, subject)
    print(
        f"prepared in {prepared - began:.1f} s, waited {released - prepared:.1f} s, compiled in "
        f"{time.monotonic() - released:.1f} s beside others (graph cache: {made.graph_cache or 'none'})"
    )


def prepare(variant: Variant, subject: Subject) -> None:
    """Export the model and rewrite it, as far as the variant needs it."""
    if variant.full is not None:
        subject.hybrid(variant.full)
    elif variant.exported:
        _ = subject.program


if __name__ == "__main__":
    main()
