"""Models of transformers that take text and images: what is found in their image towers."""

from __future__ import annotations

import torch
from torch import nn

from jetvit.models.torchvision_shim import ensure_torchvision
from tests.zoo.case import Inputs, images, randomize
from tests.zoo.sweep import Entry
from tests.zoo.sweep_hf import (
    CONSTANT_MASK,
    CROSS,
    DIMS,
    HIDDEN_KEYS,
    INPUT_BIAS,
    NOT_CAPTURED,
    ONE_ROW,
    SQUARE,
    hf,
    of_type,
    swin,
)
from tests.zoo.sweep_hf_image_features import CLIP, LANGUAGE, LLAMA, features

TEXT = DIMS | {"vocab_size": 100, "max_position_embeddings": 16}
PAIR = {"vision_config": lambda: dict(SQUARE), "text_config": lambda: dict(TEXT), "projection_dim": 16}
OF_TEXT = "lost at aten.embedding.default"
OMDET = {
    "backbone_config": swin(image_size=128),
    "text_config": of_type(
        "clip_text_model", **DIMS, vocab_size=100, max_position_embeddings=16, projection_dim=32, eos_token_id=2
    ),
    "apply_layernorm_after_vision_backbone": False, "image_size": 128, "disable_custom_kernels": True,
    "text_projection_in_dim": 32, "text_projection_out_dim": 32, "task_encoder_hidden_dim": 32, "class_embed_dim": 32,
    "num_queries": 5, "encoder_hidden_dim": 48, "vision_features_channels": [48, 48, 48],
    "encoder_in_channels": [32, 64, 128], "encoder_attention_heads": 2, "encoder_dim_feedforward": 64,
    "encoder_layers": 1, "decoder_hidden_dim": 48, "decoder_num_heads": 2, "decoder_num_layers": 2,
    "decoder_dim_feedforward": 64,
}  # fmt: skip
GRANITE4 = {
    "vision_config": of_type("siglip_vision_model", **SQUARE | {"hidden_size": 64}, vision_use_head=False),
    "text_config": lambda: dict(LANGUAGE),
    "image_grid_pinpoints": [[64, 64]], "downsample_rate": "1/2", "deepstack_layer_map": [[-1, 0]],
    "vision_feature_select_strategy": "full",
    "qformer_config": of_type(
        "blip_2_qformer", num_hidden_layers=1, intermediate_size=64, cross_attention_frequency=1,
        max_position_embeddings=64, use_qformer_text_input=False,
    ),
}  # fmt: skip


def text_and_image_alone() -> Inputs:
    return (), {"input_ids": torch.tensor([[2, 5, 6, 3]]), "pixel_values": images(1, 3, 64, 64)}


def text_and_image() -> Inputs:
    args, kwargs = text_and_image_alone()
    return args, kwargs | {"attention_mask": torch.ones(1, 4, dtype=torch.long)}


def two_texts() -> Inputs:
    return (torch.tensor([[2, 5, 6, 3], [2, 7, 8, 3]]), images(1, 3, 64, 64)), {}


def vit_trocr() -> nn.Module:
    ensure_torchvision()
    import transformers as t

    config = t.VisionEncoderDecoderConfig.from_encoder_decoder_configs(
        t.ViTConfig(**SQUARE),
        t.TrOCRConfig(
            vocab_size=50, d_model=32, decoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=32,
            max_position_embeddings=16, use_cache=False,
        ),
    )  # fmt: skip
    return randomize(t.VisionEncoderDecoderModel(config))


TEXT_AND_IMAGE = (
    hf(
        "OmDetTurboForObjectDetection",
        "OmDetTurboConfig",
        OMDET,
        "",
        inputs=lambda: (
            (
                images(1, 3, 128, 128),
                torch.tensor([[5, 6, 2, 0], [7, 8, 9, 2]]),
                torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]]),
                torch.tensor([[5, 6, 7, 2]]),
                torch.ones(1, 4, dtype=torch.long),
                torch.tensor([2]),
            ),
            {},
        ),
        places=False,
        fails=NOT_CAPTURED,
    ),
    features(
        "Granite4Vision",
        GRANITE4,
        "",
        inputs=lambda: ((images(1, 2, 3, 64, 64), torch.tensor([[64, 64]])), {}),
        places=False,
        fails=NOT_CAPTURED,
    ),
    hf(
        "CLIPModel",
        "CLIPConfig",
        PAIR | {"text_config": lambda: TEXT | {"eos_token_id": 3}},
        "2 of 1+4×4",
        {HIDDEN_KEYS: 2},
        inputs=text_and_image,
    ),
    hf(
        "AltCLIPModel",
        "AltCLIPConfig",
        PAIR | {"text_config": lambda: TEXT | {"project_dim": 16}},
        "2 of 1+4×4",
        {HIDDEN_KEYS: 2},
        inputs=text_and_image,
    ),
    hf(
        "SiglipModel",
        "SiglipConfig",
        {"vision_config": lambda: dict(SQUARE), "text_config": lambda: TEXT | {"projection_size": 32}},
        "2 of 4×4",
        {CROSS: 1, HIDDEN_KEYS: 2},
        inputs=text_and_image,
    ),
    hf(
        "FlavaModel",
        "FlavaConfig",
        {
            "image_config": lambda: dict(SQUARE),
            "text_config": lambda: DIMS | {"vocab_size": 100},
            "multimodal_config": lambda: dict(DIMS),
            "projection_dim": 16,
            "hidden_size": 32,
        },
        "2 of 1+4×4",
        {INPUT_BIAS: 4},
        inputs=text_and_image,
    ),
    hf(
        "BridgeTowerModel",
        "BridgeTowerConfig",
        DIMS
        | {
            "hidden_size": 64,
            "num_hidden_layers": 1,
            "vision_config": lambda: {"hidden_size": 64, "num_hidden_layers": 2, "patch_size": 16, "image_size": 64},
            "text_config": lambda: DIMS | {"hidden_size": 64, "vocab_size": 100},
        },
        "2 of 1+4×4",
        {INPUT_BIAS: 4, CROSS: 1, "the attention weights are returned": 1},
        inputs=text_and_image,
    ),
    hf(
        "OwlViTForObjectDetection",
        "OwlViTConfig",
        PAIR | {"text_config": lambda: TEXT | {"max_position_embeddings": 8}, "projection_dim": 32},
        "2 of 1+4×4",
        {HIDDEN_KEYS: 2},
        inputs=two_texts,
    ),
    hf(
        "BlipForImageTextRetrieval",
        "BlipConfig",
        PAIR | {"text_config": lambda: TEXT | {"encoder_hidden_size": 32}, "image_text_hidden_size": 16},
        "2 of 1+4×4",
        {OF_TEXT: 2, CROSS: 2},
        inputs=text_and_image_alone,
    ),
    Entry(
        "VisionEncoderDecoderModel ViT TrOCR",
        "transformers",
        vit_trocr,
        lambda: ((images(1, 3, 64, 64), torch.tensor([[2, 5, 6]])), {"use_cache": False}),
        "2 of 1+4×4",
        {CONSTANT_MASK: 1, CROSS: 1},
    ),
    features(
        "QianfanOCR",
        {
            "vision_config": of_type("qianfan_ocr_vision", **DIMS, image_size=[64, 64], patch_size=[16, 16]),
            "text_config": LLAMA,
        },
        "2 of 1+4×4",
    ),
    features("VideoLlava", {"vision_config": CLIP, "text_config": LLAMA}, "2 of 1+4×4"),
    features(
        "LlavaNextVideo",
        {"vision_config": CLIP, "text_config": LLAMA, "image_grid_pinpoints": [[64, 64]]},
        "2 of 1+4×4",
        inputs=lambda: ((images(1, 2, 3, 64, 64), [[64, 64]]), {}),
        places=False,
    ),
    hf(
        "ChineseCLIPModel",
        "ChineseCLIPConfig",
        PAIR | {"text_config": lambda: dict(TEXT)},
        "2 of 1+4×4",
        {HIDDEN_KEYS: 2},
        inputs=text_and_image,
    ),
    hf(
        "MetaClip2Model",
        "MetaClip2Config",
        PAIR | {"text_config": lambda: TEXT | {"eos_token_id": 3}},
        "2 of 1+4×4",
        {HIDDEN_KEYS: 2},
        inputs=text_and_image,
    ),
    hf(
        "Owlv2ForObjectDetection",
        "Owlv2Config",
        PAIR | {"text_config": lambda: TEXT | {"max_position_embeddings": 8}, "projection_dim": 32},
        "2 of 1+4×4",
        {HIDDEN_KEYS: 2},
        inputs=two_texts,
    ),
    hf(
        "XCLIPModel",
        "XCLIPConfig",
        PAIR
        | {
            "vision_config": lambda: (
                SQUARE
                | {
                    "num_frames": 2,
                    "mit_num_hidden_layers": 1,
                    "mit_hidden_size": 32,
                    "mit_intermediate_size": 32,
                    "mit_num_attention_heads": 2,
                }
            ),
            "prompt_num_attention_heads": 2,
            "projection_dim": 32,
        },
        "2 of 1+4×4+1",
        {ONE_ROW: 3, HIDDEN_KEYS: 2, CROSS: 2},
        inputs=lambda: ((), {"input_ids": torch.tensor([[2, 5, 6, 3]]), "pixel_values": images(1, 2, 3, 64, 64)}),
        places=False,
    ),
    hf(
        "LxmertModel",
        "LxmertConfig",
        {
            "hidden_size": 32,
            "num_attention_heads": 2,
            "intermediate_size": 32,
            "vocab_size": 100,
            "l_layers": 1,
            "x_layers": 1,
            "r_layers": 1,
            "visual_feat_dim": 16,
        },
        "",
        {OF_TEXT: 2, ONE_ROW: 2, CROSS: 2},
        inputs=lambda: ((torch.tensor([[2, 5, 6, 3]]), images(1, 6, 16), images(1, 6, 4)), {}),
    ),
)
