"""`Choice`: what an attention site becomes, as a value that plans, timings and passes share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from jetvit.kernels.linear_attention.op import CONV_SIZES
from jetvit.kernels.linear_attention.reference import FEATURE_MAPS
from jetvit.patterns.errors import PlanError

Kind = Literal["full", "window", "linear"]

DEFAULT_EPS = 1e-6

_FIELDS: dict[str, tuple[str, ...]] = {
    "full": (),
    "window": ("window",),
    "linear": ("conv_size", "eps", "feature_map"),
}


@dataclass(frozen=True)
class Choice:
    """Full, window or linear attention, with the parameters of that kind and of no other.

    * ``Choice("full")``
    * ``Choice("window", window=(16, 16))``: the largest height and width of a window, in tokens.
    * ``Choice("linear")``: `conv_size` is the side of the depthwise kernel on v, 0 (the default) for none; `eps`, 1e-6
      by default, is added to the denominator; `feature_map`, "relu" by default, "relu_centred" or "hedgehog", names
      the function on q and k. `jetvit::linear_attention` says what they mean.

    Raises `PlanError` for a parameter that is missing, out of range, or of another kind.
    """

    kind: Kind
    window: tuple[int, int] | None = None
    conv_size: int | None = None
    eps: float | None = None
    feature_map: str | None = None

    def __post_init__(self) -> None:
        if self.kind not in _FIELDS:
            raise _refusal(f"the kind is {self.kind!r}, which is none of {', '.join(_FIELDS)}")
        for name in ("window", "conv_size", "eps", "feature_map"):
            if getattr(self, name) is not None and name not in _FIELDS[self.kind]:
                raise _refusal(f"{self.kind} attention takes no {name}")
        if self.kind == "window":
            self._normalise_window()
        elif self.kind == "linear":
            self._normalise_linear()

    def _normalise_window(self) -> None:
        if self.window is None or len(self.window) != 2 or min(self.window) < 1:
            raise _refusal(f"window attention takes window=(height, width), both at least 1, not {self.window!r}")
        object.__setattr__(self, "window", (int(self.window[0]), int(self.window[1])))

    def _normalise_linear(self) -> None:
        conv_size = 0 if self.conv_size is None else int(self.conv_size)
        if conv_size not in CONV_SIZES:
            raise _refusal(f"conv_size is {conv_size}, which is none of {', '.join(map(str, CONV_SIZES))}")
        eps = DEFAULT_EPS if self.eps is None else float(self.eps)
        if not 0 < eps <= 1:
            raise _refusal(f"eps is {eps}; it is above 0 and at most 1")
        feature_map = "relu" if self.feature_map is None else self.feature_map
        if feature_map not in FEATURE_MAPS:
            raise _refusal(f"the feature map is {feature_map!r}, which is none of {', '.join(FEATURE_MAPS)}")
        object.__setattr__(self, "conv_size", conv_size)
        object.__setattr__(self, "eps", eps)
        object.__setattr__(self, "feature_map", feature_map)

    @property
    def label(self) -> str:
        """A short name, the same in every release: "full", "window 16x16", "linear relu conv3".

        Two choices have the same label only if they are equal: an eps that is not the default is part of it.
        """
        if self.window is not None:
            return f"window {self.window[0]}x{self.window[1]}"
        if self.kind == "full":
            return "full"
        conv = f" conv{self.conv_size}" if self.conv_size else ""
        eps = "" if self.eps == DEFAULT_EPS else f" eps{self.eps!r}"
        return f"linear {self.feature_map}{conv}{eps}"

    def covers(self, grid: tuple[int, int]) -> bool:
        """True for a window that holds a whole grid of (height, width) tokens: full attention under another name."""
        return self.window is not None and grid[0] <= self.window[0] and grid[1] <= self.window[1]

    def __str__(self) -> str:
        return self.label

    def to_json(self) -> dict[str, Any]:
        """The choice as it stands in plan.json: its kind and the parameters of that kind."""
        values = {name: getattr(self, name) for name in _FIELDS[self.kind]}
        return {"kind": self.kind} | {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Choice:
        """The inverse of `to_json`, for a record that the schema of plan.json has passed."""
        window = record.get("window")
        return cls(**record | ({"window": tuple(window)} if window is not None else {}))


FULL = Choice("full")


def _refusal(why: str) -> PlanError:
    return PlanError("a choice cannot be made", why=why, do="see the docstring of jetvit.cost_model.Choice")
