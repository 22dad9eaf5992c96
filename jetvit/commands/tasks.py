"""The tasks of `jetvit search` and `jetvit check`: their options, and how their metrics are printed."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from typing import Any

from jetvit.commands.options import at_least
from jetvit.search import Depth, Features, Segmentation, Task

# What a task cannot do without, and what else is of that task alone.
NEEDED = {
    "segmentation": ("classes",),
    "depth": ("dialect", "nearest", "farthest", "depth_scale"),
    "features": (),
}
_OPTIONAL = {"segmentation": ("head",), "depth": ("head", "saturated", "crop"), "features": ()}
_ADVICE = {
    "segmentation": "give --classes N: how many classes the labels tell apart, void not counted",
    "depth": "say which metric the data set is measured by (--dialect depth or disparity), its range in metres "
    "(--nearest 0.001 --farthest 10) and the metres of one unit of its PNGs (--depth-scale 0.001)",
}


def add_task_options(group: Any) -> None:
    """The options of a task, but for --task and --head."""
    group.add_argument("--classes", type=at_least(2), metavar="N", help="how many classes, void not counted")
    group.add_argument(
        "--taps",
        type=lambda text: text.split(","),
        metavar="A,B",
        help="the blocks whose outputs the head reads, such as blocks.5,blocks.11 (default: the last, and for depth "
        "three more; of a model with its own head, those that it reads)",
    )
    group.add_argument("--dialect", choices=("depth", "disparity"), help="what depth is measured on, once aligned")
    group.add_argument("--nearest", type=float, metavar="M", help="depths below M metres are unknown")
    group.add_argument("--farthest", type=float, metavar="M", help="depths above M metres are unknown")
    group.add_argument(
        "--depth-scale", type=float, metavar="M", help="one unit of the depths is M metres; 0 is unknown"
    )
    group.add_argument("--saturated", type=int, metavar="N", help="the unit that stands for N or more, thus unknown")
    group.add_argument(
        "--crop", type=_crop, metavar="T,B,L,R", help="rows T to B and columns L to R of the depths alone count"
    )


def refuse_task_usage(args: argparse.Namespace) -> None:
    """Refuse, with status 2, what a task lacks and what is of another task, or of any where there is none."""
    if args.task is None:
        every = ("taps", *(name for task in NEEDED for name in (*NEEDED[task], *_OPTIONAL[task])))
        given = next((name for name in every if getattr(args, name) is not None), None)
        if given is not None:
            args.parser.refuse(f"{_option(given)} is of a task", "leave it out, or give --data DIR and --task")
        return
    needed = NEEDED[args.task]
    own = {*needed, *_OPTIONAL[args.task]}
    missing = [_option(name) for name in needed if getattr(args, name) is None]
    if missing:
        args.parser.refuse(f"--task {args.task} needs {', '.join(missing)}", _ADVICE[args.task])
    for task in NEEDED:
        for name in (*NEEDED[task], *_OPTIONAL[task]):
            if name not in own and getattr(args, name) is not None:
                args.parser.refuse(f"{_option(name)} is of --task {task}", f"leave it out, or give --task {task}")


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def task_of(args: argparse.Namespace) -> Task:
    """The task that the arguments name."""
    if args.task == "features":
        return Features()
    own_head = args.head == "model"
    if args.task == "segmentation":
        return Segmentation(args.classes, taps=None if own_head else 1)
    return Depth(args.dialect, args.nearest, args.farthest, taps=None if own_head else Depth.taps, crop=args.crop)


def difference_text(test: Mapping[str, Any], other: str) -> str:
    """The paired difference of the plan and another model, and what it says; one seed is what there is."""
    mean, low, high = test[f"plan_minus_{other}"]
    verdict = "non-inferior" if test[f"non_inferior_to_{other}"] else "not shown to be non-inferior"
    bounds = f"[{value_text(low, '+')}, {value_text(high, '+')}]"
    return f"{value_text(mean, '+')}  {bounds}  {verdict} at margin {test['margin']:g}"


def value_text(value: float | None, sign: str = "") -> str:
    """A metric in four digits."""
    return "–" if value is None else f"{value:{sign}.4f}"


def _crop(text: str) -> tuple[int, int, int, int]:
    match = re.fullmatch(r"([0-9]+),([0-9]+),([0-9]+),([0-9]+)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no crop: write top,bottom,left,right, such as 45,471,41,601")
    return int(match[1]), int(match[2]), int(match[3]), int(match[4])
