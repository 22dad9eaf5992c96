"""A constant of the code is seen for what it is, so that a mask that hides nothing is no bias; and only such a one."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from jetvit.passes.frontends.capture import export_model
from jetvit.passes.graph.fresh_constants import spell_out_constants
from jetvit.passes.graph.regions import submodules
from jetvit.passes.graph.rewritable import ExportedGraph
from jetvit.patterns import find_sites
from tests.passes.models import ROADS, aten, by_road, exported, plan_of, sites_of
from tests.zoo.case import images


class Masked(nn.Module):
    """Attention over 4 × 4 tokens of two heads whose scores a mask made from `constant` is added to."""

    def __init__(self, constant: object, autocast: bool = False) -> None:
        super().__init__()
        self.constant = constant
        self.autocast = autocast
        self.patch = nn.Conv2d(3, 32, 16, 16)
        self.qkv = nn.Linear(32, 96)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(x).unflatten(2, (3, 2, 16)).permute(2, 0, 3, 1, 4).unbind(0)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
            scores = q @ k.transpose(-2, -1) * 0.25
            seen = torch.ones(1, 1, 16, 16, dtype=torch.bool)
            mask = torch.where(seen, torch.tensor(self.constant), torch.finfo(torch.float32).min)
            return (((scores + mask).softmax(-1)) @ v).transpose(1, 2).flatten(2)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("constant", [0.0, 0, False, [[0.0]], [0.0] * 16])
def test_a_mask_of_nothing_is_no_bias(constant: object, autocast: bool) -> None:
    """Eager ViT and DeiT of transformers 5.17: every attention was refused for "a learned bias"."""
    model = Masked(constant, autocast).eval()
    assert len(sites_of(model, images(2, 3, 64, 64))) == 1


@pytest.mark.parametrize("constant", [1e-3, -math.inf, [0.0] * 15 + [-1.0]])
def test_another_constant_is_one(constant: object) -> None:
    sites = sites_of(Masked(constant).eval(), images(2, 3, 64, 64))
    assert (len(sites), len(sites.rejected)) == (0, 1)


@pytest.mark.parametrize("road", ROADS)
def test_both_roads_rewrite_it(road: str) -> None:
    model, image = Masked(0.0).eval(), images(2, 3, 64, 64)
    plan = plan_of(sites_of(model, image))
    rewritten = by_road(road, model, ((image,), {}), plan)(image)
    assert not torch.allclose(rewritten, model(image), atol=1e-4)


def test_detach_is_no_write() -> None:
    """torch 2.11 captures `torch.tensor(0.0)` as a fresh copy that is detached in place."""
    graph = ExportedGraph(export_model(Masked(0.0).eval(), (images(2, 3, 64, 64),)))
    nodes = [node for part in submodules(graph.module) for node in part.graph.nodes]
    full = next(node for node in nodes if node.target is aten.full.default)
    with full.graph.inserting_after(full):
        detached = full.graph.call_function(aten.detach_.default, (full,))
    detached.meta = dict(full.meta)
    full.replace_all_uses_with(detached, delete_user_cb=lambda user: user is not detached)
    spell_out_constants(graph.module, {})
    assert detached not in full.graph.nodes
    assert len(find_sites(graph)) == 1


@given(
    shape=st.lists(st.integers(0, 3), max_size=3),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.float64, torch.int64, torch.uint8, torch.bool]),
    seed=st.integers(0, 99),
    values=st.integers(1, 2),
)
def test_the_program_computes_the_same(shape: list[int], dtype: torch.dtype, seed: int, values: int) -> None:
    """Any constant, of one value or of several; and a copy of it may be written to, as before."""
    numbers = torch.randint(0, values, shape, generator=torch.Generator().manual_seed(seed)) * 1.7 + 0.3

    class Adds(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            constant = torch.tensor(numbers.tolist(), dtype=dtype)
            before = constant + 0
            return constant.zero_() + x, before

    program = torch.export.export(Adds(), (torch.ones(()),), strict=False)
    expected, found = program.module(), ExportedGraph(copy.deepcopy(program)).program().module()
    for _ in range(2):
        torch.testing.assert_close(found(torch.ones(())), expected(torch.ones(())), rtol=0, atol=0)


def test_weights_and_buffers_are_no_constants() -> None:
    """Another value may be loaded into them at any time."""
    _, _, program = exported("sdpa")
    before = [node.target for node in program.graph.nodes]
    assert [node.target for node in ExportedGraph(program).module.graph.nodes] == before
