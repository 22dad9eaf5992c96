"""How long it takes to find the attention sites of a large graph.

A DINOv3-7B-shaped model (40 layers, 32 heads of 128, RoPE, 4 register tokens; weights on the meta device, so no values)
at 1024×2048, captured once; then `find_sites` on depths 5 to 40, which also shows that the cost is linear in the graph.

    python -m benchmarks.find_sites [-o FILE]
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch

from benchmarks.results import default_path, environment, write
from jetvit.models.torchvision_shim import ensure_torchvision
from jetvit.passes.frontends.capture import capture
from jetvit.patterns.find import find_sites

DEPTHS = (5, 10, 20, 40)
ROUNDS = 5


def dinov3_7b(depth: int) -> torch.nn.Module:
    """HF DINOv3 in the shape of the 7B model, on the meta device."""
    ensure_torchvision()
    from transformers import DINOv3ViTConfig, DINOv3ViTModel

    config = DINOv3ViTConfig(
        hidden_size=4096,
        intermediate_size=8192,
        num_hidden_layers=depth,
        num_attention_heads=32,
        num_register_tokens=4,
        use_gated_mlp=True,
    )
    with torch.device("meta"):
        return DINOv3ViTModel(config).eval()


def measure(depth: int) -> dict[str, Any]:
    """Median seconds to find the sites of one depth, and what was found."""
    image = torch.empty(1, 3, 1024, 2048, device="meta")
    start = time.perf_counter()
    graph = capture(dinov3_7b(depth), (image,))
    captured = time.perf_counter() - start
    seconds = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        sites = find_sites(graph)
        seconds.append(time.perf_counter() - start)
    return {
        "depth": depth,
        "nodes": len(graph.module.graph.nodes),
        "sites": len(sites),
        "refused": len(sites.rejected),
        "grid": [int(size) for size in sites[0].grid],
        "capture_s": round(captured, 3),
        "find_median_s": round(statistics.median(seconds), 4),
        "find_max_s": round(max(seconds), 4),
    }


def main() -> None:
    """Measure every depth and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", default=None, help="result file; by default under benchmarks/results")
    args = parser.parse_args()
    rows = []
    for depth in DEPTHS:
        rows.append(measure(depth))
        print(rows[-1], flush=True)
    write(args.output or default_path("find_sites"), {**environment(), "rows": rows})


if __name__ == "__main__":
    main()
