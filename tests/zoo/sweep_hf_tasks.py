"""Models of transformers for OCR, tokens of images, masks and video, and towers that are told the sizes of images."""

from __future__ import annotations

import torch
from torch import nn

from jetvit.models.torchvision_shim import ensure_torchvision
from tests.zoo.case import Inputs, image_inputs, images, randomize
from tests.zoo.sweep import Entry
from tests.zoo.sweep_hf import (
    CONSTANT_MASK,
    CROSS,
    DETR,
    DIMS,
    GRID,
    HIERA_DET,
    LEARNED_BIAS,
    LOCAL,
    NO_MAP,
    NOT_CAPTURED,
    SQUARE,
    hf,
    of_type,
    patches,
    resnet,
    video,
)
from tests.zoo.sweep_hf_towers import IN_PATCHES

BLOCK = DIMS | {"image_size": [64, 64], "patch_size": [16, 16]}
PROMPTED = {
    "prompt_encoder_config": lambda: {"hidden_size": 32, "image_size": 64, "patch_size": 16, "mask_input_channels": 4},
    "mask_decoder_config": lambda: {
        "hidden_size": 32,
        "mlp_dim": 64,
        "num_attention_heads": 2,
        "iou_head_hidden_dim": 32,
    },
}
FPN = {"fpn_hidden_size": 32, "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]]}
REPVIT = of_type(
    "timm_wrapper", architecture="repvit_m1", num_classes=8,
    model_args={"in_chans": 3, "features_only": True, "out_indices": [0, 1, 2, 3]},
)  # fmt: skip
SAM_OCR = {name: value for name, value in SQUARE.items() if name != "intermediate_size"} | {
    "mlp_dim": 64, "output_channels": 16, "global_attn_indexes": [1], "window_size": 2, "downsample_channels": [16, 32],
    "image_size": 128, "use_rel_pos": False,
}  # fmt: skip
VQ = {
    "embed_dim": 16, "num_embeddings": 16, "latent_channels": 16, "base_channels": 32, "channel_multiplier": [1, 1],
    "num_res_blocks": 1,
}  # fmt: skip
AT_PADDING = "unknown token grid: it was lost at padding"
PERCEIVER = {
    "num_latents": 8, "d_latents": 32, "num_self_attends_per_block": 1, "num_self_attention_heads": 2,
    "num_cross_attention_heads": 1,
}  # fmt: skip


def pointed_at() -> Inputs:
    return (images(1, 3, 64, 64), torch.tensor([[[[20.0, 30.0]]]]), torch.tensor([[[1]]])), {}


def masked() -> Inputs:
    return (images(2, 3, 64, 64), torch.arange(32).reshape(2, 16) % 3 == 0), {}


def idefics() -> nn.Module:
    ensure_torchvision()
    from transformers.models.idefics.configuration_idefics import IdeficsVisionConfig
    from transformers.models.idefics.vision import IdeficsVisionTransformer

    config = IdeficsVisionConfig(
        embed_dim=32, image_size=64, intermediate_size=64, patch_size=16, num_hidden_layers=2, num_attention_heads=2
    )
    config._attn_implementation = "sdpa"
    return randomize(IdeficsVisionTransformer(config))


TASKS = (
    hf("qianfan_ocr.QianfanOCRVisionModel", "QianfanOCRVisionConfig", BLOCK, "2 of 1+4×6"),
    hf(
        "qianfan_ocr.QianfanOCRVisionModel",
        "QianfanOCRVisionConfig",
        BLOCK | {"use_qk_norm": True, "norm_type": "rms_norm"},
        "2 of 1+4×6",
        name="qianfan_ocr.QianfanOCRVisionModel qk norm",
    ),
    hf(
        "granite_docling.GraniteDoclingVisionModel",
        "GraniteDoclingVisionConfig",
        SQUARE | {"out_hidden_size": 32, "scale_factor": 2},
        "2 of 4×4",
        size=(64, 64),
    ),
    hf("InstructBlipVisionModel", "InstructBlipVisionConfig", SQUARE, "2 of 1+4×4", size=(64, 64)),
    hf("kosmos2.Kosmos2VisionModel", "Kosmos2VisionConfig", SQUARE, "2 of 1+4×4", size=(64, 64)),
    hf("Owlv2VisionModel", "Owlv2VisionConfig", SQUARE, "2 of 1+4×4", size=(64, 64)),
    Entry("idefics.IdeficsVisionTransformer", "transformers", idefics, image_inputs((64, 64)), "2 of 1+4×4"),
    hf(
        "unlimited_ocr.UnlimitedOcrSamVisionEncoder",
        "UnlimitedOcrSamVisionConfig",
        SAM_OCR,
        "1 of 8×8",
        {LOCAL: 1},
        size=(128, 128),
    ),
    hf(
        "unlimited_ocr.UnlimitedOcrVisionModel",
        "UnlimitedOcrVisionConfig",
        {"sam_config": lambda: dict(SAM_OCR), "encoder_config": lambda: DIMS | {"image_size": 32, "patch_size": 16}},
        "1 of 8×8, 2 of 1+2×2",
        {LOCAL: 1},
        size=(128, 128),
    ),
    hf("EdgeTamVisionModel", "EdgeTamVisionConfig", FPN | {"backbone_config": REPVIT}, "", size=(64, 64)),
    hf(
        "EdgeTamModel",
        "EdgeTamConfig",
        PROMPTED | {"vision_config": lambda: FPN | {"backbone_config": REPVIT()}},
        "",
        {AT_PADDING: 2, CROSS: 5},
        inputs=pointed_at,
        places=False,
    ),
    hf(
        "edgetam_video.EdgeTamVideoPerceiverResampler",
        "EdgeTamVideoConfig",
        {
            "perceiver_resampler_num_latents": 4,
            "perceiver_resampler_num_latents_2d": 4,
            "perceiver_resampler_hidden_size": 32,
            "perceiver_resampler_mlp_intermediate_size": 32,
            "perceiver_resampler_attention_head_dim": 32,
            "vision_config": lambda: FPN | {"backbone_config": REPVIT()},
        },
        "",
        {CROSS: 4, NO_MAP: 4},
        inputs=lambda: ((images(1, 32, 8, 8), images(1, 32, 8, 8)), {}),
        places=False,
        attention="sdpa",
    ),
    hf(
        "Sam2Model",
        "Sam2Config",
        PROMPTED
        | {
            "vision_config": lambda: (
                FPN
                | {
                    "backbone_config": {"model_type": "sam2_hiera_det_model", **HIERA_DET, "image_size": [64, 64]},
                    "backbone_channel_list": [128, 64, 32, 16],
                }
            )
        },
        "1 of 4×4",
        {LOCAL: 1, AT_PADDING: 2, CROSS: 8},
        inputs=pointed_at,
        places=False,
    ),
    hf(
        "PerceiverForImageClassificationLearned",
        "PerceiverConfig",
        PERCEIVER | {"d_model": 512, "image_size": 32},
        "",
        {NO_MAP: 1, CROSS: 2},
        size=(32, 32),
    ),
    hf(
        "PerceiverForImageClassificationFourier",
        "PerceiverConfig",
        PERCEIVER | {"d_model": 261, "image_size": 224},
        "",
        {NO_MAP: 1, CROSS: 2},
        size=(224, 224),
    ),
    hf(
        "chameleon.ChameleonVQVAEEncoder",
        "ChameleonVQVAEConfig",
        VQ | {"resolution": 32, "attn_resolutions": [16]},
        "2 of 16×24",
        size=(32, 48),
        places=False,
    ),
    hf(
        "janus.JanusVQVAEEncoder",
        "JanusVQVAEConfig",
        VQ | {"num_patches": 16, "projection_dim": 32, "image_token_embed_dim": 32},
        "2 of 16×24",
        size=(32, 48),
        places=False,
    ),
    hf(
        "apertus1p5.Apertus1p5VisionTokenizerEncoder",
        "Apertus1p5VisionTokenizerConfig",
        {name: value for name, value in VQ.items() if name != "num_embeddings"}
        | {"codebook_size": 16, "attn_resolutions": [16], "resolution": 32},
        "2 of 16×16",
        size=(32, 32),
        places=False,
    ),
    hf(
        "BeitForSemanticSegmentation",
        "BeitConfig",
        SQUARE
        | {
            "num_hidden_layers": 4,
            "use_absolute_position_embeddings": True,
            "out_indices": [1, 2, 3, 4],
            "auxiliary_channels": 8,
        },
        "3 of 1+4×4",  # nothing reads the last block
        size=(64, 64),
    ),
    hf(
        "BeitForMaskedImageModeling",
        "BeitConfig",
        SQUARE | {"vocab_size": 20, "use_mask_token": True, "use_absolute_position_embeddings": True},
        "2 of 1+4×4",
        inputs=masked,
    ),
    hf("ViTForMaskedImageModeling", "ViTConfig", SQUARE | {"encoder_stride": 16}, "2 of 1+4×4", inputs=masked),
    hf("DeiTForImageClassificationWithTeacher", "DeiTConfig", SQUARE, "2 of 2+4×4", size=(64, 64)),
    hf(
        "DPTForDepthEstimation",
        "DPTConfig",
        SQUARE
        | {
            "num_hidden_layers": 4,
            "is_hybrid": True,
            "backbone_featmap_shape": [1, 16, 4, 4],
            "backbone_out_indices": [0, 1, 2, 3],
            "neck_ignore_stages": [0, 1],
            "neck_hidden_sizes": [8, 8, 16, 16],
            "fusion_hidden_size": 16,
            "backbone_config": of_type(
                "bit",
                global_padding="same",
                layer_type="bottleneck",
                depths=[1, 1, 1],
                out_features=["stage1", "stage2", "stage3"],
                embedding_dynamic_padding=True,
                hidden_sizes=[8, 8, 16],
                num_groups=2,
                embedding_size=8,
            ),
        },
        "4 of 1+4×4",
        size=(64, 64),
        places=False,
        name="DPTForDepthEstimation hybrid",
    ),
    hf(
        "TimesformerModel",
        "TimesformerConfig",
        DIMS | {"image_size": 48, "patch_size": 16, "num_frames": 2, "attention_type": "space_only"},
        "2 of 1+3×3",
        inputs=video(2, (48, 48)),
        places=False,
        name="TimesformerModel space only",
    ),
    hf(
        "TimesformerModel",
        "TimesformerConfig",
        DIMS | {"image_size": 48, "patch_size": 16, "num_frames": 2, "attention_type": "joint_space_time"},
        "",
        {"unknown token grid": 2},
        inputs=video(2, (48, 48)),
        places=False,
        name="TimesformerModel joint",
    ),
    hf(
        "ClapAudioModel",
        "ClapAudioConfig",
        {
            "window_size": 4,
            "num_mel_bins": 16,
            "spec_size": 64,
            "hidden_size": 64,
            "depths": [2, 1],
            "num_attention_heads": [2, 2],
            "patch_embeds_hidden_size": 32,
            "num_hidden_layers": 2,
        },
        "",
        {LEARNED_BIAS: 2, CONSTANT_MASK: 1},
        inputs=lambda: ((images(1, 1, 60, 16), torch.tensor([[False]])), {}),
        places=False,
    ),
    hf(
        "PPOCRV5ServerRecForTextRecognition",
        "PPOCRV5ServerRecConfig",
        {"hidden_size": 16, "depth": 2, "head_out_channels": 12, "num_attention_heads": 2},
        "2 of 1×12",
        inputs=lambda: ((images(1, 3, 48, 96),), {}),
        places=False,
    ),
    hf(
        "DeformableDetrModel",
        "DeformableDetrConfig",
        DETR | {"backbone_config": resnet(), "num_feature_levels": 3, "disable_custom_kernels": True},
        "",
        {NO_MAP: 1},
        places=False,
    ),
    *(
        hf(model, config_name, options, "", inputs=patches(24, width, grid_thw=GRID), places=False, fails=NOT_CAPTURED)
        for model, config_name, options, width in (
            (
                "cosmos3_edge.Cosmos3EdgeVisionModel",
                "Cosmos3EdgeVisionConfig",
                DIMS | {"patch_size": 4, "num_patches": 16},
                48,
            ),
            (
                "cohere_compass.CohereCompassVisionModel",
                "CohereCompassVisionConfig",
                IN_PATCHES | {"num_position_embeddings": 16, "deepstack_visual_indexes": [0]},
                96,
            ),
            (
                "glm5_next.Glm5NextVisionModel",
                "Glm5NextVisionConfig",
                IN_PATCHES | {"image_size": 16, "projection_intermediate_size": 32},
                96,
            ),
            (
                "muse_glimmer.MuseGlimmerVisionModel",
                "MuseGlimmerVisionConfig",
                DIMS | {"patch_size": 4, "pos_emb_height": 8, "pos_emb_width": 8},
                96,
            ),
            (
                "muse_spark.MuseSparkVisionModel",
                "MuseSparkVisionConfig",
                DIMS | {"patch_size": 4, "pos_emb_height": 8, "pos_emb_width": 8},
                96,
            ),
            (
                "ernie4_5_vl_moe.Ernie4_5_VLMoeVisionTransformerPretrainedModel",
                "Ernie4_5_VLMoeVisionConfig",
                {name: value for name, value in IN_PATCHES.items() if name != "out_hidden_size"},
                48,
            ),
            (
                "exaone4_5.Exaone4_5_VisionModel",
                "Exaone4_5_VisionConfig",
                IN_PATCHES | {"window_size": 16, "fullatt_block_indexes": [1], "num_key_value_heads": 1},
                96,
            ),
            (
                "hy_v4_vl.HYV4VLVisionModel",
                "HYV4VLVisionConfig",
                DIMS | {"patch_size": 4, "max_image_size": 32, "out_hidden_size": 32},
                48,
            ),
            ("qwen4_exp.Qwen4ExpVisionModel", "Qwen4ExpVisionConfig", IN_PATCHES | {"num_position_embeddings": 16}, 96),
            (
                "lfm3_vl.Lfm3VlVisionModel",
                "Lfm3VlVisionConfig",
                DIMS | {"patch_size": 4, "num_key_value_heads": 1, "layer_types": ["conv", "full_attention"]},
                96,
            ),
            (
                "dots3_note.Dots3NoteVisionModel",
                "Dots3NoteVisionConfig",
                DIMS
                | {
                    "patch_size": 4,
                    "moe_intermediate_size": 32,
                    "num_local_experts": 2,
                    "num_experts_per_tok": 1,
                    "adapter_in_dim": 32,
                    "adapter_out_dim": 32,
                    "mlp_layer_types": ["dense", "sparse"],
                },
                48,
            ),
        )
    ),
    hf(
        "minicpm_ocr.MiniCPMOcrVisionModel",
        "MiniCPMOcrVisionConfig",
        SQUARE | {"insert_layer_id": 0},
        "",
        inputs=lambda: ((images(1, 3, 64, 64), torch.tensor([[4, 4]])), {}),
        places=False,
        fails=NOT_CAPTURED,
    ),
)
