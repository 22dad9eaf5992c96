"""`calibrate`: a plan without training, from measured drift and measured latency.

Every site × every window is tried alone on real images, each choice is timed at its true shape on the present device,
and whole plans are measured until the fastest within the drift bound is found. Half of the images choose, the other
half tell what the choice is worth. Linear attention is not tried: it is another function of the same weights, and needs
training.
"""

from __future__ import annotations

import datetime
import logging
import math
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from jetvit.cost_model import (
    AttentionShape,
    Choice,
    Fingerprint,
    FrontPoint,
    Latency,
    Measured,
    Plan,
    SitePlan,
    base_record,
    measure_choices,
)
from jetvit.passes.apply_plan import ApplyPlan, covers
from jetvit.passes.capture import export_model
from jetvit.passes.clean_up import CleanUp
from jetvit.passes.fuse_attention import FuseAttention
from jetvit.passes.graph import ExportedGraph
from jetvit.passes.normalize import Normalize
from jetvit.passes.pipeline import run_pipeline
from jetvit.patterns.errors import InputError, JetvitError, PlanError
from jetvit.patterns.find import find_sites
from jetvit.patterns.site import AttentionSite, Sites
from jetvit.patterns.sizes import is_static
from jetvit.search.choose import Candidate, Option, Selection, choose, latency_of
from jetvit.search.drift import Drift, check_finite, place_axes
from jetvit.search.runner import Batch, Output, Runner, as_batches

log = logging.getLogger(__name__)

WINDOWS = (8, 16, 32)
FULL = Choice("full")
Metric = Callable[[Tensor, Tensor], float]
Progress = Callable[[str, int, int], None]


def calibrate(
    model: nn.Module | ExportedProgram,
    batches: Sequence[Any],
    max_drift: float = 0.35,
    budget: float | str | None = None,
    output: Output = None,
    *,
    metric: Metric | None = None,
    choices: Sequence[Choice] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
    provenance: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Plan:
    """Make a training-free plan for a model, from images of the size that it will be used at.

    Args:
        model: a module in eval mode, or an exported program.
        batches: [B, 3, H, W] tensors of one shape, or (args, kwargs) pairs. With two or more, every second one is held
            out of the choice.
        max_drift: the bound on the drift of the model's output over the choosing images; see `jetvit.search.drift`.
        budget: a bound on the model's latency: 0 to 1 is a share of the original's, "5ms" is absolute. The plan is then
            the one of least drift within both bounds.
        output: which tensor of the result to compare: a number, a key, a function of the result; by default the first
            floating-point one.
        metric: another measure of harm than drift, called as metric(output, reference) on each batch, lower is better,
            averaged over batches; `max_drift` bounds it.
        choices: what a site may become besides full attention; windows of 8, 16 and 32 tokens by default.
        kwargs: keyword arguments for every batch.
        dynamic_shapes: as `torch.export.export` takes them.
        provenance: more entries for the plan's record.
        progress: called with a description, the steps done, and their number.
    Returns:
        A plan with every measurement in it. All sites stay full if nothing faster stays within the bound.
    Raises:
        InputError: no images, images of different shapes, an output that is not finite, a budget that is none.
        JetvitError: the model has no full attention that can be rewritten.
        PlanError: no plan meets the budget.
    """
    start = time.perf_counter()
    if not max_drift >= 0:
        raise InputError(f"max_drift is {max_drift}", do="give a number of 0 or more")
    pairs = as_batches(batches, kwargs)
    program = export_model(model, *pairs[0], dynamic_shapes)
    sites = find_sites(ExportedGraph(program))
    _check_sites(sites)
    trial = _Trial(program, sites, pairs, output, metric, progress)
    options = trial.options(list(choices) if choices is not None else [_window(side) for side in WINDOWS])
    full_ms = trial.time_model()
    limit = _attention_limit(budget, full_ms, latency_of(options.values, (0,) * len(sites)))
    best, measured = choose(options.values, lambda selection: trial.joint(options.choices(selection)), max_drift, limit)
    if best is None:
        raise _no_plan(budget, max_drift, full_ms, options, measured)
    chosen = options.choices(best.selection)
    drifts = {"joint_drift_selection": best.drift, "joint_drift_held_out": trial.joint(chosen, held_out=True)}
    if trial.held_out and drifts["joint_drift_held_out"] > max_drift:
        log.warning("on the held-out images the drift is %.3f, above the bound", drifts["joint_drift_held_out"])
    record = {
        **_environment(sites[0]),
        "images_selection": trial.images(held_out=False),
        "images_held_out": trial.images(held_out=True),
        **{name: value for name, value in drifts.items() if math.isfinite(value)},
        "metric": "drift" if metric is None else getattr(metric, "__name__", type(metric).__name__),
        "max_drift": max_drift,
        "budget": str(budget) if budget is not None else None,
        "eager_full_ms": round(full_ms, 3),
        "calibration_seconds": round(time.perf_counter() - start, 1),
        **(provenance or {}),
    }
    return Plan(
        sites=tuple(options.site_plan(index, number) for index, number in enumerate(best.selection)),
        fingerprint=Fingerprint.of(sites),
        provenance=record,
        size=_image_size(pairs[0]),
        base=base_record(_projection_weights(sites, program)),
        front=tuple(
            FrontPoint(sum(map(bool, each.selection)), each.drift, each.latency_ms)
            for each in sorted(measured, key=lambda each: -each.latency_ms)
            if math.isfinite(each.drift)
        ),
    )


@dataclass(frozen=True)
class _Options:
    """What each site may become, with what was measured; number 0 is full attention."""

    names: list[str]
    labels: list[list[Choice]]
    values: list[list[Option]]

    def choices(self, selection: Selection) -> dict[str, Choice]:
        """Name → choice of the sites that are not full."""
        chosen = {name: self.labels[i][n] for i, (name, n) in enumerate(zip(self.names, selection, strict=True))}
        return {name: choice for name, choice in chosen.items() if choice.kind != "full"}

    def site_plan(self, index: int, number: int) -> SitePlan:
        """A site of the plan, with all that was measured there."""
        rows = list(zip(self.labels[index], self.values[index], strict=True))
        choice, option = rows[number]
        if number:
            why = f"{option.latency_ms:.3g} ms for {rows[0][1].latency_ms:.3g} ms, within the drift bound"
        else:
            why = "full attention: nothing faster stays within the drift bound"
        measured = [Measured(each, _finite(value.drift), value.latency_ms) for each, value in rows]
        return SitePlan(self.names[index], choice, why, _finite(option.drift), option.latency_ms, tuple(measured))


class _Trial:
    """The model on its images: references, scores of single sites, joint drift of plans."""

    def __init__(
        self,
        program: ExportedProgram,
        sites: Sites,
        pairs: list[Batch],
        output: Output,
        metric: Metric | None,
        progress: Progress | None,
    ):
        base = ExportedGraph(program)
        run_pipeline(base, [Normalize(), FuseAttention(), CleanUp()])
        self.program = base.program()
        self.sites = find_sites(ExportedGraph(self.program))
        self.fingerprint = Fingerprint.of(self.sites)
        self.metric, self.output = metric, output
        self._progress = progress
        self.runner = Runner(self.program, output)
        self.selection, self.held_out = pairs[0::2], pairs[1::2]
        self.references = [self._reference(batch, index, len(pairs)) for index, batch in enumerate(pairs)]
        self.places = place_axes(self.references[0], self.runner.channel_axes())
        for held_out in (False, True):
            if self._references(held_out):
                self._collector(held_out)  # refuses references that nothing can be compared with, before the long work

    def images(self, held_out: bool) -> int:
        """How many images choose, or are held out."""
        return sum(len(reference) for reference in self._references(held_out))

    def options(self, choices: list[Choice]) -> _Options:
        """Score and time every choice at every site."""
        latencies = self._latencies(choices)
        kept = [[choice for choice in choices if not covers(site, choice)] for site in self.sites]
        graphs = {
            (site.name, choice): Runner(self._rewritten({site.name: choice}), self.output)
            for site, faster in zip(self.sites, kept, strict=True)
            for choice in faster
        }
        scores = self._scores(graphs)
        labels, values = [], []
        for site, faster in zip(self.sites, kept, strict=True):
            labels.append([FULL, *faster])
            drifts = [0.0, *(scores[site.name, choice] for choice in faster)]
            times = [latencies[_shape(site)][choice].median_ms for choice in labels[-1]]
            values.append([Option(drift, ms) for drift, ms in zip(drifts, times, strict=True)])
        return _Options([site.name for site in self.sites], labels, values)

    def joint(self, chosen: Mapping[str, Choice], held_out: bool = False) -> float:
        """The harm of a whole plan on the choosing or the held-out images."""
        batches = self.held_out if held_out else self.selection
        if not batches or not chosen:
            return 0.0
        runner = Runner(self._rewritten(chosen), self.output)
        collect = self._collector(held_out)
        for index, batch in enumerate(batches):
            collect.add(index, runner.run(batch))
            self._report("measuring whole plans", index + 1, len(batches))
        return collect.total

    def time_model(self) -> float:
        """The latency of the original model in ms: the median of three runs, not compiled."""
        times = []
        for _ in range(3):
            start = time.perf_counter()
            self.runner.run(self.selection[0])
            if self.references[0].is_cuda:
                torch.cuda.synchronize()
            times.append(1e3 * (time.perf_counter() - start))
        return sorted(times)[1]

    def _scores(self, graphs: Mapping[tuple[str, Choice], Runner]) -> dict[tuple[str, Choice], float]:
        collectors = {key: self._collector(held_out=False) for key in graphs}
        names = {site.out.node.name: site.name for site in self.sites}
        total, done = len(graphs) * len(self.selection), 0
        for index, batch in enumerate(self.selection):
            for place, alive in self.runner.cuts(batch, list(names)):
                for (name, choice), runner in graphs.items():
                    if name == names[place]:
                        collectors[name, choice].add(index, runner.run(batch, alive))
                        done += 1
                        self._report("trying each choice at each site", done, total)
        return {key: collector.total for key, collector in collectors.items()}

    def _latencies(self, choices: list[Choice]) -> dict[AttentionShape, dict[Choice, Latency]]:
        shapes = list(dict.fromkeys(_shape(site) for site in self.sites))
        result = {}
        for index, shape in enumerate(shapes):
            result[shape] = measure_choices([FULL, *choices], shape)
            self._report("timing each choice", index + 1, len(shapes))
        return result

    def _rewritten(self, chosen: Mapping[str, Choice]) -> ExportedProgram:
        plan = Plan(tuple(SitePlan(name, choice) for name, choice in chosen.items()), self.fingerprint)
        graph = ExportedGraph(self.program)
        run_pipeline(graph, [ApplyPlan(plan), CleanUp()], check=False)
        return graph.program()

    def _reference(self, batch: Batch, index: int, total: int) -> Tensor:
        reference = check_finite(self.runner.run(batch), f"the model's output on batch {index}")
        self._report("running the original model", index + 1, total)
        return reference

    def _references(self, held_out: bool) -> list[Tensor]:
        return self.references[1::2] if held_out else self.references[0::2]

    def _collector(self, held_out: bool) -> Drift | _MetricMean:
        references = self._references(held_out)
        return Drift(references, self.places) if self.metric is None else _MetricMean(references, self.metric)

    def _report(self, what: str, done: int, total: int) -> None:
        if self._progress is not None:
            self._progress(what, done, total)


class _MetricMean:
    """The mean of a user's metric over batches."""

    def __init__(self, references: Sequence[Tensor], metric: Metric):
        self._references, self._metric, self._values = references, metric, list[float]()

    def add(self, index: int, output: Tensor) -> None:
        self._values.append(float(self._metric(output, self._references[index])))

    @property
    def total(self) -> float:
        value = sum(self._values) / len(self._values)
        return value if value == value else math.inf


def _check_sites(sites: Sites) -> None:
    if not sites:
        reasons = "; ".join(str(rejection) for rejection in sites.rejected[:3]) or "there is no attention in the graph"
        raise JetvitError(
            "the model has no full attention that can be rewritten", why=reasons, do="see jetvit.explain for all of it"
        )
    for site in sites:
        if not all(is_static(size) for size in (*site.grid, site.extra_before, site.extra_after)):
            raise InputError(
                "calibration needs a fixed image size",
                why=f"the token grid of {site.name} is {site.grid[0]}×{site.grid[1]}",
                do="calibrate without dynamic_shapes; the plan fits the dynamic model as well",
            )


def _window(side: int) -> Choice:
    return Choice("window", window=(side, side))


def _shape(site: AttentionSite) -> AttentionShape:
    value = site.out.node.meta["val"]
    return AttentionShape(
        batch=value.numel() // (int(site.tokens) * site.num_heads * site.head_dim),
        num_heads=site.num_heads,
        head_dim=site.head_dim,
        grid=(int(site.grid[0]), int(site.grid[1])),
        extra_before=int(site.extra_before),
        extra_after=int(site.extra_after),
        dtype=site.autocast or site.dtype,
        device=str(value.device),
        scale=site.scale,
    )


def _attention_limit(budget: float | str | None, full_ms: float, attention_ms: float) -> float | None:
    """A bound on the model's latency as one on its attention: the rest of the model stays as it is."""
    if budget is None:
        return None
    text = str(budget).strip().lower()
    try:
        limit = float(text.removesuffix("ms")) if text.endswith("ms") else float(text) * full_ms
    except ValueError:
        limit = math.nan
    if not limit > 0 or (not text.endswith("ms") and float(text) > 1):
        raise InputError(f"{budget!r} is no budget", do='give a share of the full latency (0.6) or a time ("5ms")')
    return limit - (full_ms - attention_ms)


def _no_plan(
    budget: float | str | None, max_drift: float, full_ms: float, options: _Options, measured: list[Candidate]
) -> PlanError:
    full = latency_of(options.values, (0,) * len(options.values))
    within = [each for each in measured if each.drift <= max_drift]
    fastest = min(within, key=lambda each: each.latency_ms)
    return PlanError(
        f"no plan meets the budget of {budget}",
        why=f"the full model takes {full_ms:.1f} ms; the fastest plan with drift ≤ {max_drift:g} takes about "
        f"{full_ms - full + fastest.latency_ms:.1f} ms",
        do="allow more drift or more time; a trained search reaches further",
    )


def _environment(site: AttentionSite) -> dict[str, Any]:
    return {
        "made_by": "calibrate",
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "device": device_name(site.out.node.meta["val"].device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "dtype": str(site.dtype).removeprefix("torch."),
        "grid": [int(size) for size in site.grid],
        "batch": _shape(site).batch,
    }


def device_name(device: torch.device) -> str:
    """What the device calls itself."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:  # noqa: PTH123
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _image_size(batch: Batch) -> tuple[int, int] | None:
    for value in (*batch[0], *batch[1].values()):
        if isinstance(value, Tensor) and value.dim() == 4:
            return int(value.shape[-2]), int(value.shape[-1])
    return None


def _projection_weights(sites: Sites, program: ExportedProgram) -> dict[str, Tensor]:
    names = [linear.weight for site in sites for linear in site.projections.named().values()]
    return {name: program.state_dict[name] for name in names if name in program.state_dict}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
