"""`jetvit.find_attention` and `jetvit.optimize`: what comes in stays as it was, what goes out can be saved."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.export import ExportedProgram

import jetvit
from jetvit import Choice, Plan
from jetvit.patterns import CaptureError, PlanError
from tests.passes.models import LINEAR, WINDOW, assert_close, exported, plan_of, planned
from tests.zoo import CASES, Case
from tests.zoo.case import images
from tests.zoo.handwritten import SIZE, Features

IMAGE = images(2, 3, *SIZE)


@pytest.fixture(autouse=True)
def _inference(frozen_imports: None) -> Iterator[None]:
    with torch.no_grad():
        yield


def in_a_fresh_process(code: str, *arguments: Any) -> dict[str, Any]:
    """Run code that prints one line of JSON last."""
    result = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, timeout=300, check=False
    )
    assert result.returncode == 0, result.stderr[-2000:]
    return json.loads(result.stdout.splitlines()[-1])


# --- a module for a module --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_plan", [False, True], ids=["exact", "plan"])
@pytest.mark.parametrize(
    "name",
    [
        "hf_dinov2_eager",
        "dict_to_dataclass",
        "weights_returned",
        pytest.param("hf_depth_anything_sdpa", marks=pytest.mark.slow),
    ],
)
def test_the_output_keeps_its_class(name: str, with_plan: bool) -> None:
    case = CASES[name]
    model, (args, kwargs) = case.build(), case.inputs()
    plan = plan_of(jetvit.find_attention(model, *args, kwargs=kwargs)) if with_plan else None
    expected = planned(model, (args, kwargs), plan) if plan is not None else model(*args, **kwargs)
    result = jetvit.optimize(model, *args, kwargs=kwargs, plan=plan)(*args, **kwargs)
    assert type(result) is type(model(*args, **kwargs))
    if name == "dict_to_dataclass":
        assert isinstance(result, Features)
    assert_close(result, expected)


def test_the_model_is_not_touched() -> None:
    """The same objects, bit by bit, the same forward, the same mode."""
    model = CASES["separate_unfused"].build()
    model.register_forward_hook(lambda *_: None)
    state = copy.deepcopy(model.state_dict())
    objects = {name: id(value) for name, value in (*model.named_parameters(), *model.named_modules())}
    members = {name: set(vars(module)) for name, module in model.named_modules()}
    forward, expected = model.forward, model(IMAGE)
    for plan in (None, plan_of(jetvit.find_attention(model, IMAGE))):
        jetvit.optimize(model, IMAGE, plan=plan)(IMAGE)
        torch.testing.assert_close(model.state_dict(), state, rtol=0, atol=0)
        assert {name: id(value) for name, value in (*model.named_parameters(), *model.named_modules())} == objects
        assert {name: set(vars(module)) for name, module in model.named_modules()} == members
        assert model.forward == forward
        assert not model.training
        assert torch.equal(model(IMAGE), expected)


def test_find_attention_takes_keywords_and_open_sizes() -> None:
    case = CASES["dict_to_dataclass"]
    args, kwargs = case.inputs()
    model = case.build()
    sites = jetvit.find_attention(model, *args, kwargs=kwargs, dynamic_shapes=case.dynamic_shapes(args, kwargs))
    assert [site.name for site in sites] == list(case.names)
    assert all(isinstance(side, torch.SymInt) for site in sites for side in site.grid)
    fixed = jetvit.find_attention(model, *args, kwargs=kwargs)
    assert [site.grid for site in fixed] == [(4, 6), (4, 6)]


@pytest.mark.parametrize("with_plan", [pytest.param(False, marks=pytest.mark.slow), True], ids=["exact", "plan"])
def test_a_module_of_open_size(with_plan: bool) -> None:
    case = CASES["hf_dinov3_sdpa"]
    model, (args, kwargs) = case.build(), case.inputs()
    shapes = case.dynamic_shapes(args, kwargs)
    plan = plan_of(jetvit.find_attention(model, *args, kwargs=kwargs)) if with_plan else None
    optimized = jetvit.optimize(model, *args, kwargs=kwargs, plan=plan, dynamic_shapes=shapes)
    for batch, size in ((3, (48, 24)), (2, (32, 48))):
        inputs = case.inputs(batch=batch, size=size)
        expected = planned(model, inputs, plan) if plan is not None else model(*inputs[0], **inputs[1])
        assert_close(optimized(*inputs[0], **inputs[1]), expected)


def test_a_model_that_cannot_be_captured() -> None:
    with pytest.raises(CaptureError, match="does not run on these inputs"):
        jetvit.optimize(CASES["sdpa"].build(), torch.ones(3))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes(dtype: torch.dtype) -> None:
    case = CASES["scale_on_product"]
    model, ((image,), _) = case.build().to(dtype), case.inputs(dtype=dtype)
    close = 2e-2 if dtype == torch.bfloat16 else 1e-12
    assert_close(jetvit.optimize(model, image)(image), model(image), close)
    plan = plan_of(jetvit.find_attention(model, image))
    assert_close(jetvit.optimize(model, image, plan=plan)(image), planned(model, ((image,), {}), plan), close)


# --- a plan -----------------------------------------------------------------------------------------------------------


def test_a_plan_from_its_folder(tmp_path: Path) -> None:
    model = CASES["sdpa"].build()
    plan = plan_of(jetvit.find_attention(model, IMAGE))
    plan.save(tmp_path / "plan")
    expected = jetvit.optimize(model, IMAGE, plan=plan)(IMAGE)
    for path in (tmp_path / "plan", str(tmp_path / "plan")):
        assert_close(jetvit.optimize(model, IMAGE, plan=path)(IMAGE), expected, 1e-7)
    assert_close(jetvit.optimize(model, IMAGE, plan=Plan.load(tmp_path / "plan"))(IMAGE), expected, 1e-7)


def test_a_plan_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="nowhere"):
        jetvit.optimize(CASES["sdpa"].build(), IMAGE, plan=tmp_path / "nowhere")


def test_a_dump(tmp_path: Path) -> None:
    jetvit.optimize(CASES["sdpa"].build(), IMAGE, dump=tmp_path / "dump")
    assert (tmp_path / "dump" / "0-captured.txt").is_file()


# --- a program for a program ------------------------------------------------------------------------------------------


def open_program(case: Case) -> ExportedProgram:
    args, kwargs = case.inputs()
    shapes = case.dynamic_shapes(args, kwargs)
    return torch.export.export(case.build(), args, kwargs, dynamic_shapes=shapes, strict=False)


LOAD = """
import json, sys
import torch
import jetvit
folder, name = sys.argv[1:]
program = torch.export.load(f"{folder}/{name}.pt2")
program.validate()
inputs, expected = torch.load(f"{folder}/{name}.pt", weights_only=True)
errors = [(program.module()(image) - wanted).abs().max().item() for image, wanted in zip(inputs, expected)]
found = jetvit.find_attention(program)
print(json.dumps({"errors": errors, "left": [site.name for site in found],
                  "rewritten": [entry.name for entry in found.rewritten],
                  "names": sorted(program.state_dict), "ranges": sorted(map(str, program.range_constraints.values()))}))
"""


def test_saved_and_loaded_in_a_fresh_process(tmp_path: Path) -> None:
    """The same numbers at every size after `import jetvit`, which registers the operators."""
    case = CASES["separate_unfused"]
    program = open_program(case)
    sites = jetvit.find_attention(program)
    weights = {"blocks.1.attn.linear_attention.b2": torch.randn(32 * 9, generator=torch.Generator().manual_seed(0))}
    plan = plan_of(sites, [WINDOW, Choice("linear", conv_size=3)], weights=weights)
    optimized = jetvit.optimize(program, plan=plan)
    inputs = [case.inputs(batch=batch, size=size)[0][0] for batch, size in ((2, (32, 48)), (3, (48, 24)))]
    expected = [optimized.module()(image) for image in inputs]
    torch.export.save(optimized, tmp_path / "open.pt2")
    torch.save((inputs, expected), tmp_path / "open.pt")
    loaded = in_a_fresh_process(LOAD, tmp_path, "open")
    assert max(loaded["errors"]) < 1e-6
    assert loaded["rewritten"] == ["blocks.0.attn", "blocks.1.attn"]
    assert loaded["left"] == []
    assert loaded["ranges"] == sorted(map(str, program.range_constraints.values()))
    assert loaded["names"] == sorted(optimized.state_dict)
    assert {"blocks.1.attn.linear_attention.b2", "blocks.0.attn.o.weight", "norm.bias"} <= set(loaded["names"])


def test_saved_and_loaded_here(tmp_path: Path) -> None:
    """A plan on a loaded program, and the same plan on a loaded optimised one."""
    _, inputs, program = exported("scale_on_product")
    plan = plan_of(jetvit.find_attention(program))
    torch.export.save(program, tmp_path / "in.pt2")
    optimized = jetvit.optimize(torch.export.load(tmp_path / "in.pt2"), plan=plan)
    assert_close(optimized.module()(*inputs[0]), planned(program, inputs, plan))
    torch.export.save(optimized, tmp_path / "out.pt2")
    loaded = torch.export.load(tmp_path / "out.pt2")
    assert jetvit.optimize(loaded, plan=plan) is loaded
    assert jetvit.optimize(loaded) is loaded
    with pytest.raises(PlanError, match="rewritten before"):
        jetvit.optimize(loaded, plan=plan_of(jetvit.find_attention(program), [LINEAR]))


@pytest.mark.parametrize("with_plan", [False, True], ids=["exact", "plan"])
def test_the_program_given_is_not_touched(with_plan: bool) -> None:
    model = CASES["separate_unfused"].build()
    program = torch.export.export(model, (IMAGE,), strict=False)
    text, signature = str(program.graph), str(program.graph_signature)
    state = copy.deepcopy(program.state_dict)
    plan = plan_of(jetvit.find_attention(program)) if with_plan else None
    optimized = jetvit.optimize(program, plan=plan)
    optimized.validate()
    optimized.module()(IMAGE)
    assert optimized is not program
    assert str(program.graph) == text
    assert str(program.graph_signature) == signature
    torch.testing.assert_close(program.state_dict, state, rtol=0, atol=0)
    assert torch.equal(program.module()(IMAGE), model(IMAGE))
    for name in set(optimized.state_dict) & set(state):
        assert optimized.state_dict[name].data_ptr() == model.state_dict()[name].data_ptr()


@pytest.mark.parametrize("name", ["sdpa_mask", "causal", "learned_bias", "text_tokens"])
def test_a_program_without_sites_comes_back_itself(name: str) -> None:
    _, _, program = exported(name)
    assert jetvit.optimize(program) is program


def test_a_program_keeps_its_signature() -> None:
    """Keyword arguments, dictionaries in, dataclasses out."""
    case = CASES["dict_to_dataclass"]
    args, kwargs = case.inputs()
    program = torch.export.export(case.build(), args, kwargs, strict=False)
    optimized = jetvit.optimize(program)
    assert optimized.call_spec == program.call_spec
    assert_close(optimized.module()(*args, **kwargs), program.module()(*args, **kwargs))
    assert optimized.example_inputs is program.example_inputs


@pytest.mark.parametrize("name", ["timm_vit_fused", "hf_dinov3_sdpa"])
def test_dynamic_opens_batch_height_and_width(name: str) -> None:
    case = CASES[name]
    model = case.build()
    args, kwargs = case.inputs(batch=1)
    plan = plan_of(jetvit.find_attention(model, *args, kwargs=kwargs), [WINDOW])
    sites = jetvit.find_attention(model, *args, kwargs=kwargs, dynamic=True)
    assert [type(size) for size in sites[0].grid] == [torch.SymInt] * 2
    assert "[B, 3, H, W]" in str(jetvit.explain(model, *args, kwargs=kwargs, plan=plan, dynamic=True))
    exact = jetvit.optimize(model, *args, kwargs=kwargs, dynamic=True)
    assert jetvit.optimize(model, *args, kwargs=kwargs, plan=plan, dynamic=True) is not None
    for batch, size in ((1, case.size), (3, case.oblong)):
        other_args, other_kwargs = case.inputs(batch=batch, size=size)
        assert_close(exact(*other_args, **other_kwargs), model(*other_args, **other_kwargs))
