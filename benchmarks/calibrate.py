"""What training-free calibration is worth on a real model and real images: ViT-Tiny at 704×960 on street scenes.

A plan is made on training images of two films, with a refit and without, and checked on other images of one of them and
on a third film, at dusk, that nothing was fitted on. All are timed end to end against compiled full attention in one
run. Windows of 16 in every block stand beside them, to show why rewriting without a refit has to stop where it does.

    python -m benchmarks.calibrate --data DIR [--images 64] [--rounds 20] [-o FILE]

DIR (or JETVIT_DATA) holds vit_tiny_patch16_224.safetensors and camvid/{train,val}/images.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.results import default_path, environment, write
from jetvit.bench import bench
from jetvit.cost_model import Choice, Plan, SitePlan
from jetvit.models.image_files import ImageFiles
from jetvit.models.images import ImageFolder
from jetvit.models.load import load_model
from jetvit.models.loaded import LoadedModel
from jetvit.search import calibrate, check_plan
from jetvit.search.data.splits import evenly_spaced

MODEL = "timm:vit_tiny_patch16_224"
SIZE = (704, 960)
MAX_DRIFT = 0.35
OTHER_FILM = "0001TP"
CHECKED = 24
"""Images of each kind that a plan is checked on."""


def batches(files: Sequence[Path], count: int, model: LoadedModel) -> list[Any]:
    """Evenly spaced images of some files, one a batch."""
    chosen = tuple(files[place] for place in evenly_spaced(len(files), count))
    images = ImageFiles(chosen[0].parent, chosen)
    return list(ImageFolder(images, SIZE, model.mean, model.std).batches(1))


def everywhere(plan: Plan, choice: Choice) -> Plan:
    """The same plan with one choice at every site, without weights."""
    sites = tuple(SitePlan(site.name, choice) for site in plan.sites)
    return replace(plan, sites=sites, front=(), weights={}, base_samples={})


def measure(model: LoadedModel, plan: Plan, unseen: Mapping[str, Sequence[Any]], rounds: int) -> dict[str, Any]:
    """Drift on images that the plan has not seen, and latency of the whole model."""
    checks = {name: check_plan(model.model, plan, images) for name, images in unseen.items()}
    result = bench(model.model, unseen["same films"][0], plan=plan, rounds=rounds)
    print({name: round(check.drift, 3) for name, check in checks.items()}, flush=True)
    print(result, flush=True)
    first = checks["same films"]
    return {
        "drift": first.drift,
        "drift_other_film": checks["other film"].drift,
        "worst_image_drift": max(first.drift_per_image),
        "agreement": first.agreement,
        "images": first.images,
        "provenance": {name: value for name, value in plan.provenance.items() if name != "refits"},
        "front": [point.to_json() for point in plan.front],
        "bench": result.to_dict(),
    }


def main() -> None:
    """Calibrate, check, time, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=os.environ.get("JETVIT_DATA"), help="the folder of weights and images")
    parser.add_argument("--images", type=int, default=64, help="training images: half are fitted on")
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
    train = sorted((data / "camvid/train/images").iterdir())
    films = [file for file in train if not file.name.startswith(OTHER_FILM)]
    unseen = {
        "same films": batches(sorted((data / "camvid/val/images").iterdir()), CHECKED, model),
        "other film": batches([file for file in train if file not in films], CHECKED, model),
    }
    images = batches(films, args.images, model)
    plan = calibrate(model.model, images, MAX_DRIFT, progress=_say)
    plain = calibrate(model.model, images[: len(images) // 4], MAX_DRIFT, refit=False, progress=_say)
    plans = {
        "calibrated": plan,
        "calibrated without a refit": plain,
        "window 16 everywhere": everywhere(plan, Choice("window", window=(16, 16))),
    }
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
