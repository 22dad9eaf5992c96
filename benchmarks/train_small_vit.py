"""Train the small Vision Transformer of `jetvit.demo.small_vit` from scratch on rendered rooms, and write its weights.

    python -m benchmarks.train_small_vit [--minutes M | --steps N N N] [--seed S] [--start FILE] [-o FILE]

No room is seen twice. Training takes the rooms of negative seeds, so that every other seed is held out. It begins with
small images, where a step is cheap. The same seed, steps and start give the same weights on the same machine; the
metadata of the file has them, "+" between a run and the one that went on from it.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from jetvit import __version__
from jetvit.demo.scenes import CLASSES, FARTHEST, NEAREST, SceneSplit, render
from jetvit.demo.small_vit import PATCH_SIZE, WEIGHTS, SmallViT, load_small_vit
from jetvit.search.tasks.metrics import DepthMetric, DepthScores

HELD_OUT_SEED = 0
WARM_UP = 50  # steps
LABEL_SIDE = PATCH_SIZE // 2  # labels are learnt at every other pixel
LABEL_WEIGHT = 0.3


class Stage(NamedTuple):
    """Square images of `side` pixels, how many a step takes, and the share of the time that the stage gets."""

    side: int
    batch: int
    share: float


STAGES = (Stage(64, 8, 0.3), Stage(128, 8, 0.45), Stage(256, 4, 0.25))


class Trainer:
    """A model, new or from a file, a layer that reads the labels from its features, and their optimisers.

    The labels help the model to tell things apart early; the layer is thrown away.
    """

    def __init__(self, seed: int = 0, start: Path | None = None):
        torch.manual_seed(seed)
        self.seed, self.steps = seed, 0
        self.model = SmallViT() if start is None else load_small_vit(start)
        self.labeller = nn.Conv2d(self.model.norm.normalized_shape[0], len(CLASSES) * LABEL_SIDE**2, 1)
        matrices = [p for p in self.model.blocks.parameters() if p.ndim == 2]
        chosen = set(matrices)
        others = [p for p in (*self.model.parameters(), *self.labeller.parameters()) if p not in chosen]
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.Muon(matrices, lr=5e-3, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(others, lr=2e-3, weight_decay=0.01, betas=(0.9, 0.98)),
        ]
        self.peaks = [optimizer.param_groups[0]["lr"] for optimizer in self.optimizers]

    def step(self, stage: Stage, rate: float) -> float:
        """One step on new rooms with learning rates of `rate` times their peaks; the depth loss before it."""
        self.steps += 1
        scenes = render(stage.batch, (stage.side, stage.side), -(self.seed * 10**6 + self.steps))
        with torch.autocast("cpu", torch.bfloat16):
            maps = self.model.features(2 * scenes.images - 1)
            disparity, labels = self.model.head(maps), F.pixel_shuffle(self.labeller(maps[-1]), LABEL_SIDE)
        loss = depth_loss(disparity, scenes.depth)
        total = loss + LABEL_WEIGHT * F.cross_entropy(labels.float(), scenes.labels[:, ::2, ::2])
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        total.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer, peak in zip(self.optimizers, self.peaks, strict=True):
            optimizer.param_groups[0]["lr"] = peak * rate
            optimizer.step()
        return loss.item()


def depth_loss(disparity: Tensor, depth: Tensor) -> Tensor:
    """Mean absolute error of log disparity [B, H, W], free of a factor for each image."""
    error = disparity.log() + depth.log()
    return (error - error.mean((1, 2), keepdim=True)).abs().mean()


def train(steps: Sequence[int], seed: int = 0, start: Path | None = None) -> SmallViT:
    """The model after so many steps of each stage; the learning rate falls linearly over the shares of the stages."""
    trainer, losses, begun = Trainer(seed, start), [], time.perf_counter()
    before = 0.0
    for stage, count in zip(STAGES, steps, strict=True):
        for index in range(count):
            rate = 1 - before - stage.share * index / count
            losses.append(trainer.step(stage, rate * min(1.0, (trainer.steps + 1) / WARM_UP)))
            if len(losses) == 100:
                spent = time.perf_counter() - begun
                print(f"{spent:5.0f} s  {stage.side}px  step {trainer.steps}  loss {sum(losses) / 100:.4f}", flush=True)
                losses.clear()
        before += stage.share
        print(f"{stage.side}px: {score(trainer.model, 16, stage.side)}", flush=True)
    return trainer.model.eval()


def steps_within(minutes: float) -> list[int]:
    """How many steps of each stage fit into its share of the time, as three of them took here."""
    trainer, steps = Trainer(), []
    for stage in STAGES:
        trainer.step(stage, 0.0)  # the first is slower
        start = time.perf_counter()
        for _ in range(3):
            trainer.step(stage, 0.0)
        steps.append(max(1, round(minutes * 60 * stage.share * 3 / (time.perf_counter() - start))))
    return steps


@torch.no_grad()
def score(model: nn.Module, rooms: int, side: int = STAGES[-1].side) -> DepthScores:
    """Mean δ1 and AbsRel over held-out rooms."""
    metric, split = DepthMetric("depth", NEAREST, FARTHEST), SceneSplit(rooms, (side, side), HELD_OUT_SEED)
    scores = [metric(model(image[None])[0], depth) for image, depth in (split[i] for i in range(rooms))]
    return DepthScores(*(sum(each) / rooms for each in zip(*scores, strict=True)))


def save(model: nn.Module, path: Path, **metadata: object) -> None:
    """Write the weights in float16, with metadata."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.half().contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, path, {name: str(value) for name, value in metadata.items()})


def main(argv: Sequence[str] | None = None) -> None:
    """Train, score on held-out rooms, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--minutes", type=float, default=25, help="take as many steps as fit (default: 25)")
    length.add_argument("--steps", type=int, nargs=len(STAGES), help="of each stage, in place of minutes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=Path, help="go on from these weights; give another seed, for other rooms")
    parser.add_argument("--rooms", type=int, default=64, help="how many are held out for the score (default: 64)")
    parser.add_argument("-o", "--output", type=Path, default=WEIGHTS)
    args = parser.parse_args(argv)
    steps = args.steps or steps_within(args.minutes)
    print("steps of each stage:", *steps, flush=True)
    model = train(steps, args.seed, args.start)
    found = score(model, args.rooms)
    print(f"{args.rooms} held-out rooms: δ1 {found.delta1:.4f}, AbsRel {found.abs_rel:.4f}")
    made = {"steps": " ".join(map(str, steps)), "seed": str(args.seed)}
    if args.start:
        with safe_open(args.start, "pt") as file:
            made = {name: f"{file.metadata()[name]} + {now}" for name, now in made.items()}
    save(
        model,
        args.output,
        **made,
        torch=torch.__version__,
        jetvit=__version__,
        rooms=args.rooms,
        delta1=round(found.delta1, 4),
        abs_rel=round(found.abs_rel, 4),
    )


if __name__ == "__main__":
    main()
