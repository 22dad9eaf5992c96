"""The folder of a finished search, made up, for tests of pictures."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.text import Text

from jetvit.cost_model import Choice
from jetvit.search.post_training.beam import Level, Rated
from jetvit.search.post_training.path_search import Searched

FULL, WINDOW_16, CONV_3 = Choice("full"), Choice("window", window=(16, 16)), Choice("linear", conv_size=3)
LINEAR, WINDOW = CONV_3.label, WINDOW_16.label


def rated(sites: list[str], window: int, full: int) -> Rated:
    """A path whose first sites are full, and the next ones window attention."""
    choices = [FULL] * full + [WINDOW_16] * window + [CONV_3] * len(sites)
    path = dict(zip(sites, choices, strict=False))
    return Rated(path, 0.5 + 0.01 * window + 0.05 * full, 4 + 0.1 * window + 0.5 * full)


def trace_record(count: int, windows: int, fulls: int) -> dict[str, Any]:
    """A trace with so many steps of either climb, as a search keeps it."""
    sites = [f"blocks.{number}.attn" for number in range(count)]
    climbs = {
        "efficient": [rated(sites, step, 0) for step in range(windows + 1)],
        "full": [rated(sites, windows, step) for step in range(fulls + 1)],
    }
    worst = rated(sites, 0, 0)
    searched = Searched(
        best=climbs["full"][-1],
        levels=tuple(
            Level(phase, step, (path, worst)) for phase, climb in climbs.items() for step, path in enumerate(climb)
        ),
        listed=(rated(sites, 1, fulls),),
        controls={f"all {LINEAR}": worst, "random": rated(sites, 0, fulls)},
        full=rated(sites, 0, count),
    )
    return {"task": "segmentation", "metric": "miou", "sites": sites, **searched.to_json()}


def write_search(folder: Path, trace: dict[str, Any], stages: tuple[str, ...] = ("head", "local_distillation")) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "trace.json").write_text(json.dumps(trace))
    with (folder / "metrics.csv").open("w", newline="") as file:
        rows = [(stage, step, 1 / (step + 1), 1.0, 0.1) for stage in stages for step in range(30)]
        csv.writer(file).writerows([("stage", "step", "loss", "rate", "seconds"), *rows])
    return folder


def texts(figure: Figure) -> set[str]:
    """Everything that is written on a figure, its legends included."""
    return {text.get_text() for text in figure.findobj(Text)}
