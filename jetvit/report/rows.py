"""The row of `explain` for one attention: read off a site, a rejection or a rewritten operator, and off the plan."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

from torch.fx import Node

from jetvit.cost_model import SitePlan
from jetvit.passes.rewrites.plan_checks import covers, rewritten_choice
from jetvit.patterns.calls import traced_value
from jetvit.patterns.captured import CapturedGraph
from jetvit.patterns.regions import GraphView
from jetvit.patterns.site import AttentionSite, Projections, Rejection, Rewritten, Sites
from jetvit.report.sizes import SizeNames
from jetvit.torch_private import OpOverload, schema


class MeasuredChoice(NamedTuple):
    """The measurements of one choice at one site, all other sites being full attention; None: not measured.

    `low_ms` and `high_ms` bound the latency: by the quartiles of a table's measurements (`source` "measured"), or at
    90 % (`source` "predicted"). `source` is None for what the plan itself recorded. `extrapolated`: predicted beyond
    the sizes that the table holds.
    """

    drift: float | None
    latency_ms: float | None
    low_ms: float | None = None
    high_ms: float | None = None
    source: Literal["measured", "predicted"] | None = None
    extrapolated: bool = False


@dataclass(frozen=True)
class SiteRow:
    """One attention of the model.

    * `status`: "found", "refused" or "rewritten" (by an earlier run of jetvit). A refused one has a `reason`, the
      `node` at which it shows and, if it is known, the `source` line of the model; what follows is then None.
    * `tokens`, `extra_before`, `extra_after`: token counts; text such as "(H//8)*(W//8) + 5" where they are dynamic.
    * `grid`: rows and columns of the token grid, "44×60", or "4×4 pooled" where the attention's own module makes it
      from a larger map.
    * `rope`: "half", "interleaved" or None; `form`: "sdpa", "softmax", or None for a rewritten one.
    * `projections`: "packed" (one product yields q, k and v), "separate", or "shared" (not this site's alone, or not
      found); None for a rewritten one.
    * `decision`: label of the choice, "full" where no plan changes it; `why`: the plan's reason.
    * `measured`: label of a choice → drift, and latency in ms with its interval and source.
    """

    name: str
    status: str
    reason: str = ""
    node: str = ""
    source: str = ""
    tokens: int | str | None = None
    grid: str | None = None
    extra_before: int | str | None = None
    extra_after: int | str | None = None
    num_heads: int | None = None
    head_dim: int | None = None
    dtype: str | None = None
    rope: str | None = None
    form: str | None = None
    projections: str | None = None
    decision: str | None = None
    why: str = ""
    measured: Mapping[str, MeasuredChoice] = field(default_factory=dict)

    @property
    def full_ms(self) -> float | None:
        """Latency of full attention here, None if it was not measured."""
        return self._latency("full")

    @property
    def chosen_ms(self) -> float | None:
        """Latency of the decision here, None if it was not measured."""
        return self._latency(self.decision or "full")

    @property
    def drift(self) -> float | None:
        """Drift of the model's output if this decision alone were taken: 0 for full attention, None: not measured."""
        if self.decision == "full":
            return 0.0
        return self.measured[self.decision].drift if self.decision and self.decision in self.measured else None

    def _latency(self, label: str) -> float | None:
        return self.measured[label].latency_ms if label in self.measured else None


def read_rows(
    sites: Sites, entries: Mapping[str, SitePlan], names: SizeNames, graph: CapturedGraph | None
) -> tuple[SiteRow, ...]:
    """One row an attention, in the order of execution.

    Args:
        sites: found, refused and rewritten ones.
        entries: name of a site of the model → what the plan says about it.
        names: how to write symbolic sizes.
        graph: where the nodes are; without it, attentions inside different autocast regions keep no common order.
    """
    rows: list[tuple[Node, SiteRow]] = []
    rows += [(site.out.node, _found(site, entries.get(site.name), names)) for site in sites]
    rows += [(entry.node, _refused(entry, names)) for entry in sites.rejected]
    rows += [(entry.node, _rewritten(entry, names)) for entry in sites.rewritten]
    if graph is not None:
        nodes = GraphView(graph.module, graph.ambient_autocast).nodes
    else:
        nodes = [node for owner in dict.fromkeys(node.graph for node, _ in rows) for node in owner.nodes]
    order = {node: index for index, node in enumerate(nodes)}
    return tuple(row for _, row in sorted(rows, key=lambda pair: order[pair[0]]))


def _found(site: AttentionSite, entry: SitePlan | None, names: SizeNames) -> SiteRow:
    row = SiteRow(
        name=site.name,
        status="found",
        node=site.out.node.name,
        source=site.source,
        tokens=names.text(site.tokens),
        grid=grid_text(*map(names.text, site.grid)) + (" pooled" if site.pooled else ""),
        extra_before=names.text(site.extra_before),
        extra_after=names.text(site.extra_after),
        num_heads=site.num_heads,
        head_dim=site.head_dim,
        dtype=str(site.dtype).removeprefix("torch."),
        rope=None if site.rope is None else str(site.rope),
        form=site.form,
        projections=_projections(site.projections),
        decision="full",
    )
    if entry is None:
        return row
    row = replace(row, decision=entry.choice.label, why=entry.why, measured=_measured(entry))
    if covers(site, entry.choice):
        return replace(row, decision="full", why=f"{entry.choice.label} covers the whole grid, which is full attention")
    return row


def _refused(entry: Rejection, names: SizeNames) -> SiteRow:
    return SiteRow(entry.name, "refused", names.reword(entry.reason), entry.node.name, entry.source)


def _rewritten(entry: Rewritten, names: SizeNames) -> SiteRow:
    """Operators of jetvit work on [batch, token, head, dim] and are told the grid."""
    node = entry.node
    assert isinstance(node.target, OpOverload)
    arguments = {each.name: value for each, value in zip(schema(node.target).arguments, node.args, strict=True)}
    rows, columns, before = (traced_value(arguments[name]) for name in ("grid_h", "grid_w", "extra_before"))
    _, tokens, heads, head_dim = node.meta["val"].shape
    return SiteRow(
        name=entry.name,
        status="rewritten",
        node=node.name,
        tokens=names.text(tokens),
        grid=grid_text(names.text(rows), names.text(columns)),
        extra_before=names.text(before),
        extra_after=names.text(tokens - before - rows * columns),
        num_heads=int(heads),
        head_dim=int(head_dim),
        dtype=str(node.meta["val"].dtype).removeprefix("torch."),
        decision=rewritten_choice(entry).label,
    )


def grid_text(rows: int | str, columns: int | str) -> str:
    """ "44×60", or "H//8 × W//8"."""
    return f"{rows}×{columns}" if isinstance(rows, int) and isinstance(columns, int) else f"{rows} × {columns}"


def finite(value: float | None) -> float | None:
    """A measured number, None if it is no number: JSON has no NaN."""
    return float(value) if value is not None and math.isfinite(value) else None


def _measured(entry: SitePlan) -> dict[str, MeasuredChoice]:
    """All that was measured at a site; what the plan says of its own choice counts where `measured` has it not."""
    found = {entry.choice.label: MeasuredChoice(finite(entry.drift), finite(entry.latency_ms))}
    found |= {one.choice.label: MeasuredChoice(finite(one.drift), finite(one.latency_ms)) for one in entry.measured}
    return {label: one for label, one in found.items() if one != MeasuredChoice(None, None)}


def _projections(projections: Projections) -> str:
    if projections.packed is not None:
        return "packed"
    return "separate" if {"q", "k", "v"} <= projections.named().keys() else "shared"
