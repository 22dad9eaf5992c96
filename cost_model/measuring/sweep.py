"""The operations to measure, in an order that spreads over all sizes however early the sweep ends."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product, zip_longest

import numpy as np

from jetvit.cost_model.measuring.operation import OPS, Operation


@dataclass(frozen=True)
class ModelShape:
    """A Vision Transformer by its sizes: every block has the same. The tokens are `extra_tokens`, then the patches.

    rope: whether q and k are rotated by axial tables.
    """

    heads: int
    head_dim: int
    patch_size: int
    extra_tokens: int
    rope: bool

    @property
    def width(self) -> int:
        """Features of a token."""
        return self.heads * self.head_dim

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """Height and width in patches of an image of `size` pixels: as many whole patches as fit."""
        return size[0] // self.patch_size, size[1] // self.patch_size


MODELS = {
    "DINOv3-B": ModelShape(12, 64, 16, 5, True),
    "DINOv3-L": ModelShape(16, 64, 16, 5, True),
    "DINOv3-7B": ModelShape(32, 128, 16, 5, True),
    "DepthAnythingV2-L": ModelShape(16, 64, 14, 1, False),
    "DepthAnythingV2-G": ModelShape(24, 64, 14, 1, False),
}
SIZES = ((512, 512), (1024, 2048), (2048, 2048), (4096, 4096))
# What a CPU can run: grids of up to 32x48 tokens.
SMALL_MODELS = {"ViT-Ti": ModelShape(3, 64, 16, 1, False), "DINOv3-S": ModelShape(6, 64, 16, 5, True)}
SMALL_SIZES = ((128, 192), (224, 224), (256, 512), (384, 512), (512, 768))

# What plans put in place of full attention.
WINDOWS = (8, 16, 32)
CONV_SIZES = (0, 3, 5)
MLP_RATIO = 4
# "" leaves the choice to the operator.
GPU_BACKENDS = ("", "CUDNN_ATTENTION", "FLASH_ATTENTION", "EFFICIENT_ATTENTION")


def operations(
    models: Mapping[str, ModelShape],
    sizes: Iterable[tuple[int, int]],
    batches: Sequence[int] = (1,),
    dtypes: Sequence[str] = ("bfloat16",),
    *,
    gpu: bool = True,
) -> list[Operation]:
    """All that a block of these models calls at these image sizes (height, width in pixels), each operation once.

    Every attention that the passes put there (linear attention with "relu" alone), with RoPE and without where the
    model has it, and the products, norm, activation and sum of the block around it. With `gpu` full attention also
    comes with its RoPE and by every backend of SDPA; on a CPU it stays SDPA. A window over the whole grid, which is
    full attention, is left out.

    Raises ValueError where a side of an image is smaller than a patch.
    """
    found: dict[Operation, None] = {}
    for (name, model), size, batch, dtype in product(models.items(), sizes, batches, dtypes):
        grid_h, grid_w = model.grid(size)
        if min(grid_h, grid_w) < 1:
            raise ValueError(f"an image of {size[0]}x{size[1]} has no whole patch of {name}, {model.patch_size} wide")
        common = {"dtype": dtype, "batch": batch, "grid_h": grid_h, "grid_w": grid_w, "extra": model.extra_tokens}
        for own in (*_attentions(model, grid_h, grid_w, gpu), *_around(model.width)):
            found[Operation(**common, **own)] = None  # type: ignore[arg-type]
    return list(found)


def spread(operations: Iterable[Operation], seed: int = 0) -> list[Operation]:
    """The operations in the order to measure them in, the same for the same operations and seed.

    In rounds: each takes one operation of every op that has any left, in a random order, so that a slow spell of the
    machine meets no op alone. Of one op the cheapest comes first, then always the one that is farthest, in logarithms
    of its sizes, from all before it: any beginning of the list is spread over the whole range of models and images.
    """
    shuffle = random.Random(seed).shuffle
    unique = sorted(dict.fromkeys(operations), key=_cost)
    by_op = [_farthest_first([each for each in unique if each.op == op]) for op in OPS]
    order: list[Operation] = []
    for column in zip_longest(*by_op):
        chunk = [operation for operation in column if operation is not None]
        shuffle(chunk)
        order += chunk
    return order


def _attentions(model: ModelShape, grid_h: int, grid_w: int, gpu: bool) -> list[dict[str, object]]:
    shape = {"heads": model.heads, "head_dim": model.head_dim}
    found: list[dict[str, object]] = [{"op": "full", "backend": each} for each in (GPU_BACKENDS if gpu else ("",))]
    if gpu and model.rope:
        found.append({"op": "full", "rope": True})
    for rope in (False, True) if model.rope else (False,):
        windows = [side for side in WINDOWS if side < max(grid_h, grid_w)]
        found += [{"op": "window", "rope": rope, "window_h": side, "window_w": side} for side in windows]
        found += [{"op": "linear", "rope": rope, "conv_size": size} for size in CONV_SIZES]
    return [each | shape for each in found]


def _around(width: int) -> list[dict[str, object]]:
    """The rest of a block, with a packed projection of q, k and v."""
    hidden = MLP_RATIO * width
    products = ((width, 3 * width), (width, width), (width, hidden), (hidden, width))
    return [
        *({"op": "gemm", "inputs": inputs, "outputs": outputs} for inputs, outputs in products),
        {"op": "layer_norm", "inputs": width},
        {"op": "gelu", "inputs": hidden},
        {"op": "add", "inputs": width},
    ]


def _cost(operation: Operation) -> tuple[int, int, str]:
    return operation.flops, operation.bytes, str(operation)


def _farthest_first(operations: Sequence[Operation]) -> list[Operation]:
    """Of one op, the cheapest first: the first stays the first, and of equally far ones the earlier is taken."""
    if not operations:
        return []
    points = np.array([_place(operation) for operation in operations])
    order = [0]
    distance = np.linalg.norm(points - points[0], axis=1)
    distance[0] = -1
    while len(order) < len(operations):
        # Rounded, for a difference in the last digit is none; argmax takes the first of equals.
        chosen = int(np.argmax(distance.round(6)))
        order.append(chosen)
        distance = np.minimum(distance, np.linalg.norm(points - points[chosen], axis=1))
        distance[order] = -1
    return [operations[each] for each in order]


def _place(operation: Operation) -> list[float]:
    """Its sizes in powers of two; what is no size is one step apart, so that it is visited but crowds out no sizes."""
    sizes = [
        *(operation.batch, operation.grid_h * operation.grid_w, operation.features, max(1, operation.outputs)),
        *(max(1, operation.head_dim), max(1, operation.window_h), 1 + operation.conv_size),
    ]
    kinds = [operation.rope, *(operation.backend == each for each in GPU_BACKENDS), operation.dtype == "float32"]
    return [*np.log2(sizes), *map(float, kinds)]
