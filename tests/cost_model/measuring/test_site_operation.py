"""What is foretold of a site is what the passes then leave in the graph, on a CPU and as for a GPU."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import cache
from itertools import product

import pytest
import torch
from torch.export import ExportedProgram

from jetvit.cost_model import Choice
from jetvit.cost_model.measuring.graph_operations import graph_operations
from jetvit.cost_model.measuring.operation import ATTENTIONS, Operation
from jetvit.cost_model.measuring.site_operation import site_operation
from jetvit.passes.frontends.capture import export_model
from jetvit.passes.graph.rewritable import ExportedGraph
from jetvit.passes.pipeline import run_pipeline
from jetvit.passes.rewrites.apply_plan import ApplyPlan
from jetvit.passes.rewrites.clean_up import CleanUp
from jetvit.passes.rewrites.fuse_attention import FuseAttention
from jetvit.passes.rewrites.normalize import Normalize
from jetvit.patterns.find import find_sites
from jetvit.patterns.site import Sites
from tests.passes.models import plan_of
from tests.zoo import CASES
from tests.zoo.quick import sweep

FULL, WINDOW, LINEAR = Choice("full"), Choice("window", window=(2, 3)), Choice("linear")
COVERING = Choice("window", window=(64, 64))
HEDGEHOG = Choice("linear", feature_map="hedgehog")
MODELS = ["sdpa", "extra_both", "scale_on_product", "rope_half", "rope_interleaved", "hf_dinov3_eager"]


@cache
def program_of(name: str) -> ExportedProgram:
    args, kwargs = CASES[name].inputs()
    return export_model(CASES[name].build(), args, kwargs)


@cache
def sites_of(name: str) -> Sites:
    return find_sites(ExportedGraph(program_of(name)))


def attentions(name: str, choice: Choice, gpu: bool) -> Counter[Operation]:
    """The attentions of the rewritten graph, by key."""
    graph = ExportedGraph(program_of(name))
    plan = plan_of(find_sites(graph), [choice])
    run_pipeline(graph, [Normalize(), FuseAttention(operator=gpu), ApplyPlan(plan), CleanUp()])
    counted = graph_operations(graph.module).counted
    return Counter({each.key: count for each, count in counted.items() if each.op in ATTENTIONS})


@pytest.mark.parametrize("gpu", [False, True])
@pytest.mark.parametrize(
    ("name", "choice"),
    sweep(
        product(MODELS, [FULL, WINDOW, LINEAR, COVERING, HEDGEHOG]),
        quick=[
            *(("extra_both", choice) for choice in (FULL, WINDOW, LINEAR, COVERING, HEDGEHOG)),
            *((name, WINDOW) for name in MODELS if name != "extra_both"),
            *((name, LINEAR) for name in ("rope_half", "hf_dinov3_eager")),
        ],
    ),
)
def test_it_is_what_the_rewritten_graph_runs(name: str, choice: Choice, gpu: bool) -> None:
    expected = Counter(site_operation(site, choice, gpu=gpu).key for site in sites_of(name))
    assert attentions(name, choice, gpu) == expected
    assert expected.total() == CASES[name].sites


def test_a_provable_rotation_is_the_operators_own() -> None:
    site = sites_of("rope_half")[0]
    assert not site_operation(site, FULL, gpu=False).rope
    assert all(site_operation(site, choice, gpu=True).rope for choice in (FULL, WINDOW, LINEAR))
    assert site_operation(site, WINDOW, gpu=False).rope
    interleaved = sites_of("rope_interleaved")[0]
    assert not any(site_operation(interleaved, choice, gpu=True).rope for choice in (FULL, WINDOW, LINEAR))


def test_the_dtype_is_the_sites_or_another() -> None:
    site = sites_of("sdpa")[0]
    assert site_operation(site, FULL, gpu=True).dtype == "float32"
    assert site_operation(site, FULL, gpu=True, dtype="bfloat16").dtype == "bfloat16"
    assert site_operation(replace(site, autocast=torch.float16), FULL, gpu=True).dtype == "float16"
    with pytest.raises(ValueError, match="dtype is 'float64'"):
        site_operation(replace(site, autocast=torch.float64), FULL, gpu=True)


def test_sizes_that_are_open_are_those_of_the_example() -> None:
    case = CASES["sdpa"]
    args, kwargs = case.inputs()
    program = export_model(case.build(), args, kwargs, case.dynamic_shapes(args, kwargs))
    dynamic, static = find_sites(ExportedGraph(program))[0], sites_of("sdpa")[0]
    for choice in (FULL, WINDOW, LINEAR):
        assert site_operation(dynamic, choice, gpu=True) == site_operation(static, choice, gpu=True)
    # A larger image may come: the passes leave the window where they cannot know that it covers every grid.
    assert site_operation(dynamic, COVERING, gpu=True).op == "window"
