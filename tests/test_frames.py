"""Attention over the tokens of each frame of a film, or each view of a scene, that keeps the frames as an axis."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import jetvit
from jetvit.cost_model import Choice
from jetvit.patterns.aten_sets import SDPA
from tests.passes.models import nodes_of, plan_of
from tests.windows import assert_windows, assert_windows_of_open_sizes, reasons, window_bias
from tests.zoo.case import images, randomize
from tests.zoo.handwritten import DIM, HEAD_DIM, HEADS, PATCH, SCALE

GRID, BATCH, FRAMES = (4, 6), 2, 3
Bias = Tensor | float
Attend = Callable[[Tensor, Tensor, Tensor, Bias], Tensor]


# --- spellings: q, k, v [batch, frame, head, token, head_dim] in and out ----------------------------------------------


def matmul(q: Tensor, k: Tensor, v: Tensor, bias: Bias = 0.0) -> Tensor:
    return (q @ k.transpose(-2, -1) * SCALE + bias).softmax(dim=-1) @ v


def sdpa(q: Tensor, k: Tensor, v: Tensor, bias: Bias = 0.0) -> Tensor:
    mask = bias if isinstance(bias, Tensor) else None
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def einsum(q: Tensor, k: Tensor, v: Tensor, bias: Bias = 0.0) -> Tensor:
    weights = (torch.einsum("bthqd,bthkd->bthqk", q, k) * SCALE + bias).softmax(dim=-1)
    return torch.einsum("bthqk,bthkd->bthqd", weights, v)


def einsum_frames_first(q: Tensor, k: Tensor, v: Tensor, bias: Bias = 0.0) -> Tensor:
    """The scores have the frames in front, and the result has them behind the heads."""
    weights = (torch.einsum("bthqd,bthkd->tbhqk", q, k) * SCALE + bias).softmax(dim=-1)
    return torch.einsum("tbhqk,bthkd->bhtqd", weights, v).transpose(1, 2)


def by_hand(q: Tensor, k: Tensor, v: Tensor, bias: Bias = 0.0) -> Tensor:
    s = q @ k.transpose(-2, -1) * SCALE + bias
    e = (s - s.amax(dim=-1, keepdim=True)).exp()
    return (e / e.sum(dim=-1, keepdim=True)) @ v


def heads_first(q: Tensor, k: Tensor, v: Tensor, bias: Bias = 0.0) -> Tensor:
    """Batch, heads, frames: the batch stands around the heads."""
    q, k, v = (each.transpose(1, 2) for each in (q, k, v))
    return sdpa(q, k, v, bias).transpose(1, 2)


def frames_first(q: Tensor, k: Tensor, v: Tensor, bias: Bias = 0.0) -> Tensor:
    q, k, v = (each.transpose(0, 1) for each in (q, k, v))
    return matmul(q, k, v, bias).transpose(0, 1)


def heads_of_a_batch(q: Tensor, k: Tensor, v: Tensor, bias: Bias = 0.0) -> Tensor:
    """Batch and heads are one axis, and the frames another."""
    heads = q.shape[2]
    q, k, v = (each.transpose(1, 2).flatten(0, 1) for each in (q, k, v))
    return matmul(q, k, v, bias).unflatten(0, (-1, heads)).transpose(1, 2)


def scores_in_a_row(q: Tensor, k: Tensor, v: Tensor, bias: Bias = 0.0) -> Tensor:
    """The scores are taken apart, the weights and v are one batch."""
    weights = (q @ k.transpose(-2, -1) * SCALE + bias).softmax(dim=-1)
    return torch.bmm(weights.flatten(0, 2), v.flatten(0, 2)).reshape(q.shape)


def temperature_of_a_frame(q: Tensor, k: Tensor, v: Tensor, bias: Bias = 0.0) -> Tensor:
    """A factor for each head, and one for each frame, image and head."""
    heads = torch.linspace(0.5, 1, q.shape[2]).view(-1, 1, 1)
    scores = q @ k.transpose(-2, -1) * heads * (q.mean(dim=(-2, -1), keepdim=True).sigmoid() + 0.1)
    return (scores + bias).softmax(dim=-1) @ v


SPELLINGS = (
    matmul, sdpa, einsum, einsum_frames_first, by_hand, heads_first, frames_first, heads_of_a_batch, scores_in_a_row,
    temperature_of_a_frame,
)  # fmt: skip
QUICK = (matmul, sdpa, einsum_frames_first, heads_first, temperature_of_a_frame)


# --- models -----------------------------------------------------------------------------------------------------------


class Film(nn.Module):
    """Two blocks over the frames of a film [batch, frame, 3, height, width], each frame behind a CLS token."""

    def __init__(self, attend: Attend, before: int = 1, depth: int = 2) -> None:
        super().__init__()
        self.attend, self.bias = attend, 0.0
        self.patch, self.cls = nn.Conv2d(3, DIM, PATCH, PATCH), nn.Parameter(torch.empty(1, 1, before, DIM))
        self.qkv = nn.ModuleList(nn.Linear(DIM, 3 * DIM) for _ in range(depth))
        self.proj = nn.ModuleList(nn.Linear(DIM, DIM) for _ in range(depth))

    def forward(self, film: Tensor) -> Tensor:
        batch, frames = film.shape[:2]
        x = self.patch(film.flatten(0, 1)).flatten(2).transpose(1, 2).unflatten(0, (batch, frames))
        x = torch.cat([self.cls.expand(batch, frames, -1, -1), x], dim=2)
        for qkv, proj in zip(self.qkv, self.proj, strict=True):
            q, k, v = qkv(x).unflatten(-1, (3, HEADS, HEAD_DIM)).permute(3, 0, 1, 4, 2, 5).unbind(0)
            x = x + proj(self.attend(q, k, v, self.bias).transpose(2, 3).flatten(3))
        return x


class Views(nn.Module):
    """Views that come as one batch, [batch · view, 3, height, width], and are an axis inside of the attention."""

    def __init__(self, views: int) -> None:
        super().__init__()
        self.views, self.bias = views, 0.0
        self.patch, self.qkv, self.proj = nn.Conv2d(3, DIM, PATCH, PATCH), nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patch(images).flatten(2).transpose(1, 2)
        apart = (t.unflatten(-1, (HEADS, -1)).unflatten(0, (-1, self.views)) for t in self.qkv(x).chunk(3, dim=-1))
        q, k, v = (t.transpose(2, 3) for t in apart)
        return x + self.proj(matmul(q, k, v, self.bias).transpose(2, 3).flatten(3).flatten(0, 1))


def film(batch: int = BATCH, frames: int = FRAMES, grid: tuple[int, int] = GRID) -> Tensor:
    return images(batch, frames, 3, grid[0] * PATCH, grid[1] * PATCH)


def twins(model: Callable[[], nn.Module], before: int = 0) -> tuple[nn.Module, nn.Module]:
    """A model, and the same one with windows by hand."""
    plain, oracle = (randomize(model()) for _ in range(2))
    oracle.bias = window_bias(GRID, before)
    return plain, oracle


@pytest.mark.parametrize(
    "attend",
    [
        pytest.param(attend, id=attend.__name__, marks=() if attend in QUICK else pytest.mark.slow)
        for attend in SPELLINGS
    ],
)
def test_spellings_are_found(attend: Attend) -> None:
    model, oracle = twins(partial(Film, attend), before=1)
    for site in assert_windows(model, oracle, film(), GRID, sites=2):
        assert (site.num_heads, site.head_dim, site.extra_before, site.kv_heads) == (HEADS, HEAD_DIM, 1, None)


def test_views_in_one_batch() -> None:
    model, oracle = twins(partial(Views, FRAMES))
    assert_windows(model, oracle, film().flatten(0, 1), GRID)


def test_without_a_plan_the_operator_has_four_axes() -> None:
    """As its fast backends want them: five axes run as two products and a softmax."""
    module = jetvit.optimize(randomize(Film(sdpa)), film()).graph_module
    operators = [node for node in nodes_of(module) if node.target is SDPA]
    assert [node.meta["val"].ndim for node in operators] == [4, 4]


@pytest.mark.parametrize("attend", [sdpa, einsum, heads_first])
@pytest.mark.parametrize(("dims", "other"), [((0,), (4, FRAMES)), ((0, 1), (5, 4))], ids=["batch", "batch_and_frames"])
def test_open_sizes(attend: Attend, dims: tuple[int, ...], other: tuple[int, int]) -> None:
    model, oracle = twins(partial(Film, attend, 1, 1), before=1)
    assert_windows_of_open_sizes(model, oracle, film(), film(*other), dims)


def test_one_batch_and_one_frame() -> None:
    for batch, frames in ((1, FRAMES), (BATCH, 1), (1, 1)):
        model, oracle = twins(partial(Film, matmul, 1, 1), before=1)
        assert_windows(model, oracle, film(batch, frames), GRID)


def test_linear_attention_is_that_of_each_frame() -> None:
    model, single, x = randomize(Film(heads_first)), randomize(Film(sdpa)), film()

    def linear(model: nn.Module, x: Tensor) -> Tensor:
        plan = plan_of(jetvit.find_attention(model, x), [Choice("linear")])
        return jetvit.optimize(model, x, plan=plan)(x)

    with torch.no_grad():
        torch.testing.assert_close(linear(model, x)[1:, 2:], linear(single, x[1:, 2:].clone()), rtol=1e-5, atol=1e-5)


# --- a law ------------------------------------------------------------------------------------------------------------


class Letters(nn.Module):
    """Attention by einsum, with its letters in any order: batch, frame, head, query, key, dim."""

    def __init__(self, q: str, k: str, v: str, scores: str, out: str) -> None:
        super().__init__()
        self.letters, self.bias = (q, k, v, scores, out), 0.0
        self.patch, self.qkv = nn.Conv2d(3, DIM, PATCH, PATCH), nn.Linear(DIM, 3 * DIM)

    def forward(self, film: Tensor) -> Tensor:
        q_letters, k_letters, v_letters, s_letters, out = self.letters
        x = self.patch(film.flatten(0, 1)).flatten(2).transpose(1, 2).unflatten(0, film.shape[:2])
        q, k, v = self.qkv(x).unflatten(-1, (3, HEADS, HEAD_DIM)).unbind(3)  # [batch, frame, token, head, head_dim]
        q = torch.einsum(f"btqhd->{q_letters}", q).contiguous()
        k, v = (torch.einsum(f"btkhd->{letters}", t) for letters, t in ((k_letters, k), (v_letters, v)))
        scores = torch.einsum(f"{q_letters},{k_letters}->{s_letters}", q, k) * SCALE
        if isinstance(self.bias, Tensor):
            scores = scores + torch.einsum(f"qk,bth->{s_letters}", self.bias, torch.ones(*film.shape[:2], HEADS))
        weights = scores.softmax(dim=s_letters.index("k"))
        result = torch.einsum(f"{s_letters},{v_letters}->{out}", weights, v)
        return torch.einsum(f"{out}->btqhd", result)


def orders(letters: str) -> st.SearchStrategy[str]:
    return st.permutations(letters).map("".join)


@settings(max_examples=8)
@given(orders("btqhd"), orders("btkhd"), orders("btkhd"), orders("bth"), orders("btqhd"))
def test_letters_in_any_order(q: str, k: str, v: str, scores: str, out: str) -> None:
    model, oracle = twins(partial(Letters, q, k, v, f"{scores}qk", out))
    assert_windows(model, oracle, film(frames=BATCH), GRID)  # as many frames as films: an exchange shows


# --- what is refused --------------------------------------------------------------------------------------------------


def over_frames(q: Tensor, k: Tensor, v: Tensor, bias: Bias) -> Tensor:
    q, k, v = (each.transpose(1, 3) for each in (q, k, v))
    return sdpa(q, k, v).transpose(1, 3)


def all_frames_together(q: Tensor, k: Tensor, v: Tensor, bias: Bias) -> Tensor:
    q, k, v = (each.permute(0, 2, 1, 3, 4).flatten(2, 3) for each in (q, k, v))
    return sdpa(q, k, v).unflatten(2, (FRAMES, -1)).transpose(1, 2)


def keys_of_the_frame_before(q: Tensor, k: Tensor, v: Tensor, bias: Bias) -> Tensor:
    return sdpa(q, k.roll(1, dims=1), v.roll(1, dims=1))


def keys_of_the_frame_after(q: Tensor, k: Tensor, v: Tensor, bias: Bias) -> Tensor:
    k, v = (torch.cat([each[:, 1:], each[:, :1]], dim=1) for each in (k, v))
    return sdpa(q, k, v)


def keys_of_the_first_frame(q: Tensor, k: Tensor, v: Tensor, bias: Bias) -> Tensor:
    return matmul(q, k[:, :1], v[:, :1])


def keys_of_the_first_frame_expanded(q: Tensor, k: Tensor, v: Tensor, bias: Bias) -> Tensor:
    return matmul(q, k[:, :1].expand_as(q), v[:, :1].expand_as(q))


def values_of_the_first_frame(q: Tensor, k: Tensor, v: Tensor, bias: Bias) -> Tensor:
    return matmul(q, k, v[:, :1])


def keys_of_the_mean_frame(q: Tensor, k: Tensor, v: Tensor, bias: Bias) -> Tensor:
    return matmul(q, k.mean(dim=1, keepdim=True), v.mean(dim=1, keepdim=True))


def keys_of_the_other_axis(q: Tensor, k: Tensor, v: Tensor, bias: Bias) -> Tensor:
    """Of as many films as frames: frame i of film j reads frame j of film i."""
    return matmul(q, k.transpose(0, 1), v.transpose(0, 1))


ANOTHER_PART = "cross attention: k comes from another part of the batch than q"
REFUSED = {
    over_frames: f"the attention runs over {FRAMES} frames or views of one place, not over the tokens of an image",
    all_frames_together: "unknown token grid: the tokens have more than two spatial axes",
    keys_of_the_frame_before: ANOTHER_PART,
    keys_of_the_frame_after: ANOTHER_PART,
    keys_of_the_first_frame: ANOTHER_PART,
    keys_of_the_first_frame_expanded: ANOTHER_PART,
    values_of_the_first_frame: "cross attention: v comes from another part of the batch than q",
    keys_of_the_mean_frame: ANOTHER_PART,
    keys_of_the_other_axis: ANOTHER_PART,
}


@pytest.mark.parametrize("attend", REFUSED, ids=lambda attend: attend.__name__)
def test_other_attention_between_frames_is_refused(attend: Attend) -> None:
    model = randomize(Film(attend, before=0, depth=1))
    assert reasons(model, film(batch=FRAMES)) == [REFUSED[attend]]
