"""A search that takes a second or two, on noise; as a program, for tests that kill it or start it twice.

    python -m tests.search.tiny FOLDER [sharded]

prints a line whenever a step is done, and leaves its plan in FOLDER/plan.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.whole_plans.plain_vit import PlainViT
from jetvit.cost_model import Choice, Plan
from jetvit.passes.frontends.capture import export_model
from jetvit.search.data.processes import Processes
from jetvit.search.data.splits import Sample, Splits
from jetvit.search.post_training.feature_extractor import FeatureExtractor
from jetvit.search.post_training.recipe import Recipe
from jetvit.search.post_training.search import search
from jetvit.search.post_training.supernet import Supernet
from jetvit.search.post_training.train import Schedule
from jetvit.search.tasks.depth import Depth
from jetvit.search.tasks.features import Features
from jetvit.search.tasks.segmentation import Segmentation
from jetvit.search.tasks.taps import Taps
from jetvit.search.tasks.task import Task
from tests.jetvit.costs import made_up_costs

LINEAR, CONV = Choice("linear"), Choice("linear", conv_size=3)
WINDOW = Choice("window", window=(2, 2))
SIZE = (64, 64)
TASKS: dict[str, Task] = {
    "segmentation": Segmentation(2),
    "depth": Depth("disparity", 0.1, 10.0, taps=2),
    "features": Features(),
}
FEW = Recipe(
    batch=2,
    head=Schedule(8, 1e-2, 1e-2),
    local=Schedule(4, 1e-3),
    supernet=Schedule(4, 1e-3),
    distil=Schedule(4, 1e-3),
    task=Schedule(4, 1e-4, 1e-4),
    score_steps=1,
    select_images=4,
    candidates=4,
)
# Long enough that stages save in the middle (a run saves every 25 steps).
LONG = Recipe(
    batch=2,
    head=Schedule(40, 1e-2, 1e-2),
    local=Schedule(28, 1e-3),
    supernet=Schedule(28, 1e-3),
    distil=Schedule(28, 1e-3),
    task=Schedule(28, 1e-4, 1e-4),
    score_steps=2,
    select_images=4,
    candidates=4,
)


@dataclass
class Noise:
    """Images of noise, with the target that a task wants."""

    count: int
    seed: int
    task: str = "features"
    size: tuple[int, int] = SIZE
    groups: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.keys = [f"{self.seed} {number}" for number in range(self.count)]
        self.groups = self.groups or [""] * self.count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int, /) -> Sample:
        generator = torch.Generator().manual_seed(1000 * self.seed + index)
        image = torch.randn(3, *self.size, generator=generator)
        # Blotches of the size of a patch, which a model can see.
        image = image + torch.randn(3, self.size[0] // 16, self.size[1] // 16, generator=generator).repeat_interleave(
            16, 1
        ).repeat_interleave(16, 2)
        target = {"segmentation": (image[0] > 0).long(), "depth": image[0].abs() + 0.5}.get(self.task)
        return Sample(image, target)


def noise(task: str, train: int = 5) -> Splits:
    """Splits for a task."""
    return Splits(Noise(train, 1, task), Noise(4, 2, task), Noise(5, 3, task))


def small(depth: int = 2) -> nn.Module:
    """A model of random weights, always the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return PlainViT(depth, 32, 2).eval()


def tiny_search(model: nn.Module | None = None, task: Task | str = "features", **changes: Any) -> Plan:
    """`search`, with latencies that are always the same; `changes` are other arguments."""
    asked = TASKS[task] if isinstance(task, str) else task
    arguments: dict[str, Any] = {
        "data": noise(asked.name),
        "max_full": 1,
        "choices": (CONV, WINDOW),
        "recipe": FEW,
        "costs": made_up_costs(),
        "processes": Processes(),
    }
    arguments |= changes
    return search(model if model is not None else small(), task=asked, **arguments)


def plain(images: Tensor) -> tuple[tuple[Tensor], dict[str, Any]]:
    """The call of a model that takes images alone."""
    return (images,), {}


def extractors(
    depth: int = 3, batch: int = 2, taps: list[str] | None = None, head: nn.Module | None = None
) -> tuple[Supernet, FeatureExtractor, FeatureExtractor]:
    """A supernet, what reads its active path, and what reads the original."""
    net = Supernet(export_model(small(depth), (torch.randn(batch, 3, *SIZE),), {}), (LINEAR, CONV, WINDOW))
    names = taps if taps is not None else [f"blocks.{depth - 1}"]
    extractor = FeatureExtractor(net, Taps(net.model, names, net.sites[0]), head, plain)
    return net, extractor, FeatureExtractor(net.original, extractor.taps, head, plain)


def disturb(net: Supernet, seed: int = 0) -> None:
    """Other weights for every choice, as if trained."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for site in net.choice_sites.values():
            for choice in site.choices[1:]:
                for value in site.parameters_of(choice).values():
                    value.add_(0.05 * torch.randn(value.shape, generator=generator))


def main(folder: str, how: str = "") -> None:
    """A search that stands in a folder, by the processes that a launcher has started."""
    torch.set_num_threads(1)
    plan = tiny_search(
        task="segmentation",
        recipe=LONG,
        folder=folder,
        processes=None,
        sharded=how == "sharded",
        provenance={"process": int(os.environ.get("RANK", "0"))},
        progress=lambda what, done, total: print(f"{what} {done}/{total}", flush=True),
    )
    if plan.provenance["process"] == 0:
        plan.save(Path(folder) / "plan")


if __name__ == "__main__":
    main(*sys.argv[1:])
