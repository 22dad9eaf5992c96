"""Fit the predictor of a latency table, for the operations that were not measured."""

from __future__ import annotations

import argparse
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from jetvit.commands.outputs import add_force_option, output_file
from jetvit.cost_model.measuring.measurement import Measurement
from jetvit.cost_model.measuring.operation import Operation
from jetvit.cost_model.measuring.table import read_table
from jetvit.cost_model.predicting.device_costs import digest, find_table, latest, predictor_path
from jetvit.cost_model.predicting.latencies import fit_predictor
from jetvit.cost_model.predicting.predictor import Predictor
from jetvit.cost_model.predicting.roofline import kernel_of
from jetvit.files import atomic_path
from jetvit.patterns.errors import InputError
from jetvit.patterns.wording import counted

DESCRIPTION = """\
Fit a predictor to a table of `jetvit measure`, and keep it beside the table: what was not measured is then predicted,
with a 90 % interval. Of several versions of one device (torch, driver, …) the one that was measured last counts. The
same table gives the same file. A table that has grown since is fitted anew, by the same command."""
EPILOG = """\
A kernel is an operation of one dtype and backend, and has a model of its own; one with too few rows has none, and what
was not measured of it stays unknown. Of each kernel the half width of the interval is printed: how far off nine of ten
predictions were at most, of families of shapes (or sizes) that were held out of the fit.

examples:
  jetvit fit amd-epyc-threads-2.csv
  jetvit fit h100.csv -o elsewhere.npz"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `jetvit fit`."""
    parser.add_argument(
        "table", metavar="TABLE", help="a table of `jetvit measure`, or the name of one that comes with jetvit"
    )
    parser.add_argument(
        "-o", "--out", metavar="FILE", help="the predictor (default: beside the table, where other commands look)"
    )
    add_force_option(parser)


def run(args: argparse.Namespace) -> None:
    """Fit, write, and print how sure the predictions are.

    Raises InputError for a table that is missing, broken or without rows enough, and a file that cannot be written.
    """
    table = find_table(args.table)
    out = Path(args.out or predictor_path(table))
    if out.resolve() == table.resolve():
        raise InputError(f"{out} is the table itself", do="give the predictor another name (-o FILE)")
    fitted_to = digest(table)  # before the rows are read: what is appended meanwhile makes the predictor an old one
    rows = latest(read_table(table))
    if not rows:
        raise InputError(f"the latency table {table} has no rows", do="fill it: jetvit measure")
    # A predictor beside its table is fitted anew by the same command.
    with (
        output_file(out, args.force or not args.out),
        atomic_path(out) as path,
    ):  # refuses a path that cannot be written before the work
        predictor, why_not = _fit(rows, table)
        replace(predictor, fitted_to=fitted_to).save(path)
    machine = rows[0].machine
    print(f"{machine}, torch {machine.torch}: {counted(len(rows), 'row')}")
    print("\n".join(_lines(rows, predictor, why_not)))
    print(f"wrote {out}")


def _fit(rows: Sequence[Measurement], table: Path) -> tuple[Predictor, dict[str, str]]:
    predictor, why_not = fit_predictor(rows)
    if not predictor.models:
        raise InputError(
            f"no kernel of {table} has enough rows", why="; ".join(why_not.values()), do="measure more: jetvit measure"
        )
    return predictor, why_not


def _lines(rows: Sequence[Measurement], predictor: Predictor, why_not: Mapping[str, str]) -> Iterator[str]:
    """A table of the kernels: rows, operations among them, the half width, what was held out."""
    operations: dict[str, list[Operation]] = defaultdict(list)
    for row in rows:
        operations[kernel_of(row.operation)].append(row.operation.key)
    width = max(map(len, operations))
    yield f"{'kernel':<{width}}  {'rows':>5}  {'operations':>10}  {'90 % within':>11}  held out"
    for kernel, measured in sorted(operations.items()):
        start = f"{kernel:<{width}}  {len(measured):>5}  {len(set(measured)):>10}"
        if kernel in predictor.calibrations:
            calibration = predictor.calibrations[kernel]
            factor = f"factor {math.exp(calibration.half_width):.2f}"
            yield f"{start}  {factor:>11}  {calibration.held_out}"
        else:
            yield f"{start}  {'–':>11}  not predicted: {why_not[kernel].removeprefix(f'{kernel}: ')}"
