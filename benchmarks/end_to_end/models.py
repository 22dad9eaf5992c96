"""The models that are timed end to end, at which image sizes, how they are made with random weights, and their plans.

DINOv3 and DepthAnythingV2 are those of HF transformers in the shapes of their published checkpoints. A latency does not
depend on the weights, so they are drawn where they are needed, on the device and in its dtype.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import nn

from jetvit.cost_model import Choice, Fingerprint, Plan, SitePlan
from jetvit.cost_model.measuring.timing import generator_shapes
from jetvit.models.torchvision_shim import ensure_torchvision
from jetvit.passes.rewrites.apply_plan import generator_names
from jetvit.passes.targets.plain_outputs import with_plain_outputs
from jetvit.patterns.site import AttentionSite

Size = tuple[int, int]


@dataclass(frozen=True)
class Shape:
    """A model.

    mlp: width inside the MLP of DINOv3; Dinov2, the backbone of DepthAnything, takes four times its own. extra_tokens:
    class token and registers, before the grid. full: the two layers, counted from 0, that keep full attention. taps:
    the layers that a DPT head reads, counted from 1, none without one. neck, fusion: channels of that head. image_size:
    what the table of positions is made for.
    """

    width: int
    heads: int
    depth: int
    mlp: int
    gated: bool
    patch_size: int
    extra_tokens: int
    full: tuple[int, int]
    taps: tuple[int, ...] = ()
    neck: tuple[int, ...] = ()
    fusion: int = 0
    image_size: int = 518

    def grid(self, size: Size) -> Size:
        """Patches along height and width."""
        return size[0] // self.patch_size, size[1] // self.patch_size

    def full_blocks(self, number: int) -> tuple[int, ...]:
        """Which blocks keep full attention if so many of 0, 1 or 2 do: of the two layers the later one stays longer."""
        return self.full[2 - number :]

    def shrunk(self) -> Shape:
        """A small model of the same kind, for a machine that only tries the programs."""
        depth = 5
        return replace(
            self,
            width=32,
            heads=2,
            depth=depth,
            mlp=64,
            full=_at(self.full, self.depth, depth),
            taps=(1, 3, 4, 5) if self.taps else (),
            neck=(8, 8, 16, 16) if self.taps else (),
            fusion=8 if self.taps else 0,
            image_size=70,
        )


def _at(layers: tuple[int, int], depth: int, other: int) -> tuple[int, int]:
    """Layers of a model of `depth` blocks, counted from 0, at the same fractions of another depth."""
    first, second = (round((layer + 1) * other / depth) - 1 for layer in layers)
    return first, second


# The layers that the paper's search left full, 14 and 22 of DINOv3-L, 13 and 17 of DepthAnythingV2-L, counted from 1.
# The paper names none for the other models, which have theirs at the same fractions of their depth.
_DINOV3_L, _DEPTH_L = (13, 21), (12, 16)
MODELS = {
    "DINOv3-B": Shape(768, 12, 12, 3072, False, 16, 5, _at(_DINOV3_L, 24, 12)),
    "DINOv3-L": Shape(1024, 16, 24, 4096, False, 16, 5, _DINOV3_L),
    "DepthAnythingV2-L": Shape(
        1024, 16, 24, 4096, False, 14, 1, _DEPTH_L, (5, 12, 18, 24), (256, 512, 1024, 1024), 256
    ),
    "DepthAnythingV2-G": Shape(
        1536, 24, 40, 4096, True, 14, 1, _at(_DEPTH_L, 24, 40), (10, 20, 30, 40), (1536, 1536, 1536, 1536), 384
    ),
    "DINOv3-7B": Shape(4096, 32, 40, 8192, True, 16, 5, _at(_DINOV3_L, 24, 40)),
}  # fmt: skip
PAPER_SIZE, SMALL_SIZE, SQUARE_SIZE, LARGE_SIZE = (1024, 2048), (512, 512), (2048, 2048), (4096, 4096)
SIZES: dict[str, tuple[Size, ...]] = {
    "DINOv3-B": (PAPER_SIZE, SQUARE_SIZE, SMALL_SIZE, LARGE_SIZE),
    "DINOv3-L": (PAPER_SIZE, SQUARE_SIZE, SMALL_SIZE, LARGE_SIZE),
    "DepthAnythingV2-L": (PAPER_SIZE, SQUARE_SIZE, SMALL_SIZE),
    "DepthAnythingV2-G": (PAPER_SIZE,),
    "DINOv3-7B": (PAPER_SIZE,),
}
# The same sides for 14 pixels a patch.
_OF_14 = {1024: 1022, 2048: 2044, 512: 518}
_DRY_GRID = (5, 7)


def shape_of(name: str, dry: bool) -> Shape:
    """The shape of a model, or of its small stand-in."""
    return MODELS[name].shrunk() if dry else MODELS[name]


def pixels(name: str, size: Size, dry: bool) -> Size:
    """Height and width of the images of a model at one of its sizes, whole patches."""
    patch_size = MODELS[name].patch_size
    if dry:
        return _DRY_GRID[0] * patch_size, _DRY_GRID[1] * patch_size
    return (_OF_14[size[0]], _OF_14[size[1]]) if patch_size == 14 else size


def build(name: str, device: torch.device, dtype: torch.dtype, dry: bool, seed: int = 0) -> nn.Module:
    """A model in eval mode whose outputs are plain dicts of tensors. dry: a small one of the same kind.

    The same weights for the same seed, device and dtype. Every weight is made on the device in `dtype`: the largest
    model takes 13.4 GB in bf16 and never more. Tables that are no weights (of RoPE) stay fp32, as HF keeps them.
    """
    shape = shape_of(name, dry)
    with _made_as(dtype), device:
        model = _depth_anything(shape) if shape.taps else dinov3(shape)
    model = model.eval().requires_grad_(False)
    torch.manual_seed(seed)
    fill(model)
    return with_plain_outputs(model)


def fill(model: nn.Module) -> None:
    """Draw the weights: products keep the size of values, norms and layer scales are 1, biases 0."""
    with torch.no_grad():
        for module in model.modules():
            for name, parameter in module.named_parameters(recurse=False):
                if parameter.ndim == 1:
                    parameter.fill_(0.0 if name == "bias" else 1.0)
                elif isinstance(module, nn.Conv2d | nn.Linear):
                    parameter.normal_(std=(parameter[0].numel()) ** -0.5)
                else:
                    parameter.normal_(std=0.02)
        head = getattr(model, "head", None)
        if head is not None:
            # A ReLU comes last: without this it may cut all of the depth to zero, and then nothing can be compared.
            head.conv3.weight.abs_()


def mixed_plan(sites: Sequence[AttentionSite], full: Sequence[int], window: int, conv_size: int = 3) -> Plan:
    """Full attention in the blocks `full`, linear attention with a drawn convolution and window attention in the rest.

    The paper says which blocks stay full and that the first is linear, not which of the others are linear. That they
    take turns, the even ones linear, is our choice: speed is that of a plan which uses both alike.
    """
    generator = torch.Generator().manual_seed(0)
    weights: dict[str, torch.Tensor] = {}
    entries = []
    drawn: list[torch.Tensor] = []  # the same for all blocks: each gets a copy of its own, and drawing takes long
    for number, site in enumerate(sites):
        if number in full:
            choice = Choice("full")
        elif number % 2:
            choice = Choice("window", window=(window, window))
        else:
            choice = Choice("linear", conv_size=conv_size)
            shapes = generator_shapes(site.num_heads * site.head_dim, conv_size)
            drawn = drawn or [torch.randn(shape, generator=generator) * shape[-1] ** -0.5 for shape in shapes]
            weights |= {name: each.clone() for name, each in zip(generator_names(site.name), drawn, strict=True)}
        entries.append(SitePlan(site.name, choice))
    return Plan(tuple(entries), Fingerprint.of(sites), weights=weights)


def dinov3(shape: Shape) -> nn.Module:
    """DINOv3 in a shape, with random weights."""
    ensure_torchvision()
    from transformers import DINOv3ViTConfig, DINOv3ViTModel

    return DINOv3ViTModel(
        DINOv3ViTConfig(
            hidden_size=shape.width,
            intermediate_size=shape.mlp,
            num_hidden_layers=shape.depth,
            num_attention_heads=shape.heads,
            num_register_tokens=shape.extra_tokens - 1,
            use_gated_mlp=shape.gated,
            hidden_act="silu" if shape.gated else "gelu",
            patch_size=shape.patch_size,
        )
    )


def _depth_anything(shape: Shape) -> nn.Module:
    ensure_torchvision()
    from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config

    backbone = Dinov2Config(
        hidden_size=shape.width,
        num_hidden_layers=shape.depth,
        num_attention_heads=shape.heads,
        use_swiglu_ffn=shape.gated,
        image_size=shape.image_size,
        patch_size=shape.patch_size,
        out_indices=list(shape.taps),
        reshape_hidden_states=False,
    )
    return DepthAnythingForDepthEstimation(
        DepthAnythingConfig(
            backbone_config=backbone,
            patch_size=shape.patch_size,
            reassemble_hidden_size=shape.width,
            neck_hidden_sizes=list(shape.neck),
            fusion_hidden_size=shape.fusion,
        )
    )


@contextmanager
def _made_as(dtype: torch.dtype) -> Iterator[None]:
    """Tensors that are made without a dtype get this one."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
