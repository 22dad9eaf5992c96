"""The entries of a plan: a site's choice, what was measured there, and the points of the front."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jetvit.cost_model.plans.choice import Choice

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class Measured:
    """A choice that was measured at a site, every other site being full attention.

    `drift` is that of the model's output, `latency_ms` that of this attention alone; None where it was not measured.
    """

    choice: Choice
    drift: float | None = None
    latency_ms: float | None = None

    def to_json(self) -> dict[str, Any]:
        """The measurement as it stands in plan.json."""
        return {"choice": self.choice.to_json(), "drift": self.drift, "latency_ms": self.latency_ms}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Measured:
        """The inverse of `to_json`, for a record that the schema of plan.json has passed."""
        return cls(Choice.from_json(record["choice"]), _float(record["drift"]), _float(record["latency_ms"]))


@dataclass(frozen=True)
class SitePlan:
    """The choice for the attention site `name`, and the reason in one sentence.

    `drift` and `latency_ms` are those of `choice` as in `Measured`; `measured` holds every choice that was measured.
    """

    name: str
    choice: Choice
    why: str = ""
    drift: float | None = None
    latency_ms: float | None = None
    measured: tuple[Measured, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "measured", tuple(self.measured))

    def to_json(self) -> dict[str, Any]:
        """The site as it stands in plan.json."""
        return {
            "name": self.name,
            "choice": self.choice.to_json(),
            "why": self.why,
            "drift": self.drift,
            "latency_ms": self.latency_ms,
            "measured": [one.to_json() for one in self.measured],
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> SitePlan:
        """The inverse of `to_json`, for a record that the schema of plan.json has passed."""
        return cls(
            name=record["name"],
            choice=Choice.from_json(record["choice"]),
            why=record["why"],
            drift=_float(record["drift"]),
            latency_ms=_float(record["latency_ms"]),
            measured=tuple(Measured.from_json(one) for one in record["measured"]),
        )


@dataclass(frozen=True)
class FrontPoint:
    """A plan that was measured on the way: `changed` sites are not full attention.

    `drift` is that of the model's output, `latency_ms` that of all attention sites together (None: not measured).
    """

    changed: int
    drift: float
    latency_ms: float | None = None

    def to_json(self) -> dict[str, Any]:
        """The point as it stands in plan.json."""
        return {"changed": self.changed, "drift": self.drift, "latency_ms": self.latency_ms}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> FrontPoint:
        """The inverse of `to_json`, for a record that the schema of plan.json has passed."""
        return cls(int(record["changed"]), float(record["drift"]), _float(record["latency_ms"]))


def _float(value: float | None) -> float | None:
    return None if value is None else float(value)
