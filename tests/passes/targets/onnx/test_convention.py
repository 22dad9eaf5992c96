"""How calls of the operators are read back from a file."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from jetvit.passes.targets.onnx.convention import (
    OPERATORS,
    TENSOR,
    input_names,
    metadata_key,
    operator_of,
    overload,
    parameters,
    read_call,
)
from jetvit.passes.targets.onnx.functions import add_functions
from jetvit.patterns.errors import InputError
from tests.passes.targets.onnx.test_functions import call_of, one_node

ir = pytest.importorskip("onnx_ir")


def reloaded(model: Any) -> Any:
    """The one node of a model, after the file format."""
    (node,) = ir.from_proto(ir.to_proto(model)).graph
    return node


@pytest.mark.parametrize("with_body", [False, True])
@pytest.mark.parametrize("computed", [(), ("grid_h", "grid_w")])
@pytest.mark.parametrize("operator", OPERATORS)
def test_what_is_written_is_read(operator: str, computed: tuple[str, ...], with_body: bool) -> None:
    arguments = call_of(operator, rope=True, conv_size=5, feature_map="hedgehog") | {"eps": 1.1e-6, "scale": 1 / 3}
    arguments = {name: arguments[name] for name in parameters(operator)}
    model = one_node(operator, arguments, 18, computed=computed)
    if with_body:
        add_functions(model)
    node = reloaded(model)
    assert (node.op_type != operator) == with_body
    call = read_call(node)
    assert call is not None
    assert call.operator == operator
    assert list(call.arguments) == [argument.name for argument in overload(operator)._schema.arguments]
    for name, value in call.arguments.items():
        if isinstance(arguments[name], torch.Tensor) and not arguments[name].numel():
            assert value is None
        elif parameters(operator)[name] == TENSOR or name in computed:
            assert value.name == name
        else:
            assert value == arguments[name]


def test_inputs_have_fixed_places() -> None:
    """What the docstring of the convention says, because files freeze it."""
    assert {operator: " ".join(input_names(operator)) for operator in OPERATORS} == {
        "linear_attention": "q k v rope_y rope_x w1 b1 w2 b2 grid_h grid_w extra_before conv_size",
        "window_attention": "q k v rope_y rope_x grid_h grid_w extra_before window_h window_w",
        "full_attention": "q k v rope_y rope_x grid_h grid_w extra_before",
    }


@pytest.mark.parametrize(
    ("domain", "op_type", "operator"),
    [
        ("jetvit", "linear_attention", "linear_attention"),
        ("jetvit", "linear_attention_relu_conv3_2", "linear_attention"),
        ("jetvit", "linear_attentions", None),
        ("jetvit", "Softmax", None),
        ("", "linear_attention", None),
        ("other", "window_attention", None),
    ],
)
def test_operator_of(domain: str, op_type: str, operator: str | None) -> None:
    assert operator_of(domain, op_type) == operator
    if operator is None:
        assert read_call(ir.node(op_type, [], domain=domain)) is None


@pytest.mark.parametrize("text", [None, "nonsense", "0.7", "1e999"])
def test_a_float_without_its_exact_value_is_the_attribute(text: str | None) -> None:
    """Metadata may be lost, and an attribute edited: the attribute is what a runtime sees."""
    model = one_node("full_attention", call_of("full_attention") | {"scale": 0.3}, 18)
    (node,) = model.graph
    del node.metadata_props[metadata_key("scale")]
    if text is not None:
        node.metadata_props[metadata_key("scale")] = text
    call = read_call(reloaded(model))
    assert call is not None
    assert call.arguments["scale"] == pytest.approx(0.3, rel=1e-6)


def test_a_broken_call_is_refused() -> None:
    node = next(iter(one_node("full_attention", call_of("full_attention"), 18).graph))
    del node.attributes["grid_h"]
    with pytest.raises(InputError, match="grid_h of full_attention is neither an input nor an attribute"):
        read_call(node)
    node.attributes.add(ir.AttrString("grid_h", "5"))
    with pytest.raises(InputError, match="grid_h of full_attention"):
        read_call(node)
    crowded = ir.node("full_attention", [ir.Value(name=f"v{i}") for i in range(9)], domain="jetvit")
    with pytest.raises(InputError, match="9 inputs, full_attention takes at most 8"):
        read_call(crowded)
