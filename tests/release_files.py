"""Files as jetvit writes them on one set of releases, small enough to keep: others have to read them.

    python -m tests.release_files FOLDER

FOLDER gets a DINOv2 of transformers with its weights, a plan with weights for it, the rewritten model as .pt2, a
latency table, and `expected.safetensors`: an image and what the rewritten model makes of it. `test_other_releases.py`
reads all folders of `tests/data/releases`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file
from torch import nn

import jetvit
from jetvit.cost_model import Choice, Fingerprint, Plan, SitePlan, projection_weights, sample_base
from jetvit.cost_model.measuring.table import TableWriter
from jetvit.models.torchvision_shim import ensure_torchvision
from tests.cost_model.tables import MACHINE, measurement
from tests.zoo.case import images

SIZE = (28, 42)


def model() -> nn.Module:
    """A DINOv2 of 2 layers, 2 heads of 8 channels, and 4 × 6 patches at `SIZE`; random weights."""
    ensure_torchvision()
    config = transformers.Dinov2Config(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=7, mlp_ratio=2
    )
    torch.manual_seed(0)
    return transformers.Dinov2Model(config).eval()


def plan(module: nn.Module, image: torch.Tensor) -> Plan:
    """Linear attention, then windows; all projections of both are other than the model's."""
    sites = jetvit.find_attention(module, image)
    base = projection_weights(sites, dict(module.state_dict()))
    generator = torch.Generator().manual_seed(1)
    weights = {name: value + 0.1 * torch.randn(value.shape, generator=generator) for name, value in base.items()}
    weights[f"{sites[0].name}.linear_attention.b2"] = 0.1 * torch.randn(16 * 9, generator=generator)
    choices = (Choice("linear", conv_size=3), Choice("window", window=(2, 3)))
    entries = tuple(SitePlan(site.name, choice) for site, choice in zip(sites, choices, strict=True))
    return Plan(entries, Fingerprint.of(sites), weights=weights, base_samples=sample_base(base), size=SIZE)


def write(folder: Path) -> None:
    """Write everything into a folder."""
    folder.mkdir(parents=True)
    module, image = model(), images(2, 3, *SIZE)
    module.save_pretrained(folder / "model")
    made = plan(module, image)
    made.save(folder / "plan")
    jetvit.export(module, image, path=folder / "model.pt2", plan=made)
    with TableWriter(folder / "table.csv", MACHINE) as table:
        for width in range(1, 4):
            table.append(measurement(width))
    with torch.no_grad():
        output = jetvit.optimize(module, image, plan=made)(image)
    save_file({"image": image, "output": output.last_hidden_state.contiguous()}, folder / "expected.safetensors")
    releases = [torch.__version__.partition("+")[0], transformers.__version__]
    (folder / "releases.txt").write_text("torch {}, transformers {}\n".format(*releases))


if __name__ == "__main__":
    write(Path(sys.argv[1]))
