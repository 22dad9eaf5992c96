"""Paths through a supernet: drawn at random for training, and written down."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence

from jetvit.cost_model import FULL, Choice
from jetvit.search.post_training.supernet import Path

Alternatives = Mapping[str, Sequence[Choice]]
"""What each site may be besides full attention."""


def draw_path(alternatives: Alternatives, max_full: int, seed: str) -> dict[str, Choice]:
    """A path: an alternative at every site, each as likely, but full attention at up to `max_full` sites.

    How many those are is drawn first, and each number is as likely: the paths that a search ends with have few.
    """
    rng = random.Random(seed)
    path = {site: rng.choice(list(some)) for site, some in alternatives.items()}
    for site in rng.sample(list(path), rng.randint(0, min(max_full, len(path)))):
        path[site] = FULL
    return path


def path_key(path: Path) -> str:
    """The choices that are not full, by site, as text: the same for the same model."""
    return json.dumps({name: choice.label for name, choice in sorted(path.items()) if choice != FULL})
