"""The outputs of commands: one run at a time writes to each, and replaces nothing without `--force`."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from jetvit.cost_model.files.lock import locked
from jetvit.cost_model.plans.plan_file import PLAN_FILE, PLAN_FILES
from jetvit.files import writable
from jetvit.patterns.errors import InputError


def add_force_option(parser: argparse.ArgumentParser) -> None:
    """`--force`: replace an output that exists."""
    parser.add_argument("--force", action="store_true", help="replace the output if it exists (default: refuse)")


@contextmanager
def output_file(path: str | Path, force: bool) -> Iterator[None]:
    """Lock a file that the block writes.

    Raises:
        InputError: the file exists, or the weights that an ONNX model has beside it, and `force` is not set; another
            run writes to it; or its folder takes no files.
    """
    writable(path)
    beside = [Path(f"{path}.data")] if str(path).endswith(".onnx") else []
    with locked(path):
        refuse_existing([Path(path), *beside], force)
        yield


@contextmanager
def output_plan(path: Path, force: bool) -> Iterator[None]:
    """Lock a folder that the block writes a plan to.

    Raises:
        InputError: the folder holds a plan, and `force` is not set; it holds other files; or another run writes to it.
    """
    path.absolute().parent.mkdir(parents=True, exist_ok=True)
    with locked(path):
        check_plan_folder(path, force)
        yield


def check_plan_folder(path: Path, force: bool) -> None:
    """Refuse a folder that a plan cannot be written to.

    Raises:
        InputError: it holds other files than those of a plan, or a plan and `force` is not set.
    """
    if not path.is_dir():
        return
    others = sorted(each.name for each in path.iterdir() if each.name not in PLAN_FILES and each.name[0] != ".")
    if others:
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""
        raise InputError(
            f"cannot write the plan {path}",
            why=f"the folder holds other files: {', '.join(others[:3])}{more}",
            do=f"name a new folder, such as {path / 'plan'}",
        )
    if (path / PLAN_FILE).exists():
        refuse_existing([path], force)


def refuse_existing(paths: Sequence[Path], force: bool) -> None:
    """Refuse to replace what exists.

    Raises:
        InputError: one of the paths exists, and `force` is not set.
    """
    existing = next((path for path in paths if path.exists()), None)
    if existing is not None and not force:
        raise InputError(
            f"{existing} exists already",
            why="it would be replaced",
            do="name another output, or replace it with --force",
        )
