"""The record that every model of the zoo is described by, and what the families share to fill it in."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

Size = tuple[int, int]
REPRS = re.compile(r" at 0x|<function|<class|<built-in|<bound|OpOverload| object>")
"""What no message may hold: what repr() makes of an object."""
Inputs = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Case:
    """One small model with random weights, how to call it, and what `find_attention` must say about it.

    `inputs(batch=2, size=<size>, dtype=torch.float32)` gives `(args, kwargs)`; image i is the same in every batch.
    Each entry of `rejections` stands for one kind of attention that must be refused, as alternatives: "bias|window"
    asks for one of the two words in the reason. `num_heads` and `head_dim` are those of the sites, or of the refused
    attentions where there is no site.
    """

    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[..., Inputs]
    size: Size
    oblong: Size | None  # a second size that the model takes; None: the size is fixed
    sites: int
    num_heads: int
    head_dim: int
    grid: Callable[[Size], Size]  # image size -> tokens (rows, columns)
    extra_before: int = 0
    extra_after: int = 0
    scale: float | None = None  # None: head_dim ** -0.5
    rope: str | None = None  # "half" | "interleaved"
    rejections: tuple[str, ...] = ()
    names: tuple[str, ...] = ()  # of the sites, in the order of execution; a module's second run gets "#1"
    dynamic: str = (
        "image"  # "image": batch, height and width can be dynamic under torch.export; "batch": only the batch
    )

    @property
    def softmax_scale(self) -> float:
        return self.head_dim**-0.5 if self.scale is None else self.scale

    def dynamic_shapes(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        """`dynamic_shapes` for `torch.export.export` that leaves open whatever this model can leave open.

        torch.export fixes an axis of length 1, so the inputs must be a batch of two or more.
        """
        open_dims = (0, 2, 3) if self.dynamic == "image" else (0,)

        def spec(leaf: Any) -> Any:
            if not isinstance(leaf, torch.Tensor):
                return None
            return {dim: torch.export.Dim.DYNAMIC for dim in open_dims if leaf.shape[dim] > 1}

        # One entry a parameter of forward: what *args or **kwargs collects is one tuple or dict.
        return tuple(pytree.tree_map(spec, value) for value in self._forward.bind(*args, **kwargs).arguments.values())

    @cached_property
    def _forward(self) -> inspect.Signature:
        return inspect.signature(self.build().forward)


def grid_of(patch_size: int) -> Callable[[Size], Size]:
    return lambda size: (size[0] // patch_size, size[1] // patch_size)


def images(batch: int, *shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    """Standard normal [batch, *shape]."""
    generators = (torch.Generator().manual_seed(1000 * seed + i) for i in range(batch))
    return torch.stack([torch.randn(shape, generator=generator) for generator in generators]).to(dtype)


def image_inputs(default_size: Size, **kwargs: Any) -> Callable[..., Inputs]:
    """`Case.inputs` of a model that takes [batch, 3, height, width] and constant keyword arguments."""

    def inputs(batch: int = 2, size: Size = default_size, dtype: torch.dtype = torch.float32) -> Inputs:
        return (images(batch, 3, *size, dtype=dtype),), dict(kwargs)

    return inputs


@torch.no_grad()
def randomize(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every parameter seeded values that keep activations near unit variance, with nothing left at zero or one.

    Initial values hide defects: a LayerScale of 1e-5 switches a block off, and a zero bias or token is not missed.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim <= 1 and not name.endswith("bias"):  # norm weights, LayerScale
            parameter.copy_(1 + 0.2 * noise)
        elif parameter.ndim in (2, 4) and name.endswith("weight"):  # linear, convolution, embedding
            parameter.copy_(noise / parameter[0].numel() ** 0.5)
        else:  # biases, bias tables, tokens, position embeddings
            parameter.copy_(0.5 * noise)
    return model.eval()
