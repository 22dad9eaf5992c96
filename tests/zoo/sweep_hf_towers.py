"""The sweep's configurations of transformers: image towers of language and vision models."""

from __future__ import annotations

import torch

from tests.zoo.case import images
from tests.zoo.sweep_hf import (
    CROSS,
    DIMS,
    GRID,
    HIDDEN_KEYS,
    INPUT_BIAS,
    INTERPOLATE,
    LOCAL,
    NO_MAP,
    NOT_CAPTURED,
    ONE_ROW,
    SAM,
    SIZE,
    SQUARE,
    hf,
    patches,
    siglip2,
)

IN_PATCHES = {
    "depth": 2,
    "hidden_size": 32,
    "out_hidden_size": 32,
    "intermediate_size": 64,
    "num_heads": 2,
    "patch_size": 4,
}
"""Of the towers that take the patches of several images in a row."""

TOWERS = (
    hf("CLIPVisionModel", "CLIPVisionConfig", SQUARE, "2 of 1+4×4", size=(64, 64)),
    hf("SiglipVisionModel", "SiglipVisionConfig", SQUARE, "2 of 4×6", {CROSS: 1}, kwargs=INTERPOLATE),
    hf(
        "Siglip2VisionModel",
        "Siglip2VisionConfig",
        DIMS | {"patch_size": 16, "num_patches": 16},
        "",
        {HIDDEN_KEYS: 2, INPUT_BIAS: 1},
        inputs=siglip2,
        places=False,
    ),
    hf("BlipVisionModel", "BlipVisionConfig", SQUARE, "2 of 1+4×4", size=(64, 64)),
    hf("Blip2VisionModel", "Blip2VisionConfig", SQUARE, "2 of 1+4×6", kwargs=INTERPOLATE),
    hf(
        "XCLIPVisionModel",
        "XCLIPVisionConfig",
        SQUARE | {"num_frames": 2, "mit_hidden_size": 32, "mit_intermediate_size": 64, "mit_num_attention_heads": 2},
        "2 of 1+4×4+1",
        {ONE_ROW: 2},
        size=(64, 64),
    ),
    hf("OwlViTVisionModel", "OwlViTVisionConfig", SQUARE, "2 of 1+4×4", size=(64, 64)),
    hf(
        "GroupViTVisionModel",
        "GroupViTVisionConfig",
        DIMS
        | {
            "image_size": 64,
            "patch_size": 16,
            "num_hidden_layers": 3,
            "depths": [1, 1, 1],
            "num_group_tokens": [8, 4, 0],
            "num_output_groups": [8, 4, 4],
        },
        "1 of 4×4+8",
        {
            CROSS: 2,
            "the attention weights are used by": 2,
            NO_MAP: 2,
        },
        size=(64, 64),
    ),
    hf("Aimv2VisionModel", "Aimv2VisionConfig", SQUARE, "2 of 4×4", {CROSS: 1}, size=(64, 64)),
    hf(
        "Aimv2VisionModel",
        "Aimv2VisionConfig",
        SQUARE | {"is_native": True, "use_head": False},
        "2 of 4×6",
        name="Aimv2VisionModel native",
    ),
    hf(
        "InternVLVisionModel",
        "InternVLVisionConfig",
        DIMS | {"image_size": [64, 64], "patch_size": [16, 16], "use_qk_norm": True, "norm_type": "rms_norm"},
        "2 of 1+4×6",
        name="InternVLVisionModel qk norm",
    ),
    hf(
        "PixtralVisionModel",
        "PixtralVisionConfig",
        SQUARE | {"head_dim": 16},
        "2 of 4×6",
        inputs=lambda: ((images(1, 3, *SIZE),), {"image_sizes": [SIZE]}),
    ),
    hf(
        "qwen2_vl.Qwen2VisionTransformerPretrainedModel",
        "Qwen2VLVisionConfig",
        {"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "patch_size": 4, "mlp_ratio": 2},
        "",
        inputs=patches(24, 96, grid_thw=GRID),
        places=False,
        fails=NOT_CAPTURED,
    ),
    hf(
        "qwen2_5_vl.Qwen2_5_VisionTransformerPretrainedModel",
        "Qwen2_5_VLVisionConfig",
        IN_PATCHES
        | {
            "window_size": 16,
            "fullatt_block_indexes": [1],
        },
        "",
        inputs=patches(24, 96, grid_thw=GRID),
        places=False,
        fails=NOT_CAPTURED,
    ),
    hf(
        "qwen3_vl.Qwen3VLVisionModel",
        "Qwen3VLVisionConfig",
        IN_PATCHES
        | {
            "num_position_embeddings": 16,
            "deepstack_visual_indexes": [0],
        },
        "",
        inputs=patches(24, 96, grid_thw=GRID),
        places=False,
        fails=NOT_CAPTURED,
    ),
    hf(
        "glm4v.Glm4vVisionModel",
        "Glm4vVisionConfig",
        IN_PATCHES
        | {
            "image_size": 16,
        },
        "",
        inputs=patches(24, 96, grid_thw=GRID),
        places=False,
        fails=NOT_CAPTURED,
    ),
    hf(
        "got_ocr2.GotOcr2VisionEncoder",
        "GotOcr2VisionConfig",
        SAM | {"use_rel_pos": False},
        "1 of 4×4",
        {LOCAL: 1},
        size=(64, 64),
    ),
    hf("MLCDVisionModel", "MLCDVisionConfig", SQUARE, "2 of 1+4×4", size=(64, 64)),
    hf(
        "idefics2.Idefics2VisionTransformer",
        "Idefics2VisionConfig",
        SQUARE,
        "2 of 4×4",
        size=(64, 64),
    ),
    hf(
        "bridgetower.BridgeTowerVisionModel",
        "BridgeTowerVisionConfig",
        {"hidden_size": 64, "num_hidden_layers": 2, "patch_size": 16, "image_size": 64},
        "2 of 1+4×4",
        size=(64, 64),
    ),
    hf(
        "Llama4VisionModel",
        "Llama4VisionConfig",
        SQUARE
        | {"intermediate_size": 128, "vision_output_dim": 64, "projector_input_dim": 64, "projector_output_dim": 64},
        "2 of 4×4+1",
        size=(64, 64),
    ),
    hf(
        "MllamaVisionModel",
        "MllamaVisionConfig",
        {
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_global_layers": 1,
            "attention_heads": 2,
            "intermediate_size": 64,
            "vision_output_dim": 64,
            "image_size": 64,
            "patch_size": 16,
            "max_num_tiles": 4,
            "intermediate_layers_indices": [0],
        },
        "",
        {INPUT_BIAS: 3},
        inputs=lambda: ((images(1, 1, 4, 3, 64, 64), torch.tensor([[2]]), torch.ones(1, 1, 4, dtype=torch.long)), {}),
        places=False,
    ),
    hf(
        "Pix2StructVisionModel",
        "Pix2StructVisionConfig",
        {
            "hidden_size": 32,
            "patch_embed_hidden_size": 48,
            "d_ff": 64,
            "d_kv": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "seq_len": 24,
        },
        "",
        {HIDDEN_KEYS: 2},
        inputs=lambda: ((images(1, 24, 50).abs().round(),), {}),
        places=False,
    ),
)
