"""Every target of `jetvit export`: how much faster a rewritten model runs, and how far its results are from PyTorch's.

The table of speed is that of `benchmarks.targets.runtimes`: torch.compile, ONNX Runtime and OpenVINO. The table of
errors has every target on three models.

ViT-Tiny (real weights where they are), DINOv3-S and DepthAnythingV2-S (random weights: an error of rounding needs no
others) with open batch, height and width (the batch alone for DepthAnything, whose head takes the size as numbers), and
a plan of linear attention with convolutions, windows and full blocks. Each file is run at several sizes, `.pt2` and
AOTInductor packages in a process of their own (the latter without jetvit), ONNX in ONNX Runtime and OpenVINO. The error
is the largest difference from the rewritten model in eager PyTorch over the largest result. TensorRT is not there: its
rows say how many operators of the graph that it would get have a converter, and the error is that of this graph's ONNX
twin in ONNX Runtime.

    python -m benchmarks.targets [--tables speed] [--rounds N] [--data DIR] [-o FOLDER]
    python -m benchmarks.targets --tables errors [--models vit_tiny dinov3_s] [--targets aoti] [--data DIR] [-o FOLDER]
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

import jetvit
from benchmarks.results import default_path, environment, write_table
from benchmarks.targets.coverage import uncovered
from benchmarks.targets.runtimes import COLUMNS as SPEED_COLUMNS
from benchmarks.targets.runtimes import ROUNDS, drawn_plan, installed_runtimes
from benchmarks.targets.runtimes import rows as speed
from jetvit.cost_model import Choice, Plan
from jetvit.models.load import load_model
from jetvit.models.torchvision_shim import ensure_torchvision
from jetvit.passes.frontends.capture import export_model
from jetvit.passes.frontends.differences import tensors
from jetvit.passes.targets.plain_outputs import with_plain_outputs
from jetvit.passes.targets.tensorrt import prepare
from jetvit.patterns.site import AttentionSite

CHOICES = (
    *(Choice("linear", conv_size=3), Choice("window", window=(8, 8)), Choice("full")),
    *(Choice("window", window=(5, 6)), Choice("linear", conv_size=5), Choice("linear", feature_map="hedgehog")),
)
COLUMNS = (
    *("model", "parameters_m", "target", "opset", "file_mb", "seconds", "max_error", "ran_in", "shapes", "note"),
    *("command", "date", "device", "threads", "torch", "onnxruntime", "openvino", "jetvit"),
)
RUN_PACKAGE = """
import sys, torch
path, inputs, outputs = sys.argv[1:]
model = torch._inductor.aoti_load_package(path)
found = [model(images) for images in torch.load(inputs)]
assert "jetvit" not in sys.modules and "transformers" not in sys.modules
torch.save(found, outputs)
"""
RUN_PROGRAM = """
import sys, torch, jetvit
path, inputs, outputs = sys.argv[1:]
model = torch.export.load(path).module()
assert "transformers" not in sys.modules
torch.save([model(images) for images in torch.load(inputs)], outputs)
"""


def vit_tiny(data: Path | None) -> nn.Module:
    """ViT-Tiny of timm, without its classifier."""
    weights = data / "vit_tiny_patch16_224.safetensors" if data is not None else None
    loaded = load_model(
        "timm:vit_tiny_patch16_224", weights=weights, model_args={"num_classes": 0, "global_pool": ""}
    ).model
    assert isinstance(loaded, nn.Module)
    return loaded


def dinov3_s(data: Path | None) -> nn.Module:
    """HF DINOv3 in the shape of ViT-S/16."""
    ensure_torchvision()
    from transformers import DINOv3ViTConfig, DINOv3ViTModel

    return DINOv3ViTModel(
        DINOv3ViTConfig(
            hidden_size=384, intermediate_size=1536, num_hidden_layers=12, num_attention_heads=6, num_register_tokens=4
        )
    )


def depth_anything_s(data: Path | None) -> nn.Module:
    """HF DepthAnythingV2-S: DINOv2-S read at four blocks, and its DPT head."""
    ensure_torchvision()
    from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config

    backbone = Dinov2Config(
        hidden_size=384, num_hidden_layers=12, num_attention_heads=6, image_size=518, patch_size=14,
        out_indices=[3, 6, 9, 12], reshape_hidden_states=False,
    )  # fmt: skip
    return DepthAnythingForDepthEstimation(
        DepthAnythingConfig(
            backbone_config=backbone, patch_size=14, reassemble_hidden_size=384, neck_hidden_sizes=[48, 96, 192, 384],
            fusion_hidden_size=64, head_hidden_size=32,
        )
    )  # fmt: skip


SIZES = ((2, 3, 256, 320), (1, 3, 208, 352), (3, 3, 288, 240))
# Name, how it is built, batches of images to run it on.
MODELS: Mapping[str, tuple[str, Callable[[Path | None], nn.Module], Sequence[tuple[int, ...]]]] = {
    "vit_tiny": ("ViT-Tiny", vit_tiny, SIZES),
    "dinov3_s": ("DINOv3-S", dinov3_s, SIZES),
    "depth_anything_s": ("DepthAnythingV2-S", depth_anything_s, ((2, 3, 224, 280), (1, 3, 224, 280), (3, 3, 224, 280))),
}
TARGETS = ("pt2", "aoti", "onnx 18", "onnx 23", "tensorrt")


def mixed_plan(sites: Sequence[AttentionSite]) -> Plan:
    """Every choice of `CHOICES` in turn, with drawn weights for the convolutions."""
    return drawn_plan(sites, itertools.cycle(CHOICES))


def rows(key: str, data: Path | None, folder: Path, targets: Sequence[str] = TARGETS) -> Iterator[dict[str, Any]]:
    """One row a target of one model."""
    name, build, shapes = MODELS[key]
    torch.manual_seed(0)
    model = with_plain_outputs(build(data).eval())
    batches = [torch.randn(shape, generator=torch.Generator().manual_seed(i)) for i, shape in enumerate(shapes)]
    varied = {axis: Dim.DYNAMIC for axis in range(4) if len({each.shape[axis] for each in batches}) > 1}
    shared = {
        "model": name + ("" if key == "vit_tiny" and data is not None else " (random weights)"),
        "parameters_m": round(sum(each.numel() for each in model.parameters()) / 1e6, 1),
    }
    for target in targets:
        kind, _, opset = target.partition(" ")
        program = export_model(model, (batches[0],), {}, (varied,))
        plan = mixed_plan(jetvit.find_attention(program))
        rewritten = jetvit.optimize(program, plan=plan)
        with torch.no_grad():
            expected = [[each.detach() for each in tensors(rewritten.module()(images))] for images in batches]
        start = time.perf_counter()
        if kind == "tensorrt":
            row, found = tensorrt(rewritten, folder, batches)
        else:
            path = folder / f"{key}{opset}.{'onnx' if kind == 'onnx' else 'pt2'}"
            options = {"opset": int(opset)} if opset else {}
            jetvit.export(program, plan=plan, target=kind, path=path, **options)
            size = sum(file.stat().st_size for file in (path, path.with_name(path.name + ".data")) if file.exists())
            row = {"file_mb": round(size / 1e6, 1), "seconds": round(time.perf_counter() - start, 1)}
            if kind == "onnx":
                for runtime, title in installed_runtimes():
                    row = {**row, "ran_in": title, "note": ""}
                    try:
                        file_model = jetvit.load(path, runtime=runtime, threads=1)
                        found = [tensors(file_model(images)) for images in batches]
                        yield _row(shared, target, batches, row, largest_error(found, expected))
                    except jetvit.JetvitError as refusal:
                        yield _row(shared, target, batches, {**row, "note": refusal.why}, None)
                continue
            row["ran_in"] = "torch alone" if kind == "aoti" else "torch and jetvit"
            found = elsewhere(RUN_PACKAGE if kind == "aoti" else RUN_PROGRAM, path, folder, batches)
        yield _row(shared, target, batches, row, largest_error(found, expected))


def _row(
    shared: Mapping[str, Any], target: str, batches: Sequence[Tensor], row: Mapping[str, Any], error: float | None
) -> dict[str, Any]:
    kind, _, opset = target.partition(" ")
    shapes = " ".join("×".join(map(str, images.shape)) for images in batches)
    return {
        **shared,
        "target": kind,
        "opset": opset,
        "shapes": shapes,
        **row,
        "max_error": "" if error is None else f"{error:.1e}",
    }


def tensorrt(program: ExportedProgram, folder: Path, batches: Sequence[Tensor]) -> tuple[dict[str, Any], Any]:
    """What can be known of the TensorRT target here: its converters, and its graph's ONNX twin."""
    graph = prepare(program)
    missing = uncovered(graph)
    total = sum(node.op == "call_function" for node in graph.graph.nodes)
    path = folder / "twin.onnx"
    torch.onnx.export(graph, (), path, dynamo=True, opset_version=18, verbose=False)
    note = f"{total} operators, {len(missing)} without a converter"
    if missing:
        note += ": " + ", ".join(sorted({each.op for each in missing}))
    return {"ran_in": "its ONNX twin in ONNX Runtime", "note": note}, in_onnx_runtime(path, batches)


def elsewhere(code: str, path: Path, folder: Path, batches: Sequence[Tensor]) -> list[list[Tensor]]:
    """The results of a file that a fresh process loads, started where no checkout is."""
    torch.save(batches, folder / "inputs.pt")
    found = folder / "outputs.pt"
    subprocess.run([sys.executable, "-c", code, path, folder / "inputs.pt", found], cwd=folder, check=True)
    return [tensors(each) for each in torch.load(found)]


def in_onnx_runtime(path: Path, batches: Sequence[Tensor]) -> list[list[Tensor]]:
    """The results of an ONNX file on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return [[torch.from_numpy(each) for each in session.run(None, {name: images.numpy()})] for images in batches]


def largest_error(found: Sequence[Sequence[Tensor]], expected: Sequence[Sequence[Tensor]]) -> float:
    """The largest difference over the largest expected value, over all tensors of all calls."""
    pairs = [pair for ours, theirs in zip(found, expected, strict=True) for pair in zip(ours, theirs, strict=True)]
    return max(float((ours - theirs).abs().max() / theirs.abs().max()) for ours, theirs in pairs)


def main(argv: Sequence[str] | None = None) -> None:
    """Write every target of every model, run it, write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("JETVIT_DATA"), help="the folder of weights")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS), help="(default: all)")
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=TARGETS, help="(default: all)")
    parser.add_argument("--tables", nargs="+", choices=("speed", "errors"), default=("speed", "errors"))
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"of the table of speed (default: {ROUNDS})")
    parser.add_argument("-o", "--output", type=Path, help="folder of the tables; by default under benchmarks/results")
    args = parser.parse_args(argv)
    data = Path(args.data) if args.data else None
    output = args.output or default_path("targets").parent
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        if "speed" in args.tables:
            name = "ViT-Tiny" + ("" if data is not None else " (random weights)")
            measured = speed(vit_tiny(data), Path(folder), rounds=args.rounds)
            write_table(
                output / "runtimes.csv", SPEED_COLUMNS, ({**environment(), "model": name, **row} for row in measured)
            )
        if "errors" not in args.tables:
            return
        found = []
        for key in args.models:
            for row in rows(key, data, Path(folder), args.targets):
                found.append(row)
                print("  ".join(f"{name} {value}" for name, value in row.items()), flush=True)
    shared = {**environment(), "onnxruntime": version("onnxruntime"), "openvino": ""}
    if importlib.util.find_spec("openvino") is not None:
        shared["openvino"] = version("openvino")
    write_table(output / "targets.csv", COLUMNS, ({**shared, **row} for row in found))
