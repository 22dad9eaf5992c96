"""Show the whole way in two minutes on a CPU."""

from __future__ import annotations

import argparse
from pathlib import Path

from jetvit.bench import COMPILED, JETVIT
from jetvit.commands.progress import progress_bar
from jetvit.demo import SIZE, run_demo

DESCRIPTION = """\
A small Vision Transformer in plain PyTorch, with random weights, on a drawn picture of 704×960: its attention is found,
each choice is timed, a plan with windows is made, and both models are compiled and compared. The speed is real. The
quality is not, for the weights are random, so no drift is shown."""
EPILOG = """\
example:
  jetvit demo
  jetvit explain jetvit.demo:SmallViT --size 704x960 --plan out/demo/plan"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `jetvit demo`."""
    parser.add_argument(
        "-o", "--out", metavar="DIR", default="out/demo", help="gets the plan and the report (default: out/demo)"
    )


def run(args: argparse.Namespace) -> None:
    """Run the demo, telling each step, and print one result."""
    folder = Path(args.out)
    print(f"A small Vision Transformer, random weights, a drawn picture of {SIZE[0]}×{SIZE[1]}.", flush=True)
    with progress_bar() as progress:
        demo = run_demo(folder, say=lambda text: print(text, flush=True), progress=progress)
    full, ours = demo.result.column(COMPILED).median_ms, demo.result.column(JETVIT).median_ms
    print(f"\n{demo.result}\n")
    print(
        f"Result: compiled full attention {full:.4g} ms, compiled jetvit {ours:.4g} ms: {demo.result.ratio:.2f}× "
        f"({demo.result.ratio_low:.2f} – {demo.result.ratio_high:.2f})."
    )
    print(
        "The weights are random: the speed is real, the quality is not, and no drift was measured.\n"
        f"wrote {folder / 'plan'} and {folder / 'report.html'}\n"
        "next: jetvit calibrate MODEL --images DIR -o PLAN, with a model and pictures of yours"
    )
