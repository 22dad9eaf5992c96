"""The local functions of the operators in ONNX Runtime: the ATen operators are what they must equal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from jetvit.passes.targets.onnx.convention import (
    FLOAT,
    OPERATORS,
    TENSOR,
    input_names,
    metadata_key,
    overload,
    parameters,
)
from jetvit.passes.targets.onnx.functions import add_functions
from jetvit.patterns.errors import InputError
from tests.upstream import evaluates_bf16

ir = pytest.importorskip("onnx_ir")
onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

TOLERANCE = {torch.float32: 1e-5, torch.float16: 4e-3, torch.float64: 1e-5}
DTYPES = {
    torch.float32: "FLOAT",
    torch.float64: "DOUBLE",
    torch.float16: "FLOAT16",
    torch.bfloat16: "BFLOAT16",
}


def one_node(
    operator: str, arguments: Mapping[str, Any], opset: int, computed: Sequence[str] = (), open_dims: Sequence[int] = ()
) -> Any:
    """A model of one call by the convention.

    `computed` are the int arguments that are inputs; `open_dims` the axes of q, k and v whose length is not known.
    """
    kinds = parameters(operator)
    inputs, values = [], []
    for name in input_names(operator):
        value = arguments[name]
        if kinds[name] == TENSOR and value.numel():
            dims = [None if axis in open_dims and name in ("q", "k", "v") else n for axis, n in enumerate(value.shape)]
            dims = [None, *dims[1:]] if name.startswith("rope") and computed else dims
            dtype = ir.DataType[DTYPES[value.dtype]]
            values.append(ir.Value(name=name, shape=ir.Shape(dims), type=ir.TensorType(dtype)))
            inputs.append(values[-1])
        elif name in computed:
            values.append(ir.Value(name=name, shape=ir.Shape([]), type=ir.TensorType(ir.DataType.INT64)))
            inputs.append(values[-1])
        else:
            inputs.append(None)
    static = {name: arguments[name] for name, kind in kinds.items() if kind != TENSOR and name not in computed}
    node = ir.node(operator, inputs, attributes=static, domain="jetvit", num_outputs=1)
    node.metadata_props.update({metadata_key(n): repr(arguments[n]) for n, kind in kinds.items() if kind == FLOAT})
    out = node.outputs[0]
    out.name, out.dtype, out.shape = "out", values[0].dtype, ir.Shape(values[0].shape)
    graph = ir.Graph(values, [out], nodes=[node], opset_imports={"": opset, "jetvit": 1}, name="one")
    return ir.Model(graph, ir_version=10)


def run(model: Any, arguments: Mapping[str, Any]) -> Tensor:
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(
        proto.SerializeToString(),
        options,
        providers=["CPUExecutionProvider"],
        disabled_optimizers=["QuickGeluFusion"],  # it makes a node of doubles, for which ONNX Runtime has no kernel
    )
    feeds = {each.name: arguments[each.name] for each in session.get_inputs()}
    feeds = {name: x.numpy() if isinstance(x, Tensor) else np.array(x, np.int64) for name, x in feeds.items()}
    return torch.from_numpy(session.run(None, feeds)[0])


def check(operator: str, arguments: Mapping[str, Any], opset: int, **options: Any) -> None:
    model = one_node(operator, arguments, opset, **options)
    assert add_functions(model) == 1
    actual, expected = run(model, arguments), overload(operator)(*arguments.values())
    assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape)
    off = (actual.double() - expected.double()).abs().max() / expected.double().abs().max().clamp(min=1e-6)
    assert off < TOLERANCE[expected.dtype], f"off by {off:.1e}"


def call_of(
    operator: str,
    *,
    grid: tuple[int, int] = (5, 7),
    batch: int = 2,
    heads: int = 2,
    dim: int = 8,
    before: int = 1,
    after: int = 0,
    rope: bool = False,
    dtype: torch.dtype = torch.float32,
    window: tuple[int, int] = (2, 3),
    conv_size: int = 0,
    hidden: int = 0,
    feature_map: str = "relu",
    seed: int = 0,
) -> dict[str, Any]:
    """The arguments of a call with random tensors, in the order of the schema; `hidden` 0 makes a static kernel."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    absent = torch.empty(0)
    tokens = before + grid[0] * grid[1] + after
    values: dict[str, Any] = {name: random(batch, tokens, heads, dim).to(dtype) for name in "qkv"}
    angles = [random(side, dim // 4) for side in grid]
    tables = [torch.stack([a.cos(), a.sin()], 1) for a in angles] if rope else [absent, absent]
    values |= dict(zip(("rope_y", "rope_x"), tables, strict=True))
    channels, taps = heads * dim, heads * dim * conv_size**2
    mlp = bool(hidden and conv_size)
    values["w1"] = random(hidden, channels).to(dtype) if mlp else absent
    values["b1"] = random(hidden).to(dtype) if mlp else absent
    values["w2"] = random(taps, hidden).to(dtype) if mlp else absent
    values["b2"] = random(taps).to(dtype) if conv_size else absent
    values |= {"grid_h": grid[0], "grid_w": grid[1], "extra_before": before, "conv_size": conv_size, "eps": 1e-6}
    values |= {"feature_map": feature_map, "window_h": window[0], "window_w": window[1], "scale": dim**-0.5}
    return {name: values[name] for name in parameters(operator)}


SIDES = st.integers(1, 9)


@given(
    operator=st.sampled_from(OPERATORS),
    options=st.fixed_dictionaries(
        {
            "grid": st.tuples(SIDES, SIDES),
            "batch": st.integers(1, 3),
            "heads": st.integers(1, 3),
            "dim": st.sampled_from([4, 8, 12]),
            "before": st.integers(0, 2),
            "after": st.integers(0, 2),
            "rope": st.booleans(),
            "dtype": st.sampled_from([torch.float32, torch.float16, torch.float64]),
            "window": st.tuples(SIDES, SIDES),
            "conv_size": st.sampled_from([0, 1, 3, 5, 7]),
            "hidden": st.sampled_from([0, 3]),
            "feature_map": st.sampled_from(["relu", "relu_centred", "hedgehog"]),
            "seed": st.integers(0, 99),
        }
    ),
    opset=st.sampled_from([18, 23]),
    computed=st.sets(st.sampled_from(["grid_h", "grid_w", "extra_before"])),
    open_dims=st.sets(st.sampled_from([0, 1])),
)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_function_is_the_operator(
    operator: str, options: dict[str, Any], opset: int, computed: set[str], open_dims: set[int]
) -> None:
    """For any sizes, known or computed, on both opsets."""
    check(operator, call_of(operator, **options), opset, computed=sorted(computed), open_dims=sorted(open_dims))


@evaluates_bf16
@pytest.mark.parametrize("computed", [(), ("grid_h", "grid_w")])
@pytest.mark.parametrize("operator", OPERATORS)
def test_bf16(operator: str, computed: tuple[str, ...]) -> None:
    """ONNX Runtime has few operators in bf16 on a CPU, so ONNX's own evaluator runs it."""
    reference = pytest.importorskip("onnx.reference")
    ml_dtypes = pytest.importorskip("ml_dtypes")
    arguments = call_of(operator, dtype=torch.bfloat16, conv_size=3, hidden=3, rope=True, after=1)
    model = one_node(operator, arguments, 18, computed=computed, open_dims=(1,) if computed else ())
    add_functions(model)
    feeds = {}
    for value in model.graph.inputs:
        given = torch.as_tensor(arguments[value.name])
        bf16 = given.dtype == torch.bfloat16
        feeds[value.name] = given.view(torch.uint16).numpy().view(ml_dtypes.bfloat16) if bf16 else given.numpy()
    (out,) = reference.ReferenceEvaluator(ir.to_proto(model)).run(None, feeds)
    expected = overload(operator)(*arguments.values()).float()
    assert out.dtype == ml_dtypes.bfloat16
    assert np.abs(out.astype(np.float32) - expected.numpy()).max() < 0.03 * expected.abs().max()


def test_a_body_needs_opset_18_and_a_known_head() -> None:
    with pytest.raises(InputError, match="opset 17"):
        add_functions(one_node("full_attention", call_of("full_attention"), 17))
    with pytest.raises(InputError, match="size of a head is not known"):
        add_functions(one_node("full_attention", call_of("full_attention"), 18, open_dims=(3,)))


def test_functions_of_other_arguments_have_other_names() -> None:
    first = one_node("window_attention", call_of("window_attention"), 18)
    for node in list(one_node("window_attention", call_of("window_attention") | {"scale": 1.0}, 18).graph):
        inputs = [value if value is None else first.graph.inputs[index] for index, value in enumerate(node.inputs)]
        other = ir.node(node.op_type, inputs, attributes=dict(node.attributes), domain="jetvit", num_outputs=1)
        other.outputs[0].name, other.outputs[0].shape = "other", first.graph.outputs[0].shape
        other.outputs[0].dtype = first.graph.outputs[0].dtype
        first.graph.append(other)
    assert add_functions(first) == 2
    assert [node.op_type for node in first.graph] == ["window_attention_2x3", "window_attention_2x3_2"]
    assert add_functions(first) == 0  # every call has its body
