"""The whole search on a small trained Vision Transformer: no data, no network and no other package is needed."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from jetvit.api import find_attention, optimize
from jetvit.bench import bench
from jetvit.cost_model import Choice, Fingerprint, Plan, SitePlan
from jetvit.demo.result import DemoResult
from jetvit.demo.scenes import FARTHEST, MEAN, NEAREST, STD, SceneSplit
from jetvit.demo.small_vit import load_small_vit
from jetvit.explain import explain
from jetvit.files import atomic_write
from jetvit.patterns.site import Sites
from jetvit.patterns.wording import counted
from jetvit.search import Depth, Recipe, Schedule, SearchRequest, search
from jetvit.search.data.splits import Split, Splits, collate
from jetvit.search.post_training.pictures import draw

SIZE = (256, 256)
ROOMS = (256, 12, 32)
ROOMS_SHOWN = 3
MAX_FULL = 2
CHOICES = (Choice("linear", conv_size=3), Choice("window", window=(16, 16)))
RECIPE = Recipe(
    batch=2,
    local=Schedule(40, 1e-3),
    supernet=Schedule(40, 5e-4),
    distil=Schedule(160, 5e-4),
    task=None,
    score_steps=2,
    select_images=12,
    width=1,
    expand=2,
    candidates=4,
)
"""Minutes on a CPU: the defaults of a search are several times as long."""

TASK = Depth("depth", NEAREST, FARTHEST, taps=None)
Progress = Callable[[str, int, int], None]


def run_demo(
    folder: Path,
    *,
    size: tuple[int, int] = SIZE,
    rooms: tuple[int, int, int] = ROOMS,
    recipe: Recipe = RECIPE,
    rounds: int = 15,
    say: Callable[[str], None] = lambda text: None,
    progress: Progress | None = None,
) -> DemoResult:
    """Find, search, train, draw, compile and compare.

    Args:
        folder: gets `plan/`, the pictures of the search, and `report.html` with all that was found; it is created.
        size: image height and width in pixels, multiples of 8.
        rooms: how many rendered rooms train, choose and test.
        recipe: of the search.
        rounds: of the final comparison, fewer where they take more than half a minute.
        say: gets a sentence after each step.
        progress: called with a description, the steps done, and their number.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model = load_small_vit()
    train, select, test = (SceneSplit(count, size, seed) for seed, count in enumerate(rooms, start=1))
    image = test[0].image[None]

    sites = find_attention(model, image)
    site = sites[0]
    say(
        f"1. found     {counted(len(sites), 'full attention')} over {counted(site.tokens, 'token')}, "
        f"{counted(site.num_heads, 'head')} each"
    )

    plan = _search(model, Splits(train, select, test), recipe, folder, progress)
    plan.save(folder / "plan")
    choices = Counter(each.choice.label for each in plan.sites)
    kept = ", ".join(each.name for each in plan.sites if each.choice.kind == "full")
    say(f"2. searched  {', '.join(f'{count} {label}' for label, count in choices.most_common())} (full: {kept})")

    untrained = _delta1_of(_all_linear(model, sites, recipe.batch, size), test, recipe.batch)
    result = bench(model, image, plan=plan, rounds=rounds, time_limit_s=30, progress=progress)
    say(f"3. compiled  with and without the plan, and timed both in {counted(result.rounds, 'shuffled round')}")
    demo = DemoResult(sites, plan, untrained, result)
    _write_page(demo, model, test, folder)
    return demo


def _search(model: nn.Module, data: Splits, recipe: Recipe, folder: Path, progress: Progress | None) -> Plan:
    # Nothing is kept of the run itself: the next demo is to search anew, and not to read what this one has found.
    with tempfile.TemporaryDirectory() as run:
        request = SearchRequest(
            max_full=MAX_FULL,
            choices=CHOICES,
            recipe=recipe,
            folder=run,
            precision="bf16",
            provenance={"model": "jetvit.demo.small_vit", "images": "jetvit.demo.scenes"},
            progress=progress,
        )
        plan = search(model, data, TASK, request=request)
        draw(run, folder)
    return plan


@torch.inference_mode()
def _write_page(demo: DemoResult, model: nn.Module, test: Split, folder: Path) -> None:
    """Draw a few rooms as both models see them, and write report.html with all the pictures."""
    from jetvit.demo.page import demo_page, draw_rooms  # imports matplotlib, which takes a while

    images, depth = collate([test[place] for place in range(min(ROOMS_SHOWN, len(test)))])
    assert depth is not None, "every room has its depth"
    planned = optimize(model, images, plan=demo.plan)
    panels = (("depth", 1 / depth), ("original", model(images)), ("plan", planned(images)))
    draw_rooms(
        folder / "rooms.png", images * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None], panels
    )
    report = explain(model, images[:1], plan=demo.plan)
    with atomic_write(folder / "report.html") as stream:
        stream.write(demo_page(demo, report, folder))


def _all_linear(model: nn.Module, sites: Sites, batch: int, size: tuple[int, int]) -> nn.Module:
    plan = Plan(tuple(SitePlan(site.name, Choice("linear")) for site in sites), Fingerprint.of(sites))
    return optimize(model, torch.zeros(batch, 3, *size), plan=plan)


@torch.inference_mode()
@torch.autocast("cpu", torch.bfloat16)
def _delta1_of(model: Callable[[Tensor], Any], split: Split, batch: int) -> float:
    """Over whole batches of the split, in the precision that the search examines models in."""
    counts = []
    for first in range(0, len(split) - batch + 1, batch):
        images, depth = collate([split[place] for place in range(first, first + batch)])
        assert depth is not None, "every room has its depth"
        counts.append(TASK.counts(model(images), depth))
    return TASK.metrics(torch.cat(counts))["delta1"]
