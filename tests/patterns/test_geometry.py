"""Where tokens, heads and batch lie: small changes to a model that must be read right, or refused with the true reason.

What decides is a run: a site that is found has to compute full attention from its own q, k and v.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.patterns.roads import ROADS, Captured, assert_row_major, by_dynamo, by_export
from tests.zoo.case import REPRS, images, randomize
from tests.zoo.handwritten import (
    DIM,
    HEAD_DIM,
    HEADS,
    PATCH,
    SCALE,
    SIZE,
    Attention,
    ConvPatches,
    TinyViT,
    scale_on_product,
    sdpa,
)
from tests.zoo.quick import sweep

Triple = tuple[Tensor, Tensor, Tensor]
ROAD = pytest.mark.parametrize("road", ROADS)
# A quick run leaves out what is the same by Dynamo: both roads give one dialect.
QUICK_BY_EXPORT = pytest.mark.parametrize("road", sweep(ROADS, quick=["export"]))


def captured_by(road: str, model: nn.Module, size: tuple[int, int] = SIZE, batch: int = 2) -> Captured:
    """A model on seeded images; whatever is claimed of it is checked by its values."""
    inputs = ((images(batch, 3, *size),), {})
    captured = (by_export if road == "export" else by_dynamo)(randomize(model), *inputs)
    for attention in captured.attentions:
        attention.assert_true()
    if captured.sites and captured.sites[0].name == "blocks.0.attn":
        assert_row_major(captured, inputs, size)
    return captured


def reasons(captured: Captured) -> str:
    assert not captured.sites
    found = " | ".join(each.reason for each in captured.sites.rejected)
    assert not REPRS.search(found)
    return found


# --- the order of tokens ----------------------------------------------------------------------------------------------


class ColumnMajorPatches(ConvPatches):
    def forward(self, image: Tensor) -> tuple[Tensor, tuple[int, int]]:
        x = self.proj(image)
        return x.transpose(2, 3).flatten(2).transpose(1, 2), x.shape[-2:]


class BlockedPatches(ConvPatches):
    """Tokens in blocks of two by two, as a space-filling order has them."""

    def forward(self, image: Tensor) -> tuple[Tensor, tuple[int, int]]:
        x = self.proj(image)
        b, c, h, w = x.shape
        x = x.view(b, c, h // 2, 2, w // 2, 2).transpose(3, 4).reshape(b, c, h * w)
        return x.transpose(1, 2), (h, w)


class PhasePatches(nn.Module):
    """A token for each place inside a patch, made of that pixel of every patch."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(3 * SIZE[0] * SIZE[1] // PATCH**2, DIM)

    def forward(self, image: Tensor) -> tuple[Tensor, tuple[int, int]]:
        x = image.unflatten(3, (-1, PATCH)).unflatten(2, (-1, PATCH)).permute(0, 3, 5, 1, 2, 4)
        return self.proj(x.flatten(3).flatten(1, 2)), (PATCH, PATCH)


class PermutedPatches(ConvPatches):
    """Tokens in a fixed random order."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("order", torch.randperm(24, generator=torch.Generator().manual_seed(0)))

    def forward(self, image: Tensor) -> tuple[Tensor, tuple[int, int]]:
        x, grid = super().forward(image)
        return x[:, self.order], grid


class TwoGridsViT(TinyViT):
    """The patches of two scales in one sequence."""

    def tokens(self, image: Tensor) -> Tensor:
        return torch.cat([super().tokens(image), super().tokens(F.avg_pool2d(image, 2))], dim=1)


class TemplateInside(TinyViT):
    """A tracker's template stands in the middle of the region that it is searched in."""

    def tokens(self, image: Tensor) -> Tensor:
        region, template = super().tokens(image), super().tokens(image[..., :16, :16])
        return torch.cat([region[:, :9], template, region[:, 9:]], dim=1)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (partial(TinyViT, partial(Attention, sdpa), patches=ColumnMajorPatches), "column-major"),
        (partial(TinyViT, partial(Attention, sdpa), patches=BlockedPatches), "more than two spatial axes"),
        (partial(TinyViT, partial(Attention, sdpa), patches=PermutedPatches), "lost at .*index"),
        (partial(TinyViT, partial(Attention, sdpa), patches=PhasePatches), ""),
        (partial(TwoGridsViT, partial(Attention, sdpa)), "grids stand side by side"),
        (partial(TemplateInside, partial(Attention, sdpa), before=0), "9 tokens beside the 2×2 are of an image too"),
    ],
    ids=["column_major", "blocked", "permuted", "phases", "two_grids", "template_inside"],
)
@QUICK_BY_EXPORT
def test_other_orders_of_tokens(model: Callable[[], nn.Module], reason: str, road: str) -> None:
    assert re.search(f"unknown token grid: .*{reason}", reasons(captured_by(road, model())))


class WindowsAfterProjection(Attention):
    """ScalableViT's: each of q, k and v is cut into windows of 2 × 2 tokens, or into groups that lie apart."""

    def __init__(self, apart: bool) -> None:
        super().__init__(sdpa)
        self.apart = apart

    def forward(self, x: Tensor) -> Tensor:
        b, (h, w) = x.shape[0], (SIZE[0] // PATCH, SIZE[1] // PATCH)

        def cut(t: Tensor) -> Tensor:
            sizes = (
                (b, 2, h // 2, 2, w // 2, HEADS, HEAD_DIM) if self.apart else (b, h // 2, 2, w // 2, 2, HEADS, HEAD_DIM)
            )
            order = (0, 2, 4, 5, 1, 3, 6) if self.apart else (0, 1, 3, 5, 2, 4, 6)
            return t.reshape(sizes).permute(order).reshape(-1, HEADS, 4, HEAD_DIM)

        out = self.attend(*map(cut, self.qkv(x[:, 1:]).chunk(3, dim=-1)))
        return x + self.proj(out.mean(2).flatten(1)).mean()


@pytest.mark.parametrize(
    ("attention", "reason"),
    [
        (partial(WindowsAfterProjection, False), "the attention is local already: it runs inside windows of 2×2"),
        (partial(WindowsAfterProjection, True), "the attention is dilated: it runs over 2×2 tokens"),
    ],
)
@QUICK_BY_EXPORT
def test_axes_that_are_cut_once_for_each_of_q_k_and_v(
    attention: Callable[[], nn.Module], reason: str, road: str
) -> None:
    assert reason in reasons(captured_by(road, TinyViT(attention), batch=4))


class TextToImage(nn.Module):
    """Words ask the patches; the words come out of a table, behind which their axes are not known."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.patches = nn.Embedding(7, DIM), ConvPatches()

    def forward(self, image: Tensor) -> Tensor:
        words = self.words(image[:, 0, 0, :4].abs().long().clamp(0, 6))
        tokens, _ = self.patches(image)
        return sdpa(*(t.unflatten(-1, (HEADS, -1)).transpose(1, 2) for t in (words, tokens, tokens)))


def test_queries_of_another_number_are_cross_attention_wherever_they_come_from() -> None:
    assert "cross attention: 4 queries attend to 24 tokens" in reasons(captured_by("export", TextToImage()))


class Clips(TinyViT):
    """All patches of two frames in one sequence, behind a CLS token."""

    def tokens(self, image: Tensor) -> Tensor:
        x = super().tokens(image)
        frames = x[:, 1:].unflatten(0, (-1, 2)).flatten(1, 2)
        return torch.cat((x[::2, :1], frames), dim=1)


def test_frames_behind_an_extra_token() -> None:
    found = reasons(captured_by("export", Clips(partial(Attention, sdpa))))
    assert "the tokens have more than two spatial axes" in found


# --- heads and batch --------------------------------------------------------------------------------------------------


class SharedKeys(nn.Module):
    """Keys and values of one head, repeated for every query head."""

    def __init__(self, repeat: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.repeat = repeat
        self.q, self.kv, self.o = nn.Linear(DIM, DIM), nn.Linear(DIM, 2 * HEAD_DIM), nn.Linear(DIM, DIM)

    def forward(self, x: Tensor) -> Tensor:
        q = self.q(x).unflatten(-1, (HEADS, HEAD_DIM)).transpose(1, 2)
        k, v = self.kv(x).unflatten(-1, (2, 1, HEAD_DIM)).transpose(1, 3).unbind(2)
        return self.o(scale_on_product(q, self.repeat(k), self.repeat(v)).transpose(1, 2).flatten(2))


@pytest.mark.parametrize(
    "repeat",
    [
        lambda t: t.repeat_interleave(HEADS, dim=1),
        lambda t: t.expand(-1, HEADS, -1, -1),
        lambda t: t[:, :, None].expand(-1, -1, HEADS, -1, -1).reshape(t.shape[0], HEADS, *t.shape[2:]),
        lambda t: t.repeat(1, HEADS, 1, 1),
        lambda t: torch.cat([t] * HEADS, dim=1),
        lambda t: t,
    ],
    ids=["repeat_interleave", "expand", "expand_reshape", "repeat", "cat", "broadcast"],
)
@QUICK_BY_EXPORT
def test_shared_keys(repeat: Callable[[Tensor], Tensor], road: str) -> None:
    """Repeated heads are grouped queries or full attention of as many heads; either way the claim is true."""
    captured = captured_by(road, TinyViT(partial(SharedKeys, repeat)))
    for site in captured.sites:
        assert site.num_heads == HEADS
        assert set(site.projections.named()) <= {"q", "out"}
    for rejection in captured.sites.rejected:
        assert re.search("grouped|cross|grid|interleaved|batch", rejection.reason)


class OtherHalf(Attention):
    """Queries of each half of the batch attend to the other half."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.split(x)
        (a, b), half = q.chunk(2), x.shape[0] // 2
        out = torch.cat([sdpa(a, k[half:], v[half:]), sdpa(b, k[:half], v[:half])])
        return self.proj(out.transpose(1, 2).reshape(x.shape))


@ROAD
def test_other_half_of_the_batch(road: str) -> None:
    captured = captured_by(road, TinyViT(partial(OtherHalf, sdpa)), batch=4)
    assert re.search("batch|cross", reasons(captured))


class Interleaved(Attention):
    """Heads before and after the batch in one axis: head, batch, head."""

    def __init__(self) -> None:
        super().__init__(sdpa, num_heads=4)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape

        def fold(t: Tensor) -> Tensor:
            return t.view(b, 2, 2, n, -1).transpose(0, 1).reshape(4 * b, n, c // 4)

        out = scale_on_product(*map(fold, self.split(x)))
        return self.proj(out.view(2, b, 2, n, -1).permute(1, 3, 0, 2, 4).reshape(b, n, c))


@ROAD
def test_interleaved_heads_and_batch(road: str) -> None:
    assert "interleaved" in reasons(captured_by(road, TinyViT(Interleaved)))


# --- tensors that are changed in place --------------------------------------------------------------------------------


def scaled_in_place(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q = q.clone()
    q *= SCALE
    return (q @ k.transpose(-2, -1)).softmax(dim=-1) @ v


def scores_scaled_in_place(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = q @ k.transpose(-2, -1)
    scores *= SCALE
    return scores.softmax(dim=-1) @ v


def keys_changed_after_the_scores(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    k = k.clone()
    scores = q @ k.transpose(-2, -1) * SCALE
    k += 1
    return scores.softmax(dim=-1) @ v + 0 * k


def queries_changed_through_a_view(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q = q.clone()
    scores = q @ k.transpose(-2, -1) * SCALE
    q.transpose(-2, -1)[:, :, 0] = 0
    return scores.softmax(dim=-1) @ v + 0 * q


def queries_changed_between_scale_and_product(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q = q.clone()
    scaled = q * SCALE
    q.zero_()
    return (scaled @ k.transpose(-2, -1)).softmax(dim=-1) @ v + q


def values_changed_before_their_use(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    v = v.clone()
    weights = (q @ k.transpose(-2, -1) * SCALE).softmax(dim=-1)
    v *= 2
    return weights @ v


def result_changed(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    out = scale_on_product(q, k, v)
    out *= 2
    return out


def weights_filled(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = (q @ k.transpose(-2, -1) * SCALE).softmax(dim=-1)
    weights.fill_(1.0)
    return weights @ v


def scores_filled(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = q @ k.transpose(-2, -1) * SCALE
    scores[..., 0].fill_(-1e9)
    return scores.softmax(dim=-1) @ v


@pytest.mark.parametrize(
    "attend",
    [
        scaled_in_place,
        scores_scaled_in_place,
        keys_changed_after_the_scores,
        queries_changed_through_a_view,
        queries_changed_between_scale_and_product,
        values_changed_before_their_use,
        result_changed,
        weights_filled,
        scores_filled,
    ],
    ids=lambda attend: attend.__name__,
)
@ROAD
def test_in_place(attend: Callable[..., Tensor], road: str) -> None:
    """Right or refused: `captured_by` runs every claim. No attention goes without an answer."""
    captured = captured_by(road, TinyViT(partial(Attention, attend)))
    assert len(captured.sites) + len(captured.sites.rejected) == 2
    must_be_refused = ("changed_after", "through_a_view", "between_scale", "filled")
    if any(words in attend.__name__ for words in must_be_refused):
        assert re.search("in place|used by|weights|scores", reasons(captured))


# --- near misses, drawn at random -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Change:
    """One thing done differently: to q, k, v, to the scores, to the weights or to the result."""

    place: str
    what: str


def _index(t: Tensor) -> Tensor:
    return torch.arange(t.shape[-2] - 1, -1, -1)


TENSORS: dict[str, Callable[[Tensor], Tensor]] = {
    "roll": lambda t: t.roll(1, dims=-2),
    "flip": lambda t: t.flip(-2),
    "permute": lambda t: t[:, :, _index(t)],
    "index_select": lambda t: t.index_select(2, _index(t)),
    "slice": lambda t: t[:, :, 1:],
    "slice_and_append": lambda t: torch.cat([t[:, :, 1:], t[:, :, :1]], dim=2),
    "split_and_join": lambda t: torch.cat(t.split([5, t.shape[2] - 5], dim=2), dim=2),
    "pad": lambda t: F.pad(t, (0, 0, 0, 1)),
    "shift_heads": lambda t: t.roll(1, dims=1),
    "swap_batch": lambda t: t.flip(0),
    "heads_to_tokens": lambda t: t.reshape(t.shape[0], t.shape[2], t.shape[1], -1).transpose(1, 2),
    "tokens_from_heads": lambda t: t.transpose(1, 2).reshape(t.shape),
    "there_and_back": lambda t: t.transpose(1, 2).flatten(2).unflatten(2, t.shape[1::2]).transpose(1, 2),
    "double": lambda t: t * 2,
    "contiguous": lambda t: t.transpose(-1, -2).contiguous().transpose(-1, -2),
    "fold": lambda t: t.flatten(0, 1).unflatten(0, t.shape[:2]),
    "in_place": lambda t: t.clone().mul_(3),
    "clamp": lambda t: t.clamp(min=0),
    "column_major": lambda t: torch.cat(
        [t[:, :, :1], t[:, :, 1:].unflatten(2, (4, 6)).transpose(2, 3).flatten(2, 3)], dim=2
    ),
}
SCORES: dict[str, Callable[[Tensor], Tensor]] = {
    "mask_zero": lambda s: s + torch.zeros(s.shape[-1]),
    "mask_last": lambda s: s + torch.arange(s.shape[-1]).eq(0) * -9.0,
    "transpose": lambda s: s.transpose(-1, -2),
    "roll": lambda s: s.roll(1, dims=-1),
    "scale": lambda s: s * 0.3,
    "divide_by_itself": lambda s: s / s.detach().abs().amax(),
    "shift": lambda s: s + 4.0,
    "negate": lambda s: -s,
    "tanh": lambda s: s.tanh(),
    "merge_heads": lambda s: s.flatten(0, 1).unflatten(0, s.shape[:2]),
    "max_subtracted": lambda s: s - s.amax(dim=-1, keepdim=True),
    "half": lambda s: s.double().float(),
    "masked_fill_none": lambda s: s.masked_fill(torch.zeros(s.shape[-1], dtype=torch.bool), -9.0),
    "masked_fill": lambda s: s.masked_fill(torch.arange(s.shape[-1]) < 3, -9.0),
    "where_all": lambda s: torch.where(torch.arange(s.shape[-1]) >= 0, s, -9.0),
    "in_place": lambda s: s.mul_(2),
    "tril": lambda s: s.tril(),
}
WEIGHTS: dict[str, Callable[[Tensor], Tensor]] = {
    "dropout_off": lambda w: F.dropout(w, 0.5, training=False),
    "dropout_on": lambda w: F.dropout(w, 0.5, training=True),
    "transpose": lambda w: w.transpose(-1, -2),
    "renormalise": lambda w: w / w.sum(dim=-1, keepdim=True),
    "square": lambda w: w * w,
    "twice": lambda w: w @ w,
    "contiguous": lambda w: w.contiguous(),
    "scale": lambda w: w * 0.5,
    "roll": lambda w: w.roll(1, dims=-1),
    "swap_heads": lambda w: w.flip(1),
}
CHANGES = {
    "q": TENSORS,
    "k": TENSORS,
    "v": TENSORS,
    "kv": TENSORS,
    "qkv": TENSORS,
    "scores": SCORES,
    "weights": WEIGHTS,
}
HARMLESS = {
    *((place, what) for place in ("q", "k", "v") for what in ("double", "contiguous", "fold", "split_and_join")),
    *(("scores", what) for what in ("mask_zero", "scale", "shift", "merge_heads", "half", "masked_fill_none")),
    *(("weights", what) for what in ("dropout_off", "contiguous")),
}


@dataclass(frozen=True)
class Perturbed:
    """softmax(scale · q·kᵀ, dim)·v with changes."""

    changes: tuple[Change, ...]
    softmax_dim: int = -1
    fused: bool = False

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        def change(place: str, tensor: Tensor) -> Tensor:
            for each in self.changes:
                if each.place == place or (len(place) == 1 and place in each.place and each.place in ("kv", "qkv")):
                    tensor = CHANGES[each.place][each.what](tensor)
            return tensor

        n = q.shape[2]
        q, k, v = change("q", q), change("k", k), change("v", v)
        if self.fused:
            out = F.scaled_dot_product_attention(q, k, v)
        else:
            scores = change("scores", q @ k.transpose(-2, -1) * SCALE)
            out = change("weights", scores.softmax(dim=self.softmax_dim)) @ v
        return out if out.shape[2] == n else out.mean(dim=2, keepdim=True).expand(-1, -1, n, -1)


def answered(attend: Perturbed, road: str) -> Captured | None:
    """Capture a model with one such block, its claims checked; None if the changes do not fit each other.

    Several changes may also give NaN, such as a mask that leaves no key; no capture can be compared with that.
    """
    model = TinyViT(partial(Attention, attend), depth=1)
    try:
        result = randomize(model)(images(2, 3, *SIZE))
    except (RuntimeError, IndexError):
        return None
    if not result.isfinite().all():
        return None
    captured = captured_by(road, model)
    assert len(captured.sites) + len(captured.sites.rejected) <= 1
    return captured


@pytest.mark.parametrize(
    ("place", "what"),
    [
        pytest.param(place, what, marks=[pytest.mark.slow] if place in ("k", "kv", "qkv") else [])
        for place, table in CHANGES.items()
        for what in table
    ],
)
def test_one_change(place: str, what: str) -> None:
    """Every claim is true, and what changes nothing in the form of attention is no reason to refuse."""
    captured = answered(Perturbed((Change(place, what),)), "export")
    if (place, what) in HARMLESS:
        assert captured is not None
        assert len(captured.sites) == 1, [str(each) for each in captured.sites.rejected]


changes = st.sampled_from([Change(place, what) for place, table in CHANGES.items() for what in table])
perturbed = st.builds(
    Perturbed,
    st.lists(changes, min_size=1, max_size=3).map(tuple),
    softmax_dim=st.sampled_from([-1, -1, -1, -2, 1]),
    fused=st.booleans(),
)


@settings(max_examples=15, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
@given(perturbed)
def test_several_changes(attend: Perturbed) -> None:
    answered(attend, "export")


@pytest.mark.slow
@settings(max_examples=1000)
@given(perturbed)
def test_many_changes(attend: Perturbed) -> None:
    answered(attend, "export")


@pytest.mark.slow
@settings(max_examples=200)
@given(perturbed)
def test_many_changes_by_dynamo(attend: Perturbed) -> None:
    answered(attend, "dynamo")
