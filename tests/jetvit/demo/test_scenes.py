"""Rendered rooms: the same from the same seed, exact in depth and labels, and a split of a search."""

from __future__ import annotations

import math
from random import Random

import pytest
import torch

from jetvit.demo.scenes import (
    BALL,
    BOX,
    CEILING,
    CLASSES,
    CYLINDER,
    FARTHEST,
    FLOOR,
    NEAREST,
    WALL,
    Room,
    SceneSplit,
    Solid,
    render,
)
from jetvit.patterns.errors import InputError
from jetvit.search.data.splits import Splits

SIZE = (48, 64)


def test_shapes_and_ranges():
    images, depth, labels = render(6, SIZE, seed=3)
    assert (images.shape, depth.shape, labels.shape) == ((6, 3, *SIZE), (6, *SIZE), (6, *SIZE))
    assert (images.dtype, depth.dtype, labels.dtype) == (torch.float32, torch.float32, torch.int64)
    assert 0 <= images.min() < 0.2 < 0.8 < images.max() <= 1
    assert NEAREST < depth.min() < depth.max() < FARTHEST
    assert set(labels.unique().tolist()) == set(range(len(CLASSES)))


def test_an_image_depends_on_the_seed_and_its_index_alone():
    few, many, other = render(2, SIZE, seed=1), render(4, SIZE, seed=1), render(2, SIZE, seed=2)
    for ours, same, different in zip(few, many, other, strict=True):
        assert torch.equal(ours, same[:2])
        assert not torch.equal(ours, different)
        assert not torch.equal(ours[0], ours[1])


def test_another_size_shows_the_same_room():
    small, large = render(3, (32, 32), seed=5), render(3, (96, 96), seed=5)
    assert torch.allclose(small.depth, large.depth[:, 1::3, 1::3], rtol=1e-3)
    assert torch.equal(small.labels, large.labels[:, 1::3, 1::3])


def rays_to(*points: list[float]) -> torch.Tensor:
    return torch.tensor(points).T


@pytest.mark.parametrize(
    ("label", "ray", "expected"),
    [
        (BALL, [0.0, 0.0, 1.0], 2.0),  # the nearest point is one radius before the centre
        (BALL, [1.0, 0.0, 1.0], None),
        (BOX, [0.0, 0.0, 1.0], 2.0),
        (BOX, [0.45, 0.0, 1.0], 2.0),  # its faces are flat
        (CYLINDER, [0.0, 0.0, 1.0], 2.0),
        (CYLINDER, [0.45, 0.0, 1.0], None),
        (CYLINDER, [0.0, 0.49, 1.0], 2.0),
    ],
)
def test_where_a_ray_meets_a_solid(label: int, ray: list[float], expected: float | None):
    solid = Solid(label, centre=torch.tensor([0.0, 1.0, 3.0]), half_size=torch.ones(3), yaw=0.0)
    enter, leave = solid.interval(torch.tensor([[1e-4], [1.0], [0.0]]), rays_to(ray))
    if expected is None:
        assert enter >= leave
    else:
        assert enter.item() == pytest.approx(expected, abs=1e-3)


def test_a_turned_box_shows_its_edge():
    solid = Solid(BOX, centre=torch.tensor([0.0, 0.0, 3.0]), half_size=torch.ones(3), yaw=math.pi / 4)
    origin = torch.tensor([[1e-4], [0.0], [0.0]])
    enter, leave = solid.interval(origin, rays_to([0.0, 0.0, 1.0]))
    assert (enter.item(), leave.item()) == pytest.approx((3 - 2**0.5, 3 + 2**0.5), abs=1e-3)


def test_normals_point_outwards():
    turned = math.pi / 6
    for label in (BALL, BOX, CYLINDER):
        solid = Solid(label, centre=torch.tensor([0.0, 1.0, 0.0]), half_size=torch.tensor([2.0, 1.0, 2.0]), yaw=turned)
        side = torch.tensor([2 * math.cos(turned), 1.0, -2 * math.sin(turned)])
        normal = solid.normal(torch.stack([side, torch.tensor([0.0, 2.0, 0.0])], 1))
        expected = [[math.cos(turned), 0.0, -math.sin(turned)], [0.0, 1.0, 0.0]]
        assert torch.allclose(normal.T, torch.tensor(expected), atol=1e-5)


def test_a_solid_shades_what_is_behind_it_and_not_itself():
    solid = Solid(BALL, centre=torch.tensor([0.0, 1.0, 0.0]), half_size=torch.ones(3), yaw=0.0)
    lamp = torch.tensor([[0.0], [5.0], [0.0]])
    top, floor_below, floor_beside, above = [0.0, 2.0, 0.0], [0.1, 0.0, 0.0], [3.0, 0.0, 0.0], [0.0, 6.0, 0.0]
    assert solid.shades(rays_to(top, floor_below, floor_beside, above), lamp).tolist() == [False, True, False, False]


def test_the_floor_is_flat_and_as_far_as_the_camera_is_high():
    """On a plane, one over the depth is an affine function of the place in the image."""
    _, depth, labels = render(8, SIZE, seed=0)
    y, x = torch.meshgrid(*(torch.arange(side, dtype=torch.float64) for side in SIZE), indexing="ij")
    places = torch.stack([y, x, torch.ones(SIZE, dtype=torch.float64)], -1)
    for each, label in zip(depth.double(), labels, strict=True):
        for plane in (FLOOR, CEILING):
            seen = label == plane
            if seen.sum() > 3:
                known, disparity = places[seen], 1 / each[seen]
                fit = known @ torch.linalg.lstsq(known, disparity[:, None]).solution
                assert torch.allclose(fit[:, 0], disparity, rtol=1e-3)


def test_a_solid_stands_on_the_floor():
    room = Room(Random(0))
    for solid in room.solids:
        assert solid.centre[1] == solid.half_size[1]
        assert solid.label in (BALL, BOX, CYLINDER)
    assert room.walls.label == WALL
    assert room.height < 2 * room.walls.half_size[1]


def test_splits_of_other_seeds_have_nothing_in_common():
    splits = Splits(*(SceneSplit(2, SIZE, seed) for seed in (0, 1, 2)))
    assert len(splits.train) == len(splits.train.keys) == len(splits.train.groups) == 2
    with pytest.raises(InputError, match="share an image"):
        Splits(SceneSplit(2, SIZE, 0), SceneSplit(2, SIZE, 1), SceneSplit(1, SIZE, 0))


def test_samples_are_normalised_and_rendered_once():
    scenes = render(2, SIZE, seed=4)
    for target, expected in (("depth", scenes.depth), ("labels", scenes.labels)):
        split = SceneSplit(2, SIZE, seed=4, target=target)
        image, found = split[1]
        assert torch.allclose(image, scenes.images[1] * 2 - 1, atol=1e-6)
        assert torch.equal(found, expected[1])
        assert split[0].image.data_ptr() == split[0].image.data_ptr()
    with pytest.raises(InputError, match="no 'normals'"):
        SceneSplit(2, SIZE, 0, target="normals")
