"""`jetvit.token_grid`: a model names its grid, windows are cut of that grid, and nothing of the hint is left."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

import jetvit
from jetvit.passes.frontends.capture import export_model
from jetvit.patterns.token_grid import TOKEN_GRID
from tests.passes.models import ROADS, WINDOW, assert_close, by_road, compiled, nodes_of, plan_of, sites_of
from tests.zoo.case import images, randomize
from tests.zoo.handwritten import DIM, PATCH, SIZE, Attention, TinyViT, sdpa
from tests.zoo.sweep_oracle import Tokens, window_mask

GRID, BEFORE, AFTER = (4, 6), 20, 1


class Trunk(nn.Module):
    """Two blocks over tokens that come from elsewhere, as a latent sequence or another model's output does."""

    def __init__(self, hint: Callable[[Tensor], Tensor]):
        super().__init__()
        self.qkv = nn.ModuleList([nn.Linear(DIM, 3 * DIM) for _ in range(2)])
        self.hint = hint
        self.mask: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        x = self.hint(x)
        for qkv in self.qkv:
            q, k, v = qkv(x).unflatten(-1, (3, 2, DIM // 2)).permute(2, 0, 3, 1, 4)
            x = x + nn.functional.scaled_dot_product_attention(q, k, v, self.mask).transpose(1, 2).flatten(2)
        return x


def named(x: Tensor) -> Tensor:
    return jetvit.token_grid(x, *GRID, before=BEFORE)


def trunk(hint: Callable[[Tensor], Tensor] = named) -> tuple[nn.Module, Tensor]:
    tokens = BEFORE + GRID[0] * GRID[1] + AFTER
    return randomize(Trunk(hint)), torch.randn(2, tokens, DIM, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("road", ROADS)
def test_windows_are_those_of_the_named_grid(road: str) -> None:
    model, x = trunk()
    sites = sites_of(model, x)
    assert [(site.grid, site.extra_before, site.extra_after) for site in sites] == 2 * [(GRID, BEFORE, AFTER)]
    fast = by_road(road, model, ((x,), {}), plan_of(sites, [WINDOW]))
    result = fast(x)
    model.mask = window_mask(Tokens(BEFORE, GRID, AFTER), WINDOW.window)
    assert_close(result, model(x))


def test_nothing_of_the_hint_is_left() -> None:
    model, x = trunk()
    assert [node.target for node in nodes_of(export_model(model, (x,)).graph_module)].count(TOKEN_GRID) == 1
    for plan in (None, plan_of(sites_of(model, x), [WINDOW])):
        fast = jetvit.optimize(model, x, plan=plan)
        assert TOKEN_GRID not in [node.target for node in nodes_of(fast)]


def test_nothing_is_left_of_it_without_attention() -> None:
    class NoAttention(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return named(x).relu()

    model, x = NoAttention(), trunk()[1]
    fast = jetvit.optimize(model, x)
    assert TOKEN_GRID not in [node.target for node in nodes_of(fast)]
    assert torch.equal(fast(x), model(x))


def test_a_hint_that_is_written_to_stays_a_copy() -> None:
    """The model adds to what it was given after the hint: without the copy, attention would read the sum."""

    class Writes(Trunk):
        def forward(self, x: Tensor) -> Tensor:
            x = x * 2
            tokens = named(x)
            x.add_(1)
            self.hint = lambda x: tokens + 0 * x
            return super().forward(x)

    model, x = randomize(Writes(named)), trunk()[1]
    assert_close(jetvit.optimize(model, x)(x), model(x))


def test_open_sizes() -> None:
    """A model may know its grid as symbols, where the walk lost it."""

    class Sorted(TinyViT):
        def __init__(self, hint: bool):
            super().__init__(lambda: Attention(sdpa))
            self.hint = hint

        def tokens(self, image: Tensor) -> Tensor:
            tokens = super().tokens(image)
            tokens = torch.cummax(tokens, 1).values  # an operator that the walk does not know
            height, width = image.shape[2] // PATCH, image.shape[3] // PATCH
            return jetvit.token_grid(tokens, height, width, before=1) if self.hint else tokens

    image = images(2, 3, *SIZE)
    shapes = ({2: PATCH * Dim("h", min=2, max=64), 3: PATCH * Dim("w", min=2, max=64)},)
    lost = jetvit.find_attention(randomize(Sorted(False)), image, dynamic_shapes=shapes)
    assert not lost
    model = randomize(Sorted(True))
    sites = jetvit.find_attention(model, image, dynamic_shapes=shapes)
    assert sites
    assert not sites.rejected
    fast = jetvit.optimize(model, image, plan=plan_of(sites, [WINDOW]), dynamic_shapes=shapes)
    for size in (SIZE, (24, 40)):
        other = images(2, 3, *size)
        fixed = jetvit.optimize(model, other, plan=plan_of(sites_of(model, other), [WINDOW]))
        assert_close(fast(other), fixed(other))


def test_without_it_the_refusal_tells_of_it() -> None:
    model, x = trunk(lambda x: x)
    report = jetvit.explain(model, x)
    assert any("jetvit.token_grid" in note for note in report.notes)
    plan = plan_of(sites_of(trunk()[0], x), [WINDOW])
    for fast in (lambda: jetvit.optimize(model, x, plan=plan), lambda: compiled(model, plan=plan)(x)):
        with pytest.raises(Exception, match=r"jetvit\.token_grid"):
            fast()


def test_a_grid_that_the_graph_shows_to_be_another_is_refused() -> None:
    class Turned(TinyViT):
        def tokens(self, image: Tensor) -> Tensor:
            return jetvit.token_grid(super().tokens(image), 6, 4, before=1)

    sites = sites_of(randomize(Turned(lambda: Attention(sdpa))), images(2, 3, *SIZE))
    assert not sites
    assert {each.reason for each in sites.rejected} == {
        "unknown token grid: it was lost at jetvit.token_grid, which names 6×4 after 1 token and not 4×6 after 1 token"
    }


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"height": 5, "width": 6, "before": 20}, "a grid of 5×6 after 20 tokens does not fit an axis of 45"),
        ({"height": 4, "width": 6, "before": -1}, "after -1 tokens"),
        ({"height": 0, "width": 6}, "a grid of 0×6"),
        ({"height": 4, "width": 6, "dim": 3}, "dim is 3, and the tensor has 3 axes"),
    ],
)
def test_wrong_sizes(sizes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        jetvit.token_grid(trunk()[1], **sizes)


def test_in_eager_mode_it_is_the_identity() -> None:
    x = trunk()[1].requires_grad_()
    with torch.enable_grad():
        result = named(x)
        (gradient,) = torch.autograd.grad(result.square().sum(), x)
    assert torch.equal(result, x)
    assert result is not x
    assert torch.equal(gradient, 2 * x)
    torch.library.opcheck(TOKEN_GRID, (x, *GRID, BEFORE, -2))


def test_other_axes() -> None:
    """Tokens may stand first: [tokens, batch, channels]."""
    model, x = trunk(lambda x: jetvit.token_grid(x.transpose(0, 1), *GRID, before=BEFORE, dim=0).transpose(0, 1))
    assert [site.grid for site in sites_of(model, x)] == [GRID, GRID]
