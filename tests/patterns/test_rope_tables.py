"""Which rotations an operator may do itself: each claim is executed, each near miss is one step away from it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from functools import partial
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import Node

from jetvit.kernels.rope import rotate
from jetvit.patterns.regions import GraphView
from tests.patterns.roads import ROADS, Captured, by_dynamo, by_export, canonical, of_case
from tests.zoo import CASES, found
from tests.zoo.case import images, randomize
from tests.zoo.handwritten import HEAD_DIM, HEADS, PATCH, SIZE, RopeAttention, TinyViT, rotate_half, sdpa
from tests.zoo.quick import sweep


def both_roads(names: Iterable[str], by_dynamo: Collection[str]) -> list[Any]:
    """A quick run takes a few by Dynamo: both roads give one dialect."""
    names = list(names)
    quick = [*((name, "export") for name in names), *((name, "dynamo") for name in by_dynamo)]
    return sweep(product(names, ROADS), quick)


ROAD = pytest.mark.parametrize("road", ROADS)
Tables = tuple[Tensor, Tensor]


def assert_true(captured: Captured) -> None:
    """The operators' own rotation of what a site names, by tables read off its cos and sin, gives its q and k."""
    view = GraphView(captured.graphs[0].module)

    def value(node: Node) -> Tensor:
        return captured.values[view.resolve(node)].detach()

    assert captured.sites
    for site in captured.sites:
        assert site.rope is not None
        assert site.rope.tables is not None
        rows, columns = map(int, site.grid)
        axes: list[list[Tensor]] = [[], []]
        for table in map(value, (site.rope.tables.cos, site.rope.tables.sin)):
            lines = table.movedim(site.rope.tables.token, -2)
            whole = lines.reshape(-1, rows, columns, site.head_dim)[-1]
            axes[0].append(whole[:, 0, : site.head_dim // 4])
            axes[1].append(whole[0, :, site.head_dim // 4 : site.head_dim // 2])
        tables = [torch.stack(pair, dim=1).float() for pair in axes]
        before = [canonical(value(each.node), each.layout, site) for each in (site.rope.tables.q, site.rope.tables.k)]
        after = [canonical(value(each.node), each.layout, site) for each in (site.q, site.k)]
        turned = rotate(*before, *tables, int(site.extra_before))
        narrow = any(each.dtype == torch.bfloat16 for each in (*before, *after))
        for actual, expected in zip(turned, after, strict=True):
            tolerance = 3e-2 if narrow else 1e-5
            torch.testing.assert_close(actual.float(), expected.float(), rtol=tolerance, atol=tolerance)


# --- the models of the zoo --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [case.name for case in found() if case.rope == "half"])
def test_libraries(name: str) -> None:
    assert_true(of_case(name, "export"))


@pytest.mark.parametrize("name", ["hf_dinov3_eager", "timm_dinov3_fused", "rope_half"])
def test_libraries_by_dynamo(name: str) -> None:
    assert_true(of_case(name, "dynamo"))


@pytest.mark.parametrize("name", sweep(["hf_dinov3_sdpa", "rope_half"], quick=["rope_half"]))
def test_open_sizes(name: str) -> None:
    case = CASES[name]
    model, (args, kwargs) = case.build(), case.inputs()
    shapes = case.dynamic_shapes(args, kwargs)
    for captured in (by_export(model, args, kwargs, shapes), by_dynamo(model, args, kwargs, (0, 2, 3))):
        assert all(not isinstance(size, int) for site in captured.sites for size in site.grid)
        assert_true(captured)


def test_interleaved_pairs_are_left_in_the_graph() -> None:
    for name in ("rope_interleaved", "timm_eva02_fused"):
        assert {site.rope and site.rope.tables for site in of_case(name, "export").sites} == {None}


def test_one_pair_of_tables_for_all_sites() -> None:
    """timm cuts cos and sin out of one tensor anew for each q and each k."""
    for name in ("hf_dinov3_sdpa", "timm_dinov3_fused", "rope_half"):
        sites = of_case(name, "export").sites
        assert len(sites) == 2
        assert len({(site.rope.tables.cos, site.rope.tables.sin) for site in sites}) == 1


# --- other ways to write the same -------------------------------------------------------------------------------------


class TableViT(TinyViT):
    """`tables(y, x, frequencies)` makes cos and sin from the coordinates of rows and columns."""

    def __init__(
        self,
        tables: Callable[[Tensor, Tensor, Tensor], Tables],
        attention: type[RopeAttention] = RopeAttention,
        before: int = 3,
        after: int = 0,
    ) -> None:
        super().__init__(partial(attention, rotate_half), before=before, after=after)
        self.tables = tables
        self.register_buffer("frequencies", 100 ** -(torch.arange(HEAD_DIM // 4) / (HEAD_DIM // 4)))

    def forward(self, image: Tensor) -> Tensor:
        y, x = (torch.arange(0.5, size // PATCH, device=image.device) for size in image.shape[-2:])
        cos, sin = self.tables(y, x, self.frequencies)
        return super().forward(image, sin, cos)


def axial(y: Tensor, x: Tensor, frequencies: Tensor) -> Tensor:
    """Angles [row, column, 2, head_dim / 4]."""
    coordinates = torch.stack(torch.meshgrid(y / len(y), x / len(x), indexing="ij"), dim=-1)
    return coordinates[..., None] * frequencies


def of_angles(make: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Callable[..., Tables]:
    return lambda y, x, f: (make(y, x, f).cos(), make(y, x, f).sin())


def plain(y: Tensor, x: Tensor, f: Tensor) -> Tensor:
    """Angles [token, head_dim], as the operators want them."""
    return axial(y, x, f).flatten(0, 1).flatten(1).tile(2)


def by_axis(y: Tensor, x: Tensor, f: Tensor) -> Tensor:
    """Rows and columns apart, put together in the end."""
    rows = (y[:, None] * f)[:, None].expand(-1, len(x), -1)
    columns = (x[:, None] * f)[None].expand(len(y), -1, -1)
    return torch.cat([rows, columns, rows, columns], dim=-1).reshape(len(y) * len(x), -1)


def packed(y: Tensor, x: Tensor, f: Tensor) -> Tables:
    """One tensor for both, as timm has it."""
    angles = axial(y, x, f).flatten(0, 1).flatten(1)
    both = torch.cat([angles.sin(), angles.sin(), angles.cos(), angles.cos()], dim=-1)
    sin, cos = both.chunk(2, -1)
    return cos, sin


def tiled_and_packed(y: Tensor, x: Tensor, f: Tensor) -> Tables:
    """As timm 1.0.20 has it: the halves are repeated before both tables are packed into one tensor."""
    angles = plain(y, x, f)
    sin, cos = torch.cat([angles.sin(), angles.cos()], dim=-1).tensor_split(2, -1)
    return cos, sin


def without_autocast(y: Tensor, x: Tensor, f: Tensor) -> Tables:
    with torch.autocast("cpu", enabled=False):
        return of_angles(plain)(y, x, f)


def without_gradient(y: Tensor, x: Tensor, f: Tensor) -> Tables:
    with torch.no_grad():
        return of_angles(plain)(y, x, f)


def rounded(y: Tensor, x: Tensor, f: Tensor) -> Tables:
    return tuple(table.to(torch.bfloat16).float() for table in of_angles(plain)(y, x, f))


AXIAL: dict[str, Callable[..., Tables]] = {
    "plain": of_angles(plain),
    "by_axis": of_angles(by_axis),
    "packed": packed,
    "tiled_and_packed": tiled_and_packed,
    "repeated": of_angles(lambda y, x, f: axial(y, x, f).reshape(-1, HEAD_DIM // 2).repeat(1, 2)),
    "for_every_head": of_angles(lambda y, x, f: plain(y, x, f)[None, None]),
    "expanded": of_angles(lambda y, x, f: plain(y, x, f).expand(2, HEADS, -1, -1)),
    "two_frequencies": of_angles(
        lambda y, x, f: torch.stack(
            [(y[:, None, None] * f).expand(-1, len(x), -1), (x[:, None] * f * f).expand(len(y), -1, -1)], dim=2
        ).view(-1, HEAD_DIM // 2).tile(2)
    ),
    "other_angles_for_sin": lambda y, x, f: (plain(y, x, f).cos(), (2 * plain(y, x, f)).sin()),
    "rounded": rounded,
    "without_autocast": without_autocast,
    "without_gradient": without_gradient,
}  # fmt: skip


def by(road: str, model: nn.Module) -> Captured:
    image = images(2, 3, *SIZE)
    return (by_export if road == "export" else by_dynamo)(model, (image,))


@pytest.mark.parametrize(("name", "road"), both_roads(AXIAL, ["plain", "without_gradient", "packed"]))
def test_axial(name: str, road: str) -> None:
    captured = by(road, randomize(TableViT(AXIAL[name])))
    assert len(captured.sites) == 2
    assert_true(captured)


class TokensFirst(RopeAttention):
    """Rotates [batch, token, head, head_dim] and puts the heads first afterwards."""

    def forward(self, x: Tensor, sin: Tensor, cos: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, HEADS, -1).unbind(2)
        q, k = (self.rope(each, sin[:, None], cos[:, None]).transpose(1, 2) for each in (q, k))
        return self.proj(sdpa(q, k, v.transpose(1, 2)).transpose(1, 2).reshape(x.shape))

    def rope(self, x: Tensor, sin: Tensor, cos: Tensor) -> Tensor:
        kept, turned = x.split([x.shape[1] - sin.shape[0], sin.shape[0]], dim=1)
        return torch.cat([kept, turned * cos + self.rotate(turned) * sin], dim=1)


class GridFirst(RopeAttention):
    """The tokens that are not rotated stand behind the grid."""

    def rope(self, x: Tensor, sin: Tensor, cos: Tensor) -> Tensor:
        grid = x[:, :, : sin.shape[0]]
        return torch.cat([grid * cos + self.rotate(grid) * sin, x[:, :, sin.shape[0] :]], dim=2)


class AllTokens(RopeAttention):
    def rope(self, x: Tensor, sin: Tensor, cos: Tensor) -> Tensor:
        return x * cos + self.rotate(x) * sin


class InAutocast(RopeAttention):
    """Half-precision products, a rotation in fp32, half-precision attention: what HF DINOv3 does under autocast."""

    def forward(self, x: Tensor, sin: Tensor, cos: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return super().forward(x, sin, cos).to(x.dtype)

    def rope(self, x: Tensor, sin: Tensor, cos: Tensor) -> Tensor:
        kept, turned = x[:, :, :3], x[:, :, 3:]
        return torch.cat([kept, turned * cos + self.rotate(turned) * sin], dim=2)


@ROAD
@pytest.mark.parametrize(
    ("attention", "before", "after"),
    [(TokensFirst, 3, 0), (GridFirst, 0, 3), (AllTokens, 0, 0), (InAutocast, 3, 0)],
    ids=["tokens_first", "grid_first", "no_other_tokens", "autocast"],
)
def test_places_of_the_grid(attention: type[RopeAttention], before: int, after: int, road: str) -> None:
    captured = by(road, randomize(TableViT(of_angles(plain), attention, before, after)))
    assert len(captured.sites) == 2
    assert_true(captured)


# --- near misses ------------------------------------------------------------------------------------------------------


def edited(y: Tensor, x: Tensor, f: Tensor) -> Tables:
    cos, sin = of_angles(plain)(y, x, f)
    cos[0] = 0.5
    return cos, sin


NOT_AXIAL: dict[str, Callable[..., Tables]] = {
    "columns_first": of_angles(lambda y, x, f: axial(y, x, f).flip(2).flatten(0, 1).flatten(1).tile(2)),
    "columns_first_by_hand": of_angles(
        lambda y, x, f: by_axis(y, x, f).unflatten(1, (4, -1))[:, [1, 0, 3, 2]].flatten(1)
    ),
    "columns_in_the_second_half": of_angles(
        lambda y, x, f: by_axis(y, x, f).unflatten(1, (2, 2, -1)).transpose(1, 2).flatten(1)
    ),
    "channels_alternate": of_angles(lambda y, x, f: axial(y, x, f).transpose(2, 3).flatten(0, 1).flatten(1).tile(2)),
    "column_major": of_angles(lambda y, x, f: axial(y, x, f).transpose(0, 1).flatten(0, 1).flatten(1).tile(2)),
    "sum_of_both": of_angles(lambda y, x, f: axial(y, x, f).sum(2).flatten(0, 1).tile(4)),
    "halves_differ": of_angles(lambda y, x, f: torch.cat([plain(y, x, f).chunk(2, -1)[0], by_axis(y, x, f)[:, 8:]], 1)),
    "sin_has_columns_first": lambda y, x, f: (
        plain(y, x, f).cos(),
        by_axis(y, x, f).unflatten(1, (2, 2, -1)).flip(2).flatten(1).sin(),
    ),
    "heads_differ": of_angles(lambda y, x, f: plain(y, x, f) * torch.arange(1.0, 1 + HEADS)[:, None, None]),
    "images_differ": of_angles(lambda y, x, f: plain(y, x, f) * torch.arange(1.0, 3.0)[:, None, None, None]),
    "turned_by_the_place_in_a_row_of_tokens": of_angles(
        lambda y, x, f: (torch.arange(len(y) * len(x))[:, None] * f).tile(4)
    ),
    "edited": edited,
}


@pytest.mark.parametrize(("name", "road"), both_roads(NOT_AXIAL, ["edited", "heads_differ"]))
def test_not_axial(name: str, road: str) -> None:
    """The rotation is recognised, and stays in the graph."""
    captured = by(road, randomize(TableViT(NOT_AXIAL[name])))
    assert [site.rope is not None and site.rope.style for site in captured.sites] == ["half"] * 2
    assert [site.rope.tables for site in captured.sites] == [None] * 2
    for attention in captured.attentions:
        attention.assert_true()


def all_tokens(y: Tensor, x: Tensor, f: Tensor) -> Tensor:
    """Angles for three tokens more, which turn like the first of the grid."""
    angles = plain(y, x, f)
    return torch.cat([angles[:3], angles])


class PrefixToo(AllTokens):
    """Rotates the extra tokens as well."""


class OnlyTheFirstRow(RopeAttention):
    def rope(self, x: Tensor, sin: Tensor, cos: Tensor) -> Tensor:
        kept, turned, rest = x.split([3, 6, x.shape[2] - 9], dim=2)
        return torch.cat([kept, turned * cos[:6] + self.rotate(turned) * sin[:6], rest], dim=2)


class OneTokenEarly(RopeAttention):
    """As many tokens as the grid has, but the last extra token in place of the last one of the grid."""

    def rope(self, x: Tensor, sin: Tensor, cos: Tensor) -> Tensor:
        kept, turned, rest = x.split([2, sin.shape[0], 1], dim=2)
        return torch.cat([kept, turned * cos + self.rotate(turned) * sin, rest], dim=2)


class PrefixMoves(RopeAttention):
    """The extra tokens change places with the grid: the attention is over another order than that of the projection."""

    def rope(self, x: Tensor, sin: Tensor, cos: Tensor) -> Tensor:
        kept, turned = x.split([3, sin.shape[0]], dim=2)
        return torch.cat([turned * cos + self.rotate(turned) * sin, kept], dim=2)

    def split(self, x: Tensor) -> tuple[Tensor, ...]:
        q, k, v = super().split(x)
        return q, k, torch.cat([v[:, :, 3:], v[:, :, :3]], dim=2)


class InHalf(RopeAttention):
    """Rotates in half precision what the attention then takes in fp32."""

    def rope(self, x: Tensor, sin: Tensor, cos: Tensor) -> Tensor:
        return super().rope(x.bfloat16(), sin.bfloat16(), cos.bfloat16()).to(x.dtype)


class Written(RopeAttention):
    """Changes the rotated tensor afterwards."""

    def rope(self, x: Tensor, sin: Tensor, cos: Tensor) -> Tensor:
        x = super().rope(x, sin, cos)
        x[:, :, :1] *= 2
        return x


class WrittenBefore(RopeAttention):
    """Changes the tensor that was rotated, which the rotation has read already."""

    def rope(self, x: Tensor, sin: Tensor, cos: Tensor) -> Tensor:
        x = x.clone()
        out = super().rope(x, sin, cos)
        x.zero_()
        return out


class Shuffled(RopeAttention):
    """Takes head_dim apart after the rotation, the same for q and k: the products stay, the vectors do not."""

    def rope(self, x: Tensor, sin: Tensor, cos: Tensor) -> Tensor:
        return super().rope(x, sin, cos).unflatten(-1, (2, -1)).transpose(-2, -1).flatten(-2)


class PartOfTheChannels(RopeAttention):
    """Rotates the first half of head_dim only."""

    def rope(self, x: Tensor, sin: Tensor, cos: Tensor) -> Tensor:
        prefix = x.shape[-2] - sin.shape[-2]
        cos, sin = (nn.functional.pad(table[:, : HEAD_DIM // 2], (0, 0, prefix, 0)) for table in (cos, sin))
        turned, kept = x.chunk(2, dim=-1)
        return torch.cat([turned * cos + self.rotate(turned) * sin, kept], dim=-1)


NEAR_MISSES: dict[str, tuple[type[RopeAttention], Callable[..., Tensor]]] = {
    "prefix_too": (PrefixToo, all_tokens),
    "only_the_first_row": (OnlyTheFirstRow, plain),
    "one_token_early": (OneTokenEarly, plain),
    "prefix_moves": (PrefixMoves, plain),
    "in_half_precision": (InHalf, plain),
    "written": (Written, plain),
    "written_before": (WrittenBefore, plain),
    "shuffled": (Shuffled, plain),
    "part_of_the_channels": (PartOfTheChannels, plain),
}


@pytest.mark.parametrize(("name", "road"), both_roads(NEAR_MISSES, ["written", "prefix_moves"]))
def test_near_misses(name: str, road: str) -> None:
    """Whatever is said of the rotation, no operator is to do it; a site stays a site."""
    attention, angles = NEAR_MISSES[name]
    captured = by(road, randomize(TableViT(of_angles(angles), attention)))
    assert all(site.rope is None or site.rope.tables is None for site in captured.sites)
    assert len(captured.sites) == 2 or captured.sites.rejected
    for each in captured.attentions:
        each.assert_true()


def test_a_table_from_memory_is_not_known() -> None:
    """What is in a buffer [token, head_dim] is not in the graph."""

    class Stored(TableViT):
        def __init__(self) -> None:
            super().__init__(of_angles(plain))
            grid = [torch.arange(0.5, size // PATCH) for size in SIZE]
            self.register_buffer("cos", plain(*grid, self.frequencies).cos())
            self.register_buffer("sin", plain(*grid, self.frequencies).sin())

        def forward(self, image: Tensor) -> Tensor:
            return TinyViT.forward(self, image, self.sin, self.cos)

    captured = by("export", randomize(Stored()))
    assert [site.rope is not None and site.rope.tables for site in captured.sites] == [None, None]


class InRegion(RopeAttention):
    """Makes and rotates q and k in a region, which export puts into a graph of its own."""

    def forward(self, x: Tensor, sin: Tensor, cos: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            q, k, v = self.split(x)
            q, k = self.rope(q, sin, cos), self.rope(k, sin, cos)
        return self.proj(sdpa(q, k, v).transpose(1, 2).reshape(x.shape))


def test_what_a_region_keeps_to_itself_cannot_be_read() -> None:
    class Model(TableViT):
        def forward(self, image: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return super().forward(image).float()

    model = randomize(Model(of_angles(plain), InRegion))
    captured = by("export", model)
    assert [site.rope and site.rope.style for site in captured.sites] == ["half"] * 2
    assert [site.rope.tables for site in captured.sites] == [None] * 2
    captured = by("dynamo", model)
    assert len(captured.sites) == 2
    assert_true(captured)
