"""A sweep over small configurations of the models of timm and transformers, through both frontends.

`ENTRIES` maps a name to an `Entry`: how to build and call a model, and what `find_attention` must say about it.
`run` takes an entry and returns a `Row`: what was found, and how far the results are from eager and from the oracle.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

import jetvit
from jetvit.cost_model import Choice, Plan
from jetvit.patterns.site import AttentionSite, Rejection
from tests.passes.models import plan_of
from tests.zoo.sweep_oracle import Size, Tokens, difference, moved_tokens, windowed

WINDOW = (2, 2)
TOLERANCE = 1e-5
FRONTENDS = ("export", "compile")


@dataclass(frozen=True)
class Entry:
    """One model of the sweep, and what must be found in it.

    `found` counts the sites by their tokens: "2 of 1+4×6" for two sites of one extra token and a grid of 4 × 6,
    several joined by ", ". `refused` counts the refused attentions by a part of the reason. `fails` gives the
    beginning of the error, or of the complaint, with which a step of the sweep fails now, by the name of the step.
    """

    name: str
    library: str
    build: Callable[[], nn.Module]
    inputs: Callable[[], tuple[tuple[Any, ...], dict[str, Any]]]
    found: str
    refused: Mapping[str, int] = field(default_factory=dict)
    fails: Mapping[str, str] = field(default_factory=dict)
    tolerance: float = TOLERANCE
    window: Size = WINDOW
    places: bool = True  # the input is an image, the rows and columns of which are those of the first site


@dataclass
class Row:
    """What the sweep measured on an entry: differences are relative, by frontend."""

    name: str
    library: str
    found: str = ""
    refused: dict[str, int] = field(default_factory=dict)
    exact: dict[str, float] = field(default_factory=dict)
    windows: dict[str, float] = field(default_factory=dict)
    change: float | None = None  # what the windows change in the eager model
    errors: dict[str, str] = field(default_factory=dict)  # step -> its error


def tokens_of(site: AttentionSite) -> Tokens:
    """The tokens of a site, as numbers."""
    return Tokens(int(site.extra_before), (int(site.grid[0]), int(site.grid[1])), int(site.extra_after))


def found_of(sites: list[AttentionSite]) -> str:
    """`Entry.found` of sites."""
    return ", ".join(
        f"{count} of {tokens}" for tokens, count in Counter(str(tokens_of(site)) for site in sites).items()
    )


def refused_of(rejections: list[Rejection]) -> dict[str, int]:
    """The reasons of refusals, each on one line, and how often it was given."""
    return dict(Counter(re.sub(r"\s+", " ", one.reason) for one in rejections))


def missing(expected: Mapping[str, int], reasons: Mapping[str, int]) -> list[str]:
    """Say what the reasons lack of the expected ones, and which were not expected."""
    said = [
        f"expected {count} × {part!r}, got {got}"
        for part, count in expected.items()
        if (got := sum(n for reason, n in reasons.items() if part in reason)) != count
    ]
    return said + [
        f"not expected: {count} × {reason!r}"
        for reason, count in reasons.items()
        if not any(part in reason for part in expected)
    ]


def run(entry: Entry) -> Row:
    """Take a model through the sweep. An error ends its own step alone."""
    row = Row(entry.name, entry.library)
    torch.manual_seed(0)
    model, (args, kwargs) = entry.build(), entry.inputs()
    with torch.no_grad():
        eager = model(*args, **kwargs)

    def step(name: str, body: Callable[[], Any]) -> Any:
        try:
            with torch.no_grad():
                return body()
        except Exception as error:
            row.errors[name] = f"{type(error).__name__}: {str(error).strip()}"[:300]
            return None

    sites = step("find", lambda: jetvit.find_attention(model, *args, kwargs=kwargs))
    plan, expected = None, None
    if sites is not None:
        row.found, row.refused = found_of(sites), refused_of(sites.rejected)
    if sites:
        tokens = {site.name: tokens_of(site) for site in sites}
        plan = plan_of(sites, [Choice("window", window=entry.window)])
        expected = step("oracle", lambda: windowed(model, args, kwargs, tokens, entry.window))
        if entry.places:
            wrong = step("places", lambda: moved_tokens(model, args, kwargs, sites[0].name, tokens_of(sites[0])))
            if wrong:
                row.errors["places"] = f"the image's places are elsewhere (expected, found): {wrong}"
        row.change = difference(eager, expected) if expected is not None else None

    def export(plan: Plan | None) -> Any:
        return jetvit.optimize(model, *args, kwargs=kwargs, plan=plan)(*args, **kwargs)

    def compile_(plan: Plan | None) -> Any:
        torch.compiler.reset()
        options = {"inner": "eager"} | ({} if plan is None else {"plan": plan})
        return torch.compile(model, backend="jetvit", options=options)(*args, **kwargs)

    for frontend, call in zip(FRONTENDS, (export, compile_), strict=True):
        output = step(f"{frontend} without a plan", lambda call=call: call(None))
        if output is not None:
            row.exact[frontend] = difference(output, eager)
        if plan is not None and expected is not None:
            output = step(f"{frontend} with windows", lambda call=call: call(plan))
            if output is not None:
                row.windows[frontend] = difference(output, expected)
    torch.compiler.reset()
    return row


def complaints(entry: Entry, row: Row) -> dict[str, str]:
    """What is not as the entry expects it, by step; empty for a model that passes."""
    said = dict(row.errors)
    if "find" not in row.errors:
        if row.found != entry.found:
            said["find"] = f"expected {entry.found!r}, found {row.found!r}"
        if wrong := missing(entry.refused, row.refused):
            said["refused"] = "; ".join(wrong)
    for kind, differences in (("without a plan", row.exact), ("with windows", row.windows)):
        for frontend, far in differences.items():
            if not far <= entry.tolerance:
                said[f"{frontend} {kind}"] = f"differs by {far:.2g}"
    if row.change is not None and row.change < 1e-3:
        said["oracle"] = f"the windows change nothing ({row.change:.2g})"
    return said
