"""Measure on a GPU every number of the README that needs one, the most telling first. For any NVIDIA GPU.

All Triton kernels are compiled in parallel, the operators are checked against fp64, kernels are timed beside their
rivals, whole models beside compiled full attention, and the kernels of whole models are counted (the breakdown); then
come more variants, property-based tests, single operations for the cost model, and larger batches. Each row is on disk
as soon as it is known. The same command resumes where it stopped, and leaves out what is there:

    python -m benchmarks.gpu [--minutes M] [--archive FILE] [--only WORDS] [--out DIR] [--retry] [--list] [--dry]
    python -m benchmarks.gpu --install ARCHIVE_OR_FOLDER

Each step has an expected cost, and does not start when it would not end in time; --list prints the plan. The steps run
in a process of their own: where that dies, loses the device or takes too long, the next step gets a new one, and a step
that failed twice is left out until --retry. DIR/steps.jsonl says what became of each, DIR/report.md all that is known.
--archive keeps all results in one file, which is written again after each step. --install puts such a file's results
under benchmarks/results and its latency table into cost_model/data, and fits the predictor.

Without a GPU, or with --dry, every step runs on small shapes on the CPU, into files whose names say so. Exit status: 0
nothing is left or the time is over, 1 a step failed or found something wrong, 2 usage.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.gpu.archive import CACHES
from benchmarks.gpu.journal import Journal
from benchmarks.gpu.processes import ROOT
from benchmarks.gpu.supervisor import Keeper, Supervisor


class Place(NamedTuple):
    """The folder of a campaign, and whether the run is dry."""

    folder: Path
    dry: bool

    @property
    def journal(self) -> Journal:
        """Return the journal of the steps."""
        return Journal(self.folder / ("steps-dry.jsonl" if self.dry else "steps.jsonl"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the campaign, or one of its other jobs; return the exit status."""
    parser = _parser()
    args = parser.parse_args(arguments)
    if args.out and args.out.exists() and not args.out.is_dir():
        parser.error(f"--out {args.out} is not a folder")
    if args.install:
        from benchmarks.gpu.install import install

        return install(args.install)
    if args.list or args.worker:
        return _work_or_list(parser, args)
    # The worker starts before this process imports torch, which takes seconds.
    supervisor = Supervisor(_command(args, sys.argv[1:] if arguments is None else arguments), 60 * args.minutes)
    try:
        place = _place(args)
        keeper = Keeper(*place, args.archive.resolve() if args.archive else None)
        status = supervisor.run(place.journal, keeper)
    finally:
        supervisor.stop()
    if status:
        return status
    from benchmarks.gpu.schedule import times

    wrong = keeper.finish()
    print("\n".join(times(place.journal.events(), args.since)), flush=True)
    return 1 if wrong else 0


def _command(args: argparse.Namespace, given: Sequence[str]) -> list[str]:
    """Return the command of a worker, which runs at the top of the checkout."""
    command = [sys.executable, "-m", "benchmarks.gpu", *given, "--since", str(args.since)]
    command += ["--worker", shlex.join(["python", "-m", "benchmarks.gpu", *given])]
    return command + (["--out", str(args.out.resolve())] if args.out else [])


def _work_or_list(parser: argparse.ArgumentParser, args: argparse.Namespace) -> int:
    """Run the steps in this process, or print them."""
    place = _place(args)
    _set_environment(place.folder)
    from benchmarks.gpu.campaign import campaign_of
    from benchmarks.gpu.schedule import plan
    from benchmarks.gpu.steps import all_steps
    from benchmarks.gpu.worker import work

    words = [word.strip() for word in args.only.split(",") if word.strip()]
    steps = [step for step in all_steps(place.dry) if not words or any(word in step.name for word in words)]
    if not steps:
        names = "\n  ".join(step.name for step in all_steps(place.dry))
        parser.error(f"--only {args.only}: no step has it in its name; they are\n  {names}")
    campaign = campaign_of(place.folder, place.dry, args.worker)
    if args.list:
        print("\n".join(plan(steps, campaign, place.journal, 60 * args.minutes)))
        return 0
    place.folder.mkdir(parents=True, exist_ok=True)
    if args.retry and not any(event["at"] >= args.since for event in place.journal.events()):  # the first worker
        place.journal.forget_failures()
    return work(campaign, place.journal, args.until - time.time(), words, args.since)


def _place(args: argparse.Namespace) -> Place:
    import torch

    from benchmarks.results import default_path

    # The plan of a GPU can be listed anywhere.
    dry = args.dry or not (torch.cuda.is_available() or args.list)
    out = args.out or (ROOT / "out" / "gpu-dry" if dry else default_path("steps", args.since).parent)
    return Place(out.resolve(), dry)


def _set_environment(folder: Path) -> None:
    """Keep what tuning measures beside the results, and compiled code in one folder that all processes share."""
    os.environ.setdefault("JETVIT_CACHE", str(folder / "tuned"))
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder / CACHES / "inductor"))
    os.environ.setdefault("TRITON_CACHE_DIR", str(folder / CACHES / "triton"))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=9.0, help="the time that the steps have (default: 9)")
    parser.add_argument("--only", default="", metavar="WORDS", help="steps with one of these, by commas: 'end_to_end'")
    parser.add_argument("--out", type=Path, help="folder of the results; by default under benchmarks/results")
    parser.add_argument("--archive", type=Path, metavar="FILE", help="keep all results in this .tar.gz, too")
    parser.add_argument("--retry", action="store_true", help="try again what failed twice")
    parser.add_argument(
        "--list", action="store_true", help="print the steps in their order, their cost and their state"
    )
    parser.add_argument("--dry", action="store_true", help="small shapes on the CPU")
    parser.add_argument(
        "--install", type=Path, metavar="ARCHIVE", help="put results where README's tables are made from"
    )
    # What a worker is started with: what the user has typed, when, and when the time is over, in seconds of the clock.
    parser.add_argument("--worker", default="", help=argparse.SUPPRESS)
    parser.add_argument("--since", type=float, default=time.time(), help=argparse.SUPPRESS)
    parser.add_argument("--until", type=float, default=0.0, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
