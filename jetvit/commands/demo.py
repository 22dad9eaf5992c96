"""Show the whole search on a CPU, in three to ten minutes on two cores."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jetvit.bench import COMPILED, JETVIT
from jetvit.commands.outputs import add_force_option, refuse_existing
from jetvit.commands.progress import progress_bar
from jetvit.cost_model.files.lock import locked
from jetvit.demo.walkthrough import SIZE, run_demo
from jetvit.patterns.wording import counted

FILES = ("plan", "report.html", "sites.png", "training.png", "full_blocks.png", "trade_off.png")

DESCRIPTION = """\
A small Vision Transformer, trained by us to read the depth of rendered rooms, at 256×256: its attentions are found;
most of them become linear or window attention that is trained to yield what the model yields now; both models are
compiled and compared, in speed and in δ1 on rooms that neither has seen. All numbers are measured here."""
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
    for line in quality(demo.plan.provenance, demo.untrained):
        print(line)
    full, ours = demo.result.column(COMPILED).median_ms, demo.result.column(JETVIT).median_ms
    print(
        f"\nResult: compiled full attention {full:.4g} ms, compiled jetvit {ours:.4g} ms: {demo.result.ratio:.2f}× "
        f"({demo.result.ratio_low:.2f} – {demo.result.ratio_high:.2f}).\n"
        f"wrote {', '.join(FILES[:-1])} and {FILES[-1]} to {folder}\n"
        "next: jetvit search MODEL --data DIR --task TASK -o PLAN, with a model and pictures of yours"
    )


def quality(made: Mapping[str, Any], untrained: float) -> Iterator[str]:
    """Lines on δ1 of the three models, the difference that counts, and what may be said of it.

    Args:
        made: the record of the plan.
        untrained: δ1 where all attentions are linear and nothing is trained.
    """
    test = made["test"]
    rooms = counted(made["images_test"], "test room")
    yield f"δ1, the share of pixels whose depth is right within a factor of 1.25, on {rooms}"
    yield f"{'original':<28}{test['original']['delta1']:.3f}"
    yield f"{'all linear, not trained':<28}{untrained:.3f}"
    yield f"{'plan, trained':<28}{test['plan']['delta1']:.3f}"
    mean, low, high = test["plan_minus_original"]
    yield f"{'plan − original':<28}{mean:+.3f} (95 % interval {low:+.3f} to {high:+.3f})"
    margin = f"the margin of {test['margin']:g}"
    if test["non_inferior_to_original"]:
        yield f"The plan is not inferior to the original at {margin}."
    elif high < 0:
        yield f"The plan is worse than the original, not non-inferior at {margin}: so short a training is not enough."
    else:
        yield f"It is not shown that the plan is as good as the original, at {margin}."
