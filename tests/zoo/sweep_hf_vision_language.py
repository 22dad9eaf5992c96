"""The sweep's configurations of transformers: vision towers of vision language models."""

from __future__ import annotations

import torch

from tests.zoo.case import images
from tests.zoo.sweep_hf import (
    CONSTANT_MASK,
    DIMS,
    GRID,
    HIDDEN_KEYS,
    INPUT_BIAS,
    INTERPOLATE,
    LOCAL,
    NOT_CAPTURED,
    ONE_ROW,
    RATIO,
    SAM,
    SIZE,
    SQUARE,
    hf,
    patches,
)
from tests.zoo.sweep_hf_towers import IN_PATCHES

INTERNVL = DIMS | {"image_size": [64, 64], "patch_size": [16, 16]}
PIXTRAL = SQUARE | {"head_dim": 16}
POSITIONS = torch.stack(torch.meshgrid(torch.arange(6), torch.arange(6), indexing="xy"), -1).reshape(1, 36, 2)
CAUSAL_IN_EAGER = {
    "export without a plan": "CaptureError: what torch.export captured of Phi4MultimodalVisionModel does not compute "
    "what the model does",
    "compile without a plan": "differs by 0.4",
}
"""Of a model that drops a mask that hides nothing, and is causal then, but not while it is captured: transformers'
own torch.compile(backend="eager") differs as much."""

VISION_LANGUAGE = (
    hf("ChineseCLIPVisionModel", "ChineseCLIPVisionConfig", SQUARE, "2 of 1+4×6", kwargs=INTERPOLATE),
    *(
        hf(f"{name}Model", f"{config_name}Config", SQUARE, "2 of 1+4×4", size=(64, 64))
        for name, config_name in (
            ("MetaClip2Vision", "MetaClip2Vision"),
            ("AltCLIPVision", "AltCLIPVision"),
            ("FlavaImage", "FlavaImage"),
            ("CLIPSegVision", "CLIPSegVision"),
            ("git.GitVision", "GitVision"),
        )
    ),
    hf("idefics3.Idefics3VisionTransformer", "Idefics3VisionConfig", SQUARE, "2 of 4×4", size=(64, 64)),
    hf("smolvlm.SmolVLMVisionTransformer", "SmolVLMVisionConfig", SQUARE, "2 of 4×4", size=(64, 64)),
    hf("JanusVisionModel", "JanusVisionConfig", RATIO, "2 of 4×4", size=(64, 64)),
    hf("InternVLVisionModel", "InternVLVisionConfig", INTERNVL, "2 of 1+4×6", name="InternVLVisionModel base"),
    hf(
        "InternVLVisionModel",
        "InternVLVisionConfig",
        INTERNVL | {"use_absolute_position_embeddings": False},
        "2 of 1+4×6",
        name="InternVLVisionModel no positions",
    ),
    hf(
        "step3p7.Step3p7VisionModel",
        "Step3p7VisionConfig",
        SQUARE | {"max_position_embeddings": 16},
        "2 of 4×4",
        size=(64, 64),
    ),
    hf("ovis2.Ovis2VisionModel", "Ovis2VisionConfig", SQUARE | {"vocab_size": 40}, "2 of 4×4", size=(64, 64)),
    hf(
        "AlignVisionModel",
        "AlignVisionConfig",
        {"image_size": 64, "width_coefficient": 0.2, "depth_coefficient": 0.2, "hidden_dim": 64},
        "",
        size=(64, 64),
    ),
    hf(
        "gemma4.Gemma4VisionModel",
        "Gemma4VisionConfig",
        DIMS
        | {
            "num_key_value_heads": 2,
            "head_dim": 16,
            "patch_size": 4,
            "position_embedding_size": 16,
            "pooling_kernel_size": 3,
        },
        "",
        {HIDDEN_KEYS: 2},
        inputs=lambda: ((images(1, 36, 48), POSITIONS), {}),
        places=False,
    ),
    hf(
        "TimmWrapperModel",
        "TimmWrapperConfig",
        {
            "architecture": "fastvit_mci3",
            "do_pooling": False,
            "model_args": {"layers": [1, 1, 1, 1, 1], "embed_dims": [16, 16, 16, 32, 32]},
        },
        "1 of 8×8, 1 of 4×4",
        size=(256, 256),
        name="TimmWrapperModel fastvit_mci3 of FastVLM",
        places=False,
    ),
    hf(
        "molmo2.Molmo2VisionModel",
        "Molmo2VisionConfig",
        DIMS
        | {
            "num_key_value_heads": 2,
            "head_dim": 16,
            "patch_size": 4,
            "image_size": [16, 24],
            "num_position_embeddings": 24,
        },
        "",
        {ONE_ROW: 2},
        inputs=lambda: ((images(2, 24, 48),), {}),
        places=False,
    ),
    hf(
        "minimax_m3_vl.MiniMaxM3VLVisionModel",
        "MiniMaxM3VLVisionConfig",
        DIMS | {"patch_size": 4, "image_size": 32},
        "",
        {ONE_ROW: 2},
        inputs=patches(24, 96, grid_thw=GRID),
        places=False,
    ),
    hf(
        "kosmos2_5.Kosmos2_5VisionModel",
        "Kosmos2_5VisionConfig",
        {
            "hidden_size": 32,
            "patch_embed_hidden_size": 48,
            "intermediate_size": 64,
            "head_dim": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "max_num_patches": 24,
        },
        "",
        {INPUT_BIAS: 2},
        inputs=lambda: ((images(1, 24, 50).abs().round(),), {}),
        places=False,
    ),
    hf(
        "deepseek_ocr2.DeepseekOcr2VisionModel",
        "DeepseekOcr2VisionConfig",
        {
            "sam_config": SAM | {"use_rel_pos": False, "downsample_channels": [16, 32], "image_size": 128},
            "encoder_config": DIMS | {"num_key_value_heads": 2, "vocab_size": 8},
        },
        "1 of 8×8",
        {LOCAL: 1, HIDDEN_KEYS: 2},
        size=(128, 128),
    ),
    hf(
        "PixtralVisionModel",
        "PixtralVisionConfig",
        PIXTRAL,
        "",
        {CONSTANT_MASK: 2},
        inputs=lambda: ((images(2, 3, *SIZE),), {"image_sizes": [SIZE, SIZE]}),
        name="PixtralVisionModel two images",
    ),
    hf(
        "PixtralVisionModel",
        "PixtralVisionConfig",
        PIXTRAL,
        "",
        inputs=lambda: ((images(1, 3, *SIZE),), {"image_sizes": torch.tensor([SIZE])}),
        name="PixtralVisionModel sizes in a tensor",
        fails=NOT_CAPTURED,
    ),
    hf(
        "phi4_multimodal.Phi4MultimodalVisionModel",
        "Phi4MultimodalVisionConfig",
        SQUARE,
        "",
        {HIDDEN_KEYS: 2, INPUT_BIAS: 1},
        inputs=lambda: ((images(1, 3, 64, 64), torch.ones(1, 4, 4, dtype=torch.bool)), {}),
        fails=CAUSAL_IN_EAGER,
    ),
    hf(
        "phi4_multimodal.Phi4MultimodalVisionModel",
        "Phi4MultimodalVisionConfig",
        SQUARE,
        "",
        {HIDDEN_KEYS: 2, INPUT_BIAS: 1},
        inputs=lambda: ((images(1, 3, 64, 64), torch.arange(4).expand(1, 4, 4) < 3), {}),
        name="phi4_multimodal.Phi4MultimodalVisionModel three columns",
    ),
    hf(
        "kimi_k25.Kimi_K25VisionModel",
        "Kimi_K25VisionConfig",
        DIMS | {"patch_size": 4, "pos_emb_height": 8, "pos_emb_width": 8},
        "",
        inputs=patches(24, 3, 4, 4, grid_thw=GRID),
        places=False,
        fails=NOT_CAPTURED,
    ),
    hf(
        "minicpmv4_6.MiniCPMV4_6VisionModel",
        "MiniCPMV4_6VisionConfig",
        SQUARE | {"insert_layer_id": 0},
        "",
        inputs=lambda: ((images(1, 3, 64, 96), torch.tensor([[4, 6]])), {}),
        fails=NOT_CAPTURED,
    ),
    hf(
        "paddleocr_vl.PaddleOCRVisionTransformer",
        "PaddleOCRVisionConfig",
        DIMS | {"patch_size": 4, "image_size": 32},
        "",
        inputs=lambda: ((images(1, 24, 3, 4, 4),), {"grid_thw": GRID}),
        places=False,
        fails=NOT_CAPTURED,
    ),
    hf(
        "hunyuan_vl.HunYuanVLVisionTransformer",
        "HunYuanVLVisionConfig",
        DIMS
        | {
            "num_key_value_heads": 2,
            "patch_size": 4,
            "max_image_size": 32,
            "out_hidden_size": 32,
            "text_hidden_size": 32,
        },
        "",
        inputs=patches(24, 48, grid_thw=GRID),
        places=False,
        fails=NOT_CAPTURED,
    ),
    hf(
        "glm_ocr.GlmOcrVisionModel",
        "GlmOcrVisionConfig",
        IN_PATCHES | {"image_size": 16},
        "",
        inputs=patches(24, 96, grid_thw=GRID),
        places=False,
        fails=NOT_CAPTURED,
    ),
    hf(
        "glm_image.GlmImageVisionModel",
        "GlmImageVisionConfig",
        {name: value for name, value in IN_PATCHES.items() if name != "out_hidden_size"} | {"image_size": 16},
        "",
        inputs=patches(24, 48, grid_thw=GRID),
        places=False,
        fails=NOT_CAPTURED,
    ),
    hf(
        "video_llama_3.VideoLlama3VisionModel",
        "VideoLlama3VisionConfig",
        DIMS | {"patch_size": 4},
        "",
        inputs=patches(24, 48, grid_thw=GRID, merge_sizes=torch.tensor([2])),
        places=False,
        fails=NOT_CAPTURED,
    ),
)
