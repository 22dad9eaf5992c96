"""The sweep's configurations of transformers: more detectors."""

from __future__ import annotations

import torch

from tests.zoo.case import images
from tests.zoo.sweep_hf import (
    CONSTANT_MASK,
    CROSS,
    DETR,
    GATHERED,
    HIDDEN_KEYS,
    INPUT_BIAS,
    LEARNED_BIAS,
    LOCAL,
    NO_MAP,
    RATIO,
    RTDETR,
    config,
    hf,
    of_type,
    resnet,
    swin,
)

AT_A_READ_VALUE = {
    "compile with windows": "BackendCompilerFailed: backend='jetvit' raised:\nPlanError: the plan changes"
}
"""A plan is refused where Dynamo breaks in the encoder, as it does at a value that is read."""

DETECTION = (
    hf(
        "DabDetrModel",
        "DabDetrConfig",
        {name: value for name, value in DETR.items() if name != "d_model"}
        | {"backbone_config": resnet("stage4"), "hidden_size": 32},
        "2 of 4×6",
        {CROSS: 1, NO_MAP: 1},
        size=(128, 192),
        places=False,
    ),
    hf(
        "RTDetrV2Model",
        "RTDetrV2Config",
        RTDETR,
        "1 of 4×6",
        {GATHERED: 2},
        size=(128, 192),
        places=False,
        fails=AT_A_READ_VALUE,
    ),
    hf(
        "PPDocLayoutV3Model",
        "PPDocLayoutV3Config",
        RTDETR
        | {
            "x4_feat_dim": 16,
            "mask_feature_channels": [16, 16],
            "num_prototypes": 8,
            "global_pointer_head_size": 16,
            "backbone_config": resnet("stage1", "stage2", "stage3", "stage4"),
        },
        "1 of 4×6",
        {GATHERED: 1, "the batch of q or v was lost at aten.gather.default": 1},
        size=(128, 192),
        places=False,
    ),
    hf(
        "RfDetrForObjectDetection",
        "RfDetrConfig",
        {
            "backbone_config": config(
                "RfDetrDinov2Config",
                **(RATIO | {"image_size": 64, "num_windows": 2, "out_indices": [1, 2], "reshape_hidden_states": True}),
            ),
            "d_model": 32,
            "decoder_ffn_dim": 64,
            "decoder_layers": 1,
            "decoder_self_attention_heads": 2,
            "decoder_cross_attention_heads": 2,
            "num_queries": 5,
            "group_detr": 1,
            "c2f_num_blocks": 1,
        },
        "",
        {
            LOCAL: 1,
            "unknown token grid: the tokens of several images, or of several windows, stand in one sequence": 1,
            "the tokens of q or v were lost at aten.copy_.default": 1,
        },
        size=(64, 64),
        places=False,
    ),
    *(
        hf(
            f"{family}Model",
            f"{family}Config",
            {
                "backbone_config": swin(),
                "text_config": of_type(
                    "bert",
                    hidden_size=32,
                    num_hidden_layers=1,
                    num_attention_heads=2,
                    intermediate_size=32,
                    vocab_size=100,
                ),
                "d_model": 32,
                "encoder_layers": 1,
                "decoder_layers": 2,
                "encoder_attention_heads": 2,
                "decoder_attention_heads": 2,
                "encoder_ffn_dim": 64,
                "decoder_ffn_dim": 64,
                "num_queries": 5,
                "disable_custom_kernels": True,
            },
            "",
            {
                HIDDEN_KEYS: 1,
                LEARNED_BIAS: 4,
                "aten.clamp.default stands between q·kᵀ and the softmax": 2,
                INPUT_BIAS: 1,
                "the tokens of q or v were lost at aten.gather.default": 1,
                CONSTANT_MASK: 2,
                GATHERED: 1,
            },
            inputs=lambda: ((images(1, 3, 128, 128), torch.tensor([[2, 5, 6, 3]])), {}),
            places=False,
        )
        for family in ("GroundingDino", "MMGroundingDino")
    ),
)
