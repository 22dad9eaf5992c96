"""Folders and files that the loading tests read."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real weights and pictures."""
    folder = os.environ.get("JETVIT_DATA")
    if not folder:
        pytest.skip("JETVIT_DATA names no folder of real weights and pictures")
    return Path(folder)


@pytest.fixture(scope="session")
def hf_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Writes a shrunk HuggingFace model into a fresh folder: hf_folder("Dinov2", max_shard_size=…)."""
    from jetvit.models.torchvision_shim import ensure_torchvision

    ensure_torchvision()
    transformers = pytest.importorskip("transformers")
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}

    def write(family: str, **save_options: Any) -> Path:
        if family == "Dinov2":
            config = transformers.Dinov2Config(**small, mlp_ratio=2, image_size=28, patch_size=14)
            model = transformers.Dinov2Model(config)
        elif family == "DINOv3":
            config = transformers.DINOv3ViTConfig(**small, image_size=32, patch_size=16, num_register_tokens=2)
            model = transformers.DINOv3ViTModel(config)
        elif family == "ViT":
            config = transformers.ViTConfig(**small, image_size=32, patch_size=16)
            model = transformers.ViTModel(config)
        elif family == "ViTClassifier":
            config = transformers.ViTConfig(**small, image_size=32, patch_size=16)
            model = transformers.ViTForImageClassification(config)
        else:
            backbone = transformers.Dinov2Config(
                **small | {"num_hidden_layers": 4},
                mlp_ratio=2,
                image_size=28,
                patch_size=14,
                out_indices=[1, 2, 3, 4],
                reshape_hidden_states=False,
            )
            config = transformers.DepthAnythingConfig(
                backbone_config=backbone,
                patch_size=14,
                reassemble_hidden_size=16,
                neck_hidden_sizes=[8, 8, 8, 8],
                fusion_hidden_size=8,
                head_hidden_size=4,
            )
            torch.manual_seed(0)  # with other weights its last ReLU may leave nothing
            model = transformers.DepthAnythingForDepthEstimation(config)
        folder = tmp_path_factory.mktemp(family)
        model.save_pretrained(folder, **save_options)
        return folder

    return write
