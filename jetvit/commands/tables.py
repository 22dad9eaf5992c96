"""The option --table, and the latency table that it names."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

import jetvit
from jetvit.commands.subject import note
from jetvit.cost_model.measuring.measurement import this_machine
from jetvit.cost_model.measuring.table import read_table
from jetvit.cost_model.predicting.device_costs import DeviceCosts, find_table, shipped_tables, stored_predictor


def add_table_option(parser: argparse.ArgumentParser, text: str) -> None:
    """`--table FILE_OR_NAME`; `text` says what it is for."""
    names = ", ".join(shipped_tables())
    parser.add_argument(
        "--table", metavar="T", help=f"{text}: a file of `jetvit measure`, or one that comes with jetvit ({names})"
    )


def load_table(name: str) -> DeviceCosts:
    """The table of that path or name.

    Raises:
        InputError: there is none, or it cannot be read.
    """
    path = find_table(name)
    if stored_predictor(path) is None and read_table(path):
        note(f"{path} has no predictor of its rows: one is fitted, which takes a while; `jetvit fit` keeps it")
    return DeviceCosts.load(path)


def table_of(device: torch.device) -> DeviceCosts | None:
    """The table of this device that comes with jetvit, by the device's name; None where there is none.

    One without its predictor is passed over: nobody asked for the time that a fit takes.
    """
    machine = this_machine(device, jetvit.__version__)
    path = shipped_tables().get(Path(machine.file_name).stem)
    return None if path is None or stored_predictor(path) is None else DeviceCosts.load(path)
