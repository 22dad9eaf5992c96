"""Compile kernels and models in parallel, before anything is timed, as steps of a campaign."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch

from benchmarks.end_to_end.measure import LATE_MODELS, compile_name
from benchmarks.end_to_end.models import PAPER_SIZE
from benchmarks.end_to_end.variants import ANCHOR, FIRST, NEXT, Variant
from benchmarks.gpu.campaign import Campaign, Cost, Step, TimeOver
from benchmarks.gpu.kernel_steps import COMPILE, FIRST_MODELS
from benchmarks.gpu.processes import Batch, Outcome, Task, run_together
from benchmarks.gpu.schedule import mark_warm
from benchmarks.kernels.implementations import operator_call
from benchmarks.kernels.inputs import make_inputs
from benchmarks.kernels.rows import OURS
from benchmarks.kernels.shapes import FIRST_MIXERS, SIZES, problem

_TUNED_MODELS = (*FIRST_MODELS, "DINOv3-B")
_MODELS = (*_TUNED_MODELS, *LATE_MODELS)
_COMPILED = tuple(each for each in FIRST if each.mode != "eager")
_DRY_VARIANTS = 3  # Triton kernels that a dry run compiles
_KERNELS_S = 50.0  # the kernels that are left are compiled at their first launch


@dataclass
class Models:
    """Variants of models to compile in processes of their own, which may be started before they are needed."""

    name: str
    pairs: Sequence[tuple[str, Variant]]
    serves: Sequence[Step]
    _batch: Batch | None = field(default=None, repr=False)

    def is_done(self, campaign: Campaign) -> bool:
        """Return whether all that these variants are compiled for is measured."""
        return all(step.is_done(campaign) for step in self.serves)

    def start(self, campaign: Campaign) -> None:
        """Start to build and export the models; their processes then wait."""
        go = campaign.caches / f"{_slug(self.name)}-{os.getpid()}.go"
        go.unlink(missing_ok=True)
        tasks = [
            Task(
                _slug(f"{self.name} {model} {variant.name}"),
                "benchmarks.gpu.compile_model",
                {"model": model, "variant": variant.name, "size": PAPER_SIZE, "batch": 1, "dry": campaign.dry}
                | {"go": str(go)},
            )
            for model, variant in self.pairs
        ]
        self._batch, self._go = Batch(tasks, campaign.processes, campaign.path("logs")), go
        self._batch.start()

    def compile(self, campaign: Campaign, seconds: float) -> None:
        """Compile all. Raises TimeOver or RuntimeError after the others have ended."""
        if self._batch is None:
            self.start(campaign)
        assert self._batch is not None
        self._go.touch()
        try:
            outcomes = self._batch.wait(seconds)
            _forget_choices(Path(os.environ.get("TORCHINDUCTOR_CACHE_DIR", campaign.caches)))
            _report(outcomes, lambda: mark_warm(self.name, campaign))
        finally:
            self._batch.close()
            self._batch = None


def steps(dry: bool, timed: Sequence[Step]) -> list[Step]:
    """Return the steps that compile. timed: the steps of whole models, whose caches they fill."""
    first, *others = _models(dry, timed)
    basis = "~330 kernels of 1.2 CPU-s in 14 processes, imports 6"
    found = [
        Step(COMPILE, 10, Cost(36, 36, basis, 30), 120, first.is_done, partial(_kernels, first), fills_caches=True),
        Step("tune kernels", 20, Cost(16, 16, "14 candidates of ~1 s", 5), 120, lambda _: False, _tune),
    ]
    for models in (first, *others):
        value = min(step.value for step in models.serves) - 1
        run = models.compile
        found.append(Step(models.name, value, _cost(models), 300, models.is_done, run, fills_caches=True))
    return found


def _models(dry: bool, timed: Sequence[Step]) -> list[Models]:
    def models(name: str, names: Sequence[str], variants: Sequence[Variant]) -> Models:
        return Models(name, [(m, v) for v in variants for m in names], [s for s in timed if s.warmed_by == name])

    found = [models(compile_name(""), _TUNED_MODELS, _COMPILED)]
    for model in _MODELS[:1] if dry else _MODELS:
        if model not in _TUNED_MODELS:
            found.append(models(compile_name(model, "first"), [model], _COMPILED))
        found.append(models(compile_name(model, "next"), [model], (ANCHOR, *NEXT)))
    return found


def _cost(models: Models) -> Cost:
    large = any(model in LATE_MODELS for model, _ in models.pairs)
    basis = "a variant: 12 + 34 CPU-s on its share of the cores"
    return Cost(100, 100, basis, 90) if large else Cost(55, 55, basis, 90)


def _kernels(models: Models, campaign: Campaign, seconds: float) -> None:
    """Compile the Triton kernels; meanwhile the processes that will compile the first models get ready."""
    cuda = campaign.device.type == "cuda"
    major, minor = torch.cuda.get_device_capability(campaign.device) if cuda else (9, 0)
    arguments = {
        "capability": 10 * major + minor,
        "jobs": campaign.processes,
        "limit": None if cuda else _DRY_VARIANTS,
        "seconds": min(seconds, _KERNELS_S),
    }
    if not models.is_done(campaign):
        models.start(campaign)
    task = Task("compile-kernels", "benchmarks.gpu.compile_kernels", arguments)
    _report(run_together([task], processes=1, seconds=seconds, logs=campaign.path("logs")))


def _tune(campaign: Campaign, seconds: float) -> None:
    """Call the operators once on the shapes of the first models: each measures what it has not measured yet."""
    for model in _TUNED_MODELS:
        for mixer in FIRST_MIXERS:
            this = problem(model, SIZES[0], mixer)
            dtype = torch.float32 if campaign.dry else torch.bfloat16
            with torch.no_grad():
                operator_call(make_inputs(this.shrunk() if campaign.dry else this, campaign.device, dtype), OURS)()


def _forget_choices(caches: Path) -> None:
    """Delete what Inductor has measured while several processes used the device; compiled kernels stay."""
    for path in caches.rglob("*.best_config"):
        path.unlink()


def _report(outcomes: Sequence[Outcome], after: Callable[[], None] = lambda: None) -> None:
    """Print how processes ended. Raises TimeOver for those that were killed, RuntimeError for those that failed."""
    for outcome in outcomes:
        print(f"  {outcome.name}: {outcome.seconds:.1f} s: {outcome.last_line}", flush=True)
    if killed := [outcome.name for outcome in outcomes if outcome.status is None]:
        raise TimeOver(f"not done in time: {', '.join(killed)}")
    after()
    if failed := [f"{outcome.name}: {outcome.last_line}" for outcome in outcomes if outcome.status]:
        raise RuntimeError("; ".join(failed))


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower())
