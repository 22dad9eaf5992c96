"""Attention that must be left alone, wholly or in part, and near misses that a careless matcher would rewrite."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo import hf, timm_models
from tests.zoo.case import Case, Inputs, Size, grid_of, image_inputs, images
from tests.zoo.handwritten import (
    DIM,
    HEADS,
    PATCH,
    SCALE,
    SIZE,
    Attention,
    Block,
    Dinov2Attention,
    SeparateAttention,
    TinyViT,
    case,
    scale_on_product,
    sdpa,
    tiny,
)

TOKENS = 1 + SIZE[0] * SIZE[1] // PATCH**2


# --- a mask, a bias, an order, a chance -------------------------------------------------------------------------------


def sdpa_mask(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def float_mask(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    return (q @ k.transpose(-2, -1) * SCALE + mask).softmax(dim=-1) @ v


def bool_mask(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    return (q @ k.transpose(-2, -1) * SCALE).masked_fill(~mask, float("-inf")).softmax(dim=-1) @ v


def inplace_mask(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    scores = q @ k.transpose(-2, -1) * SCALE
    scores += mask
    return scores.softmax(dim=-1) @ v


def baddbmm_mask(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    b, h, n, d = q.shape
    q, k, v = (t.reshape(b * h, n, d) for t in (q, k, v))
    scores = torch.baddbmm(mask.expand(b, h, n, n).reshape(b * h, n, n), q, k.transpose(1, 2), alpha=SCALE)
    return torch.bmm(scores.softmax(dim=-1), v).view(b, h, n, d)


def causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def triu_mask(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    n = q.shape[-2]
    future = torch.triu(torch.full((n, n), float("-inf"), device=q.device), diagonal=1)
    return (q @ k.transpose(-2, -1) * SCALE + future).softmax(dim=-1) @ v


def sdpa_dropout(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, dropout_p=0.1)


class DropoutAttention(Dinov2Attention):
    def __init__(self) -> None:
        super().__init__()
        self.attn_drop = nn.Dropout(0.1)


class LearnedBiasAttention(Attention):
    """A learned bias for every pair of tokens."""

    def __init__(self) -> None:
        super().__init__(float_mask)
        self.bias = nn.Parameter(torch.empty(1, HEADS, TOKENS, TOKENS))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x, self.bias)


# --- other products than softmax(q·kᵀ·scale)·v ------------------------------------------------------------------------


def softmax_over_queries(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.transpose(-2, -1) * SCALE).softmax(dim=-2) @ v


def channel_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """XCiT: channels attend to channels."""
    q, k, v = (t.transpose(-2, -1) for t in (q, k, v))
    return ((q @ k.transpose(-2, -1) * SCALE).softmax(dim=-1) @ v).transpose(-2, -1)


def edited_weights(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = (q @ k.transpose(-2, -1) * SCALE).softmax(dim=-1)
    weights[:, :, :, 0] = 0
    return weights @ v


class TalkingHeadsAttention(Attention):
    """Mixes the scores of the heads before the softmax and the weights after it."""

    def __init__(self) -> None:
        super().__init__(self.talk)
        self.before, self.after = nn.Linear(HEADS, HEADS), nn.Linear(HEADS, HEADS)

    def talk(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = self.before((q @ k.transpose(-2, -1) * SCALE).permute(0, 2, 3, 1))
        weights = self.after(scores.softmax(dim=-2))
        return weights.permute(0, 3, 1, 2) @ v


# --- weights that are used elsewhere ----------------------------------------------------------------------------------


class WeightsAttention(Attention):
    """Gives its weights beside its output."""

    def __init__(self) -> None:
        super().__init__(scale_on_product)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        q, k, v = self.split(x)
        weights = (q @ k.transpose(-2, -1) * SCALE).softmax(dim=-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(x.shape)), weights


class WeightsMHA(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mha = nn.MultiheadAttention(DIM, HEADS, batch_first=True)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.mha(x, x, x, average_attn_weights=False)


class WeightsBlock(Block):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        out, weights = self.attn(self.norm1(x))
        x = x + out
        return x + self.mlp(self.norm2(x)), weights


class WeightsViT(TinyViT):
    """Returns what the first token attends to in the last block, beside its tokens."""

    def __init__(self, attention: Callable[[], nn.Module]) -> None:
        super().__init__(attention, block=WeightsBlock)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        x = self.tokens(image)
        for block in self.blocks:
            x, weights = block(x)
        return self.norm(x), weights[:, :, 0, 1:]


# --- other tokens than an image's -------------------------------------------------------------------------------------


class CrossAttention(SeparateAttention):
    """Queries from one stream, keys and values from the other."""

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        out = self.attend(self.heads(self.q(x)), self.heads(self.k(other)), self.heads(self.v(other)))
        return self.o(out.transpose(1, 2).reshape(x.shape))


class CrossMHA(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mha = nn.MultiheadAttention(DIM, HEADS, batch_first=True)

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        return self.mha(x, other, other, need_weights=False)[0]


class TwoImageViT(TinyViT):
    """Tokens of one image attend to those of a second image of the same size."""

    def forward(self, image: Tensor, other: Tensor) -> Tensor:
        return super().forward(image, self.tokens(other))


class ReducedKeyAttention(SeparateAttention):
    """PVT: keys and values of every second row and column; no extra tokens, a fixed grid."""

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = SIZE[0] // PATCH, SIZE[1] // PATCH
        grid = x.transpose(1, 2).unflatten(-1, (rows, columns))
        reduced = F.avg_pool2d(grid, 2).flatten(2).transpose(1, 2)
        out = self.attend(self.heads(self.q(x)), self.heads(self.k(reduced)), self.heads(self.v(reduced)))
        return self.o(out.transpose(1, 2).reshape(x.shape))


class WindowAttention(Attention):
    """Swin's windows of 2 by 2 tokens without its bias; no extra tokens, a fixed grid."""

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        rows, columns = SIZE[0] // PATCH // 2, SIZE[1] // PATCH // 2
        x = x.view(b, rows, 2, columns, 2, c).transpose(2, 3).reshape(b * rows * columns, 4, c)
        return super().forward(x).view(b, rows, columns, 2, 2, c).transpose(2, 3).reshape(b, n, c)


class TokenModel(nn.Module):
    """Blocks on [batch, token, dim] that come from outside: a text model, say."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(Dinov2Attention()) for _ in range(2))

    def forward(self, tokens: Tensor) -> Tensor:
        for block in self.blocks:
            tokens = block(tokens)
        return tokens


class PrunedViT(TinyViT):
    """After the first block, keeps the half of the tokens with the largest norm."""

    def forward(self, image: Tensor) -> Tensor:
        x = self.blocks[0](self.tokens(image))
        kept = x.norm(dim=-1).topk(x.shape[1] // 2, dim=1).indices
        x = x.gather(1, kept.unsqueeze(-1).expand(-1, -1, DIM))
        return self.norm(self.blocks[1](x))


class PooledViT(TinyViT):
    """After the first block, averages neighbours in the order of tokens, which no grid has."""

    def forward(self, image: Tensor) -> Tensor:
        x = self.blocks[0](self.tokens(image))
        x = F.avg_pool1d(x.transpose(1, 2), 2).transpose(1, 2)
        return self.norm(self.blocks[1](x))


class VideoViT(nn.Module):
    """Tubelets of two frames; all tokens of all frames attend to each other."""

    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = nn.Conv3d(3, DIM, (2, PATCH, PATCH), (2, PATCH, PATCH))
        self.blocks = nn.ModuleList(Block(Dinov2Attention()) for _ in range(2))

    def forward(self, video: Tensor) -> Tensor:
        x = self.patch_embed(video).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = block(x)
        return x


# --- inputs -----------------------------------------------------------------------------------------------------------


def mask_inputs(boolean: bool) -> Callable[..., Inputs]:
    def inputs(batch: int = 2, size: Size = SIZE, dtype: torch.dtype = torch.float32) -> Inputs:
        n = 1 + size[0] * size[1] // PATCH**2
        mask = images(batch, 1, n, n, dtype=dtype, seed=1)
        return (images(batch, 3, *size, dtype=dtype), mask > -1 if boolean else mask), {}

    return inputs


def two_image_inputs(batch: int = 2, size: Size = SIZE, dtype: torch.dtype = torch.float32) -> Inputs:
    return tuple(images(batch, 3, *size, dtype=dtype, seed=seed) for seed in (0, 1)), {}


def token_inputs(batch: int = 2, size: Size = SIZE, dtype: torch.dtype = torch.float32) -> Inputs:
    return (images(batch, size[0] * size[1] // PATCH**2, DIM, dtype=dtype),), {}


def video_inputs(batch: int = 2, size: Size = SIZE, dtype: torch.dtype = torch.float32) -> Inputs:
    return (images(batch, 3, 4, *size, dtype=dtype),), {}


# --- the cases --------------------------------------------------------------------------------------------------------


def refuse(name: str, build: Callable[[], nn.Module], *rejections: str, **changes: Any) -> Case:
    """A hand-written case without sites, but for `changes`."""
    return case(name, build, **({"sites": 0, "names": (), "rejections": rejections, "dynamic": "batch"} | changes))


def library(name: str, build: Callable[[], nn.Module], *rejections: str, **changes: Any) -> Case:
    """A case without sites from transformers or timm, of one size."""
    fields = {
        "inputs": image_inputs((32, 32)),
        "size": (32, 32),
        "oblong": None,
        "sites": 0,
        "num_heads": 2,
        "head_dim": 16,
        "grid": grid_of(PATCH),
        "rejections": rejections,
        "dynamic": "batch",
    }
    return Case(name, build, **(fields | changes))


def beit(kind: str) -> nn.Module:
    return hf.model("BeitModel", "BeitConfig", kind, **hf.SHAPE, use_relative_position_bias=True)


def sam(kind: str) -> nn.Module:
    """One block with windows of 2 by 2 tokens and one global block."""
    options = hf.SHAPE | {"window_size": 2, "global_attn_indexes": [1], "mlp_dim": 64, "output_channels": 16}
    del options["intermediate_size"]
    return hf.model("SamVisionModel", "SamVisionConfig", kind, **options)


def hf_swin(kind: str) -> nn.Module:
    options = {"image_size": 32, "patch_size": 4, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 2]}
    return hf.model("SwinModel", "SwinConfig", kind, **options, window_size=4)


def timm_swin() -> nn.Module:
    options = {"img_size": 32, "patch_size": 4, "embed_dim": 16, "depths": (2, 2), "num_heads": (2, 2)}
    return timm_models.model("swin_tiny_patch4_window7_224", True, **options, window_size=4, num_classes=0)


MASK = "mask|bias"
WINDOW = "window|local|bias|grid"
MASKED = partial(refuse, inputs=mask_inputs(boolean=False))
NO_PREFIX = {"extra_before": 0, "oblong": None}

CASES = (
    library("hf_beit_sdpa", lambda: beit("sdpa"), MASK, extra_before=1),
    library("hf_beit_eager", lambda: beit("eager"), MASK, extra_before=1),
    library("hf_sam_sdpa", lambda: sam("sdpa"), WINDOW, MASK),
    library("hf_sam_eager", lambda: sam("eager"), WINDOW, MASK),
    library("hf_swin", lambda: hf_swin("eager"), WINDOW, head_dim=8),
    library("timm_swin", timm_swin, WINDOW, head_dim=8),
    library(
        "hf_vit_output_attentions",
        lambda: hf.model("ViTModel", "ViTConfig", "eager", **hf.SHAPE),
        "weights",
        inputs=image_inputs((32, 32), output_attentions=True),
        extra_before=1,
    ),
    MASKED("sdpa_mask", tiny(sdpa_mask), MASK),
    MASKED("float_mask", tiny(float_mask), MASK),
    MASKED("inplace_mask", tiny(inplace_mask), MASK + "|in-place|mutat"),
    MASKED("baddbmm_mask", tiny(baddbmm_mask), MASK),
    refuse("sdpa_bool_mask", tiny(sdpa_mask), "mask", inputs=mask_inputs(boolean=True)),
    refuse("bool_mask", tiny(bool_mask), "mask", inputs=mask_inputs(boolean=True)),
    refuse("learned_bias", lambda: TinyViT(LearnedBiasAttention), MASK, oblong=None),
    refuse("causal", tiny(causal), "causal"),
    refuse("triu_mask", tiny(triu_mask), MASK),
    refuse("sdpa_dropout", tiny(sdpa_dropout), "dropout"),
    refuse("dropout_in_training", lambda: TinyViT(DropoutAttention), "dropout", training=True),
    refuse("softmax_over_queries", tiny(softmax_over_queries), "softmax|axis|dim"),
    refuse("channel_attention", tiny(channel_attention), "channel|layout|axis|token|head|dim|grid"),
    refuse("edited_weights", tiny(edited_weights), "weights|in-place|mutat"),
    refuse("talking_heads", lambda: TinyViT(TalkingHeadsAttention), "weights|scores|softmax|product"),
    refuse(
        "weights_returned",
        lambda: WeightsViT(WeightsAttention),
        "weights",
        sites=1,
        names=("blocks.0.attn",),
    ),
    refuse(
        "mha_weights_returned",
        lambda: WeightsViT(WeightsMHA),
        "weights",
        sites=1,
        names=("blocks.0.attn.mha",),
    ),
    refuse("cross_attention", lambda: TwoImageViT(CrossAttention), "cross", inputs=two_image_inputs),
    refuse("cross_mha", lambda: TwoImageViT(CrossMHA), "cross", inputs=two_image_inputs),
    refuse("reduced_keys", lambda: TinyViT(ReducedKeyAttention, before=0), "cross|key|grid|token", **NO_PREFIX),
    refuse("windows", lambda: TinyViT(partial(WindowAttention, sdpa), before=0), WINDOW, **NO_PREFIX),
    refuse("text_tokens", TokenModel, "grid", inputs=token_inputs, extra_before=0),
    refuse("video_tokens", VideoViT, "grid", inputs=video_inputs, extra_before=0),
    refuse("pruned_tokens", lambda: PrunedViT(Dinov2Attention), "grid", sites=1, names=("blocks.0.attn",)),
    refuse("pooled_tokens", lambda: PooledViT(Dinov2Attention), "grid", sites=1, names=("blocks.0.attn",)),
)
