"""The whole way on a small Vision Transformer that needs no data, no network and no other package than torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jetvit.api import find_attention
from jetvit.bench import BenchResult, bench
from jetvit.cost_model import AttentionShape, Choice, Fingerprint, Latency, Measured, Plan, SitePlan, measure_choices
from jetvit.explain import explain
from jetvit.images import IMAGENET_MEAN, IMAGENET_STD, normalise, synthetic_images
from jetvit.patterns.site import Sites

SIZE = (704, 960)
PATCH_SIZE = 16
FULL, LINEAR = Choice("full"), Choice("linear")
WINDOWS = tuple(Choice("window", window=(side, side)) for side in (8, 16, 32))
Progress = Callable[[str, int, int], None]


class Attention(nn.Module):
    """Full self-attention over [batch, token, dim]."""

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Pre-norm attention and MLP."""

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn = Attention(dim, num_heads)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class SmallViT(nn.Module):
    """A Vision Transformer: [B, 3, H, W], in patches of 16 pixels, → [B, extra_tokens + h·w, dim]."""

    def __init__(self, depth: int = 6, dim: int = 192, num_heads: int = 3, extra_tokens: int = 1):
        super().__init__()
        self.patch_embed = nn.Conv2d(3, dim, PATCH_SIZE, PATCH_SIZE)
        self.extra_tokens = nn.Parameter(torch.zeros(1, extra_tokens, dim))
        self.pos_embed = nn.Parameter(torch.randn(1, dim, 14, 14) * 0.02)
        self.blocks = nn.Sequential(*(Block(dim, num_heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim)

    def forward(self, image: Tensor) -> Tensor:
        x = self.patch_embed(image)
        x = x + F.interpolate(self.pos_embed, size=x.shape[-2:], mode="bilinear")
        tokens = x.flatten(2).transpose(1, 2)
        return self.norm(self.blocks(torch.cat([self.extra_tokens.expand(len(tokens), -1, -1), tokens], dim=1)))


@dataclass(frozen=True)
class DemoResult:
    """What the demo found and measured: its sites, the latency of one attention by choice, the plan and the timing."""

    sites: Sites
    latencies: Mapping[Choice, Latency]
    choice: Choice
    plan: Plan
    result: BenchResult


def run_demo(
    folder: Path,
    *,
    size: tuple[int, int] = SIZE,
    depth: int = 6,
    rounds: int = 15,
    say: Callable[[str], None] = lambda text: None,
    progress: Progress | None = None,
) -> DemoResult:
    """Find, time, plan, compile and compare; write the plan and the report.

    The weights are random, so no drift is measured: which blocks keep full attention is a pattern here (every third),
    where `calibrate` would measure it.

    Args:
        folder: gets `plan/` and `report.html`; it is created.
        size: image height and width in pixels, multiples of 16.
        depth: the number of blocks.
        rounds: of the final comparison, fewer where they take more than half a minute.
        say: gets a sentence after each step.
        progress: called with a description, the steps done, and their number.
    """
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    model = SmallViT(depth).eval()
    images = normalise(synthetic_images(1, size), IMAGENET_MEAN, IMAGENET_STD)

    sites = find_attention(model, images)
    site = sites[0]
    say(f"1. found     {len(sites)} full attentions over {site.tokens} tokens, {site.num_heads} heads each")

    shape = AttentionShape(1, site.num_heads, site.head_dim, (int(site.grid[0]), int(site.grid[1])), extra_before=1)
    latencies = measure_choices([FULL, *WINDOWS, LINEAR], shape, time_limit_s=6)
    best = min((FULL, *WINDOWS), key=lambda choice: latencies[choice].median_ms)
    say("2. timed     one attention: " + ", ".join(f"{c.label} {t.median_ms:.3g} ms" for c, t in latencies.items()))

    plan = _plan(sites, latencies, best, size)
    plan.save(folder / "plan")
    explain(model, images, plan=plan).to_html(folder / "report.html")
    kept = [str(index) for index in range(depth) if _is_full(index)]
    if best == FULL:
        say("3. planned   nothing: no window was faster than full attention in this run; is the machine busy?")
    else:
        say(f"3. planned   {best.label} in {depth - len(kept)} blocks; blocks {' and '.join(kept)} keep full attention")

    result = bench(model, images, plan=plan, rounds=rounds, time_limit_s=30, progress=progress)
    say(f"4. compiled  with and without the plan, and timed both in {result.rounds} shuffled rounds")
    return DemoResult(sites, latencies, best, plan, result)


def _is_full(index: int) -> bool:
    return index % 3 == 2


def _plan(sites: Sites, latencies: Mapping[Choice, Latency], best: Choice, size: tuple[int, int]) -> Plan:
    measured = tuple(Measured(choice, None, latency.median_ms) for choice, latency in latencies.items())
    plans = []
    for index, site in enumerate(sites):
        choice = FULL if _is_full(index) else best
        why = "every third block keeps full attention" if choice is FULL else "the fastest window of those timed"
        plans.append(SitePlan(site.name, choice, why, None, latencies[choice].median_ms, measured))
    return Plan(
        sites=tuple(plans),
        fingerprint=Fingerprint.of(sites),
        provenance={"made_by": "jetvit demo", "torch": torch.__version__, "dtype": "float32", "weights": "random"},
        size=size,
    )
