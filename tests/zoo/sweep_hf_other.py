"""The sweep's configurations of transformers: hierarchies, text recognition, video and others."""

from __future__ import annotations

import torch

from tests.zoo.case import images
from tests.zoo.sweep_hf import DIMS, hf, video

OTHER = (
    hf(
        "MobileViTModel",
        "MobileViTConfig",
        {
            "image_size": 64,
            "hidden_sizes": [16, 16, 16],
            "neck_hidden_sizes": [8, 8, 16, 16, 16, 16, 32],
            "num_attention_heads": 2,
        },
        "",
        {"the attention is local already": 9},
    ),
    hf(
        "LevitModel",
        "LevitConfig",
        {
            "image_size": 128,
            "hidden_sizes": [32, 48, 64],
            "num_attention_heads": [2, 2, 2],
            "depths": [1, 1, 1],
            "key_dim": [8, 8, 8],
        },
        "",
        {"a learned bias is added to the scores": 5},
        size=(128, 128),
    ),
    hf(
        "Swinv2Model",
        "Swinv2Config",
        {"image_size": 64, "embed_dim": 16, "depths": [2, 1], "num_heads": [1, 2], "window_size": 4},
        "",
        {"a learned bias is added to the scores": 2, "a constant mask is added to the scores": 1},
        size=(64, 64),
    ),
    hf(
        "CvtModel",
        "CvtConfig",
        {"embed_dim": [16, 32, 32], "num_heads": [1, 2, 2], "depth": [1, 2, 3], "drop_path_rate": [0.0, 0.0, 0.0]},
        "",
        {"cross attention": 6},
    ),
    hf(
        "MgpstrForSceneTextRecognition",
        "MgpstrConfig",
        {
            "image_size": [32, 64],
            "patch_size": 8,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "max_token_length": 5,
            "num_bpe_labels": 20,
            "num_wordpiece_labels": 20,
        },
        "2 of 1+4×8",
        size=(32, 64),
    ),
    hf(
        "TimesformerModel",
        "TimesformerConfig",
        DIMS | {"image_size": 48, "patch_size": 16, "num_frames": 2},
        "2 of 1+3×3",
        {"the attention is local already": 2},
        inputs=video(2, (48, 48)),
        places=False,
    ),
    hf(
        "VideoMAEModel",
        "VideoMAEConfig",
        DIMS | {"image_size": 48, "patch_size": 16, "num_frames": 4},
        "",
        {"unknown token grid: it was lost at aten.conv": 2},
        inputs=video(4, (48, 48)),
        places=False,
    ),
    hf(
        "VivitModel",
        "VivitConfig",
        DIMS | {"image_size": 48, "tubelet_size": [2, 16, 16], "num_frames": 4},
        "",
        {"unknown token grid: it was lost at aten.conv": 2},
        inputs=video(4, (48, 48)),
        places=False,
    ),
    hf(
        "VJEPA2Model",
        "VJEPA2Config",
        {
            "patch_size": 16,
            "crop_size": 64,
            "frames_per_clip": 2,
            "hidden_size": 64,
            "num_attention_heads": 2,
            "num_hidden_layers": 2,
            "mlp_ratio": 2,
            "pred_hidden_size": 64,
            "pred_num_attention_heads": 2,
            "pred_num_hidden_layers": 1,
            "pred_num_mask_tokens": 2,
        },
        "",
        {
            "unknown token grid: it was lost at aten.conv": 2,
            "unknown token grid: it was lost at aten.gather.default": 1,
        },
        inputs=video(2, (64, 64)),
        places=False,
    ),
    hf(
        "ASTModel",
        "ASTConfig",
        DIMS | {"max_length": 64, "num_mel_bins": 32, "frequency_stride": 16, "time_stride": 16},
        "2 of 2+2×4",
        inputs=lambda: ((images(2, 64, 32),), {}),
        places=False,
    ),
    hf(
        "ImageGPTModel",
        "ImageGPTConfig",
        {"vocab_size": 17, "n_positions": 24, "n_embd": 32, "n_layer": 2, "n_head": 2, "use_cache": False},
        "",
        {"": 2},  # of any reason: its mask is a `torch.where`
        inputs=lambda: ((torch.arange(48).reshape(2, 24) % 17,), {}),
        places=False,
        fails={"refused": "expected 2 × '', got 0"},
    ),
    hf(
        "PerceiverForImageClassificationConvProcessing",
        "PerceiverConfig",
        {
            "num_latents": 8,
            "d_latents": 32,
            "d_model": 16,
            "num_self_attends_per_block": 1,
            "num_self_attention_heads": 2,
            "num_cross_attention_heads": 1,
            "image_size": 224,
        },
        "",
        {"unknown token grid: it was lost at aten.where.ScalarOther (where)": 1, "cross attention": 1},
        size=(224, 224),
    ),
)
