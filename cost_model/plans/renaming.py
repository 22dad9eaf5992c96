"""Sites whose names changed between two releases of a library, while the model stayed the same.

transformers 5.17 calls DINOv2's attention `encoder.layer.0.attention.attention`, 5.24 `encoder.layer.0.attention`. That
of ViT was `encoder.layer.0.attention.attention` in 4.57 and is `layers.0.attention` in 5.17. So the names of a plan may
differ from the model's by a prefix, by a last segment that stands twice, and by the name of one level, each the same at
every site. Layer indices are never renamed. Names alone prove nothing: the caller has to compare what the sites are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from jetvit.cost_model.plans.names import Level, NameMatch


def renamed_matches(plan_names: Iterable[str], model_names: Iterable[str]) -> Iterator[NameMatch]:
    """Every way to give all sites of a plan the names of different sites of a model."""
    planned, there = list(plan_names), list(model_names)
    short = {_short(name): name for name in there}
    if len(short) < len(there) or len({_short(name) for name in planned}) < len(planned):
        return  # two names that the repeated segment alone tells apart
    seen: list[dict[str, str]] = []
    for removed, added, level in _renamings([_short(name) for name in planned], list(short)):
        rule = NameMatch({}, added, removed, level=level, renamed=True)
        mapping = {name: short[new] for name in planned if (new := rule.rename(_short(name))) in short}
        if len(set(mapping.values())) == len(planned) and mapping not in seen:
            seen.append(mapping)
            unplanned = tuple(name for name in there if name not in set(mapping.values()))
            yield NameMatch(mapping, added, removed, unplanned=unplanned, level=level, renamed=True)


def _short(name: str) -> str:
    """The name of a site without last segments that repeat the one before them."""
    path, sign, call = name.partition("#")
    parts = path.split(".")
    while parts[-2:-1] == parts[-1:]:
        parts.pop()
    return ".".join(parts) + sign + call


def _renamings(planned: list[str], there: list[str]) -> list[tuple[str, str, Level | None]]:
    """Every (removed, added, level) that turns a name of the plan into one of the model."""
    found: list[tuple[str, str, Level | None]] = []
    for old in (name.split(".") for name in planned):
        for new in (name.split(".") for name in there):
            common = min(len(old), len(new))
            levels = [
                Level(position, before, after)
                for position, (before, after) in enumerate(zip(old[-common:], new[-common:], strict=True))
                if before != after
            ]
            if len(levels) > 1 or (levels and (common == 1 or levels[0].has_index())):
                continue
            found.append((".".join(old[:-common]), ".".join(new[:-common]), levels[0] if levels else None))
    return list(dict.fromkeys(found))
