"""Rendered rooms with exact depth and labels, for training and tests without data.

A room has a floor, four walls and a ceiling; balls, boxes and cylinders stand on the floor. How far a thing is
shows in where it meets the floor, and how far the floor is in the camera's height, pitch and field of view, which
differ from image to image: depth takes the whole image. Every surface is convex in a frame of its own, where it is a
unit ball, cube or cylinder; a ray is inside of it between two numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from random import Random
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from jetvit.models.images import normalise
from jetvit.patterns.errors import InputError
from jetvit.search.data.splits import Sample

CLASSES = ("floor", "wall", "ceiling", "ball", "box", "cylinder")
FLOOR, WALL, CEILING, BALL, BOX, CYLINDER = range(len(CLASSES))
NEAREST, FARTHEST = 0.3, 25.0
"""Metres: no depth is outside of them."""
MEAN = STD = (0.5, 0.5, 0.5)

Interval = tuple[Tensor, Tensor]
"""The points where rays enter and leave, [P], in lengths of the ray; a ray misses if it leaves before it enters."""


class Scenes(NamedTuple):
    """images: float32 [N, 3, H, W] in 0–1; depth: float32 [N, H, W], metres along the camera's axis; labels: int64
    [N, H, W], indices into CLASSES."""

    images: Tensor
    depth: Tensor
    labels: Tensor


def render(count: int, size: tuple[int, int], seed: int) -> Scenes:
    """Draw rooms; the one at index i depends on the seed and on i alone, and at another size it is the same room.

    Args:
        count: the number of images.
        size: (height, width) in pixels.
    """
    drawn = [_render(Room(Random(f"{seed} {index}")), size) for index in range(count)]
    images, depth, labels = (torch.stack(each) for each in zip(*drawn, strict=True))
    return Scenes(images, depth, labels)


class SceneSplit:
    """Rendered rooms as a split of `jetvit.search`: a normalised image (mean and std 0.5), and its depth or labels.

    All are rendered when the first is asked for, and kept.

    Args:
        count, size, seed: as `render` takes them; splits of one search differ in their seeds.
        target: "depth", float32 [H, W] in metres, or "labels", int64 [H, W].
    Raises:
        InputError: another target.
    """

    def __init__(self, count: int, size: tuple[int, int], seed: int, target: Literal["depth", "labels"] = "depth"):
        if target not in ("depth", "labels"):
            raise InputError(f"scenes have no {target!r}", do="ask for depth or labels")
        self.size, self.seed, self.target = size, seed, target
        self.keys = [f"scene {seed} {index}" for index in range(count)]
        self.groups = [""] * count

    @cached_property
    def _samples(self) -> tuple[Tensor, Tensor]:
        scenes = render(len(self), self.size, self.seed)
        return normalise(scenes.images, MEAN, STD), scenes.depth if self.target == "depth" else scenes.labels

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> Sample:
        images, targets = self._samples
        return Sample(images[index], targets[index])


@dataclass(frozen=True)
class Solid:
    """A unit shape, stretched by `half_size` [3], turned by `yaw` about the vertical and moved to `centre` [3]."""

    label: int
    centre: Tensor
    half_size: Tensor
    yaw: float

    @cached_property
    def to_local(self) -> Tensor:
        """[3, 3]: takes directions of the world to those of the unit shape."""
        cos, sin = math.cos(self.yaw), math.sin(self.yaw)
        return torch.tensor([[cos, 0, -sin], [0, 1, 0], [sin, 0, cos]]) / self.half_size[:, None]

    def local(self, point: Tensor) -> Tensor:
        """Points [3, P] of the world where the unit shape is at home."""
        return self.to_local @ point - (self.to_local @ self.centre)[:, None]

    def interval(self, origin: Tensor, direction: Tensor) -> Interval:
        """Where rays from the one point `origin` [3, 1] along `direction` [3, P] are inside."""
        return INSIDE[self.label](self.local(origin), self.to_local @ direction)

    def shades(self, point: Tensor, lamp: Tensor) -> Tensor:
        """Whether it is between each `point` [3, P] and the one `lamp` [3, 1]: bool [P]."""
        here = self.local(point)
        enter, leave = INSIDE[self.label](here, self.local(lamp) - here)
        return (enter < leave) & (leave > 1e-3) & (enter < 1)  # a point on its own surface is left at 0

    def normal(self, point: Tensor) -> Tensor:
        """The unit vectors [3, P] that point out of the surface at `point` [3, P] on it."""
        local = self.local(point)
        if self.label == CYLINDER:
            top = (local[1] > 1 - 1e-3).float()
            local = torch.stack([local[0] * (1 - top), top, local[2] * (1 - top)])
        elif self.label != BALL:
            local = local.sign() * (local.abs() == local.abs().amax(0))
        outward = self.to_local.T @ local
        return outward / _length(outward)


class Room:
    """The content of one image: a camera at (0, height, 0) that looks along z, walls, solids, a lamp and their colours.

    Lengths are in metres, angles in radians; y is up and the floor is at 0.
    """

    def __init__(self, random: Random):
        uniform = random.uniform
        self.height = uniform(0.7, 2.0)
        self.pitch, self.roll = math.radians(uniform(-5, 25)), math.radians(uniform(-5, 5))
        self.half_fov = math.radians(uniform(22, 40))
        left, right, back, front = uniform(1.5, 5), uniform(1.5, 5), uniform(1, 2), uniform(3, 12)
        ceiling = self.height + uniform(0.7, 2.5)
        self.walls = Solid(
            WALL,
            centre=torch.tensor([(right - left) / 2, ceiling / 2, (front - back) / 2]),
            half_size=torch.tensor([(right + left) / 2, ceiling / 2, (front + back) / 2]),
            yaw=0.0,
        )
        self.turn = uniform(-0.7, 0.7)  # of the camera against the walls
        self.solids = [self._solid(random) for _ in range(random.randint(2, 6))]
        self.lamp = torch.tensor([uniform(-0.8 * left, 0.8 * right), 0.95 * ceiling, uniform(0, 0.8 * front)])
        self.lamp_strength, self.ambient = uniform(0.6, 1.4), uniform(0.25, 0.5)
        self.fog, self.fog_colour = uniform(0, 0.06), _vector(random, 0.3, 0.9)
        # A texture for floor, walls, ceiling, and each solid.
        count = 3 + len(self.solids)
        self.colour = torch.stack([_vector(random, 0.15, 0.95) for _ in range(count)], 1)
        self.contrast = torch.tensor([uniform(0, 0.4) for _ in range(count)])
        self.waves = torch.stack([torch.stack([_vector(random, -9, 9) for _ in range(count)], 1) for _ in range(2)])

    def _solid(self, random: Random) -> Solid:
        label = random.choice((BALL, BOX, CYLINDER))
        width, height, length = random.uniform(0.15, 0.6), random.uniform(0.15, 0.9), random.uniform(0.15, 0.6)
        if label == BALL:
            height = length = width
        elif label == CYLINDER:
            length = width
        distance = 1.6 * 5 ** random.random()
        bearing = self.turn + random.uniform(-0.6, 0.6)
        centre = torch.tensor([distance * math.sin(bearing), height, distance * math.cos(bearing)])
        return Solid(label, centre, torch.tensor([width, height, length]), random.uniform(0, math.pi))

    def rays(self, size: tuple[int, int]) -> Tensor:
        """Directions [3, H·W] through the middles of the pixels, of length 1 along the camera's axis."""
        height, width = size
        scale = 2 * math.tan(self.half_fov) / height
        y = (height / 2 - 0.5 - torch.arange(height)).view(-1, 1).expand(size).reshape(-1) * scale
        x = (torch.arange(width) - width / 2 + 0.5).expand(size).reshape(-1) * scale
        cos, sin = math.cos(self.roll), math.sin(self.roll)
        x, y = cos * x - sin * y, sin * x + cos * y
        cos, sin = math.cos(self.pitch), math.sin(self.pitch)
        y, z = cos * y - sin, sin * y + cos
        cos, sin = math.cos(self.turn), math.sin(self.turn)
        return torch.stack([cos * x + sin * z, y, cos * z - sin * x])


def _render(room: Room, size: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Image [3, H, W], depth [H, W] and labels [H, W]."""
    origin, rays = torch.tensor([[0.0], [room.height], [0.0]]), room.rays(size)
    depth = room.walls.interval(origin, rays)[1]
    surface = torch.zeros(len(depth), dtype=torch.int64)  # 0: the room, n: the nth solid
    for number, solid in enumerate(room.solids, start=1):
        enter, leave = solid.interval(origin, rays)
        hit = (enter < leave) & (enter > NEAREST) & (enter < depth)
        depth, surface = torch.where(hit, enter, depth), torch.where(hit, number, surface)
    point = origin + depth * rays

    normal = -room.walls.normal(point)
    upright = normal[1].round().long()  # 1 on the floor, -1 on the ceiling
    labels = torch.tensor([CEILING, WALL, FLOOR])[upright + 1]
    texture = labels.clone()
    for number, solid in enumerate(room.solids, start=1):
        seen = (surface == number).nonzero().flatten()
        normal[:, seen] = solid.normal(point[:, seen])
        labels[seen], texture[seen] = solid.label, 2 + number

    light = _albedo(room, texture, point) * _brightness(room, point, normal)
    haze = torch.exp(-room.fog * depth)
    image = light * haze + room.fog_colour[:, None] * (1 - haze)
    return image.clamp(0, 1).reshape(3, *size), depth.reshape(size), labels.reshape(size)


def _albedo(room: Room, texture: Tensor, point: Tensor) -> Tensor:
    """[3, P]: the colours of the textures, in blots that two waves in space make."""
    one, two = ((wave[:, texture] * point).sum(0).sin() for wave in room.waves)
    return room.colour[:, texture] * (1 + room.contrast[texture] * torch.tanh(4 * one * two))


def _brightness(room: Room, point: Tensor, normal: Tensor) -> Tensor:
    """[P]: light from everywhere, a little more from above, and from the lamp where no solid is in its way."""
    lamp = room.lamp[:, None]
    to_lamp = lamp - point
    distance = _length(to_lamp)
    lit = ((normal * to_lamp).sum(0) / distance).clamp_min(0) / (1 + 0.05 * distance**2)
    for solid in room.solids:
        lit = lit * ~solid.shades(point, lamp)
    return room.ambient * (1 + 0.3 * normal[1]) + room.lamp_strength * lit


def _length(vectors: Tensor) -> Tensor:
    return (vectors * vectors).sum(0).sqrt()  # several times faster than `norm` of so few numbers


def _vector(random: Random, low: float, high: float) -> Tensor:
    return torch.tensor([random.uniform(low, high) for _ in range(3)])


def _between(origin: Tensor, direction: Tensor) -> Interval:
    """Inside of [-1, 1] in every coordinate of [n, P]."""
    one, other = (-1 - origin) / direction, (1 - origin) / direction
    return torch.minimum(one, other).amax(0), torch.maximum(one, other).amin(0)


def _round(origin: Tensor, direction: Tensor) -> Interval:
    """Inside of the unit ball of the coordinates of [n, P]."""
    a, b, c = (direction * direction).sum(0), (origin * direction).sum(0), (origin * origin).sum(0) - 1
    root = (b * b - a * c).clamp_min(0).sqrt()
    return (-b - root) / a, (-b + root) / a


def _cylinder(origin: Tensor, direction: Tensor) -> Interval:
    around, along = _round(origin[::2], direction[::2]), _between(origin[1:2], direction[1:2])
    return torch.maximum(around[0], along[0]), torch.minimum(around[1], along[1])


INSIDE: dict[int, Callable[[Tensor, Tensor], Interval]] = {
    WALL: _between,
    BOX: _between,
    BALL: _round,
    CYLINDER: _cylinder,
}
