"""The sweep's configurations of timm, shrunk through their arguments."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import nn

from jetvit.models.torchvision_shim import ensure_torchvision
from tests.zoo.case import image_inputs, randomize
from tests.zoo.sweep import Entry
from tests.zoo.sweep_oracle import Size

SIZE = (64, 96)
BASE = {"embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 5}
VIT = BASE | {"img_size": SIZE, "patch_size": 16}


# A concatenation with an empty slice in front, `cat([q[:, :, :0], rotate(q[:, :, 0:])], 2)`, loses the tokens of k.
def build(timm_name: str, options: Mapping[str, Any], fused: bool | None) -> nn.Module:
    """A model by its name, or by the name of its file and class where the registry fixes what is to be small."""
    ensure_torchvision()
    timm = pytest.importorskip("timm")
    file, _, of_class = timm_name.partition(".")
    make = (
        getattr(import_module(f"timm.models.{file}"), of_class) if of_class else partial(timm.create_model, timm_name)
    )
    network = make(**{name: value() if callable(value) else value for name, value in options.items()})
    if fused is not None:
        for module in network.modules():
            if hasattr(module, "fused_attn"):
                module.fused_attn = fused
    return randomize(network)


def timm(
    timm_name: str,
    options: Mapping[str, Any],
    found: str,
    refused: Mapping[str, int] | None = None,
    *,
    size: Size = SIZE,
    name: str = "",
    fused: bool | None = None,
    dtype: torch.dtype = torch.float32,
    **more: Any,
) -> Entry:
    """One entry; `name` tells apart entries of one model, and says a `dtype` for models that amplify rounding."""
    return Entry(
        name or timm_name,
        "timm",
        lambda: build(timm_name, options, fused).to(dtype),
        partial(image_inputs(size), dtype=dtype),
        found,
        refused or {},
        **more,
    )


PLAIN = (
    # Plain Vision Transformers.
    timm("vit_tiny_patch16_224", VIT, "2 of 1+4×6"),
    timm("vit_tiny_patch16_224", VIT, "2 of 1+4×6", name="vit_tiny_patch16_224 unfused", fused=False),
    timm("vit_base_patch16_gap_224", VIT, "2 of 4×6"),
    timm("vit_base_patch16_224_miil", VIT, "2 of 1+4×6"),
    timm("vit_base_patch16_rpn_224", VIT, "2 of 4×6"),
    timm("vit_base_patch16_xp_224", VIT, "2 of 1+4×6"),
    timm("vit_small_patch16_18x2_224", VIT, "4 of 1+4×6"),
    timm("vit_small_patch16_36x1_224", VIT, "2 of 1+4×6"),
    timm("vit_base_patch16_plus_240", VIT, "2 of 1+4×6"),
    timm("vit_base_patch16_plus_clip_240", VIT, "2 of 1+4×6"),
    timm("vit_base_patch32_clip_quickgelu_224", VIT | {"patch_size": 16}, "2 of 1+4×6"),
    timm("vit_base_patch16_siglip_224", VIT, "2 of 4×6", {"cross attention": 1}),
    timm("vit_base_patch16_siglip_gap_224", VIT, "2 of 4×6"),
    timm("vit_so150m2_patch16_reg1_gap_256", VIT, "2 of 1+4×6"),
    timm("vit_so150m_patch16_reg4_map_256", VIT, "2 of 4+4×6", {"cross attention": 1}),
    timm("vit_dwee_patch16_reg1_gap_256", VIT, "", {"features a head, q has": 4}),
    timm("vit_dpwee_patch16_reg1_gap_256", VIT, "", {"features a head, q has": 4}),
    timm("vit_dlittle_patch16_reg1_gap_256", VIT, "", {"features a head, q has": 4}),
    timm("vit_pwee_patch16_reg1_gap_256", VIT, "2 of 1+4×6"),
    timm("vit_mediumd_patch16_reg4_gap_256", VIT, "2 of 4+4×6"),
    timm("vit_betwixt_patch16_reg4_gap_256", VIT, "2 of 4+4×6"),
    timm("vit_intern300m_patch14_448", VIT, "2 of 1+4×6"),
    timm("vit_base_patch16_radio_v3", VIT, "2 of 8+4×6"),
    timm("vit_base_patch14_reg1_tipsv2", VIT, "2 of 2+4×6"),
    timm("vit_base_patch14_dinov2", VIT, "2 of 1+4×6"),
    timm("vit_small_patch14_reg4_dinov2", VIT, "2 of 5+4×6"),
    timm("vit_giant_patch14_reg4_dinov2", VIT, "2 of 5+4×6"),
    timm("test_vit4", VIT, "2 of 1+4×6"),
    timm("flexivit_small", VIT, "2 of 1+4×6"),
    timm("eva_large_patch14_196", VIT, "2 of 1+4×6"),
    timm("beit3_base_patch16_224", VIT, "2 of 1+4×6"),
    timm("aimv2_large_patch14_224", VIT, "2 of 4×6"),
    timm("deit_tiny_patch16_224", VIT, "2 of 1+4×6"),
    timm("deit_tiny_distilled_patch16_224", VIT, "2 of 2+4×6"),
    timm("deit3_small_patch16_224", VIT, "2 of 1+4×6"),
    timm(
        "vit_tiny_patch16_224",
        VIT | {"dynamic_img_size": True},
        "2 of 1+6×4",
        size=(96, 64),
        name="vit_tiny_patch16_224 dynamic_img_size",
    ),
    timm("vit_tiny_patch16_224", VIT | {"qk_norm": True}, "2 of 1+4×6", name="vit_tiny_patch16_224 qk_norm"),
    timm(
        "vit_tiny_patch16_224",
        VIT | {"features_only": True, "out_indices": (0, 1)},
        "2 of 1+4×6",
        name="vit_tiny_patch16_224 features_only",
    ),
    timm("vit_base_resnet26d_224", BASE | {"img_size": SIZE}, "2 of 1+2×3"),
    timm("vit_small_r26_s32_224", BASE | {"img_size": (128, 192)}, "2 of 1+4×6", size=(128, 192), places=False),
    timm("vit_relpos_small_patch16_224", VIT, "", {"a learned bias is added to the scores": 2}),
    timm("vit_relpos_base_patch16_cls_224", VIT, "", {"a learned bias is added to the scores": 2}),
    timm("vit_srelpos_small_patch16_224", VIT, "", {"a learned bias is added to the scores": 2}),
    timm(
        "samvit_base_patch16",
        VIT | {"global_attn_indexes": (1,), "window_size": 2, "neck_chans": 16},
        "",
        {"depends on the input is added to the scores": 2},
    ),
    timm(
        "samvit_base_patch16",
        VIT | {"global_attn_indexes": (1,), "window_size": 2, "neck_chans": 16, "use_rel_pos": False},
        "1 of 4×6",
        {"the attention is local already": 1},
        name="samvit_base_patch16 no rel_pos",
    ),
    # Naive flexible resolution.
    timm("naflexvit_base_patch16_gap", {"embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 5}, "2 of 4+4×6"),
    timm(
        "naflexvit_base_patch16_par_gap", {"embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 5}, "2 of 4+4×6"
    ),
    timm(
        "naflexvit_base_patch16_map",
        {"embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 5},
        "2 of 1+4×6",
        {"cross attention": 1},
    ),
    timm(
        "naflexvit_base_patch16_siglip",
        {"embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 5},
        "2 of 4×6",
        {"cross attention": 1},
    ),
    timm(
        "naflexvit_base_patch16_radio_v3", {"embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 5}, "2 of 8+4×6"
    ),
    # EVA and rotary embeddings.
    timm("beit_base_patch16_224", VIT, "", {"a learned bias is added to the scores": 2}),
    timm("beitv2_base_patch16_224", VIT, "", {"a learned bias is added to the scores": 2}),
    timm("eva_giant_patch14_224", VIT, "2 of 1+4×6"),
    timm("eva02_tiny_patch14_224", VIT, "2 of 1+4×6"),
    timm("eva02_base_patch16_clip_224", VIT, "2 of 1+4×6"),
    timm("eva02_tiny_patch14_224", VIT, "2 of 1+4×6", name="eva02_tiny_patch14_224 unfused", fused=False),
    timm("vit_small_patch16_dinov3", VIT, "2 of 5+4×6"),
    timm("vit_small_plus_patch16_dinov3_qkvb", VIT, "2 of 5+4×6"),
    timm("vit_base_patch16_lingbot", VIT, "2 of 5+4×6"),
    timm("vit_base_patch16_sapiens2", VIT | {"num_kv_heads": (2, 2)}, "2 of 9+4×6"),
    timm(
        "vit_base_patch16_sapiens2",
        VIT | {"num_kv_heads": (2, 1)},
        "2 of 9+4×6",
        name="vit_base_patch16_sapiens2 grouped queries",
    ),
    timm("vit_small_patch16_rope_224", VIT, "2 of 1+4×6"),
    timm("vit_small_patch16_rope_ape_224", VIT, "2 of 1+4×6"),
    timm("vit_small_patch16_rope_mixed_224", VIT, "2 of 1+4×6"),
    timm("vit_small_patch16_rope_mixed_ape_224", VIT, "2 of 1+4×6"),
    timm("vit_base_patch16_rope_reg1_gap_256", VIT, "2 of 1+4×6"),
    timm("vit_betwixt_patch16_rope_reg4_gap_256", VIT, "2 of 4+4×6"),
    timm("vit_pe_core_tiny_patch16_384", VIT, "2 of 1+4×6", {"cross attention": 1}),
    timm("vit_pe_lang_large_patch14_448", VIT, "2 of 1+4×6"),
    timm("vit_pe_spatial_tiny_patch16_512", VIT, "2 of 1+4×6"),
    timm("qwen3_vit_88m", VIT, "2 of 4×6"),
    timm("qwen3_vit_88m_merge", VIT, "2 of 4×6"),
    timm("gemma4_vit_167m", VIT, "2 of 4×6"),
    timm("deepseek_vit_412m", VIT, "2 of 4×6"),
)
