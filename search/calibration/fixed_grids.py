"""The refusal of models whose token grid is not known before they run."""

from __future__ import annotations

from jetvit.patterns.errors import InputError
from jetvit.patterns.site import Sites
from jetvit.patterns.sizes import is_static


def refuse_open_grids(sites: Sites, what: str) -> None:
    """Raise InputError for a site with a token grid that is not fixed; `what` is what needs it."""
    for site in sites:
        if not all(is_static(size) for size in (*site.grid, site.extra_before, site.extra_after)):
            raise InputError(
                f"{what} needs a fixed image size",
                why=f"the token grid of {site.name} is {site.grid[0]}×{site.grid[1]}",
                do="leave dynamic and dynamic_shapes out; the plan fits the dynamic model as well",
            )
