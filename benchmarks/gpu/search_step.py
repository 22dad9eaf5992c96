"""Search and train hybrids on CamVid, as a step of a campaign: `benchmarks.search_camvid` with three seeds.

It needs the folder of weights and images that JETVIT_DATA names, and the latency table of this device; where one is
missing the step says so. A search that is ended resumes at its last stage.
"""

from __future__ import annotations

import os
from pathlib import Path

from benchmarks.gpu.campaign import Campaign, Cost, Skipped, Step, TimeOver
from benchmarks.gpu.processes import Task, run_together
from jetvit import __version__
from jetvit.cost_model.measuring.measurement import this_machine

_NEEDED = ("vit_tiny_patch16_224.safetensors", "camvid/train/images", "camvid/val/images")
_SEEDS, _SIZE, _BATCH = 3, "704x960", 8
_TINY = ["--seeds", "1", "--scale", "0.005", "--limit", "4", "--size", "96x128", "--batch", "2"]


def steps(dry: bool) -> list[Step]:
    """Return the search as one step, which several runs may share."""
    basis = "a guess: ~2000 training steps a seed; later runs resume it"
    cost = Cost(120, 120, basis, dry_s=60)
    return [Step("search_camvid", 46, cost, 1800, lambda campaign: campaign.path("search_camvid.csv").exists(), _run)]


def _run(campaign: Campaign, seconds: float) -> None:
    data = os.environ.get("JETVIT_DATA", "")
    if not data:
        raise Skipped("JETVIT_DATA names no folder of weights and images")
    if missing := [name for name in _NEEDED if not Path(data, name).exists()]:
        raise Skipped(f"{data} (JETVIT_DATA) has no {', '.join(missing)}")
    table = campaign.path(this_machine(campaign.device, __version__).file_name)
    if not campaign.dry and not table.exists():
        raise Skipped(f"there is no latency table {table.name} yet: the latency sweep makes it")
    words = ["--data", data, "-o", str(campaign.path("search_camvid.csv")), "--device", campaign.device.type]
    words += ["--folder", str(campaign.path("search"))]
    if campaign.dry:
        words += _TINY
    else:
        words += ["--seeds", str(_SEEDS), "--size", _SIZE, "--batch", str(_BATCH), "--precision", "bf16"]
        words += ["--table", str(table)]
    task = Task(
        "search-camvid", "benchmarks.gpu.run_module", {"module": "benchmarks.search_camvid", "arguments": words}
    )
    (outcome,) = run_together([task], processes=1, seconds=seconds, logs=campaign.path("logs"))
    print(f"  {outcome.name}: {outcome.seconds:.0f} s: {outcome.last_line}", flush=True)
    if outcome.status is None:
        raise TimeOver("the search is not done")
    if outcome.status:
        raise RuntimeError(f"the search ended with {outcome.status}: {outcome.last_line}")
