"""Attention that looks plain and is not: each was once rewritten to other numbers, or found where there is none."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import jetvit

HEADS, TOKENS = 2, 97
IMAGE = torch.randn(2, 3, 32, 48, generator=torch.Generator().manual_seed(0))


class Vit(nn.Module):
    """Convolution, CLS token, packed q, k, v and an attention of the test's own; q, k, v are [B, h, N, d]."""

    def __init__(self, attend: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patches, self.cls = nn.Conv2d(3, 16, 4, 4), nn.Parameter(torch.randn(1, 1, 16))
        self.qkv, self.attend = nn.Linear(16, 48), attend

    def forward(self, image: Tensor) -> Tensor:
        x = self.patches(image).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(len(x), -1, -1), x], 1)
        q, k, v = self.qkv(x).unflatten(-1, (3, HEADS, 8)).permute(2, 0, 3, 1, 4).unbind(0)
        return self.attend(q, k, v).transpose(1, 2).flatten(2)


def masked(fill: Callable[[Tensor], object], start: float = 0.0, dtype: torch.dtype = torch.float32):
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        mask = torch.full((TOKENS, TOKENS), start, dtype=dtype)
        fill(mask)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    return attend


def scored(change: Callable[[Tensor], Tensor]):
    return lambda q, k, v: change(q @ k.mT * 0.2).softmax(-1) @ v


def late_write(alias: Callable[[Tensor], Tensor]):
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q = q.clone(memory_format=torch.contiguous_format)
        other = alias(q)
        scores = q @ k.mT * 0.3
        other.zero_()
        return scores.softmax(-1) @ v

    return attend


ATTENTIONS = {
    "mask edited": masked(lambda m: m[:, 5:].fill_(float("-inf"))),
    "boolean mask edited": masked(lambda m: m[:, 5:].fill_(False), True, torch.bool),
    "mask edited through a view": masked(lambda m: m.view(TOKENS, -1)[:, 9:].sub_(50)),
    "mask set": masked(lambda m: m.__setitem__(slice(5, None), -1e9)),
    "doubled scores": scored(lambda a: a + a),
    "alpha": scored(lambda a: torch.add(a, a, alpha=3)),
    "alpha on the scores": scored(lambda a: torch.add(torch.zeros(1), a, alpha=0.1)),
    "negated scores": scored(lambda a: torch.sub(torch.zeros(1), a)),
    "v of other heads": lambda q, k, v: (q @ k.mT).softmax(-1) @ v.transpose(0, 1),
    "reshaped weights": lambda q, k, v: (
        (q @ k.mT).softmax(-1).reshape(HEADS, 2, TOKENS, TOKENS) @ v.transpose(0, 1)
    ).transpose(0, 1),
    "einsum of other letters": lambda q, k, v: torch.einsum(
        "hbqk,bhkd->bhqd", torch.einsum("bhqd,bhkd->bhqk", q, k).softmax(-1), v
    ),
    "k of other heads": lambda q, k, v: F.scaled_dot_product_attention(q, k.transpose(0, 1), v),
    "write by narrow": late_write(lambda q: q.narrow(2, 0, 9)),
    "write by mT": late_write(lambda q: q.mT),
    "write by diagonal": late_write(lambda q: q.diagonal(dim1=2, dim2=3)),
    "write by tensor_split": late_write(lambda q: q.tensor_split(2, 2)[0]),
    "write by expand_as": late_write(lambda q: q.expand_as(q)),
}


@pytest.mark.parametrize("name", ATTENTIONS)
@pytest.mark.parametrize("road", ["export", "dynamo"])
def test_the_numbers_stay(name: str, road: str):
    model = Vit(ATTENTIONS[name]).eval()
    with torch.no_grad():
        expected = model(IMAGE)
        if road == "export":
            result = jetvit.optimize(model, IMAGE)(IMAGE)
        else:
            result = torch.compile(model, backend="jetvit", options={"inner": "eager"})(IMAGE)
    torch.testing.assert_close(result, expected)


@pytest.mark.parametrize("name", [name for name in ATTENTIONS if "write" not in name])
def test_they_are_refused(name: str):
    sites = jetvit.find_attention(Vit(ATTENTIONS[name]).eval(), IMAGE)
    assert not sites
    assert len(sites.rejected) == 1


class Views(nn.Module):
    """Two views of a scene in one batch axis; queries of one, keys of the other, as decoders for stereo have it."""

    def __init__(self, pick: Callable[[Tensor], tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self.patches, self.q, self.kv, self.pick = nn.Conv2d(3, 16, 4, 4), nn.Linear(16, 16), nn.Linear(16, 32), pick

    def forward(self, views: Tensor) -> Tensor:
        x = self.patches(views.flatten(0, 1)).flatten(2).transpose(1, 2).unflatten(0, (-1, 2))
        a, b = self.pick(x)
        k, v = self.kv(b).unflatten(-1, (2, HEADS, 8)).permute(2, 0, 3, 1, 4).unbind(0)
        return F.scaled_dot_product_attention(self.q(a).unflatten(-1, (HEADS, 8)).transpose(1, 2), k, v)


@pytest.mark.parametrize(
    ("pick", "sites"),
    [
        (lambda x: x.unbind(1), 0),
        (lambda x: (x[:, 0], x[:, 1]), 0),
        (lambda x: (x[:, 0], x.mean(1)), 0),
        (lambda x: (x[:, 1], x[:, 1]), 1),
    ],
    ids=["unbind", "select", "mean", "the same view"],
)
def test_two_views_are_cross_attention(pick, sites: int):
    found = jetvit.find_attention(Views(pick).eval(), torch.randn(3, 2, 3, 32, 48))
    assert len(found) == sites
    assert all("cross attention" in rejection.reason for rejection in found.rejected)


class Table(nn.Module):
    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.qkv = nn.Linear(shape[-1], 48)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x.flatten(1, 2)).unflatten(-1, (3, HEADS, 8)).permute(2, 0, 3, 1, 4).unbind(0)
        return F.scaled_dot_product_attention(q, k, v)


@pytest.mark.parametrize("shape", [(2, 8, 50, 64), (2, 3, 32, 64)], ids=["frames × tokens", "channels × rows"])
def test_two_axes_of_an_input_are_no_grid(shape: tuple[int, ...]):
    sites = jetvit.find_attention(Table(shape).eval(), torch.randn(shape))
    assert not sites
    assert "unknown token grid" in sites.rejected[0].reason


def test_a_cls_token_may_be_renewed_again_and_again():
    class Renewed(Vit):
        def forward(self, image: Tensor) -> Tensor:
            x = torch.cat([self.cls.expand(2, -1, -1), self.patches(image).flatten(2).transpose(1, 2)], 1)
            for _ in range(3):
                x = torch.cat([2 * x[:, :1], x[:, 1:]], 1)
            q, k, v = self.qkv(x).unflatten(-1, (3, HEADS, 8)).permute(2, 0, 3, 1, 4).unbind(0)
            return self.attend(q, k, v)

    (site,) = jetvit.find_attention(Renewed(F.scaled_dot_product_attention).eval(), IMAGE)
    assert (site.grid, site.extra_before) == ((8, 12), 1)


def test_checkpointed_blocks_are_compiled():
    from torch.utils.checkpoint import checkpoint

    class Checkpointed(Vit):
        def forward(self, image: Tensor) -> Tensor:
            return checkpoint(super().forward, image, use_reentrant=False)

    model = Checkpointed(F.scaled_dot_product_attention).eval()
    with torch.no_grad():
        result = torch.compile(model, backend="jetvit", options={"inner": "eager"})(IMAGE)
        torch.testing.assert_close(result, model(IMAGE))
