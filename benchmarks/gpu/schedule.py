"""Decide which steps of a campaign start in the time that is left, and print the plan of times."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from benchmarks.gpu.campaign import Campaign, Step
from benchmarks.gpu.journal import ENDS, SAME, Event, Journal

_MOST_FAILURES = 2
_START_S = 15.0


def expected_s(step: Step, campaign: Campaign, filled: Collection[str] = ()) -> float:
    """Return the expected seconds of a step on this machine, with the caches as they are.

    filled: names of steps that will have filled the caches before.
    """
    if campaign.dry:
        return step.cost.dry_s
    warm = step.warmed_by in filled or (step.warmed_by != "" and is_warm(step.warmed_by, campaign))
    return step.cost.warm_s if warm else step.cost.cold_s


def is_warm(name: str, campaign: Campaign) -> bool:
    """Return whether the step of that name has filled the caches of this machine, with this code and these versions."""
    return _mark(name, campaign).exists()


def mark_warm(name: str, campaign: Campaign) -> None:
    """Write that the step of that name has filled the caches."""
    mark = _mark(name, campaign)
    mark.parent.mkdir(parents=True, exist_ok=True)
    mark.touch()


def why_not(step: Step, campaign: Campaign, journal: Journal) -> str:
    """Return why there is no need to start a step, or "": it is done, or it has failed twice."""
    if step.is_done(campaign) or (step.fills_caches and is_warm(step.name, campaign)):
        return "done"
    # A journal travels from machine to machine, caches do not.
    if not step.fills_caches and journal.is_finished(step.name, campaign.known):
        return "done"
    if (failures := journal.failures(step.name, campaign.known)) >= _MOST_FAILURES:
        return f"failed {failures} times (--retry)"
    return ""


def plan(steps: Sequence[Step], campaign: Campaign, journal: Journal, seconds: float) -> Iterator[str]:
    """Yield a line for each step: its expected seconds, their sum over the steps that will run, and what became of it.

    seconds: what the next run has; steps that would not end in time are marked.
    """
    yield f"{'expected':>8} {'cold':>5} {'warm':>5} {'sum':>5}  step, in seconds"
    total, filled = _START_S, []
    yield f"{_START_S:8.0f} {'':>5} {'':>5} {total:5.0f}  start: imports in a cold file cache, CUDA context"
    for step in steps:
        expected, became = expected_s(step, campaign, filled), why_not(step, campaign, journal)
        if became == "" and total + expected > seconds:
            became = "does not fit"
        if became == "":
            total += expected
            filled.append(step.name)
        cost = f"{expected:8.0f} {step.cost.cold_s:5.0f} {step.cost.warm_s:5.0f}"
        yield f"{cost} {'' if became else f'{total:.0f}':>5}  {step.name}: {became or step.cost.basis}"


def times(events: Sequence[Event], since: float) -> Iterator[str]:
    """Yield a line for each step of the runs since that moment: expected and actual seconds, and what became of it."""
    yield f"{'expected s':>10} {'actual s':>8}  step"
    for event in events:
        if event["at"] < since or event["event"] not in (*ENDS, "postponed"):
            continue
        actual = f"{event['at'] - event['began']:.1f}" if "began" in event else ""
        reason = f": {event['reason']}" if event.get("reason") else ""
        yield f"{event.get('expected_s', 0):10.0f} {actual:>8}  {event['step']}: {event['event']}{reason}"


def _mark(name: str, campaign: Campaign) -> Path:
    same = hashlib.sha256(" ".join(str(campaign.known[each]) for each in SAME).encode()).hexdigest()[:8]
    return campaign.caches / f"{re.sub(r'[^a-z0-9]+', '-', name.lower())}-{same}.done"
