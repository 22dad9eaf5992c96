"""The sweep's configurations of transformers: what vision language models make of an image alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tests.zoo.case import Inputs, image_inputs, images
from tests.zoo.sweep import Entry
from tests.zoo.sweep_hf import CROSS, DIMS, HIDDEN_KEYS, LOCAL, NOT_CAPTURED, RATIO, SAM, SIZE, SQUARE, build, of_type
from tests.zoo.sweep_oracle import Size

LANGUAGE = {
    "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 2, "vocab_size": 64,
}  # fmt: skip
"""Of the language model, which does not run."""
LLAMA = of_type("llama", **LANGUAGE, head_dim=16)
SIGLIP = of_type("siglip_vision_model", **SQUARE, vision_use_head=False)
CLIP = of_type("clip_vision_model", **SQUARE)
OPT = of_type(
    "opt", hidden_size=32, num_hidden_layers=1, num_attention_heads=2, ffn_dim=32, vocab_size=64,
    word_embed_proj_dim=32,
)  # fmt: skip
VQGAN = of_type(
    "janus_vqgan", base_channels=32, channel_multiplier=[1], num_embeddings=8, latent_channels=32, num_patches=4,
    projection_dim=32, image_token_embed_dim=32, num_res_blocks=1,
)  # fmt: skip
PERCEIVER = of_type(
    "idefics2_perceiver", hidden_size=32, resampler_n_latents=4, resampler_depth=1, resampler_n_heads=2,
    resampler_head_dim=16, num_key_value_heads=1,
)  # fmt: skip
PIXTRAL = of_type("pixtral", **SQUARE, head_dim=16)


class ImageFeatures(nn.Module):
    """A vision language model of which the image's part is called alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *args: Tensor) -> Any:
        return self.model.get_image_features(*args)


def features(
    name: str,
    options: Mapping[str, Any],
    found: str,
    refused: Mapping[str, int] | None = None,
    *,
    size: Size = (64, 64),
    inputs: Callable[[], Inputs] | None = None,
    **more: Any,
) -> Entry:
    """One entry; `name` is that of the model's class without its "Model"."""
    return Entry(
        f"{name}Model.get_image_features",
        "transformers",
        lambda: ImageFeatures(build(f"{name}Model", f"{name}Config", options, None)).eval(),
        inputs or image_inputs(size),
        found,
        refused or {},
        **more,
    )


def two_images() -> Inputs:
    """Two images of one text, and which of their pixels count."""
    return (images(1, 2, 3, 64, 64), torch.ones(1, 2, 64, 64, dtype=torch.bool)), {}


def tiles() -> Inputs:
    """An image in two tiles, and its size."""
    return (images(1, 2, 3, 64, 64), torch.tensor([[64, 64]])), {}


def sized_image() -> Inputs:
    """An image and its size."""
    return (images(1, 3, *SIZE), torch.tensor([SIZE])), {}


IMAGE_FEATURES = (
    features("Llava", {"vision_config": CLIP, "text_config": LLAMA}, "2 of 1+4×4"),
    features(
        "VipLlava", {"vision_config": CLIP, "text_config": LLAMA, "vision_feature_layers": [-1, -2]}, "2 of 1+4×4"
    ),
    features(
        "LlavaNext",
        {"vision_config": CLIP, "text_config": LLAMA, "image_grid_pinpoints": [[64, 64]]},
        "",
        inputs=tiles,
        places=False,
        fails=NOT_CAPTURED,
    ),
    features(
        "LlavaOnevision",
        {
            "vision_config": SIGLIP,
            "text_config": LLAMA,
            "image_grid_pinpoints": [[64, 64]],
            "vision_aspect_ratio": "anyres_max_9",
        },
        "",
        inputs=tiles,
        places=False,
        fails=NOT_CAPTURED,
    ),
    features(
        "Mistral3",
        {"vision_config": PIXTRAL, "text_config": LLAMA},
        "",
        inputs=sized_image,
        places=False,
        fails=NOT_CAPTURED,
    ),
    features(
        "LightOnOcr",
        {"vision_config": PIXTRAL, "text_config": LLAMA},
        "",
        inputs=sized_image,
        places=False,
        fails=NOT_CAPTURED,
    ),
    features(
        "InternVL",
        {
            "vision_config": of_type("internvl_vision", **DIMS, image_size=[64, 64], patch_size=[16, 16]),
            "text_config": LLAMA,
        },
        "2 of 1+4×4",
    ),
    features("AyaVision", {"vision_config": SIGLIP, "text_config": LLAMA}, "2 of 4×4"),
    features(
        "Aria",
        {
            "vision_config": of_type("idefics3_vision", **SQUARE),
            "text_config": of_type("aria_text", **LANGUAGE, moe_num_experts=2, moe_topk=1, moe_num_shared_experts=1),
            "projector_patch_to_query_dict": {"16": 4},
        },
        "2 of 4×4",
        {CROSS: 1},
    ),
    features(
        "PaliGemma",
        {"vision_config": SIGLIP, "text_config": of_type("gemma", **LANGUAGE, head_dim=16), "projection_dim": 32},
        "2 of 4×4",
    ),
    features(
        "Gemma3",
        {
            "vision_config": SIGLIP,
            "text_config": of_type("gemma3_text", **LANGUAGE, head_dim=16),
            "mm_tokens_per_image": 4,
        },
        "2 of 4×4",
    ),
    features(
        "Cohere2Vision", {"vision_config": SIGLIP, "text_config": LLAMA, "alignment_intermediate_size": 32}, "2 of 4×4"
    ),
    features("DeepseekVL", {"vision_config": SIGLIP, "text_config": LLAMA}, "2 of 4×4"),
    features(
        "DeepseekVLHybrid",
        {
            "vision_config": SIGLIP,
            "high_res_vision_config": of_type(
                "sam_vision_model",
                **SAM
                | {"image_size": 128, "use_rel_pos": False, "num_hidden_layers": 4, "global_attn_indexes": [1, 3]},
            ),
            "text_config": LLAMA,
        },
        "2 of 4×4, 2 of 8×8",
        {LOCAL: 2},
        inputs=lambda: ((images(1, 3, 64, 64), images(1, 3, 128, 128)), {}),
        places=False,
    ),
    features(
        "Janus",
        {
            "vision_config": of_type("janus_vision_model", **RATIO, projection_dim=32),
            "text_config": LLAMA,
            "vq_config": VQGAN,
        },
        "2 of 4×4",
    ),
    features(
        "GotOcr2",
        {
            "vision_config": lambda: SAM | {"use_rel_pos": False, "image_size": 128, "output_channels": 32},
            "text_config": LLAMA,
        },
        "1 of 8×8",
        {LOCAL: 1},
        size=(128, 128),
    ),
    features(
        "Blip2",
        {
            "vision_config": lambda: dict(SQUARE),
            "qformer_config": lambda: DIMS | {"vocab_size": 50, "encoder_hidden_size": 32},
            "text_config": OPT,
            "num_query_tokens": 4,
        },
        "2 of 1+4×4",
    ),
    features(
        "Kosmos2",
        {
            "vision_config": lambda: dict(SQUARE),
            "text_config": lambda: {
                "vocab_size": 64,
                "embed_dim": 32,
                "layers": 1,
                "ffn_dim": 32,
                "attention_heads": 2,
            },
            "latent_query_num": 4,
        },
        "2 of 1+4×4",
        {CROSS: 1},
    ),
    features(
        "PerceptionLM",
        {
            "vision_config": of_type(
                "timm_wrapper",
                architecture="vit_pe_core_tiny_patch16_384",
                do_pooling=False,
                model_args={"img_size": 64, "depth": 2, "global_pool": "", "embed_dim": 192},
            ),
            "text_config": LLAMA,
        },
        "2 of 1+4×4",
        inputs=lambda: ((images(1, 2, 3, 64, 64),), {}),
        places=False,
    ),
    features(
        "Lfm2Vl",
        {
            "vision_config": of_type(
                "siglip2_vision_model", **DIMS, patch_size=16, num_patches=16, vision_use_head=False
            ),
            "text_config": LLAMA,
            "projector_hidden_size": 32,
        },
        "",
        {HIDDEN_KEYS: 2},
        inputs=lambda: ((images(1, 24, 768), torch.tensor([[4, 6]]), torch.ones(1, 24, dtype=torch.long)), {}),
        places=False,
    ),
    features(
        "Idefics2",
        {
            "vision_config": of_type("idefics2_vision", **SQUARE),
            "text_config": LLAMA,
            "perceiver_config": PERCEIVER,
        },
        "",
        {HIDDEN_KEYS: 3},
        inputs=two_images,
        places=False,
    ),
    features(
        "Idefics3",
        {"vision_config": of_type("idefics3_vision", **SQUARE), "text_config": LLAMA, "scale_factor": 2},
        "",
        {HIDDEN_KEYS: 2},
        inputs=two_images,
        places=False,
    ),
    features(
        "SmolVLM",
        {"vision_config": of_type("smolvlm_vision", **SQUARE), "text_config": LLAMA, "scale_factor": 2},
        "",
        {HIDDEN_KEYS: 2},
        inputs=lambda: ((images(1, 2, 3, 64, 64), None), {}),
        places=False,
    ),
    features(
        "ModernVBert",
        {
            "vision_config": of_type("siglip_vision_model", **SQUARE),
            "text_config": of_type("modernbert", **DIMS, vocab_size=64, pad_token_id=0),
            "pixel_shuffle_factor": 2,
        },
        "2 of 4×4",  # what the cross attention of the head gives is thrown away
        inputs=two_images,
        places=False,
    ),
)
