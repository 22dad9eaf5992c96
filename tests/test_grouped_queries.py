"""Grouped queries: several heads of q share one head of k and v, with the groups as an axis of their own."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.windows import assert_windows, assert_windows_of_open_sizes, reasons, window_bias
from tests.zoo.case import images, randomize
from tests.zoo.handwritten import DIM, PATCH

GRID, BATCH = (4, 6), 2
KV_HEADS, GROUPS, HEAD_DIM = 2, 3, 8
HEADS = KV_HEADS * GROUPS
SCALE = HEAD_DIM**-0.5
Bias = Tensor | float
Attend = Callable[[Tensor, Tensor, Tensor, Bias], Tensor]


def attention(q: Tensor, k: Tensor, v: Tensor, bias: Bias = 0.0) -> Tensor:
    return (q @ k.transpose(-2, -1) * SCALE + bias).softmax(dim=-1) @ v


def sdpa(q: Tensor, k: Tensor, v: Tensor, bias: Bias = 0.0) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias if isinstance(bias, Tensor) else None)


# --- spellings: q [batch, head, token, head_dim], k and v with fewer heads; neighbours in the order of heads share ----


def matmul(q: Tensor, k: Tensor, v: Tensor, bias: Bias = 0.0) -> Tensor:
    q = q.unflatten(1, (KV_HEADS, GROUPS))
    return attention(q, k.unsqueeze(2), v.unsqueeze(2), bias).flatten(1, 2)


def sdpa_of_five_axes(q: Tensor, k: Tensor, v: Tensor, bias: Bias = 0.0) -> Tensor:
    q = q.unflatten(1, (KV_HEADS, GROUPS))
    return sdpa(q, k.unsqueeze(2), v.unsqueeze(2), bias).flatten(1, 2)


def sdpa_expanded(q: Tensor, k: Tensor, v: Tensor, bias: Bias = 0.0) -> Tensor:
    k, v = (each.unsqueeze(2).expand(-1, -1, GROUPS, -1, -1) for each in (k, v))
    return sdpa(q.unflatten(1, (KV_HEADS, GROUPS)), k, v, bias).flatten(1, 2)


def by_hand(q: Tensor, k: Tensor, v: Tensor, bias: Bias = 0.0) -> Tensor:
    s = q.unflatten(1, (KV_HEADS, GROUPS)) @ k.unsqueeze(2).transpose(-2, -1) * SCALE + bias
    e = (s - s.amax(dim=-1, keepdim=True)).exp()
    return ((e / e.sum(dim=-1, keepdim=True)) @ v.unsqueeze(2)).flatten(1, 2)


def keys_first(q: Tensor, k: Tensor, v: Tensor, bias: Bias = 0.0) -> Tensor:
    """k · qᵀ, and vᵀ in front of the weights. The mask of windows is its own transpose."""
    q, k, v = q.unflatten(1, (KV_HEADS, GROUPS)), k.unsqueeze(2), v.unsqueeze(2)
    weights = (k @ q.transpose(-2, -1) * SCALE + bias).softmax(dim=-2)
    return (v.transpose(-2, -1) @ weights).transpose(-2, -1).flatten(1, 2)


def einsum(q: Tensor, k: Tensor, v: Tensor, bias: Bias = 0.0) -> Tensor:
    weights = (torch.einsum("bkgqd,bknd->bkgqn", q.unflatten(1, (KV_HEADS, GROUPS)), k) * SCALE + bias).softmax(dim=-1)
    return torch.einsum("bkgqn,bknd->bkgqd", weights, v).flatten(1, 2)


def einsum_tokens_first(q: Tensor, k: Tensor, v: Tensor, bias: Bias = 0.0) -> Tensor:
    """As JAX models have it: [batch, token, head of k, group, head_dim]."""
    q, k, v = q.unflatten(1, (KV_HEADS, GROUPS)).permute(0, 3, 1, 2, 4), k.transpose(1, 2), v.transpose(1, 2)
    weights = (torch.einsum("bqkgd,bnkd->bkgqn", q, k) * SCALE + bias).softmax(dim=-1)
    return torch.einsum("bkgqn,bnkd->bqkgd", weights, v).permute(0, 2, 3, 1, 4).flatten(1, 2)


def temperatures(q: Tensor, k: Tensor, v: Tensor, bias: Bias = 0.0) -> Tensor:
    """A factor for each head of q."""
    q, factor = q.unflatten(1, (KV_HEADS, GROUPS)), torch.linspace(0.2, 1.0, HEADS).view(KV_HEADS, GROUPS, 1, 1)
    return ((q @ k.unsqueeze(2).mT * factor + bias).softmax(dim=-1) @ v.unsqueeze(2)).flatten(1, 2)


# --- the same with heads that are as many apart as k has heads --------------------------------------------------------


def matmul_apart(q: Tensor, k: Tensor, v: Tensor, bias: Bias = 0.0) -> Tensor:
    q = q.unflatten(1, (GROUPS, KV_HEADS))
    return attention(q, k.unsqueeze(1), v.unsqueeze(1), bias).flatten(1, 2)


def matmul_of_fewer_axes(q: Tensor, k: Tensor, v: Tensor, bias: Bias = 0.0) -> Tensor:
    """The groups stand in front of the batch, where k and v have no axis."""
    q = q.unflatten(1, (GROUPS, KV_HEADS)).transpose(0, 1)
    return attention(q, k, v, bias).transpose(0, 1).flatten(1, 2)


def einsum_apart(q: Tensor, k: Tensor, v: Tensor, bias: Bias = 0.0) -> Tensor:
    q = q.unflatten(1, (GROUPS, KV_HEADS))
    weights = (torch.einsum("bgkqd,bknd->bgkqn", q, k) * SCALE + bias).softmax(dim=-1)
    return torch.einsum("bgkqn,bknd->bgkqd", weights, v).flatten(1, 2)


def temperatures_apart(q: Tensor, k: Tensor, v: Tensor, bias: Bias = 0.0) -> Tensor:
    q, factor = q.unflatten(1, (GROUPS, KV_HEADS)), torch.linspace(0.2, 1.0, HEADS).view(GROUPS, KV_HEADS, 1, 1)
    return ((q @ k.unsqueeze(1).mT * factor + bias).softmax(dim=-1) @ v.unsqueeze(1)).flatten(1, 2)


NEIGHBOURS = (
    matmul, sdpa_of_five_axes, sdpa_expanded, by_hand, keys_first, einsum, einsum_tokens_first, temperatures,
)  # fmt: skip
APART = (matmul_apart, matmul_of_fewer_axes, einsum_apart, temperatures_apart)
QUICK = (matmul, sdpa_of_five_axes, einsum_tokens_first, matmul_apart, temperatures_apart)


class Grouped(nn.Module):
    """Attention over the tokens of an image, with fewer heads of k and v than of q."""

    def __init__(self, attend: Attend, kv_heads: int = KV_HEADS) -> None:
        super().__init__()
        self.attend, self.kv_heads, self.bias = attend, kv_heads, 0.0
        self.patch, self.q = nn.Conv2d(3, DIM, PATCH, PATCH), nn.Linear(DIM, HEADS * HEAD_DIM)
        self.kv, self.proj = nn.Linear(DIM, 2 * kv_heads * HEAD_DIM), nn.Linear(HEADS * HEAD_DIM, DIM)

    def forward(self, image: Tensor) -> Tensor:
        x = self.patch(image).flatten(2).transpose(1, 2)
        q = self.q(x).unflatten(-1, (HEADS, HEAD_DIM)).transpose(1, 2)
        k, v = self.kv(x).unflatten(-1, (2, self.kv_heads, HEAD_DIM)).permute(2, 0, 3, 1, 4).unbind(0)
        return x + self.proj(self.attend(q, k, v, self.bias).transpose(1, 2).flatten(2))


def image(batch: int = BATCH) -> Tensor:
    return images(batch, 3, GRID[0] * PATCH, GRID[1] * PATCH)


def twins(model: Callable[[], nn.Module]) -> tuple[nn.Module, nn.Module]:
    """A model, and the same one with windows by hand."""
    plain, oracle = (randomize(model()) for _ in range(2))
    oracle.bias = window_bias(GRID)
    return plain, oracle


@pytest.mark.parametrize(
    "attend",
    [
        pytest.param(attend, id=attend.__name__, marks=() if attend in QUICK else pytest.mark.slow)
        for attend in (*NEIGHBOURS, *APART)
    ],
)
def test_spellings_are_found(attend: Attend) -> None:
    model, oracle = twins(partial(Grouped, attend))
    (site,) = assert_windows(model, oracle, image(), GRID)
    repeated = attend is sdpa_expanded
    assert (site.num_heads, site.kv_heads) == (HEADS, None if repeated else KV_HEADS)


@pytest.mark.parametrize(("one", "other"), [(matmul, einsum_tokens_first), (matmul_apart, einsum_apart)])
def test_which_heads_share_is_kept(one: Attend, other: Attend) -> None:
    """Neighbours that share and heads apart that share are different attentions, whose results differ here."""
    q, k, v = (images(BATCH, heads, 24, HEAD_DIM, seed=seed) for seed, heads in enumerate((HEADS, KV_HEADS, KV_HEADS)))
    repeated = (each.repeat_interleave(GROUPS, 1) if one is matmul else each.repeat(1, GROUPS, 1, 1) for each in (k, v))
    torch.testing.assert_close(one(q, k, v), attention(q, *repeated))
    torch.testing.assert_close(one(q, k, v), other(q, k, v))
    assert (matmul(q, k, v) - matmul_apart(q, k, v)).norm() > 0.1 * matmul(q, k, v).norm()


@pytest.mark.parametrize("attend", [matmul, einsum_tokens_first, matmul_apart])
def test_an_open_batch(attend: Attend) -> None:
    model, oracle = twins(partial(Grouped, attend))
    assert_windows_of_open_sizes(model, oracle, image(), image(5), (0,))


def of_frames(q: Tensor, k: Tensor, v: Tensor, bias: Bias) -> Tensor:
    """Of films of two frames: the frames are an axis beside the batch and the groups."""
    q, k, v = (each.unflatten(0, (-1, 2)) for each in (q, k, v))
    return (
        attention(q.unflatten(2, (KV_HEADS, GROUPS)), k.unsqueeze(3), v.unsqueeze(3), bias).flatten(2, 3).flatten(0, 1)
    )


def of_frames_by_the_operator(q: Tensor, k: Tensor, v: Tensor, bias: Bias) -> Tensor:
    """The operator's own grouped queries, with five axes."""
    q, k, v = (each.unflatten(0, (-1, 2)) for each in (q, k, v))
    mask = bias if isinstance(bias, Tensor) else None
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True).flatten(0, 1)


@pytest.mark.parametrize("attend", [of_frames, of_frames_by_the_operator])
def test_groups_and_frames(attend: Attend) -> None:
    model, oracle = twins(partial(Grouped, attend))
    (site,) = assert_windows(model, oracle, image(6), GRID)
    assert (site.num_heads, site.kv_heads) == (HEADS, KV_HEADS)


# --- a law ------------------------------------------------------------------------------------------------------------


class Letters(Grouped):
    """By einsum, with its letters in any order: batch, head of k, group, query, key, dim."""

    def __init__(self, q: str, k: str, v: str, scores: str, out: str) -> None:
        super().__init__(self.by_letters)
        self.letters = q, k, v, scores, out

    def by_letters(self, q: Tensor, k: Tensor, v: Tensor, bias: Bias) -> Tensor:
        q_letters, k_letters, v_letters, s_letters, out = self.letters
        every_head = torch.ones(len(q), KV_HEADS, GROUPS)
        q = torch.einsum(f"bhgqd->{q_letters}", q.unflatten(1, (KV_HEADS, GROUPS)))
        k, v = (torch.einsum(f"bhkd->{letters}", t) for letters, t in ((k_letters, k), (v_letters, v)))
        scores = torch.einsum(f"{q_letters},{k_letters}->{s_letters}", q, k) * SCALE
        if isinstance(bias, Tensor):
            scores = scores + torch.einsum(f"qk,bhg->{s_letters}", bias, every_head)
        weights = scores.softmax(dim=s_letters.index("k"))
        return torch.einsum(f"{out}->bhgqd", torch.einsum(f"{s_letters},{v_letters}->{out}", weights, v)).flatten(1, 2)


def orders(letters: str) -> st.SearchStrategy[str]:
    return st.permutations(letters).map("".join)


@settings(max_examples=8)
@given(orders("bhgqd"), orders("bhkd"), orders("bhkd"), orders("bhg"), orders("bhgqd"))
def test_letters_in_any_order(q: str, k: str, v: str, scores: str, out: str) -> None:
    """For einsum, which axis of the scores the queries are on is not told by its place."""
    model, oracle = twins(partial(Letters, q, k, v, f"{scores}qk", out))
    assert_windows(model, oracle, image(), GRID)


# --- what is refused --------------------------------------------------------------------------------------------------


def only_keys_are_shared(q: Tensor, k: Tensor, v: Tensor, bias: Bias) -> Tensor:
    q, k, v = q.unflatten(1, (KV_HEADS, GROUPS)), k.unsqueeze(2), v.unsqueeze(2)
    return attention(q, k, torch.cat([v, v.flip(-1), -v], dim=2)).flatten(1, 2)


def keys_and_values_of_other_groups(q: Tensor, k: Tensor, v: Tensor, bias: Bias) -> Tensor:
    """A head of k is for three of q, a head of v for two others."""
    k, v = k.unsqueeze(2), torch.cat([v, v[:, :1].flip(-1)], dim=1).unsqueeze(1)
    return attention(q.unflatten(1, (KV_HEADS, GROUPS)), k, v).flatten(1, 2)


def every_head_by_every_head(q: Tensor, k: Tensor, v: Tensor, bias: Bias) -> Tensor:
    """As many heads of q as of k, each with each: no axis is common."""
    q = q[:, :2]
    weights = (torch.einsum("bgqd,bknd->bgkqn", q, k) * SCALE).softmax(dim=-1)
    return torch.einsum("bgkqn,bknd->bgkqd", weights, v).flatten(1, 2)[:, :1].expand(-1, HEADS, -1, -1)


def temperatures_of_the_keys_heads(q: Tensor, k: Tensor, v: Tensor, bias: Bias) -> Tensor:
    """A factor for each head of k and none for each head of q: it goes along a part of the heads."""
    q, factor = q.unflatten(1, (KV_HEADS, GROUPS)), torch.linspace(0.2, 1.0, KV_HEADS).view(KV_HEADS, 1, 1, 1)
    return ((q @ k.unsqueeze(2).mT * factor + bias).softmax(dim=-1) @ v.unsqueeze(2)).flatten(1, 2)


def groups_among_the_tokens(q: Tensor, k: Tensor, v: Tensor, bias: Bias) -> Tensor:
    """The queries of a group are more rows of the same product: all heads that share k stand on the axis of tokens."""
    folded = q.unflatten(1, (KV_HEADS, GROUPS)).flatten(2, 3)
    return attention(folded, k, v).unflatten(2, (GROUPS, -1)).flatten(1, 2)


OF_ITS_OWN = "grouped-query attention: q has 6 heads, k has 2 of its own"
REFUSED = {
    only_keys_are_shared: OF_ITS_OWN,
    keys_and_values_of_other_groups: OF_ITS_OWN,
    every_head_by_every_head: "batch and heads of q, k and v do not stand in the same order",
    temperatures_of_the_keys_heads: "the attention scores are multiplied by a tensor that goes along some of the axes "
    "of batch or heads",
    groups_among_the_tokens: "grouped-query attention: 3 heads of q stand on its axis of tokens. "
    "Give the heads of q and of the result an axis of their own",
}


@pytest.mark.parametrize("attend", REFUSED, ids=lambda attend: attend.__name__)
def test_what_is_shared_in_other_ways_is_refused(attend: Attend) -> None:
    assert reasons(randomize(Grouped(attend)), image()) == [REFUSED[attend]]
