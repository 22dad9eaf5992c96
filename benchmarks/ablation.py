"""Which linear attention? ViT-Tiny with all twelve blocks of one design, by quality and latency.

As the paper's Table 1, after local distillation alone: a linear head that was trained on the original's features reads
those of the converted model. Every design learns from the same images in the same order. The last rows draw the
projections anew in the place of inheriting them; the losses with and without are drawn as curves.

    python -m benchmarks.ablation --data DIR [--steps 160] [--designs NAME …] [-o FILE]

DIR (or JETVIT_DATA) holds vit_tiny_patch16_224.safetensors and camvid/{train,val}/{images,labels}. Latencies are those
of the whole model, not compiled, on this machine: designs and full attention in rounds, in turns.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.local_distillation import (
    BATCH,
    MODEL,
    NO_DATA,
    Scenes,
    add_arguments,
    all_features,
    features_of,
    say,
    score,
    train_head,
    write_rows,
)
from benchmarks.results import default_path
from jetvit.cost_model import Choice
from jetvit.cost_model.measuring.rounds import in_rounds, ratio, sampler
from jetvit.models.load import load_model
from jetvit.passes.frontends.capture import export_model
from jetvit.search.data.stream import Stream
from jetvit.search.post_training.local_distillation import local_distillation
from jetvit.search.post_training.supernet import Supernet
from jetvit.search.post_training.train import Run, Schedule
from jetvit.search.post_training.training_curves import draw_curves

COLUMNS = (
    *("design", "inherited", "steps", "miou", "low", "high", "pixel_accuracy", "drift", "local_loss"),
    *("latency_ms", "full_ms", "speedup", "speedup_low", "speedup_high", "rounds", "weights", "images"),
)
ROUNDS = 12


@dataclass(frozen=True)
class Design:
    """A linear block: its choice, and whether the kernel of its convolution depends on the image."""

    choice: Choice
    dynamic: bool = True
    inherited: bool = True

    @property
    def label(self) -> str:
        """Its name in the table."""
        kind = "" if not self.choice.conv_size else " dynamic" if self.dynamic else " static"
        return self.choice.label + kind


def linear(conv_size: int = 0, feature_map: str = "relu") -> Choice:
    """Linear attention."""
    return Choice("linear", conv_size=conv_size, feature_map=feature_map)


DESIGNS = (
    Design(linear()),
    Design(linear(3), dynamic=False),
    Design(linear(3)),
    Design(linear(5)),
    Design(linear(3, "relu_centred")),
    Design(linear(3, "hedgehog")),
    Design(linear(3), inherited=False),
)


def run(
    data: Path, designs: Sequence[Design], steps: int, seed: int, limit: int | None, curves: Path
) -> Iterator[Mapping[str, Any]]:
    """A row a design."""
    loaded = load_model(
        MODEL, weights=data / "vit_tiny_patch16_224.safetensors", model_args={"num_classes": 0, "global_pool": ""}
    )
    train, val = (Scenes(data / "camvid" / split, loaded, limit) for split in ("train", "val"))
    original = features_of(loaded.model)
    head = train_head(all_features(original, train.images), train.labels, seed=seed)
    reference = all_features(original, val.images)
    program = export_model(loaded.model, (train.images[:BATCH],), {})
    yield {"design": "full", "steps": 0, **score(head, reference, reference, val.labels)}
    losses: dict[str, list[float]] = {}
    for design in designs:
        start = time.perf_counter()
        net = Supernet(program, [design.choice], seed=seed, dynamic=design.dynamic, inherit=design.inherited)
        stream = Stream(train, BATCH, f"{seed} ablation", Run().processes)
        history = local_distillation(
            net, stream, lambda images: ((images,), {}), Schedule(steps, 5e-4), Run(seed, progress=say)
        )
        means = history.losses.mean(1).tolist()
        with net.path(dict.fromkeys(net.choice_sites, design.choice)):
            scores = score(head, all_features(features_of(net), val.images), reference, val.labels)
        if design.choice == linear(3) and design.dynamic:
            losses["inherited" if design.inherited else "drawn anew"] = means
        weights = sum(
            value.numel()
            for site in net.choice_sites.values()
            for name, value in site.parameters_of(design.choice).items()
            if name not in net.program.state_dict
        )
        yield {
            "design": design.label,
            "inherited": design.inherited,
            "steps": steps,
            **scores,
            "local_loss": round(sum(means[-10:]) / len(means[-10:]), 4),
            "weights": weights,
            **_latency(net, design.choice, train.images[:BATCH]),
            "seconds": round(time.perf_counter() - start),
        }
    if len(losses) == 2:
        curves.parent.mkdir(parents=True, exist_ok=True)
        draw_curves(losses, curves, "Local distillation: projections inherited, and drawn anew")


@torch.inference_mode()
def _latency(net: Supernet, choice: Choice, images: torch.Tensor) -> dict[str, Any]:
    """The whole model with full attention and with a design everywhere, in rounds."""

    def rewritten() -> None:
        with net.path(dict.fromkeys(net.choice_sites, choice)):
            net(images)

    samplers = [sampler(lambda: net.original(images), images.device), sampler(rewritten, images.device)]
    full_ms, ours_ms = in_rounds(samplers, ROUNDS)
    middle, low, high = ratio(full_ms, ours_ms)
    return {
        "full_ms": round(sorted(full_ms)[ROUNDS // 2], 2),
        "latency_ms": round(sorted(ours_ms)[ROUNDS // 2], 2),
        "speedup": round(middle, 3),
        "speedup_low": round(low, 3),
        "speedup_high": round(high, 3),
        "rounds": ROUNDS,
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Train, score, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--designs", nargs="+", metavar="NAME", help="those whose names hold one of these")
    args = parser.parse_args(argv)
    if args.data is None:
        print(NO_DATA)
        return
    designs = [each for each in DESIGNS if not args.designs or any(name in each.label for name in args.designs)]
    if not designs:
        parser.error(f"no design is called so: {', '.join(each.label for each in DESIGNS)}")
    output = args.output or default_path("ablation").with_suffix(".csv")
    rows = run(Path(args.data), designs, args.steps, args.seed, args.limit, output.with_suffix(".png"))
    write_rows(output, COLUMNS, rows, args.seed)


if __name__ == "__main__":
    main()
