"""What kind of work a GPU kernel does, by its name, the time of each kind, and the least that a model's work takes.

A name is that of CUPTI or of torch.profiler. The floors are computed from the shape of the model alone and never
measured: the larger of the products at one speed and the bytes at another, operation by operation.

    python -m benchmarks.breakdown.kinds      # the floors of all models as a table, for NOTES.md
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.end_to_end.models import MODELS, PAPER_SIZE, Shape, Size, build, pixels
from benchmarks.kernels.shapes import Ceilings
from jetvit.cost_model.measuring.operation import ELEMENT_BYTES, Operation

FULL, LINEAR, WINDOW = "full attention", "linear attention", "window attention"
PRODUCT, CONVOLUTION, NORM, POINTWISE = "matrix product", "convolution", "norm", "pointwise"
COPY, MEMSET, OTHER, GAPS = "copy", "memset", "other", "gaps"
# As tables and pictures list them; gaps are the time in which no kernel runs.
KINDS = (PRODUCT, FULL, LINEAR, WINDOW, NORM, POINTWISE, CONVOLUTION, COPY, MEMSET, OTHER, GAPS)

# What Inductor puts into the name of a kernel that only moves data. Attention is named where its inputs are laid out.
_MOVES = (
    "to_copy|cat|clone|copy|permute|constant_pad_nd|view|unsafe_view|reshape|transpose|t|unsqueeze|squeeze|expand|slice"
    "|select|split|split_with_sizes|stack|unbind|lift_fresh_copy|scaled_dot_product_[a-z_]*attention"
)
_OURS = {
    LINEAR: "kv_partials|kv_state|generate_taps|mix",
    WINDOW: "attend_windows|combine_extra",
    FULL: "rotate",  # the RoPE of full attention
}

# The first that is found in a name decides. Ours come first, because they are whole names; then Inductor's, which name
# the neighbours that they were fused with ("convolution", "addmm"); then from the special to the general, because the
# kernels of attention and of convolutions also say "gemm" or "cutlass".
_RULES = [
    *((kind, rf"^(?:{names})(?:_\d+)*$") for kind, names in _OURS.items()),
    (COPY, rf"^triton_poi_fused(?:_+(?:{_MOVES}))+_\d+$"),
    (NORM, r"^triton_(?:poi|per|red)_.*(?:layer_norm|group_norm|rms_norm|var_mean)"),
    (POINTWISE, r"^triton_(?:poi|per|red|for)_"),
    (CONVOLUTION, r"^triton_(?:tem_.*convolution|convolution)"),
    (PRODUCT, r"^triton_(?:tem_.*mm|mm|bmm)"),
    (FULL, r"flash_fwd|flash_fprop|FlashAttnFwd|_sdpa_|fmha|scaled_dot_product|flash_attention|flex_attention"),
    (LINEAR, r"^jetvit::linear_attention"),
    (WINDOW, r"^jetvit::window_attention"),
    (CONVOLUTION, r"implicit_gemm|implicit_convolve|[fd]prop|dgrad|wgrad|conv2d|conv_depthwise|im2col|winograd|fft2d"),
    (CONVOLUTION, r"nchwToNhwc|nhwcToNchw|nhwcAddPadding|_conv_|convolution|cudnn"),
    (PRODUCT, r"nvjet|gemm|gemv|cublas|splitKreduce|cutlass"),
    (PRODUCT, r"^aten::(?:mm|addmm|bmm|baddbmm|matmul|linear)$|^mkl(?:dnn)?::.*linear"),
    (MEMSET, r"Memset|FillFunctor|^aten::(?:fill_|zero_)$"),
    (COPY, r"Memcpy|CatArrayBatchedCopy|copy_kernel|^aten::(?:copy_|cat|clone|contiguous)$"),
    (NORM, r"layer_norm|LayerNorm|group_norm|rms_norm|RowwiseMoments"),
    (POINTWISE, r"elementwise_kernel|reduce_kernel|upsample|softmax|SoftMax"),
    (POINTWISE, r"^aten::(?:add|sub|mul|div|neg|gelu|silu|relu|sigmoid|exp|cos|sin|mean|sum|rsqrt)_?$"),
]
_COMPILED = [(kind, re.compile(pattern)) for kind, pattern in _RULES]


def kind_of(name: str) -> str:
    """The kind of a kernel; "other" where no rule knows the name."""
    return next((kind for kind, pattern in _COMPILED if pattern.search(name)), OTHER)


_TOP = 60  # kernels in a record
_DTYPE = "bfloat16"
_FULL_TFLOP_S = {64: 500.0, 128: 650.0}  # of FlashAttention 3 by head_dim, as published


class Work(NamedTuple):
    """Floating-point operations, where they count, and bytes read and written once."""

    flops: int
    bytes: int


class Floor(NamedTuple):
    """Milliseconds: of the products alone, of the bytes alone, and of the larger of the two for each operation."""

    by_flops_ms: float
    by_bytes_ms: float
    ms: float


def convolutions(model: str, size: Size) -> Work:
    """The convolutions of a model outside its attention: the patch embedding and, where there is one, the head.

    Counted in a call without data; their bytes are left out. size: height and width in pixels.
    """
    network = build(model, torch.device("meta"), torch.bfloat16, dry=False)
    images = torch.empty(1, 3, *size, device="meta", dtype=torch.bfloat16)
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        network(images)
    return Work(counter.get_flop_counts()["Global"][torch.ops.aten.convolution], 0)


def work(shape: Shape, grid: Size, attentions: Sequence[Operation]) -> dict[str, list[Work]]:
    """What the blocks of a model cost for one image in bf16, kind by kind.

    A norm counts as fused with the sum before it (reads the stream and the branch, writes both); an activation as a
    kernel of its own. Rotations, biases and layer scales are left out, and so all of it is a little low.

    Args:
        shape: of the model.
        grid: height and width in patches.
        attentions: one a block, of this model and grid. None at all leaves their kinds out.
    """
    width, wide = shape.width, shape.mlp * (2 if shape.gated else 1)
    products = [
        Operation("gemm", _DTYPE, 1, *grid, shape.extra_tokens, inputs=inputs, outputs=outputs)
        for inputs, outputs in ((width, 3 * width), (width, width), (width, wide), (shape.mlp, width))
    ]
    row_bytes = products[0].rows * ELEMENT_BYTES[_DTYPE]  # of one feature of all tokens
    found = {
        PRODUCT: [Work(each.flops, each.bytes) for each in products] * shape.depth,
        NORM: [Work(0, 4 * width * row_bytes)] * (2 * shape.depth),
        POINTWISE: [Work(0, (wide + shape.mlp) * row_bytes)] * shape.depth,
    }
    names = {"full": FULL, "linear": LINEAR, "window": WINDOW}
    for each in attentions:
        found.setdefault(names[each.op], []).append(Work(each.flops, each.bytes))
    return found


def attentions(shape: Shape, grid: Size, counts: Mapping[str, int]) -> list[Operation]:
    """So many blocks of each op: "full", "linear" (3x3 convolution) and "window" (16x16)."""
    own: Mapping[str, dict[str, int]] = {"linear": {"conv_size": 3}, "window": {"window_h": 16, "window_w": 16}}
    place = (1, *grid, shape.extra_tokens, shape.heads, shape.width // shape.heads)
    return [Operation(op, _DTYPE, *place, **own.get(op, {})) for op, count in counts.items() for _ in range(count)]


def floors(parts: Mapping[str, Sequence[Work]], ceilings: Ceilings, full_tflop_s: float = 0) -> dict[str, Floor]:
    """The least time of each kind.

    full_tflop_s: the speed of full attention; that of a large product where it is not given, which none reaches.
    """
    found = {}
    for kind, each in parts.items():
        speed = full_tflop_s if kind == FULL and full_tflop_s else ceilings.gemm_tflop_s
        times = [(one.flops / (speed * 1e9), one.bytes / (ceilings.copy_tb_s * 1e9)) for one in each]
        computing, moving = (sum(column) for column in zip(*times, strict=True))
        found[kind] = Floor(computing, moving, sum(max(pair) for pair in times))
    return found


@dataclass(frozen=True)
class Kernel:
    """One launch: what it is called, when it starts and how long it takes, in µs."""

    name: str
    start: float
    us: float


@dataclass(frozen=True)
class Profile:
    """One call: wall time, the part of it without any kernel, and its kernels in the order of their starts."""

    wall_ms: float
    gaps_ms: float
    kernels: tuple[Kernel, ...]


def record(
    found: Profile, event_ms: float, floor: Mapping[str, Floor], known: Mapping[str, Any], about: Mapping[str, Any]
) -> dict[str, Any]:
    """What is written: figures a call, by kind and by name of a kernel, the longest first.

    Floors are computed, and None where a kind has none. "unknown" names the kernels that no rule knows.
    """
    launches: dict[str, list[float]] = defaultdict(list)
    for kernel in found.kernels:
        launches[kernel.name].append(kernel.us)
    kernels = sorted((_row({"name": name, "kind": kind_of(name)}, us, found) for name, us in launches.items()), key=_ms)
    by_kind: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for kernel in found.kernels:
        by_kind[kind_of(kernel.name)].append(kernel.us)
    kinds = []
    for kind, us in by_kind.items():
        row = _row({"kind": kind}, us, found)
        if kind == GAPS:
            row |= {"ms": round(found.gaps_ms, 4), "share": round(found.gaps_ms / found.wall_ms, 4)}
        computed = floor.get(kind)
        row["floor (computed), ms"] = round(computed.ms, 4) if computed else None
        kinds.append(row)
    return {
        "environment": dict(known),
        **about,
        "wall_ms": round(found.wall_ms, 4),
        "event_ms": round(event_ms, 4),
        "kernels_ms": round(sum(kernel.us for kernel in found.kernels) / 1e3, 4),
        "gaps_ms": round(found.gaps_ms, 4),
        "launches": len(found.kernels),
        "kinds": sorted(kinds, key=_ms),
        "kernels": kernels[:_TOP],
        "unknown": [row["name"] for row in kernels if row["kind"] == OTHER],
    }


def _row(names: dict[str, Any], us: Sequence[float], found: Profile) -> dict[str, Any]:
    ms = sum(us) / 1e3
    return names | {"ms": round(ms, 4), "launches": len(us), "share": round(ms / found.wall_ms, 4)}


def _ms(row: Mapping[str, Any]) -> float:
    return -float(row["ms"])


def main() -> None:
    """Print the floors of all models at 1024x2048 (1022x2044), in ms a call, as Markdown.

    Every kind of attention is counted as if all blocks had it, full attention at the speed of FlashAttention 3.
    """
    best = Ceilings(copy_tb_s=3.0, gemm_tflop_s=600)
    print("| model | part | blocks | floor by flops (computed), ms | floor by bytes (computed), ms |")
    print("|---|---|---|---|---|")
    for name, shape in MODELS.items():
        size = pixels(name, PAPER_SIZE, dry=False)
        grid = shape.grid(size)
        each = attentions(shape, grid, dict.fromkeys(("full", "linear", "window"), shape.depth))
        speed = _FULL_TFLOP_S[shape.width // shape.heads]
        parts = work(shape, grid, each) | {CONVOLUTION: [convolutions(name, size)]}
        for kind, floor in floors(parts, best, speed).items():
            numbers = " | ".join(f"{ms:.2f}" if ms else "" for ms in (floor.by_flops_ms, floor.by_bytes_ms))
            print(f"| {name} | {kind} | {shape.depth if kind != CONVOLUTION else ''} | {numbers} |", flush=True)


if __name__ == "__main__":
    main()
