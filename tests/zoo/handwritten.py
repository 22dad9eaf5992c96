"""Hand-written attention: one tiny Vision Transformer, and the ways in which people write what happens inside it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo.case import Case, Inputs, Size, grid_of, image_inputs, images, randomize

DIM, HEADS, HEAD_DIM, PATCH = 32, 2, 16, 8
SCALE = HEAD_DIM**-0.5
SIZE, OBLONG = (32, 48), (48, 24)


# --- scaffolding ------------------------------------------------------------------------------------------------------


class ConvPatches(nn.Module):
    """Image to patch tokens [batch, h·w, dim] and the grid (h, w), by a convolution with stride = kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, DIM, PATCH, PATCH)

    def forward(self, image: Tensor) -> tuple[Tensor, Size]:
        x = self.proj(image)
        return x.flatten(2).transpose(1, 2), x.shape[-2:]


class ReshapePatches(nn.Module):
    """The same by reshape and permute, as einops' `b c (h p) (w q) -> b (h w) (p q c)`, then a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(3 * PATCH * PATCH, DIM)

    def forward(self, image: Tensor) -> tuple[Tensor, Size]:
        b, c, height, width = image.shape
        h, w = height // PATCH, width // PATCH
        x = image.reshape(b, c, h, PATCH, w, PATCH).permute(0, 2, 4, 3, 5, 1)
        return self.proj(x.reshape(b, h * w, PATCH * PATCH * c)), (h, w)


class UnfoldPatches(nn.Module):
    """The same by `F.unfold`, then a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(3 * PATCH * PATCH, DIM)

    def forward(self, image: Tensor) -> tuple[Tensor, Size]:
        x = F.unfold(image, kernel_size=PATCH, stride=PATCH).transpose(1, 2)
        return self.proj(x), (image.shape[-2] // PATCH, image.shape[-1] // PATCH)


class Block(nn.Module):
    def __init__(self, attn: nn.Module) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(DIM), nn.LayerNorm(DIM)
        self.attn = attn
        self.mlp = nn.Sequential(nn.Linear(DIM, 2 * DIM), nn.GELU(), nn.Linear(2 * DIM, DIM))

    def forward(self, x: Tensor, *context: Any) -> Tensor:
        x = x + self.attn(self.norm1(x), *context)
        return x + self.mlp(self.norm2(x))


class TinyViT(nn.Module):
    """A pre-norm Vision Transformer for any image size.

    `attention()` makes a block's attention module, which is called with the tokens and with whatever the model was
    called with after the image.
    """

    def __init__(
        self,
        attention: Callable[[], nn.Module],
        *,
        patches: Callable[[], nn.Module] = ConvPatches,
        before: int = 1,
        after: int = 0,
        depth: int = 2,
        block: Callable[[nn.Module], nn.Module] = Block,
    ) -> None:
        super().__init__()
        self.patch_embed = patches()
        self.pos_embed = nn.Parameter(torch.empty(1, DIM, 4, 4))
        self.before = nn.Parameter(torch.empty(1, before, DIM)) if before else None
        self.after = nn.Parameter(torch.empty(1, after, DIM)) if after else None
        self.blocks = nn.ModuleList(block(attention()) for _ in range(depth))
        self.norm = nn.LayerNorm(DIM)

    def tokens(self, image: Tensor) -> Tensor:
        x, grid = self.patch_embed(image)
        x = x + F.interpolate(self.pos_embed, size=grid, mode="bilinear").flatten(2).transpose(1, 2)
        parts = [x]
        if self.before is not None:
            parts.insert(0, self.before.expand(x.shape[0], -1, -1))
        if self.after is not None:
            parts.append(self.after.expand(x.shape[0], -1, -1))
        return torch.cat(parts, dim=1) if len(parts) > 1 else x

    def forward(self, image: Tensor, *context: Any) -> Tensor:
        x = self.tokens(image)
        for block in self.blocks:
            x = block(x, *context)
        return self.norm(x)


class Attention(nn.Module):
    """Packed projections around `attend(q, k, v)`, all [batch, head, token, head_dim]."""

    def __init__(self, attend: Callable[[Tensor, Tensor, Tensor], Tensor], num_heads: int = HEADS) -> None:
        super().__init__()
        self.attend, self.num_heads = attend, num_heads
        self.qkv, self.proj = nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM)

    def split(self, x: Tensor) -> tuple[Tensor, ...]:
        b, n, _ = x.shape
        return self.qkv(x).reshape(b, n, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)

    def forward(self, x: Tensor, *context: Any) -> Tensor:
        return self.proj(self.attend(*self.split(x), *context).transpose(1, 2).reshape(x.shape))


# --- the product: q, k, v [batch, head, token, head_dim] in and out ---------------------------------------------------


def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v)


def sdpa_scaled(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, scale=0.4)


def scale_on_q(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q * SCALE @ k.transpose(-2, -1)).softmax(dim=-1) @ v


def scale_on_k(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ (k * SCALE).transpose(-2, -1)).softmax(dim=-1) @ v


def scale_on_k_transposed(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ (k.transpose(-2, -1) * SCALE)).softmax(dim=-1) @ v


def scale_on_both(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    root = SCALE**0.5
    return ((q * root) @ (k * root).transpose(-2, -1)).softmax(dim=-1) @ v


def scale_on_product(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (SCALE * torch.matmul(q, k.mT)).softmax(dim=-1) @ v


def scale_by_division(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.transpose(-2, -1) / HEAD_DIM**0.5).softmax(dim=-1) @ v


def scale_by_division_of_q(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q / HEAD_DIM**0.5 @ k.transpose(-2, -1)).softmax(dim=-1) @ v


def no_scale(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.transpose(-2, -1)).softmax(dim=-1) @ v


def softmax_in_fp32(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = q @ k.transpose(-2, -1) * SCALE
    return scores.float().softmax(dim=-1).to(q.dtype) @ v


def softmax_dtype_argument(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = q @ k.transpose(-2, -1) * SCALE
    return F.softmax(scores, dim=-1, dtype=torch.float32).type_as(v) @ v


def einsum_bhqd(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = (torch.einsum("bhqd,bhkd->bhqk", q, k) * SCALE).softmax(dim=-1)
    return torch.einsum("bhqk,bhkd->bhqd", weights, v)


def einsum_bqhd(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    weights = (torch.einsum("bqhd,bkhd->bhqk", q, k) * SCALE).softmax(dim=-1)
    return torch.einsum("bhqk,bkhd->bqhd", weights, v).transpose(1, 2)


def bmm(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    b, h, n, d = q.shape
    q, k, v = (t.reshape(b * h, n, d) for t in (q, k, v))
    weights = (torch.bmm(q, k.transpose(1, 2)) * SCALE).softmax(dim=-1)
    return torch.bmm(weights, v).view(b, h, n, d)


def baddbmm(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    b, h, n, d = q.shape
    q, k, v = (t.reshape(b * h, n, d) for t in (q, k, v))
    unused = torch.empty(b * h, n, n, dtype=q.dtype, device=q.device)
    weights = torch.baddbmm(unused, q, k.transpose(1, 2), beta=0, alpha=SCALE).softmax(dim=-1)
    return torch.bmm(weights, v).view(b, h, n, d)


def autocast_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        out = scale_on_product(q, k, v)
    return out.to(q.dtype)


def autocast_sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        out = sdpa(q, k, v)
    return out.to(q.dtype)


def softmax_outside_autocast(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = q @ k.transpose(-2, -1) * SCALE
    with torch.autocast("cpu", enabled=False):
        weights = scores.float().softmax(dim=-1)
    return weights.to(v.dtype) @ v


def no_grad_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    with torch.no_grad():
        return scale_on_product(q, k, v)


def no_grad_sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    with torch.no_grad():
        return sdpa(q, k, v)


# --- the module around the product ------------------------------------------------------------------------------------


class Dinov2Attention(nn.Module):
    """The DINOv2 repository's: scaled q, and two dropouts that do nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM)
        self.attn_drop, self.proj_drop = nn.Dropout(0.0), nn.Dropout(0.0)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        qkv = self.qkv(x).reshape(b, n, 3, HEADS, c // HEADS).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0] * SCALE, qkv[1], qkv[2]
        attn = self.attn_drop((q @ k.transpose(-2, -1)).softmax(dim=-1))
        return self.proj_drop(self.proj((attn @ v).transpose(1, 2).reshape(b, n, c)))


class ChunkAttention(Attention):
    def split(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(t.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for t in self.qkv(x).chunk(3, dim=-1))


class SplitAttention(Attention):
    def split(self, x: Tensor) -> tuple[Tensor, ...]:
        b, n, c = x.shape
        return tuple(t.view(b, n, self.num_heads, -1).transpose(1, 2) for t in self.qkv(x).split(c, dim=2))


class HeadMajorAttention(Attention):
    """Packs q, k and v of one head side by side."""

    def split(self, x: Tensor) -> tuple[Tensor, ...]:
        b, n, _ = x.shape
        return self.qkv(x).view(b, n, self.num_heads, -1).permute(0, 2, 1, 3).chunk(3, dim=-1)


class SeparateAttention(nn.Module):
    """One linear layer each for q, k and v, as in Hugging Face models."""

    def __init__(self, attend: Callable[..., Tensor] = sdpa) -> None:
        super().__init__()
        self.attend = attend
        self.q, self.k, self.v, self.o = (nn.Linear(DIM, DIM) for _ in range(4))

    def heads(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], -1, HEADS, HEAD_DIM).transpose(1, 2)

    def forward(self, x: Tensor, *context: Any) -> Tensor:
        out = self.attend(self.heads(self.q(x)), self.heads(self.k(x)), self.heads(self.v(x)), *context)
        return self.o(out.transpose(1, 2).contiguous().view(x.shape))


class HeadlessAttention(nn.Module):
    """A single head with no head axis: [batch, token, dim] throughout."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(DIM, DIM) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        weights = (self.q(x) @ self.k(x).transpose(1, 2) * DIM**-0.5).softmax(dim=-1)
        return self.o(weights @ self.v(x))


class FunctionalMHA(nn.Module):
    """`F.multi_head_attention_forward` on [token, batch, dim]."""

    def __init__(self) -> None:
        super().__init__()
        self.in_proj_weight, self.in_proj_bias = (
            nn.Parameter(torch.empty(3 * DIM, DIM)),
            nn.Parameter(torch.empty(3 * DIM)),
        )
        self.out_proj = nn.Linear(DIM, DIM)

    def attend(self, x: Tensor, need_weights: bool = False) -> Tensor:
        out, _ = F.multi_head_attention_forward(
            x, x, x, DIM, HEADS, self.in_proj_weight, self.in_proj_bias,
            bias_k=None, bias_v=None, add_zero_attn=False, dropout_p=0.0,
            out_proj_weight=self.out_proj.weight, out_proj_bias=self.out_proj.bias,
            training=False, need_weights=need_weights,
        )  # fmt: skip
        return out

    def forward(self, x: Tensor) -> Tensor:
        return self.attend(x.transpose(0, 1)).transpose(0, 1)


class SelfMHA(nn.Module):
    """`nn.MultiheadAttention` as self-attention; its weights, if asked for, are dropped."""

    def __init__(self, **call: Any) -> None:
        super().__init__()
        self.call = call
        self.mha = nn.MultiheadAttention(DIM, HEADS, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.mha(x, x, x, **self.call)[0]


class SeqFirstMHA(FunctionalMHA):
    """The same inside a model whose tokens are [token, batch, dim]."""

    def forward(self, x: Tensor) -> Tensor:
        return self.attend(x)


class SeqFirstBmm(nn.Module):
    """The bmm form on [token, batch, dim]: heads are folded into the batch by one view."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM)

    def forward(self, x: Tensor) -> Tensor:
        n, b, c = x.shape
        q, k, v = (t.contiguous().view(n, b * HEADS, HEAD_DIM).transpose(0, 1) for t in self.qkv(x).chunk(3, dim=-1))
        weights = torch.bmm(q * SCALE, k.transpose(1, 2)).softmax(dim=-1)
        return self.proj(torch.bmm(weights, v).transpose(0, 1).reshape(n, b, c))


class QKNormAttention(Attention):
    """Normalised q and k, scaled by a half each, and no scale on the product."""

    def __init__(self) -> None:
        super().__init__(no_scale)
        self.q_norm, self.k_norm = nn.LayerNorm(HEAD_DIM), nn.LayerNorm(HEAD_DIM)

    def split(self, x: Tensor) -> tuple[Tensor, ...]:
        q, k, v = super().split(x)
        return self.q_norm(q) * 0.5, self.k_norm(k) * 0.5, v


# --- rotary position embedding ----------------------------------------------------------------------------------------


def rotate_half(x: Tensor) -> Tensor:
    a, b = x.chunk(2, dim=-1)
    return torch.cat([-b, a], dim=-1)


def rotate_interleaved(x: Tensor) -> Tensor:
    return torch.stack([-x[..., 1::2], x[..., ::2]], dim=-1).reshape(x.shape)


class RopeAttention(Attention):
    """Rotates the patch tokens in fp32 and leaves the prefix as it is, as the DINOv3 repository does."""

    def __init__(self, rotate: Callable[[Tensor], Tensor]) -> None:
        super().__init__(sdpa)
        self.rotate = rotate

    def rope(self, x: Tensor, sin: Tensor, cos: Tensor) -> Tensor:
        prefix = x.shape[-2] - sin.shape[-2]
        patches = x[:, :, prefix:, :].to(sin.dtype)
        rotated = patches * cos + self.rotate(patches) * sin
        return torch.cat([x[:, :, :prefix, :], rotated.to(x.dtype)], dim=-2)

    def forward(self, x: Tensor, sin: Tensor, cos: Tensor) -> Tensor:
        q, k, v = self.split(x)
        out = self.attend(self.rope(q, sin, cos), self.rope(k, sin, cos), v)
        return self.proj(out.transpose(1, 2).reshape(x.shape))


class RopeViT(TinyViT):
    """Axial rotary embedding: half of a head's pairs of channels turn with the row of a patch, half with its column."""

    def __init__(self, interleaved: bool) -> None:
        rotate = rotate_interleaved if interleaved else rotate_half
        super().__init__(partial(RopeAttention, rotate), before=3)
        self.interleaved = interleaved
        self.register_buffer("periods", 100 ** (torch.arange(HEAD_DIM // 4) / (HEAD_DIM // 4)))

    def forward(self, image: Tensor) -> Tensor:
        h, w = image.shape[-2] // PATCH, image.shape[-1] // PATCH
        y = (torch.arange(h, device=image.device) + 0.5) / h * 2 - 1
        x = (torch.arange(w, device=image.device) + 0.5) / w * 2 - 1
        coords = torch.stack(torch.meshgrid(y, x, indexing="ij"), dim=-1).flatten(0, 1)
        angles = (2 * torch.pi * coords[:, :, None] / self.periods).flatten(1)
        angles = angles.repeat_interleave(2, dim=-1) if self.interleaved else angles.tile(2)
        return super().forward(image, angles.sin(), angles.cos())


# --- the model around the modules -------------------------------------------------------------------------------------


class SeqFirstViT(TinyViT):
    def forward(self, image: Tensor) -> Tensor:
        x = self.tokens(image).permute(1, 0, 2)
        for block in self.blocks:
            x = block(x)
        return self.norm(x.permute(1, 0, 2))


class AutocastViT(TinyViT):
    def forward(self, image: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return super().forward(image)


class NoGradViT(TinyViT):
    def forward(self, image: Tensor) -> Tensor:
        with torch.no_grad():
            return super().forward(image)


class SharedBlockViT(TinyViT):
    """Runs its only block twice."""

    def forward(self, image: Tensor) -> Tensor:
        x = self.tokens(image)
        for _ in range(2):
            x = self.blocks[0](x)
        return self.norm(x)


@dataclass
class Features:
    cls: Tensor
    patches: Tensor


torch.export.register_dataclass(Features)


class FeatureViT(TinyViT):
    """Takes its image in a dictionary, a flag by keyword, and returns a dataclass."""

    def forward(self, batch: dict[str, Tensor], *, normalize: bool) -> Features:
        image = batch["image"] - batch["mean"]
        x = super().forward(image)
        x = F.normalize(x, dim=-1) if normalize else x
        return Features(cls=x[:, 0], patches=x[:, 1:])


class TransformerLayer(nn.Module):
    """`nn.TransformerEncoderLayer` in the place of a block."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(DIM, HEADS, 2 * DIM, 0.0, "gelu", batch_first=True, norm_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def feature_inputs(batch: int = 2, size: Size = SIZE, dtype: torch.dtype = torch.float32) -> Inputs:
    image = images(batch, 3, *size, dtype=dtype)
    return ({"image": image, "mean": image.mean(dim=(-2, -1), keepdim=True)},), {"normalize": True}


def sdpa_grouped(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, enable_gqa=True)


class GroupedQueryAttention(nn.Module):
    """Two heads of q share one head of k and v: `attend` takes them as they are, or `repeat` makes them as many."""

    def __init__(
        self,
        repeat: Callable[[Tensor], Tensor] | None = None,
        attend: Callable[[Tensor, Tensor, Tensor], Tensor] = sdpa_grouped,
    ) -> None:
        super().__init__()
        self.q, self.o = nn.Linear(DIM, DIM), nn.Linear(DIM, DIM)
        self.k, self.v = nn.Linear(DIM, HEAD_DIM), nn.Linear(DIM, HEAD_DIM)
        self.repeat, self.attend = repeat, attend

    def forward(self, x: Tensor) -> Tensor:
        q = self.q(x).unflatten(-1, (HEADS, HEAD_DIM)).transpose(1, 2)
        k, v = (projection(x).unflatten(-1, (1, HEAD_DIM)).transpose(1, 2) for projection in (self.k, self.v))
        if self.repeat is not None:
            k, v = self.repeat(k), self.repeat(v)
        out = sdpa(q, k, v) if self.repeat is not None else self.attend(q, k, v)
        return self.o(out.transpose(1, 2).flatten(2))


def einsum_one_key_head(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """As lucidrains writes it: k and v have no axis of heads."""
    weights = (torch.einsum("bhid,bjd->bhij", q, k[:, 0]) * SCALE).softmax(dim=-1)
    return torch.einsum("bhij,bjd->bhid", weights, v[:, 0])


def repeat_interleave(x: Tensor) -> Tensor:
    return x.repeat_interleave(HEADS, dim=1)


def repeat_kv(x: Tensor) -> Tensor:
    """As Hugging Face's language models do it."""
    batch, heads, tokens, head_dim = x.shape
    return x[:, :, None].expand(batch, heads, HEADS // heads, tokens, head_dim).reshape(batch, HEADS, tokens, head_dim)


# --- the cases --------------------------------------------------------------------------------------------------------


def case(name: str, build: Callable[[], nn.Module], training: bool = False, **changes: Any) -> Case:
    """A case of two blocks with one leading extra token, but for `changes`."""
    fields = {
        "inputs": image_inputs(SIZE),
        "size": SIZE,
        "oblong": OBLONG,
        "sites": 2,
        "num_heads": HEADS,
        "head_dim": HEAD_DIM,
        "grid": grid_of(PATCH),
        "extra_before": 1,
        "names": ("blocks.0.attn", "blocks.1.attn"),
    }
    return Case(name, lambda: randomize(build()).train(training), **(fields | changes))


def tiny(attend: Callable[..., Tensor], **options: Any) -> Callable[[], nn.Module]:
    return lambda: TinyViT(partial(Attention, attend), **options)


MHA_NAMES = ("blocks.0.attn.mha", "blocks.1.attn.mha")
SCALES = {"sdpa_scaled": 0.4, "no_scale": 1.0}
PRODUCTS = (
    sdpa,
    sdpa_scaled,
    scale_on_q,
    scale_on_k,
    scale_on_k_transposed,
    scale_on_both,
    scale_on_product,
    scale_by_division,
    scale_by_division_of_q,
    no_scale,
    softmax_in_fp32,
    softmax_dtype_argument,
    einsum_bhqd,
    einsum_bqhd,
    bmm,
    baddbmm,
    autocast_attention,
    autocast_sdpa,
    no_grad_attention,
    no_grad_sdpa,
)

CASES = (
    *(case(product.__name__, tiny(product), scale=SCALES.get(product.__name__)) for product in PRODUCTS),
    # projections
    case("dinov2_repo", lambda: TinyViT(Dinov2Attention)),
    case("chunk", lambda: TinyViT(partial(ChunkAttention, sdpa))),
    case("split", lambda: TinyViT(partial(SplitAttention, scale_on_q))),
    case("head_major", lambda: TinyViT(partial(HeadMajorAttention, sdpa))),
    case("separate", lambda: TinyViT(SeparateAttention)),
    case("separate_unfused", lambda: TinyViT(partial(SeparateAttention, scale_on_product))),
    case("grouped_queries", lambda: TinyViT(GroupedQueryAttention)),
    case("one_key_head", lambda: TinyViT(partial(GroupedQueryAttention, attend=sdpa))),
    case("one_key_head_by_products", lambda: TinyViT(partial(GroupedQueryAttention, attend=scale_on_product))),
    case("one_key_head_by_einsum", lambda: TinyViT(partial(GroupedQueryAttention, attend=einsum_one_key_head))),
    case("grouped_queries_repeated", lambda: TinyViT(partial(GroupedQueryAttention, repeat_interleave))),
    case("grouped_queries_expanded", lambda: TinyViT(partial(GroupedQueryAttention, repeat_kv))),
    case("qk_norm", lambda: TinyViT(QKNormAttention), scale=0.25),
    case("single_head", lambda: TinyViT(partial(Attention, sdpa, num_heads=1)), num_heads=1, head_dim=DIM),
    case("headless", lambda: TinyViT(HeadlessAttention), num_heads=1, head_dim=DIM),
    case("functional_mha", lambda: TinyViT(FunctionalMHA)),
    case("mha", lambda: TinyViT(partial(SelfMHA, need_weights=False)), names=MHA_NAMES),
    case("mha_dropped_weights", lambda: TinyViT(SelfMHA), names=MHA_NAMES),
    case("rope_half", lambda: RopeViT(interleaved=False), rope="half", extra_before=3),
    case("rope_interleaved", lambda: RopeViT(interleaved=True), rope="interleaved", extra_before=3),
    # tokens
    case("no_extra_tokens", tiny(sdpa, before=0), extra_before=0),
    case("extra_after", tiny(sdpa, before=0, after=5), extra_before=0, extra_after=5),
    case("extra_both", tiny(scale_on_q, before=2, after=3), extra_before=2, extra_after=3),
    case("reshape_patches", tiny(sdpa, patches=ReshapePatches)),
    case("unfold_patches", tiny(sdpa, patches=UnfoldPatches)),
    case("seq_first_mha", lambda: SeqFirstViT(SeqFirstMHA)),
    case("seq_first_bmm", lambda: SeqFirstViT(SeqFirstBmm)),
    # models
    case("autocast_model", lambda: AutocastViT(partial(Attention, scale_on_product))),
    case("autocast_model_sdpa", lambda: AutocastViT(partial(Attention, sdpa))),
    case("softmax_outside_autocast", lambda: AutocastViT(partial(Attention, softmax_outside_autocast))),
    case("no_grad_model", lambda: NoGradViT(partial(Attention, sdpa))),
    case("no_grad_model_unfused", lambda: NoGradViT(Dinov2Attention)),
    case("dropout_zero_in_training", lambda: TinyViT(Dinov2Attention), training=True),
    case(
        "shared_block",
        lambda: SharedBlockViT(partial(Attention, sdpa), depth=1),
        names=("blocks.0.attn", "blocks.0.attn#1"),
    ),
    case("dict_to_dataclass", lambda: FeatureViT(partial(Attention, sdpa)), inputs=feature_inputs),
    case(
        "transformer_encoder_layer",
        lambda: TinyViT(nn.Identity, block=lambda _: TransformerLayer()),
        names=("blocks.0.layer.self_attn", "blocks.1.layer.self_attn"),
    ),
)
