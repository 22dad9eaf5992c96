"""Real weights on real pictures: what random weights cannot show."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import jetvit
from jetvit.cost_model import Choice, Plan, SitePlan
from jetvit.models.images import ImageFolder
from jetvit.models.load import load_model
from jetvit.models.torchvision_shim import ensure_torchvision
from jetvit.search import check_plan

SIZE = (224, 320)


@pytest.fixture(scope="module")
def subject(data_folder: Path):
    ensure_torchvision()
    pytest.importorskip("timm")
    weights = data_folder / "vit_tiny_patch16_224.safetensors"
    loaded = load_model("timm:vit_tiny_patch16_224", weights=weights, model_args={"num_classes": 0, "global_pool": ""})
    images = ImageFolder(data_folder / "camvid/train/images", SIZE, loaded.mean, loaded.std, limit=4)
    return loaded.model, list(images.batches(1))


@pytest.fixture(scope="module")
def plan(subject) -> Plan:
    model, batches = subject
    windows = [Choice("window", window=(side, side)) for side in (4, 8)]
    return jetvit.calibrate(model, batches, max_drift=0.3, choices=windows)


def test_larger_windows_drift_less_at_every_block(plan: Plan):
    for site in plan.sites:
        drift = {measured.choice.label: measured.drift for measured in site.measured}
        assert drift["full"] == 0 < drift["window 8x8"] < drift["window 4x4"], site.name


def test_the_last_blocks_are_the_ones_that_can_be_exchanged(plan: Plan):
    """Seen at every size on these weights: neighbours are enough late in the network, and not in its middle."""
    drifts = [site.measured[2].drift for site in plan.sites]
    assert max(drifts[-3:]) < min(drifts[1:6])


def test_the_bound_holds_and_all_windows_break_it(subject, plan: Plan):
    model, batches = subject
    assert check_plan(model, plan, batches[0::2]).drift <= 0.3 + 1e-6
    everywhere = replace(
        plan, sites=tuple(SitePlan(site.name, Choice("window", window=(4, 4))) for site in plan.sites), front=()
    )
    report = check_plan(model, everywhere, batches)
    assert report.drift > 1
    assert report.agreement < check_plan(model, plan, batches).agreement
