"""Find the site of a model that a site of a plan is: equal names, or names with one common prefix more or less."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

from jetvit.patterns.errors import PlanError
from jetvit.patterns.wording import counted

T = TypeVar("T")


class Level(NamedTuple):
    """One segment of dotted names that is called `old` in a plan and `new` in a model.

    position: counted from 0 after the prefix that is removed.
    """

    position: int
    old: str
    new: str

    def has_index(self) -> bool:
        """Whether one of the two is, or ends with, a number: that of a layer, or of a call."""
        return any(name.isdigit() or "#" in name for name in (self.old, self.new))


@dataclass(frozen=True)
class NameMatch:
    """The names of a plan by the names of a model.

    `mapping` goes from plan name to model name. `added` is the dotted prefix that the model has and the plan has not,
    `removed` the one that the plan has and the model has not; at most one is not empty. `absent` are the plan's sites
    that the model has not, `unplanned` the model's sites that the plan does not name: they keep full attention.
    `renamed`: the sites have other names than a prefix gives them, by `level` and by segments that stand twice.
    `moved`: parameters, or modules that hold some, that were found under other names, from plan name to model name.
    `calls`: later calls of a module that the plan knows one call of, as of a backbone that is called with two views,
    each to the model's name of the first: they are treated as it is.
    """

    mapping: dict[str, str]
    added: str = ""
    removed: str = ""
    absent: tuple[str, ...] = ()
    unplanned: tuple[str, ...] = ()
    level: Level | None = None
    renamed: bool = False
    moved: Mapping[str, str] = field(default_factory=dict)
    calls: Mapping[str, str] = field(default_factory=dict)

    @property
    def planned(self) -> dict[str, str]:
        """The plan's name of each of the model's sites that the plan names."""
        first = {new: old for old, new in self.mapping.items()}
        return first | {call: first[name] for call, name in self.calls.items() if name in first}

    def here(self, by_fqn: Mapping[str, T]) -> dict[str, T]:
        """The same values by the model's names, without those that `own` leaves out."""
        return {self.rename(fqn): value for fqn, value in self.own(by_fqn).items()}

    def own(self, by_fqn: Mapping[str, T]) -> dict[str, T]:
        """The values that belong to the model, by the plan's names, where the model is a part of the plan's."""
        prefix = f"{self.removed}." if self.removed and not self.renamed else ""
        return {fqn: value for fqn, value in by_fqn.items() if fqn.startswith(prefix)}

    def rename(self, fqn: str) -> str:
        """The model's name of a parameter or site that the plan calls `fqn`.

        Raises `PlanError` if the plan's prefix is to be removed and `fqn` does not have it.
        """
        for old, new in (*self.moved.items(), *(self.mapping.items() if self.renamed else ())):
            if fqn == old or fqn.startswith(old + "."):
                return new + fqn.removeprefix(old)
        if self.removed and not fqn.startswith(self.removed + "."):
            if self.renamed:  # the plan's model is no larger: this name may be the same in both
                return fqn
            raise PlanError(
                f"the plan's {fqn} has no name in this model",
                why=f"the plan was made on a larger model, of which this one is {self.removed}",
                do="apply the plan to the model that it was made on",
            )
        return _rename(fqn, self.removed, self.added, self.level)


def match_names(plan_names: Iterable[str], model_names: Iterable[str], *, partial: bool = False) -> NameMatch:
    """Find the one prefix, empty before all others, that turns the plan's site names into the model's.

    `partial` is for a graph that may hold only some of the plan's sites (Dynamo, after a graph break): then the prefix
    that names most sites is taken, and a graph with none of them is no error.

    Raises `PlanError` if a site of the plan is absent (unless `partial`) or if several prefixes do equally well.
    """
    planned, there = list(plan_names), list(model_names)
    present = set(there)
    found = {
        prefixes: {name: new for name in planned if (new := _rename(name, *prefixes)) in present}
        for prefixes in _prefixes(planned, there)
    }
    most = max(len(mapping) for mapping in found.values())
    # The empty prefix comes first, so that it wins a tie.
    best = [prefixes for prefixes, mapping in found.items() if len(mapping) == most]
    tied = len(best) > 1 and best[0] != ("", "")

    if tied and (most == len(planned) or partial or _is_one_block(best, found)):
        raise _ambiguous(best, found)
    mapping = found[best[0]]
    absent = tuple(name for name in planned if name not in mapping)
    if absent and not partial:
        raise _absent(absent, planned, there)
    matched = set(mapping.values())
    removed, added = best[0]
    return NameMatch(mapping, added, removed, absent, tuple(name for name in there if name not in matched))


def _rename(name: str, removed: str, added: str, level: Level | None = None) -> str:
    if removed:
        name = name.removeprefix(removed + ".")
    if level is not None:
        parts = name.split(".")
        if parts[level.position : level.position + 1] == [level.old]:
            parts[level.position] = level.new
        name = ".".join(parts)
    return f"{added}.{name}" if added else name


def _prefixes(planned: list[str], there: list[str]) -> list[tuple[str, str]]:
    """Every (removed, added) that turns at least one name of the plan into one of the model; ("", "") first."""
    pairs = [("", "")]
    for old in planned:
        for new in there:
            if new.endswith("." + old):
                pairs.append(("", new[: -len(old) - 1]))
            elif old.endswith("." + new):
                pairs.append((old[: -len(new) - 1], ""))
    return list(dict.fromkeys(pairs))


def _is_one_block(best: list[tuple[str, str]], found: dict[tuple[str, str], dict[str, str]]) -> bool:
    """Report whether the graph is one block of many: each block of the plan fits it, its names have no layer index."""
    names = {new for prefixes in best for new in found[prefixes].values()}
    return all(removed for removed, _ in best) and not any(part.isdigit() for new in names for part in new.split("."))


def _ambiguous(best: list[tuple[str, str]], found: dict[tuple[str, str], dict[str, str]]) -> PlanError:
    first = next(iter(found[best[0]].values()))
    owners = [old for prefixes in best for old, new in found[prefixes].items() if new == first]
    if _is_one_block(best, found):
        return PlanError(
            "the graph is one block of the model, and which one cannot be told",
            why=f"{first} has no layer index; the plan has {_some(owners)}",
            where=f"site {first}",
            do="compile the whole model, not its blocks one by one",
        )
    prefixes = [removed or added for removed, added in best]
    first = next(iter(found[best[0]]))
    return several_parts(first, f"its site names match with any of the prefixes {_some(prefixes)}")


def several_parts(site: str, why: str) -> PlanError:
    """The refusal of a plan whose site could be several of the model's."""
    return PlanError(
        "the plan fits more than one part of the model",
        why=why,
        where=f"site {site} of the plan",
        do="apply the plan to the one part that it was made on, then put that part back",
    )


def _absent(absent: tuple[str, ...], planned: list[str], there: list[str]) -> PlanError:
    many = f"{len(absent)} of the plan's {counted(len(planned), 'site')}"
    return PlanError(
        "the plan is for another model",
        why=f"the model lacks {many if len(planned) > 1 else 'the only site of the plan'}; "
        f"the model's sites are {_some(there) or 'none'}",
        where=f"site {absent[0]} of the plan",
        do="apply the plan to the model that it was made on, or make a new one with `jetvit calibrate`",
    )


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
