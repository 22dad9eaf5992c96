"""Show the whole search on a CPU, in three to ten minutes on two cores."""

from __future__ import annotations

import argparse
from pathlib import Path

from jetvit.bench import COMPILED, JETVIT
from jetvit.commands.outputs import add_force_option, refuse_existing
from jetvit.commands.progress import progress_bar
from jetvit.cost_model.files.lock import locked
from jetvit.demo.page import PICTURES
from jetvit.demo.walkthrough import SIZE, run_demo

FILES = ("plan", "report.html", *PICTURES)

DESCRIPTION = """\
A small Vision Transformer, trained by us to read the depth of rendered rooms, at 256×256: its attentions are found;
most of them become linear or window attention that is trained to yield what the model yields now; both models are
compiled and compared, in speed and in δ1 on rooms that neither has seen. All numbers are measured here.
report.html in the folder has the speed, δ1 and all pictures."""
EPILOG = """\
example:
  jetvit demo
  jetvit explain jetvit.demo.small_vit:load_small_vit --size 256x256 --plan out/demo/plan"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `jetvit demo`."""
    parser.add_argument(
        "-o", "--out", metavar="DIR", default="out/demo", help="gets the plan, report and pictures (default: out/demo)"
    )
    add_force_option(parser)


def run(args: argparse.Namespace) -> None:
    """Run the demo, telling each step, and print what came of it."""
    folder = Path(args.out)
    folder.absolute().parent.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        refuse_existing([folder / name for name in FILES], args.force)
        _demo(folder)


def _demo(folder: Path) -> None:
    print(f"A small Vision Transformer that reads the depth of rendered rooms of {SIZE[0]}×{SIZE[1]}.", flush=True)
    with progress_bar() as progress:
        demo = run_demo(folder, say=lambda text: print(text, flush=True), progress=progress)
    print(f"\n{demo.result}\n")
    print(demo.what_delta1_is())
    for name, value in [*demo.delta1_rows(), ("plan − original", demo.difference())]:
        print(f"{name:<28}{value}")
    print(demo.verdict())
    full, ours = demo.result.column(COMPILED).median_ms, demo.result.column(JETVIT).median_ms
    print(
        f"\nResult: compiled full attention {full:.4g} ms, compiled jetvit {ours:.4g} ms: {demo.result.ratio:.2f}× "
        f"({demo.result.ratio_low:.2f} – {demo.result.ratio_high:.2f}).\n"
        f"wrote {', '.join(FILES[:-1])} and {FILES[-1]} to {folder}\n"
        "next: jetvit search MODEL --data DIR --task TASK -o PLAN, with a model and pictures of yours"
    )
