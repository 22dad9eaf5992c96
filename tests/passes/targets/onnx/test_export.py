"""Exported programs as ONNX models: what they compute, what they are called, and what is refused."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

import jetvit
from jetvit.kernels import full_attention, linear_attention
from jetvit.passes.frontends.capture import export_model
from jetvit.passes.frontends.differences import tensors
from jetvit.passes.targets.onnx import onnx_model
from jetvit.passes.targets.onnx.convention import DOMAIN, read_call
from jetvit.passes.targets.onnx.functions import add_functions
from jetvit.patterns.errors import InputError
from tests.passes.models import FULL, LINEAR, WINDOW, plan_of
from tests.zoo import CASES
from tests.zoo.case import Inputs
from tests.zoo.quick import sweep

ir = pytest.importorskip("onnx_ir")
onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


# --- what is run ------------------------------------------------------------------------------------------------------


@cache
def optimised(name: str, dynamic: bool) -> ExportedProgram:
    """A model of the zoo whose sites are linear, window and full attention in turn."""
    case = CASES[name]
    args, kwargs = case.inputs()
    shapes = case.dynamic_shapes(args, kwargs) if dynamic else None
    program = export_model(case.build(), args, kwargs, shapes)
    sites = jetvit.find_attention(program)
    return jetvit.optimize(program, plan=plan_of(sites, (LINEAR, WINDOW, FULL)) if sites else None)


def session(model: Any) -> Any:
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])


def assert_runs_as(program: ExportedProgram, running: Any, inputs: Inputs, single: bool = False) -> None:
    """ONNX Runtime gives what the program gives, to 1e-4 of the largest value.

    `single`: also for the first image alone, a batch of one that a program may refuse.
    """
    expected = [x.numpy() for x in tensors(program.module()(*inputs[0], **inputs[1]))]
    feeds = {each.name: x.numpy() for each, x in zip(running.get_inputs(), tensors(inputs), strict=True)}
    assert_equal(running.run(None, feeds), expected)
    if single:
        first = running.run(None, {name: value[:1] for name, value in feeds.items()})
        assert_equal(first, [value[:1] for value in expected])


def assert_equal(actual: Sequence[Any], expected: Sequence[Any]) -> None:
    for a, e in zip(actual, expected, strict=True):
        assert (a.shape, a.dtype) == (e.shape, e.dtype)
        assert np.abs(a - e).max() <= 1e-4 * np.abs(e).max()


def op_types(model: Any, domain: str = "") -> set[str]:
    return {node.op_type for node in ir.traversal.RecursiveGraphIterator(model.graph) if node.domain == domain}


def sizes(name: str, dynamic: bool) -> list[tuple[int, tuple[int, int]]]:
    case = CASES[name]
    if not dynamic:
        return [(2, case.size)]
    other = case.oblong if case.dynamic == "image" and case.oblong else case.size
    return [(2, case.size), (3, other)]


def check_model(name: str, dynamic: bool, opset: int) -> None:
    program = optimised(name, dynamic)
    running = session(onnx_model(program, opset=opset))
    for batch, size in sizes(name, dynamic):
        assert_runs_as(program, running, CASES[name].inputs(batch, size), single=dynamic)


@pytest.mark.parametrize(
    ("name", "dynamic", "opset"),
    [
        ("hf_dinov3_sdpa", True, 18),
        ("hf_dinov3_sdpa", False, 23),
        pytest.param("hf_depth_anything_sdpa", True, 23, marks=pytest.mark.slow),
        pytest.param("timm_vit_fused", True, 18, marks=pytest.mark.slow),
        pytest.param("timm_vit_fused", False, 23, marks=pytest.mark.slow),
        pytest.param("extra_both", True, 23, marks=pytest.mark.slow),
        pytest.param("extra_both", False, 18, marks=pytest.mark.slow),
        pytest.param("no_grad_model", True, 23, marks=pytest.mark.slow),
    ],
)
def test_models_run_in_onnx_runtime(name: str, dynamic: bool, opset: int) -> None:
    check_model(name, dynamic, opset)


@pytest.mark.slow
@pytest.mark.parametrize("opset", [18, 23])
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.sites and "autocast" not in name])
def test_every_model_runs_in_onnx_runtime(name: str, dynamic: bool, opset: int) -> None:
    check_model(name, dynamic, opset)


# --- what the model looks like ----------------------------------------------------------------------------------------


def test_names() -> None:
    model = onnx_model(optimised("hf_dinov3_sdpa", True))
    (image,) = model.graph.inputs
    assert (image.name, [str(dim) for dim in image.shape]) == ("pixel_values", ["batch", "3", "height", "width"])
    assert [out.name for out in model.graph.outputs] == ["last_hidden_state", "pooler_output"]
    assert set(optimised("hf_dinov3_sdpa", True).state_dict) - {"embeddings.mask_token"} <= set(
        model.graph.initializers
    )
    assert (model.producer_name, model.producer_version) == ("jetvit", jetvit.__version__)
    assert model.opset_imports == {"": 18}


def test_no_path_of_this_machine_is_in_the_file() -> None:
    data = ir.to_proto(onnx_model(optimised("timm_vit_fused", True))).SerializeToString()
    assert b"site-packages" not in data
    assert str(Path(__file__).parent).encode() not in data


def test_operators_are_standard_operators() -> None:
    model = onnx_model(optimised("extra_both", True))
    assert not model.functions
    assert {node.domain for node in ir.traversal.RecursiveGraphIterator(model.graph)} == {""}


def test_operators_are_functions_on_request() -> None:
    program = optimised("extra_both", True)
    model = onnx_model(program, functions=True)
    assert_runs_as(program, session(model), CASES["extra_both"].inputs(*sizes("extra_both", True)[0]))
    called = op_types(model, DOMAIN)
    assert called == {function.name for function in model.functions.values()}
    assert {name.split("_")[0] for name in called} == {"linear", "window"}
    for function in model.functions.values():
        assert {node.domain for node in function} == {""}
        assert function.opset_imports == {"": 18}


def test_custom_ops_are_the_same_calls_without_a_body() -> None:
    program = optimised("extra_both", True)
    model = onnx_model(program, custom_ops=True)
    assert op_types(model, DOMAIN) == {"linear_attention", "window_attention"}
    assert not model.functions
    assert model.opset_imports[DOMAIN] == 1
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    loaded = ir.from_proto(ir.to_proto(model))  # nothing is known but what is in the file
    assert add_functions(loaded) == 2
    for batch, size in sizes("extra_both", True):
        assert_runs_as(program, session(loaded), CASES["extra_both"].inputs(batch, size))


def test_calls_of_one_kind_share_a_function() -> None:
    case = CASES["hf_depth_anything_sdpa"]
    program = export_model(case.build(), *case.inputs())
    plan = plan_of(jetvit.find_attention(program), (LINEAR,))
    model = onnx_model(jetvit.optimize(program, plan=plan), functions=True)
    assert len([node for node in model.graph if node.domain == DOMAIN]) == case.sites
    assert len(model.functions) == 1


def test_sizes_are_known_where_they_can_be() -> None:
    """The tokens behind a symbolic grid are a known number: no size of theirs is computed."""
    model = onnx_model(optimised("hf_dinov3_sdpa", True), functions=True)
    for function in model.functions.values():
        assert "Shape" not in {node.op_type for node in function}


@pytest.mark.parametrize("opset", [pytest.param(18, marks=pytest.mark.slow), 23])
def test_native_attention_from_opset_23(opset: int) -> None:
    model = onnx_model(optimised("hf_depth_anything_sdpa", False), opset=opset, functions=True)
    assert ("Attention" in op_types(model)) == (opset == 23)
    window = next(f for f in model.functions.values() if f.name.startswith("window"))
    assert ("Attention" in {node.op_type for node in window}) == (opset == 23)


# --- small models for one thing each ----------------------------------------------------------------------------------


class Calls(nn.Module):
    """An image as tokens through operators; `conv_size` 3 with the kernel made by an MLP."""

    def __init__(self, rope: bool = False) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)

        def random(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(shape, generator=generator))

        self.w1, self.b1, self.w2, self.b2 = random(4, 16), random(4), random(144, 4), random(144)
        self.rope = rope

    def forward(self, input: Tensor) -> dict[str, Tensor]:
        height, width = input.shape[2:]
        x = input.flatten(2).transpose(1, 2).unflatten(2, (2, 8)).contiguous()
        absent = x.new_empty([0])
        tables = [absent, absent]
        if self.rope:
            angles = [torch.arange(side)[:, None] * torch.tensor([1.0, 0.1]) for side in (height, width)]
            tables = [torch.stack([a.cos(), a.sin()], 1) for a in angles]
        mlp = (self.w1, self.b1, self.w2, self.b2)
        x = linear_attention(x, x, x, *tables, *mlp, height, width, 0, 3, 1e-6, "relu")
        return {"input": full_attention(x, x, x, *tables, height, width, 0, 0.3)}


def export(model: nn.Module, *inputs: Any, dynamic: Any = None, **kwargs: Any) -> ExportedProgram:
    return torch.export.export(model.eval(), inputs, kwargs, dynamic_shapes=dynamic)


@pytest.mark.parametrize(
    ("open_axes", "opset"),
    sweep(
        product([(), (0,), (2, 3), (0, 2, 3)], [18, 23]),
        quick=[((), 18), ((0,), 23), ((2, 3), 18), ((0, 2, 3), 23)],
    ),
)
def test_operators_by_the_whole_road(open_axes: Sequence[int], opset: int) -> None:
    """A kernel an image, RoPE tables that the graph computes; batch and grid known or not."""
    image = torch.randn(2, 16, 5, 6)
    program = export(Calls(rope=True), image, dynamic=(dict.fromkeys(open_axes, Dim.DYNAMIC),))
    model = onnx_model(program, opset=opset, functions=True)
    assert ("Conv" in {node.op_type for f in model.functions.values() for node in f}) == (0 not in open_axes)
    running = session(model)
    assert_runs_as(program, running, ((image,), {}))
    if open_axes:
        other = [size + (axis in open_axes) for axis, size in enumerate(image.shape)]
        assert_runs_as(program, running, ((torch.randn(other),), {}))


def test_exact_arguments_are_read_back() -> None:
    model = onnx_model(export(Calls(), torch.randn(2, 16, 5, 6)), functions=True)
    loaded = ir.from_proto(ir.to_proto(model))
    calls = [call for node in loaded.graph if (call := read_call(node))]
    assert [call.operator for call in calls] == ["linear_attention", "full_attention"]
    assert calls[0].arguments["eps"] == 1e-6
    assert calls[1].arguments["scale"] == 0.3
    assert calls[0].arguments["w2"].name == "w2"


def test_an_output_is_not_called_as_an_input_is() -> None:
    model = onnx_model(export(Calls(), torch.randn(2, 16, 5, 6)))
    assert [value.name for value in model.graph.inputs] == ["input"]
    assert [value.name for value in model.graph.outputs] == ["input_out"]


def test_nested_names_and_repeated_outputs() -> None:
    class Nested(nn.Module):
        def forward(self, x: Tensor, more: dict[str, Tensor], *, mask: Tensor) -> Any:
            y = x + more["a"]
            return y, [y, x, mask * 2]

    x = torch.randn(2, 3)
    program = export(Nested(), x, {"a": x + 1}, mask=x > 0)
    model = onnx_model(program)
    assert [value.name for value in model.graph.inputs] == ["x", "more_a", "mask"]
    assert [value.name for value in model.graph.outputs] == ["output_0", "output_1_0", "output_1_1", "output_1_2"]
    assert_runs_as(program, session(model), ((x, {"a": x + 1}), {"mask": x > 0}))


def test_a_single_output_is_called_output() -> None:
    program = export(nn.Linear(3, 4), torch.randn(2, 3), dynamic={"input": {0: Dim.DYNAMIC}})
    model = onnx_model(program)
    (out,) = model.graph.outputs
    assert (out.name, [str(dim) for dim in out.shape]) == ("output", ["batch", "4"])
    assert set(model.graph.initializers) == {"weight", "bias"}


def test_sizes_in_whole_patches() -> None:
    program = export(
        nn.Sequential(nn.Conv2d(3, 4, 8, 8), nn.Flatten()),
        torch.randn(2, 3, 32, 48),
        dynamic=({2: 8 * Dim("h", max=64), 3: Dim.DYNAMIC},),
    )
    model = onnx_model(program)
    assert [str(dim) for dim in model.graph.inputs[0].shape] == ["2", "3", "height", "width"]
    assert {"height", "width"} == set(re.findall("[a-z]\\w+", str(model.graph.outputs[0].shape[1])))
    assert_runs_as(program, session(model), ((torch.randn(2, 3, 40, 24),), {}))


def test_equal_weights_stay_apart() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    for layer in model:
        nn.init.ones_(layer.bias)
    assert {"0.bias", "1.bias"} <= set(onnx_model(export(model, torch.randn(2, 3))).graph.initializers)


def test_the_program_is_left_alone() -> None:
    program = optimised("timm_vit_fused", True)
    before = program.graph_module.print_readable(print_output=False)
    onnx_model(program)
    assert program.graph_module.print_readable(print_output=False) == before


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_other_opsets_are_refused() -> None:
    with pytest.raises(InputError, match=r"opset 17 is not supported[\s\S]*18, 23"):
        onnx_model(export(nn.ReLU(), torch.randn(2)), opset=17)


def test_an_operator_without_translation_is_named() -> None:
    class Odd(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.linalg.eigvals(x).real

    with pytest.raises(InputError, match=r"the operator aten\.linalg_eig") as caught:
        onnx_model(export(Odd(), torch.randn(3, 3)))
    assert len(str(caught.value).splitlines()) < 6


@pytest.mark.slow
def test_bf16_needs_opset_23() -> None:
    """Its convolution is older than bf16 in opset 18; the attention of autocast models is in bf16."""
    program = optimised("autocast_model", True)
    with pytest.raises(InputError, match=r"Conv[\s\S]*bf16[\s\S]*opset 23"):
        onnx_model(program)
    onnx.checker.check_model(ir.to_proto(onnx_model(program, opset=23)), full_check=True)


def test_a_number_is_no_output() -> None:
    class Number(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Any]:
            return {"x": x + 1, "none": None, "number": 3}

    with pytest.raises(InputError, match="one of its outputs is 3, which is no tensor"):
        onnx_model(export(Number(), torch.randn(2)))


@pytest.mark.parametrize("decomposed", [False, True])
def test_a_program_that_changes_itself_is_refused(decomposed: bool) -> None:
    class Counter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(1))

        def forward(self, x: Tensor) -> Tensor:
            self.calls.add_(1.0)
            return x * self.calls

    program = torch.export.export(Counter(), (torch.ones(2),))
    with pytest.raises(InputError, match="writes to its buffer calls"):
        onnx_model(program.run_decompositions() if decomposed else program)


def test_an_output_that_is_none_is_left_out() -> None:
    class Nothing(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Any]:
            return {"nothing": None, "x": x, "y": x + 1}

    assert [value.name for value in onnx_model(export(Nothing(), torch.randn(2))).graph.outputs] == ["x_out", "y"]


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(InputError, match=r"onnxscript is not installed[\s\S]*pip install"):
        onnx_model(export(nn.ReLU(), torch.randn(2)))
