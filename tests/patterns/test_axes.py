"""Laws of the axis algebra, held against real tensors that carry their own coordinates through the same steps."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from jetvit.patterns import axes as ax
from jetvit.patterns.axes import Atom, Axes, Axis

KINDS = ["row", "col", "input", "feature"]


@dataclass(frozen=True)
class Labelled:
    """Axes, and for every base atom a tensor of that shape: where along the atom each element comes from."""

    axes: Axes
    coordinates: dict[Atom, Tensor]

    @classmethod
    def source(cls, sizes: list[int], kinds: list[str]) -> Labelled:
        axes = tuple(ax.fresh(size, kind) for size, kind in zip(sizes, kinds, strict=True))
        coordinates = {
            axis[0]: torch.arange(size).view([-1 if i == dim else 1 for i in range(len(sizes))]).expand(sizes)
            for dim, (axis, size) in enumerate(zip(axes, sizes, strict=True))
            if axis
        }
        return cls(axes, coordinates)

    @property
    def shape(self) -> list[int]:
        return [ax.axis_size(axis) for axis in self.axes]

    def reshape(self, shape: list[int]) -> Labelled:
        return Labelled(ax.reshape(self.axes, shape), {a: c.reshape(shape) for a, c in self.coordinates.items()})

    def permute(self, order: list[int]) -> Labelled:
        axes = tuple(self.axes[dim] for dim in order)
        return Labelled(axes, {a: c.permute(order) for a, c in self.coordinates.items()})

    def slice(self, dim: int, start: int, stop: int) -> Labelled:
        axes = (*self.axes[:dim], ax.cut(self.axes[dim], start, stop), *self.axes[dim + 1 :])
        return Labelled(axes, {a: c.narrow(dim, start, stop - start) for a, c in self.coordinates.items()})

    def token(self, dim: int, size: int) -> Labelled:
        """A tensor of new entries along one axis that shares the other axes, as a class token does."""
        new = Labelled.source([size if i == dim else 1 for i in range(len(self.axes))], ["feature"] * len(self.axes))
        shape = [size if i == dim else each for i, each in enumerate(self.shape)]
        coordinates = {a: c.narrow(dim, 0, 1).expand(shape) for a, c in self.coordinates.items()}
        coordinates |= {a: c.expand(shape) for a, c in new.coordinates.items()}
        return Labelled((*self.axes[:dim], new.axes[dim], *self.axes[dim + 1 :]), coordinates)

    def assert_sound(self) -> None:
        """Whatever an axis claims of its atoms is true of every element."""
        for tensor in self.coordinates.values():
            assert list(tensor.shape) == self.shape
        for dim, axis in enumerate(self.axes):
            self._check(axis, dim, torch.arange(self.shape[dim]), torch.arange(self.shape[dim]))

    def _check(self, axis: Axis, dim: int, places: Tensor, flat: Tensor) -> None:
        """The elements at `places` along `dim` stand at `flat` along an axis."""
        for position, atom in enumerate(axis):
            right = math.prod(each.size for each in axis[position + 1 :])
            self._check_atom(atom, dim, places, flat // right % atom.size)

    def _check_atom(self, atom: Atom, dim: int, places: Tensor, index: Tensor) -> None:
        if atom.segments is not None:
            start = 0
            for segment, size in atom.segments:
                inside = (index >= start) & (index < start + size)
                self._check(segment, dim, places[inside], index[inside] - start)
                start += size
            assert start == atom.size
        elif atom.cut is not None:
            axis, start, stop = atom.cut
            assert stop - start == atom.size
            self._check(axis, dim, places, index + start)
        elif (actual := self._actual(atom)) is not None:
            actual = actual.movedim(dim, 0)[places]
            assert (actual == index.view(-1, *[1] * (actual.ndim - 1))).all(), f"{atom} is not there"

    def _actual(self, atom: Atom) -> Tensor | None:
        """Where along an atom each element really stands; None for an atom that claims nothing."""
        if atom.pieces is not None:
            whole, part = atom.pieces
            actual = self._actual(whole)
            if actual is None:
                return None
            return actual % atom.size if part else actual // (whole.size // atom.size)
        if atom.cut is not None:
            axis, start, _ = atom.cut
            parts = [self._actual(each) for each in axis]
            if any(part is None for part in parts):
                return None
            strides = [math.prod(each.size for each in axis[i + 1 :]) for i in range(len(axis))]
            return sum(part * stride for part, stride in zip(parts, strides, strict=True)) - start
        return self.coordinates.get(atom)


def is_known(axes: Axes) -> bool:
    return not any(atom.kind == "unknown" for axis in axes for atom in axis)


def concatenate(parts: list[Labelled], dim: int) -> Labelled:
    """Parts side by side; an element of another part is nowhere along an atom that its own part does not have."""
    axes = (*parts[0].axes[:dim], ax.concatenate([part.axes[dim] for part in parts]), *parts[0].axes[dim + 1 :])

    def along(atom: Atom) -> Tensor:
        return torch.cat([part.coordinates.get(atom, torch.full(part.shape, -1)) for part in parts], dim)

    return Labelled(axes, {atom: along(atom) for part in parts for atom in part.coordinates})


@st.composite
def sources(draw: st.DrawFn) -> Labelled:
    shape = draw(st.lists(st.sampled_from([1, 2, 3, 4, 6]), min_size=1, max_size=4))
    return Labelled.source(shape, [draw(st.sampled_from(KINDS)) for _ in shape])


@st.composite
def shapes(draw: st.DrawFn, count: int) -> list[int]:
    """Any shape with this many entries."""
    shape = [1] * draw(st.integers(0, 1))
    while count > 1:
        size = draw(st.sampled_from([n for n in range(count, 1, -1) if count % n == 0]))
        shape += [size, *[1] * draw(st.integers(0, 1))]
        count //= size
    return shape


@st.composite
def groupings(draw: st.DrawFn, factors: list[int]) -> list[int]:
    """A shape whose sizes are products of neighbouring factors, with axes of size 1 between them."""
    shape: list[int] = []
    for factor in factors:
        if shape and draw(st.booleans()):
            shape[-1] *= factor
        else:
            shape += [1] * draw(st.integers(0, 1)) + [factor]
    return shape


factor_lists = st.lists(st.sampled_from([2, 3, 5]), min_size=1, max_size=5)


@given(st.data())
def test_every_claim_is_true(data: st.DataObject) -> None:
    """After any views, permutations, splits, slices and concatenations."""
    tensor = data.draw(sources())
    for _ in range(data.draw(st.integers(1, 7))):
        shape = tensor.shape
        step = data.draw(st.sampled_from(["reshape", "permute", "slice", "swap", "split", "prepend", "append"]))
        dim = data.draw(st.integers(0, len(shape) - 1)) if shape else 0
        if step == "reshape" or not shape:
            tensor = tensor.reshape(data.draw(shapes(math.prod(shape))))
        elif step == "permute":
            tensor = tensor.permute(data.draw(st.permutations(range(len(shape)))))
        elif step in ("prepend", "append"):
            token = tensor.token(dim, data.draw(st.integers(1, 3)))
            tensor = concatenate([token, tensor] if step == "prepend" else [tensor, token], dim)
        elif shape[dim] > 1:
            at = data.draw(st.integers(1, shape[dim] - 1))
            parts = [tensor.slice(dim, 0, at), tensor.slice(dim, at, shape[dim])]
            tensor = parts[0] if step == "slice" else concatenate(parts if step == "split" else parts[::-1], dim)
        tensor.assert_sound()


@given(factor_lists, st.data())
def test_views_along_common_factors_are_known(factors: list[int], data: st.DataObject) -> None:
    """Whatever regrouping of a shape: nothing is lost, and going back gives the axes themselves."""
    shape = data.draw(groupings(factors))
    tensor = Labelled.source(shape, [data.draw(st.sampled_from(KINDS)) for _ in shape])
    there = tensor
    for _ in range(3):
        there = there.reshape(data.draw(groupings(factors)))
        there.assert_sound()
        assert is_known(there.axes)
    assert there.reshape(shape).axes == tensor.axes


@given(factor_lists.filter(lambda factors: len(factors) < 4), st.data())
def test_split_heads_and_merge_them(factors: list[int], data: st.DataObject) -> None:
    """A view, a permutation and both undone give the axes themselves."""
    tensor = Labelled.source([math.prod(factors), 4], ["feature", "row"])
    split = tensor.reshape([*factors, 4])
    order = data.draw(st.permutations(range(len(split.shape))))
    turned = split.permute(order)
    back = turned.permute([order.index(dim) for dim in range(len(order))])
    assert back.reshape(tensor.shape).axes == tensor.axes
    turned.reshape(data.draw(shapes(math.prod(tensor.shape)))).assert_sound()


@given(st.lists(st.integers(1, 4), min_size=1, max_size=5), st.data())
def test_split_and_concatenate_is_identity(parts: list[int], data: st.DataObject) -> None:
    """In order it gives the axis back; in another order it does not."""
    axis = ax.fresh(sum(parts), "row")
    ends = [sum(parts[: i + 1]) for i in range(len(parts))]
    cuts = [ax.cut(axis, end - size, end) for end, size in zip(ends, parts, strict=True)]
    assert ax.concatenate(cuts) == axis
    order = data.draw(st.permutations(range(len(parts))))
    if order != sorted(order):
        assert ax.concatenate([cuts[i] for i in order]) != axis
    if len(parts) > 1:
        assert ax.concatenate(cuts[1:]) != axis
        assert ax.concatenate([cuts[0], *cuts]) != axis


@given(st.lists(st.integers(1, 4), min_size=2, max_size=5), st.data())
def test_slice_at_segment_boundaries(lengths: list[int], data: st.DataObject) -> None:
    """A slice of a concatenation is its segments where it ends between them, and nothing where it cuts through one."""
    segments = [ax.fresh(size, "row") if size > 1 else (Atom(1, "row"),) for size in lengths]
    whole = ax.concatenate(segments)
    assert ax.axis_size(whole) == sum(lengths)
    bounds = [0, *(sum(lengths[: i + 1]) for i in range(len(lengths)))]
    start, stop = sorted(data.draw(st.lists(st.integers(0, bounds[-1]), min_size=2, max_size=2, unique=True)))
    cut = ax.cut(whole, start, stop)
    assert ax.axis_size(cut) == stop - start
    if (start, stop) == (0, bounds[-1]):
        assert cut == whole
        return
    inside = ax.whole_segments(cut[0])
    if start in bounds and stop in bounds:
        chosen = segments[bounds.index(start) : bounds.index(stop)]
        assert inside is not None
        assert [axis for axis, _ in ax.flat_segments(inside)] == chosen
    else:
        assert inside is None


def test_pieces_of_different_splits_do_not_join() -> None:
    """4 of 4×3 beside 4 of 3×4 is 16, not the 12 that both came from."""
    axis = ax.fresh(12, "row")
    (coarse, _), (_, fine) = ax.reshape((axis,), [4, 3]), ax.reshape((axis,), [3, 4])
    (joined,) = ax.reshape((coarse, fine), [16])
    assert ax.axis_size(joined) == 16
    assert joined != axis


@pytest.mark.parametrize(
    ("sizes", "shape", "known"),
    [([5, 8], [2, 2, 10], []), ([3, 5, 8], [3, 2, 2, 10], [0])],
)
def test_a_view_across_factors_is_unknown(sizes: list[int], shape: list[int], known: list[int]) -> None:
    """10 is 2 of 5×2: no entry of 5 lies whole in one of the new axes."""
    axes = ax.reshape(tuple(ax.fresh(size, "row") for size in sizes), shape)
    assert [ax.axis_size(axis) for axis in axes] == shape
    assert [i for i, axis in enumerate(axes) if all(atom.kind == "row" for atom in axis)] == known


def test_view_through_extra_tokens() -> None:
    """A concatenation is not cut by a view, and the answer says so."""
    tokens = ax.concatenate([ax.fresh(1, "feature") or (Atom(1, "feature"),), ax.fresh(5, "row")])
    coarse, fine = ax.reshape((tokens,), [2, 3])
    assert {atom.origin for atom in (*coarse, *fine)} == {"a reshape that cuts through the extra tokens"}


@given(sources(), st.data())
def test_broadcast(tensor: Labelled, data: st.DataObject) -> None:
    """Weights and axes of size 1 give way to what is known, from either side and aligned from the right."""
    kept = tuple(data.draw(st.sampled_from([(), ax.fresh(ax.axis_size(axis), "weight")])) for axis in tensor.axes)
    other = kept[data.draw(st.integers(0, len(kept))) :]
    assert ax.broadcast([tensor.axes, other]) == tensor.axes
    assert ax.broadcast([other, tensor.axes]) == tensor.axes


@pytest.mark.parametrize("kinds", [*itertools.pairwise(["weight", "unknown", "feature", "input", "row"])], ids=str)
def test_the_better_known_axis_wins(kinds: tuple[str, str]) -> None:
    low, high = (ax.fresh(4, kind) for kind in kinds)
    assert ax.join(low, high) == ax.join(high, low) == high
