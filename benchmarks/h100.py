"""A campaign on a GPU: every number of the README that needs one, the most telling first. For an H100.

Steps of five sections are run in order of value: the operators are checked against fp64 and by their property-based
tests, kernels are timed beside their rivals, whole models beside compiled full attention, kernels of whole models are
counted (the breakdown), and single operations are measured for the cost model. Each row is on disk as soon as it is
known. The same command goes on where it stopped, whatever stopped it, and leaves out what is there:

    python -m benchmarks.h100 [--minutes M] [--only WORDS] [--out DIR] [--retry] [--list] [--dry]

The steps run in a process of their own. Where that dies, loses the device or takes too long, the next step has a new
one; a step that failed twice is left out until --retry. What became of each stands in DIR/steps.jsonl, and all that is
known in DIR/report.md; the latency table, DEVICE.csv, belongs into cost_model/data. Without a GPU, or with --dry, every
section runs on small shapes on the CPU, into files whose names say so. Exit status: 0 nothing is left or the time is
over, 1 a step failed or found something wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.campaign import Campaign, TimeOver, campaign_of
from benchmarks.h100_journal import Journal
from benchmarks.h100_report import write_report
from benchmarks.h100_steps import all_steps
from benchmarks.kernel_group import DeviceLost
from benchmarks.results import default_path

_GRACE_S = 60.0  # for the step that runs when the time is over, to end its row
_LOST = 3  # exit status: the device takes no more work from this process
_LOCK_S = 30.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the campaign; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8.0, help="begin nothing after so many minutes (default: 8)")
    parser.add_argument("--only", default="", metavar="WORDS", help="steps with one of these, by commas: 'end_to_end'")
    parser.add_argument("--out", type=Path, help="folder of the results; by default under benchmarks/results")
    parser.add_argument("--retry", action="store_true", help="try again what failed twice")
    parser.add_argument("--list", action="store_true", help="print the steps in their order and what became of them")
    parser.add_argument("--dry", action="store_true", help="small shapes on the CPU")
    parser.add_argument("--worker", metavar="COMMAND", help=argparse.SUPPRESS)  # what the user has started
    args = parser.parse_args(arguments)
    dry = args.dry or not torch.cuda.is_available()
    words = [word.strip() for word in args.only.split(",") if word.strip()]
    if not any(not words or any(word in step.name for word in words) for step in all_steps(dry)):
        names = "\n  ".join(step.name for step in all_steps(dry))
        parser.error(f"--only {args.only}: no step has it in its name; they are\n  {names}")
    out = (args.out or (Path("out") / "h100-dry" if dry else default_path("steps").parent)).resolve()
    if out.exists() and not out.is_dir():
        parser.error(f"--out {out} is not a folder")
    out.mkdir(parents=True, exist_ok=True)
    # What tuning measures is kept beside the results.
    os.environ.setdefault("JETVIT_CACHE", str(out / "tuned"))
    journal = Journal(out / ("steps-dry.jsonl" if dry else "steps.jsonl"))
    if args.worker:
        return work(campaign_of(out, dry, args.worker), journal, 60 * args.minutes, words)
    if args.list:
        campaign = campaign_of(out, dry)
        for step in all_steps(dry):
            done = step.is_done(campaign) or journal.is_finished(step.name, campaign.known)
            print(f"{'done' if done else journal.failures(step.name, campaign.known) or '':<5} {step.name}")
        return 0
    if args.retry:
        journal.forget_failures()
    return supervise(out, dry, journal, 60 * args.minutes, args.only)


def supervise(out: Path, dry: bool, journal: Journal, seconds: float, only: str) -> int:
    """Start workers until nothing is left or the time is over; the exit status."""
    deadline = time.monotonic() + seconds
    told = shlex.join(["python", "-m", "benchmarks.h100", *sys.argv[1:]])
    command = [
        sys.executable,
        "-m",
        "benchmarks.h100",
        "--worker",
        told,
        "--out",
        str(out),
        *(["--dry"] if dry else []),
    ]
    while (left := deadline - time.monotonic()) > 1:
        words, began = [*command, "--minutes", str(left / 60), "--only", only], time.time()
        # The worker ends when this pipe does: it does not outlive this process, however that ends.
        worker = subprocess.Popen(
            words, stdin=subprocess.PIPE, start_new_session=True, cwd=Path(__file__).parent.parent
        )
        try:
            status = _watch(worker, journal, deadline, began)
        finally:
            _end(worker)
        if status == 0 or time.monotonic() > deadline:
            break
        running = journal.running(began)
        if status != _LOST and running is None:
            print(f"the worker ended with {status} before it began a step", flush=True)
            return 1
        if running is not None:
            journal.write(running, "died", reason=f"its process ended with {status}")
            print(f"  {running['step']}: its process ended with {status}", flush=True)
    wrong = write_report(out, dry)
    return 1 if wrong else 0


def _watch(worker: subprocess.Popen[bytes], journal: Journal, deadline: float, began: float) -> int | None:
    """Wait for a worker that began then, and say where a step takes longer than its limit; its exit status."""
    while worker.poll() is None:
        time.sleep(0.2)
        if time.monotonic() > deadline + _GRACE_S:
            print("the time is over: the step that ran is left to the next run", flush=True)
            return None
        running = journal.running(began)
        if running is not None and time.time() - running["at"] > running["limit_s"]:
            journal.write(running, "died", reason=f"it took longer than {running['limit_s']:.0f} s")
            print(f"  {running['step']}: it took longer than {running['limit_s']:.0f} s", flush=True)
            return _LOST
    return worker.returncode


def _end(worker: subprocess.Popen[bytes]) -> None:
    """End a worker and what it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(worker.pid, signal.SIGKILL)
    worker.wait()


def work(campaign: Campaign, journal: Journal, seconds: float, words: Sequence[str]) -> int:
    """Run the steps that are left, in their order; the exit status."""
    deadline = time.monotonic() + seconds
    _end_with_the_supervisor()
    with journal.lock(_LOCK_S):  # a worker whose supervisor was killed a moment ago may still be here
        journal.describe(campaign.known | {"state": _state(campaign)})
        for step in all_steps(campaign.dry):
            if words and not any(word in step.name for word in words):
                continue
            left = deadline - time.monotonic()
            if left <= 0:
                print("the time is over: the same command goes on from here", flush=True)
                return 0
            known = campaign.known
            if journal.is_finished(step.name, known) or journal.failures(step.name, known) >= 2:
                continue
            if step.is_done(campaign):
                continue
            print(f"{step.name}", flush=True)
            started = journal.start(step.name, step.limit_s, known)
            try:
                step.run(campaign, left)
            except TimeOver as error:
                journal.write(started, "stopped", reason=str(error))
            except DeviceLost as error:
                journal.write(started, "died", reason=f"the device was lost: {error}")
                return _LOST
            except Exception as error:  # the other steps are still worth their time
                reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
                journal.write(started, "failed", reason=reason)
                print(f"  failed: {reason}", flush=True)
            else:
                over = time.monotonic() > deadline and not step.is_done(campaign)
                journal.write(started, "stopped" if over else "finished")
    return 0


def _state(campaign: Campaign) -> str:
    """Driver, clocks, power and temperature as nvidia-smi tells them; empty on a CPU."""
    if campaign.device.type != "cuda":
        return ""
    fields = "driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.draw,power.limit,temperature.gpu"
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError) as error:
        return f"nvidia-smi: {error}"


def _end_with_the_supervisor() -> None:
    def wait() -> None:
        while os.read(0, 1):  # not through sys.stdin, whose buffer must not be read from when Python ends
            pass
        os.killpg(os.getpid(), signal.SIGKILL)

    threading.Thread(target=wait, daemon=True).start()


if __name__ == "__main__":
    raise SystemExit(main())
