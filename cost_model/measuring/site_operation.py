"""The `Operation` that a captured attention site becomes under a choice, as the passes would leave it in the graph."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jetvit.cost_model.measuring.operation import Operation
from jetvit.cost_model.plans.choice import Choice
from jetvit.kernels.tuning import hint
from jetvit.patterns.sizes import is_static

if TYPE_CHECKING:
    from jetvit.patterns.site import AttentionSite


def site_operation(site: AttentionSite, choice: Choice, *, gpu: bool, dtype: str | None = None) -> Operation:
    """Return the operation of a site once it is rewritten.

    A window that covers a grid of fixed size is full attention. Sizes that the graph leaves open are those of the
    example.

    Args:
        site: an attention of a captured graph.
        choice: what it becomes; "full" is what the exact rewrites make of it.
        gpu: whether it is for a CUDA device: full attention is an operator there, which rotates q and k itself where
            that is provably the same. On a CPU it is SDPA, and the rotation stays in front of it.
        dtype: "float32", "float16" or "bfloat16"; that of the site where it is None.
    Raises:
        ValueError: a size depends on data, or no `Operation` has the site's dtype.
    """
    grid_h, grid_w, before, after = (hint(size) for size in (*site.grid, site.extra_before, site.extra_after))
    elements = hint(site.out.node.meta["val"].numel())
    if None in (grid_h, grid_w, before, after, elements):
        raise ValueError(f"a size of {site.name} depends on data")
    tokens = before + grid_h * grid_w + after
    kind = "full" if all(map(is_static, site.grid)) and choice.covers((grid_h, grid_w)) else choice.kind
    rotates = site.rope is not None and (site.form == "operator" or site.rope.tables is not None)
    own: dict[str, Any] = {"rope": rotates and (gpu or kind != "full" or site.form == "operator")}
    if kind == "window" and choice.window is not None:
        own |= {"window_h": choice.window[0], "window_w": choice.window[1]}
    elif kind == "linear":
        own |= {"conv_size": choice.conv_size, "feature_map": choice.feature_map}
    return Operation(
        op=kind,
        dtype=dtype or str(site.compute_dtype).removeprefix("torch."),
        batch=elements // (tokens * site.num_heads * site.head_dim),
        grid_h=grid_h,
        grid_w=grid_w,
        extra=before + after,
        heads=site.num_heads,
        head_dim=site.head_dim,
        **own,
    )
