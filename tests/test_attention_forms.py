"""Attention as models write it: what is found means the same afterwards, and what is not is refused with its reason."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import jetvit
from jetvit.cost_model import Choice
from tests.passes.models import plan_of
from tests.windows import WINDOW, assert_windows, window_bias
from tests.zoo.case import REPRS, images, randomize
from tests.zoo.handwritten import DIM, HEAD_DIM, HEADS, PATCH, SCALE, Attention, TinyViT, sdpa
from tests.zoo.quick import sweep
from tests.zoo.sweep_oracle import Tokens, windowed

GRID, BATCH = (4, 6), 3
TOKENS = 1 + GRID[0] * GRID[1]
"""What the oracle adds to the score of a pair of tokens in different windows."""


def scores(q: Tensor, k: Tensor, bias: Tensor | float) -> Tensor:
    return q @ k.transpose(-2, -1) * SCALE + bias


def by_hand(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | float = 0.0) -> Tensor:
    s = scores(q, k, bias)
    e = (s - s.amax(dim=-1, keepdim=True)).exp()
    return (e / e.sum(dim=-1, keepdim=True)) @ v


def without_maximum(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | float = 0.0) -> Tensor:
    s = scores(q, k, bias)
    return (s - s.amax(dim=-1, keepdim=True)).softmax(dim=-1) @ v


def without_maximum_in_place(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | float = 0.0) -> Tensor:
    s = scores(q, k, bias)
    s -= s.amax(dim=-1, keepdim=True).detach()
    return s.softmax(dim=-1) @ v


def scaled_down_and_up(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | float = 0.0) -> Tensor:
    """CogView's, against overflow in half precision."""
    s = scores(q, k, bias)
    return (32 * (s / 32 - (s / 32).amax(dim=-1, keepdim=True))).softmax(dim=-1) @ v


def bias_of_a_query(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | float = 0.0) -> Tensor:
    return (scores(q, k, bias) + q.mean(dim=-1, keepdim=True)).softmax(dim=-1) @ v


def one_of_the_key_heads(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | float = 0.0) -> Tensor:
    return scores(q, k[:, 1:2], bias).softmax(dim=-1) @ v[:, :1]


def log_softmax(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | float = 0.0) -> Tensor:
    return scores(q, k, bias).log_softmax(dim=-1).exp() @ v


def scaled_in_place(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | float = 0.0) -> Tensor:
    s = q @ k.transpose(-2, -1)
    s *= SCALE
    return (s + bias).softmax(dim=-1) @ v


def scale_of_a_tensor(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | float = 0.0) -> Tensor:
    return (q @ k.transpose(-2, -1) * torch.tensor(HEAD_DIM).pow(-0.5) + bias).softmax(dim=-1) @ v


def values_first(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | float = 0.0) -> Tensor:
    weights = scores(q, k, bias).softmax(dim=-1)
    return (v.transpose(-2, -1) @ weights.transpose(-2, -1)).transpose(-2, -1)


def heads_first_in_the_result(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | float = 0.0) -> Tensor:
    """The result's axes stand in another order than q's."""
    weights = (torch.einsum("bhqd,bhkd->bhqk", q, k) * SCALE + bias).softmax(dim=-1)
    return torch.einsum("bhqk,bhkd->hbqd", weights, v).transpose(0, 1)


def values_first_by_letters(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | float = 0.0) -> Tensor:
    weights = (torch.einsum("bhkd,bhqd->bhqk", k, q) * SCALE + bias).softmax(dim=-1)
    return torch.einsum("bhkd,bhqk->bhqd", v, weights)


def by_letters_with_an_ellipsis(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | float = 0.0) -> Tensor:
    weights = (torch.einsum("...qd,...kd->...qk", q, k) * SCALE + bias).softmax(dim=-1)
    return torch.einsum("...qk,...kd->...qd", weights, v)


def nothing_is_filled(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | float = 0.0) -> Tensor:
    padding = torch.zeros(q.shape[0], 1, 1, q.shape[2], dtype=torch.bool)
    return scores(q, k, bias).masked_fill(padding, float("-inf")).softmax(dim=-1) @ v


def where_nothing_is_hidden(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | float = 0.0) -> Tensor:
    visible = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool)
    return torch.where(visible, scores(q, k, bias), -torch.inf).softmax(dim=-1) @ v


def mask_of_one_document(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | float = 0.0) -> Tensor:
    """Pixtral's: −∞ everywhere, and zero in the block of each image, of which there is one."""
    n = q.shape[2]
    mask = torch.full((n, n), float("-inf"))
    mask[0:n, 0:n] = 0
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask + bias)


class Temperature(Attention):
    """Scores times a tensor of a shape, or divided by it, that broadcasts against [batch, head, query, key]."""

    def __init__(self, shape: tuple[int, ...], divides: bool = False, cosine: bool = False) -> None:
        super().__init__(self.attention)
        self.temperature = nn.Parameter(torch.empty(shape))
        self.divides, self.cosine = divides, cosine
        self.bias: Tensor | float = 0.0

    def attention(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self.cosine:
            q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        s, temperature = q @ k.transpose(-2, -1), self.temperature.clamp(max=2.0).exp()
        s = s / temperature if self.divides else s * temperature
        return (s + self.bias).softmax(dim=-1) @ v


class TemperatureOfAnImage(Temperature):
    """A temperature for each head and image, predicted from the image."""

    def __init__(self) -> None:
        super().__init__((HEADS, DIM))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.split(x)
        temperature = F.linear(x.mean(dim=1), self.temperature).sigmoid().unflatten(-1, (HEADS, 1, 1))
        weights = (q @ k.transpose(-2, -1) * temperature + self.bias).softmax(dim=-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(x.shape))


class MapAttention(nn.Module):
    """Attention on a map with its channels in front, as image autoencoders have it."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.proj = (nn.Conv2d(DIM, DIM, 1) for _ in range(4))
        self.bias: Tensor | float = 0.0

    def forward(self, y: Tensor) -> Tensor:
        b, c, h, w = y.shape
        q = self.q(y).reshape(b, c, h * w).permute(0, 2, 1)
        weights = (torch.bmm(q, self.k(y).reshape(b, c, h * w)) * c**-0.5 + self.bias).softmax(dim=2)
        v = self.v(y).reshape(b, c, h * w)
        return y + self.proj(torch.bmm(v, weights.permute(0, 2, 1)).reshape(b, c, h, w))


class Autoencoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.attention = nn.Conv2d(3, DIM, PATCH, PATCH), MapAttention()

    def forward(self, image: Tensor) -> Tensor:
        return self.attention(self.encoder(image))


PRODUCTS = (
    by_hand, without_maximum, without_maximum_in_place, scaled_down_and_up, bias_of_a_query, log_softmax,
    scaled_in_place, scale_of_a_tensor, values_first, heads_first_in_the_result, values_first_by_letters,
    by_letters_with_an_ellipsis, nothing_is_filled, where_nothing_is_hidden, mask_of_one_document, one_of_the_key_heads,
)  # fmt: skip
QUICK = (without_maximum, scaled_in_place, values_first, where_nothing_is_hidden, log_softmax, one_of_the_key_heads)
TEMPERATURES = {
    "a_head": partial(Temperature, (HEADS, 1, 1)),
    "a_head_divides": partial(Temperature, (1, HEADS, 1, 1), divides=True),
    "one": partial(Temperature, (1,)),
    "of_no_axis": partial(Temperature, ()),
    "cosine": partial(Temperature, (HEADS, 1, 1), cosine=True),
    "an_image": TemperatureOfAnImage,
}


def image() -> Tensor:
    return images(BATCH, 3, GRID[0] * PATCH, GRID[1] * PATCH)


def check(model: nn.Module, oracle: nn.Module, sites: int) -> None:
    assert_windows(model, oracle, image(), GRID, sites)


@pytest.mark.parametrize(
    "product",
    [
        pytest.param(product, id=product.__name__, marks=() if product in QUICK else pytest.mark.slow)
        for product in PRODUCTS
    ],
)
def test_forms_that_are_found(product: Callable[..., Tensor]) -> None:
    model = randomize(TinyViT(partial(Attention, product)))
    oracle = TinyViT(partial(Attention, partial(product, bias=window_bias(GRID, 1))))
    oracle.load_state_dict(model.state_dict())
    check(model, oracle, sites=2)


@pytest.mark.parametrize("name", sweep(TEMPERATURES, quick=["a_head", "a_head_divides", "cosine"]))
def test_a_temperature_goes_with_the_queries(name: str) -> None:
    model, oracle = (randomize(TinyViT(TEMPERATURES[name])) for _ in range(2))
    for block in oracle.blocks:
        block.attn.bias = window_bias(GRID, 1)
    check(model, oracle, sites=2)


def test_channels_in_front() -> None:
    model, oracle = (randomize(Autoencoder()) for _ in range(2))
    oracle.attention.bias = window_bias(GRID)
    check(model, oracle, sites=1)


@pytest.mark.parametrize("grid", [(1, 6), (6, 1)])
def test_a_map_of_one_row_or_column(grid: tuple[int, int]) -> None:
    """A line of text: its windows are runs of it."""
    model = randomize(TinyViT(partial(Attention, sdpa)))
    x = images(BATCH, 3, grid[0] * PATCH, grid[1] * PATCH)
    sites = jetvit.find_attention(model, x)
    assert [site.grid for site in sites] == [grid, grid]
    oracle = windowed(model, (x,), {}, {site.name: Tokens(1, grid, 0) for site in sites}, WINDOW)
    plan = plan_of(sites, [Choice("window", window=WINDOW)])
    with torch.no_grad():
        assert (oracle - model(x)).norm() > 0.01 * oracle.norm()
        torch.testing.assert_close(jetvit.optimize(model, x, plan=plan)(x), oracle, rtol=1e-5, atol=1e-5)
        compiled = torch.compile(model, backend="jetvit", options={"plan": plan, "inner": "eager"})
        torch.testing.assert_close(compiled(x), oracle, rtol=1e-5, atol=1e-5)


# --- what is refused --------------------------------------------------------------------------------------------------


def softmax_of_keys(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return q.softmax(dim=-1) @ (k.softmax(dim=-2).transpose(-2, -1) @ v)


def weighted_sum(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """MobileViTV2's: one score for each token, and the product is written out."""
    return v.relu() * (q[..., :1].softmax(dim=-2) * k).sum(dim=-2, keepdim=True)


def one_more_in_the_sum(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    e = scores(q, k, 0.0).exp()
    return (e / (1 + e.sum(dim=-1, keepdim=True))) @ v


def sigmoid(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return scores(q, k, 0.0).sigmoid() @ v


def no_softmax(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return scores(q, k, 0.0) @ v


def largest_scores(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    s = scores(q, k, 0.0)
    least = s.topk(4, dim=-1).values[..., -1:]
    return s.masked_fill(s < least, float("-inf")).softmax(dim=-1) @ v


def negated(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    s = scores(q, k, 0.0)
    return (s.amax(dim=-1, keepdim=True) - s).softmax(dim=-1) @ v


def gated_scores(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    s = scores(q, k, 0.0)
    return (s * s.sigmoid()).softmax(dim=-1) @ v


def bias_from_the_queries(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """MViTv2's and SAM's: a product of q and a table is added to the scores."""
    table = torch.linspace(-1, 1, q.shape[2] * HEAD_DIM).view(q.shape[2], HEAD_DIM)
    return (scores(q, k, 0.0) + (q @ table.t()).relu() + q @ k.roll(1, 2).transpose(-2, -1)).softmax(dim=-1) @ v


def mask_that_is_filled_later(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The mask hides nothing when it is made, and something when it is read."""
    mask = torch.zeros(q.shape[2], q.shape[2])
    mask[:, 3] = float("-inf")
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def two_documents(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    n = q.shape[2]
    mask = torch.full((n, n), float("-inf"))
    for start, stop in ((0, n // 2), (n // 2, n)):
        mask[start:stop, start:stop] = 0
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def over_the_heads(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (each.transpose(1, 2) for each in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


def over_channels(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (each.transpose(-2, -1) for each in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(-2, -1)


class TemperatureOfAToken(Temperature):
    """A temperature for each query would have to follow the tokens into their windows."""

    def __init__(self) -> None:
        super().__init__((TOKENS, 1))


NEAR_MISSES = {
    softmax_of_keys: "no product of q and k is what the softmax runs over",
    weighted_sum: "no product of q and k is what the softmax runs over",
    one_more_in_the_sum: "no softmax of the scores: aten.div.Tensor takes its place",
    sigmoid: "no softmax of the scores: aten.sigmoid.default takes its place",
    no_softmax: "the attention weights are no softmax of the scores",
    largest_scores: "a boolean mask hides some keys",
    negated: "changes the attention scores",
    gated_scores: "aten.mul.Tensor stands between",
    bias_from_the_queries: "made from q or k",
    mask_that_is_filled_later: "a constant mask",
    two_documents: "a constant mask",
    over_the_heads: "over the heads of each token",
    over_channels: "over channels, not over tokens",
}


@pytest.mark.parametrize("product", NEAR_MISSES, ids=lambda product: product.__name__)
def test_near_misses_are_named(product: Callable[..., Tensor]) -> None:
    model, x = randomize(TinyViT(partial(Attention, product))), image()
    found = jetvit.find_attention(model, x)
    assert not found
    assert [rejection.name for rejection in found.rejected] == ["blocks.0.attn", "blocks.1.attn"]
    for rejection in found.rejected:
        assert NEAR_MISSES[product] in rejection.reason
        assert not REPRS.search(str(rejection))
    with torch.no_grad():
        torch.testing.assert_close(jetvit.optimize(model, x)(x), model(x))


class OtherSoftmaxes(nn.Module):
    """Weighs two branches, as SKNet does, and places, by a map of scores."""

    def __init__(self) -> None:
        super().__init__()
        self.branches = nn.Conv2d(3, 2, 3, padding=1)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        branches = torch.stack((image, image.relu()), dim=1)
        weights = self.branches(image).softmax(dim=1).unsqueeze(2)
        scores = self.branches(image).flatten(2).softmax(dim=-1)
        return (weights * branches).sum(dim=1), (scores * torch.arange(scores.shape[2])).sum(dim=-1)


def test_a_softmax_that_weighs_no_tokens_is_no_near_miss() -> None:
    assert jetvit.find_attention(randomize(OtherSoftmaxes()), image()).rejected == []


def test_a_temperature_of_each_token_is_refused() -> None:
    found = jetvit.find_attention(randomize(TinyViT(TemperatureOfAToken)), image())
    assert not found
    assert {each.reason for each in found.rejected} == {
        "the attention scores are multiplied by a tensor that differs between tokens"
    }


# --- tokens that are written in place ---------------------------------------------------------------------------------


class Written(TinyViT):
    """Changes its tokens, CLS first, in place before the first block."""

    def __init__(self, write: Callable[[Tensor], None]) -> None:
        super().__init__(partial(Attention, sdpa))
        self.write = write

    def tokens(self, image: Tensor) -> Tensor:
        x = super().tokens(image).clone()
        self.write(x)
        return x


def position_added(x: Tensor) -> None:
    x[:, 1:] += torch.linspace(0, 1, TOKENS - 1).unsqueeze(1)


def same_tokens_scaled(x: Tensor) -> None:
    x[:, 1:] = x[:, 1:] * 2


def activation(x: Tensor) -> None:
    F.gelu(F.silu(x, inplace=True))


def one_cleared(x: Tensor) -> None:
    x[:, 3] = 0


def class_token_projected(x: Tensor) -> None:
    x[:, 0] = x[:, 0] @ torch.ones(DIM, DIM)


def flipped(x: Tensor) -> None:
    x[:, 1:] = x[:, 1:].flip(1)


def half_copied(x: Tensor) -> None:
    x[:, 1:9].copy_(x[:, 9:17])


def scattered(x: Tensor) -> None:
    x[:, torch.tensor([1, 2])] = x[:, torch.tensor([5, 3])]


KEPT = (position_added, same_tokens_scaled, activation, one_cleared, class_token_projected)


@pytest.mark.parametrize("write", KEPT, ids=lambda write: write.__name__)
def test_writes_that_keep_the_tokens(write: Callable[[Tensor], None]) -> None:
    assert len(jetvit.find_attention(randomize(Written(write)), image())) == 2


@pytest.mark.parametrize("write", [flipped, half_copied, scattered], ids=lambda write: write.__name__)
def test_writes_of_other_tokens(write: Callable[[Tensor], None]) -> None:
    """The tokens stand in another order than the image's afterwards: windows over them would be of other patches."""
    found = jetvit.find_attention(randomize(Written(write)), image())
    assert not found
    assert all("writes other tokens in place" in rejection.reason for rejection in found.rejected)


def rotated_in_place(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | float = 0.0) -> Tensor:
    """SAM 2's memory attention: all of k is written before it is read."""
    k = k.contiguous()
    k[:, :, : q.shape[2]] = k[:, :, : q.shape[2]] * torch.linspace(0.5, 1, HEAD_DIM)
    return scores(q, k, bias).softmax(dim=-1) @ v


def flipped_in_place(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    k = k.contiguous()
    k[:, :, 1:] = k[:, :, 1:].flip(2)
    return F.scaled_dot_product_attention(q, k, v)


def test_keys_that_are_written_before_they_are_read() -> None:
    test_forms_that_are_found(rotated_in_place)
    found = jetvit.find_attention(randomize(TinyViT(partial(Attention, flipped_in_place))), image())
    assert not found
    assert {each.reason for each in found.rejected} == {
        "the tokens of q or k were lost at aten.copy_.default, which writes other tokens in place"
    }


# --- the reasons ------------------------------------------------------------------------------------------------------


class RelativeBias(Attention):
    """EVA's: the bias is cast to the dtype of the scores."""

    def __init__(self) -> None:
        super().__init__(sdpa)
        self.bias = nn.Parameter(torch.empty(HEADS, TOKENS, TOKENS))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.split(x)
        s = scores(q, k, 0.0)
        return self.proj(((s + self.bias.type_as(s)).softmax(dim=-1) @ v).transpose(1, 2).reshape(x.shape))


class ClassTokenApart(nn.Module):
    """RvT's: q comes from a convolution over the map and CLS beside it, k and v from all tokens in a row."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.cls = nn.Conv2d(3, DIM, PATCH, PATCH), nn.Parameter(torch.empty(1, 1, DIM))
        self.q, self.kv, self.norm = nn.Conv2d(DIM, DIM, 3, padding=1), nn.Linear(DIM, 2 * DIM), nn.LayerNorm(DIM)

    def forward(self, image: Tensor) -> Tensor:
        y = self.patch(image)
        x = self.norm(torch.cat([self.cls.expand(len(y), -1, -1), y.flatten(2).transpose(1, 2)], dim=1))
        places = self.q(x[:, 1:].transpose(1, 2).unflatten(2, y.shape[2:])).flatten(2).transpose(1, 2)
        q, (k, v) = torch.cat([x[:, :1], places], dim=1), self.kv(x).chunk(2, dim=-1)
        q, k, v = (each.unflatten(2, (HEADS, HEAD_DIM)).transpose(1, 2) for each in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v)


def test_a_cast_bias_is_a_learned_one() -> None:
    found = jetvit.find_attention(randomize(TinyViT(RelativeBias)), image())
    assert {each.reason for each in found.rejected} == {
        "a learned bias is added to the scores (relative-position bias)"
    }


def test_tokens_that_are_put_together_again() -> None:
    (site,) = jetvit.find_attention(randomize(ClassTokenApart()), image())
    assert (site.grid, site.extra_before, site.extra_after) == (GRID, 1, 0)


class PooledInside(nn.Module):
    """Attention over a grid that its own module pools from the map."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = Attention(sdpa)

    def forward(self, y: Tensor) -> Tensor:
        return self.attention(F.avg_pool2d(y, 2).flatten(2).transpose(1, 2))


class Strided(nn.Module):
    """Attention over every second row and column."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = Attention(sdpa)

    def forward(self, y: Tensor) -> Tensor:
        return self.attention(y[:, :, ::2, ::2].flatten(2).transpose(1, 2))


class OverFrames(nn.Module):
    """TimeSformer's spatial half: the frames of a film are a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = Attention(sdpa)

    def forward(self, y: Tensor) -> Tensor:
        frames = y.unflatten(0, (-1, 3)).flatten(3).permute(0, 1, 3, 2)
        return self.attention(frames.flatten(0, 1))


class OnAMap(nn.Module):
    def __init__(self, block: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.patch, self.block = nn.Conv2d(3, DIM, PATCH, PATCH), block()

    def forward(self, image: Tensor) -> Tensor:
        return self.block(self.patch(image))


@pytest.mark.parametrize(
    ("block", "grid", "shown"),
    [(PooledInside, (2, 3), "2×3 pooled"), (Strided, (2, 3), "2×3 pooled"), (OverFrames, GRID, "4×6")],
)
def test_attention_over_a_part_says_which(block: Callable[[], nn.Module], grid: tuple[int, int], shown: str) -> None:
    model = randomize(OnAMap(block))
    (site,) = jetvit.find_attention(model, image())
    assert (site.grid, site.pooled) == (grid, "pooled" in shown)
    assert jetvit.explain(model, image()).rows[0].grid == shown


class SeveralImages(TinyViT):
    """The second block attends to the tokens of three views at once, as DepthAnything 3 and VGGT do."""

    def forward(self, image: Tensor, *context: Any) -> Tensor:
        x = self.tokens(image.flatten(0, 1))
        x = self.blocks[0](x)
        together = x.unflatten(0, image.shape[:2]).flatten(1, 2)
        return self.norm(self.blocks[1](together))


def test_several_images_in_one_sequence() -> None:
    model = randomize(SeveralImages(partial(Attention, sdpa)))
    found = jetvit.find_attention(model, images(2, 3, 3, GRID[0] * PATCH, GRID[1] * PATCH))
    assert [site.name for site in found] == ["blocks.0.attn"]
    assert [each.reason for each in found.rejected] == [
        "unknown token grid: the tokens of several images, or of several windows, stand in one sequence"
    ]


class TwoStreams(TinyViT):
    """Two residual streams that a matrix mixes before each block, as hyper-connections do."""

    def __init__(self) -> None:
        super().__init__(partial(Attention, sdpa))
        self.mix = nn.Parameter(torch.empty(2, 2))

    def forward(self, image: Tensor, *context: Any) -> Tensor:
        x = self.tokens(image)
        streams = torch.stack([x, x], dim=-1)
        for block in self.blocks:
            mixed = torch.einsum("...cs,st->...ct", streams, self.mix)
            streams = mixed + block(mixed[..., 0])[..., None]
        return self.norm(streams.sum(-1))


def test_streams_that_are_mixed_by_letters() -> None:
    found = jetvit.find_attention(randomize(TwoStreams()), image())
    assert [site.grid for site in found] == [GRID, GRID], found.rejected


class OneTubelet(nn.Module):
    """Two frames that make one tubelet: its tokens are those of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv3d(3, DIM, (2, PATCH, PATCH), (2, PATCH, PATCH))
        self.attention = Attention(sdpa)

    def forward(self, film: Tensor) -> Tensor:
        return self.attention(self.patch(film).flatten(2).transpose(1, 2))


def test_a_film_of_one_tubelet() -> None:
    model = randomize(OneTubelet())
    (site,) = jetvit.find_attention(model, torch.stack([image(), image()], dim=2))
    assert site.grid == GRID
    found = jetvit.find_attention(model, torch.stack([image()] * 4, dim=2))
    assert [each.reason for each in found.rejected] == [
        "unknown token grid: the tokens have more than two spatial axes"
    ]
