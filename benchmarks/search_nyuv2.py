"""The whole search on rooms: relative depth with ViT-Tiny (real weights) on NYU Depth V2 at 288×384.

A small DPT head reads four blocks. A fifth of the training images chooses the path; the validation images are read
once, at the end. Depths are 8-bit numbers of up to 10 m: coarser than the original ones, so that the figures compare
the models here with each other and with nothing else.

    python -m benchmarks.search_nyuv2 --data DIR [--seeds 1] [-o FILE]

DIR (or JETVIT_DATA) holds vit_tiny_patch16_224.safetensors and nyuv2/{train,val}/{images,depths}. About an hour on
two cores; it may be killed and started again.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.parity import run_benchmark
from jetvit.models.datasets import read_splits
from jetvit.search.data.splits import Splits
from jetvit.search.tasks.depth import Depth
from jetvit.search.tasks.task import Task

SIZE = (288, 384)
# The usual crop, rows 45 to 471 and columns 41 to 601 of 480×640, for targets of half that size.
CROP = (22, 235, 20, 300)


def read(
    folder: Path, mean: Sequence[float], std: Sequence[float], limit: int | None, size: tuple[int, int] | None
) -> tuple[Task, Splits, tuple[int, int]]:
    """The task and the images."""
    size = size or SIZE
    task = Depth("depth", nearest=0.1, farthest=10.0, crop=CROP)
    data = read_splits(folder / "nyuv2", task, size, mean, std, limit=limit, depth_scale=10 / 255, saturated=255)
    return task, data, size


def main(argv: Sequence[str] | None = None) -> None:
    """Search, report, write."""
    run_benchmark(__doc__ or "", "nyuv2", read, argv, distil=2000)


if __name__ == "__main__":
    main()
