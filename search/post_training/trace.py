"""The results that a finished search leaves in its folder: trace.json and metrics.csv."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jetvit.patterns.errors import InputError


@dataclass(frozen=True)
class RatedPath:
    """A path of the trace: the label of each site's choice, the metric (more is better), and the model's latency."""

    labels: Mapping[str, str]
    value: float
    latency_ms: float

    @property
    def full(self) -> int:
        """At how many sites it is full attention."""
        return sum(label == "full" for label in self.labels.values())


@dataclass(frozen=True)
class Trace:
    """The content of trace.json: see `Searched`. The best path of a step of the beam search is its first."""

    metric: str
    sites: tuple[str, ...]
    best: RatedPath
    original: RatedPath
    steps: tuple[tuple[str, tuple[RatedPath, ...]], ...]
    listed: tuple[RatedPath, ...]
    controls: Mapping[str, RatedPath]

    @property
    def beam(self) -> list[RatedPath]:
        """All paths of all steps of the beam search."""
        return [path for _, paths in self.steps for path in paths]


def read_trace(folder: Path) -> Trace:
    """The trace of a finished search. Raises InputError if there is none, or if it is damaged."""
    file = folder / "trace.json"
    if not file.exists():
        raise InputError("there is no trace to draw", why="the search is not finished", where=str(file))
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        sites = tuple(record["sites"])

        def rated(some: Iterable[Mapping[str, Any]]) -> tuple[RatedPath, ...]:
            return tuple(
                RatedPath({site: each["path"][site] for site in sites}, float(each["value"]), float(each["latency_ms"]))
                for each in some
            )

        best, original = rated([record["best"], record["full"]])
        return Trace(
            metric=record["metric"],
            sites=sites,
            best=best,
            original=original,
            steps=tuple((level["phase"], rated(level["paths"])) for level in record["beam"]),
            listed=rated(record["listed"]),
            controls=dict(zip(record["controls"], rated(record["controls"].values()), strict=True)),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            "the trace of the search is damaged", why=f"{type(error).__name__}: {error}", where=str(file)
        ) from error


def read_losses(folder: Path) -> dict[str, list[float]]:
    """The losses of each stage, step by step. Raises InputError if there are none, or if the file is damaged."""
    file = folder / "metrics.csv"
    losses: dict[str, list[float]] = {}
    try:
        with file.open(newline="", encoding="utf-8") as stream:
            for row in csv.DictReader(stream):
                losses.setdefault(row["stage"], []).append(float(row["loss"]))
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise InputError(
            "the losses of the search cannot be read", why=f"{type(error).__name__}: {error}", where=str(file)
        ) from error
    if not losses:
        raise InputError("the search has no losses", where=str(file))
    return losses
