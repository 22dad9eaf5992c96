"""The sweep's configurations of transformers: more members of families, memory of video, matching, sound and pages."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from jetvit.models.torchvision_shim import ensure_torchvision
from tests.zoo.case import Inputs, images, randomize
from tests.zoo.sweep import Entry
from tests.zoo.sweep_hf import (
    CROSS,
    DIMS,
    GRID,
    LOCAL,
    NOT_CAPTURED,
    ONE_ROW,
    PYRAMID,
    SQUARE,
    hf,
    of_type,
    patches,
)
from tests.zoo.sweep_hf_tasks import FPN, REPVIT

AT_A_TENSOR = dict.fromkeys(
    ("find", "export without a plan"), "CaptureError: the model gives torch a tensor where it takes a number"
)
AT_A_SIZE = dict.fromkeys(
    ("find", "export without a plan"), "CaptureError: the model's code looks at a size that depends on the values"
)
LINE_OF_TEXT = {"hidden_size": 16, "head_out_channels": 12, "backbone_config": of_type("pp_lcnet_v4")}
SUPERPOINT = {
    "encoder_hidden_sizes": [8, 8, 16, 16], "decoder_hidden_size": 16, "descriptor_decoder_dim": 32,
    "max_keypoints": 6, "keypoint_threshold": 0.0,
}  # fmt: skip
SMALL = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 16}
DAC = {
    "model_type": "dac", "encoder_hidden_size": 8, "downsampling_ratios": [2, 2], "codebook_dim": 8, "hidden_size": 16,
}  # fmt: skip
OF_FRAMES = {
    "model_type": "timm_wrapper", "architecture": "vit_pe_core_tiny_patch16_384", "num_classes": 16,
    "model_args": {"embed_dim": 32, "depth": 1, "img_size": [32, 48], "num_heads": 2, "global_pool": "map"},
}  # fmt: skip
CUT = {
    "hidden_size": 32, "intermediate_size": 64, "depth": 2, "num_heads": 2, "patch_size": 4, "temporal_patch_size": 2,
    "spatial_merge_size": 2, "out_hidden_size": 32,
}  # fmt: skip


def sam3() -> dict[str, Any]:
    tower = {"model_type": "sam3_vit_model", **SQUARE, "global_attn_indexes": [1], "window_size": 2}
    return FPN | {"backbone_config": tower | {"pretrain_image_size": 64}}


def part(**more: Any) -> Callable[[], dict[str, Any]]:
    return lambda: {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64, "num_layers": 1, **more}


DETECTOR = {
    "vision_config": sam3,
    "geometry_encoder_config": part(),
    "detr_encoder_config": part(),
    "detr_decoder_config": part(num_queries=5),
    "mask_decoder_config": lambda: {"hidden_size": 32, "num_attention_heads": 2},
    "text_config": lambda: DIMS | {"vocab_size": 100, "max_position_embeddings": 16, "projection_dim": 32},
}


def told_in_words() -> Inputs:
    return (), {
        "pixel_values": images(1, 3, 64, 64),
        "input_ids": torch.tensor([[2, 5, 6, 3]]),
        "attention_mask": torch.ones(1, 4, dtype=torch.long),
    }


class Memory(nn.Module):
    """The attention of one frame to itself and to the memory of the frames before it, with the counts as numbers."""

    def __init__(self, attention: nn.Module, **counts: int) -> None:
        super().__init__()
        self.attention, self.counts = attention, counts

    def forward(self, *tensors: Tensor) -> Any:
        return self.attention(*tensors, **self.counts)


def memory_attention(file: str, name: str, options: Mapping[str, Any], **counts: int) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        ensure_torchvision()
        import transformers

        module = getattr(transformers.models, file)
        made = getattr(module, f"{name}Config")(
            memory_attention_hidden_size=32,
            memory_attention_num_layers=1,
            memory_attention_rope_feat_sizes=[4, 4],
            memory_encoder_output_channels=32,
            **{key: value() if callable(value) else value for key, value in options.items()},
        )
        made._attn_implementation = "sdpa"
        attention = getattr(getattr(module, f"modeling_{file}"), f"{name}MemoryAttention")
        return Memory(randomize(attention(made)), num_object_pointer_tokens=0, **counts)

    return build


def frame_and_memory(tokens: int) -> Callable[[], Inputs]:
    return lambda: (tuple(images(*size, 1, width) for size, width in (((16,), 32), ((tokens,), 64)) * 2), {})


FAMILIES = (
    hf("SegformerForImageClassification", "SegformerConfig", PYRAMID, "1 of 2×3", {CROSS: 3}, places=False),
    hf(
        "PPOCRV6SmallRecForTextRecognition",
        "PPOCRV6SmallRecConfig",
        LINE_OF_TEXT | {"depth": 2, "num_attention_heads": 2},
        "2 of 1×12",
        inputs=lambda: ((images(1, 3, 48, 96),), {}),
        places=False,
    ),
    hf(
        "PPOCRV6TinyRecForTextRecognition",
        "PPOCRV6TinyRecConfig",
        LINE_OF_TEXT,
        "",
        inputs=lambda: ((images(1, 3, 48, 96),), {}),
    ),
    hf(
        "Sam3VisionModel",
        "Sam3VisionConfig",
        FPN | {"backbone_config": lambda: sam3()["backbone_config"]},
        "1 of 4×4",
        {LOCAL: 1},
        size=(64, 64),
    ),
    hf("Sam3Model", "Sam3Config", DETECTOR, "", inputs=told_in_words, fails=AT_A_TENSOR),
    Entry(
        "edgetam_video.EdgeTamVideoMemoryAttention",
        "transformers",
        memory_attention(
            "edgetam_video",
            "EdgeTamVideo",
            {
                "memory_attention_mlp_hidden_size": 32,
                "memory_attention_rope_k_sizes": [2, 2],
                "vision_config": lambda: FPN | {"backbone_config": REPVIT()},
            },
            num_spatial_memory_tokens=2,
        ),
        frame_and_memory(8),
        "",
        {ONE_ROW: 1, CROSS: 1},
    ),
    Entry(
        "sam2_video.Sam2VideoMemoryAttention",
        "transformers",
        memory_attention("sam2_video", "Sam2Video", {"memory_attention_feed_forward_hidden_size": 32}),
        frame_and_memory(16),
        "",
        {ONE_ROW: 1, "q and k come into this graph as inputs": 1},
    ),
    hf(
        "SuperPointForKeypointDetection",
        "SuperPointConfig",
        SUPERPOINT,
        "",
        inputs=lambda: ((images(1, 3, 64, 64),), {}),
        fails=AT_A_SIZE,
    ),
    hf(
        "LightGlueForKeypointMatching",
        "LightGlueConfig",
        {
            "keypoint_detector_config": of_type("superpoint", **SUPERPOINT),
            "descriptor_dim": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
        },
        "",
        inputs=lambda: ((images(2, 3, 64, 64)[None],), {}),
        fails=NOT_CAPTURED,
    ),
    hf(
        "PeAudioVideoEncoder",
        "PeAudioVideoEncoderConfig",
        SMALL
        | {
            "audio_config": of_type("pe_audio_encoder", **SMALL, dac_config=dict(DAC)),
            "video_config": of_type("pe_video_encoder", **SMALL, vision_config=dict(OF_FRAMES)),
        },
        "",
        inputs=lambda: ((images(1, 1, 64), images(1, 2, 3, 32, 48)), {}),
        fails=NOT_CAPTURED,
    ),
    hf(
        "PeAudioEncoder",
        "PeAudioEncoderConfig",
        SMALL | {"dac_config": lambda: dict(DAC)},
        "",
        {"unknown token grid: it was lost at aten.conv1d.default": 1},
        inputs=lambda: ((images(1, 1, 64),), {}),
    ),
    hf(
        "inkling.InklingVisionModel",
        "InklingVisionConfig",
        {"text_hidden_size": 32, "patch_size": 8, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2},
        "",
        inputs=lambda: ((images(4, 2, 8, 8, 3),), {}),
    ),
    hf(
        "inkling2.Inkling2VisionModel",
        "Inkling2VisionConfig",
        DIMS | {"patch_size": 4, "text_hidden_size": 32, "projection_hidden_dim": 32, "posemb_grid_size": 8},
        "",
        {"lost at aten.index_copy.default": 2},
        inputs=lambda: ((images(6, 8, 8, 3), torch.tensor([[1, 2, 3]])), {}),
    ),
    hf(
        "neomme.NeoMMEModel",
        "NeoMMEConfig",
        {
            "vocab_size": 100,
            "embedding_rank": 8,
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 16,
            "patch_size": 4,
            "layer_types": ["full_attention", "sliding_attention"],
        },
        "",
        {"unknown token grid: it was lost at aten.masked_scatter.default": 2},
        inputs=lambda: ((torch.tensor([[5, 6, 6, 6, 6, 9]]),), {"pixel_values": images(3, 48)}),
    ),
    hf(
        "instructblipvideo.InstructBlipVideoVisionModel",
        "InstructBlipVideoVisionConfig",
        SQUARE,
        "2 of 1+4×4",
        size=(64, 64),
    ),
    *(
        hf(model, config_name, CUT | options, "", inputs=patches(24, 96, grid_thw=GRID), fails=NOT_CAPTURED)
        for model, config_name, options in (
            ("qwen3_5.Qwen3_5VisionModel", "Qwen3_5VisionConfig", {"num_position_embeddings": 16}),
            (
                "qwen3_vl_moe.Qwen3VLMoeVisionModel",
                "Qwen3VLMoeVisionConfig",
                {"num_position_embeddings": 16, "deepstack_visual_indexes": [0]},
            ),
            ("glm4v_moe.Glm4vMoeVisionModel", "Glm4vMoeVisionConfig", {"image_size": 16}),
        )
    ),
    hf(
        "minicpmv4_7.MiniCPMV4_7VisionModel",
        "MiniCPMV4_7VisionConfig",
        SQUARE | {"insert_layer_id": 0},
        "",
        inputs=lambda: ((images(1, 3, 64, 64), torch.tensor([[4, 4]])), {}),
        fails=NOT_CAPTURED,
    ),
)
