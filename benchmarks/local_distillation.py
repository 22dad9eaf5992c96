"""What local distillation alone is worth: ViT-Tiny on street scenes, every block of one kind, before and after.

A linear head is trained on the frozen features of the original model (its last patch tokens) and kept as it is. The
features of a converted model, all twelve blocks of one choice, are then read by that same head: its mean intersection
over union on the validation images says how much of the original is left. Every choice at every block learns by itself
what full attention yields there, from the same images in the same order.

    python -m benchmarks.local_distillation --data DIR [--steps 160] [-o FILE]

DIR (or JETVIT_DATA) holds vit_tiny_patch16_224.safetensors and camvid/{train,val}/{images,labels}.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from benchmarks.results import default_path, environment, write_table
from jetvit.cost_model import Choice
from jetvit.models.images import ImageFolder
from jetvit.models.load import load_model
from jetvit.models.loaded import LoadedModel
from jetvit.passes.frontends.capture import export_model
from jetvit.search.data.processes import Processes
from jetvit.search.data.splits import Sample
from jetvit.search.data.stream import Stream
from jetvit.search.post_training.local_distillation import local_distillation
from jetvit.search.post_training.statistics import interval
from jetvit.search.post_training.supernet import Supernet
from jetvit.search.post_training.train import Run, Schedule
from jetvit.search.tasks.drift import Drift
from jetvit.search.tasks.metrics import Confusion, mean_iou

MODEL = "timm:vit_tiny_patch16_224"
SIZE, PATCH_SIZE, CLASSES = (352, 480), 16, 11
CHOICES = (Choice("linear"), Choice("linear", conv_size=3), Choice("window", window=(8, 8)))
BATCH, RUN = 2, 10
NO_DATA = "not measured: give --data DIR or set JETVIT_DATA to the folder of weights and images"
COLUMNS = ("choice", "steps", "miou", "low", "high", "pixel_accuracy", "drift", "images")
PROVENANCE = ("model", "size", "batch", "seed", "seconds", "command", "date", "device", "threads", "torch", "jetvit")
Features = Callable[[Tensor], Tensor]


class Scenes:
    """A split: images [N, 3, height, width], normalised, and labels [N, own height, own width]; 11 is void."""

    def __init__(self, folder: Path, model: LoadedModel, limit: int | None = None):
        images = ImageFolder(folder / "images", SIZE, model.mean, model.std, limit=limit)
        self.images = torch.cat(list(images.batches(1)))
        paths = [folder / "labels" / f"{path.stem}.png" for path in images.files]
        self.labels = torch.stack([torch.from_numpy(np.array(Image.open(path))).long() for path in paths])
        self.keys = [path.stem for path in images.files]
        self.groups = [""] * len(self.keys)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int, /) -> Sample:
        return Sample(self.images[index], self.labels[index])


def features_of(model: Callable[[Tensor], Any]) -> Features:
    """The last patch tokens as maps [batch, channel, height, width]."""

    def features(images: Tensor) -> Tensor:
        tokens = model(images)[:, 1:]
        return tokens.transpose(1, 2).unflatten(2, (SIZE[0] // PATCH_SIZE, SIZE[1] // PATCH_SIZE))

    return features


@torch.no_grad()
def all_features(features: Features, images: Tensor) -> Tensor:
    """The features of all images, by batches of the one size that a captured model takes."""
    missing = -len(images) % BATCH
    padded = torch.cat([images, images[:missing]])
    return torch.cat([features(some) for some in padded.split(BATCH)])[: len(images)]


def train_head(features: Tensor, labels: Tensor, *, steps: int = 600, seed: int = 0) -> nn.Conv2d:
    """A linear head on frozen features, trained by cross entropy at the size of the labels."""
    torch.manual_seed(seed)
    head = nn.Conv2d(features.shape[1], CLASSES, 1)
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-2, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        rows = torch.randint(len(features), (4,))
        logits = F.interpolate(head(features[rows]), labels.shape[1:], mode="bilinear")
        loss = F.cross_entropy(logits, labels[rows], ignore_index=CLASSES)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return head


@torch.no_grad()
def score(head: nn.Conv2d, features: Tensor, reference: Tensor, labels: Tensor) -> dict[str, Any]:
    """The head on features: mean IoU with a 95 % interval, and the features' drift.

    The interval is that over images drawn anew, in runs of `RUN` that follow each other: frames of a film are alike.
    """
    confusion = Confusion(CLASSES)
    for row, truth in zip(features.split(1), labels.split(1), strict=True):
        confusion.add(F.interpolate(head(row), truth.shape[1:], mode="bilinear").argmax(1), truth)
    counts = torch.stack(confusion.by_image)
    low, high = interval(lambda some: mean_iou(some.sum(0)), counts, run=min(RUN, len(counts) - 1))
    drift = Drift([reference], places=(2, 3))
    drift.add(0, features)
    return {
        "miou": round(confusion.miou(), 4),
        "low": round(float(low), 4),
        "high": round(float(high), 4),
        "pixel_accuracy": round(confusion.pixel_accuracy(), 4),
        "drift": round(drift.total, 4),
        "images": len(labels),
    }


def run(data: Path, steps: int, seed: int, limit: int | None = None) -> Iterator[Mapping[str, Any]]:
    """The rows: the original model, then every choice before and after."""
    start = time.perf_counter()
    weights = data / "vit_tiny_patch16_224.safetensors"
    loaded = load_model(MODEL, weights=weights, model_args={"num_classes": 0, "global_pool": ""})
    train, val = (Scenes(data / "camvid" / split, loaded, limit) for split in ("train", "val"))
    original = features_of(loaded.model)
    head = train_head(all_features(original, train.images), train.labels, seed=seed)
    reference = all_features(original, val.images)
    net = Supernet(export_model(loaded.model, (train.images[:BATCH],), {}), CHOICES, seed=seed)

    def row(choice: str, done: int, features: Tensor) -> Mapping[str, Any]:
        scores = score(head, features, reference, val.labels)
        return {"choice": choice, "steps": done, **scores, "seconds": round(time.perf_counter() - start)}

    def everywhere(done: int) -> Iterator[Mapping[str, Any]]:
        for choice in CHOICES:
            with net.path(dict.fromkeys(net.choice_sites, choice)):
                yield row(choice.label, done, all_features(features_of(net), val.images))

    yield row("full", 0, reference)
    yield from everywhere(0)
    stream = Stream(train, BATCH, f"{seed} local", Processes())
    local_distillation(net, stream, lambda images: ((images,), {}), Schedule(steps, 5e-4), Run(seed, progress=say))
    yield from everywhere(steps)


def main(argv: Sequence[str] | None = None) -> None:
    """Train, score, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    args = parser.parse_args(argv)
    if args.data is None:
        print(NO_DATA)
        return
    output = args.output or default_path("local_distillation").with_suffix(".csv")
    write_rows(output, COLUMNS, run(Path(args.data), args.steps, args.seed, args.limit), args.seed)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of a program that distils on these scenes."""
    parser.add_argument("--data", default=os.environ.get("JETVIT_DATA"), help="the folder of weights and images")
    parser.add_argument("--steps", type=int, default=160, help="of two images each (default: 160)")
    parser.add_argument("--limit", type=int, help="take so many images of each split alone")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", type=Path, help="result file; by default under benchmarks/results")


def write_rows(output: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]], seed: int) -> None:
    """Print every row as it comes, and write all of them with where they are from."""
    found = []
    for row in rows:
        found.append(row)
        print("  ".join(f"{name} {value}" for name, value in row.items()), flush=True)
    shared = {**environment(), "model": MODEL, "size": f"{SIZE[0]}x{SIZE[1]}", "batch": BATCH, "seed": seed}
    write_table(output, (*columns, *PROVENANCE), ({**shared, **row} for row in found))


def say(what: str, done: int, total: int) -> None:
    """Tell the progress, every twentieth step."""
    if done % 20 == 0:
        print(f"{what}: {done} of {total}", flush=True)


if __name__ == "__main__":
    main()
