"""Inlined operators: what they compute, and that jetvit finds them again, or ignores a record that does not fit."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx_ir.passes import common

import jetvit
from jetvit.cost_model import Choice
from jetvit.passes.frontends.onnx import read_onnx
from jetvit.passes.targets.onnx import onnx_model, write_onnx
from jetvit.passes.targets.onnx.convention import DOMAIN, OPERATORS, overload, parameters, read_call
from jetvit.passes.targets.onnx.functions import add_functions
from jetvit.passes.targets.onnx.inlining import RECORD, inline_calls, restore_calls
from jetvit.patterns.errors import PlanError
from tests.passes.models import FULL, LINEAR, WINDOW, exported, planned
from tests.passes.plans import with_kernels
from tests.passes.targets.onnx.test_functions import call_of, one_node, run

ir = pytest.importorskip("onnx_ir")
COMPUTED = ("grid_h", "grid_w")
CONVOLVED = Choice("linear", conv_size=3)


def arguments_of(operator: str) -> dict[str, Any]:
    arguments = call_of(operator, rope=True, conv_size=5, feature_map="hedgehog") | {"eps": 1.1e-6, "scale": 1 / 3}
    return {name: arguments[name] for name in parameters(operator)}


def inlined(operator: str, opset: int = 18, computed: tuple[str, ...] = ()) -> Any:
    """A model of one inlined call, as it is after the file format."""
    model = one_node(operator, arguments_of(operator), opset, computed=computed)
    add_functions(model)
    assert inline_calls(model) == 1
    assert not model.functions
    assert model.opset_imports == {"": opset}
    return ir.from_proto(ir.to_proto(model))


@pytest.mark.parametrize("opset", [18, 23])
@pytest.mark.parametrize("computed", [(), COMPUTED], ids=["known grid", "computed grid"])
@pytest.mark.parametrize("operator", OPERATORS)
def test_an_inlined_call_computes_the_same_and_is_found(operator: str, computed: tuple[str, ...], opset: int) -> None:
    model, arguments = inlined(operator, opset, computed), arguments_of(operator)
    assert {node.domain for node in model.graph} == {""}
    expected = overload(operator)(*arguments.values())
    off = (run(model, arguments) - expected).abs().max() / expected.abs().max()
    assert off < 1e-5

    assert restore_calls(model) == 1
    (node,) = model.graph
    assert model.opset_imports == {"": opset, DOMAIN: 1}
    assert (node.outputs[0].name, list(node.outputs[0].shape)) == ("out", list(expected.shape))
    call = read_call(node)
    assert call is not None
    assert call.operator == operator
    for name, value in call.arguments.items():
        given = arguments[name]
        if isinstance(given, torch.Tensor):
            assert (value.name == name) if given.numel() else value is None
        else:
            assert value.name == name if name in computed else value == given


def renamed(model: Any) -> None:
    for index, node in enumerate(model.graph):
        node.name = f"n{index}"
        for out in node.outputs:
            if not out.is_graph_output():
                out.name = f"v{index}"


def lifted(model: Any) -> None:
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)


def merged(model: Any) -> None:
    common.CommonSubexpressionEliminationPass()(model)


@pytest.mark.parametrize("change", [renamed, lifted, merged])
def test_changes_that_leave_the_body_alone(change: Callable[[Any], None]) -> None:
    model = inlined("window_attention")
    change(model)
    assert restore_calls(model) == 1
    assert len(model.graph) == 1


def other_constant(model: Any) -> None:
    node = next(n for n in model.graph if n.op_type == "Constant" and n.attributes["value"].value.dtype.name == "FLOAT")
    array = node.attributes["value"].value.numpy()
    node.attributes["value"] = ir.Attr("value", ir.AttributeType.TENSOR, ir.tensor(np.asarray(array * 2)))


def other_operator(model: Any) -> None:
    next(node for node in model.graph if node.op_type == "Softmax").op_type = "LogSoftmax"


def other_input(model: Any) -> None:
    q, k = model.graph.inputs[:2]
    ir.convenience.replace_all_uses_with(q, k)


def input_is_gone(model: Any) -> None:
    model.graph.inputs[0].name = "images"


def no_record(text: str) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        (node,) = [node for node in model.graph if RECORD in node.metadata_props]
        node.metadata_props[RECORD] = text or json.dumps(json.loads(node.metadata_props[RECORD]) | {"attributes": [1]})

    return change


@pytest.mark.parametrize(
    "change",
    [
        *(other_constant, other_operator, other_input, input_is_gone),
        *(no_record("{"), no_record("[]"), no_record('{"op_type": "none"}'), no_record("")),
    ],
)
def test_a_record_that_does_not_fit_is_ignored(change: Callable[[Any], None], caplog: pytest.LogCaptureFixture) -> None:
    model = inlined("window_attention")
    change(model)
    before = [node.op_type for node in model.graph]
    with caplog.at_level(logging.WARNING):
        assert restore_calls(model) == 0
    assert [node.op_type for node in model.graph] == before
    assert "ignored" in caplog.text or "plain operators" in caplog.text


def test_a_record_names_nothing_that_the_operator_has_not() -> None:
    """An attribute of a wrong type, or of another name, is no record."""
    for attributes in ({"window_h": 2.0}, {"none": 1}, {"scale": 1}):
        model = inlined("window_attention")
        (node,) = [node for node in model.graph if RECORD in node.metadata_props]
        record = json.loads(node.metadata_props[RECORD])
        record["attributes"] |= attributes
        node.metadata_props[RECORD] = json.dumps(record)
        assert restore_calls(model) == 0


@pytest.mark.parametrize("functions", [False, True])
@pytest.mark.parametrize("opset", [18, pytest.param(23, marks=pytest.mark.slow)])
def test_a_file_of_jetvit_takes_its_own_plan_and_no_other(functions: bool, opset: int, tmp_path: Path) -> None:
    _, inputs, program = exported("hf_dinov3_sdpa")
    sites = jetvit.find_attention(program)
    plan = with_kernels(sites, [WINDOW, CONVOLVED])
    rewritten = jetvit.optimize(program, plan=plan)
    write_onnx(onnx_model(rewritten, opset=opset, functions=functions), tmp_path / "fast.onnx")
    again = read_onnx(tmp_path / "fast.onnx")
    assert [(each.name, each.node.target) for each in jetvit.find_attention(again).rewritten] == [
        (each.name, each.node.target) for each in jetvit.find_attention(rewritten).rewritten
    ]
    # The same plan leaves the graph as it is.
    count = len([node for node in again.graph.nodes if "jetvit" in str(node.target)])
    same = jetvit.optimize(again, plan=plan)
    assert len([node for node in same.graph.nodes if "jetvit" in str(node.target)]) == count == len(sites)
    (out, *_), expected = same.module()(*inputs[0]).values(), planned(program, inputs, plan)
    torch.testing.assert_close(out, next(iter(dict(expected).values())), rtol=0, atol=1e-4)
    for other in ([LINEAR], [FULL, WINDOW], [Choice("window", window=(3, 3)), CONVOLVED]):
        with pytest.raises(PlanError):
            jetvit.optimize(again, plan=with_kernels(sites, other))


def test_openvino_loads_inlined_operators(tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino", reason="OpenVINO is not installed")
    _, inputs, program = exported("hf_dinov3_sdpa")
    rewritten = jetvit.optimize(program, plan=with_kernels(jetvit.find_attention(program), [WINDOW, CONVOLVED]))
    core = openvino.Core()
    for functions in (False, True):
        write_onnx(onnx_model(rewritten, functions=functions), tmp_path / "fast.onnx")
        if functions:  # the reason for inlining; should it pass one day, functions can become the default again
            with pytest.raises(RuntimeError, match=r"jetvit\.window_attention"):
                core.read_model(tmp_path / "fast.onnx")
            continue
        model = core.compile_model(core.read_model(tmp_path / "fast.onnx"), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        found = model([inputs[0][0].numpy()])
        for ours, theirs in zip(found.values(), rewritten.module()(*inputs[0]).values(), strict=True):
            assert np.abs(ours - theirs.numpy()).max() <= 1e-4 * np.abs(theirs.numpy()).max()
