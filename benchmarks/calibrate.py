"""What training-free calibration is worth on a real model and real images: ViT-Tiny at 704×960 on street scenes.

A plan is made on training images, checked on validation images, and timed end to end against compiled full attention in
one run. Windows of 16 in every block stand beside it, to show why training-free rewriting has to stop where it does.

    python -m benchmarks.calibrate --data DIR [--images 16] [--rounds 20] [-o FILE]

DIR (or JETVIT_DATA) holds vit_tiny_patch16_224.safetensors and camvid/{train,val}/images.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.results import default_path, environment, write
from jetvit.bench import bench
from jetvit.cost_model import Choice, Plan, SitePlan
from jetvit.models.images import ImageFolder
from jetvit.models.load import load_model
from jetvit.models.loaded import LoadedModel
from jetvit.search import calibrate, check_plan

MODEL = "timm:vit_tiny_patch16_224"
SIZE = (704, 960)
MAX_DRIFT = 0.35


def batches(folder: Path, count: int, model: LoadedModel) -> list[Any]:
    """Evenly spaced images of a folder, one a batch."""
    images = ImageFolder(folder, SIZE, model.mean, model.std, limit=count)
    return list(images.batches(1))


def everywhere(plan: Plan, choice: Choice) -> Plan:
    """The same plan with one choice at every site."""
    return replace(plan, sites=tuple(SitePlan(site.name, choice) for site in plan.sites), front=())


def measure(model: LoadedModel, plan: Plan, unseen: Sequence[Any], rounds: int) -> dict[str, Any]:
    """Drift on images that the plan has not seen, and latency of the whole model."""
    check = check_plan(model.model, plan, unseen)
    result = bench(model.model, unseen[0], plan=plan, rounds=rounds)
    print(result, flush=True)
    return {
        "drift": check.drift,
        "worst_image_drift": max(check.drift_per_image),
        "agreement": check.agreement,
        "images": check.images,
        "bench": result.to_dict(),
    }


def main() -> None:
    """Calibrate, check, time, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=os.environ.get("JETVIT_DATA"), help="the folder of weights and images")
    parser.add_argument("--images", type=int, default=16, help="training images; half choose, half are held out")
    parser.add_argument("--rounds", type=int, default=20, help="samples of each column of the benchmark")
    parser.add_argument("-o", "--output", default=None, help="result file; by default under benchmarks/results")
    args = parser.parse_args()
    if args.data is None:
        print("not measured: give --data DIR or set JETVIT_DATA to the folder of weights and images")
        return
    data = Path(args.data)
    model = load_model(
        MODEL,
        weights=data / "vit_tiny_patch16_224.safetensors",
        model_args={"num_classes": 0, "global_pool": ""},
    )
    plan = calibrate(model.model, batches(data / "camvid/train/images", args.images, model), MAX_DRIFT, progress=_say)
    unseen = batches(data / "camvid/val/images", args.images, model)
    plans = {"calibrated": plan, "window 16 everywhere": everywhere(plan, Choice("window", window=(16, 16)))}
    record = {
        **environment(),
        "model": MODEL,
        "size": list(SIZE),
        "max_drift": MAX_DRIFT,
        "provenance": dict(plan.provenance),
        "sites": [{"name": site.name, "choice": site.choice.label, "drift": site.drift} for site in plan.sites],
        "front": [point.to_json() for point in plan.front],
        "plans": {name: measure(model, each, unseen, args.rounds) for name, each in plans.items()},
    }
    record["command"] = record["command"].replace(str(data), "DIR")
    write(args.output or default_path("calibrate"), record)


def _say(what: str, done: int, total: int) -> None:
    if done == total:
        print(f"{what}: {total}", flush=True)


if __name__ == "__main__":
    main()
