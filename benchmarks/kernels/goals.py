"""Compare our operators with each rival, from measured rows, and tell whether the goals are met."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from benchmarks.devices import goal_device
from benchmarks.kernels.rows import OURS, REFERENCE
from benchmarks.kernels.shapes import FIRST_MIXERS, MODELS, MORE_MIXERS

Row = Mapping[str, str]

# The most that ours may take, in floors, and what ours must beat, by how much, at GOAL_SIZE, on a device with goals.
GOAL_SIZE = "1024x2048"
_FLOORS = {"linear": 2.0, "window": 2.5}
_RIVALS = {
    "linear": {"eager": 4.0},
    "window": {"eager balanced": 1.0, "compiled balanced": 1.0, "flex": 1.0, "flex reordered": 1.0},
}


@dataclass(frozen=True)
class Comparison:
    """Ours in one problem. ratios: how many times as long each rival takes, of rows of the same run."""

    device: str
    model: str
    size: str
    mixer: str
    ours_ms: float
    floor_ms: float
    ratios: dict[str, float]

    @property
    def floors(self) -> float:
        """Return how many times the floor ours takes."""
        return self.ours_ms / self.floor_ms

    @property
    def missed(self) -> list[str] | None:
        """Return the goals that are not met, in words; None where no goal is set or a rival was not measured."""
        kind = self.mixer.partition(" ")[0]
        if goal_device(self.device) is None or self.size != GOAL_SIZE or kind not in _FLOORS:
            return None
        rivals = _RIVALS[kind]
        if not set(rivals) <= set(self.ratios):
            return None
        missed = [f"> {_FLOORS[kind]:g}× floor"] if self.floors > _FLOORS[kind] else []
        return missed + [
            f"{self.ratios[name]:.1f}× over {name}, not {least:g}×"
            for name, least in rivals.items()
            if self.ratios[name] < least
        ]


def comparisons(rows: Iterable[Row]) -> list[Comparison]:
    """Return one for each device and problem in which ours was measured, in the order of sizes, mixers and models."""
    groups: dict[tuple[str, str, str, str], dict[str, Row]] = {}
    for row in rows:
        if row["status"] == "ok":
            key = row["device"], row["size"], row["mixer"], row["model"]
            groups.setdefault(key, {})[row["implementation"]] = row
    found = []
    for (device, size, mixer, model), group in groups.items():
        if (ours := group.get(OURS)) is None:
            continue
        ours_ms = float(ours["median_ms"])
        ratios = {
            name: float(row["median_ms"]) / ours_ms
            for name, row in group.items()
            if name not in (OURS, REFERENCE) and row["run"] == ours["run"]
        }
        found.append(Comparison(device, model, size, mixer, ours_ms, float(ours["floor_ms"]), ratios))
    return sorted(found, key=_place)


def _place(comparison: Comparison) -> tuple[int, int, int]:
    mixers = [mixer.name for mixer in (*FIRST_MIXERS, *MORE_MIXERS)]
    size = [int(side) for side in comparison.size.split("x")]
    return size[0] * size[1], mixers.index(comparison.mixer), list(MODELS).index(comparison.model)
