"""What the FX road finds, the ONNX road finds: every model of the zoo, through torch's two exporters and back."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.export import ExportedProgram

import jetvit
from jetvit.passes.frontends.capture import export_model
from jetvit.passes.frontends.differences import tensors
from jetvit.passes.frontends.onnx import read_onnx
from jetvit.passes.graph.rewritable import ExportedGraph
from jetvit.patterns.errors import CaptureError, InputError
from jetvit.patterns.find import find_sites
from jetvit.patterns.site import AttentionSite, Sites
from tests.passes.rewrites.test_apply_plan import new_weights, trained, vit
from tests.zoo import CASES, Case
from tests.zoo.quick import sweep

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
ort = pytest.importorskip("onnxruntime")

ROADS = ("dynamo18", "dynamo23", "torchscript17")
QUICK = {
    ("timm_vit_fused", "dynamo18", True), ("timm_dinov3_fused", "dynamo23", False),
    ("hf_dinov2_eager", "torchscript17", True), ("causal", "dynamo23", False),
    ("shared_block", "dynamo23", False), ("qk_norm", "torchscript17", False),
}  # fmt: skip


GONE = {
    ("hf_vit_output_attentions", "torchscript17"), ("dropout_in_training", "torchscript17"),
    *(("sdpa_dropout", road) for road in ROADS),
}  # fmt: skip
"""Where the exporter leaves the obstacle out of the file: attention weights that are returned, active dropout."""
NAMELESS = {
    (name, road)
    for name in ("autocast_model", "autocast_model_sdpa", "softmax_outside_autocast")
    for road in ("dynamo18", "dynamo23")
}
"""Where the exporter writes no module of a node: inside a region of autocast."""
FIXED = {
    (name, "torchscript17", True)
    for name in (
        "hf_siglip_sdpa",
        "hf_siglip_eager",
        "functional_mha",
        "seq_first_mha",
        "mha_dropped_weights",
        "transformer_encoder_layer",
        "mha",
        "grouped_queries_expanded",
    )
}
"""Where it writes the number of images and tokens of the example into a graph that it calls dynamic."""
CONCATENATED = {("grouped_queries_repeated", "torchscript17")}
"""Where it repeats heads one by one and concatenates them: projections are not seen behind that."""
LOST = {("unfold_patches", True)}
"""Where a grid is lost: the indices of an unfold over an open size."""


def export(model: nn.Module, case: Case, road: str, dynamic: bool, path: Path) -> None:
    """Write a model as an ONNX file; skips what torch's exporter cannot write."""
    args, kwargs = case.inputs()
    opset = int(road[-2:])
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            if road.startswith("dynamo"):
                shapes = case.dynamic_shapes(args, kwargs) if dynamic else None
                # Exported first, for the exporter tries other ways of capture where one fails, which rename modules.
                program = torch.export.export(model, args, kwargs, dynamic_shapes=shapes, strict=False)
                torch.onnx.export(program, args, kwargs=kwargs, dynamo=True, opset_version=opset, verbose=False).save(
                    path
                )
            else:
                torchscript(model, case, args, kwargs, dynamic, opset, path)
    except Exception as error:
        pytest.skip(f"torch's exporter: {type(error).__name__}: {str(error).splitlines()[0][:150]}")


def torchscript(model: nn.Module, case: Case, args: Any, kwargs: Any, dynamic: bool, opset: int, path: Path) -> None:
    """The exporter that traces; it takes keyword arguments as a last dictionary."""
    if dynamic and not isinstance(args[0], torch.Tensor):
        pytest.skip("the inputs are no plain tensors")
    names = [f"input_{index}" for index in range(len(args))]
    open_axes = {0: "batch", 2: "height", 3: "width"} if case.dynamic == "image" else {0: "batch"}
    axes = {}
    for name, arg in zip(names, args, strict=True) if dynamic else ():
        prefix = "" if name == "input_0" else f"{name}_"
        axes[name] = {dim: f"{prefix}{text}" for dim, text in open_axes.items() if arg.shape[dim] > 1}
    torch.onnx.export(
        model, (*args, kwargs) if kwargs else args, path, dynamo=False, opset_version=opset,
        input_names=names if dynamic else None, dynamic_axes=axes or None,
    )  # fmt: skip


def run(path: Path, inputs: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return [torch.from_numpy(np.asarray(each)) for each in session.run(None, {n: t.numpy() for n, t in inputs.items()})]


def facts(site: AttentionSite, sizes: bool) -> dict[str, Any]:
    """What has to be equal; grids of open sizes are written in other symbols."""
    projections = site.projections
    return {
        "heads": (site.num_heads, site.head_dim),
        "scale": round(site.scale, 5),
        "grid": tuple(map(int, site.grid)) if sizes else None,
        "extra": tuple(map(int, (site.extra_before, site.extra_after))) if sizes else None,
        "rope": site.rope.style if site.rope else None,
        "projections": [
            (role, linear.weight, linear.bias, linear.out_features, linear.in_features)
            for role in ("packed", "q", "k", "v", "out")
            if (linear := getattr(projections, role)) is not None
        ],
    }


def kinds(sites: Sites) -> Counter[str]:
    """Rejections by their kind; exporters write causal attention and learned biases as masks, or fold them into one."""
    masks = ("mask", "bias", "causal")
    words = ("cross", "grouped", "local", "window", "grid", "weights", "dropout", "scores")
    return Counter(
        "mask" if any(word in each.reason for word in masks)
        else next((word for word in words if word in each.reason), each.reason)
        for each in sites.rejected
    )  # fmt: skip


def found(program: Any) -> Sites:
    return find_sites(ExportedGraph(program))


def every() -> list[Any]:
    return [
        pytest.param(
            case, road, dynamic, id=f"{case.name}-{road}-{'dynamic' if dynamic else 'static'}",
            marks=() if (case.name, road, dynamic) in QUICK else pytest.mark.slow,
        )
        for case in CASES.values() for road in ROADS for dynamic in (False, True)
    ]  # fmt: skip


@pytest.mark.parametrize(("case", "road", "dynamic"), every())
def test_finds_what_the_fx_road_finds(case: Case, road: str, dynamic: bool, tmp_path: Path) -> None:
    model = case.build()
    path = tmp_path / "model.onnx"
    export(model, case, road, dynamic, path)
    args, kwargs = case.inputs()
    shapes = case.dynamic_shapes(args, kwargs) if dynamic else None
    try:
        expected = found(export_model(model, args, kwargs, shapes))
    except CaptureError as error:
        pytest.skip(f"torch.export: {error.why[:150]}")
    if (case.name, road, dynamic) in FIXED:
        with pytest.raises(InputError):
            read_onnx(path)
        return
    program = read_onnx(path)
    sites = found(program)
    if (case.name, road) in GONE:
        assert len(sites) == len(expected) + len(expected.rejected)
        return
    if (case.name, dynamic) in LOST:
        assert len(sites.rejected) == len(expected)
        return
    if (case.name, road) in NAMELESS:
        assert [site.name for site in sites] == [f"layers.{index}.attn" for index in range(len(expected))]
    else:
        assert [site.name for site in sites] == [site.name for site in expected], [str(each) for each in sites.rejected]
    for site, like in zip(sites, expected, strict=True):
        ours, theirs = facts(site, not dynamic), facts(like, not dynamic)
        if (case.name, road) in NAMELESS:
            ours["projections"] = theirs["projections"]
        if {role for role, *_ in theirs["projections"]} <= {
            "out"
        }:  # a bias that is put together, and folded in the file
            ours["projections"] = [each for each in ours["projections"] if each[0] == "out"]
        if (case.name, road) in CONCATENATED:
            theirs["projections"] = [each for each in theirs["projections"] if each[0] not in ("k", "v")]
        assert ours == theirs
    assert kinds(sites) == kinds(expected)
    compare(program, path, model, args, kwargs)
    if dynamic and case.oblong and case.dynamic == "image":
        compare(program, path, model, *case.inputs(batch=3, size=case.oblong))


def compare(program: ExportedProgram, path: Path, model: nn.Module, args: Any, kwargs: Any) -> None:
    """The imported program gives what ONNX Runtime gives, or what the model gives where that cannot run it."""
    inputs = tensors((args, kwargs))
    names = [value.name for value in onnx.load(path, load_external_data=False).graph.input]
    tolerance = 1e-4
    try:
        theirs = run(path, dict(zip(names, inputs, strict=True)))
    except Exception as error:
        tolerance = 3e-2 if "bfloat16" in str(error) or "NOT_IMPLEMENTED" in str(error) else tolerance
        theirs = tensors(model(*args, **kwargs))
    outputs = program.module()(*inputs)
    if any("dropout" in str(node.target) for node in program.graph.nodes):
        return  # random
    assert len(outputs) == len(theirs)
    for ours, other in zip(outputs.values(), theirs, strict=True):
        torch.testing.assert_close(ours, other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("road", "dynamic"), sweep([("dynamo18", True), ("torchscript17", False)], quick=[("torchscript17", False)])
)
def test_a_plan_of_the_original_model_fits(road: str, dynamic: bool, tmp_path: Path) -> None:
    """It names sites and weights, and tells the model by samples of its weights.

    In a file of fixed sizes torch's newer exporter folds position embeddings, and the plan misses the table.
    """
    case, path = CASES["sdpa"], tmp_path / "model.onnx"
    model = vit()
    export(model, case, road, dynamic, path)
    plan = trained(model, new_weights())
    image = case.inputs()[0][0]
    ours = export_model(jetvit.optimize(read_onnx(path), plan=plan)).module()(image)
    theirs = jetvit.optimize(model, image, plan=plan)(image)
    (result,) = ours.values()
    torch.testing.assert_close(result, theirs, rtol=1e-4, atol=1e-4)


def test_biases_that_are_kept_once_get_their_names_back(tmp_path: Path) -> None:
    """The exporter that traces merges tensors of equal values: here every bias of one length, all of them zeros."""
    case, path = CASES["sdpa"], tmp_path / "model.onnx"
    model = case.build()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
    export(model, case, "torchscript17", False, path)
    assert len(onnx.load(path).graph.initializer) < len(list(model.parameters()))
    program = read_onnx(path)
    args, kwargs = case.inputs()
    ours, theirs = found(program), found(export_model(model, args, kwargs))
    assert [facts(site, True) for site in ours] == [facts(site, True) for site in theirs]
    assert {name for name, _ in model.named_parameters() if "blocks" in name} <= program.state_dict.keys()
    compare(program, path, model, args, kwargs)
