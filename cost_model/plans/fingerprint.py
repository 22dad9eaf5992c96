"""`Fingerprint`: what the attention sites of a model look like, so that a plan is refused on another model.

It holds only what is equal over capture road, dtype, batch, image size and torch version.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from jetvit.patterns.errors import PlanError

if TYPE_CHECKING:
    from jetvit.patterns.site import AttentionSite

DYNAMIC = "dynamic"
_INPUTS = {"packed", "q", "k", "v"}


@dataclass(frozen=True)
class SiteShape:
    """The part of an attention site that a plan relies on.

    `projections` maps a role (packed, q, k, v, out) to (out_features, in_features). `extra_before` and `extra_after`
    are token counts, or "dynamic" where the graph has a symbol. `rope` is the kind of rotary embedding, None for none.
    """

    name: str
    num_heads: int
    head_dim: int
    projections: Mapping[str, tuple[int, int]]
    extra_before: int | str
    extra_after: int | str
    rope: str | None

    @classmethod
    def of(cls, site: AttentionSite) -> SiteShape:
        """The shape of a captured site."""
        return cls(
            name=site.name,
            num_heads=int(site.num_heads),
            head_dim=int(site.head_dim),
            projections={
                role: (int(linear.out_features), int(linear.in_features))
                for role, linear in site.projections.named().items()
            },
            extra_before=_tokens(site.extra_before),
            extra_after=_tokens(site.extra_after),
            rope=None if site.rope is None else str(site.rope),
        )

    def difference(self, other: SiteShape) -> str | None:
        """The first field of this shape (the plan's) that `other` (the model's) has otherwise, in words.

        A dynamic token count agrees with every count: the same model is captured with and without symbols. One packed
        projection agrees with three that it may have been put together from, and with none that is known: a bias that
        a graph computes is folded in a file, where the projection is then seen, and a weight that two calls share, or
        that is quantised, is no projection of one site.
        """
        for field in ("num_heads", "head_dim", "extra_before", "extra_after", "rope"):
            ours, theirs = getattr(self, field), getattr(other, field)
            if ours != theirs and not (field.startswith("extra_") and DYNAMIC in (ours, theirs)):
                return _differs(self.name, field, ours, theirs)
        mine, its = dict(self.projections), dict(other.projections)
        if mine.keys() != its.keys():
            mine, its = _packed(mine), _packed(its)
            if not (mine.keys() & _INPUTS and its.keys() & _INPUTS):
                mine, its = ({role: size for role, size in each.items() if role == "out"} for each in (mine, its))
            if not ("out" in mine and "out" in its):
                mine, its = ({role: size for role, size in each.items() if role != "out"} for each in (mine, its))
        for role in sorted({*mine, *its}):
            if mine.get(role) != its.get(role):
                return _differs(self.name, f"the {role} projection", _matrix(mine.get(role)), _matrix(its.get(role)))
        return None

    def to_json(self) -> dict[str, Any]:
        """The shape as it stands in plan.json."""
        return {
            "name": self.name,
            "num_heads": self.num_heads,
            "head_dim": self.head_dim,
            "projections": {role: list(shape) for role, shape in sorted(self.projections.items())},
            "extra_before": self.extra_before,
            "extra_after": self.extra_after,
            "rope": self.rope,
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> SiteShape:
        """The inverse of `to_json`, for a record that the schema of plan.json has passed."""
        return cls(
            name=record["name"],
            num_heads=int(record["num_heads"]),
            head_dim=int(record["head_dim"]),
            projections={role: (int(rows), int(cols)) for role, (rows, cols) in record["projections"].items()},
            extra_before=_tokens(record["extra_before"]),
            extra_after=_tokens(record["extra_after"]),
            rope=record["rope"],
        )


@dataclass(frozen=True)
class Fingerprint:
    """The shapes of all attention sites of a model, in the order of the graph. Raises `PlanError` on a name twice."""

    sites: tuple[SiteShape, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "sites", tuple(self.sites))
        refuse_repeats("fingerprint", (site.name for site in self.sites))

    @classmethod
    def of(cls, sites: Iterable[AttentionSite]) -> Fingerprint:
        """The fingerprint of captured sites."""
        return cls(tuple(SiteShape.of(site) for site in sites))

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the sites."""
        return tuple(site.name for site in self.sites)

    def within(self, removed: str, added: str = "") -> Fingerprint:
        """The sites below the dotted prefix `removed` ("" is above all), under `added` instead."""
        start = f"{removed}." if removed else ""
        end = f"{added}." if added else ""
        return Fingerprint(
            tuple(
                replace(site, name=end + site.name.removeprefix(start))
                for site in self.sites
                if site.name.startswith(start)
            )
        )

    def only(self, names: Iterable[str]) -> Fingerprint:
        """The sites of these names."""
        wanted = set(names)
        return Fingerprint(tuple(site for site in self.sites if site.name in wanted))

    def difference(self, other: Fingerprint) -> str | None:
        """The first difference between this fingerprint (the plan's) and `other` (the model's) in words, or None.

        The order of the sites plays no part.
        """
        theirs = {site.name: site for site in other.sites}
        for site in self.sites:
            if site.name not in theirs:
                return f"site {site.name} is in the plan and not in the model"
            if difference := site.difference(theirs.pop(site.name)):
                return difference
        for name in theirs:
            return f"site {name} is in the model and not in the plan"
        return None


def later_calls(plan: Fingerprint, model: Fingerprint) -> dict[str, str]:
    """The model's sites that are later calls of a module, each to the first call, where the plan knows one call only.

    A later call that looks other than the first is left out, and so is not the plan's.
    """
    if any("#" in name for name in plan.names):
        return {}
    first = {site.name: site for site in model.sites}
    calls = {site.name: site.name.partition("#")[0] for site in model.sites if "#" in site.name}
    return {
        call: name for call, name in calls.items() if name in first and replace(first[call], name=name) == first[name]
    }


def refuse_repeats(what: str, names: Iterable[str]) -> None:
    """Raise `PlanError` if a site name stands twice."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise PlanError(
                f"the {what} names a site twice",
                where=f"site {name}",
                do="keep one entry a site; an attention that one module computes twice is named with #1",
            )
        seen.add(name)


def _tokens(count: Any) -> int | str:
    if count == DYNAMIC:
        return DYNAMIC
    # A SymInt is no int and no float; int() of it would put a guard on the graph.
    return int(count) if isinstance(count, int | float) else DYNAMIC


def _packed(projections: dict[str, tuple[int, int]]) -> dict[str, tuple[int, int]]:
    """The same with q, k and v as one product, where they have one input."""
    separate = [projections.get(role) for role in ("q", "k", "v")]
    if None in separate or len({inputs for _, inputs in filter(None, separate)}) != 1:
        return projections
    rest = {role: size for role, size in projections.items() if role not in ("q", "k", "v")}
    return rest | {"packed": (sum(out for out, _ in filter(None, separate)), projections["q"][1])}


def _matrix(shape: tuple[int, int] | None) -> str:
    return "absent" if shape is None else f"{shape[0]}x{shape[1]}"


def _differs(site: str, what: str, ours: object, theirs: object) -> str:
    return f"site {site}: {what} is {ours} in the plan and {theirs} in the model"
