"""Hypothesis strategies for choices, fingerprints and whole plans."""

from __future__ import annotations

import torch
from hypothesis import strategies as st

from jetvit.cost_model import Choice, Fingerprint, FrontPoint, Measured, Plan, SitePlan, SiteShape
from jetvit.kernels.linear_attention.reference import FEATURE_MAPS

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int8, torch.bool, torch.float8_e4m3fn)

texts = st.text(st.characters(exclude_categories=("Cc", "Cs")) | st.sampled_from("\n\t"), max_size=30)
names = st.from_regex(r"[a-zA-Z_é][a-zA-Z0-9_é]{0,5}(\.[a-z0-9]{1,5}){0,3}(#[1-9])?", fullmatch=True)
measures = st.floats(0, 1e300) | st.integers(0, 10**9).map(float)
optional_measures = st.none() | measures
sides = st.integers(1, 4096)
pairs = st.tuples(sides, sides)

choices = st.one_of(
    st.just(Choice("full")),
    st.builds(Choice, st.just("window"), window=pairs),
    st.builds(
        Choice,
        st.just("linear"),
        conv_size=st.sampled_from([0, 1, 3, 5, 7]),
        eps=st.just(1e-6) | st.floats(1e-12, 1.0),
        feature_map=st.sampled_from(sorted(FEATURE_MAPS)),
    ),
)
measured = st.builds(Measured, choices, optional_measures, optional_measures)
front_points = st.builds(FrontPoint, st.integers(0, 100), measures, optional_measures)
scalars = st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    scalars | texts, lambda s: st.lists(s, max_size=3) | st.dictionaries(texts, s, max_size=3), max_leaves=5
)
provenances = st.dictionaries(texts, values)
extras = st.integers(0, 300) | st.just("dynamic")


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    shape = draw(st.lists(st.integers(0, 4), max_size=3))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    return (torch.randn(shape, generator=generator) * 3).to(draw(st.sampled_from(DTYPES)))


def shapes(name: str) -> st.SearchStrategy[SiteShape]:
    roles = st.dictionaries(st.sampled_from(["packed", "q", "k", "v", "out"]), pairs)
    return st.builds(
        SiteShape, st.just(name), sides, sides, roles, extras, extras, st.sampled_from([None, "half", "interleaved"])
    )


def site_plans(name: str) -> st.SearchStrategy[SitePlan]:
    alternatives = st.lists(measured, max_size=3).map(tuple)
    return st.builds(SitePlan, st.just(name), choices, texts, optional_measures, optional_measures, alternatives)


@st.composite
def plans(draw: st.DrawFn, max_sites: int = 4) -> Plan:
    known = draw(st.lists(names, unique=True, max_size=max_sites))
    planned = [name for name in known if draw(st.booleans())]
    weights = draw(st.dictionaries(names, tensors(), max_size=3))
    samples = draw(st.dictionaries(names, st.just(torch.randn(5)), max_size=2)) if weights else {}
    return Plan(
        sites=tuple(draw(site_plans(name)) for name in planned),
        fingerprint=Fingerprint(tuple(draw(shapes(name)) for name in known)),
        provenance=draw(provenances),
        size=draw(st.none() | pairs),
        weights=weights,
        base_samples=samples,
        base=draw(st.dictionaries(names, st.tuples(measures, measures), max_size=2)),
        front=tuple(draw(st.lists(front_points, max_size=2))),
    )
