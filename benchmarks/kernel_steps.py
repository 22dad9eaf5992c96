"""The kernel benchmark in the parts that a campaign is made of."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from functools import partial

import torch

from benchmarks.campaign import Campaign, Step, TimeOver
from benchmarks.kernel_check import checks
from benchmarks.kernel_group import Row
from benchmarks.kernel_implementations import implementations
from benchmarks.kernel_rows import COLUMNS, KEY, Table, code_of_kernels
from benchmarks.kernel_shapes import FIRST_MIXERS, Problem
from benchmarks.kernels import (
    CHECK_COLUMNS,
    CHECK_KEY,
    DRY_CHECKS,
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
    known = _known(campaign)
    # For the function below checks take half of the time at most; here a step of its own has all of it.
    check_operators(table, campaign.device, known, 2 * min(seconds, _CHECKS_S) / 60, campaign.dry)
    wanted = sum(1 for _ in itertools.islice(checks(campaign.device), DRY_CHECKS if campaign.dry else None))
    done = [row for row in table.rows() if all(row[name] == known[name] for name in CHECK_KEY[:-1])]
    if len(done) < wanted:
        raise TimeOver(f"{wanted - len(done)} checks are left")


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
    return {**campaign.known, "code": code_of_kernels(), "threads": str(torch.get_num_threads())}
