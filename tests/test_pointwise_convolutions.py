"""Projections that are convolutions: `nn.Conv1d` over a row of tokens, `nn.Conv3d` over a film."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.windows import assert_windows, assert_windows_of_open_sizes, reasons, window_bias
from tests.zoo.case import images, randomize
from tests.zoo.handwritten import DIM, HEAD_DIM, HEADS, PATCH, SCALE

GRID = (4, 6)
Bias = Tensor | float


def channels_first(q: Tensor, k: Tensor, v: Tensor, bias: Bias) -> Tensor:
    """On [batch, head, head_dim, token], as it comes from the projection."""
    weights = (q.transpose(-2, -1) @ k * SCALE + bias).softmax(dim=-1)
    return v @ weights.transpose(-2, -1)


def tokens_first(q: Tensor, k: Tensor, v: Tensor, bias: Bias) -> Tensor:
    q, k, v = (each.transpose(-2, -1) for each in (q, k, v))
    mask = bias if isinstance(bias, Tensor) else None
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(-2, -1)


def einsum(q: Tensor, k: Tensor, v: Tensor, bias: Bias) -> Tensor:
    weights = (torch.einsum("bhdn,bhdm->bhnm", q, k) * SCALE + bias).softmax(dim=-1)
    return torch.einsum("bhnm,bhdm->bhdn", weights, v)


Attend = Callable[[Tensor, Tensor, Tensor, Bias], Tensor]


class Row(nn.Module):
    """Tokens with their channels in front, [batch, channel, token], behind a CLS token.

    `options` are those of the convolution that makes q, k and v.
    """

    def __init__(self, attend: Attend, **options: Any) -> None:
        super().__init__()
        self.attend, self.bias = attend, 0.0
        self.patch, self.cls = nn.Conv2d(3, DIM, PATCH, PATCH), nn.Parameter(torch.empty(1, DIM, 1))
        self.qkv = nn.Conv1d(DIM, 3 * DIM, **({"kernel_size": 1} | options))
        self.proj = nn.Conv1d(DIM, DIM, 1)

    def forward(self, image: Tensor) -> Tensor:
        x = self.patch(image).flatten(2)
        x = torch.cat([self.cls.expand(x.shape[0], -1, -1), x], dim=2)
        q, k, v = (each.unflatten(1, (HEADS, HEAD_DIM)) for each in self.qkv(x).chunk(3, dim=1))
        return self.proj(self.attend(q, k, v, self.bias).flatten(1, 2))


class OneEach(nn.Module):
    """One convolution each for q, k and v, between layers that have the channels last; `stride` is that of k and v."""

    def __init__(self, attend: Attend = tokens_first, stride: int = 1) -> None:
        super().__init__()
        self.attend, self.bias = attend, 0.0
        self.patch, self.q = nn.Conv2d(3, DIM, PATCH, PATCH), nn.Conv1d(DIM, DIM, 1, bias=False)
        self.k, self.v = (nn.Conv1d(DIM, DIM, 1, stride, bias=False) for _ in range(2))
        self.norm = nn.LayerNorm(DIM)

    def forward(self, image: Tensor) -> Tensor:
        x = self.norm(self.patch(image).flatten(2).transpose(1, 2)).transpose(1, 2)
        q, k, v = (layer(x).unflatten(1, (HEADS, HEAD_DIM)) for layer in (self.q, self.k, self.v))
        return x + self.attend(q, k, v, self.bias).flatten(1, 2)


class Film(nn.Module):
    """Attention inside of each frame of [batch, channel, frame, row, column], projected by a convolution over films."""

    def __init__(self, kernel: tuple[int, int, int] = (1, 1, 1)) -> None:
        super().__init__()
        self.bias = 0.0
        self.patch = nn.Conv3d(3, DIM, (1, PATCH, PATCH), (1, PATCH, PATCH))
        self.qkv = nn.Conv3d(DIM, 3 * DIM, kernel, padding=tuple(size // 2 for size in kernel))

    def forward(self, film: Tensor) -> Tensor:
        x = self.patch(film)
        q, k, v = self.qkv(x).unflatten(1, (3, HEADS, HEAD_DIM)).flatten(5).permute(1, 0, 4, 2, 5, 3).unbind(0)
        weights = (q @ k.transpose(-2, -1) * SCALE + self.bias).softmax(dim=-1)
        return x + (weights @ v).permute(0, 2, 4, 1, 3).flatten(1, 2).unflatten(3, x.shape[3:])


def image(batch: int = 2) -> Tensor:
    return images(batch, 3, GRID[0] * PATCH, GRID[1] * PATCH)


def twins(model: Callable[[], nn.Module], before: int = 0) -> tuple[nn.Module, nn.Module]:
    """A model, and the same one with windows by hand."""
    plain, oracle = (randomize(model()) for _ in range(2))
    oracle.bias = window_bias(GRID, before)
    return plain, oracle


@pytest.mark.parametrize("attend", [channels_first, tokens_first, einsum], ids=lambda attend: attend.__name__)
def test_a_pointwise_convolution_is_a_projection(attend: Attend) -> None:
    model, oracle = twins(partial(Row, attend), before=1)
    (site,) = assert_windows(model, oracle, image(), GRID)
    assert (site.num_heads, site.head_dim, site.extra_before) == (HEADS, HEAD_DIM, 1)


@pytest.mark.parametrize(
    "options",
    [{"groups": 2}, {"kernel_size": 3, "padding": 1}, {"kernel_size": 3, "padding": "same", "dilation": 2}],
    ids=["groups", "neighbours", "same"],
)
def test_a_convolution_of_stride_one_keeps_the_places(options: dict[str, Any]) -> None:
    """Which token a query, key or value stands for does not change where it is made from its neighbours too."""
    model, oracle = twins(partial(Row, tokens_first, **options), before=1)
    assert_windows(model, oracle, image(), GRID)


def test_one_convolution_each() -> None:
    model, oracle = twins(OneEach)
    assert_windows(model, oracle, image(), GRID)


def test_an_open_batch() -> None:
    model, oracle = twins(partial(Row, channels_first), before=1)
    assert_windows_of_open_sizes(model, oracle, image(), image(5), (0,))


@pytest.mark.parametrize("kernel", [(1, 1, 1), (3, 1, 1)])
def test_convolutions_over_films(kernel: tuple[int, int, int]) -> None:
    model, oracle = twins(partial(Film, kernel))
    assert_windows(model, oracle, torch.stack([image()] * 3, dim=2), GRID)


# --- what is refused --------------------------------------------------------------------------------------------------


class TokensAsChannels(nn.Module):
    """The convolution takes the tokens for its channels: each token of its result is a sum over all tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.mix = nn.Conv2d(3, DIM, PATCH, PATCH), nn.Conv1d(GRID[0] * GRID[1], 3 * GRID[0] * GRID[1], 1)

    def forward(self, image: Tensor) -> Tensor:
        x = self.patch(image).flatten(2).transpose(1, 2)
        q, k, v = self.mix(x).chunk(3, dim=1)
        q, k, v = (each.unflatten(-1, (HEADS, HEAD_DIM)).transpose(1, 2) for each in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v)


def test_other_convolutions_are_refused() -> None:
    assert reasons(randomize(OneEach(stride=2)), image()) == ["cross attention: 24 queries attend to 12 tokens"]
    shorter = partial(Row, tokens_first, kernel_size=2)
    assert reasons(randomize(shorter()), image()) == ["unknown token grid: it was lost at aten.conv1d.default (conv1d)"]
    assert reasons(randomize(TokensAsChannels()), image()) == [
        "a matrix product mixes tokens: each row of q and k is a sum over all of them"
    ]
