"""A first estimate of an operation's latency: a roofline whose work is rounded up to tiles and to waves of tiles.

Its constants are fitted to the measurements of one device, and nothing here knows a particular one. Every estimate is
monotone in batch, tokens and `seen`, which `jetvit.cost_model.predicting.monotone` builds on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from jetvit.cost_model.measuring.operation import ATTENTIONS, ELEMENT_BYTES, PASSES, Operation

Array = NDArray[np.float64]

# The columns of a table of sizes. `seen`: keys that a query of window attention sees. `width`: features that come in.
# `head_dim`: of linear attention the features that its map makes of a head.
SIZES = ("batch", "tokens", "seen", "width", "outputs", "heads", "head_dim", "window", "conv_size", "rope")
BATCH, TOKENS, SEEN, WIDTH, OUTPUTS, HEADS, HEAD_DIM, WINDOW, CONV, ROPE = range(len(SIZES))

# Output tiles of a matrix product, rows × columns, and into how many parts its sum may be split.
_TILES = ((64, 64), (64, 128), (64, 256), (128, 64), (128, 128), (128, 256), (256, 128))
_SPLITS = (1, 2, 4)
_GEMM = tuple((*tile, split) for tile in _TILES for split in _SPLITS)
_QUERIES = ((64, 64, 1), (128, 64, 1))  # Queries × keys of a step of attention.
_STEP = 64  # Features that one step of a product takes.
TOKEN_BITS = 7


@dataclass(frozen=True)
class Device:
    """The device of the latencies. `multiprocessors`: of a GPU; of a CPU its cores. Raises ValueError below 1."""

    name: str
    multiprocessors: int

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError("the device has no name")
        if self.multiprocessors < 1:
            raise ValueError(f"multiprocessors is {self.multiprocessors}, less than 1")


def kernel_of(operation: Operation) -> str:
    """A kind of kernel, with one set of constants: the op, the dtype and its variant.

    So nothing is foretold of a feature map that was not measured itself: another one runs other kernels.
    """
    return " ".join(part for part in (operation.op, operation.dtype, operation.variant) if part)


def sizes_of(operations: Sequence[Operation]) -> Array:
    """Sizes of operations of one kernel, [operations, len(SIZES)].

    Only full attention tells the batch from the tokens of a sequence. The work of all others is that of their rows, so
    that they count as one sequence of all rows.
    """
    table = []
    for x in operations:
        seen = x.extra + x.window_tokens if x.op == "window" else 0
        batch, tokens = (x.batch, x.tokens) if x.op == "full" else (1, x.rows)
        window = x.window_h * x.window_w
        table.append(
            (batch, tokens, seen, x.features, x.outputs, x.heads, x.feature_dim, window, x.conv_size, int(x.rope))
        )
    return np.array(table, np.float64).reshape(len(table), len(SIZES))


def round_up(values: Array, bits: int = TOKEN_BITS) -> Array:
    """The next whole number of at most `bits` significant bits: multiples of 64 from 4097 to 8192 tokens, for 7."""
    step = 2.0 ** np.maximum(0, np.ceil(np.log2(np.maximum(values, 1))) - bits)
    return np.ceil(values / step) * step


@dataclass(frozen=True)
class _Work:
    """flops [n, ways]: padded to tiles and full waves, for each way to cut the work. area, split [ways]. bytes [n]."""

    flops: Array
    area: Array
    split: Array
    bytes: Array


def _work(op: str, element_bytes: int, sizes: Array, multiprocessors: int) -> _Work:
    x = sizes.T
    rows, wide = x[BATCH] * x[TOKENS], x[WIDTH]
    ways: Sequence[tuple[int, int, int]] = ((64, 64, 1),)
    moved = PASSES.get(op, 2) * rows * wide  # one more pass, of a feature map's own, is in the fitted constants
    if op == "gemm":
        ways = _GEMM
        moved = rows * (wide + x[OUTPUTS]) + wide * x[OUTPUTS]

        def blocks(way: tuple[int, int, int]) -> tuple[Array, Array]:
            count = np.ceil(rows / way[0]) * np.ceil(x[OUTPUTS] / way[1]) * way[2]
            return count, 2 * way[0] * way[1] * _padded(wide / way[2], _STEP)
    elif op in ("full", "window"):
        ways = _QUERIES
        # Windows are not cut anew for each size: how much their own tiles waste depends on the window alone.
        seen = x[TOKENS] if op == "full" else x[SEEN]

        def blocks(way: tuple[int, int, int]) -> tuple[Array, Array]:
            inside = 1.0 if op == "full" else _padded(x[WINDOW], way[0]) / x[WINDOW]
            queries = x[TOKENS] * inside
            count = x[BATCH] * x[HEADS] * np.ceil(queries / way[0])
            return count, 4 * way[0] * _padded(seen, way[1]) * _padded(x[HEAD_DIM], 16)
    else:
        each = wide if op not in ATTENTIONS else (4 * x[HEAD_DIM] + 2 * x[CONV] ** 2) * wide

        def blocks(way: tuple[int, int, int]) -> tuple[Array, Array]:
            return np.ceil(rows / way[0]), way[0] * each

    flops = []
    for way in ways:
        count, cost = blocks(way)
        flops.append(np.ceil(count / multiprocessors) * multiprocessors * cost)
    area = np.array([way[0] * way[1] for way in ways], np.float64)
    return _Work(np.stack(flops, 1), area, np.array([way[2] for way in ways], np.float64), moved * element_bytes)


def _padded(values: Array, tile: int) -> Array:
    return np.ceil(values / tile) * tile


@dataclass(frozen=True)
class Roofline:
    """The latency of one kernel on one device from its sizes, by constants that were fitted.

    * overhead, flops, bytes: logarithms of milliseconds a launch, and of flops and bytes a millisecond.
    * tile, split: how much a smaller tile and a split sum cost, as powers of their sizes.
    * sharpness: the more, the nearer the joint time of flops and bytes is to the longer of the two.
    """

    op: str
    element_bytes: int
    multiprocessors: int
    overhead: float
    flops: float
    bytes: float
    tile: float
    split: float
    sharpness: float

    CONSTANTS = ("overhead", "flops", "bytes", "tile", "split", "sharpness")

    @classmethod
    def fit(cls, op: str, element_bytes: int, device: Device, sizes: Array, log_ms: Array) -> Roofline:
        """Constants that fit log_ms [n] at sizes [n, len(SIZES)], outliers counting little."""
        from scipy.optimize import least_squares

        work = _work(op, element_bytes, _rounded(sizes), device.multiprocessors)
        ideal = work.flops.min(1)
        # Begin where the fastest rows would reach the peaks; the prior keeps constants that no row tells about there.
        start = np.array(
            [
                log_ms.min() - 0.5,
                np.quantile(np.log(ideal) - log_ms, 0.95),
                np.quantile(np.log(work.bytes) - log_ms, 0.95),
                0.2,
                0.2,
                np.log(3.0),
            ]
        )
        # Tile and split cannot reward waste, which would be no longer a smallest cost.
        low = np.array([start[0] - 6, start[1] - 6, start[2] - 6, 0.0, 0.0, 0.0])
        high = np.array([log_ms.min() + 0.5, start[1] + 6, start[2] + 6, 1.0, 1.0, np.log(12.0)])
        weight = np.array([0.03, 0.03, 0.03, 1.0, 1.0, 0.5]) * np.sqrt(0.05)

        def errors(constants: Array) -> Array:
            error = _log_ms(work, constants)[0] - log_ms
            robust = np.sign(error) * 0.1 * np.sqrt(2 * (np.sqrt(1 + (error / 0.1) ** 2) - 1))
            return np.concatenate([robust, weight * (constants - start)])

        # The steps of the differences are wider than the kinks between two ways to cut the work.
        found = least_squares(errors, start, bounds=(low, high), diff_step=1e-3, max_nfev=60).x
        return cls(op, element_bytes, device.multiprocessors, *(float(value) for value in found))

    def log_ms(self, sizes: Array) -> Array:
        """The logarithm of the estimate in milliseconds [n], which never falls with batch, tokens or seen."""
        work = _work(self.op, self.element_bytes, _rounded(sizes), self.multiprocessors)
        return _log_ms(work, self._constants())[0]

    def features(self, sizes: Array) -> Array:
        """What the learned part sees of sizes, [n, features].

        `seen` is replaced by the whole window, a constant of the kernel call: so the learned part cannot undo that
        the estimate is monotone in it.
        """
        sizes = _rounded(sizes)
        sizes[:, SEEN] = sizes[:, WINDOW]
        work = _work(self.op, self.element_bytes, sizes, self.multiprocessors)
        log_ms, cuts, moved = _log_ms(work, self._constants())
        best = cuts.min(1)
        rows = sizes[:, BATCH] * sizes[:, TOKENS]
        own = np.log(sizes[:, [BATCH, TOKENS, WIDTH]])
        columns = [log_ms[:, None], (best - moved)[:, None], (self.overhead - log_ms)[:, None], own]
        columns += [np.log1p(sizes[:, [OUTPUTS, WINDOW]]), sizes[:, [HEADS, HEAD_DIM, CONV, ROPE]]]
        columns += [np.log1p(sizes[:, WIDTH] * sizes[:, OUTPUTS])[:, None]]
        for tile_m, tile_n in ((64, 128), (128, 128), (128, 256)):
            across = np.ceil(sizes[:, OUTPUTS] / tile_n) if self.op == "gemm" else np.maximum(sizes[:, HEADS], 1)
            waves = np.ceil(rows / tile_m) * across / self.multiprocessors
            # How full the last wave is, and how many there are.
            columns += [(waves / np.ceil(waves))[:, None], np.log(waves)[:, None]]
        columns += [(sizes[:, TOKENS] / _padded(sizes[:, TOKENS], tile))[:, None] for tile in (64, 128)]
        if cuts.shape[1] > 1:
            columns.append(cuts - best[:, None])
        return np.concatenate(columns, 1)

    def _constants(self) -> Array:
        return np.array([getattr(self, name) for name in self.CONSTANTS])


def _rounded(sizes: Array) -> Array:
    """A copy with tokens rounded up, as the monotone envelope takes them."""
    sizes = sizes.copy()
    sizes[:, TOKENS] = round_up(sizes[:, TOKENS])
    return sizes


def _log_ms(work: _Work, constants: Array) -> tuple[Array, Array, Array]:
    """Logarithms of the whole time [n], of the time of the flops for each way [n, ways], and of the bytes [n]."""
    overhead, flops, moved_rate, tile, split, sharpness = constants
    slower = tile * np.log(work.area.max() / work.area) + split * np.log(work.split)
    cuts = np.log(work.flops) - flops + slower
    moved = np.log(work.bytes) - moved_rate
    power = np.exp(sharpness)
    both = np.logaddexp(power * cuts.min(1), power * moved) / power
    return np.logaddexp(overhead, both), cuts, moved


def element_bytes_of(operation: Operation) -> int:
    """Bytes of one element of an operation's dtype."""
    return ELEMENT_BYTES[operation.dtype]
