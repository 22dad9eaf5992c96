"""The models of the end-to-end benchmark: shapes, weights, plans."""

from __future__ import annotations

import pytest
import torch

import jetvit
from benchmarks.end_to_end.models import MODELS, PAPER_SIZE, SIZES, build, mixed_plan, pixels, shape_of
from jetvit.models.torchvision_shim import ensure_torchvision
from jetvit.passes.frontends.differences import tensors

CPU, META = torch.device("cpu"), torch.device("meta")


def images(name: str) -> torch.Tensor:
    return torch.randn(2, 3, *pixels(name, PAPER_SIZE, dry=True), generator=torch.Generator().manual_seed(1))


# In millions, of the published checkpoints.
@pytest.mark.parametrize(
    ("name", "parameters_m"),
    [
        ("DINOv3-B", 85.7),
        ("DINOv3-L", 303.1),
        ("DINOv3-7B", 6716),
        ("DepthAnythingV2-L", 335.3),
        ("DepthAnythingV2-G", 1258),
    ],
)
def test_models_have_the_weights_of_the_published_ones(name: str, parameters_m: float) -> None:
    model = build(name, META, torch.bfloat16, dry=False)
    assert sum(each.numel() for each in model.parameters()) / 1e6 == pytest.approx(parameters_m, rel=1e-3)
    assert {each.dtype for each in model.parameters()} == {torch.bfloat16}


def test_grids_and_layers_are_those_of_the_paper() -> None:
    assert MODELS["DINOv3-L"].grid(pixels("DINOv3-L", PAPER_SIZE, False)) == (64, 128)
    assert pixels("DepthAnythingV2-L", PAPER_SIZE, False) == (1022, 2044)
    assert MODELS["DepthAnythingV2-L"].grid((1022, 2044)) == (73, 146)
    assert MODELS["DINOv3-L"].full_blocks(2) == (13, 21)
    assert MODELS["DepthAnythingV2-L"].full_blocks(1) == (16,)
    assert MODELS["DINOv3-B"].full_blocks(2) == (6, 10)
    assert MODELS["DINOv3-7B"].full_blocks(0) == ()
    for name, shape in MODELS.items():
        assert 0 < shape.full[0] < shape.full[1] < shape.depth
        for size in SIZES[name]:
            assert all(side % shape.patch_size == 0 for side in pixels(name, size, False))


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_what_its_class_builds_with_these_weights(name: str) -> None:
    """Tables that are no weights (of RoPE) are there too: the class makes its own."""
    ensure_torchvision()
    from transformers import AutoModel, DepthAnythingForDepthEstimation

    model = build(name, CPU, torch.float32, dry=True)
    kind = DepthAnythingForDepthEstimation if MODELS[name].taps else AutoModel
    usual = kind.from_config(model.config) if kind is AutoModel else kind(model.config)
    usual.eval().load_state_dict(model.state_dict())
    with torch.no_grad():
        found, expected = model(images(name)), usual(images(name))
    assert type(found) is dict
    torch.testing.assert_close(tensors(found), [each for each in expected.to_tuple() if each is not None])
    assert all(float(each.std()) > 0.05 for each in tensors(found))


@pytest.mark.parametrize("name", ["DINOv3-7B", "DepthAnythingV2-G"])
def test_weights_are_drawn_in_the_dtype_and_again_the_same(name: str) -> None:
    first, second = (build(name, CPU, torch.bfloat16, dry=True) for _ in range(2))
    assert torch.get_default_dtype() == torch.float32
    assert {each.dtype for each in first.parameters()} == {torch.bfloat16}
    assert all(each.dtype == torch.float32 for each in first.buffers())
    for ours, theirs in zip(first.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    with torch.no_grad():
        assert all(each.isfinite().all() for each in tensors(first(images(name).bfloat16())))


def test_plans_are_linear_first_and_full_where_they_are_told() -> None:
    model = build("DINOv3-B", CPU, torch.float32, dry=True)
    sites = jetvit.find_attention(model, images("DINOv3-B"))
    plan = mixed_plan(sites, shape_of("DINOv3-B", dry=True).full_blocks(1), window=4)
    assert [entry.choice.kind for entry in plan.sites] == ["linear", "window", "linear", "window", "full"]
    assert len(plan.weights) == len({each.data_ptr() for each in plan.weights.values()}) == 2 * 4
