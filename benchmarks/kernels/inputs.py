"""Random inputs of one attention, as a model would hand them to its mixer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.kernels.shapes import Problem
from jetvit.cost_model.measuring.timing import generator_shapes


@dataclass(frozen=True)
class Inputs:
    """qkv: [1, token, 3, head, dim], the output of a packed projection. w1, b1, w2, b2: the kernel generator.

    rope_y, rope_x: the separable tables of our operators. cos, sin: [grid token, dim] in the model's dtype, the tables
    that HF DINOv3 makes. What the problem has no use for has shape [0].
    """

    problem: Problem
    qkv: Tensor
    rope_y: Tensor
    rope_x: Tensor
    cos: Tensor
    sin: Tensor
    w1: Tensor
    b1: Tensor
    w2: Tensor
    b2: Tensor

    @property
    def scale(self) -> float:
        """The softmax scale."""
        return self.problem.head_dim**-0.5

    @property
    def place(self) -> tuple[int, int, int]:
        """Where the grid is: grid_h, grid_w, extra_before."""
        return self.problem.grid_h, self.problem.grid_w, self.problem.extra_tokens


def make_inputs(problem: Problem, device: torch.device, dtype: torch.dtype, seed: int = 0) -> Inputs:
    """Inputs of unit variance, so that no value is special and no product is by zero."""
    generator = torch.Generator(device).manual_seed(seed)

    def random(*shape: int, scale: float = 1.0, dtype: torch.dtype = dtype) -> Tensor:
        return torch.randn(shape, generator=generator, device=device, dtype=dtype) * scale

    empty = torch.empty(0, device=device)
    tables: dict[str, Any] = dict.fromkeys(("rope_y", "rope_x", "cos", "sin"), empty)
    if problem.rope:
        quarter = problem.head_dim // 4
        y = 3 * random(problem.grid_h, quarter, dtype=torch.float32)
        x = 3 * random(problem.grid_w, quarter, dtype=torch.float32)
        angles = torch.cat(
            [y[:, None].expand(-1, problem.grid_w, -1), x[None].expand(problem.grid_h, -1, -1)], dim=-1
        ).flatten(0, 1)
        tables = {
            "rope_y": torch.stack([y.cos(), y.sin()], dim=1),
            "rope_x": torch.stack([x.cos(), x.sin()], dim=1),
            "cos": angles.cos().tile(2).to(dtype),
            "sin": angles.sin().tile(2).to(dtype),
        }
    weights = dict.fromkeys(("w1", "b1", "w2", "b2"), empty)
    if problem.mixer.kind == "linear":
        w1, b1, w2, b2 = generator_shapes(problem.channels, problem.mixer.size)
        weights = {
            "w1": random(*w1, scale=w1[1] ** -0.5),
            "b1": random(*b1),
            "w2": random(*w2, scale=w2[1] ** -0.5),
            "b2": random(*b2, scale=0.1),
        }
    qkv = random(1, problem.tokens, 3, problem.num_heads, problem.head_dim)
    return Inputs(problem, qkv, **tables, **weights)
