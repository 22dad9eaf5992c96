"""What the kernel benchmark measures, counted by hand: models, image sizes, mixers, and the floor of each.

The floor is the time that no implementation can beat: every input read once and every output written once at the speed
of a device copy, or the products at the speed of a large matrix product, whichever takes longer. Weights of the kernel
generator and RoPE tables are left out of it, so it is a little lower than what is possible.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from jetvit.kernels import balanced_windows


@dataclass(frozen=True)
class Model:
    """The attention of a model: every block has the same."""

    num_heads: int
    head_dim: int
    patch_size: int
    extra_tokens: int
    rope: bool


MODELS = {
    "DINOv3-B": Model(12, 64, 16, 5, True),
    "DINOv3-L": Model(16, 64, 16, 5, True),
    "DepthAnythingV2-L": Model(16, 64, 14, 1, False),
    "DepthAnythingV2-G": Model(24, 64, 14, 1, False),
    "DINOv3-7B": Model(32, 128, 16, 5, True),
}
# Height and width in pixels; a model takes as many whole patches as fit.
SIZES = ((1024, 2048), (2048, 2048), (4096, 4096))


@dataclass(frozen=True)
class Mixer:
    """What mixes the tokens. size: of the convolution (linear) or side of the window; full attention has none."""

    name: str
    kind: str
    size: int = 0


FIRST_MIXERS = (Mixer("linear 3x3", "linear", 3), Mixer("window 16", "window", 16), Mixer("full", "full"))
MORE_MIXERS = (Mixer("linear 5x5", "linear", 5), Mixer("window 8", "window", 8), Mixer("window 32", "window", 32))


@dataclass(frozen=True)
class Problem:
    """One mixer of one model at one image size, batch 1: q, k, v are [1, tokens, num_heads, head_dim].

    size: height x width in pixels. The tokens are `extra_tokens`, then the grid.
    """

    model: str
    size: str
    mixer: Mixer
    num_heads: int
    head_dim: int
    grid_h: int
    grid_w: int
    extra_tokens: int
    rope: bool

    @property
    def tokens(self) -> int:
        """All tokens of the sequence."""
        return self.extra_tokens + self.grid_h * self.grid_w

    @property
    def channels(self) -> int:
        """Width of the model."""
        return self.num_heads * self.head_dim

    def shrunk(self) -> Problem:
        """A small problem of the same name and kind, for a machine that only tries the programs."""
        return replace(
            self,
            mixer=replace(self.mixer, size=self.mixer.size // 4) if self.mixer.kind == "window" else self.mixer,
            num_heads=2,
            head_dim=16,
            grid_h=self.grid_h // 8,
            grid_w=self.grid_w // 8,
        )


def problem(model: str, size: tuple[int, int], mixer: Mixer) -> Problem:
    """The attention of a model at an image size."""
    shape = MODELS[model]
    grid_h, grid_w = (side // shape.patch_size for side in size)
    return Problem(
        model,
        f"{size[0]}x{size[1]}",
        mixer,
        shape.num_heads,
        shape.head_dim,
        grid_h,
        grid_w,
        shape.extra_tokens,
        shape.rope,
    )


def problems() -> list[Problem]:
    """All of them, the most telling first."""
    small, middle, large = SIZES
    steps = [
        (small, FIRST_MIXERS),
        (middle, FIRST_MIXERS),
        (small, MORE_MIXERS),
        (large, FIRST_MIXERS),
        (middle, MORE_MIXERS),
        (large, MORE_MIXERS),
    ]
    return [problem(model, size, mixer) for size, mixers in steps for model in MODELS for mixer in mixers]


def ideal_bytes(problem: Problem, element_size: int = 2) -> int:
    """Bytes to and from device memory, with elements of `element_size` bytes.

    Linear attention needs all of k and v before any of the output, so it reads v twice: k, v, q, v, out.
    """
    passes = 5 if problem.mixer.kind == "linear" else 4
    return passes * problem.tokens * problem.channels * element_size


def ideal_flops(problem: Problem) -> int:
    """Floating-point operations, a product and its sum counted as two."""
    tokens, channels, grid_tokens = problem.tokens, problem.channels, problem.grid_h * problem.grid_w
    if problem.mixer.kind == "linear":
        return 4 * tokens * problem.head_dim * channels + 2 * problem.mixer.size**2 * grid_tokens * channels
    if problem.mixer.kind == "window":
        side_h, side_w = (balanced_windows(grid, problem.mixer.size)[1] for grid in (problem.grid_h, problem.grid_w))
        seen = side_h * side_w + problem.extra_tokens
        return 4 * channels * (grid_tokens * seen + problem.extra_tokens * tokens)
    return 4 * tokens * tokens * channels


@dataclass(frozen=True)
class Ceilings:
    """What the device reaches: a copy in TB/s, read and written bytes counted, and a bf16 product in TFLOP/s."""

    copy_tb_s: float
    gemm_tflop_s: float


def floor_ms(problem: Problem, ceilings: Ceilings) -> float:
    """The shortest time possible, in milliseconds."""
    moving = ideal_bytes(problem) / (ceilings.copy_tb_s * 1e9)
    computing = ideal_flops(problem) / (ceilings.gemm_tflop_s * 1e9)
    return max(moving, computing)
