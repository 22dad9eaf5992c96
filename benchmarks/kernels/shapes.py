"""What the kernel benchmark measures, counted by hand: models, image sizes, mixers, and the floor of each.

The floor is the time that no implementation can beat: every input read once and every output written once at the speed
of a device copy, or the products at the speed of a large matrix product, whichever takes longer. Weights of the kernel
generator and RoPE tables are left out of it, so it is a little lower than what is possible.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from jetvit.cost_model.measuring import sweep
from jetvit.cost_model.measuring.operation import Operation

# The largest comes last, so that a short run has all others.
_ORDER = ("DINOv3-B", "DINOv3-L", "DepthAnythingV2-L", "DepthAnythingV2-G", "DINOv3-7B")
MODELS = {name: sweep.MODELS[name] for name in _ORDER}
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

    @property
    def operation(self) -> Operation:
        """What counts the work, with elements of two bytes."""
        size = self.mixer.size
        own = {"linear": {"conv_size": size}, "window": {"window_h": size, "window_w": size}}.get(self.mixer.kind, {})
        place = (1, self.grid_h, self.grid_w, self.extra_tokens)
        return Operation(self.mixer.kind, "bfloat16", *place, self.num_heads, self.head_dim, self.rope, **own)

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
        shape.heads,
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


@dataclass(frozen=True)
class Ceilings:
    """What the device reaches: a copy in TB/s, read and written bytes counted, and a bf16 product in TFLOP/s."""

    copy_tb_s: float
    gemm_tflop_s: float


def floor_ms(problem: Problem, ceilings: Ceilings) -> float:
    """The shortest time possible, in milliseconds."""
    moving = problem.operation.bytes / (ceilings.copy_tb_s * 1e9)
    computing = problem.operation.flops / (ceilings.gemm_tflop_s * 1e9)
    return max(moving, computing)
