"""End-to-end latency of a plan against the best full attention: three columns, measured in one run, in shuffled rounds.

The columns are the model as it is (eager), the model compiled by Inductor (the baseline that counts), and the model
rewritten by jetvit and compiled by Inductor in the same way. Every round times all three in a new order, so that a
noisy moment of the machine hits all alike, and the ratio is bootstrapped over whole rounds.
"""

from __future__ import annotations

import os
import platform
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

import jetvit
from jetvit.api import find_attention, load_plan, optimize
from jetvit.bench_predictions import Predictions, digits, predict
from jetvit.cost_model import Plan
from jetvit.cost_model.measuring.measurement import device_name
from jetvit.cost_model.measuring.rounds import MIN_ROUNDS, Run, Sampler, in_rounds, ratio, sampler
from jetvit.cost_model.measuring.runs import Mode
from jetvit.cost_model.measuring.steadiness import sample_doubts, steadily
from jetvit.cost_model.measuring.timing import summary
from jetvit.cost_model.predicting.device_costs import DeviceCosts
from jetvit.passes.frontends.capture import export_model
from jetvit.passes.frontends.differences import tensors
from jetvit.passes.rewrites.plan_checks import rewritten_choice
from jetvit.patterns.errors import InputError, JetvitError
from jetvit.patterns.site import Sites
from jetvit.patterns.wording import counted

SCHEMA_VERSION = 1
EAGER, COMPILED, JETVIT = "eager, full", "compiled, full", "compiled, jetvit"
MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Column:
    """One way to run the model: median and quartiles in milliseconds a batch, and one sample a round."""

    name: str
    median_ms: float
    q25_ms: float
    q75_ms: float
    images_per_s: float
    samples_ms: tuple[float, ...]


@dataclass(frozen=True)
class BenchResult:
    """The measurements of `bench`.

    `ratio` is the latency of compiled full attention over that of compiled jetvit, the median over rounds, above 1
    where jetvit is faster; `ratio_low` and `ratio_high` bound it at 95 %. `choices` counts the sites by what they
    became, by the plan if there was one (`planned`). `environment` says where and how: shape, dtype, device, threads,
    versions, mode. `predictions` are those of a latency table, None without one. `doubts` are reasons to distrust all
    of it: the machine was too busy to time on.
    """

    columns: tuple[Column, ...]
    ratio: float
    ratio_low: float
    ratio_high: float
    rounds: int
    planned: bool
    choices: Mapping[str, int]
    environment: Mapping[str, Any]
    predictions: Predictions | None = None
    doubts: tuple[str, ...] = ()

    def column(self, name: str) -> Column:
        """The column of that name: `EAGER`, `COMPILED` or `JETVIT`."""
        return next(each for each in self.columns if each.name == name)

    def to_dict(self) -> dict[str, Any]:
        """The result as JSON can hold it, with every sample."""
        return {"schema_version": SCHEMA_VERSION, **asdict(self)}

    def conclusions(self) -> list[str]:
        """Return lines that say the ratio, and whether it counts."""
        interval = f"{self.ratio_low:.2f} – {self.ratio_high:.2f}"
        lines = [f"compiled full ÷ compiled jetvit: {self.ratio:.2f}× (95 % interval {interval})"]
        if self.doubts:
            lines += ["This machine is too busy to time on:", *(f"  {doubt}" for doubt in self.doubts)]
            lines.append("None of these numbers counts: run it again when nothing else runs here.")
        elif self.ratio_low <= 1 <= self.ratio_high:
            lines.append("That is no difference that these rounds can tell apart.")
        return lines

    def __str__(self) -> str:
        """A table of the columns, the ratio, and what was measured."""
        where = self.environment
        predicted = self.predictions.columns if self.predictions is not None else {}
        titles = f"  {'predicted ms':>24}  {'off by':>8}" if predicted else ""
        lines = [f"{'':<18}{'latency ms':>10}  {'quartiles ms':>19}  {'images/s':>9}{titles}"]
        for each in self.columns:
            quartiles = f"{digits(each.q25_ms)} – {digits(each.q75_ms)}"
            line = f"{each.name:<18}{digits(each.median_ms):>10}  {quartiles:>19}  {digits(each.images_per_s):>9}"
            if (guess := predicted.get(each.name)) is not None:
                line += f"  {guess!s:>24}  {f'{100 * guess.deviation:+.1f} %':>8}"
            lines.append(line)
        lines += ["", *self.conclusions()]
        if self.predictions is not None:
            lines += self.predictions.lines(self.ratio, where["torch"])
        counts = ", ".join(f"{count} {label}" for label, count in self.choices.items())
        lines.append(f"attention sites: {counts or 'none, so there was nothing to rewrite'}")
        if not self.planned:
            lines.append("no plan was given: jetvit made only exact rewrites")
        lines.append(
            f"{where['shape']} {where['dtype']} on {where['device']}, {counted(where['threads'], 'thread')}, "
            f"torch {where['torch']}, mode {where['mode']}, {counted(self.rounds, 'round')}"
        )
        return "\n".join(lines)


def bench(
    model: nn.Module | ExportedProgram,
    *args: Any,
    plan: Plan | str | os.PathLike[str] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    rounds: int = 20,
    mode: str = "default",
    time_limit_s: float | None = None,
    seed: int = 0,
    costs: DeviceCosts | None = None,
    progress: Progress | None = None,
) -> BenchResult:
    """Time a model in eager mode, compiled, and rewritten and compiled.

    It calls `torch.compiler.reset()`, so that no earlier compilation stands in the way of this one.

    Args:
        model: a module in eval mode, or an exported program.
        args, kwargs: the inputs of every call; the first tensor is the batch of images.
        plan: the plan to apply, or its folder; None makes exact rewrites only.
        rounds: how many samples each column gets.
        mode: Inductor's mode, for both compiled columns.
        time_limit_s: begin no round after so many seconds of measuring, but for the first five.
        seed: of the order within rounds, and of the bootstrap.
        costs: a device's latency table (`DeviceCosts.load`), whose predictions stand beside what was measured.
        progress: called with a description, the steps done, and their number.
    Raises:
        InputError: fewer than five rounds, an unknown mode, or no tensor among the inputs.
        PlanError: the plan does not fit the model.
        JetvitError: the model does not run on the inputs, or cannot be compiled.
    """
    if rounds < MIN_ROUNDS:
        raise InputError(f"{counted(rounds, 'round')} cannot give quartiles", do=f"give {MIN_ROUNDS} or more")
    if mode not in MODES:
        raise InputError(f"Inductor has no mode {mode!r}", do=f"give one of {', '.join(MODES)}")
    report: Progress = progress or (lambda what, done, total: None)
    plan, keywords = load_plan(plan), dict(kwargs or {})
    images = next(iter(tensors((args, keywords))), None)
    if images is None:
        raise InputError("there is nothing to time the model on", do="give example inputs")
    program = export_model(model, args, keywords)
    sites = find_attention(program)
    rewritten = optimize(program, plan=plan)
    if isinstance(model, ExportedProgram):
        model = model.module()
    torch.compiler.reset()
    functions: dict[str, Callable[..., Any]] = {
        EAGER: model,
        COMPILED: torch.compile(model, mode=None if mode == "default" else mode),
        JETVIT: torch.compile(rewritten.module(), mode=None if mode == "default" else mode),
    }
    with torch.inference_mode():
        runs: dict[str, Run] = {name: partial(each, *args, **keywords) for name, each in functions.items()}
        samplers = [_sampler(name, run, images.device) for name, run in _reported(runs, report)]

        def measure() -> tuple[dict[str, list[float]], list[str]]:
            progress = partial(report, "measuring")
            measured = in_rounds(samplers, rounds, seed=seed, time_limit_s=time_limit_s, progress=progress)
            samples = dict(zip(runs, measured, strict=True))
            return samples, list(sample_doubts(samples))

        samples, doubts = steadily(measure)
    middle, low, high = ratio(samples[COMPILED], samples[JETVIT], seed=seed)
    columns = tuple(_column(name, values, len(images)) for name, values in samples.items())
    return BenchResult(
        columns=columns,
        ratio=middle,
        ratio_low=low,
        ratio_high=high,
        rounds=len(samples[EAGER]),
        planned=plan is not None,
        choices=count_choices(plan, sites),
        environment=_environment(images, mode),
        predictions=None if costs is None else _predictions(costs, program, rewritten, columns),
        doubts=tuple(doubts),
    )


def _reported(runs: Mapping[str, Run], report: Progress) -> Iterator[tuple[str, Run]]:
    """The items of `runs`, each reported before it is compiled."""
    for done, item in enumerate(runs.items()):
        report("compiling", done, len(runs))
        yield item
    report("compiling", len(runs), len(runs))


def _sampler(name: str, run: Run, device: torch.device) -> Sampler:
    """Compile, run until nothing is done for the first time, and answer what takes a sample."""
    try:
        return sampler(run, device, warm_up=3)  # the second call of a CUDA graph still records
    except (JetvitError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # the model's own code, Inductor, or the C++ compiler behind it
        raise JetvitError(
            f"the model does not run: {name}",
            why=" ".join(f"{type(error).__name__}: {error}".split())[:400],
            do="check the inputs" if name == EAGER else "check that torch.compile works here: on a CPU it needs g++",
        ) from error


def _column(name: str, samples_ms: Sequence[float], batch: int) -> Column:
    latency = summary(samples_ms)
    median_ms = latency.median_ms
    return Column(name, median_ms, latency.q25_ms, latency.q75_ms, 1e3 * batch / median_ms, tuple(samples_ms))


def _predictions(
    costs: DeviceCosts, program: ExportedProgram, rewritten: ExportedProgram, columns: Sequence[Column]
) -> Predictions:
    # The exact rewrites find attention that is spelled out, which Inductor fuses, too.
    full = optimize(program)
    programs: dict[str, tuple[ExportedProgram, Mode]] = {COMPILED: (full, "compiled"), JETVIT: (rewritten, "compiled")}
    if "eager" in costs.overheads:  # nothing else tells what the host takes to launch operators one by one
        programs = {EAGER: (full, "eager"), **programs}
    return predict(costs, programs, {each.name: each.median_ms for each in columns}, (COMPILED, JETVIT))


def count_choices(plan: Plan | None, sites: Sites) -> dict[str, int]:
    """Count the sites of a model by what a plan makes of them, the most frequent label first."""
    names = [] if plan is None or sites.rewritten else list(plan.match(sites).planned.values())
    counts = Counter(rewritten_choice(site).label for site in sites.rewritten)
    if plan is not None:
        counts.update(plan.choice_for(name).label for name in names)
    counts["full"] += len(sites) + len(sites.rewritten) - sum(counts.values())
    return {label: count for label, count in counts.most_common() if count}


def _environment(images: Tensor, mode: str) -> dict[str, Any]:
    cuda = images.device.type == "cuda"
    return {
        "shape": "×".join(map(str, images.shape)),
        "dtype": str(images.dtype).removeprefix("torch."),
        "device": device_name(images.device),
        "threads": torch.get_num_threads(),
        "mode": mode,
        "torch": torch.__version__,
        "cuda": torch.version.cuda if cuda else None,
        "python": platform.python_version(),
        "jetvit": jetvit.__version__,
    }
