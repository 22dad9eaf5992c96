"""The options that several commands share, and their types."""

from __future__ import annotations

import argparse
import math
from typing import Any

import torch

from jetvit.models.images import parse_size
from jetvit.patterns.errors import InputError
from jetvit.search.calibration.best_plan import Budget

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def add_model_options(parser: argparse.ArgumentParser, *, dynamic: bool = False, batch: int = 1) -> None:
    """MODEL and the options that say how it is built and called; `dynamic` adds --dynamic, `batch` is the default."""
    parser.add_argument(
        "model", metavar="MODEL", help="hf:DIR, hf:ORG/NAME, timm:NAME, pkg.module:factory, FILE.pt2 or FILE.onnx"
    )
    group = parser.add_argument_group("the model and its input")
    group.add_argument(
        "--size",
        type=height_by_width,
        metavar="HxW",
        help="image height and width (default: those of the model's processor or configuration)",
    )
    group.add_argument("--batch", type=at_least(1), metavar="N", help=f"images in a batch (default: {batch})")
    group.add_argument("--dtype", choices=DTYPES, help="of weights and images (default: float32; a factory's own)")
    group.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default: cpu)")
    group.add_argument("--weights", metavar="F", help="weights from a .safetensors, .pt, .pth or .bin file")
    group.add_argument(
        "--model-arg",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="an argument of the factory or timm model, an entry of a HuggingFace configuration; can be repeated",
    )
    if dynamic:
        group.add_argument("--dynamic", action="store_true", help="leave batch, height and width open")


def add_image_options(
    parser: argparse.ArgumentParser, limit: int, *, required: bool = True, limit_note: str = ""
) -> None:
    """`--images DIR`, `--limit N`, and how the images are read; `limit_note` ends the help of --limit."""
    parser.add_argument(
        "--images", metavar="DIR", required=required, help="a folder of images like those that the model will see"
    )
    add_normalisation_options(parser)
    parser.add_argument(
        "--limit",
        type=at_least(1),
        default=limit,
        metavar="N",
        help=f"take N images, evenly spaced (default: {limit}{limit_note})",
    )
    add_strict_option(parser)


def add_strict_option(parser: argparse.ArgumentParser) -> None:
    """`--strict`: refuse unreadable images."""
    parser.add_argument("--strict", action="store_true", help="refuse unreadable images (default: skip and name them)")


def add_normalisation_options(parser: argparse.ArgumentParser) -> None:
    """`--mean R,G,B` and `--std R,G,B`."""
    for option, what in (("--mean", "mean"), ("--std", "standard deviation")):
        parser.add_argument(
            option,
            type=_channels,
            metavar="R,G,B",
            help=f"{what} that normalises images of 0 to 1 (default: the model's)",
        )


def add_output_option(parser: argparse.ArgumentParser) -> None:
    """`--output NAME`: the tensor that drift is measured on."""
    parser.add_argument(
        "--output",
        type=lambda text: int(text) if text.lstrip("-").isdigit() else text,
        metavar="NAME",
        help="measure drift on this output of the model, by name or number (default: the first floating-point one)",
    )


def at_least(lowest: int) -> Any:
    """A type for argparse: a whole number that is not below `lowest`."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = lowest - 1
        if value < lowest:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number of {lowest} or more")
        return value

    return parse


def above_zero(what: str, advice: str) -> Any:
    """A type for argparse: a finite number above 0; `what` it is and `advice` go into the refusal."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = 0.0
        if not 0 < value < float("inf"):
            raise argparse.ArgumentTypeError(f"{text!r} is no {what}: {advice}")
        return value

    return parse


def latency_budget(text: str) -> str:
    """A type for argparse: a bound on the latency of a model, as `Budget` of `best_plan.py` reads it."""
    try:
        return Budget.parse(text).text
    except InputError as error:
        raise argparse.ArgumentTypeError(f"{error.what}: {error.do}") from error


def _channels(text: str) -> tuple[float, ...]:
    try:
        values = tuple(float(word) for word in text.split(","))
    except ValueError:
        values = ()
    if len(values) != 3 or not all(map(math.isfinite, values)):
        raise argparse.ArgumentTypeError(f"{text!r} is not one number a channel: write 0.5,0.5,0.5")
    return values


def height_by_width(text: str) -> tuple[int, int]:
    """A type for argparse: the size of an image."""
    try:
        return parse_size(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(f"{error.what}: {error.why}; {error.do}") from error
