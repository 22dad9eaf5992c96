"""The kernel benchmark in the parts that a campaign is made of."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial

from benchmarks.campaign import Campaign, Step, TimeOver
from benchmarks.kernel_group import Row
from benchmarks.kernel_implementations import implementations
from benchmarks.kernel_rows import COLUMNS, KEY, Table, code_of_kernels
from benchmarks.kernel_shapes import FIRST_MIXERS, Problem
from benchmarks.kernels import (
    CHECK_COLUMNS,
    CHECK_KEY,
    check_operators,
    measure_problems,
    select_problems,
)

_CHECKS_S = 120.0  # of one run of a campaign, which has more to do


def steps(dry: bool) -> list[Step]:
    """The checks and the problems as parts of a campaign: by image size, the mixers that plans use most first."""
    found = [Step("kernel checks", 10, 300, lambda campaign: False, _check_step)]
    first = {mixer.name for mixer in FIRST_MIXERS}
    groups: dict[tuple[str, bool], list[Problem]] = {}
    for problem in select_problems("", dry):
        groups.setdefault((problem.size, problem.mixer.name not in first), []).append(problem)
    for number, ((size, late), group) in enumerate(groups.items()):
        name = f"kernels {size}, {'more' if late else 'first'} mixers"
        value = 25 if number == 0 else 62 + number
        found.append(Step(name, value, 480, partial(_is_measured, group), partial(_measure_step, group)))
    return found


def _check_step(campaign: Campaign, seconds: float) -> None:
    table = Table(campaign.path("kernels-checks.csv"), CHECK_COLUMNS, CHECK_KEY)
    _, complete = check_operators(table, campaign.device, _known(campaign), min(seconds, _CHECKS_S), campaign.dry)
    if not complete:
        raise TimeOver("checks are left")


def _is_measured(group: Sequence[Problem], campaign: Campaign) -> bool:
    path = campaign.path("kernels.csv")
    if not path.exists():
        return False
    table, known = Table(path, COLUMNS, KEY), _known(campaign)
    rows = (
        {"model": each.model, "size": each.size, "mixer": each.mixer.name, "implementation": implementation.name}
        for each in group
        for implementation in implementations(each)
    )
    return all(table.has(known | {"dtype": "bf16"} | row) for row in rows)


def _measure_step(group: list[Problem], campaign: Campaign, seconds: float) -> None:
    table = Table(campaign.path("kernels.csv"), COLUMNS, KEY)
    measure_problems(table, group, campaign.device, _known(campaign), time.monotonic() + seconds, seed=0)


def _known(campaign: Campaign) -> Row:
    return {**campaign.known, "code": code_of_kernels()}
