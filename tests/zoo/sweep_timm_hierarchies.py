"""The sweep's configurations of timm: hierarchies, hybrids and other attention than that of a Vision Transformer."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch

from tests.zoo.sweep_timm import SIZE, VIT, timm


def mvit_config(**options: Any) -> Any:
    def make() -> Any:
        small = {"embed_dim": 16, "depths": (1, 1, 1, 1)} | options
        return import_module("timm.models.mvitv2").MultiScaleVitCfg(**small)

    return make


def caformer_mixers() -> Any:
    metaformer = import_module("timm.models.metaformer")
    return [metaformer.SepConv, metaformer.SepConv, metaformer.Attention, metaformer.Attention]


def caformer_norms() -> Any:
    metaformer = import_module("timm.models.metaformer")
    return [metaformer.LayerNorm2dNoBias] * 2 + [metaformer.LayerNormNoBias] * 2


def multi_query_blocks() -> Any:
    """Three stages of MobileNetV5: the second attends to half the rows and columns, the third to all tokens."""
    stages = (
        ["er_r1_k3_s2_e4_c16"],
        ["uir_r1_a3_k3_s2_e4_c32", "mqa_r1_k3_h2_s2_v2_d16_c32", "uir_r1_a0_k0_s1_e2_c32"],
        ["uir_r1_a3_k3_s2_e4_c32", "mqa_r1_k3_h2_s1_v1_d16_c32", "uir_r1_a0_k0_s1_e2_c32"],
    )
    return import_module("timm.models._efficientnet_builder").decode_arch_def(list(stages))


HIERARCHIES = (
    timm("cait_xxs24_224", VIT, "", {"the attention weights are used by": 2, "cross attention": 2}),
    timm("xcit_nano_12_p16_224", VIT, "", {"the attention runs over channels": 2, "cross attention": 2}),
    timm(
        "convit_tiny",
        VIT | {"img_size": 64, "local_up_to_layer": 1, "depth": 3},
        "2 of 1+4×4",
        {"the attention weights are used by": 1},
        size=(64, 64),
    ),
    timm(
        "levit_128s",
        {"img_size": (128, 192), "embed_dim": (32, 48, 64), "depth": (1, 1, 1), "num_heads": (2, 2, 2)},
        "",
        {"a learned bias is added to the scores": 5},
        size=(128, 192),
    ),
    timm("mobilevit_xxs", {}, "", {"the attention is dilated": 9}, size=(64, 96)),
    timm("mobilevitv2_050", {}, "", {"no product of q and k is what the softmax runs over": 9}, size=(64, 96)),
    timm(
        "pit_ti_224",
        {"img_size": (64, 96), "base_dims": (16, 16, 16), "depth": (1, 1, 1), "heads": (2, 2, 4)},
        "1 of 1+7×11, 1 of 1+4×6, 1 of 1+2×3",
        places=False,
    ),
    timm(
        "pit_ti_distilled_224",
        {"img_size": (64, 96), "base_dims": (16, 16, 16), "depth": (1, 1, 1), "heads": (2, 2, 4)},
        "1 of 2+7×11, 1 of 2+4×6, 1 of 2+2×3",
        places=False,
    ),
    timm(
        "twins_svt_small",
        {
            "img_size": (64, 96),
            "embed_dims": (16, 32, 48, 64),
            "depths": (2, 2, 1, 1),
            "num_heads": (1, 2, 2, 4),
            "wss": (2, 2, 2, 2),
        },
        "",
        {"the attention is local already": 4, "cross attention": 2},
    ),
    timm(
        "twins_pcpvt_small",
        {"img_size": (64, 96), "embed_dims": (16, 32, 48, 64), "depths": (1, 1, 1, 1), "num_heads": (1, 2, 2, 4)},
        "1 of 2×3",
        {"cross attention": 3},
        places=False,
    ),
    timm(
        "swin_tiny_patch4_window7_224",
        {"img_size": (64, 96), "embed_dim": 16, "depths": (2, 1), "num_heads": (1, 2), "window_size": 4},
        "",
        {"a learned bias is added to the scores": 3},
    ),
    timm(
        "swinv2_tiny_window8_256",
        {"img_size": (64, 96), "embed_dim": 16, "depths": (2, 1), "num_heads": (1, 2), "window_size": 4},
        "",
        {"a learned bias is added to the scores": 3},
    ),
    timm(
        "visformer_tiny",
        {"img_size": (128, 192), "embed_dim": 48, "depth": (1, 1, 1), "num_heads": 2},
        "1 of 8×12, 1 of 4×6",
        size=(128, 192),
    ),
    timm(
        "crossvit_tiny_240",
        {"embed_dim": (16, 32), "depth": ((1, 1, 0),), "num_heads": (2, 2)},
        "1 of 1+20×20, 1 of 1+14×14",
        {"cross attention": 2},
        size=(240, 240),
    ),
    timm(
        "coat_lite_tiny",
        {"img_size": (64, 96), "embed_dims": (16, 24, 32, 48), "serial_depths": (1, 1, 1, 1)},
        "",
        {"no product of q and k is what the softmax runs over": 4},
    ),
    timm(
        "coat_tiny",
        {"img_size": (64, 64), "embed_dims": (16, 16, 16, 16), "serial_depths": (1, 1, 1, 1), "parallel_depth": 1},
        "",
        {"no product of q and k is what the softmax runs over": 7},
        size=(64, 64),
    ),
    timm(
        "volo.VOLO",
        {"img_size": 128, "layers": [1, 1, 1, 1], "embed_dims": [16, 32, 32, 32], "num_heads": [2, 2, 2, 2]},
        "3 of 8×8",
        {"cross attention": 2},
        size=(128, 128),
    ),
    timm("test_maxvit", {"img_size": 64}, "", {"a learned bias is added to the scores": 8}, size=(64, 64)),
    timm("test_coatnet", {"img_size": 64}, "", {"a learned bias is added to the scores": 3}, size=(64, 64)),
    timm(
        "nest.Nest",
        {"img_size": 64, "embed_dims": (16, 24, 32), "num_heads": (2, 2, 2), "depths": (1, 1, 1)},
        "1 of 4×4",
        {"the attention is local already": 2},
        size=(64, 64),
    ),
    timm(
        "hiera_tiny_224",
        {"img_size": (128, 128), "embed_dim": 16, "stages": (1, 1, 2, 1)},
        "",
        {
            "the attention is local already: it runs inside windows of 8×8 tokens": 1,
            "cross attention": 3,
            "unknown token grid: the tokens have more than two spatial axes": 1,
        },
        size=(128, 128),
    ),
    timm(
        "sam2_hiera_tiny",
        {"embed_dim": 16, "stages": (1, 1, 2, 1), "global_att_blocks": (3,)},
        "1 of 8×8",
        {"the attention is local already": 1, "cross attention": 3},
        size=(128, 128),
    ),
    timm(
        "mvitv2.MultiScaleVit",
        {"cfg": mvit_config(), "img_size": (64, 64)},
        "",
        {"some of the attention scores are written over before the softmax": 4},
        size=(64, 64),
    ),
    timm(
        "mvitv2.MultiScaleVit",
        {"cfg": mvit_config(use_cls_token=True, rel_pos_type=""), "img_size": SIZE},
        "",
        {"cross attention": 4},
        name="mvitv2.MultiScaleVit cls",
    ),
    timm(
        "davit_tiny",
        {"depths": (1, 1), "embed_dims": (16, 32), "num_heads": (1, 2), "window_size": 4},
        "",
        {
            "the attention is local already": 2,
            "the attention runs over channels, not over tokens": 2,
        },
    ),
    timm(
        "edgenext_xx_small",
        {"dims": (16, 16, 32, 32), "depths": (1, 2, 2, 2), "heads": (2, 2, 2, 2)},
        "",
        {"the attention runs over channels, not over tokens": 3},
    ),
    timm(
        "efficientformerv2_s0",
        {"depths": (1, 1, 2, 2), "embed_dims": (16, 24, 32, 48), "num_vit": 1, "img_size": (128, 192)},
        "",
        {"the attention weights are used by": 2, "a learned bias is added to the scores": 1},
        size=(128, 192),
    ),
    timm(
        "efficientvit_b0",
        {"widths": (8, 16, 32, 32, 64), "depths": (1, 1, 1, 1, 1), "head_dim": 16, "head_widths": (32, 32)},
        "",
    ),
    timm(
        "efficientvit_m0",
        {"img_size": 128, "depth": (1, 1, 1), "embed_dim": (16, 32, 32), "num_heads": (2, 2, 2)},
        "",
        {"a learned bias is added to the scores": 6},
        size=(128, 128),
    ),
    timm(
        "fastvit_sa12",
        {"layers": (1, 1, 1, 1), "embed_dims": (32, 32, 64, 64)},
        "1 of 4×6",
        size=(128, 192),
        places=False,
    ),
    timm(
        "fastvit_mci0",
        {"layers": (1, 1, 1, 1), "embed_dims": (32, 32, 64, 64)},
        "1 of 4×6",
        size=(128, 192),
        places=False,
    ),
    timm(
        "pvt_v2_b0",
        {"depths": (1, 1, 1, 1), "embed_dims": (16, 16, 32, 32), "num_heads": (1, 2, 2, 2)},
        "1 of 2×3",
        {"cross attention": 3},
        places=False,
    ),
    timm(
        "pvt_v2_b2_li",
        {"depths": (1, 1, 1, 1), "embed_dims": (16, 16, 32, 32), "num_heads": (1, 2, 2, 2)},
        "",
        {"cross attention": 4},
        places=False,
    ),
    timm(
        "metaformer.MetaFormer",
        {
            "depths": (1, 1, 1, 1),
            "dims": (32, 32, 64, 64),
            "token_mixers": caformer_mixers,
            "norm_layers": caformer_norms,
        },
        "2 of 16×24",
        size=(128, 192),
        name="caformer_s18",
        places=False,
    ),
    timm(
        "sequencer2d_s",
        {"layers": (1, 1, 1, 1), "embed_dims": (32, 32, 32, 32), "hidden_sizes": (8, 8, 8, 8), "img_size": (56, 56)},
        "",
        size=(56, 56),
    ),
    timm("vitamin_small_224", {"img_size": (64, 96), "depth": 2, "num_heads": 6}, "2 of 4×6", places=False),
    timm(
        "tiny_vit_5m_224",
        {
            "depths": (1, 1, 1, 1),
            "embed_dims": (16, 32, 32, 64),
            "num_heads": (1, 2, 2, 2),
            "window_sizes": (4, 4, 4, 4),
        },
        "",
        {"a learned bias is added to the scores": 3},
    ),
    timm(
        "tnt_s_patch16_224",
        {"img_size": (64, 96), "embed_dim": 32, "inner_dim": 8, "depth": 2, "num_heads_outer": 2, "num_heads_inner": 2},
        "2 of 1+4×6",
        {"the attention is local already": 2},
    ),
    timm(
        "gcvit.GlobalContextVit",
        {"img_size": (128, 128), "embed_dim": 16, "depths": (2, 2, 2, 2), "num_heads": (1, 1, 2, 2)},
        "",
        {"a learned bias is added to the scores": 8},
        size=(128, 128),
    ),
    timm("botnet26t_256", {"img_size": 128}, "", {"depends on the input is added to the scores": 3}, size=(128, 128)),
    timm("halonet26t", {}, "", {"depends on the input is added to the scores": 3}, size=(256, 256)),
    timm("lambda_resnet26t", {}, "", {"no product of q and k is what the softmax runs over": 3}, size=(128, 128)),
    timm(
        "eca_botnext26ts_256",
        {"img_size": 128},
        "",
        {"depends on the input is added to the scores": 3},
        size=(128, 128),
    ),
    timm(
        "nextvit.NextViT",
        {"in_chans": 3, "depths": (1, 1, 5, 1), "stem_chs": (16, 16, 16)},
        "1 of 4×6",
        {"cross attention": 2},
        size=(128, 192),
        places=False,
    ),
    timm("starnet_s1", {}, ""),
    timm(
        "csatv2",
        {"dims": (16, 24, 32, 48), "depths": (1, 1, 2, 2), "transformer_depths": (0, 0, 1, 1)},
        "1 of 4×4, 1 of 2×2",
        {"unknown token grid: the tokens come in one row from an input, not from an image": 4},
        size=(128, 128),
        places=False,
    ),
    timm(
        "shvit_s1",
        {"embed_dim": (32, 48, 64), "partial_dim": (16, 16, 16), "depth": (1, 1, 1)},
        "1 of 4×6, 1 of 2×3",
        size=(128, 192),
        places=False,
    ),
    timm("swiftformer_xs", {"layers": [1, 1, 1, 1], "embed_dims": [16, 16, 32, 32]}, ""),
    timm("iformer_t", {}, "", {"features a head, q has": 5}, size=(128, 192)),
    timm(
        "lowformer_b0",
        {},
        "7 of 4×6",
        size=(128, 192),
        places=False,
    ),
    timm("cpubone_nano", {}, "3 of 4×6", size=(128, 192), places=False),
    timm(
        "mobilenetv4_hybrid_medium",
        {},
        "4 of 4×6",
        {"cross attention": 4},
        size=(128, 192),
        dtype=torch.float64,
        name="mobilenetv4_hybrid_medium in fp64",
        places=False,
    ),
    timm("efficientvim_m1", {}, "", size=(128, 192)),
    timm(
        "efficientformer_l1",
        {"depths": (1, 1, 1, 2), "embed_dims": (16, 24, 32, 48), "num_vit": 1},
        "",
        {"a learned bias is added to the scores": 1},
        size=(224, 224),
    ),
    timm(
        "swinv2_cr_tiny_224",
        {"img_size": (64, 96), "embed_dim": 16, "depths": (2, 1), "num_heads": (1, 2), "window_size": 4},
        "",
        {"a learned bias is added to the scores": 3},
    ),
    timm(
        "mobilenetv5.MobileNetV5",
        {
            "block_args": multi_query_blocks,
            "stem_size": 8,
            "num_features": 32,
            "num_classes": 5,
            "layer_scale_init_value": 1e-5,
            "use_msfa": True,
        },
        "1 of 4×6",
        {"cross attention": 1},
        places=False,
    ),
    timm(
        "fastvit_mci2",
        {"layers": (1, 1, 1, 1), "embed_dims": (32, 32, 64, 64)},
        "1 of 4×6",
        size=(128, 192),
        places=False,
    ),
    timm(
        "hiera_base_abswin_256",
        {"img_size": (128, 128), "embed_dim": 16, "stages": (1, 1, 2, 1)},
        "",
        {
            "the attention is local already: it runs inside windows of 8×8 tokens": 1,
            "cross attention": 3,
            "unknown token grid: the tokens have more than two spatial axes": 1,
        },
        size=(128, 128),
    ),
)
