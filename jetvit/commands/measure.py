"""Measure the latency of single operations into a table of this device."""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

import jetvit
from jetvit.commands.options import DTYPES, above_zero, at_least, height_by_width
from jetvit.cost_model.measuring.measure import Outcome, Progress, measure_all
from jetvit.cost_model.measuring.measurement import Machine, this_machine
from jetvit.cost_model.measuring.operation import Operation
from jetvit.cost_model.measuring.sweep import MODELS, SIZES, SMALL_MODELS, SMALL_SIZES, operations, spread
from jetvit.cost_model.measuring.table import TableWriter, read_table
from jetvit.models.loaded import DEVICES, refuse_missing
from jetvit.patterns.errors import InputError
from jetvit.patterns.wording import counted

log = logging.getLogger(__name__)

SECONDS_EACH = 1.0  # of a measurement, its data and its warm-up, as a rule
ALL_MODELS = SMALL_MODELS | MODELS
DESCRIPTION = """\
Measure how long single operations take on this device, on random data, forward only, and append each to a table: full
attention by backend, window and linear attention, with RoPE and without, and the products, norm, activation and sum of
a block, at the sizes of real models. The order is such that a short run is spread over all of them. What the table has
already is passed over: a run that was interrupted or killed goes on where it was, by the same command. Each operation
is measured in several passes over all of them, for a slow spell of the machine outlasts a single measurement. On a CPU
a row that was timed while the process waited for a core is timed again, up to three times, and then left out."""
EPILOG = """\
The table is a CSV file, one a device; a row is on the disk before the next is measured. Without -o it is named after
the device and lies in the folder that you are in: nvidia-h100-80gb-hbm3.csv, or amd-epyc-threads-2.csv for a CPU, whose
threads OMP_NUM_THREADS sets. A row is known by its operation and by the versions of driver, CUDA, torch, triton and
jetvit: with others it is measured anew.

examples:
  jetvit measure --device cuda --minutes 30
  jetvit measure --device cuda --models DINOv3-L,DINOv3-7B --sizes 1024x2048 --batch 1,4 -o h100.csv
  jetvit measure --minutes 5                    the small shapes, on this CPU
  jetvit measure --device cuda --dry            what would be measured, and in which order"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `jetvit measure`."""
    parser.add_argument(
        "--minutes",
        type=above_zero("time", "give minutes above 0, such as 5 or 0.5"),
        default=10.0,
        metavar="M",
        help="begin no measurement after M minutes (default: 10)",
    )
    parser.add_argument(
        "--models",
        type=_list(_model),
        metavar="NAME,…",
        help=f"whose shapes: {', '.join(MODELS)}, or the small {', '.join(SMALL_MODELS)} (default: the small ones on "
        "a CPU, the others on a GPU)",
    )
    parser.add_argument(
        "--sizes",
        type=_list(height_by_width),
        metavar="HxW,…",
        help=f"height and width of the images (default: {_words(SIZES)}; on a CPU {_words(SMALL_SIZES)})",
    )
    parser.add_argument("--small", action="store_true", help="take the small models and sizes on a GPU, too")
    parser.add_argument(
        "--batch", type=_list(at_least(1)), default=(1,), metavar="N,…", help="images in a batch (default: 1)"
    )
    parser.add_argument("--dtype", choices=DTYPES, help="default: bfloat16 on a GPU, float32 on a CPU")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default: cpu)")
    parser.add_argument("--seed", type=at_least(0), default=0, metavar="N", help="of the order (default: 0)")
    parser.add_argument(
        "--passes",
        type=at_least(1),
        default=3,
        metavar="N",
        help="measure each operation until it has N rows, all once before any twice; their median counts (default: 3)",
    )
    parser.add_argument("--dry", action="store_true", help="list what would be measured, and measure nothing")
    parser.add_argument(
        "-o", "--out", metavar="FILE", help="the table, which rows are added to (default: ./DEVICE.csv)"
    )


def run(args: argparse.Namespace) -> None:
    """Measure, or say what would be measured, and print what became of it."""
    device = _device(args.device)
    machine = this_machine(device, jetvit.__version__)
    path = Path(args.out or machine.file_name)
    order = _order(args, device)
    if args.dry:
        _print_dry(args, path, machine, order)
        return
    with TableWriter(path, machine) as writer:
        before = len(writer.measurements)
        try:
            with _bar() as (progress, say):
                outcome = measure_all(
                    order, writer, device, budget_s=60 * args.minutes, passes=args.passes, progress=progress, say=say
                )
        except KeyboardInterrupt:
            written = len(writer.measurements) - before
            print(f"wrote {counted(written, 'row')} to {path}; the same command goes on from there", file=sys.stderr)
            raise
    if outcome.busy:
        log.warning("%s", _left_out(outcome))
    print(_summary(outcome, path))


def _order(args: argparse.Namespace, device: torch.device) -> list[Operation]:
    small = args.small or device.type == "cpu"
    models = {name: ALL_MODELS[name] for name in args.models or (SMALL_MODELS if small else MODELS)}
    sizes = args.sizes or (SMALL_SIZES if small else SIZES)
    dtype = args.dtype or ("float32" if device.type == "cpu" else "bfloat16")
    try:
        found = operations(models, sizes, args.batch, [dtype], gpu=device.type == "cuda")
    except ValueError as error:
        raise InputError("there is nothing to measure at one of --sizes", why=str(error)) from error
    return spread(found, args.seed)


def _print_dry(args: argparse.Namespace, path: Path, machine: Machine, order: Sequence[Operation]) -> None:
    table = read_table(path) if path.exists() else []
    known = Counter(each.operation for each in table if each.machine == machine)
    missing = {each: max(0, args.passes - known[each]) for each in order}
    todo, calls = [each for each in order if missing[each]], sum(missing.values())
    print("\n".join(map(str, todo)))
    fit = min(calls, int(60 * args.minutes / SECONDS_EACH))
    print(
        f"\n{machine}: {counted(len(todo), 'operation')} to measure, {counted(calls, 'row')} in all; "
        f"{len(order) - len(todo)} in {path} already.\n"
        f"At about a second each {counted(fit, 'row')} can be had in {args.minutes:g} min; very long ones take more."
    )


def _left_out(outcome: Outcome) -> str:
    """Say how many rows a busy machine has cost, and how to get them."""
    _, doubt = outcome.busy[-1]
    return (
        f"{counted(len(outcome.busy), 'row')} left out, for this machine was too busy at every attempt: {doubt}. Run "
        "the same command again when nothing else runs here: it measures what is missing"
    )


def _summary(outcome: Outcome, path: Path) -> str:
    lines = [f"wrote {counted(outcome.written, 'row')} to {path}"]
    if outcome.known:
        lines.append(f"{counted(outcome.known, 'operation')} had enough already")
    if outcome.skipped:
        lines.append(f"skipped {len(outcome.skipped)}, which this device cannot run:")
        reasons = Counter(reason for _, reason in outcome.skipped)
        lines += [f"  {count} × {reason}" for reason, count in reasons.most_common()]
    if outcome.left:
        how = "the same command goes on with them" if outcome.written else "give more --minutes"
        lines.append(f"the time did not suffice for {len(outcome.left)} more: {how}")
    return "\n".join(lines)


@contextmanager
def _bar() -> Iterator[tuple[Progress, Callable[[str], None]]]:
    """Yield a function of (done, in all, seconds left) and one of sentences; the bar is only there on a terminal."""

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    if not sys.stderr.isatty():
        yield lambda done, total, left_s: None, say
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (TextColumn("measuring"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[left]}"))
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, redirect_stdout=sys.stdout.isatty()) as bars:
        task = bars.add_task("", total=None, left="")

        start = time.monotonic()

        def progress(done: int, total: int, left_s: float) -> None:
            if done:
                left_s = min(left_s, (time.monotonic() - start) / done * (total - done))
            minutes, seconds = divmod(round(left_s), 60)
            bars.update(task, completed=done, total=total, left=f"about {minutes}:{seconds:02d} left")

        yield progress, lambda text: console.print(text, markup=False, highlight=False)


def _device(text: str) -> torch.device:
    try:
        device = torch.device(text)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"{text!r} is no device that can be measured", do=DEVICES)
    refuse_missing(device)
    return device


def _words(sizes: Sequence[tuple[int, int]]) -> str:
    return ", ".join(f"{height}x{width}" for height, width in sizes)


def _list(parse: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    """A type for argparse: values of `parse`, with commas between them."""
    return lambda text: list(dict.fromkeys(parse(word.strip()) for word in text.split(",")))


def _model(text: str) -> str:
    if text not in ALL_MODELS:
        raise argparse.ArgumentTypeError(f"{text!r} is no model of the sweep: {', '.join(ALL_MODELS)}")
    return text
