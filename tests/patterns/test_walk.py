"""Rules of the layout walk that no model of the zoo reaches."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import jetvit
from jetvit.passes.frontends.capture import capture
from jetvit.patterns.find import find_sites
from tests.passes.models import assert_close, by_road, plan_of, planned
from tests.zoo.case import images, randomize
from tests.zoo.handwritten import SIZE, Attention, TinyViT, sdpa


class ConvProjections(nn.Module):
    """Convolutions make q, k and v from a map, as CvT does; `stride` is that of k and v."""

    def __init__(self, stride: int = 1) -> None:
        super().__init__()
        self.patches: nn.Module = nn.Conv2d(3, 16, 8, 8)
        self.q = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.k = nn.Conv2d(16, 16, 3, stride=stride, padding=1, groups=16)
        self.v = nn.Conv2d(16, 16, 3, stride=stride, padding=1, groups=16)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.patches(image)
        q, k, v = (layer(x).flatten(2).unflatten(1, (2, 8)).transpose(-1, -2) for layer in (self.q, self.k, self.v))
        return F.scaled_dot_product_attention(q, k, v)


def test_a_convolution_with_stride_one_keeps_places():
    (site,) = find_sites(capture(ConvProjections().eval(), (torch.randn(2, 3, 32, 48),)))
    assert (site.grid, site.num_heads, site.head_dim) == ((4, 6), 2, 8)


class CutPatches(nn.Module):
    """Patches that are cut by views, not by a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(192, 16)

    def forward(self, image: Tensor) -> Tensor:
        patches = image.unflatten(-1, (-1, 8)).unflatten(-3, (-1, 8)).permute(0, 2, 4, 1, 3, 5).flatten(3)
        return self.linear(patches).permute(0, 3, 1, 2)


def test_a_convolution_of_some_operands_keeps_the_places_of_cut_patches():
    model = ConvProjections()
    model.patches, model.k, model.v = CutPatches(), nn.Identity(), nn.Identity()  # RvT of vit-pytorch
    (site,) = find_sites(capture(model.eval(), (torch.randn(2, 3, 32, 48),)))
    assert site.grid == (4, 6)


def test_a_strided_convolution_makes_other_places():
    sites = find_sites(capture(ConvProjections(stride=2).eval(), (torch.randn(2, 3, 32, 48),)))
    assert not sites
    assert "cross attention: 24 queries attend to 6 tokens" in sites.rejected[0].reason


class Changed(nn.Module):
    """Tokens that are changed before the attention, and q, k and v after their projection."""

    def __init__(self, tokens: Callable[[Tensor], Tensor], heads: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.patches, self.qkv, self.tokens, self.heads = nn.Conv2d(3, 16, 8, 8), nn.Linear(16, 48), tokens, heads

    def forward(self, image: Tensor) -> Tensor:
        x = self.tokens(self.patches(image).flatten(2).mT)
        q, k, v = (self.heads(x.unflatten(-1, (2, 8)).transpose(1, 2)) for x in self.qkv(x).chunk(3, -1))
        return F.scaled_dot_product_attention(q, k, v)


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x[:, :1] + x,
        lambda x: x + x[:, :1],
        lambda x: x[:1] + x,
        lambda x: x[:1] * x[:, :1] + x,
        lambda x: torch.where(x[:1, :1] > 0, x, -x),
        lambda x: x[..., :1, :] * x,
    ],
)
@pytest.mark.parametrize("place", [0, 1])
def test_one_entry_that_is_broadcast_leaves_the_axis_as_it_is(change: Callable[[Tensor], Tensor], place: int) -> None:
    def same(x: Tensor) -> Tensor:
        return x

    changes = (change, same) if place == 0 else (same, change)
    (site,) = find_sites(capture(Changed(*changes).eval(), (torch.randn(2, 3, 32, 48),)))
    assert (site.grid, site.num_heads, site.extra_before) == ((4, 6), 2, 0)


class Moved(nn.Module):
    """The tokens of k in another order than those of q."""

    def __init__(self, move) -> None:
        super().__init__()
        self.patches, self.qkv, self.move = nn.Conv2d(3, 16, 8, 8), nn.Linear(16, 48), move

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        tokens = self.patches(image).permute(0, 2, 3, 1)
        q, k, v = self.qkv(tokens).chunk(3, -1)
        k, v = self.move(k), self.move(v)
        q, k, v = (x.flatten(1, 2).unflatten(-1, (2, 8)).transpose(1, 2) for x in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v)


@pytest.mark.parametrize(
    "move",
    [
        lambda x: x.roll(1, 1),
        lambda x: x.flip(2),
        lambda x: x.transpose(1, 2).contiguous().view(x.shape),
        lambda x: x[:, torch.tensor([1, 0, 3, 2])],
        lambda x: F.pad(x, (0, 0, 1, -1)),
    ],
    ids=["roll", "flip", "transpose and view", "index", "shift by padding"],
)
def test_moved_keys_are_refused(move):
    """Full attention does not care about the order of keys; a window does."""
    image = torch.randn(2, 3, 32, 32)
    assert not find_sites(capture(Moved(move).eval(), (image,)))
    assert len(find_sites(capture(Moved(lambda x: x).eval(), (image,)))) == 1


class Resized(nn.Module):
    """A map of patches, resized by one of ATen's own names of an operator, before it becomes tokens."""

    def __init__(self, resize) -> None:
        super().__init__()
        self.patches, self.qkv, self.resize = nn.Conv2d(3, 16, 8, 8), nn.Linear(16, 48), resize

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        tokens = self.resize(self.patches(image), [3, 5], False).permute(0, 2, 3, 1).flatten(1, 2)
        q, k, v = (x.unflatten(-1, (2, 8)).transpose(1, 2) for x in self.qkv(tokens).chunk(3, -1))
        return F.scaled_dot_product_attention(q, k, v)


@pytest.mark.parametrize("name", ["bilinear", "bicubic"])
def test_the_grid_is_that_of_the_resized_map(name):
    """`F.interpolate` exports as `.vec`; a file that was read from ONNX has `.default`."""
    for operator in (f"upsample_{name}2d", f"_upsample_{name}2d_aa"):
        model = Resized(getattr(torch.ops.aten, operator).default)
        (site,) = find_sites(capture(model.eval(), (torch.randn(2, 3, 32, 48),)))
        assert site.grid == (3, 5)


class MixedRope(nn.Module):
    """Two blocks of q and k that are multiplied by tables of their own for every head, of one parameter for both."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.qkv = nn.Conv2d(3, 16, 8, 8), nn.ModuleList(nn.Linear(16, 48) for _ in range(2))
        self.freqs = nn.Parameter(torch.randn(2, 2, 4))  # block, head, half of the features

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.patches(image)
        place = torch.arange(x.shape[2] * x.shape[3])
        tables = (place[:, None] * self.freqs[:, :, None]).cos().repeat_interleave(2, -1)  # [block, head, token, dim]
        x = x.flatten(2).transpose(1, 2)
        for layer, table in zip(self.qkv, tables, strict=True):
            q, k, v = layer(x).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4)
            x = F.scaled_dot_product_attention(q * table, k * table, v).transpose(1, 2).flatten(2)
        return x


@pytest.mark.parametrize("is_open", [False, True])
def test_a_table_for_every_head_is_no_batch(is_open: bool):
    """It is one entry of an axis of weights: nothing that tells one image from another."""
    auto = torch.export.Dim.AUTO
    shapes = ({0: auto, 2: auto, 3: auto},) if is_open else None
    sites = find_sites(capture(MixedRope().eval(), (torch.randn(2, 3, 32, 48),), dynamic_shapes=shapes))
    assert [site.num_heads for site in sites] == [2, 2]


# --- on the way of q and k --------------------------------------------------------------------------------------------


@torch.library.custom_op("jetvit_tests::half", mutates_args=(), schema="(Tensor x) -> Tensor")
def half(x: Tensor) -> Tensor:
    """An operator that nobody knows."""
    return x * 0.5


@half.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


def turn(x: Tensor) -> Tensor:
    """A rotary embedding by complex numbers, each token by another angle."""
    angles = torch.outer(torch.arange(x.shape[-2]), torch.arange(x.shape[-1] // 2) / 10)
    pairs = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)).flatten(-2).type_as(x)


def on_both(change: Callable[[Tensor], Tensor], q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return sdpa(change(q), change(k), v)


KNOWN = [
    turn,
    lambda x: torch.fake_quantize_per_tensor_affine(x, 0.05, 0, -128, 127),
    lambda x: F.normalize(x, dim=-1),
    lambda x: F.elu(x) + 1,
    lambda x: torch.einsum("bhnd,de->bhne", x, torch.eye(x.shape[-1])),
    lambda x: F.linear(torch.stack([x, x + 1], dim=-1), torch.ones(2)),
    lambda x: torch.stack([x, x + 1], dim=-1) @ torch.ones(2),
]


@pytest.mark.parametrize("road", ["export", pytest.param("dynamo", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "change", KNOWN, ids=["complex", "fake_quantize", "normalize", "elu", "einsum", "linear", "vector"]
)
def test_what_keeps_the_tokens_in_place_keeps_the_site(change: Callable[[Tensor], Tensor], road: str) -> None:
    model, image = randomize(TinyViT(partial(Attention, partial(on_both, change)))), images(2, 3, *SIZE)
    sites = jetvit.find_attention(model, image)
    assert [site.grid for site in sites] == [(4, 6)] * 2
    plan = plan_of(sites)
    assert_close(by_road(road, model, ((image,), {}), plan)(image), planned(model, ((image,), {}), plan))


@pytest.mark.parametrize(
    ("change", "operator"), [(lambda x: torch.ops.jetvit_tests.half(x), "half"), (lambda x: x.sort(-1).values, "sort")]
)
def test_an_operator_that_is_not_known_is_named(change: Callable[[Tensor], Tensor], operator: str) -> None:
    model = randomize(TinyViT(partial(Attention, partial(on_both, change))))
    sites = jetvit.find_attention(model, images(2, 3, *SIZE))
    assert len(sites.rejected) == 2
    assert re.search(rf"the tokens of q or k were lost at \w+\.{operator}\.default", sites.rejected[0].reason)
