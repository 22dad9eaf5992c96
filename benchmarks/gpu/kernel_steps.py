"""Check the operators and time the mixers, as steps of a campaign."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial

import torch

from benchmarks.gpu.campaign import Campaign, Cost, Step, TimeOver
from benchmarks.kernels.check import Check
from benchmarks.kernels.group import Row
from benchmarks.kernels.implementations import Implementation, implementations
from benchmarks.kernels.measure import CHECK_COLUMNS, CHECK_KEY, check_operators, measure_problems, select_problems
from benchmarks.kernels.rows import COLUMNS, KEY, Table, code_of_kernels
from benchmarks.kernels.shapes import FIRST_MIXERS, SIZES, Problem

COMPILE = "compile kernels"
"""The step that compiles all Triton kernels in parallel, and starts the processes that will compile the models."""
FIRST_MODELS = ("DINOv3-L", "DepthAnythingV2-L")
_FIRST_SIZE = f"{SIZES[0][0]}x{SIZES[0][1]}"
# Not worth the first minutes: slower than their kin by construction, or, for the maths backend, by its traffic.
_LEFT_OUT = ("eager padded", "compiled padded", "sdpa efficient", "sdpa math")


def steps(dry: bool) -> list[Step]:
    """Return the checks and the problems: first what plans use most, then by image size."""
    first, rest = "kernel checks of bf16 and fp16", "kernel checks of fp32 and other head_dims"
    check = "~65 checks of 0.3 s; cold ~100 kernels of 0.9 s more"
    more = "~100 kernels of 0.9 s, compiled one by one"
    found = [
        Step(first, 12, Cost(120, 30, check), 240, _never, partial(_check_step, is_first), COMPILE),
        Step(rest, 64, Cost(120, 120, more), 400, _never, partial(_check_step, lambda check: not is_first(check))),
    ]
    mixers = {mixer.name for mixer in FIRST_MIXERS}
    groups: dict[tuple[str, str, bool], list[Problem]] = {}
    for problem in select_problems("", dry):
        groups.setdefault((problem.model, problem.size, problem.mixer.name not in mixers), []).append(problem)
    for number, ((model, size, late), group) in enumerate(groups.items()):
        name = f"kernels {model} {size}, {'more' if late else 'first'} mixers"
        basis = "6 compilations by Inductor of 3 to 8 s; cold ~15 kernels of 1 s more"
        run = partial(_measure_step, group)
        cost = Cost(45, 30, basis, dry_s=30)
        found.append(
            Step(name, _value(model, size, late, number), cost, 240, partial(_is_measured, group), run, COMPILE)
        )
    return found


def is_first(check: Check) -> bool:
    """Return whether a check is of a dtype and a head_dim that the models of the campaign have."""
    return check.dtype != "fp32" and check.name.split()[2] in ("d64", "d128")


def _value(model: str, size: str, late: bool, number: int) -> float:
    if size == _FIRST_SIZE and not late:
        return 14 + FIRST_MODELS.index(model) if model in FIRST_MODELS else 43
    return 66 + number / 1000


def _never(campaign: Campaign) -> bool:
    """Leave it to the journal whether the checks are done: how many there are is known to their generator alone."""
    return False


def _check_step(select: Callable[[Check], bool], campaign: Campaign, seconds: float) -> None:
    table = Table(campaign.path("kernels-checks.csv"), CHECK_COLUMNS, CHECK_KEY)
    _, complete = check_operators(table, campaign.device, _known(campaign), seconds, campaign.dry, select)
    if not complete:
        raise TimeOver("checks are left")


def _timed(problem: Problem) -> list[Implementation]:
    return [each for each in implementations(problem) if each.name not in _LEFT_OUT]


def _is_measured(group: Sequence[Problem], campaign: Campaign) -> bool:
    path = campaign.path("kernels.csv")
    if not path.exists():
        return False
    table, known = Table(path, COLUMNS, KEY), _known(campaign)
    rows = (
        {"model": each.model, "size": each.size, "mixer": each.mixer.name, "implementation": implementation.name}
        for each in group
        for implementation in _timed(each)
    )
    return all(table.has(known | {"dtype": "bf16"} | row) for row in rows)


def _measure_step(group: list[Problem], campaign: Campaign, seconds: float) -> None:
    table = Table(campaign.path("kernels.csv"), COLUMNS, KEY)
    deadline = time.monotonic() + seconds
    measure_problems(table, group, campaign.device, _known(campaign), deadline, seed=0, left_out=_LEFT_OUT)
    torch._dynamo.reset()


def _known(campaign: Campaign) -> Row:
    return {**campaign.known, "code": code_of_kernels()}
