"""The plan as a whole in a report: its provenance, its front, warnings and notes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from jetvit.cost_model import FrontPoint, NameMatch, Plan, SitePlan, base_warning, check_base
from jetvit.passes.graph.rewritable import RewritableGraph
from jetvit.passes.rewrites.plan_checks import far_from_plan, rewritten_choice
from jetvit.patterns.errors import NAME_THE_GRID, PlanError
from jetvit.patterns.site import Sites, lacks_grid
from jetvit.patterns.sizes import is_static
from jetvit.report.rows import SiteRow, finite
from jetvit.report.sizes import SizeNames

_FAR = 2.0  # times as many pixels, or as few

TRAINING_FREE = (
    "This plan is training-free. Windows in the place of full attention give a modest gain that way. Linear attention "
    "is hopeless without training: it puts another function of the same weights in the place of the softmax. A trained "
    "post-training search brings the rest: in the JetViT paper two full-attention blocks suffice, at 1.79× the "
    "throughput."
)
NOTHING_MEASURED = (
    "Nothing was measured. `jetvit calibrate MODEL --images DIR -o PLAN` measures drift and latency of each choice at "
    "each site and writes a plan; then `jetvit explain MODEL --plan PLAN`."
)
NO_DRIFT = (
    "The latencies are a table's, and no drift was measured. `jetvit calibrate MODEL --images DIR -o PLAN` measures "
    "the drift of each choice at each site and writes a plan."
)
NO_ATTENTION = (
    "Check that the model runs softmax attention, as scaled_dot_product_attention or as two products with a softmax "
    "between; that it is in eval mode; that its attention is no custom operator (flash_attn, xformers): choose its "
    "SDPA or eager implementation; and that an exported program was not decomposed (run_decompositions)."
)


@dataclass(frozen=True)
class PlanSummary:
    """A plan without its sites.

    `size` is the image height and width in pixels that it was made for; `trained` says that it brings weights. The
    drifts, image counts and `max_drift` (the limit that was asked for) are those of the whole plan, from its
    provenance, as are `device`, `torch`, `measured_size` and `dtype`; None where it does not say. `front` holds the
    plans that were measured on the way, `chosen` the index of this one among them, None if it cannot be told.
    """

    size: tuple[int, int] | None
    trained: bool
    joint_drift_selection: float | None
    joint_drift_held_out: float | None
    images_selection: int | None
    images_held_out: int | None
    max_drift: float | None
    device: str | None
    torch: str | None
    measured_size: str | None
    dtype: str | None
    front: tuple[FrontPoint, ...]
    chosen: int | None

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON can hold them."""
        return asdict(self) | {
            "size": None if self.size is None else list(self.size),
            "front": [point.to_json() for point in self.front],
        }


def summarise(plan: Plan) -> PlanSummary:
    """The summary of a plan. Provenance is free-form: what has another type than expected is left out."""
    said = plan.provenance
    front = tuple(
        FrontPoint(point.changed, point.drift, finite(point.latency_ms))
        for point in plan.front
        if finite(point.drift) is not None
    )
    drift = _number(said.get("joint_drift_selection"))
    return PlanSummary(
        size=plan.size,
        trained=bool(plan.weights),
        joint_drift_selection=drift,
        joint_drift_held_out=_number(said.get("joint_drift_held_out")),
        images_selection=_count(said.get("images_selection")),
        images_held_out=_count(said.get("images_held_out")),
        max_drift=_number(said.get("max_drift")),
        device=_text(said.get("device")),
        torch=_text(said.get("torch")),
        measured_size=_text(said.get("size")),
        dtype=_text(said.get("dtype")),
        front=front,
        chosen=_chosen(plan, front, drift),
    )


def entries_by_name(plan: Plan | None, sites: Sites) -> dict[str, SitePlan]:
    """The entry of a plan for each site, by the model's names.

    A graph that was rewritten keeps the projections of its other sites in another form, so it is matched by name alone.

    Raises:
        PlanError: the plan is for another model.
    """
    if plan is None:
        return {}
    entries = {entry.name: entry for entry in plan.sites}
    if sites.rewritten:
        return entries
    match = plan.match(sites)
    absent = {name: entry for name, entry in entries.items() if name not in match.mapping}
    return absent | {name: entries[old] for name, old in match.planned.items()}


def warnings_on(plan: Plan, sites: Sites, names: SizeNames, graph: RewritableGraph | None) -> Iterator[str]:
    """Why the plan's measurements may not hold here."""
    if sites.rewritten:
        present = {entry.name: rewritten_choice(entry).label for entry in sites.rewritten}
        for name, label in present.items():
            if (asked := plan.choice_for(name).label) != label:
                yield f"{name} was rewritten by another plan: it is {label} in the graph and {asked} in this plan"
        return
    busy = plan.provenance.get("too_busy")
    if isinstance(busy, list) and busy:
        yield f"the plan's latencies mean little: the machine was too busy to time on: {'; '.join(map(str, busy))}"
    far = far_from_plan(plan, sites) or _far_from_size(plan, names)
    if far:
        yield far
    if graph is not None and (other := _other_weights(plan, plan.match(sites, tensors=graph.values()), graph)):
        yield other


def notes_on(plan: Plan | None, rows: Sequence[SiteRow]) -> Iterator[str]:
    """Say what to know, and what to do next."""
    if not rows:
        yield NO_ATTENTION
    elif any(row.status == "found" for row in rows) and not any(row.measured for row in rows):
        yield NOTHING_MEASURED
    elif plan is None and any(row.measured for row in rows):
        yield NO_DRIFT
    if any(lacks_grid(row.reason) for row in rows):
        yield NAME_THE_GRID[0].upper() + NAME_THE_GRID[1:] + "."
    if plan is not None and not plan.weights:
        yield TRAINING_FREE


def _far_from_size(plan: Plan, names: SizeNames) -> str | None:
    """A warning where the image has more than twice or less than half the pixels that the plan was made for."""
    image = next((value for _, value in names.inputs if value.ndim == 4), None)
    if plan.size is None or image is None or not all(is_static(size) for size in image.shape[2:]):
        return None
    height, width = (int(size) for size in image.shape[2:])
    if 1 / _FAR <= (height * width) / (plan.size[0] * plan.size[1]) <= _FAR:
        return None
    return (
        f"the plan was made for images of {plan.size[0]}×{plan.size[1]}, and this one is {height}×{width}: measure it "
        "again (jetvit check)"
    )


def _other_weights(plan: Plan, match: NameMatch, graph: RewritableGraph) -> str | None:
    """A warning where the weights are not those that the plan was made on."""
    if not plan.weights:
        return base_warning(match.here(plan.base), graph.values())
    try:
        check_base(match.here(plan.base_samples), graph.values())
    except PlanError as error:
        return f"the plan will be refused: {error.what} ({error.where}: {error.why})"
    return None


def _chosen(plan: Plan, front: Sequence[FrontPoint], drift: float | None) -> int | None:
    """The point of the front that is this plan: as many changed sites and, of several, the nearest drift."""
    changed = sum(entry.choice.kind != "full" for entry in plan.sites)
    candidates = [index for index, point in enumerate(front) if point.changed == changed]
    if drift is not None and candidates:
        return min(candidates, key=lambda index: abs(front[index].drift - drift))
    return candidates[0] if len(candidates) == 1 else None


def _number(value: Any) -> float | None:
    return finite(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _text(value: Any) -> str | None:
    """A word of the provenance; a size may be a list, [512, 512] → "512×512"."""
    if isinstance(value, list):
        return "×".join(map(str, value))
    return None if value is None else str(value)
