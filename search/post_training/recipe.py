"""The stages and sizes of a post-training attention search."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from jetvit.cost_model import Choice
from jetvit.search.post_training.train import Schedule

CHOICES = (Choice("linear", conv_size=3), Choice("window", window=(8, 8)), Choice("window", window=(16, 16)))


@dataclass(frozen=True)
class Recipe:
    """Stages and sizes of a search; the defaults are for a small model on a CPU, in minutes.

    * batch: images a step, over all processes.
    * head: of the task, on the original model. local, supernet: distillation of the choices.
    * distil, task: of the chosen model, by features and by the loss of the task; None leaves a stage out. The control
      gets `task` too.
    * score_steps: batches that single choices are scored on.
    * survivors: how many linear and how many window attentions a site keeps after the local distillation.
    * drawn_full: up to how many sites of a random path are full.
    * select_images: so many images of the select split rate a path.
    * width, expand: of the beam search. candidates: how many paths of the integer program are rated.
    * flip: whether the whole models are trained on mirrored images too.
    """

    batch: int = 2
    head: Schedule = field(default_factory=lambda: Schedule(600, 3e-3, 3e-3, weight_decay=1e-4))
    local: Schedule = field(default_factory=lambda: Schedule(160, 5e-4))
    supernet: Schedule = field(default_factory=lambda: Schedule(300, 3e-4))
    distil: Schedule | None = field(default_factory=lambda: Schedule(300, 3e-4))
    task: Schedule | None = field(default_factory=lambda: Schedule(300, 5e-5, 5e-5))
    score_steps: int = 4
    survivors: int = 2
    drawn_full: int = 3
    select_images: int = 24
    width: int = 3
    expand: int | None = None
    candidates: int = 20
    flip: bool = True

    def to_json(self) -> dict[str, Any]:
        """The recipe as JSON for a record."""
        return dataclasses.asdict(self)
