"""The whole search on street scenes: segmentation with ViT-Tiny (real weights) on CamVid at 352×480.

Paths are chosen on one sequence (0006R0), all is trained on two others, and the validation images are read once, at the
end. These share a sequence (0016E5) with the training images; intervals draw runs of ten frames.

    python -m benchmarks.search_camvid --data DIR [--seeds 1] [--precision bf16] [-o FILE]
    python -m benchmarks.search_camvid --data DIR --seeds 3 --size 704x960 --batch 8 --device cuda --table T

DIR (or JETVIT_DATA) holds vit_tiny_patch16_224.safetensors and camvid/{train,val}/{images,labels}. About an hour on two
cores; it may be killed and started again.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.parity import run_benchmark
from jetvit.models.datasets import read_splits
from jetvit.search.data.splits import Splits
from jetvit.search.tasks.segmentation import Segmentation
from jetvit.search.tasks.task import Task

SIZE, CLASSES = (352, 480), 11


def read(
    folder: Path, mean: Sequence[float], std: Sequence[float], limit: int | None, size: tuple[int, int] | None
) -> tuple[Task, Splits, tuple[int, int]]:
    """The task and the images."""
    size = size or SIZE
    task = Segmentation(CLASSES)
    return task, read_splits(folder / "camvid", task, size, mean, std, limit=limit, select={"0006R0"}), size


def main(argv: Sequence[str] | None = None) -> None:
    """Search, report, write."""
    run_benchmark(__doc__ or "", "camvid", read, argv, distil=500)


if __name__ == "__main__":
    main()
