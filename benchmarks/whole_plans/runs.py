"""Whole models under many plans, timed end to end: what the cost model's sums are held against.

The models are plain Vision Transformers with random weights, for a latency does not depend on them. All plans of a
group (one model at one image size) are timed in turns, in an order that is new in every pass, so that a slow spell of
the machine meets them alike.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram, export

from benchmarks.whole_plans.plain_vit import PlainViT
from jetvit.api import find_attention, optimize
from jetvit.cost_model import Choice, Fingerprint, Plan, SitePlan
from jetvit.cost_model.measuring.graph_operations import graph_operations
from jetvit.cost_model.measuring.measurement import Machine
from jetvit.cost_model.measuring.rounds import Run, Sampler, in_rounds, sampler
from jetvit.cost_model.measuring.runs import Mode, WholeRun
from jetvit.cost_model.measuring.timing import generator_shapes, summary
from jetvit.passes.rewrites.apply_plan import generator_names
from jetvit.patterns.site import Sites

CHOICES = {
    "F": Choice("full"),
    "W8": Choice("window", window=(8, 8)),
    "W16": Choice("window", window=(16, 16)),
    "L": Choice("linear"),
    "L3": Choice("linear", conv_size=3),
}


@dataclass(frozen=True)
class Group:
    """A model at one image size (height, width in pixels)."""

    heads: int
    head_dim: int
    depth: int
    extra_tokens: int
    size: tuple[int, int]
    batch: int
    dtype: str = "float32"

    def __str__(self) -> str:
        return (
            f"ViT of {self.depth} blocks, {self.heads}x{self.head_dim}, {self.extra_tokens} extra tokens, "
            f"{self.batch}x3x{self.size[0]}x{self.size[1]} {self.dtype}"
        )


# Of widths that a sweep measures, and one, 4x64, that it does not.
CPU_GROUPS = (
    Group(3, 64, 4, 1, (384, 512), 1),
    Group(3, 64, 8, 1, (256, 512), 2),
    Group(3, 64, 6, 1, (512, 768), 1),
    Group(6, 64, 4, 5, (384, 512), 1),
    Group(6, 64, 8, 5, (224, 224), 2),
    Group(4, 64, 6, 1, (384, 384), 1),
)
GPU_GROUPS = (
    Group(12, 64, 6, 5, (512, 512), 4, "bfloat16"),
    Group(16, 64, 6, 5, (1024, 2048), 1, "bfloat16"),
    Group(16, 64, 12, 5, (1024, 1024), 1, "bfloat16"),
    Group(32, 128, 4, 5, (1024, 2048), 1, "bfloat16"),
    Group(20, 64, 6, 1, (1024, 1024), 2, "bfloat16"),
)


def sample_plans(depth: int, count: int, seed: int) -> list[tuple[str, ...]]:
    """Plans as choices by block: all alike for each choice, then mixtures at random; each plan once."""
    rng = random.Random(seed)
    plans = dict.fromkeys((name,) * depth for name in CHOICES)
    while len(plans) < min(count, len(CHOICES) ** depth):
        weights = [rng.random() for _ in CHOICES]
        plans[tuple(rng.choices(list(CHOICES), weights, k=depth))] = None
    return list(plans)[:count]


def measure_group(
    group: Group,
    machine: Machine,
    device: torch.device,
    *,
    plans: int,
    passes: int,
    compiled: bool = False,
    progress: Callable[[str], None] = lambda text: None,
) -> Iterator[WholeRun]:
    """Time the original model and its plans. compiled: by Inductor, which takes long to prepare."""
    mode: Mode = "compiled" if compiled else "eager"
    torch.manual_seed(0)
    dtype = getattr(torch, group.dtype)
    model = PlainViT(group.depth, group.heads * group.head_dim, group.heads, group.extra_tokens).to(device, dtype)
    images = torch.rand(group.batch, 3, *group.size, device=device, dtype=dtype)
    program = export(model.eval(), (images,))
    sites = find_attention(program)
    names = sample_plans(group.depth, plans, seed=group.depth)
    programs = [optimize(program, plan=_plan(sites, each)) for each in names]
    with torch.inference_mode():
        samplers = [_sampler(partial(_module(each, compiled), images), device) for each in programs]
        progress(f"{group}, {mode}: {len(samplers)} plans ready")
        samples = in_rounds(samplers, passes)
    for plan, rewritten, values in zip(names, programs, samples, strict=True):
        operations = graph_operations(rewritten.graph_module)
        yield WholeRun(machine, str(group), " ".join(plan), mode, operations, summary(values))


def _plan(sites: Sites, names: Sequence[str]) -> Plan:
    entries = tuple(SitePlan(site.name, CHOICES[name]) for site, name in zip(sites, names, strict=True))
    weights: dict[str, Tensor] = {}
    for site, entry in zip(sites, entries, strict=True):
        if entry.choice.conv_size:
            shapes = generator_shapes(site.num_heads * site.head_dim, entry.choice.conv_size)
            for name, shape in zip(generator_names(site.name), shapes, strict=True):
                weights[name] = torch.randn(shape) * 0.02
    return Plan(entries, Fingerprint.of(sites), weights=weights)


def _module(program: ExportedProgram, compiled: bool) -> Callable[[Tensor], object]:
    module: nn.Module = program.module()
    return torch.compile(module, dynamic=False) if compiled else module


def _sampler(run: Run, device: torch.device) -> Sampler:
    """Compile, and answer what takes a sample."""
    sample = sampler(run, device)

    def warm_sample() -> float:
        run()  # the caches are another plan's
        return sample()

    return warm_sample
