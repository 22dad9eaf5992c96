"""The small Vision Transformer: its committed weights are as good as they say, and its attention matters."""

from __future__ import annotations

import pytest
import torch
from safetensors import safe_open
from torch import nn

import jetvit
from jetvit.cost_model import Choice, Fingerprint, Plan, SitePlan
from jetvit.demo.scenes import FARTHEST, NEAREST, SceneSplit
from jetvit.demo.small_vit import WEIGHTS, SmallViT, load_small_vit, sine_cosine
from jetvit.search.tasks.metrics import DepthMetric

ROOMS = SceneSplit(8, (256, 256), seed=0)


@pytest.fixture(scope="module")
def model() -> SmallViT:
    return load_small_vit()


@torch.no_grad()
def delta1(model: nn.Module, rooms: int = len(ROOMS)) -> float:
    metric = DepthMetric("depth", NEAREST, FARTHEST)
    samples = [ROOMS[index] for index in range(rooms)]
    return sum(metric(model(image[None])[0], depth).delta1 for image, depth in samples) / rooms


def everywhere(model: SmallViT, choice: Choice) -> nn.Module:
    """The model with this choice at all sites, with the weights that it has."""
    image = ROOMS[0].image[None]
    sites = jetvit.find_attention(model, image)
    return jetvit.optimize(
        model, image, plan=Plan(tuple(SitePlan(site.name, choice) for site in sites), Fingerprint.of(sites))
    )


def test_the_file_is_small_and_says_how_it_was_made():
    assert WEIGHTS.stat().st_size <= 4e6
    with safe_open(WEIGHTS, "pt") as file:
        assert set(file.metadata()) == {"steps", "seed", "torch", "jetvit", "rooms", "delta1", "abs_rel"}
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.float16}  # noqa: SIM118


def test_it_is_loaded_for_inference(model: SmallViT):
    assert not model.training
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_every_attention_is_found(model: SmallViT):
    sites = jetvit.find_attention(model, torch.zeros(1, 3, 256, 256))
    assert [site.name for site in sites] == [f"blocks.{index}.attn" for index in range(8)]
    assert not sites.rejected
    assert (sites[0].num_heads, sites[0].head_dim, sites[0].grid, sites[0].extra_before) == (2, 64, (32, 32), 1)


@pytest.mark.slow
def test_depth_is_as_good_as_the_file_says_and_needs_attention(model: SmallViT):
    with safe_open(WEIGHTS, "pt") as file:
        recorded = float(file.metadata()["delta1"])
    assert delta1(model) > recorded - 0.08  # 8 rooms stray from the mean of 64
    for choice in (Choice("linear"), Choice("window", window=(8, 8))):
        assert delta1(everywhere(model, choice), rooms=4) < recorded - 0.1


@pytest.mark.parametrize("size", [(64, 96), (128, 40)])
def test_any_multiple_of_eight_pixels_will_do(model: SmallViT, size: tuple[int, int]):
    image = torch.zeros(2, 3, *size)
    with torch.no_grad():
        disparity = model(image)
        assert [tuple(each.shape) for each in model.features(image)] == [(2, 128, size[0] // 8, size[1] // 8)] * 3
    assert disparity.shape == (2, *size)
    assert disparity.min() > 0


def test_positions_differ_and_span_the_image():
    positions = sine_cosine((4, 6), 32)
    assert positions.shape == (24, 32)
    assert len(positions.unique(dim=0)) == 24
    finer = sine_cosine((12, 18), 32).reshape(12, 18, 32)
    assert torch.allclose(finer[1::3, 1::3].reshape(24, 32), positions, atol=1e-4)
