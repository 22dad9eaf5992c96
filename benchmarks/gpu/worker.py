"""Run the steps of a campaign in their order, in the process that has the device."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Sequence

from benchmarks.gpu.campaign import Campaign, Skipped, TimeOver
from benchmarks.gpu.journal import Journal
from benchmarks.gpu.processes import end_with_parent
from benchmarks.gpu.schedule import expected_s, mark_warm, why_not
from benchmarks.gpu.steps import all_steps
from benchmarks.gpu.supervisor import LOST
from benchmarks.kernels.group import DeviceLost

_LOCK_S = 30.0


def work(campaign: Campaign, journal: Journal, seconds: float, words: Sequence[str], since: float = 0.0) -> int:
    """Run the steps that are left, in their order; return the exit status.

    A step starts only if it is expected to end in time: a cheaper one after it may still start. since: when the user
    started the campaign, in seconds of the clock; a step that has exceeded its time limit since then is not repeated.
    """
    deadline = time.monotonic() + seconds
    end_with_parent()
    with journal.lock(_LOCK_S):  # a worker whose supervisor was killed a moment ago may still be here
        journal.describe(campaign.known | {"state": _state(campaign)})
        for step in all_steps(campaign.dry):
            if words and not any(word in step.name for word in words):
                continue
            if why_not(step, campaign, journal) or journal.has_overrun(step.name, campaign.known, since):
                continue
            left, expected = deadline - time.monotonic(), expected_s(step, campaign)
            if left < expected:
                journal.postpone(step.name, campaign.known, expected, left)
                print(f"{step.name}: postponed, expected {expected:.0f} s, {max(0, left):.0f} s are left", flush=True)
                continue
            print(f"{step.name} (expected {expected:.0f} s, {left:.0f} s are left)", flush=True)
            started = journal.start(step.name, step.limit_s, campaign.known, expected)
            try:
                step.run(campaign, left)
            except TimeOver as error:
                journal.write(started, "stopped", reason=str(error))
            except Skipped as error:
                journal.write(started, "skipped", reason=str(error))
                print(f"  skipped: {error}", flush=True)
            except DeviceLost as error:
                journal.write(started, "died", reason=f"the device was lost: {error}")
                return LOST
            except Exception as error:  # the other steps are still worth their time
                reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
                journal.write(started, "failed", reason=reason)
                print(f"  failed: {reason}", flush=True)
            else:
                if step.fills_caches:
                    mark_warm(step.name, campaign)
                over = time.monotonic() > deadline and not step.fills_caches and not step.is_done(campaign)
                journal.write(started, "stopped" if over else "finished")
    return 0


def _state(campaign: Campaign) -> str:
    """Return driver, clocks, power and temperature from nvidia-smi; empty on a CPU."""
    if campaign.device.type != "cuda":
        return ""
    fields = "driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.draw,power.limit,temperature.gpu"
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError) as error:
        return f"nvidia-smi: {error}"
